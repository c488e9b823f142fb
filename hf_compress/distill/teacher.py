"""Load the teacher of a distillation, and check that it fits the student."""

import contextlib
import copy
import warnings
from collections.abc import Iterator
from typing import Any, cast

import torch
from peft import PeftConfig, PeftModel, PeftType
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from peft.utils.save_and_load import load_peft_weights
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file, logging
from transformers.utils.peft_utils import find_adapter_config_file

from hf_compress.cut.vocabulary import keep_tokens
from hf_compress.failures import failures, reason
from hf_compress.folders import is_repository, local_folder
from hf_compress.models.classes import class_names, class_order, has_default_labels
from hf_compress.models.examples import fits, pools_by_padding
from hf_compress.models.finite import refuse_broken
from hf_compress.models.heads import Head, bare, find_head, has_own_forward
from hf_compress.options import as_flag, changed

logger = logging.get_logger(__name__)

SELF = "self"


def check_choice(settings: Any, model: Any, teacher: PreTrainedModel | None) -> None:
    """Check the choice of a teacher before anything is loaded or changed. Warn about options without effect.

    Args:
        settings: the `DistillationArguments`.

    Raises:
        ValueError: there are two teachers, `self` has no model to copy, or the teacher shares the model's weights.
    """
    if teacher is None and not settings.enabled:
        settings.refuse_teacher_only_rows()
        for option in sorted({*changed(settings)} - {"distill_student_layers"}):
            warnings.warn(
                f"{as_flag(settings, option)} has no effect without a teacher. Give `--distill_teacher`, or leave the "
                "option out.",
                stacklevel=4,
            )
        return
    if teacher is not None and settings.enabled:
        raise ValueError(
            f"There are two teachers: `teacher` is a {type(teacher).__name__}, and `--distill_teacher` is "
            f"{settings.distill_teacher!r}. Give only one."
        )
    if settings.distill_teacher == SELF and not isinstance(model, nn.Module):
        raise ValueError(
            f"`--distill_teacher {SELF}` copies the trainer's model, but the trainer got "
            f"{'`model_init`' if model is None else type(model).__name__} instead. Pass a loaded `model`, or the "
            "path of a teacher."
        )
    if teacher is not None and isinstance(model, nn.Module):
        check_separate(model, teacher)


def load_teacher(name: str, head: Head, processing_class: Any = None, rows: int | None = None) -> PreTrainedModel:
    """Return the model at a path or Hub id, with the student's kind of head, in the dtype that it was saved in.

    A Hub id may end with "@revision". An adapter's folder gives its base model with the adapter, merged if it is LoRA.
    If `processing_class` is the teacher's own tokenizer with fewer tokens (`cut_vocabulary`), the teacher's vocabulary
    is cut in the same way. If it is the same tokenizer, embeddings that were padded to another size are resized.

    Args:
        rows: the rows of the student's embeddings; None to leave the teacher's as they are.

    Raises:
        ValueError: nothing can be loaded, the model has no trained head of that kind, or its tokenizer differs from
            `processing_class`.
    """
    if name.startswith(("/", ".", "~")) or ("@" in name and is_repository(name)):
        name = str(local_folder(name, option="distill_teacher"))
    source, options = name, dict[str, Any]()
    wanted = f"`--distill_teacher {name}` must be a path or Hub id of a model for {head.name}, or `{SELF}`"
    try:
        config = PeftConfig.from_pretrained(name) if find_adapter_config_file(name) is not None else None
    except OSError as error:
        raise ValueError(f"{wanted}: {error}") from error
    if config is not None:
        source, options = str(config.base_model_name_or_path), {"revision": config.revision or "main"}
        if head.num_labels is not None:  # A base model without a head does not know the number.
            options["num_labels"] = head.num_labels
    # Keep the random state: training with a teacher draws the same batches as training without.
    with torch.random.fork_rng(devices=[]):
        try:
            teacher, info = head.auto_class.from_pretrained(source, dtype="auto", output_loading_info=True, **options)
        except failures() as error:
            what = "it" if config is None else f"the base model {source} of that adapter"
            raise ValueError(f"{wanted}; loading {what} failed: {reason(error)}") from error
        missing = set(info["missing_keys"])
        if config is not None:
            missing -= _adapter_names(name)
            teacher = PeftModel.from_pretrained(teacher, name, config=config)
    if missing:
        raise ValueError(
            f"`--distill_teacher {name}` has no weights for {', '.join(sorted(missing))}, so its head would be "
            f"random. Give a model that was trained for {head.name}."
        )
    if config is not None and config.peft_type == PeftType.LORA:
        teacher = teacher.merge_and_unload()
    same, kept = check_tokenizer(name, processing_class)
    if kept is not None:
        return keep_tokens(teacher, kept)
    if same and rows is not None:
        _pad_alike(teacher, rows, len(processing_class), head)
    return cast(PreTrainedModel, teacher)


