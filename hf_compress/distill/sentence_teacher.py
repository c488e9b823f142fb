"""The teacher of a model of sentence-transformers: loaded by its own class, and asked about texts."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig

from hf_compress.distill.teacher import SELF, check_separate
from hf_compress.folders import MODEL_FILES, local_folder
from hf_compress.models.classes import class_order
from hf_compress.models.finite import refuse_broken
from hf_compress.models.heads import bare
from hf_compress.models.sentences import MODULES, SentenceKind, kind_of_folder, sentence_kind
from hf_compress.models.targets import transformer

BATCH = 64


def load_sentence_teacher(name: str, student: nn.Module) -> nn.Module:
    """Return the teacher `name` for a student: a model of the student's class, frozen, on its device.

    Args:
        name: a path or Hub id, or `self` for a copy of the student.
        student: before anything was changed on it.

    Raises:
        ValueError: nothing can be loaded, it is not such a model, or it was not trained.
    """
    kind, given = cast(SentenceKind, sentence_kind(student)), f"`--distill_teacher {name}`"
    if name == SELF:
        teacher = _copied(student)
    else:
        only = [*MODEL_FILES, "*/*.json", "*/*.safetensors"]
        folder = local_folder(name, option="distill_teacher", only=only)
        _check_trained(given, folder, student, kind)
        with torch.random.fork_rng(devices=[]):  # Training with a teacher draws the same batches as without.
            try:
                teacher = cast(Any, type(student))(str(folder), device=str(cast(Any, student).device))
            except (OSError, ValueError, KeyError) as error:
                raise ValueError(f"{given} must be a {kind.name}; loading it failed: {error}") from error
    refuse_broken(teacher, "The teacher's")
    check_separate(student, teacher)
    return teacher.eval().requires_grad_(False)


def _check_trained(given: str, folder: Path, student: nn.Module, kind: SentenceKind) -> None:
    """Check that the folder holds a trained model of the student's kind."""
    if (folder / MODULES).is_file():
        saved = kind_of_folder(folder)
        if saved != kind.name:
            raise ValueError(f"{given} must be a {kind.name}, as the student is; it was saved as a {saved}.")
    elif not kind.scores_pairs:
        raise ValueError(
            f"{given} must be a {kind.name}; there is no `{MODULES}`, so its embeddings were never trained. Give a "
            f"folder that `{kind.name}.save_pretrained` wrote, or its Hub id."
        )
    else:
        known = AutoConfig.from_pretrained(folder, trust_remote_code=False).architectures or []
        wanted = type(bare(transformer(student))).__name__.rpartition("For")[2]
        if not any(name.endswith(f"For{wanted}") for name in known):
            raise ValueError(
                f"{given} must be a {kind.name}; it was saved as {', '.join(known) or 'another model'}, so its head "
                f"would be random. Give a model for {wanted} that was trained."
            )


def _copied(model: nn.Module) -> nn.Module:
    """Return a copy of a model of sentence-transformers; its card, which holds the trainer, is shared."""
    made: nn.Module = object.__new__(type(model))
    vars(made).update(vars(model))
    vars(made)["_modules"] = {name: copy.deepcopy(child) for name, child in model.named_children()}
    return made


def scores_in_order(student: nn.Module, teacher: nn.Module) -> list[int] | None:
    """Return the teacher's class for each of the student's, for models that score pairs; None if they are the same.

    Raises:
        ValueError: the two have other numbers or other names of classes.
    """
    ours, theirs = (cast(Any, one).num_labels for one in (student, teacher))
    if ours != theirs:
        raise ValueError(
            f"The teacher has num_labels={theirs}, the student {ours}. Use a teacher for the same task, or load the "
            "student with the teacher's number of labels."
        )
    return None if ours == 1 else class_order(*(bare(transformer(one)).config for one in (student, teacher)))


@torch.no_grad()
def asked(teacher: nn.Module, inputs: Sequence[Any], prompt: str | None) -> Tensor:
    """Return what the teacher gives for texts or pairs of texts: embeddings (rows, width), or scores (rows, labels).

    Args:
        inputs: the texts, or the pairs of texts.
        prompt: in front of each, as the student reads it.
    """
    kind, model = cast(SentenceKind, sentence_kind(teacher)), cast(Any, teacher)
    options = {"convert_to_tensor": True, "show_progress_bar": False, "batch_size": BATCH, "prompt": prompt or ""}
    device = next(teacher.parameters()).device
    with torch.autocast(device.type, enabled=False):
        if kind.scores_pairs:
            found = model.predict(list(inputs), activation_fn=nn.Identity(), **options)
            return found.clone().reshape(len(inputs), -1)  # A copy: what inference mode made has no gradient.
        sparse = {"convert_to_sparse_tensor": False} if kind.name == "SparseEncoder" else {}
        return cast(Tensor, model.encode(list(inputs), **options, **sparse).clone())
