"""Where a run that was killed goes on: the last training checkpoint that was written to its end."""

import json
import zipfile
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

logger = logging.get_logger(__name__)

STATE_NAME = "trainer_state.json"  # Trainer writes it last.
# DeepSpeed keeps everything but the random state in global_step*.
WEIGHTS = ("*.safetensors", "pytorch_model*", "*/*.safetensors", "global_step*")
# Trainer writes these together or, under `save_only_model`, not at all.
COMPANIONS = (("scheduler*", "global_step*"), ("rng_state*",), ("optimizer*", "global_step*"))


def last_complete_checkpoint(folder: str | Path) -> str | None:
    """The path of the newest checkpoint in the output folder that can be resumed from; None if there is none.

    A run that is killed while it saves leaves a folder that `transformers.trainer_utils.get_last_checkpoint`, and with
    it `resume_from_checkpoint=True`, takes for the last checkpoint. Such folders are passed over, and logged.
    """
    numbered = []
    for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        number = path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
        if number.isdecimal() and path.is_dir():
            numbered.append((int(number), path))
    for _, path in sorted(numbered, reverse=True):
        if is_complete(path):
            return str(path)
        logger.warning(f"{path} was not written to its end, and is passed over.")
    return None


def is_complete(checkpoint: str | Path) -> bool:
    """Whether the folder is a training checkpoint of which no file is missing or cut short.

    Read are the ends of the files, not their contents, so that it takes no time. What frameworks that shard write into
    folders of their own is not looked into.
    """
    checkpoint = Path(checkpoint)
    try:
        json.loads((checkpoint / STATE_NAME).read_text("utf-8"))["global_step"]
    except (OSError, ValueError, KeyError):
        return False
    companions = [any(any(checkpoint.glob(pattern)) for pattern in patterns) for patterns in COMPANIONS]
    if any(companions) and not all(companions):
        return False
    if not any(any(checkpoint.glob(pattern)) for pattern in WEIGHTS):
        return False
    return all(_is_whole(path) for path in checkpoint.iterdir())


def _is_whole(path: Path) -> bool:
    """Whether a file of a checkpoint is as long as it says; True for what does not say."""
    if path.suffix == ".safetensors":
        return _is_whole_safetensors(path)
    if path.suffix in (".pt", ".pth", ".bin"):
        return zipfile.is_zipfile(path)  # The directory of a zip archive stands at its end.
    if path.name.endswith(".index.json"):
        try:
            shards = set(json.loads(path.read_text("utf-8"))["weight_map"].values())
        except (ValueError, KeyError):
            return False
        return all((path.parent / shard).is_file() for shard in shards)
    return True


def _is_whole_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= path.stat().st_size - 8:
            return False
        header = json.loads(file.read(length))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return path.stat().st_size == 8 + length + max(ends, default=0)
