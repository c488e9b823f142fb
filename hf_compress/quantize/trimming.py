"""Keep a file size at the end of training, which changes weights after their steps were fitted to it."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_compress.layers.rounded import step_of
from hf_compress.layers.turning import compressed_layers, rounded
from hf_compress.models.targets import quantizable
from hf_compress.quantize.spending import other_bytes, rows_of, write_rows
from hf_compress.rate import Rounded
from hf_compress.rate.steps import LARGEST

# The share of the bytes that the trimmed file takes at least, unless no trim is so exact.
CLOSE, ROUNDS = 0.998, 12
# The widest dead zone, in steps, and the greatest factor of steps. A dead zone moves the fewest weights while most
# are a few steps away from zero. It saves little where they are many steps away; there coarser steps cost little.
WIDEST, COARSEST = 0.25, 16.0


@torch.no_grad()
def trim(model: PreTrainedModel, limit: float, exclude: Sequence[str] = ()) -> bool:
    """Change weights of `model` in place such that its file takes at most `limit` bytes; return whether any changed.

    Nothing changes if the file is small enough already. Otherwise the weights that are nearest to a boundary between
    two multiples of their step are rounded to the smaller one, as many as needed: the same distance for all layers,
    because a step counts the same in all layers. If that does not save enough, the steps become coarser by one
    factor. Weights that were zero stay zero. Collective: every process must call it.

    Args:
        model: trained on fixed steps, without an adapter, on any device, also sharded by FSDP2.
        limit: bytes of the file.
        exclude: regular expressions of layers that stay in floating point.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from hf_compress.layers import SCHEMES, quantize_layers
        >>> from hf_compress.quantize import trim
        >>> sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
        >>> model = BertModel(BertConfig(vocab_size=9, **sizes))
        >>> layers = quantize_layers(model, SCHEMES["int8"], steps=True)
        >>> trim(model, limit=1_000_000)
        False
    """
    found = {id(target.weight): target for target in rounded(model, quantizable(model, exclude))}.values()
    used = {target.name: target for target in found if step_of(target.module) is not None}
    weights = [(rows_of(target), _step(target.module)) for target in used.values()]
    room = limit - other_bytes(model, used, None, trained=True)

    def narrowed(share: float) -> list[Rounded]:
        return [_rounded(rows, step, WIDEST * share) for rows, step in weights]

    def coarsened(share: float) -> list[Rounded]:
        return [_rounded(rows, (step * COARSEST**share).bfloat16().float(), 0.0) for rows, step in weights]

    if _bytes(narrowed(0.0)) <= room:
        return False
    trimmed = _least(narrowed, room) or _least(coarsened, room)
    if trimmed is None:
        return False
    layers = compressed_layers(model).values()
    for target, one in zip(used.values(), trimmed, strict=True):
        for layer in layers:
            if layer.weight is target.weight:
                _step(layer).copy_(one.step)
        write_rows(target, one.rows)
    return True


def _least(trims: Callable[[float], list[Rounded]], room: float) -> list[Rounded] | None:
    """Return the result of the least of `trims` between 0 and 1 that fits into `room` bytes; None if 1 does not."""
    low, high, best = 0.0, 1.0, trims(1.0)
    if _bytes(best) > room:
        return None
    for _ in range(ROUNDS):
        middle = (low + high) / 2
        tried = trims(middle)
        size = _bytes(tried)
        if size > room:
            low = middle
        else:
            high, best = middle, tried
            if size > CLOSE * room:
                break
    return best


def _bytes(weights: Sequence[Rounded]) -> int:
    return sum(one.bytes for one in weights)


def _rounded(rows: Tensor, step: Tensor, width: float) -> Rounded:
    """Return `rows` as multiples of `step`; what is within `width` steps of a boundary goes to the smaller side."""
    multiples = torch.div(rows.float(), step)
    nearest = multiples.abs().add(0.5 - width).floor_() if width else multiples.abs().round_()
    return Rounded(nearest.clamp_(0, LARGEST).mul_(multiples.sign()).to(torch.int8), step)


def _step(layer: nn.Module) -> Tensor:
    step = step_of(layer)
    assert step is not None, "only layers with steps are trimmed"
    return step
