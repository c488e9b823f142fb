"""The products inside attention on grids: queries, keys, values and probabilities, rounded as they were trained."""

import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

from hf_compress.layers.grids import SMALLEST_SCALE, Grid, Grids, fake_quantize_affine
from hf_compress.layers.rounded import CompressedLayer, switched_off
from hf_compress.models.targets import named_modules

# What a model's attention is set to, and what a module of attention holds its operands under.
IMPLEMENTATION, OPERANDS = "hf_compress", "operands"
RANGED, PROBABILITIES = ("query", "key", "value"), "probabilities"
# What the attention of a model may depend on, if it is to be computed here.
_KNOWN = {"module", "query", "key", "value", "attention_mask", "scaling", "dropout", "position_bias", "kwargs"}


class Operand(CompressedLayer):
    """What rounds queries, keys or values: to integers about zero, since then runtimes multiply them as they are.

    The scale is the largest magnitude in its range over 127 (of 8 bits); ranges are observed and committed as those of
    layers are (`quantization`).
    """

    weight = torch.empty(0)  # It has none. This stands for it where all fake-quantized layers are looked through.

    def __init__(self, grid: Grid, device: torch.device) -> None:
        super().__init__()
        switched_off(self, None, grid, device)

    @property
    def grid(self) -> Grid:
        return cast(Grid, self.input_grid)

    def affine(self, device: torch.device) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Scale and zero point."""
        scale = (self.input_range.abs().amax() / self.grid.largest).clamp(min=SMALLEST_SCALE).float()
        return scale, torch.full_like(scale, self.grid.largest + 1)

    def forward(self, values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return self.rounded_input(values)

    def _round_input(self, values: Tensor, known: Tensor | None) -> Tensor:
        return fake_quantize_affine(values, *self.affine(values.device), self.grid, known)


class Probabilities(Operand):
    """What rounds the probabilities of attention, whose range is known beforehand: [0, 1]."""

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
    """The results and probabilities of attention, as Transformers wants them, from operands on their grids.

    Probabilities are rounded before dropout, which runtimes do not have. A module without operands rounds nothing.

    Args:
        module: of which the operands are, and how many heads share a key.
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
    # Rounded as the very operands: runtimes find integers in a product where nothing stands in between.
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
    """The modules of attention by name whose operands `scheme` rounds, still switched off; none if it rounds none.

    Operands that were there before keep their ranges; those that the scheme does not round are taken away.

    Args:
        exclude: regular expressions; modules of attention in whose name one is found stay in floating point.

    Raises:
        ValueError: the model computes its attention, or some of it, in a way that cannot be rounded here, has a PEFT
            adapter, or has no attention left to round.
    """
    if scheme.attention is None:
        for _, module in named_modules(model):
            if OPERANDS in module._modules:
                del module._modules[OPERANDS]
        return {}
    if isinstance(model, PeftModel):
        raise _unsupported("stand beside a PEFT adapter", "Call `model.merge_and_unload()` first, or choose")
    found = attention_modules(model)
    if not found:
        raise _unsupported(
            f"are not in sight: {type(model).__name__} computes its attention without Transformers' "
            "`AttentionInterface`",
            "Choose",
        )
    for name, module in found.items():
        _check(name, module)
    kept = attention_modules(model, exclude)
    if not kept:
        raise _unsupported(f"are all left out by `--quant_exclude` {' '.join(exclude)}", "Leave it out, or choose")
    for name, module in found.items():
        if name not in kept:
            module._modules.pop(OPERANDS, None)
    restore_attention(model, list(kept), scheme.attention)
    for name, module in kept.items():
        if getattr(module, "config", model.config)._attn_implementation != IMPLEMENTATION:
            raise _unsupported(f"{type(model).__name__} does not let be set at {name}", "Choose")
    return kept


def restore_attention(model: PreTrainedModel, names: Sequence[str], grid: Grid) -> list[Operand]:
    """The operands of the modules of attention `names`, given to them where they have none, and switched off.

    The whole model then computes attention by `rounded_attention`.

    Raises:
        ValueError: one of the names is of no module of attention.
    """
    known, operands = attention_modules(model), list[Operand]()
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"`quantization_config` names {unknown[0]}, which is no module of attention.")
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


def attention_modules(model: nn.Module, exclude: Sequence[str] = ()) -> dict[str, nn.Module]:
    """The modules of `model` by name that leave their products to Transformers' `AttentionInterface`."""
    return {
        name: module
        for name, module in named_modules(model)
        if "ALL_ATTENTION_FUNCTIONS" in getattr(getattr(_forward(module), "__code__", None), "co_names", ())
        and not any(re.search(pattern, name) for pattern in exclude)
    }


def trained_attention(model: nn.Module) -> list[str]:
    """The names of the modules of attention whose operands were rounded in training."""
    return [
        name
        for name, module in attention_modules(model).items()
        if OPERANDS in module._modules
        and all(cast(Operand, operand).ready for operand in cast(nn.ModuleDict, module._modules[OPERANDS]).values())
    ]


def range_owners(names: Iterable[str]) -> set[str]:
    """The names of the operands with ranges in the modules of attention `names`."""
    return {f"{name}.{OPERANDS}.{operand}" for name in names for operand in RANGED}


def _forward(module: nn.Module) -> Any:
    return inspect.unwrap(type(module).forward)


def _check(name: str, module: nn.Module) -> None:
    """Refuse a module whose own attention, the "eager" one of its model, is another function than ours."""
    own = _forward(module).__globals__.get("eager_attention_forward")
    unknown = ["its own"] if own is None else sorted(set(inspect.signature(own).parameters) - _KNOWN)
    if own is not None and not unknown and not _agrees(module, own):
        unknown = ["terms of its own"]
    if unknown:
        raise _unsupported(
            f"are more than products at {name}: the attention of {type(module).__name__} has {', '.join(unknown)}",
            f"Give `--quant_exclude '{re.escape(name)}'` to leave it in floating point, or choose",
        )


@torch.no_grad()
def _agrees(module: nn.Module, own: Callable[..., Any]) -> bool:
    """Whether `own` attention of `module` gives what ours does for the same few numbers."""
    like = next(module.parameters(), torch.empty(0))
    draw = torch.Generator().manual_seed(0)
    heads = (getattr(module, "num_key_value_groups", 1), 1, 1)
    query, key, value = (torch.randn(1, number, 3, 4, generator=draw).to(like) for number in heads)
    mask = torch.full((1, 1, 3, 3), torch.finfo(like.dtype).min).triu(1).to(like)
    try:
        theirs = own(module, query, key, value, mask, scaling=0.7, dropout=0.0)[0]
    except (AttributeError, RuntimeError, TypeError):  # It wants more of the module than these numbers allow.
        return False
    ours = _attend(lambda _, values: values, query, key, value, mask, scaling=0.7)[0]
    return torch.allclose(ours, theirs, atol=1e-5 if like.dtype.itemsize > 2 else 1e-2)


def _unsupported(what: str, remedy: str) -> ValueError:
    return ValueError(
        f"`--quant_scheme int8-attention` rounds the products inside attention, which {what}. {remedy} another "
        "scheme, such as `int8`."
    )
