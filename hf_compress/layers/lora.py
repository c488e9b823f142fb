"""Compression beside a LoRA adapter: the weight merged with the adapter is masked, rounded and stored."""

from typing import Any, cast

import numpy as np
import torch
from peft import PeftModel
from peft.tuners import lora
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.func import functional_call

from hf_compress.layers.rounded import CompressedLayer
from hf_compress.layers.turning import compressed_layers
from hf_compress.models.layer_kinds import kind

STATE = "compression"
PREFIX = "base_model.model."  # PEFT puts it in front of the names of the model.
MASK, RANGE, STEP = ".mask", ".input_range", ".weight_step"


class MergedLora(lora.Linear):
    """A LoRA layer that computes with one weight, `W + scaling * B @ A`, in the forward of its base layer.

    The base layer can then mask and round that weight; PEFT's sum of two outputs does not allow it. While the adapter
    is disabled only the base layer computes. Layers are turned into this class in place (`merge_in_forward`).
    """

    def merged_weight(self) -> Tensor:
        """Return the base weight plus the adapter, as `merge` computes it, without 16-bit autocast."""
        weight = cast(Tensor, self.base_layer.weight)
        if self.merged:
            return weight
        with torch.autocast(weight.device.type, enabled=False):
            for adapter in self.active_adapters:
                if adapter in self.lora_A:
                    weight = weight + self.get_delta_weight(adapter).to(weight.dtype)
        return weight

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if kwargs.get("adapter_names") is not None:
            raise ValueError("`adapter_names` cannot differ by row while a model is being compressed. Leave it out.")
        if self.disable_adapters and self.merged:
            self.unmerge()
        if self.disable_adapters or self.merged:
            result: Tensor = self.base_layer(x)
        else:
            result = functional_call(self.base_layer, {"weight": self.merged_weight()}, (x,))
        return result

    @torch.no_grad()
    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool = False, adapter_names: list[str] | None = None
    ) -> nn.Module:
        """Return the base layer that stays when PEFT unloads its adapters: merged, and zero where it is pruned."""
        base = self.get_base_layer()
        if merge and adapter_names is None and not safe_merge:
            cast(Tensor, base.weight).copy_(self.merged_weight())
        elif merge:
            self.merge(safe_merge=safe_merge, adapter_names=adapter_names)
        elif self.merged:
            self.unmerge()
        if isinstance(base, CompressedLayer):
            base.unload_and_optionally_merge_module(merge)
        return base


class CompressionState(nn.Module):
    """Puts masks, ranges and steps of all layers into an adapter's checkpoint; PEFT saves nothing of the base model.

    It is a module of PEFT's tuner, because PEFT saves and loads those. It holds no tensors itself: it reads and writes
    those of the layers. A mask takes one bit per weight in the file.
    """

    def __init__(self, layers: dict[str, CompressedLayer]) -> None:
        super().__init__()
        self.layers = layers  # In a dict, so that the layers do not become submodules.

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        for name, layer in self.layers.items():
            if layer.mask is not None:
                destination[prefix + name + MASK] = packed_mask(layer.mask)
            if layer.has_range:
                destination[prefix + name + RANGE] = layer.input_range.detach()
            if layer.step is not None:
                destination[prefix + name + STEP] = layer.step.detach()

    @torch.no_grad()
    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        for name, layer in self.layers.items():
            bits, seen, step = (state_dict.pop(prefix + name + part, None) for part in (MASK, RANGE, STEP))
            if bits is not None:
                layer.mask = unpacked_mask(bits, layer.weight.shape).to(layer.weight.device)
            if seen is not None and layer.has_range:
                layer.input_range.copy_(seen)
            if step is not None and layer.step is not None:
                layer.step.copy_(step)


