"""The file of masks in a training checkpoint, for criteria whose masks cannot be found in the weights."""

from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

STATE_FILE = "pruning_state.safetensors"


def save_state(tensors: dict[str, Tensor], args: TrainingArguments, state: TrainerState, criterion: str) -> None:
    """Write `tensors` into the training checkpoint of the present step, if there is one.

    There is none in the trials of a hyperparameter search, which are never resumed from here.
    """
    folder = _folder(args, state)
    if folder.is_dir():
        metadata = {"step": str(state.global_step), "criterion": criterion}
        aside = folder / f".{STATE_FILE}"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, aside, metadata)
        aside.replace(folder / STATE_FILE)


def load_state(args: TrainingArguments, state: TrainerState, criterion: str) -> dict[str, Tensor]:
    """Return the tensors in the checkpoint that training resumes from.

    Trainer does not tell callbacks which folder that is. It is looked for under `args.resume_from_checkpoint` and
    under the name that the step has in the output folder.

    Raises:
        ValueError: there is no such file for this step and criterion.
    """
    folders = [_folder(args, state)]
    if isinstance(args.resume_from_checkpoint, str):
        folders.insert(0, Path(args.resume_from_checkpoint))
    for folder in folders:
        if (folder / STATE_FILE).is_file():
            with safe_open(folder / STATE_FILE, framework="pt") as file:
                if file.metadata() == {"step": str(state.global_step), "criterion": criterion}:
                    return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    raise ValueError(
        f"`--prune_criterion {criterion}` cannot resume at step {state.global_step}: {STATE_FILE} of that step is "
        f"missing in {' and '.join(map(str, folders))}. Resume from another checkpoint; if it is outside "
        "`--output_dir`, set `resume_from_checkpoint` in the training arguments too."
    )


def _folder(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
