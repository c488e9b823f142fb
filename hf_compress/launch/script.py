"""Run a script as `python SCRIPT.py` would: its arguments, the modules beside it, its exit status."""

import builtins
import importlib.machinery
import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from hf_compress.redaction import redact_text

OURS = (__file__, str(Path(__file__).with_name("launcher.py")))


class Script:
    """A script that runs as `python SCRIPT.py` would run it."""

    def __init__(self, path: str, *arguments: str) -> None:
        self.path, self._arguments = path, arguments
        self._module = ModuleType("__main__")
        self._module.__file__ = os.path.abspath(path)  # noqa: PTH100 (Python does the same, and does not resolve links)
        self._module.__loader__ = importlib.machinery.SourceFileLoader("__main__", self._module.__file__)
        self._module.__dict__["__builtins__"] = builtins
        self._module.__dict__["__cached__"] = None

    @contextmanager
    def as_main(self) -> Iterator[None]:
        """Make this script the program, within the context: its arguments, the modules beside it, `__main__`."""
        argv, path, main = sys.argv, sys.path[:], sys.modules["__main__"]
        sys.argv = [self.path, *self._arguments]
        sys.path[0] = str(Path(self.path).resolve().parent)
        # Kept while objects of the script live, because pickling looks up their classes here.
        sys.modules["__main__"] = self._module
        try:
            yield
        finally:
            sys.argv, sys.path[:], sys.modules["__main__"] = argv, path, main

    def run(self) -> int:
        """Run the script and return the exit status that Python would give. Tracebacks do not show our frames."""
        end = _End()
        with self.as_main(), end:
            with io.open_code(str(self._module.__file__)) as file:
                code = compile(file.read(), str(self._module.__file__), "exec", dont_inherit=True)
            exec(code, self._module.__dict__)
        return end.status


class _End:
    """Handles every end of a script as Python would, and keeps its exit status."""

    status = 0

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> bool:
        if isinstance(error, SystemExit):
            self.status = _status(error.code)
        elif error is not None:
            _show(error)
            self.status = 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
        return True


def _status(code: Any) -> int:
    """Return the exit status for `sys.exit(code)`: None is success; a message is printed and is a failure."""
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    sys.stderr.write(redact_text(f"{code}\n"))
    return 1


def _show(error: BaseException) -> None:
    """Show an uncaught exception as Python would, or as the script's own hook does, but without secrets."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        link.__traceback__ = _without_us(link.__traceback__)
        link = link.__cause__ or link.__context__
    sys.stdout.flush()
    with redirect_stderr(io.StringIO()) as shown:
        sys.excepthook(type(error), error, error.__traceback__)
    sys.stderr.write(redact_text(shown.getvalue()))


def _without_us(traceback: TracebackType | None) -> TracebackType | None:
    """Return the traceback without the frames of this file and of the launcher."""
    if traceback is None:
        return None
    rest = _without_us(traceback.tb_next)
    if traceback.tb_frame.f_code.co_filename in OURS:
        return rest
    return TracebackType(rest, traceback.tb_frame, traceback.tb_lasti, traceback.tb_lineno)