def _pad_alike(teacher: PreTrainedModel, rows: int, tokens: int, head: Head) -> None:
    """Resize the teacher's embeddings to `rows`, in place, if only rows without a token are removed or added.

    A language model is not enlarged: it would give the new rows random logits.
    """
    own = teacher.config.get_text_config().vocab_size
    enlarged = rows > own and head.descriptor.predicts_tokens
    if own == rows or min(own, rows) < tokens or enlarged or hasattr(teacher.config, "quantization_config"):
        return
    with torch.random.fork_rng(devices=[]):
        teacher.resize_token_embeddings(rows, mean_resizing=False)


def _adapter_names(name: str) -> set[str]:
    """Return the base model's names for the weights that the adapter `name` replaces.

    Raises:
        ValueError: the adapter is a training checkpoint of a compression; it is incomplete without masks and ranges.
    """
    names = {key.removeprefix("base_model.model.") for key in load_peft_weights(name, device="cpu")}
    if any(key.startswith("base_model.compression.") for key in names):
        raise ValueError(
            f"`--distill_teacher {name}` is a training checkpoint of a compression. Give the folder that "
            "`save_compressed` wrote after that run."
        )
    return names


def own_teacher(model: nn.Module) -> tuple[PreTrainedModel, PeftModel | None]:
    """Return the teacher `self` of the student `model`, and `model` if the teacher is its base model.

    The teacher is a copy of `model`, unless a new adapter makes a copy unnecessary: then it is the base model, with
    the adapter off (`adapter_off`).
    """
    if isinstance(model, PeftModel) and starts_at_base(model):
        return bare(model), model
    teacher = copy.deepcopy(model)
    if has_own_forward(teacher):
        # A `forward` that a trainer put there may be bound to the model that it was made for: the student.
        for name in ("forward", "_original_forward"):
            vars(bare(teacher)).pop(name, None)
    return cast(PreTrainedModel, teacher), None


def starts_at_base(model: PeftModel) -> bool:
    """Return whether `model` computes what its base model does, and will after training once its adapter is off.

    This holds for a LoRA adapter that starts at zero, if only the adapter and copies of base modules are trained.
    """
    adapters: list[Any] = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    copies: list[Any] = [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]
    own: set[int] = set()  # Parameters that have no effect while the adapter is off.
    for adapter in adapters:
        if not isinstance(adapter, LoraLayer) or adapter.lora_variant or adapter.merged or adapter.disable_adapters:
            return False
        ends = [*adapter.lora_B.parameters(), *adapter.lora_embedding_A.parameters()]
        if any(bool(end.count_nonzero()) for end in ends):
            return False
        of_base = {id(parameter) for parameter in adapter.get_base_layer().parameters()}
        own |= {id(parameter) for parameter in cast(nn.Module, adapter).parameters()} - of_base
    for copied in copies:
        original = copied.original_module.state_dict()
        for module in copied.modules_to_save.values():
            if any(not torch.equal(value, original[key]) for key, value in module.state_dict().items()):
                return False
        own |= {id(parameter) for parameter in copied.modules_to_save.parameters()}
    return bool(adapters) and all(id(weight) in own for weight in model.parameters() if weight.requires_grad)


