"""Students with some of a model's layers and weights (Sanh et al., 2019; Sajjad et al., 2023)."""

import copy
import re
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from hf_compress.models.heads import has_own_forward
from hf_compress.models.stacks import decoder_depth, layers_config, stacks
from hf_compress.models.widths import resize, widths_of

logger = logging.get_logger(__name__)

# Entries of `config.json` if layers were dropped in training: their numbers, and the fields of the configuration from
# before.
DROPPED, UNCUT = "dropped_layers", "uncut_layers"


def student_from(model: PreTrainedModel, layers: int | Sequence[int]) -> PreTrainedModel:
    """Return a copy of `model` with only some of its layers.

    `model` does not change. An encoder-decoder keeps the same layers in both stacks. ALBERT's layers share one set of
    weights, so its student computes less but is not smaller.

    Args:
        layers: the layers to keep, counted from 0, in ascending order; or their number, spread evenly
            (`evenly_spaced`).

    Raises:
        ValueError: the model has no such layers, or cannot be cut.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> from hf_compress import student_from
        >>> sizes = dict(hidden_size=8, num_hidden_layers=4, num_attention_heads=1, intermediate_size=8)
        >>> model = BertForSequenceClassification(BertConfig(vocab_size=9, **sizes))
        >>> student_from(model, [0, 2]).config.num_hidden_layers
        2
    """
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"`--distill_student_layers` can only cut a Transformers model; got a {type(model).__name__}. Cut the "
            "model inside with `hf_compress.student_from` before you wrap it."
        )
    if has_own_forward(model):
        raise ValueError(
            f"`--distill_student_layers` cannot cut a {type(model).__name__} whose `forward` was replaced, as TRL's "
            "trainers do. Cut it with `hf_compress.student_from` before you build the trainer."
        )
    config = copy.deepcopy(model.config)
    kept = {name: chosen_layers(layers, depth) for name, depth in _depths(model).items()}
    described, deep = layers_config(model, config), decoder_depth(model.config)
    decodes = any("decoder" in name.split(".") for name in kept)
    shorten(described, layers, ["num_hidden_layers", *([deep] if deep and decodes else [])])
    for entry in (DROPPED, UNCUT):  # The student is another model, in which nothing was dropped.
        vars(layers_config(model, config)).pop(entry, None)
    with torch.random.fork_rng(
        devices=[]
    ):  # Keep the random state, so that training draws the same batches as without.
        student = type(model)(config)
    numbers = {f"{name}.{old}.": f"{name}.{new}." for name in kept for new, old in enumerate(kept[name])}
    widths = {renamed(name, tuple(kept), numbers): width for name, width in widths_of(model).items()}
    resize(student, {name: width for name, width in widths.items() if name is not None})
    names = {name: renamed(name, tuple(kept), numbers) for name in model.state_dict()}
    state = {new: tensor for name, tensor in model.state_dict().items() if (new := names[name]) is not None}
    _load(student, state, model, layers)
    trained = dict(model.named_parameters())
    for name, new in names.items():
        if name in trained and new is not None:
            student.get_parameter(new).requires_grad_(trained[name].requires_grad)
    if model.can_generate():
        student.generation_config = copy.deepcopy(model.generation_config)
    return student.to(model.device).train(model.training)


