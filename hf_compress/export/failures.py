"""What counts as the failure of a format, as opposed to a failure of the run."""

import sys

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
LONGEST = 600  # Characters of a reason; compilers print whole graphs.


def exceptions_of(module: str) -> tuple[type[Exception], ...]:
    """Return the exception classes in a module; none if nothing has imported it, since then nothing raised them.

    Example:
        >>> import netrc
        >>> from hf_compress.export.failures import exceptions_of
        >>> [error.__name__ for error in exceptions_of("netrc")]
        ['NetrcParseError']
    """
    values = vars(sys.modules[module]).values() if module in sys.modules else ()
    return tuple(value for value in values if isinstance(value, type) and issubclass(value, Exception))


def reason(error: Exception) -> str:
    r"""Return why something failed, in one line.

    Example:
        >>> from hf_compress.export.failures import reason
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
