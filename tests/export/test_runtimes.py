"""What a runtime gets for the batch of a model: the inputs of the graph, in the types that graphs take."""

import numpy as np
import pytest
import torch
from transformers import BertConfig

from hf_compress.export.runtimes import RuntimeModel

Feeds = dict[str, np.ndarray]


def given(inputs: list[str], batch: dict[str, torch.Tensor]) -> Feeds:
    """Return what `run` of a runtime is called with."""
    seen: list[Feeds] = []

    def run(feeds: Feeds) -> list[np.ndarray]:
        seen.append(feeds)
        return [np.zeros((2, 3), np.float32)]

    assert RuntimeModel(BertConfig(), inputs, ["logits"], run)(**batch).logits.shape == (2, 3)
    return seen[0]


@pytest.mark.parametrize(
    ("main", "shape"), [("input_ids", (2, 5)), ("input_values", (2, 40)), ("input_features", (2, 5, 8))]
)
def test_a_missing_mask_has_a_one_for_each_token_or_frame(main: str, shape: tuple[int, ...]) -> None:
    values = torch.zeros(shape, dtype=torch.long if main == "input_ids" else torch.float32)
    feeds = given([main, "attention_mask"], {main: values})
    assert feeds["attention_mask"].shape == shape[:2] and feeds["attention_mask"].all()
    assert feeds["attention_mask"].dtype == np.int64 and feeds[main].dtype == values.numpy().dtype


def test_masks_of_32_bits_are_widened_for_the_graph() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]], dtype=torch.int32)
    feeds = given(["input_values", "attention_mask"], {"input_values": torch.rand(2, 3), "attention_mask": mask})
    assert feeds["attention_mask"].dtype == np.int64 and feeds["input_values"].dtype == np.float32
    assert np.array_equal(feeds["attention_mask"], mask.numpy())
