"""Rounded attention: queries, keys, values and probabilities on grids, in training and after loading."""

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

from hf_compress.layers.affine import fake_quantize_affine
from hf_compress.layers.grids import SMALLEST_SCALE, Grid, Grids, divided
from hf_compress.layers.probe import attention_modules, given_terms, remember_attention
from hf_compress.layers.rounded import CompressedLayer
from hf_compress.layers.turning import switched_off
from hf_compress.models.targets import named_modules

# The name of our attention function, and of the submodule that holds the operands of a module of attention.
IMPLEMENTATION, OPERANDS = "hf_compress", "operands"
RANGED, PROBABILITIES = ("query", "key", "value"), "probabilities"
# The arguments that the attention of a model may have to be computed here.
_KNOWN = {"module", "query", "key", "value", "attention_mask", "scaling", "dropout", "position_bias", "kwargs"}
_IN_MASK = "sliding_window"  # What the mask already says.


class Operand(CompressedLayer):
    """Rounds queries, keys or values to integers around zero, which runtimes multiply without an offset.

    The scale is the largest magnitude in the range over 127 (with 8 bits). Ranges are observed and committed as those
    of layers are.
    """

    weight = torch.empty(0)  # A placeholder for code that goes through all compressed layers.

    def __init__(self, grid: Grid, device: torch.device) -> None:
        super().__init__()
        switched_off(self, None, grid, device)

    @property
    def grid(self) -> Grid:
        return cast(Grid, self.input_grid)

    def affine(self, device: torch.device) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Scale and zero point."""
        scale = divided(self.input_range.abs().amax(), self.grid.largest).clamp(min=SMALLEST_SCALE).float()
        return scale, torch.full_like(scale, self.grid.largest + 1)

    def forward(self, values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return self.rounded_input(values)

    def _round_input(self, values: Tensor, known: Tensor | None) -> Tensor:
        return fake_quantize_affine(values, *self.affine(values.device), self.grid, known)


class Probabilities(Operand):
    """Rounds the probabilities of attention, whose range is known: [0, 1]."""

    @property
    def has_range(self) -> bool:
        return False

    def affine(self, device: torch.device) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Scale and zero point."""
        scale = torch.full((), 1 / self.grid.levels, dtype=torch.float32, device=device)
        return scale, torch.zeros_like(scale)


def rounded_attention(
    module: nn.Module,
    query: Float[Tensor, "batch heads queries width"],
    key: Float[Tensor, "batch key_heads keys width"],
    value: Float[Tensor, "batch key_heads keys value_width"],
    attention_mask: Float[Tensor, "..."] | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    position_bias: Float[Tensor, "..."] | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "batch queries heads value_width"], Float[Tensor, "batch heads queries keys"]]:
    """Return results and probabilities of attention with operands on their grids, as `AttentionInterface` expects.

    Probabilities are rounded before dropout, because runtimes have no dropout. A module without operands rounds
    nothing.

    Args:
        module: the module of attention, which holds the operands.
    """
    operands = cast(dict[str, Operand], module._modules.get(OPERANDS) or {})

    def on_grid(name: str, values: Tensor) -> Tensor:
        return operands[name](values) if name in operands else values  # type: ignore[no-any-return]

    dropout = dropout if module.training else 0.0
    return _attend(on_grid, query, key, value, attention_mask, scaling, dropout, position_bias)


