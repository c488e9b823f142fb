"""Check the shapes that pure functions state, at run time, in the tests."""

from collections.abc import Callable
from typing import Any, get_args

import jaxtyping
from jaxtyping import AbstractArray, install_import_hook, jaxtyped

# Other modules take models and trainers, which some tests replace by doubles.
PURE = (
    "models.heads",
    "models.sharding",
    "layers.grids",
    "distill.losses",
    "distill.layer_losses",
    "prune.criteria",
    "prune.selection",
    "packing.coding",
    "packing.packed",
    "study.analysis.panel",
    "study.analysis.reductions",
    "study.analysis.effects",
    "study.analysis.ranking",
    "study.analysis.published",
)
CHECKED = tuple(f"hf_compress.{name}" for name in PURE)


def check_shapes() -> None:
    """Check the functions of `CHECKED` with beartype, from their import on. Call it before the package is imported."""
    # The hook decorates every function with the name as it stands in the module, also those that state no shape: a
    # check costs more than most of them do, and a function inside another is decorated at each call of the other.
    jaxtyping.jaxtyped = _where_stated
    install_import_hook(CHECKED, "beartype.beartype")


def _where_stated(*, typechecker: Any) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        stated = any(map(states_shape, getattr(function, "__annotations__", {}).values()))
        return jaxtyped(function, typechecker=typechecker) if stated else function

    return decorate


def states_shape(annotation: Any) -> bool:
    """Return whether an annotation is a tensor with a shape, or holds one (`Float[Tensor, "rows"] | None`)."""
    if isinstance(annotation, type) and issubclass(annotation, AbstractArray):
        return True
    return any(map(states_shape, annotation if isinstance(annotation, list) else get_args(annotation)))
