"""Layers that are passed over are taken out, and every family loads and computes the same without them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    Dinov2Config,
    EsmConfig,
    PreTrainedModel,
)

from hf_compress import Recipe, remove_layers, save_compressed, student_from
from hf_compress.cut.depth import Depth, rehearse, whole_depth
from hf_compress.models.heads import find_head
from hf_compress.models.skipping import skip, skipped_layers
from hf_compress.models.stacks import NoLayers, stack_of
from tests.cut.test_students import SEQ2SEQ, SEQUENCE, STACKS, deep
from tests.invariants.test_images_and_sounds import CONFIGS
from tests.tiny import bert

ONE_STACK = [name for name in STACKS if name not in ("t5", "bart")]
# ModernBERT's first layer has no norm before its attention, so none of the others can take its place.
FIXED = {"modernbert": [0]}


@torch.no_grad()
def outputs(model: PreTrainedModel) -> Tensor:
    return model.eval()(torch.arange(4, 20).reshape(2, 8))[0]


@pytest.mark.parametrize("name", ONE_STACK)
def test_every_family_is_loaded_as_it_computed(name: str, tmp_path: Path) -> None:
    model = deep(name, AutoModelForCausalLM if name in ("gpt2", "llama") else SEQUENCE)
    tried = rehearse(model)
    assert tried.depth == 4 and sorted({*tried.droppable} ^ {*range(4)}) == FIXED.get(name, [])
    _, layers = stack_of(model)
    whole = outputs(model)
    for number in (2, 1):  # The second drop meets a model that passes over one layer already.
        skip(layers[number], rehearse(model).beside)
    before = outputs(model)
    assert not torch.equal(before, whole)
    folder = save_compressed(model, tmp_path / "saved", Recipe())
    assert skipped_layers(model) == [1, 2] and model.config.num_hidden_layers == 4
    loaded = type(model).from_pretrained(folder)
    assert Depth.of(loaded.config) == Depth(4, [1, 2]) and len(stack_of(loaded)[1]) == 2
    assert torch.equal(outputs(loaded), before)
    said = {option: value for option, value in model.config.to_dict().items() if "layer" in option}
    assert {option: whole_depth(loaded.config).to_dict()[option] for option in said} == said
    assert remove_layers(model) == Depth(4, [1, 2])
    assert torch.equal(outputs(model), before)


def test_layers_dropped_twice_are_counted_as_in_the_first_model() -> None:
    model = bert(num_hidden_layers=6)
    for numbers in ([1, 4], [0, 2]):  # Of 0, 2, 3 and 5 the second two are 0 and 3.
        for number in numbers:
            skip(stack_of(model)[1][number], None)
        dropped = remove_layers(model)
    assert dropped == Depth(6, [0, 1, 3, 4]) and dropped.kept == [2, 5]
    assert Depth.of(student_from(model, [0]).config) is None, "a student is another model"


def changed(name: str, auto_class: Any, **options: Any) -> PreTrainedModel:
    model = deep(name, auto_class)
    model.config.update(options)
    return type(model)(model.config)


def test_a_layer_that_others_cannot_stand_in_for_stays() -> None:
    tried = rehearse(changed("deberta-v2", SEQUENCE, conv_kernel_size=3))
    assert tried.droppable == [1, 2, 3], "a convolution reads what the first layer computes"
    assert "differ by" in tried.reason


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda: deep("t5", SEQ2SEQ), "two stacks"),
        (lambda: deep("albert", SEQUENCE), "share their weights"),
        (
            lambda: changed("gpt2", AutoModelForCausalLM, scale_attn_by_inverse_layer_idx=True),
            "compute with their own number",
        ),
    ],
)
def test_models_without_layers_of_their_own_are_refused(model: Any, said: str) -> None:
    with pytest.raises(NoLayers, match=said):
        rehearse(model())


def test_a_backbone_says_its_last_stage_after_a_cut(tmp_path: Path) -> None:
    config = Dinov2Config(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=8, patch_size=4)
    model = AutoModelForImageClassification.from_config(config).eval()
    skip(stack_of(model)[1][1], rehearse(model).beside)
    for name, cut in (("dropped", model), ("student", student_from(model, [0, 2]))):
        loaded = type(model).from_pretrained(save_compressed(cut, tmp_path / name, Recipe()))
        assert loaded.config.stage_names == ["stem", "stage1", "stage2"] and loaded.config.out_features == ["stage2"]
    assert whole_depth(Dinov2Config.from_pretrained(tmp_path / "dropped")).stage_names == model.config.stage_names


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_an_image_tower_says_its_own_depth(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]()
    config.vision_config.num_hidden_layers = 4
    model = AutoModelForImageClassification.from_config(config).eval()
    assert rehearse(model).droppable == [0, 1, 2, 3]
    pixels = find_head(model).example_batch(model)
    for number in (2, 1):
        skip(stack_of(model)[1][number], rehearse(model).beside)
    with torch.no_grad():
        before = model(**pixels).logits
        loaded = type(model).from_pretrained(save_compressed(model, tmp_path / "saved", Recipe())).eval()
        assert torch.equal(loaded(**pixels).logits, before)
    assert Depth.of(loaded.config) == Depth(4, [1, 2]) == remove_layers(model)
    assert whole_depth(loaded.config).vision_config.num_hidden_layers == 4
    skip(stack_of(model)[1][0], rehearse(model).beside)
    assert remove_layers(model) == Depth(4, [0, 1, 2])
    assert Depth.of(student_from(loaded, [0]).config) is None, "a student is another model"


def test_a_model_as_wide_as_it_is_deep_keeps_its_layers() -> None:
    sizes = {"vocab_size": 40, "pad_token_id": 1, "mask_token_id": 4, "position_embedding_type": "rotary"}
    sizes |= {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
    model = SEQUENCE.from_config(EsmConfig(**sizes)).eval()
    tried = rehearse(model)
    assert not tried.droppable and "contact_head.regression.weight would have another shape" in tried.reason
    with pytest.raises(ValueError, match=r"`--distill_student_layers`.*contact_head.regression.weight is as wide as"):
        student_from(model, [0, 2])
