"""The shapes that pure functions state are checked while tests run."""

import importlib
import inspect

import pytest
import torch
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from hf_compress.distill.losses import kl
from tests.shapes import CHECKED, states_shape


def test_wrong_shapes_of_arguments_are_refused() -> None:
    with pytest.raises(TypeCheckError, match="classes"):
        kl(torch.zeros(3, 2), torch.zeros(3, 4), 1.0)


@pytest.mark.parametrize("name", CHECKED)
def test_all_functions_that_state_a_shape_are_checked(name: str) -> None:
    module = importlib.import_module(name)
    owners = [module, *(found for found in vars(module).values() if isinstance(found, type))]
    functions = [found for owner in owners for found in vars(owner).values() if inspect.isfunction(found)]
    functions = [found for found in functions if found.__module__ == name]
    stating = [found for found in functions if any(map(states_shape, found.__annotations__.values()))]
    assert stating, "no function states a shape: take the module from the list"
    assert all(hasattr(found, "__wrapped__") for found in stating)


@pytest.mark.parametrize(
    ("annotation", "stated"),
    [
        (Float[Tensor, "rows"], True),
        (Float[Tensor, "rows"] | None, True),
        (dict[str, tuple[Float[Tensor, "rows"], int]], True),
        (Tensor | None, False),
        (list[int], False),
    ],
)
def test_a_shape_is_found_inside_of_other_types(annotation: object, stated: bool) -> None:
    assert states_shape(annotation) == stated
