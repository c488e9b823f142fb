"""Find the training checkpoint to resume from: the newest one that was written completely."""

import json
import zipfile
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from hf_compress.prune.criteria import CRITERIA
from hf_compress.prune.state_file import STATE_FILE
from hf_compress.recipe import RecipeCallback

logger = logging.get_logger(__name__)

STATE_NAME = "trainer_state.json"  # Trainer writes it last.
# DeepSpeed keeps everything except the random state in global_step*.
WEIGHTS = ("*.safetensors", "pytorch_model*", "*/*.safetensors", "global_step*")
# Trainer writes these together or, under `save_only_model`, not at all.
COMPANIONS = (("scheduler*", "global_step*"), ("rng_state*",), ("optimizer*", "global_step*"))


def last_complete_checkpoint(folder: str | Path) -> str | None:
    """Return the path of the newest checkpoint in the output folder that a run can resume from, or None.

    A run that is killed while it saves leaves an incomplete folder. `resume_from_checkpoint=True` and
    `transformers.trainer_utils.get_last_checkpoint` take it for the last checkpoint. This function skips it and logs
    its name.

    Example:
        >>> from hf_compress import last_complete_checkpoint
        >>> last_complete_checkpoint("no_such_folder") is None
        True
    """
    numbered = []
    for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        number = path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
        if number.isdecimal() and path.is_dir():
            numbered.append((int(number), path))
    for _, path in sorted(numbered, reverse=True):
        if is_complete(path):
            return str(path)
        logger.warning(f"Skipping {path}: it was not written completely.")
    return None


def is_complete(checkpoint: str | Path) -> bool:
    """Return whether the folder is a training checkpoint without missing or truncated files.

    It reads the ends of the files only, so it is fast. Subfolders, where frameworks that shard write, are not checked.
    """
    checkpoint = Path(checkpoint)
    state = _json_object(checkpoint / STATE_NAME)
    if not isinstance(state.get("global_step"), int) or not _is_config(checkpoint / "config.json"):
        return False
    if not _has_masks(checkpoint, state):
        return False
    companions = [any(any(checkpoint.glob(pattern)) for pattern in patterns) for patterns in COMPANIONS]
    if any(companions) and not all(companions):
        return False
    if not any(any(checkpoint.glob(pattern)) for pattern in WEIGHTS):
        return False
    try:
        return all(_is_whole(path) for path in checkpoint.iterdir())
    except OSError:  # A file that cannot be read cannot be resumed from.
        return False


def _json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one if there is none."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _is_config(path: Path) -> bool:
    """Return whether the configuration of the model is a JSON object. Adapters and plain modules have none."""
    return not path.exists() or bool(_json_object(path))


def _has_masks(checkpoint: Path, state: dict[str, Any]) -> bool:
    """Return whether the masks are there, if the criterion of the run saves them. They are written last."""
    try:
        pruning = state.get("stateful_callbacks", {}).get(RecipeCallback.RECORD, {}).get("pruning", {})
        criterion, on = (
            CRITERIA.get(pruning.get("prune_criterion", "")),
            bool(pruning.get("prune_sparsity", 0) > 0 or pruning.get("prune_keep")),
        )
    except (AttributeError, TypeError):
        return False  # The state of the Trainer is damaged.
    return not (on and criterion is not None and criterion.has_state) or (checkpoint / STATE_FILE).is_file()


def _is_whole(path: Path) -> bool:
    """Return whether a file is as long as it claims. Files without such a claim count as whole."""
    if path.suffix == ".safetensors":
        return _is_whole_safetensors(path)
    if path.suffix in (".pt", ".pth", ".bin"):
        return zipfile.is_zipfile(path)  # The directory of a zip archive is at its end.
    if path.name.endswith(".index.json"):
        shards = _json_object(path).get("weight_map")
        return isinstance(shards, dict) and all((path.parent / str(shard)).is_file() for shard in shards.values())
    return True


def _is_whole_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= path.stat().st_size - 8:
            return False
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            return path.stat().st_size == 8 + length + max(ends, default=0)
        except (AttributeError, LookupError, RecursionError, TypeError, ValueError):
            return False  # The header is damaged.
