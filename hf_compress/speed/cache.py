"""Tables of latency on the disk of this machine, so that each is measured once."""

import hashlib
import json
import os
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path

from huggingface_hub import constants
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from hf_compress.failures import reason
from hf_compress.models.groups import GroupKind
from hf_compress.prune.latency import LatencyTable
from hf_compress.quantize import QuantizationArguments
from hf_compress.report import provenance
from hf_compress.speed.measuring import machine, measure_table, runtime_words

logger = logging.get_logger(__name__)

VERSION = 4  # Of how tables are measured.
# What says nothing about the shapes of a graph: a saved config has more of it than the one that training began with.
NAMES = (
    "_name_or_path",
    "architectures",
    "auto_map",
    "dtype",
    "finetuning_task",
    "id2label",
    "label2id",
    "problem_type",
    "quantization_config",
    "transformers_version",
    "transformers_weights",
    "use_cache",
)


def cached_table(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    quantization: QuantizationArguments,
    kinds: Collection[GroupKind],
    *,
    exclude: Sequence[str] = (),
    batch: int = 1,
    length: int = 128,
    runtime: str = "onnx",
) -> LatencyTable:
    """Return the table that `measure_table` returns, measured now or earlier on this machine.

    Tables are in the folder `hf_compress/latency` beside the Hub's cache (`HF_HOME`), one file for each architecture,
    number format, shape of a batch, processor, runtime, number of threads and versions of the libraries. Delete a file
    to have it measured again. Where no file can be written, every call measures, and the log says so.

    Raises:
        MissingExtraError, ValueError: as `measure_table`.

    Example:
        >>> from hf_compress import QuantizationArguments
        >>> from hf_compress.speed import cached_table
        >>> int8 = QuantizationArguments(quant_scheme="int8")
        >>> cached_table(type(model), model.config, int8, ["neurons", "heads"]).most  # doctest: +SKIP
        3.1
    """
    known = {
        "version": VERSION,
        "class": model_class.__name__,
        "config": {name: value for name, value in config.to_dict().items() if name not in NAMES},
        "quantization": {name: asdict(quantization)[name] for name in ("quant_scheme", "quant_bits", "quant_exclude")},
        "groups": [sorted(kinds), list(exclude)],
        "batch": [batch, length],
        "machine": [machine(), runtime_words(runtime)],
        "versions": provenance.versions((*provenance.PACKAGES, *provenance.RUNTIMES)),
    }
    digest = hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()
    path = table_folder() / f"{digest[:32]}.json"
    try:
        return LatencyTable.from_dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError, LookupError):
        pass  # There is none yet, or another version has written it.
    logger.warning("Measuring the latency of this model with fewer neurons and heads, once for this machine.")
    table = measure_table(
        model_class, config, quantization, kinds, exclude=exclude, batch=batch, length=length, runtime=runtime
    )
    try:
        _keep(table, path)
    except OSError as error:
        logger.warning(f"The latency of this model is measured again next time: it could not be kept. {reason(error)}")
    return table


def _keep(table: LatencyTable, path: Path) -> None:
    """Write the file of a table. It appears when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(f".{os.getpid()}")
    try:
        aside.write_text(json.dumps(table.to_dict(), indent=2) + "\n", "utf-8")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def table_folder() -> Path:
    """Return the folder of the tables."""
    return Path(constants.HF_HOME, "hf_compress", "latency")
