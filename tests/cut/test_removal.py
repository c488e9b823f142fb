"""Neurons and heads that nothing reads are removed, and every family computes the same without them."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModel, PreTrainedModel

from hf_compress.cut.rehearsal import check_removal, check_same, twin
from hf_compress.cut.removal import Removal, kept_groups, remove_groups
from hf_compress.cut.students import student_from
from hf_compress.layers.attention import round_attention
from hf_compress.layers.grids import SCHEMES
from hf_compress.layers.turning import compressed_layers, quantize_layers
from hf_compress.models.blocks import find_groups
from hf_compress.models.groups import GroupKind
from hf_compress.models.widths import declared_widths, widths_of
from tests.invariants.test_models import CONFIGS
from tests.models.test_blocks import BIAS_PER_HEAD, MORE, made, outputs

BOTH: tuple[GroupKind, ...] = ("neurons", "heads")
IDS = torch.arange(20).reshape(2, 10)


def kinds_of(family: str) -> tuple[GroupKind, ...]:
    return ("neurons",) if family in BIAS_PER_HEAD else BOTH


@torch.no_grad()
def unread(model: PreTrainedModel, kinds: Sequence[GroupKind], every: int = 2, *, whole: bool = False) -> None:
    """Let nothing read every second group, beginning with the first; `whole` sets its producers to zero as well."""
    for block in find_groups(model, kinds):
        for part in block.parts if whole else (block.consumer,):
            for group in range(0, block.count, every) if block.count > 1 else ():
                part.target.weight.index_fill_(part.dim, part.indices()[group], 0)


@pytest.mark.parametrize("family", [*CONFIGS, *MORE, "wav2vec2", "vit"])
def test_every_family_computes_the_same_without_them(family: str) -> None:
    model = made(family)
    unread(model, kinds_of(family))
    before, size = outputs(model), sum(weight.numel() for weight in model.parameters())
    removed = remove_groups(model, kinds_of(family))
    assert {one.kind for one in removed} == set(kinds_of(family))
    assert all(one.after == (one.before // 2 or 1) for one in removed)
    assert sum(weight.numel() for weight in model.parameters()) < 0.95 * size
    assert torch.allclose(outputs(model), before, atol=1e-6)


@pytest.mark.parametrize("family", ["bert", "gpt2", "modernbert", "deberta-v2"])
def test_removed_values_are_those_of_the_groups(family: str) -> None:
    """What is left are the values of the other groups, in their order: each matrix against its own selection."""
    model, whole = made(family), made(family)
    unread(model, BOTH)
    remove_groups(model, BOTH)
    layers = dict(model.named_modules())
    for block in find_groups(whole, BOTH):
        odd = torch.arange(block.count) % 2 == 1
        for part in block.parts:
            others = [one for one in block.parts if one.target.name == part.target.name and one is not part]
            assert not others, "these families have one part a layer"
            weight = part.target.weight
            expected = weight[part.mask(odd)].reshape([-1, weight.shape[1]] if part.dim == 0 else [len(weight), -1])
            assert torch.equal(layers[part.target.name].weight, expected)


def test_one_group_of_a_block_stays(make_bert: Callable[..., PreTrainedModel]) -> None:
    model = make_bert()
    unread(model, BOTH, every=1)
    before = model(IDS).logits
    assert {one.after for one in remove_groups(model, BOTH)} == {1}
    assert torch.allclose(model(IDS).logits, before, atol=1e-7)


def test_nothing_changes_where_all_groups_are_read(make_bert: Callable[..., PreTrainedModel]) -> None:
    model = make_bert()
    before = dict(model.named_parameters())
    assert all(one.after == one.before for one in remove_groups(model, BOTH))
    assert all(weight is before[name] for name, weight in model.named_parameters())
    assert widths_of(model) == {} == declared_widths(model)


def test_a_group_that_is_read_stays_even_if_nothing_computes_it(make_bert: Callable[..., PreTrainedModel]) -> None:
    model = make_bert()
    with torch.no_grad():
        model.bert.encoder.layer[0].intermediate.dense.weight[3] = 0  # Its bias and the activation remain.
    assert all(one.after == one.before for one in remove_groups(model, ["neurons"]))


def test_excluded_blocks_stay(make_bert: Callable[..., PreTrainedModel]) -> None:
    model = make_bert()
    unread(model, ["neurons"])
    removed = remove_groups(model, ["neurons"], exclude=[r"layer\.0\."])
    assert removed == [Removal("bert.encoder.layer.1", "neurons", 64, 32)]
    assert set(widths_of(model)) == {f"bert.encoder.layer.1.{one}.dense" for one in ("intermediate", "output")}


def test_uniform_removal_keeps_as_many_everywhere_and_says_so(make_bert: Callable[..., PreTrainedModel]) -> None:
    model = make_bert()
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight[:, :40] = 0
        model.bert.encoder.layer[1].output.dense.weight[:, 10:30] = 0
    before = model(IDS).logits
    removed = remove_groups(model, ["neurons"], uniform=True)
    assert [one.after for one in removed] == [44, 44]
    assert model.config.intermediate_size == 44 and model.config.uncut_widths == {"intermediate_size": 64}
    assert torch.allclose(model(IDS).logits, before, atol=1e-7)
    ordinary = type(model)(model.config)
    ordinary.load_state_dict(model.state_dict())
    assert torch.equal(ordinary.eval()(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("scheme", ["int8", "int8-weight", "int8-attention", "int8-dynamic"])
@pytest.mark.parametrize("steps", [False, True])
def test_rounded_models_compute_the_same(scheme: str, steps: bool, make_bert: Callable[..., PreTrainedModel]) -> None:
    """Ranges and steps stay as they were trained. A range per token is that of the neurons that are left.

    So with `int8-dynamic` the removed ones must be zero for the same result, and their biases are.
    """
    model = make_bert()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias") and scheme != "int8-dynamic":
                weight.add_(torch.randn_like(weight) / 4)
    unread(model, BOTH, whole=True)
    quantize_layers(model, SCHEMES[scheme], steps=steps)
    round_attention(model, SCHEMES[scheme])
    for layer in compressed_layers(model).values():
        layer.quantizing = True
        if layer.has_range:
            layer.input_range.copy_(torch.tensor([-2.0, 3.0]))
        if layer.step is not None:
            layer.keep_step(torch.linspace(0.001, 0.02, len(layer.step))[:, None])
    before = model(IDS).logits
    remove_groups(model, BOTH)
    assert torch.allclose(model(IDS).logits, before, atol=1e-6)
    assert torch.equal(model(IDS).logits, copied(model)(IDS).logits)


def copied(model: nn.Module) -> nn.Module:
    made = twin(model)
    for module in made.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(weight.detach().clone()))
    return made


def test_what_cannot_be_removed_is_refused(make_bert: Callable[..., PreTrainedModel]) -> None:
    adapted = get_peft_model(make_bert(), LoraConfig(target_modules=["query"]))
    with pytest.raises(ValueError, match="without an adapter"):
        remove_groups(adapted, BOTH)  # type: ignore[arg-type]
    grouped = make_bert()
    unread(grouped, ["neurons"])
    quantize_layers(grouped, SCHEMES["int4-weight"])
    with pytest.raises(ValueError, match="consecutive inputs share a scale"):
        remove_groups(grouped, ["neurons"])
    headless = make_bert()
    unread(headless, BOTH)
    with pytest.raises(ValueError, match="`--prune_uniform` needs a configuration"):
        remove_groups(headless, BOTH, uniform=True)


def test_a_twin_has_the_weights_but_its_own_places(make_bert: Callable[..., PreTrainedModel]) -> None:
    model = make_bert()
    made_twin: Any = twin(model)
    assert all(weight is other for weight, other in zip(model.parameters(), made_twin.parameters(), strict=True))
    unread(made_twin, ["neurons"])  # In place: the weights are those of the model.
    remove_groups(made_twin, ["neurons"])
    assert model.bert.encoder.layer[0].output.dense.weight.shape == (32, 64)
    assert made_twin.bert.encoder.layer[0].output.dense.weight.shape == (32, 32)
    assert torch.allclose(made_twin(IDS).logits, model(IDS).logits, atol=1e-7)
    assert (
        type(made_twin) is type(model)
        and made_twin.get_input_embeddings() is made_twin.bert.embeddings.word_embeddings
    )


@pytest.mark.parametrize("family", [*CONFIGS, "vit"])
def test_a_rehearsal_changes_nothing(family: str) -> None:
    model = made(family)
    before = {name: (weight, weight.clone()) for name, weight in model.named_parameters()}
    check_removal(model, kinds_of(family))
    for name, weight in model.named_parameters():
        assert weight is before[name][0] and torch.equal(weight, before[name][1])
    assert widths_of(model) == {}


def test_a_rehearsal_refuses_heads_counted_by_the_configuration() -> None:
    config = MORE["phi3"].__class__(**{**MORE["phi3"].to_dict(), "num_key_value_heads": 2})
    with pytest.raises(ValueError, match="cannot be removed"):
        check_removal(AutoModel.from_config(config).eval(), ["heads"])
    check_removal(AutoModel.from_config(config).eval(), ["neurons"])


def test_a_removal_that_changes_outputs_is_refused(make_bert: Callable[..., PreTrainedModel]) -> None:
    model = make_bert()
    other = make_bert(seed=1)
    with pytest.raises(ValueError, match="differ by"):
        check_same(model, other)
    check_same(model, make_bert())


def test_kept_groups_are_those_with_a_weight_that_reads_them(make_bert: Callable[..., PreTrainedModel]) -> None:
    model = make_bert()
    unread(model, BOTH)
    for block, kept in zip(find_groups(model, BOTH), kept_groups(find_groups(model, BOTH)), strict=True):
        assert torch.equal(kept, torch.arange(block.count) % 2 == 1)


def test_a_student_of_a_smaller_model_has_its_widths(make_bert: Callable[..., PreTrainedModel]) -> None:
    model = make_bert()
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.weight[:, :40] = 0
    remove_groups(model, ["neurons"])
    student = student_from(model, [1])
    assert widths_of(student)["bert.encoder.layer.0.output.dense"] == [32, 24]
    assert torch.equal(
        student.bert.encoder.layer[0].output.dense.weight, model.bert.encoder.layer[1].output.dense.weight
    )
    assert student(IDS).logits.shape == (2, 2)