def _attend(
    on_grid: Callable[[str, Tensor], Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None,
    dropout: float = 0.0,
    position_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    # Round the operands directly before the product: runtimes recognise integers only if nothing is in between.
    query, key, value = on_grid("query", query), on_grid("key", key.transpose(2, 3)), on_grid("value", value)
    sharing = query.shape[1] // key.shape[1]
    if sharing > 1:
        key, value = key.repeat_interleave(sharing, dim=1), value.repeat_interleave(sharing, dim=1)
    scores = query @ key * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    for added in (position_bias, attention_mask):
        scores = scores if added is None else scores + added
    probabilities = on_grid(PROBABILITIES, scores.softmax(dim=-1, dtype=torch.float32))
    probabilities = F.dropout(probabilities, p=dropout).to(value.dtype)
    return (probabilities @ value).transpose(1, 2).contiguous(), probabilities


AttentionInterface.register(IMPLEMENTATION, rounded_attention)
AttentionMaskInterface.register(IMPLEMENTATION, eager_mask)


def round_attention(
    model: PreTrainedModel | PeftModel, scheme: Grids, exclude: Sequence[str] = ()
) -> dict[str, nn.Module]:
    """Prepare the modules of attention whose operands `scheme` rounds, still switched off, and return them by name.

    Existing operands keep their ranges. Operands that the scheme does not round are removed.

    Args:
        exclude: regular expressions; a module of attention whose name contains a match stays in floating point.

    Raises:
        ValueError: the attention of the model, or of one module, cannot be rounded; the model has a PEFT adapter; or
            no attention is left to round.
    """
    if scheme.attention is None:
        for _, module in named_modules(model):
            if OPERANDS in module._modules:
                del module._modules[OPERANDS]
        return {}
    if isinstance(model, PeftModel):
        raise _unsupported(
            "cannot be rounded while the model has a PEFT adapter", "Call `model.merge_and_unload()` first, or choose"
        )
    found = attention_modules(model)
    # Saving asks again. FSDP2 may have sharded the weights by then, and one process alone cannot run the model.
    remember_attention(model, found)
    if not found:
        raise _unsupported(
            f"cannot be reached: {type(model).__name__} computes its attention without Transformers' "
            "`AttentionInterface`",
            "Choose",
        )
    for name, module in found.items():
        _check(name, module)
    kept = attention_modules(model, exclude)
    if not kept:
        raise _unsupported(f"are all left out by `--quant_exclude` {' '.join(exclude)}", "Drop a pattern, or choose")
    for name, module in found.items():
        if name not in kept:
            module._modules.pop(OPERANDS, None)
    restore_attention(model, list(kept), scheme.attention)
    for name, module in kept.items():
        if getattr(module, "config", model.config)._attn_implementation != IMPLEMENTATION:
            raise _unsupported(f"{type(model).__name__} does not let hf_compress set at {name}", "Choose")
    return kept


def restore_attention(model: PreTrainedModel, names: Sequence[str], grid: Grid) -> list[Operand]:
    """Give the modules `names` operands where they have none, switch these off, and return them.

    The whole model then computes attention by `rounded_attention`.

    Raises:
        ValueError: the model has no module of one of the names.
    """
    known, operands = dict(named_modules(model)), list[Operand]()
    if unknown := [name for name in names if name not in known]:
        raise ValueError(
            f"`quantization_config.attention` names {unknown[0]}, which {type(model).__name__} does not have. Load "
            "the checkpoint with the class it was saved from."
        )
    for name in names:
        module = model.get_submodule(name)
        device = next((weight.device for weight in module.parameters()), torch.device("cpu"))
        if OPERANDS not in module._modules:
            made = {one: Operand(grid, device) for one in RANGED} | {PROBABILITIES: Probabilities(grid, device)}
            module.add_module(OPERANDS, nn.ModuleDict(made))
        for operand in cast(nn.ModuleDict, module._modules[OPERANDS]).values():
            operands.append(cast(Operand, operand))
            switched_off(operands[-1], None, grid, device)
    model.set_attn_implementation(IMPLEMENTATION)
    return operands


def trained_attention(model: nn.Module) -> list[str]:
    """Return the names of the modules of attention whose operands were rounded in training."""
    return [
        name
        for name, module in named_modules(model)
        if OPERANDS in module._modules
        and all(cast(Operand, operand).ready for operand in cast(nn.ModuleDict, module._modules[OPERANDS]).values())
    ]


def range_owners(names: Iterable[str]) -> set[str]:
    """Return the names of the operands with ranges in the modules of attention `names`."""
    return {f"{name}.{OPERANDS}.{operand}" for name in names for operand in RANGED}


def _own_attention(module: nn.Module) -> Callable[..., Any] | None:
    """Return the "eager" attention of the model that defines the class of `module`, or a class it derives from."""
    for layer_class in type(module).__mro__:
        own = getattr(sys.modules.get(layer_class.__module__), "eager_attention_forward", None)
        if own is not None:
            return cast(Callable[..., Any], own)
    return None


def _check(name: str, module: nn.Module) -> None:
    """Refuse a module whose "eager" attention is another function than ours."""
    own = _own_attention(module)
    unknown = ["its own"] if own is None else sorted({*inspect.signature(own).parameters} - {*_KNOWN, _IN_MASK})
    if own is not None and (given := given_terms(module)) is not None:
        unknown = [term for term in unknown if term in given]  # Gemma 3 gives no softcap, though one could be given.
    if own is not None and not unknown and not _agrees(module, own):
        unknown = ["additional terms"]
    if unknown:
        raise _unsupported(
            f"are more than products at {name}: the attention of {type(module).__name__} has {', '.join(unknown)}",
            f"Give `--quant_exclude '{re.escape(name)}'` to leave it in floating point, or choose",
        )


@torch.no_grad()
def _agrees(module: nn.Module, own: Callable[..., Any]) -> bool:
    """Return whether the `own` attention of `module` gives the same results as ours for a few numbers."""
    like = next(module.parameters(), torch.empty(0))
    draw = torch.Generator().manual_seed(0)
    heads = (getattr(module, "num_key_value_groups", 1), 1, 1)
    query, key, value = (torch.randn(1, number, 3, 4, generator=draw).to(like) for number in heads)
    mask = torch.full((1, 1, 3, 3), torch.finfo(like.dtype).min).triu(1).to(like)
    windows = {_IN_MASK: 1} if _IN_MASK in inspect.signature(own).parameters else {}
    try:
        theirs = own(module, query, key, value, mask, scaling=0.7, dropout=0.0, **windows)[0]
    except (AttributeError, RuntimeError, TypeError):  # It needs more than these numbers.
        return False
    ours = _attend(lambda _, values: values, query, key, value, mask, scaling=0.7)[0]
    return torch.allclose(ours, theirs, atol=1e-5 if like.dtype.itemsize > 2 else 1e-2)


def _unsupported(what: str, remedy: str) -> ValueError:
    return ValueError(
        f"`--quant_scheme int8-attention` rounds the products inside attention, which {what}. {remedy} another "
        "scheme, such as `int8`."
    )
