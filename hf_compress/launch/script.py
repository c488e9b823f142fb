"""A script, run as `python SCRIPT.py` runs it: its arguments, its neighbours, its end."""

import builtins
import importlib.machinery
import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

OURS = (__file__, str(Path(__file__).with_name("launcher.py")))


class Script:
    """A script to be run as `python SCRIPT.py` runs it."""

    def __init__(self, path: str, *arguments: str) -> None:
        self.path, self._arguments = path, arguments
        self._module = ModuleType("__main__")
        self._module.__file__ = os.path.abspath(path)  # noqa: PTH100 (as Python does, which resolves no links here)
        self._module.__loader__ = importlib.machinery.SourceFileLoader("__main__", self._module.__file__)
        self._module.__dict__["__builtins__"] = builtins
        self._module.__dict__["__cached__"] = None

    @contextmanager
    def as_main(self) -> Iterator[None]:
        """A context in which this script is the program: its arguments, its folder's modules, its `__main__`."""
        argv, path, main = sys.argv, sys.path[:], sys.modules["__main__"]
        sys.argv = [self.path, *self._arguments]
        sys.path[0] = str(Path(self.path).resolve().parent)
        # Not taken back as long as objects of the script live: what pickles them looks their classes up here.
        sys.modules["__main__"] = self._module
        try:
            yield
        finally:
            sys.argv, sys.path[:], sys.modules["__main__"] = argv, path, main

    def run(self) -> int:
        """The exit status that Python would have given; an uncaught exception is shown without our frames."""
        end = _End()
        with self.as_main(), end:
            with io.open_code(str(self._module.__file__)) as file:
                code = compile(file.read(), str(self._module.__file__), "exec", dont_inherit=True)
            exec(code, self._module.__dict__)
        return end.status


class _End:
    """A context that does with what ends a script, whatever that is, as Python would, and keeps its exit status."""

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
    """What `sys.exit(code)` makes of a code: nothing is success, a message goes to standard error and is a failure."""
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    sys.stderr.write(f"{code}\n")
    return 1


def _show(error: BaseException) -> None:
    """Shows an uncaught exception as Python would, or as the script's own hook does."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        link.__traceback__ = _without_us(link.__traceback__)
        link = link.__cause__ or link.__context__
    sys.stdout.flush()
    sys.excepthook(type(error), error, error.__traceback__)


def _without_us(traceback: TracebackType | None) -> TracebackType | None:
    """The traceback without the frames of this file and of the launcher, between the script and Trainer."""
    if traceback is None:
        return None
    rest = _without_us(traceback.tb_next)
    if traceback.tb_frame.f_code.co_filename in OURS:
        return rest
    return TracebackType(rest, traceback.tb_frame, traceback.tb_lasti, traceback.tb_lineno)
