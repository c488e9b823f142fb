"""What libraries raise for files that they cannot read or run, as opposed to a bug of ours."""

from types import TracebackType

from hf_compress.export.failures import BUILT_IN, exceptions_of, reason

# Libraries whose exceptions share no base class but `Exception`.
LIBRARIES = (
    "onnxruntime.capi.onnxruntime_pybind11_state",
    "safetensors",
    "datasets.exceptions",
    "pyarrow.lib",
    "jinja2",
)


def failures() -> tuple[type[Exception], ...]:
    """The exceptions that mean that a file of a folder cannot be read or run.

    Example:
        >>> from hf_compress.verify.failures import failures
        >>> OSError in failures(), KeyboardInterrupt in failures()
        (True, False)
    """
    return (*BUILT_IN, *(error for library in LIBRARIES for error in exceptions_of(library)))


class readable:
    """A context in which a file that a library cannot read is a `ValueError`.

    The tokenizers library raises `Exception` itself, which no `except` for a class of errors catches.
    """

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and (kind is Exception or isinstance(error, failures())):
            raise ValueError(f"{self.what} cannot be read: {reason(error)}") from error
