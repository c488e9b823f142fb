"""The descriptor of a format: how to write and read it, what it needs, and its words for flags and cards."""

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_compress.checkpoint.aside import written_aside
from hf_compress.export.kernels import saturates
from hf_compress.export.parity import BATCHES, Parity, check_parity, load, parity_of, random_batches
from hf_compress.failures import BUILT_IN, exceptions_of
from hf_compress.recipe import Recipe

logger = logging.get_logger(__name__)

Batches = Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class Format:
    """One format of the compressed model. Everything that uses a format reads it from here.

    Args:
        name: the choice of `--compress_formats`.
        path: its path in the compressed folder: the file or folder that `read` takes.
        require: raises a `MissingExtraError` if a library of the format is missing.
        write: takes the compressed folder and a path, and writes the format to that path. None for the packed file,
            which `save_compressed` writes and all others are written from.
        read: takes the path and the reloaded model, and returns a model that computes from the files at the path
            alone (`web`: and from the packed file), with the configuration of the reloaded model.
        help: one clause for `--help`, after the name.
        card: one sentence for the model card.
        loading: lines of Python that load it, for the card. `folder` is the path of the compressed folder, and
            `{auto_class}` stands for the model's auto class. Empty if it is not for Python.
        refusal: takes a recipe and returns why the format cannot hold a model of it, in sentences, or "". It is asked
            before training.
        unfit: as `refusal`, for a model.
        native: as `read`, but with the fastest kernels of the machine, which saturate on x86 CPUs without VNNI. None
            if `read` uses them.
        exact: the option of the runtime that avoids such kernels, for users of the format.
        errors: modules with the exception classes of its libraries that are no built-in exceptions.
        runtime: its heading on the card. The default is the name.
        install: the packages that users of the format install, for the card.
        running: lines of Python that run it on `inputs`, which a tokenizer or processor returned, and set `logits`,
            for the card. `{missing}` stands for what an input that is not among them gets, behind a comma.
        tensors: what the tokenizer returns for them, as its `return_tensors`.

    Example:
        >>> from hf_compress.export import FORMATS
        >>> FORMATS["onnx"].path.as_posix()
        'onnx/model_quantized.onnx'
    """

    name: str
    path: Path
    require: Callable[[], None]
    write: Callable[[Path, Path], None] | None
    read: Callable[[Path, PreTrainedModel], nn.Module]
    help: str
    card: str
    loading: str
    refusal: Callable[[Recipe], str] = lambda recipe: ""
    unfit: Callable[[PreTrainedModel], str] = lambda model: ""
    native: Callable[[Path, PreTrainedModel], nn.Module] | None = None
    exact: str = ""
    runtime: str = ""
    install: str = ""
    running: str = ""
    tensors: str = "np"
    errors: tuple[str, ...] = ()

    def failures(self) -> tuple[type[Exception], ...]:
        """Return the exceptions that mean that the format cannot be written, read or run.

        Example:
            >>> from hf_compress.export import FORMATS
            >>> RuntimeError in FORMATS["onnx"].failures()
            True
        """
        return (*BUILT_IN, *(error for module in self.errors for error in exceptions_of(module)))

    def export(self, folder: str | Path, batches: Batches | None = None) -> Parity:
        """Write the format into `folder` if it computes what the packed file computes, and return how close it is.

        Args:
            folder: what `save_compressed` or `save_pretrained` wrote.
            batches: inputs of the model, as its collator makes them, to compare on. By default random ones. Prefer
                real ones: a trained model is only sure of its answer on data like its training data.

        Raises:
            MissingExtraError: a library is missing. The message names the extra.
            ValueError: `folder` holds no model that is known, the format cannot hold it, or the written files compute
                something else. Nothing is left behind.
        """
        self.require()
        folder = Path(folder)
        with written_aside(folder, self.path, replace=True) as aside:
            return self.write_checked(folder, aside, batches)

    def write_checked(self, folder: Path, path: Path, batches: Batches | None = None) -> Parity:
        """Write the format of the compressed `folder` to `path`, and return how close it is to the packed file.

        Args:
            folder: as for `export`.
            path: a path in a folder that exists.
            batches: as for `export`.

        Raises:
            ValueError: the written files compute something else; they are left where they are. Libraries may raise
                any of `failures`.
        """
        if self.write is None:
            raise ValueError(f"`{self.name}` is written by `save_compressed`. Call that to write it.")
        reference = load(folder)
        if said := self.unfit(reference):
            raise ValueError(said)
        self.write(folder, path)
        compared = list(itertools.islice(random_batches(reference) if batches is None else batches, BATCHES))
        parity = check_parity(reference, self.read(path, reference), compared, self.name)
        if self.native is not None and saturates():
            native = parity_of(reference, self.native(path, reference), compared)
            parity = replace(parity, native_deviation=native.deviation)
            self._warn_of_saturation(parity)
        return parity

    def _warn_of_saturation(self, parity: Parity) -> None:
        logger.warning(
            "This CPU has no VNNI: its int8 kernels add products in 16 bits, which saturate. With them, the logits of "
            f"the format `{self.name}` deviate by {parity.native_deviation:.3g}, with exact kernels by "
            f"{parity.deviation:.3g}. On such CPUs run it with {self.exact}, or train with weights of 7 bits "
            "(`--quant_bits .=7`), which cannot saturate."
        )

    def files(self, folder: str | Path) -> list[Path]:
        """Return the files and folders of the format in `folder` that exist."""
        path = Path(folder) / self.path
        found = [path] if path.is_dir() else path.parent.glob(f"{path.stem}.*")
        return sorted(found)

    def stored_bytes(self, folder: str | Path) -> int:
        """Return the bytes of the weights (and graph) of the format in `folder`, without tokenizers and configs."""
        path = Path(folder) / self.path
        files = path.glob("*.safetensors") if path.is_dir() else self.files(folder)
        return sum(file.stat().st_size for file in files)
