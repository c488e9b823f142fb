"""Any Trainer script, unmodified, with our flags: `hf-compress run SCRIPT.py`, `torchrun -m hf_compress.launch`."""

import builtins
import functools
import importlib.machinery
import inspect
import io
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from rich.console import Console
from transformers import Trainer

from hf_compress import provenance
from hf_compress.comparison import comparison_table, recipe_table
from hf_compress.compression import FOLDER, compress, finish, recipe_of
from hf_compress.flags import Flags, descriptions, parser, take_flags

USAGE = """hf-compress run SCRIPT.py [the script's own arguments] [our flags]
       accelerate launch -m hf_compress.launch SCRIPT.py ...
       torchrun -m hf_compress.launch SCRIPT.py ..."""
HELP = ("-h", "--help")


class Launched:
    """What became of the Trainers of a script: the one that was trained last, and how the script evaluated it."""

    def __init__(self, flags: Flags) -> None:
        self.flags = flags
        self.trained: Trainer | None = None
        self.searched = False
        self.evaluations: list[dict[str, Any]] = []
        self._said = False

    def begin(self, trainer: Trainer) -> None:
        """Makes a Trainer that is about to train for the first time compress, and notes how it is evaluated."""
        compress(trainer, self.flags.recipe)
        if not self._said and trainer.is_world_process_zero():
            Console(stderr=True).print(recipe_table(recipe_of(trainer) or self.flags.recipe))
        self._said = True
        signature, evaluate = inspect.signature(trainer.evaluate), trainer.evaluate

        # On the trainer rather than in its class: whatever overrides `evaluate` comes after it.
        @functools.wraps(evaluate)
        def noted(*args: Any, **kwargs: Any) -> Any:
            if trainer is self.trained:
                self.evaluations.append(_named(signature, args, kwargs))
            return evaluate(*args, **kwargs)

        trainer.evaluate = noted

    def end(self, trainer: Trainer, trial: Any) -> None:
        """Notes that a training came to its end; the trials of a search leave no model to finish."""
        if trial is None:
            self.trained, self.evaluations = trainer, []
        self.searched = self.searched or trial is not None

    @property
    def evaluation(self) -> dict[str, Any]:
        """The arguments of the script's first evaluation after training; none where it made none."""
        first = self.evaluations[0] if self.evaluations else {}
        return {name: value for name, value in first.items() if name != "metric_key_prefix"}

    @property
    def hub_id(self) -> str | None:
        """Where the result goes: where our flag says, or else where the script's `--push_to_hub` would send it."""
        assert self.trained is not None
        arguments, asked = self.trained.args, self.flags.options.compress_hub_id
        if asked is None and arguments.push_to_hub:
            return arguments.hub_model_id or Path(arguments.output_dir).absolute().name
        return asked


@contextmanager
def trainers_compress(launched: Launched) -> Iterator[None]:
    """A context in which every Trainer, of whatever class, compresses what it trains and uploads nothing by itself.

    A Trainer that is never trained stays as it is.
    """
    original = {name: Trainer.__dict__[name] for name in ("train", "init_hf_repo", "push_to_hub")}
    original["_push_from_checkpoint"] = Trainer.__dict__["_push_from_checkpoint"]
    train = original["train"]
    begun: list[Trainer] = []

    @functools.wraps(train)
    def train_compressed(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        if not any(trainer is self for trainer in begun):
            launched.begin(self)
            begun.append(self)
        result = train(self, *args, **kwargs)
        launched.end(self, _named(inspect.signature(train), (self, *args), kwargs).get("trial"))
        return result

    def uploads_nothing(self: Trainer, *args: Any, **kwargs: Any) -> None:
        """Leaves it to the end of the script to upload, and what is uploaded then is the compressed model."""

    try:
        Trainer.train = train_compressed
        for name in original.keys() - {"train"}:
            setattr(Trainer, name, uploads_nothing)
        yield
    finally:
        for name, function in original.items():
            setattr(Trainer, name, function)


def run(argv: Sequence[str], command: str | None = None) -> int:
    """The exit status of the script `argv[0]`, run with the arguments behind it, of which our flags are ours.

    Raises:
        ValueError: there is no script, one of our flags has no meaning, or the result could not be finished.
    """
    if not argv or list(argv) in ([HELP[0]], [HELP[1]]):
        _print_help("usage: " + USAGE)
        return 0 if argv else 2
    if not Path(argv[0]).is_file():
        raise ValueError(
            f"The first argument must be the path of a script; got {argv[0]!r}, where there is no file. The usage is\n"
            f"       {USAGE}"
        )
    argv = list(argv)
    helped = any(token in HELP for token in argv)
    flags = take_flags(argv)
    script = _Script(*argv)
    if helped or not flags.given:
        status = script.run()
        if helped:
            _print_help("\nFlags of hf_compress, which go beside those above:")
        return status
    return _run_compressed(script, flags, command or provenance.command())


def _run_compressed(script: "_Script", flags: Flags, command: str) -> int:
    launched = Launched(flags)
    with trainers_compress(launched):
        status = script.run()
    trainer = launched.trained
    if status != 0:
        return status
    if trainer is None:
        what = (
            "only searched for hyperparameters; train with those that it found" if launched.searched else "no Trainer"
        )
        warnings.warn(f"Nothing was compressed: {script.path} trained {what}.", stacklevel=1)
        return status
    del trainer.evaluate  # Ours; the class's own is left.
    with script.as_main():
        report = finish(
            trainer,
            evaluation=launched.evaluation,
            hub_id=launched.hub_id,
            command=command,
            formats=flags.options.compress_formats,
        )
    if trainer.is_world_process_zero():
        if report is not None:
            Console().print(comparison_table(report))
        Console().print(f"The compressed model is in {Path(trainer.args.output_dir) / FOLDER}", soft_wrap=True)
    return status


class _Script:
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
    """The traceback without the frames of this file."""
    if traceback is None:
        return None
    rest = _without_us(traceback.tb_next)
    if traceback.tb_frame.f_code.co_filename == __file__:
        return rest
    return TracebackType(rest, traceback.tb_frame, traceback.tb_lasti, traceback.tb_lineno)


def _named(signature: inspect.Signature, args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments of a call by name; those of `**kwargs` among the others."""
    bound = signature.bind_partial(*args, **kwargs).arguments
    named: dict[str, Any] = {}
    for name, value in bound.items():
        gathers = signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
        named |= value if gathers else {name: value}
    return named


def _print_help(heading: str) -> None:
    if os.environ.get("RANK", "0") != "0":
        return
    text = parser(usage="").format_help().partition("\n\n")[2]
    recipes = "\n".join(f"  {name:14} {words}" for name, words in descriptions().items())
    print(f"{heading}\n\n{text}\nrecipes for --compress_recipe:\n{recipes}")


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status of a run; what is the user's to mend becomes one message and status 1."""
    command = provenance.command()
    try:
        return run(sys.argv[1:] if argv is None else argv, command)
    except ValueError as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1


if __name__ == "__main__":
    # Once more by its name, so that there is one of it.
    from hf_compress.launch import main as launch

    sys.exit(launch())
