"""Steps of several processes that succeed or fail in all of them, so that none waits for another without end."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

from accelerate.utils import broadcast_object_list, gather_object
from transformers import Trainer
from transformers.utils import logging

from hf_compress.failures import reason

T = TypeVar("T")
Failures = Callable[[], tuple[type[Exception], ...]]
NEVER = tuple[type[Exception], ...]  # Called, it names no exception: any error of the work is raised.
STOPPED = "Another process stopped with an error. Its message is in the output of that process."

logger = logging.get_logger(__name__)


def on_first(trainer: Trainer, work: Callable[[], T]) -> T:
    """Call `work` on process 0, and return what it returned on every process. Collective.

    Raises:
        ValueError: `work` raised one on process 0; every process raises it.
        RuntimeError: `work` raised something else on process 0, which raises that.

    Example:
        >>> from hf_compress.launch.processes import on_first
        >>> on_first(trainer, lambda: 3)  # doctest: +SKIP
        3
    """
    shared: list[Any] = [None, STOPPED, False]
    if trainer.is_world_process_zero():
        try:
            shared = [work(), None, True]
        except ValueError as error:
            shared = [None, str(error), True]
            raise
        finally:
            broadcast_object_list(shared)  # Also after an error, because the other processes wait here.
    else:
        _, said, refused = shared = broadcast_object_list(shared)
        if said is not None:
            raise (ValueError if refused else RuntimeError)(said)
    return cast(T, shared[0])


def together(work: Callable[[], T], failures: Failures) -> tuple[T | None, str | None]:
    """Call `work` on every process, and return its value and why it failed on any of them, or None. Collective.

    Args:
        work: may fail on some processes only, but must take part in the same collectives on all of them until then.
        failures: returns the exceptions that are a failure of the work. All others are raised.

    Example:
        >>> from hf_compress.launch.processes import together
        >>> together(lambda: 1 / 0, lambda: (ArithmeticError,))
        (None, 'division by zero (ZeroDivisionError)')
    """
    value, why, stopped = None, None, True
    try:
        value, stopped = work(), False
    except failures() as error:
        logger.info("This step failed:", exc_info=True)
        why, stopped = reason(error), False
    finally:
        outcomes = gather_object([(why, stopped)])
    if any(stopped for _, stopped in outcomes):
        raise RuntimeError(STOPPED)
    why = next((why for why, _ in outcomes if why is not None), None)
    return (value if why is None else None), why
