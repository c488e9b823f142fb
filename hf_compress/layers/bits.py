"""Bits per layer: items `PATTERN=BITS`, and the grids of a scheme with these bits."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from hf_compress.layers.grids import BITS, Grid, Grids
from hf_compress.models.targets import Target


def parsed(item: str) -> tuple[re.Pattern[str], int]:
    """Return the regular expression and the bits of an item `PATTERN=BITS`.

    Raises:
        ValueError: the item is malformed.

    Example:
        >>> from hf_compress.layers.bits import parsed
        >>> parsed("embeddings=4")
        (re.compile('embeddings'), 4)
    """
    pattern, separator, number = item.rpartition("=")
    if not separator or not pattern or not number.isdecimal() or int(number) not in BITS:
        raise ValueError(
            f"`--quant_bits` must be items PATTERN=BITS, with BITS from {BITS[0]} to {BITS[-1]}; got {item!r}. Give "
            "embeddings=4, for example, for four bits in every layer whose name contains `embeddings`."
        )
    try:
        return re.compile(pattern), int(number)
    except re.error as error:
        raise ValueError(f"`--quant_bits {item}`: {pattern} is not a regular expression: {error}.") from error


def weight_grids(targets: Sequence[Target], scheme: Grids, items: Sequence[str]) -> list[tuple[Target, Grid]]:
    """Return each of the layers `targets` with the grid of its weight.

    The grid is that of `scheme` for the kind of layer, with the bits of the last of `items` whose pattern matches its
    name. A weight with several names gets the bits of any of them.

    Args:
        targets: the layers that the scheme rounds, from `targets.quantizable`.
        scheme: the grids.
        items: items `PATTERN=BITS`.

    Raises:
        ValueError: an item is malformed, matches nothing, or matches a layer whose weights share scales by groups.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> from hf_compress.layers import SCHEMES, weight_grids
        >>> from hf_compress.models import quantizable
        >>> sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
        >>> model = BertForSequenceClassification(BertConfig(vocab_size=9, **sizes))
        >>> grids = weight_grids(quantizable(model), SCHEMES["int8"].grids, ["embeddings=4", "position=6"])
        >>> {target.name: grid.bits for target, grid in grids if target.kind == "embedding"}
        {'bert.embeddings.word_embeddings': 4, 'bert.embeddings.position_embeddings': 6, ...: 4}
    """
    grids = {id(target.weight): scheme.of(target.shares_embedding) for target in targets}
    for item in items:
        pattern, bits = parsed(item)
        found = [target for target in targets if pattern.search(target.name)]
        if not found:
            names = [target.name for target in targets]
            raise ValueError(
                f"`--quant_bits {item}` matches none of the {len(names)} layers that are quantized. Give a regular "
                f"expression that is found in the name of one, such as {', '.join(names[:3])}; or drop the item."
            )
        for target in found:
            grid = grids[id(target.weight)]
            if grid.per != "row":
                raise ValueError(
                    f"`--quant_bits {item}` matches {target.name}, whose weights share scales by {grid.per}s of "
                    f"{grid.group_size}; only bits of weights with one scale a row can be chosen. Choose another "
                    "`--quant_scheme`, such as int8-weight, or a pattern that is not found there."
                )
            grids[id(target.weight)] = replace(grid, bits=bits)
    return [(target, grids[id(target.weight)]) for target in targets]


def items_of(bits: Mapping[str, int], usual: Mapping[str, int]) -> list[str]:
    """Return items that give the named layers these `bits` instead of their `usual` ones.

    Layers whose names differ only in numbers, such as the same layer of every block, share an item with the bits that
    most of them have. Each of the others gets its own item after that one.
    """
    alike: dict[str, list[str]] = {}
    for name in bits:
        alike.setdefault(re.sub(r"\d+", r"\\d+", name), []).append(name)
    items = []
    for pattern, names in alike.items():
        if all(bits[name] == usual[name] for name in names):
            continue
        numbers = [bits[name] for name in names]
        most = max(dict.fromkeys(numbers), key=numbers.count)
        items.append(f"^{pattern}$={most}")
        items += [f"^{name}$={bits[name]}" for name in names if bits[name] != most]
    return items
