"""Where a result is pushed to, and how Trainer is kept from uploading anything else."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.utils import logging

UPLOADS = ("init_hf_repo", "push_to_hub", "_push_from_checkpoint")

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Destination:
    """The place on the Hub where a result goes.

    Attributes:
        hub_id: the repository; None if nothing is pushed.
        private: whether a repository that is created is hidden; None leaves that to the default of its owner.
        revision: the branch; None is the main branch.

    Example:
        >>> from hf_compress.launch.uploads import Destination
        >>> Destination("someone/minilm-sst2").revision is None
        True
    """

    hub_id: str | None = None
    private: bool | None = None
    revision: str | None = None

    @classmethod
    def of(cls, trainer: Trainer, hub_id: str | None) -> "Destination":
        """Return where the result of `trainer` goes: to `hub_id`, or where its own `push_to_hub` would go."""
        arguments = trainer.args
        if hub_id is None and arguments.push_to_hub:
            hub_id = arguments.hub_model_id or Path(arguments.output_dir).absolute().name
        return cls(hub_id, arguments.hub_private_repo, arguments.hub_revision)


def disarm(trainer: Trainer | type[Trainer]) -> None:
    """Replace the uploads of a Trainer, or of all Trainers if the class is given, by nothing.

    Trainer would upload the training checkpoint, from the first step on, and a card of its own.

    Example:
        >>> from hf_compress.launch.uploads import disarm
        >>> disarm(trainer)  # doctest: +SKIP
        >>> trainer.push_to_hub()  # doctest: +SKIP
    """
    for name in UPLOADS:
        setattr(trainer, name, upload_nothing)


def upload_nothing(*args: Any, **kwargs: Any) -> None:
    """Upload nothing: the compressed model is uploaded when it is finished."""
    logger.info("Trainer uploads nothing itself: the compressed model is uploaded when it is finished.")
