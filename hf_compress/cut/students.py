"""Students cut from a model: some of its layers, with their weights (Sanh et al., 2019; Sajjad et al., 2023)."""

import copy
import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from hf_compress.models.heads import has_own_forward

logger = logging.get_logger(__name__)

_DECODER_DEPTHS = ("num_decoder_layers", "decoder_layers")


def student_from(model: PreTrainedModel, layers: int | Sequence[int]) -> PreTrainedModel:
    """A smaller model of the same class: some of the layers of `model`, and all else, with copies of its weights.

    `model` stays as it is. An encoder-decoder keeps these layers in both. ALBERT's layers share one set of weights, so
    that its student computes less but is no smaller.

    Args:
        layers: the numbers of the layers to keep, from 0, in ascending order; or how many, spread evenly
            (`evenly_spaced`).

    Raises:
        ValueError: `layers` are not among the model's, or it cannot do without the others.
    """
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"`--distill_student_layers` cuts a Transformers model, not a {type(model).__name__}. Cut the model "
            "inside with `hf_compress.student_from` before anything is put around it."
        )
    if has_own_forward(model):
        raise ValueError(
            f"`--distill_student_layers` cannot cut a {type(model).__name__} whose `forward` was replaced, as TRL's "
            "trainers do. Cut it with `hf_compress.student_from` before the trainer is built."
        )
    config = copy.deepcopy(model.config)
    stacks = _stacks(model)
    kept = {name: _chosen(layers, depth) for name, depth in stacks.items()}
    _shorten(config, kept, layers)
    with torch.random.fork_rng(devices=[]):  # Cutting draws nothing: training goes on as it would without.
        student = type(model)(config)
    numbers = {f"{name}.{old}.": f"{name}.{new}." for name in kept for new, old in enumerate(kept[name])}
    names = {name: _renamed(name, tuple(kept), numbers) for name in model.state_dict()}
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
    """The numbers of `count` of `depth` layers, from the first to the last in equal steps, halves rounded down.

    6 of 12 are 0, 2, 4, 7, 9 and 11, as in the code of DistilBERT; one is the first.
    """
    steps = max(count - 1, 1)
    return [-((steps - 2 * index * (depth - 1)) // (2 * steps)) for index in range(count)]


def parse_layers(text: str) -> int | list[int]:
    """What `--distill_student_layers` means by `text`: `3` is how many, `0,2,5` (or `5,`) is which.

    Raises:
        ValueError: it is neither.
    """
    if not re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*,?\s*", text):
        raise ValueError(
            f"`--distill_student_layers` must be a number of layers such as 3, or the layers themselves such as "
            f"0,2,5; got {text!r}. Layers are counted from 0."
        )
    numbers = [int(number) for number in text.split(",") if number.strip()]
    return numbers if "," in text else numbers[0]


def _chosen(layers: int | Sequence[int], depth: int) -> list[int]:
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
            f"`--distill_student_layers` must name layers from 0 to {depth - 1}, for the model has {depth}; got "
            f"{said or 'none'}. Layers are counted from 0."
        )
    if numbers != sorted(set(numbers)):
        raise ValueError(
            f"`--distill_student_layers` must name each layer once, in ascending order; got {said}. Give "
            f"{','.join(map(str, sorted(set(numbers))))}."
        )
    return numbers


def _decoder_depth(config: PreTrainedConfig) -> str | None:
    """The field of `config` that says how many layers a decoder beside an encoder has."""
    return next((name for name in _DECODER_DEPTHS if config.is_encoder_decoder and hasattr(config, name)), None)


def _stacks(model: PreTrainedModel) -> dict[str, int]:
    """The lists of layers in the model: their names and lengths. ALBERT's has none that is as long as it is deep.

    Raises:
        ValueError: there is none.
    """
    config, found = model.config, dict[str, int]()
    if getattr(config, "num_hidden_groups", None) == 1:
        logger.warning(
            f"All {config.num_hidden_layers} layers of {type(model).__name__} have the same weights: with fewer the "
            "student is faster, but its file is no smaller."
        )
        return {"": config.num_hidden_layers}
    decoder = _decoder_depth(config)
    for name, module in model.named_modules():
        depth = getattr(config, decoder if decoder and "decoder" in name.split(".") else "num_hidden_layers", None)
        inner = any(name.startswith(f"{other}.") for other in found)
        if isinstance(module, nn.ModuleList) and len(module) == depth and not inner:
            found[name] = depth
    # Layers that compute by their own number are others at another place.
    if not found or getattr(config, "scale_attn_by_inverse_layer_idx", False):
        raise ValueError(
            f"`--distill_student_layers` cannot cut {type(model).__name__}, whose layers are not a list as long as "
            "its `config.num_hidden_layers`, or compute by their number. Leave it out."
        )
    return found


def _shorten(config: PreTrainedConfig, kept: dict[str, list[int]], layers: int | Sequence[int]) -> None:
    """Describes in `config` the model of the layers that are `kept`, in place."""
    decoder = _decoder_depth(config)
    fields = ["num_hidden_layers", *([decoder] if decoder else [])]
    chosen = {name: _chosen(layers, depth) for name in fields if (depth := getattr(config, name))}
    lists = {
        name: [value[number] for number in chosen["num_hidden_layers"]]
        for name, value in vars(config).items()
        if "layer" in name and isinstance(value, list) and len(value) == config.num_hidden_layers
    }
    for name, value in lists.items():
        setattr(config, name, value)
    for name, numbers in chosen.items():
        setattr(config, name, len(numbers))


def _renamed(name: str, stacks: tuple[str, ...], numbers: dict[str, str]) -> str | None:
    """The student's name of the weight `name`; None if it is of a layer that is left out."""
    stack = next((stack for stack in stacks if stack and name.startswith(f"{stack}.")), None)
    if stack is None:
        return name
    layer = f"{stack}.{name[len(stack) + 1 :].partition('.')[0]}."
    return numbers[layer] + name[len(layer) :] if layer in numbers else None


def _load(
    student: PreTrainedModel, state: dict[str, Tensor], model: PreTrainedModel, layers: int | Sequence[int]
) -> None:
    """Copies the weights `state` into the student.

    Raises:
        ValueError: the student has other weights than these.
    """
    whole, wanted = model.state_dict(), student.state_dict().keys()
    # What the first layer alone has all of them use: T5's position bias.
    state |= {name: whole[name] for name in wanted - state.keys() if name in whole}
    different = sorted(wanted ^ state.keys())
    if different:
        raise ValueError(
            f"`--distill_student_layers {layers}` does not fit {type(model).__name__}: its layers differ in "
            f"{', '.join(different[:3])}. Keep layer 0, and cut a model before its layers are replaced."
        )
    # Assigned, not copied into: each tensor keeps its dtype. What is tied has to be tied again.
    student.load_state_dict({name: tensor.detach().clone() for name, tensor in state.items()}, assign=True)
    student.tie_weights()