def merge_in_forward(model: PeftModel) -> None:
    """Make every LoRA layer of `model` compute with one weight, in place, which its base layer masks and rounds.

    Call it after turning layers, and again after turning more. Parameters, hooks and names stay.

    Raises:
        ValueError: an adapter is not plain LoRA of linear layers, or more than one is active.
    """
    adapters: dict[str, Any] = {
        name.removeprefix(PREFIX): module
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
    }
    if not adapters:
        raise _unsupported("has no LoRA layers", "Use a LoRA adapter, or no adapter.")
    for name, module in adapters.items():
        _check(name, module)
    for name, module in model.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper) and compressed_layers(module):
            raise _unsupported(
                f"trains a copy of {name.removeprefix(PREFIX)} (`modules_to_save`)",
                "Leave it out of `modules_to_save`, or of compression by `--prune_exclude` and `--quant_exclude`.",
            )
    layers = compressed_layers(model)
    for name, module in adapters.items():
        base = module.get_base_layer()
        if any(layer is not base and layer.weight is base.weight for layer in layers.values()):
            raise _unsupported(
                f"adapts {name}, whose weight another layer shares", "Leave it out of `target_modules`."
            )
        module.__class__ = MergedLora
    switch = next(iter(adapters.values()))
    for layer in layers.values():
        layer.adapter = (switch,)
    for module in adapters.values():
        if isinstance(base := module.get_base_layer(), CompressedLayer):
            base.adapter = (module,)
    named = {name.removeprefix(PREFIX).removesuffix(".base_layer"): layer for name, layer in layers.items()}
    setattr(model.base_model, STATE, CompressionState(named))


def current_weight(layer: nn.Module) -> Tensor:
    """Return the weight that `layer` computes with before rounding: merged with its adapter, and masked."""
    weight = cast(Tensor, layer.weight)
    if not isinstance(layer, CompressedLayer):
        return weight
    for adapter in layer.adapter:
        if isinstance(adapter, MergedLora) and adapter.base_layer is layer:
            weight = adapter.merged_weight()
    return layer.masked(weight)


def packed_mask(mask: Tensor) -> Tensor:
    """Return a mask with one bit per value, as a flat uint8 tensor on the CPU."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1)))


def unpacked_mask(bits: Tensor, shape: torch.Size) -> Tensor:
    """Return the boolean mask of `shape` that `packed_mask` made into `bits`."""
    flat = np.unpackbits(bits.cpu().numpy(), count=shape.numel()).astype(bool)
    return torch.from_numpy(flat).view(shape)


def _check(name: str, adapter: Any) -> None:
    """Refuse an adapter whose effect is not one weight, the same in training and in evaluation."""
    if type(adapter) not in (lora.Linear, MergedLora) or kind(adapter.get_base_layer()) is None:
        raise _unsupported(
            f"has a {type(adapter).__module__}.{type(adapter).__name__} at {name}",
            "Use LoRA, with `target_modules` set to linear layers in full precision.",
        )
    active = [one for one in adapter.active_adapters if one in adapter.lora_A]
    if len(active) > 1:
        raise _unsupported(f"has the adapters {', '.join(active)} active at once", "Activate one by `set_adapter`.")
    if adapter.merged:
        raise _unsupported(f"has an adapter merged into {name}", "Call `unmerge_adapter()` first.")
    for one in active:
        if one in adapter.lora_variant:
            raise _unsupported(
                f"uses {type(adapter.lora_variant[one]).__name__} at {name}",
                "Use plain LoRA, without variants.",
            )
        if adapter.lora_bias[one]:
            raise _unsupported(f"trains a bias in the adapter of {name}", "Set `lora_bias=False`.")
        if not isinstance(adapter.lora_dropout[one], nn.Identity):
            raise _unsupported(
                f"drops inputs of the adapter at {name} (`lora_dropout={adapter.lora_dropout[one].p}`), so that "
                "there is no merged weight",
                "Set `lora_dropout=0`.",
            )


def _unsupported(what: str, remedy: str) -> ValueError:
    return ValueError(
        "`--prune_sparsity` and `--quant_scheme` compress weights merged with their adapter, but the PEFT model "
        f"{what}. {remedy} Or call `model.merge_and_unload()` and train without an adapter."
    )