def evenly_spaced(count: int, depth: int) -> list[int]:
    """Return the numbers of `count` of `depth` layers, from first to last in equal steps, halves rounded down.

    6 of 12 are 0, 2, 4, 7, 9 and 11, as in DistilBERT's code. 1 is the first layer.
    """
    steps = max(count - 1, 1)
    return [-((steps - 2 * index * (depth - 1)) // (2 * steps)) for index in range(count)]


def parse_layers(text: str) -> int | list[int]:
    """Parse the value of `--distill_student_layers`: `3` is a number of layers, `0,2,5` (or `5,`) a list of them.

    Raises:
        ValueError: the text is neither.
    """
    if not re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*,?\s*", text):
        raise ValueError(
            f"`--distill_student_layers` must be a number of layers, such as 3, or a list of layers, such as 0,2,5; "
            f"got {text!r}. Layers are counted from 0."
        )
    numbers = [int(number) for number in text.split(",") if number.strip()]
    return numbers if "," in text else numbers[0]


def chosen_layers(layers: int | Sequence[int], depth: int) -> list[int]:
    """Return the numbers of the layers that a student keeps of `depth`, in ascending order.

    Raises:
        ValueError: there are no such layers, or they are not in ascending order.
    """
    if isinstance(layers, int):
        if not 1 <= layers <= depth:
            raise ValueError(
                f"`--distill_student_layers` must be from 1 to {depth}, the number of the model's layers; got "
                f"{layers}. Give another number."
            )
        return evenly_spaced(layers, depth)
    numbers = list(layers)
    said = ",".join(map(str, numbers))
    if not numbers or not all(0 <= number < depth for number in numbers):
        raise ValueError(
            f"`--distill_student_layers` must name layers from 0 to {depth - 1}, because the model has {depth}; got "
            f"{said or 'none'}. Layers are counted from 0."
        )
    if numbers != sorted(set(numbers)):
        raise ValueError(
            f"`--distill_student_layers` must name each layer once, in ascending order; got {said}. Give "
            f"{','.join(map(str, sorted(set(numbers))))}."
        )
    return numbers


def _depths(model: PreTrainedModel) -> dict[str, int]:
    """Return the names and lengths of the lists of layers in the model.

    ALBERT's layers share their weights: its list is shorter than the model is deep, and the result has an empty name.

    Raises:
        ValueError: the model has no such list.
    """
    config = layers_config(model)
    if getattr(config, "num_hidden_groups", None) == 1:
        logger.warning(
            f"All {config.num_hidden_layers} layers of {type(model).__name__} share their weights: a student with "
            "fewer layers is faster, but its file is not smaller."
        )
        return {"": config.num_hidden_layers}
    found = {name: len(layers) for name, layers in stacks(model).items()}
    # A layer that computes with its own number would compute something else in another place.
    if not found or getattr(config, "scale_attn_by_inverse_layer_idx", False):
        raise ValueError(
            f"`--distill_student_layers` cannot cut {type(model).__name__}: its layers are not a list of "
            "`config.num_hidden_layers` equal ones, or compute with their own number. Leave the option out."
        )
    return found


def shorten(
    config: PreTrainedConfig, layers: int | Sequence[int], fields: Sequence[str] = ("num_hidden_layers",)
) -> None:
    """Change `config` in place to describe a model with only some of its layers.

    Args:
        layers: as for `student_from`.
        fields: that say how deep a stack of the model is.
    """
    chosen = {name: chosen_layers(layers, depth) for name in fields if (depth := getattr(config, name))}
    lists = {
        name: [value[number] for number in chosen["num_hidden_layers"]]
        for name, value in vars(config).items()
        if "layer" in name and isinstance(value, list) and len(value) == config.num_hidden_layers
    }
    stages = getattr(config, "stage_names", None) or []
    if (
        len(stages) == config.num_hidden_layers + 1
    ):  # Of a backbone such as DINOv2: a stem, and a stage for each layer.
        vars(config)["stage_names"] = stages[: len(chosen["num_hidden_layers"]) + 1]
        config.set_output_features_output_indices(None, None)  # The last stage.
    for name, value in lists.items():
        setattr(config, name, value)
    for name, numbers in chosen.items():
        setattr(config, name, len(numbers))


def renamed(name: str, lists: tuple[str, ...], numbers: dict[str, str]) -> str | None:
    """Return the student's name for the weight `name`, or None if its layer is left out."""
    stack = next((stack for stack in lists if stack and name.startswith(f"{stack}.")), None)
    if stack is None:
        return name
    layer = f"{stack}.{name[len(stack) + 1 :].partition('.')[0]}."
    return numbers[layer] + name[len(layer) :] if layer in numbers else None


def _load(
    student: PreTrainedModel, state: dict[str, Tensor], model: PreTrainedModel, layers: int | Sequence[int]
) -> None:
    """Copy the weights `state` into the student.

    Raises:
        ValueError: the student's weights have other names or shapes.
    """
    whole, wanted = model.state_dict(), student.state_dict()
    # T5's first layer holds the position bias that all layers use.
    state |= {name: whole[name] for name in wanted.keys() - state.keys() if name in whole}
    different = sorted(wanted.keys() ^ state.keys())
    if different:
        raise ValueError(
            f"`--distill_student_layers {layers}` does not fit {type(model).__name__}: its layers differ in "
            f"{', '.join(different[:3])}. Keep layer 0, and cut the model before you replace layers."
        )
    if deep := [name for name, tensor in state.items() if tensor.shape != wanted[name].shape]:
        raise ValueError(
            f"`--distill_student_layers` cannot cut {type(model).__name__}: {deep[0]} is as wide as the model is "
            "deep. Leave the option out."
        )
    # `assign` keeps the dtype of each tensor. It also unties weights, so tie them again.
    student.load_state_dict({name: tensor.detach().clone() for name, tensor in state.items()}, assign=True)
    student.tie_weights()
