"""Run any Trainer script, unmodified, with our flags: `hf-compress run SCRIPT.py`, `-m hf_compress.launch`."""

import functools
import inspect
import os
import sys
import textwrap
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import Trainer
from transformers.utils import logging

from hf_compress.checkpoint.resume import last_complete_checkpoint
from hf_compress.launch.arguments import descriptions
from hf_compress.launch.completion import status_of
from hf_compress.launch.flags import Flags, Offer, help_text, offered, take_flags
from hf_compress.launch.preconditions import recipe_of
from hf_compress.launch.result import RESUME, Result
from hf_compress.launch.run import compress, finish
from hf_compress.launch.script import Script
from hf_compress.launch.uploads import UPLOADS, disarm
from hf_compress.redaction import printable, redact_text
from hf_compress.report import provenance
from hf_compress.report.gate import exit_status
from hf_compress.report.tables import comparison_table, recipe_table

USAGE = """hf-compress run SCRIPT.py [the script's own arguments] [our flags]
       accelerate launch -m hf_compress.launch SCRIPT.py ...
       torchrun -m hf_compress.launch SCRIPT.py ..."""
HELP = ("-h", "--help")
logger = logging.get_logger(__name__)


class Misuse(ValueError):
    """A command line that is wrong on any machine: no script, or one of our flags has a wrong value."""


class Launched:
    """The Trainer of a script that was trained last, and how the script evaluated it."""

    def __init__(self, offer: Offer) -> None:
        self.flags, self.offer = offer.flags, offer
        self.trained: Trainer | None = None
        self.searched = False
        self.evaluations: list[dict[str, Any]] = []
        self._said = False

    def begin(self, trainer: Trainer) -> None:
        """Make a Trainer compress before it trains for the first time, and record how the script evaluates it."""
        options = self.flags.options
        compress(
            trainer,
            self.flags.recipe,
            hub_id=options.compress_hub_id,
            max_drop=options.compress_max_drop,
            control=options.compress_control,
            formats=options.compress_formats,
        )
        if not self._said and trainer.is_world_process_zero():
            Console(stderr=True).print(recipe_table(recipe_of(trainer) or self.flags.recipe))
        self._said = True
        signature, evaluate = inspect.signature(trainer.evaluate), trainer.evaluate

        # On the instance, because a subclass may override `evaluate`.
        @functools.wraps(evaluate)
        def recorded(*args: Any, **kwargs: Any) -> Any:
            if trainer is self.trained:
                self.evaluations.append(_named(signature, args, kwargs))
            return evaluate(*args, **kwargs)

        trainer.evaluate = recorded

    def end(self, trainer: Trainer, trial: Any) -> None:
        """Record that a training has ended. Trials of a hyperparameter search leave no model to finish."""
        if trial is None:
            self.trained, self.evaluations = trainer, []
        self.searched = self.searched or trial is not None

    @property
    def evaluation(self) -> dict[str, Any]:
        """Return the arguments of the script's first evaluation after training; empty if there was none."""
        first = self.evaluations[0] if self.evaluations else {}
        return {name: value for name, value in first.items() if name != "metric_key_prefix"}


