"""Models without the layers that are passed over: tried on an example batch, taken out, said in the configuration."""

import copy
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_compress.cut.rehearsal import ROUNDING, example_batch, twin, unrounded
from hf_compress.cut.students import DROPPED, UNCUT, renamed, shorten
from hf_compress.layers.attention import OPERANDS
from hf_compress.layers.rounded import CompressedLayer
from hf_compress.models.skipping import Skipped, skip, skipped_layers, skipping, unskip
from hf_compress.models.stacks import NoLayers, layers_config, stack_of
from hf_compress.models.targets import unadapted
from hf_compress.models.widths import rename_widths, resize, widths_of

FAILURES = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError, StrictDataclassError)


@dataclass(frozen=True)
class Depth:
    """How many layers a model had, and which of them were dropped.

    Args:
        before: the number of layers before any was dropped.
        dropped: the numbers of those that were dropped, counted from 0.

    Example:
        >>> from hf_compress.cut import Depth
        >>> Depth(before=6, dropped=[1, 3, 4]).after
        3
    """

    before: int
    dropped: list[int] = field(default_factory=list)

    @property
    def after(self) -> int:
        """The number of layers that are left."""
        return self.before - len(self.dropped)

    @property
    def kept(self) -> list[int]:
        """The numbers of the layers that are left, as they were counted before."""
        return [number for number in range(self.before) if number not in self.dropped]

    @classmethod
    def of(cls, config: PreTrainedConfig) -> "Depth | None":
        """Return what the configuration of a model says; None if no layer was dropped."""
        tower = _tower(config)
        dropped = getattr(tower, DROPPED, None)
        return cls(tower.num_hidden_layers + len(dropped), list(dropped)) if dropped else None


def remove_layers(model: PreTrainedModel) -> Depth | None:
    """Take the layers out of `model` that are passed over, in place, and return what was dropped so far.

    The configuration says the new number of layers, and in `dropped_layers` and `uncut_layers` what there was before.
    The other layers get new numbers, and weights stay the same objects. The model computes the same, bit for bit.
    `save_compressed` does this while it writes, without changing the model.

    Raises:
        ValueError: the model has a PEFT adapter.

    Example:
        >>> from hf_compress.cut import remove_layers
        >>> from hf_compress.models.skipping import skip
        >>> from transformers import BertConfig, BertModel
        >>> sizes = dict(hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16)
        >>> model = BertModel(BertConfig(vocab_size=9, **sizes))
        >>> skip(model.encoder.layer[1], beside=None)
        >>> remove_layers(model)
        Depth(before=3, dropped=[1])
        >>> model.config.num_hidden_layers, model.config.dropped_layers
        (2, [1])
    """
    if isinstance(model, PeftModel):
        raise ValueError(
            "Layers can only be removed from a model without an adapter. Call `merge_and_unload()` first."
        )
    if gone := skipped_layers(model):
        _take_out(model, gone)
    return Depth.of(model.config)