@contextlib.contextmanager
def adapter_off(model: PeftModel) -> Iterator[None]:
    """Make `model` its base model in evaluation mode inside the context, and restore it afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    # PEFT makes the whole adapter trainable afterwards, including what was frozen on purpose.
    gradients = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval()
    try:
        with model.disable_adapter():
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, required in gradients:
            parameter.requires_grad_(required)


def check_tokenizer(name: str, processing_class: Any) -> tuple[bool, list[int] | None]:
    """Return whether the tokenizers are equal, and the teacher's numbers for the student's tokens if those are fewer.

    The result is (False, None) if there is no tokenizer to compare.

    Raises:
        ValueError: the vocabularies differ in another way.
    """
    if not isinstance(processing_class, PreTrainedTokenizerBase):
        return False, None
    files = ("tokenizer.json", "tokenizer_config.json", "vocab.txt")
    if not any(cached_file(name, file, _raise_exceptions_for_missing_entries=False) for file in files):
        return False, None
    theirs, ours = AutoTokenizer.from_pretrained(name).get_vocab(), processing_class.get_vocab()
    if len(ours) < len(theirs) and ours.keys() <= theirs.keys():
        kept = [theirs[token] for token in sorted(ours, key=lambda token: ours[token])]
        if kept == sorted(kept):
            return False, kept
    if theirs != ours:
        differing = sorted(token for token, _ in theirs.items() ^ ours.items())
        raise ValueError(
            f"`--distill_teacher {name}` has another vocabulary than the `processing_class`: they differ in "
            f"{len(set(differing))} tokens, such as {differing[0]!r}, so the teacher would read other words than the "
            "student. Use a teacher with the student's tokenizer."
        )
    return True, None


def check_separate(student: nn.Module, teacher: nn.Module) -> None:
    """Refuse a teacher that shares a weight with the student.

    Raises:
        ValueError: a parameter belongs to both.
    """
    own = {id(parameter) for parameter in student.parameters()}
    if any(id(parameter) in own for parameter in teacher.parameters()):
        raise ValueError(
            "`teacher` shares its weights with `model`, so it would change as the model learns. Pass "
            f"`copy.deepcopy(model)`, or `--distill_teacher {SELF}`."
        )


def freeze(teacher: PreTrainedModel, device: torch.device) -> None:
    """Put a teacher in evaluation mode without gradients on the device, in place. Its dtype stays."""
    teacher.eval().requires_grad_(False)
    # A quantized model, or one spread over devices, refuses `to`, even to its own device.
    if teacher.device != device:
        teacher.to(device)


def match_teacher(student: nn.Module, teacher: nn.Module) -> list[int] | None:
    """Return the teacher's class for each of the student's classes, or None if the order is the same.

    Raises:
        ValueError: the teacher's weights are not finite, or head, number of classes, class names or inputs of the
            two differ.
    """
    refuse_broken(teacher, "The teacher's")
    ours, theirs = find_head(student), find_head(teacher)
    student_config, teacher_config = bare(student).config, bare(teacher).config
    if ours.kind != theirs.kind:
        raise ValueError(f"The teacher does {theirs.name}, the student {ours.name}. Use a teacher for the same task.")
    if ours.num_labels != theirs.num_labels:
        raise ValueError(
            f"The teacher has num_labels={theirs.num_labels}, the student {ours.num_labels}. Use a teacher for the "
            "same task, or load the student with the teacher's number of labels."
        )
    if ours.problem_type and theirs.problem_type and ours.problem_type != theirs.problem_type:
        raise ValueError(
            f"The teacher was configured for {theirs.problem_type}, the student for {ours.problem_type}. Use a "
            "teacher for the same task, or correct `config.problem_type`."
        )
    if ours.main_input != theirs.main_input:
        raise ValueError(
            f"The teacher reads `{theirs.main_input}`, the student `{ours.main_input}`. Use a teacher that reads the "
            "same inputs."
        )
    reason = fits(student_config, teacher_config, ours.main_input)
    if reason is not None:
        raise ValueError(reason)
    if ours.kind == "sequence" and ours.takes_text and pools_by_padding(teacher_config):
        padding = [config.get_text_config().pad_token_id for config in (student_config, teacher_config)]
        if padding[0] != padding[1]:
            raise ValueError(
                f"The teacher's `config.pad_token_id` is {padding[1]}, the student's {padding[0]}. The teacher "
                "predicts at the last token that is not padding, so it would predict elsewhere. Set the same number "
                "in both."
            )
    if not ours.classifies:
        return None
    order = class_order(student_config, teacher_config)
    if order is not None:
        return None if order == sorted(order) else order
    names = [class_names(config) for config in (student_config, teacher_config)]
    if has_default_labels(student_config) or has_default_labels(teacher_config):
        logger.warning(
            f"Some labels have default names: the student's labels {names[0]} are matched with the teacher's "
            f"{names[1]} in this order."
        )
        return None
    raise ValueError(
        f"The student's labels {names[0]} differ from the teacher's {names[1]}. If they mean the same, give the "
        "student the teacher's `id2label`. Otherwise use a teacher for the same task."
    )