@contextmanager
def trainers_compress(launched: Launched) -> Iterator[None]:
    """Make every Trainer, of any class, compress what it trains and upload nothing itself, within the context.

    A Trainer that never trains is not changed, and none is once the script has taken our flags itself.
    """
    original = {name: Trainer.__dict__[name] for name in ("train", *UPLOADS)}
    train = original["train"]
    begun: list[Trainer] = []

    @functools.wraps(train)
    def train_compressed(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        if launched.offer.taken:
            return train(self, *args, **kwargs)
        if not any(trainer is self for trainer in begun):
            try:
                launched.begin(self)
            except ValueError as error:
                # An option is wrong. The frames of the script would say nothing about it.
                raise SystemExit(f"Error: {printable(str(error))}") from error
            begun.append(self)
        named = _named(inspect.signature(train), (self, *args), kwargs)
        if named.get("trial") is None:
            named["resume_from_checkpoint"] = _checkpoint(self, named.get("resume_from_checkpoint"))
        try:
            result = train(**named)
        except (RuntimeError, ValueError) as error:
            if _is_refusal(error):
                raise SystemExit(f"Error: {printable(str(error))}") from error
            raise
        launched.end(self, named.get("trial"))
        return result

    try:
        Trainer.train = train_compressed
        disarm(Trainer)  # From its construction on, where it would create the repository.
        yield
    finally:
        for name, function in original.items():
            setattr(Trainer, name, function)


def _is_refusal(error: RuntimeError | ValueError) -> bool:
    """Return whether one of our callbacks raised `error` because of an option, the model or how training ended.

    That is any `ValueError` before the first step, and a `RuntimeError` of ours: training diverged or stopped early.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if type(error) is RuntimeError:
        return str(frames[-1].f_globals.get("__name__")).startswith("hf_compress.")
    begun = [frame.f_globals.get("__name__", "") for frame in frames if frame.f_code.co_name == "on_train_begin"]
    return any(name.partition(".")[0] == "hf_compress" for name in begun)


def _checkpoint(trainer: Trainer, asked: str | bool | None) -> str | bool | None:
    """Return the checkpoint to resume from: for `last` or True, the last complete one, or None if there is none.

    `--resume_from_checkpoint last` also works if the script passes nothing to `train`.
    """
    wanted = trainer.args.resume_from_checkpoint if asked is None else asked
    if str(wanted).lower() not in ("last", "true"):
        return asked
    found = last_complete_checkpoint(trainer.args.output_dir)
    if found is None:
        logger.warning(
            f"`{RESUME} {wanted}`: {trainer.args.output_dir} has no checkpoint, so training starts from the beginning."
        )
    return found


@contextmanager
def processes_stay() -> Iterator[None]:
    """Keep the process group for `finish` even if the script destroys it, within the context."""
    destroy, asked = torch.distributed.destroy_process_group, False

    @functools.wraps(destroy)
    def destroy_later(group: Any = None) -> None:
        nonlocal asked
        if group is None:
            asked = True
        else:
            destroy(group)

    torch.distributed.destroy_process_group = destroy_later
    try:
        yield
    finally:
        torch.distributed.destroy_process_group = destroy
        if asked and torch.distributed.is_initialized():
            destroy()


def run(argv: Sequence[str], command: str | None = None) -> int:
    """Run the script `argv[0]` with the arguments after it, without our flags, and return its exit status.

    Raises:
        Misuse: there is no script, or one of our flags is wrong.
        ValueError: the result cannot be finished.
    """
    if not argv or list(argv) in ([HELP[0]], [HELP[1]]):
        _print_help("usage: " + USAGE)
        return 0 if argv else 2
    if not Path(argv[0]).is_file():
        raise Misuse(
            "The first argument must be the path of a script, followed by its arguments and our flags (for a module "
            f"that you run with `python -m`, give its file); there is no file {argv[0]!r}. Usage:\n       {USAGE}"
        )
    argv = list(argv)
    helped = any(token in HELP for token in argv)
    try:
        flags = take_flags(argv)
    except ValueError as error:
        raise Misuse(str(error)) from error
    script = Script(*argv)
    if helped or not flags.given:
        status = script.run()
        if helped:
            _print_help("\nFlags of hf_compress, in addition to those above:")
        return status
    _warn_of_one_process()
    with processes_stay():
        return _run_compressed(script, flags, command or provenance.command())


def _warn_of_one_process() -> None:
    """Warn if accelerate was asked for several processes and silently started one."""
    counts = ("WORLD_SIZE", "LOCAL_RANK", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
    on_cpu, several = os.environ.get("ACCELERATE_USE_CPU") == "True", "MASTER_ADDR" in os.environ
    if on_cpu and several and not any(name in os.environ for name in counts):
        warnings.warn(
            "This run has one process, although `--num_processes` may ask for more: `accelerate launch --cpu` needs "
            "MPI to start more. Use `accelerate launch --config_file FILE` with a file like "
            "examples/accelerate/cpu.yaml, or `torchrun --nproc_per_node 2 -m hf_compress.launch`.",
            stacklevel=2,
        )


def _run_compressed(script: Script, flags: Flags, command: str) -> int:
    with offered(flags, command) as offer, trainers_compress(launched := Launched(offer)):
        status = script.run()
    trainer = launched.trained
    if status != 0 or offer.taken:
        return status
    if trainer is None:
        what = "only searched for hyperparameters; train with those it found" if launched.searched else "no Trainer"
        warnings.warn(f"Nothing was compressed: {script.path} trained {what}.", stacklevel=1)
        return status
    del trainer.evaluate  # Remove our recording method; the class's own remains.
    result = Result(trainer.args.output_dir)
    if any(result.folder.glob("*")):  # The script finished it: training is refused where a result is already.
        return status_of(result.output)
    with script.as_main(), _saying_how_to_go_on(trainer, command):
        report = finish(
            trainer,
            evaluation=launched.evaluation,
            command=command,
            formats=flags.options.compress_formats,
            card_metadata=flags.options.author,
        )
    if trainer.is_world_process_zero():
        if report is not None:
            Console().print(comparison_table(report))
        Console().print(f"The compressed model is in {result.folder}", soft_wrap=True)
    return exit_status(report) or int(result.plan() is not None)


@contextmanager
def _saying_how_to_go_on(trainer: Trainer, command: str) -> Iterator[None]:
    """Say how to go on without training again, if the context ends with an error."""
    finished = False
    try:
        yield
        finished = True
    finally:
        if not finished and trainer.is_world_process_zero():
            how = Result(trainer.args.output_dir).how_to_go_on(command)
            sys.stderr.write(f"Training is over, but its result could not be finished. {how}\n")


def _named(signature: inspect.Signature, args: Any, kwargs: Any) -> dict[str, Any]:
    """Return the arguments of a call by name, those in `**kwargs` included."""
    bound = signature.bind_partial(*args, **kwargs).arguments
    named: dict[str, Any] = {}
    for name, value in bound.items():
        gathers = signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
        named |= value if gathers else {name: value}
    return named


def _print_help(heading: str) -> None:
    if os.environ.get("RANK", "0") != "0":
        return
    recipes = "\n".join(
        textwrap.fill(words, 79, initial_indent=f"  {name:14} ", subsequent_indent=" " * 17)
        for name, words in descriptions().items()
    )
    print(f"{heading}\n\n{help_text()}\nrecipes for --compress_recipe:\n{recipes}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` and return its exit status. Errors that the user can fix become one message."""
    command = provenance.command()
    try:
        return run(sys.argv[1:] if argv is None else argv, command)
    except Misuse as error:
        sys.stderr.write(f"Error: {printable(redact_text(str(error)))}\n")
        return 2
    except ModuleNotFoundError:
        raise
    except (ValueError, ImportError, OSError) as error:
        sys.stderr.write(f"Error: {printable(redact_text(str(error)))}\n")
        return 1
