"""What a folder holds for users who have not imported hf_compress: a file that reads it, and a message.

`hf_compress_loading.py` is written verbatim into every packed folder. `auto_map` in config.json names it, so stock
Transformers loads the folder with `trust_remote_code=True`. Without that, Transformers would take the packed bytes
for weights. `transformers_weights` prevents it: Transformers expects the name of a file there, refuses any other text,
and shows it. So the text says what to do.
"""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from hf_compress.checkpoint import hf_compress_loading
from hf_compress.checkpoint.config import METHOD
from hf_compress.release import install_step

READER_NAME = "hf_compress_loading.py"
_CLASS = f"{hf_compress_loading.OWN_NAME}.{hf_compress_loading.PackedConfig.__name__}"
MESSAGE_FIELD = "transformers_weights"


def message() -> str:
    """Return what Transformers shows to users who load a packed folder without hf_compress."""
    return (
        "These weights are packed by hf_compress. Load them with `trust_remote_code=True`, which uses "
        f"{READER_NAME} of this repository; or {install_step()} and `import hf_compress` first"
    )


def add_reader(folder: Path) -> None:
    """Write the reader and the message into `folder`, if it holds a packed model.

    A model with a configuration class of its own keeps its `auto_map`; then only the message is added.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8"))
    if config.get("quantization_config", {}).get("quant_method") != METHOD:
        return
    classes = config.setdefault("auto_map", {})
    if classes.setdefault("AutoConfig", _CLASS) == _CLASS:
        shutil.copyfile(hf_compress_loading.__file__, folder / READER_NAME)
    config[MESSAGE_FIELD] = message()
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")


def drop_reader(config: PreTrainedConfig) -> None:
    """Remove from a loaded configuration, in place, what only users without hf_compress need."""
    values: dict[str, Any] = vars(config)
    values.pop(MESSAGE_FIELD, None)
    classes = values.get("auto_map") or {}
    if classes.get("AutoConfig", "").endswith(_CLASS):  # For a model of the Hub, Transformers puts its id in front.
        values["auto_map"] = {name: found for name, found in classes.items() if name != "AutoConfig"}
        if not values["auto_map"]:
            del values["auto_map"]


def keep_reader(model: PreTrainedModel) -> None:
    """Let `save_pretrained` of a loaded model write the reader too.

    The model gets a method of its own, because Transformers tells a quantizer nothing of the folder.
    """
    vars(model)["save_pretrained"] = partial(_save, model)


def _save(model: PreTrainedModel, save_directory: str | Path, **options: Any) -> None:
    type(model).save_pretrained(model, save_directory, **options)
    if options.get("is_main_process", True) and (Path(save_directory) / "config.json").is_file():
        add_reader(Path(save_directory))