def whole_depth(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the configuration of the model before layers were dropped."""
    whole = copy.deepcopy(config)
    tower = _tower(whole)
    for name, value in (getattr(tower, UNCUT, None) or {}).items():
        setattr(tower, name, value)
    for entry in (DROPPED, UNCUT):
        vars(tower).pop(entry, None)
    return whole


def _tower(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the part of a configuration that says which layers were dropped: for the image tower of CLIP, its own."""
    tower = getattr(config, "vision_config", None)
    return tower if tower is not None and hasattr(tower, DROPPED) else config


@dataclass(frozen=True)
class Rehearsal:
    """What a model can do without some of its layers, tried on an example batch.

    Args:
        depth: the number of its layers.
        droppable: the numbers of the layers that can be dropped, counted from 0.
        beside: how many values a layer returns behind its hidden states, in a tuple; None for no tuple.
        reason: why the first of the other layers cannot be dropped, as a clause; "" if all can.
    """

    depth: int
    droppable: list[int]
    beside: int | None
    reason: str


@torch.no_grad()
def rehearse(model: PreTrainedModel | PeftModel) -> Rehearsal:
    """Return which layers of `model` can be dropped: where passing over one computes what a model without it does.

    That model is built from the shorter configuration, as it will be loaded, with the same weights. An adapter is left
    out.

    Raises:
        NoLayers: the layers of the model are not known, or the model does not run on an example batch.
    """
    plain = _plain(unadapted(model))
    name, (_, layers) = type(plain).__name__, stack_of(plain)
    if getattr(plain.config, "scale_attn_by_inverse_layer_idx", False):
        raise NoLayers(f"the layers of {name} compute with their own number")
    if patched := [type(layer).__name__ for layer in layers if "forward" in vars(layer)]:
        raise NoLayers(f"the `forward` of {patched[0]} was replaced, as `device_map` does")
    gone, left = skipped_layers(plain), [n for n, layer in enumerate(layers) if not isinstance(layer, Skipped)]
    returned, batch, reasons = [], example_batch(plain), dict[int, str]()
    for layer in layers:
        unskip(layer)

    def see(layer: nn.Module, inputs: Any, output: Any) -> None:
        returned.append(output)

    hook = layers[left[0]].register_forward_hook(see)
    try:
        plain(**batch)
    except FAILURES as error:
        raise NoLayers(f"{name} does not run on an example batch ({error})") from error
    finally:
        hook.remove()
    beside = len(returned[0]) - 1 if returned and isinstance(returned[0], tuple) else None
    for number in gone:
        skip(layers[number], beside)
    for number in left:
        with skipping(layers[number], beside):
            if len(left) > 1 and (reason := _differs(plain, batch)):
                reasons[number] = reason
    droppable = [number for number in left if number not in reasons]
    return Rehearsal(len(layers), droppable, beside, next(iter(reasons.values()), ""))


@torch.no_grad()
def check_removal_of_layers(model: PreTrainedModel) -> None:
    """Check that `model` without the layers that are passed over is loaded as what it is.

    Raises:
        ValueError: it computes something else.
    """
    plain = _plain(model)
    if reason := _differs(plain, example_batch(plain)):
        raise ValueError(
            f"{type(model).__name__} without the layers {', '.join(map(str, skipped_layers(model)))} cannot be loaded "
            f"again: {reason}. Drop fewer with `--prune_layers`, or cut it before training "
            "(`--distill_student_layers`)."
        )


def _take_out(model: PreTrainedModel, gone: Collection[int]) -> None:
    """Take layers out of `model` in place, and let its configuration and its declared widths follow."""
    name, layers = stack_of(model)
    kept = [number for number in range(len(layers)) if number not in gone]
    config = layers_config(model)
    before, known = dict(vars(config)), Depth.of(model.config) or Depth(len(layers))
    shorten(config, kept)
    uncut = dict(before.get(UNCUT) or {})
    for option, value in vars(config).items():
        if option in before and before[option] != value:
            uncut.setdefault(option, before[option])
    config.update({UNCUT: uncut, DROPPED: sorted([*known.dropped, *(known.kept[number] for number in gone)])})
    owner, _, own = name.rpartition(".")
    setattr(model.get_submodule(owner), own, nn.ModuleList([layers[number] for number in kept]))
    for new, old in enumerate(kept):
        for module in layers[old].modules():
            if vars(module).get("layer_idx") == old:  # Which cache a layer writes to.
                vars(module)["layer_idx"] = new
    numbers = {f"{name}.{old}.": f"{name}.{new}." for new, old in enumerate(kept)}
    rename_widths(model, lambda layer: renamed(layer, (name,), numbers))


def _plain(model: PreTrainedModel) -> PreTrainedModel:
    """Return a twin of `model` in evaluation mode that computes in floating point, without adapters and masks."""
    plain = unrounded(model)
    for name, module in [*plain.named_modules()]:
        owner, _, own = name.rpartition(".")
        if isinstance(module, BaseTunerLayer):
            plain.get_submodule(owner)._modules[own] = module.get_base_layer()
        elif isinstance(module, AuxiliaryTrainingWrapper):
            plain.get_submodule(owner)._modules[own] = module.original_module
    for module in plain.modules():
        module._modules.pop(OPERANDS, None)
        if isinstance(module, CompressedLayer):
            module.mask, module.adapter = None, ()
    return plain


def _differs(plain: PreTrainedModel, batch: dict[str, Tensor]) -> str:
    """Return how `plain` and the model that is loaded in its place differ on a batch, as a clause, or ""."""
    ours = plain(**batch)[0].float()
    try:
        theirs = _reloaded(plain)(**batch)[0].float()
    except FAILURES as error:
        return f"that model does not run ({error})"
    apart, size = float((ours - theirs).abs().max()), float(ours.abs().max())
    if apart <= ROUNDING[plain.dtype.itemsize] * max(size, 1e-3):
        return ""
    return f"outputs of up to {size:.3g} differ by {apart:.3g}"


def _reloaded(plain: PreTrainedModel) -> PreTrainedModel:
    """Return the model that the configuration without the layers that are passed over describes, with these weights.

    It has the same tensors, not copies.
    """
    smaller = twin(plain)
    smaller.config = copy.deepcopy(plain.config)
    _take_out(smaller, skipped_layers(smaller))
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        built = type(smaller)(copy.deepcopy(smaller.config))
    resize(built, widths_of(smaller))
    tensors: dict[str, Tensor] = {**dict(smaller.named_buffers()), **_parameters(smaller)}
    if different := sorted(_parameters(built).keys() ^ _parameters(smaller).keys()):
        raise ValueError(f"its layers differ in {', '.join(different[:3])}")
    modules = dict(built.named_modules())
    for name in (*_parameters(built), *dict(built.named_buffers())):
        owner, _, own = name.rpartition(".")
        held = vars(modules[owner])["_parameters" if own in modules[owner]._parameters else "_buffers"]
        if held[own].shape != tensors[name].shape:  # ESM's head for contacts reads the maps of all layers.
            raise ValueError(f"{name} would have another shape")
        held[own] = tensors[name]
    return built.eval()


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return dict(model.named_parameters(remove_duplicate=False))
