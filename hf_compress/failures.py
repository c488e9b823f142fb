"""What counts as the failure of a file or of another library, as opposed to a bug of ours."""

import sys
from types import TracebackType

# Writers and runtimes of other projects report a model that they cannot handle, a full disk or a broken installation
# with any of these, a `KeyError` or an `AttributeError` included. `Exception` itself is not among them: classes of
# their own, which share no base class, are named by each format.
BUILT_IN: tuple[type[Exception], ...] = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
# Libraries whose exceptions share no base class but `Exception`.
LIBRARIES = (
    "onnxruntime.capi.onnxruntime_pybind11_state",
    "safetensors",
    "datasets.exceptions",
    "pyarrow.lib",
    "jinja2",
)
LONGEST = 600  # Characters of a reason; compilers print whole graphs.


def exceptions_of(module: str) -> tuple[type[Exception], ...]:
    """Return the exception classes in a module; none if nothing has imported it, since then nothing raised them.

    Example:
        >>> import netrc
        >>> from hf_compress.failures import exceptions_of
        >>> [error.__name__ for error in exceptions_of("netrc")]
        ['NetrcParseError']
    """
    values = vars(sys.modules[module]).values() if module in sys.modules else ()
    return tuple(value for value in values if isinstance(value, type) and issubclass(value, Exception))


def reason(error: Exception) -> str:
    r"""Return why something failed, in one line.

    Example:
        >>> from hf_compress.failures import reason
        >>> reason(RuntimeError("no kernel for\n  `Loop`"))
        'no kernel for `Loop` (RuntimeError)'
        >>> reason(ValueError("Give another model."))
        'Give another model.'
    """
    said = " ".join(str(error).split())
    said = said if len(said) <= LONGEST else said[:LONGEST] + "..."
    if isinstance(error, OSError) and error.strerror:
        said = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    elif not said or not isinstance(error, ValueError | ImportError):
        said = f"{said} ({type(error).__name__})" if said else type(error).__name__
    return said


def failures() -> tuple[type[Exception], ...]:
    """The exceptions that mean that a file of a folder cannot be read or run.

    Example:
        >>> from hf_compress.failures import failures
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
