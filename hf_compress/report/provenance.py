"""Where a result came from: the command, the settings, the software and the machine, all read from this process."""

import os
import platform
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import fields
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from hf_compress.redaction import redact, redact_arguments
from hf_compress.release import NAME, __version__

RUNTIMES = ("onnxruntime", "openvino")
PACKAGES = ("hf-compress", "transformers", "torch", "accelerate", "datasets", "tokenizers")
# A report always has the first settings. It has the others where they are not the default of this Transformers.
ALWAYS = ("learning_rate", "lr_scheduler_type", "num_train_epochs", "per_device_train_batch_size", "optim")
UNLESS_DEFAULT = (
    "max_steps",
    "gradient_accumulation_steps",
    "warmup_steps",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "label_smoothing_factor",
    "bf16",
    "fp16",
    "bf16_full_eval",
    "fp16_full_eval",
    "tf32",
    "data_seed",
    "full_determinism",
    "load_best_model_at_end",
    "metric_for_best_model",
    "activation_checkpointing",
    "torch_compile",
    "neftune_noise_alpha",
)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# A list of arguments that flags were taken off, and the command line that it was before.
_shortened: tuple[list[str], str] | None = None


def command() -> str:
    """The command line of this process, quoted for a shell, without secrets and with paths as they were given.

    Flags that `take_flags` has taken off `sys.argv` are part of it.
    """
    if _shortened is not None and _shortened[0] is sys.argv:
        return _shortened[1]
    arguments = redact_arguments(sys.argv[1:], keep_paths=True)
    module = getattr(sys.modules["__main__"], "__spec__", None)
    if module is not None:
        return shlex.join(["python", "-m", module.name.removesuffix(".__main__"), *arguments])
    program = sys.argv[0]
    if program.endswith(".py"):
        return shlex.join(["python", program, *arguments])
    # An installed program: the shell finds it by name, and its folder means nothing on other machines.
    return shlex.join([Path(program).name or "python", *arguments])


def keep_command(argv: list[str], said: str) -> None:
    """Let `command` return `said` from now on, if `argv`, which flags are taken off, is `sys.argv`."""
    global _shortened
    if argv is sys.argv:
        _shortened = argv, said


def hyperparameters(arguments: TrainingArguments) -> dict[str, Any]:
    """The settings that shape a result: the main ones always, the others where they are not the default."""
    defaults = {field.name: field.default for field in fields(arguments)}
    values = {name: getattr(arguments, name) for name in (*ALWAYS, *UNLESS_DEFAULT) if name in defaults}
    # Some switches are None by default, and False after the arguments are complete. Both mean off.
    kept = {n: v for n, v in values.items() if n in ALWAYS or not (v == defaults[n] or v is None or v is False)}
    if arguments.max_steps > 0:
        kept.pop("num_train_epochs")  # It has no effect then.
    if arguments.world_size > 1:
        kept["processes"] = arguments.world_size
    plain = {name: value.value if isinstance(value, Enum) else value for name, value in kept.items()}
    return {name: redact(value) if isinstance(value, str) else value for name, value in plain.items()}


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """The versions of Python and of `packages`; "not installed" for a package that is missing.

    Example:
        >>> from hf_compress.report.provenance import versions
        >>> versions(["no-such-package"])["no_such_package"]
        'not installed'
    """
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package.replace("-", "_")] = __version__ if package == NAME else version(package)
        except PackageNotFoundError:
            found[package.replace("-", "_")] = "not installed"
    return found


def hardware(device: torch.device) -> str:
    """Name and number of the GPUs, or name of the CPU and number of cores that this process may use."""
    if device.type == "cuda":
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(device)}"
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    return f"{_processor()}, {cores} cores"


def hub_id(name: str) -> str | None:
    """`name` if it can only be the id of a Hub model, else None.

    That is "owner/name" where no local folder has this name. An id without an owner ("bert-base-uncased") could be a
    folder that is gone, so the user has to declare it.

    Example:
        >>> from hf_compress.report.provenance import hub_id
        >>> hub_id("google-bert/bert-base-uncased")
        'google-bert/bert-base-uncased'
        >>> hub_id("./runs/dense")
    """
    return name if HUB_ID.fullmatch(name) and not Path(name).exists() else None


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        found = re.search(r"^model name\s*:\s*(.+)$", information.read_text(), re.MULTILINE)
        if found:
            return found[1]
    return platform.processor() or platform.machine()
