"""What a pattern covers: layers or blocks, exact numbers of zeros, and what is counted in a model."""

from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

from hf_compress import PruningArguments
from hf_compress.models.targets import prunable
from hf_compress.prune import PATTERNS, Coverage
from hf_compress.prune.coverage import pruned_layers
from hf_compress.prune.requirements import refuse_coverage
from tests.tiny import bert


def covered(sparsity: float = 0.5, kept: dict[str, int] | None = None, **options: Any) -> Coverage:
    model = options.pop("model", None) or bert()
    return Coverage.of(model, PruningArguments(prune_sparsity=sparsity, **options), kept)


def test_numbers_of_groups_are_rounded_down() -> None:
    assert covered(0.29, prune_pattern="neurons").wanted(0.29) == [18, 18]
    assert covered(0.29, prune_pattern="neurons", prune_scope="global").wanted(0.29) == [37]
    hundred = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=100))
    assert covered(0.29, prune_pattern="neurons", model=hundred).wanted(0.29) == [29]


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_one_group_of_each_block_stays(scope: str) -> None:
    coverage = covered(0.99, prune_pattern="neurons+heads", prune_scope=scope)
    left = [contest.total - wanted for contest, wanted in zip(coverage.contests, coverage.wanted(0.99), strict=True)]
    assert left == ([1, 1, 1, 1] if scope == "layer" else [2, 2])


def test_groups_compete_with_groups_of_their_kind() -> None:
    contests = covered(prune_pattern="neurons+heads", prune_scope="global").contests
    assert [(one.name, one.total) for one in contests] == [
        ("the heads of the whole model", 4),
        ("the neurons of the whole model", 128),
    ]


def test_blocks_of_outputs_are_counted_whole() -> None:
    coverage = covered(0.3, prune_pattern="4x1")
    sizes = [target.weight.numel() for target in coverage.targets]
    assert coverage.wanted(0.3) == [round(0.3 * size / 4) for size in sizes]
    assert coverage.zeros(0.3) == 4 * sum(round(0.3 * size / 4) for size in sizes)


def test_only_the_layers_of_groups_are_pruned() -> None:
    names = {target.name.partition("layer.0.")[2] for target in covered(prune_pattern="heads").targets} - {""}
    assert names == {f"attention.{one}" for one in ("self.query", "self.key", "self.value", "output.dense")}
    heads = PruningArguments(prune_sparsity=0.5, prune_pattern="heads", prune_exclude=["layer.1"])
    assert {target.name for target in pruned_layers(bert(), heads)} == {
        f"bert.encoder.layer.0.{name}" for name in names
    }
    model = bert()
    assert pruned_layers(model, PruningArguments(prune_pattern="heads")) == prunable(model)


def test_given_numbers_are_reached_at_the_final_sparsity() -> None:
    kept = {"bert.encoder.layer.0": 64, "bert.encoder.layer.1": 4}
    coverage = covered(0.5, kept, prune_pattern="neurons", prune_scope="global")
    assert coverage.wanted(0.0) == [0, 0]
    assert coverage.wanted(0.25) == [0, 30]
    assert coverage.wanted(0.5) == [0, 60]


@pytest.mark.parametrize(
    "kept", [{}, {"bert.encoder.layer.0": 3}, {"bert.encoder.layer.0": 0, "bert.encoder.layer.1": 1}]
)
def test_numbers_for_other_blocks_are_refused(kept: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"must name blocks of the model, with 1 to all .* not for bert.enc"):
        covered(0.5, kept, prune_pattern="neurons")


def test_a_zero_out_of_place_is_not_counted() -> None:
    weight = torch.tensor([[0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    assert PATTERNS["2:4"].zeros(weight, 1) == 2 + 1 + 1 + 2
    assert PATTERNS["2:4"].zeros(weight.T.contiguous(), 0) == 2 + 1 + 1 + 2
    assert PATTERNS["4x1"].zeros(weight, 1) == 0
    assert PATTERNS["4x1"].zeros(weight.T.contiguous(), 1) == 1
    assert PATTERNS["unstructured"].zeros(weight, 1) == 9


def test_a_group_counts_if_it_is_zero_in_every_layer() -> None:
    model = bert()
    coverage = covered(model=model, prune_pattern="neurons")
    layer = model.bert.encoder.layer[0]
    with torch.no_grad():
        layer.intermediate.dense.weight[:5] = 0
        layer.output.dense.weight[:, 3:9] = 0
    assert coverage.found() == [2, 0]
    assert coverage.short(0.03, coverage.found()) == ["bert.encoder.layer.1"]


def test_the_sum_over_a_group_covers_all_its_layers() -> None:
    model = bert()
    coverage = covered(model=model, prune_pattern="heads")
    sums = coverage.group_sums([target.weight.detach().abs() for target in coverage.targets])
    attention = model.bert.encoder.layer[1].attention
    parts = [getattr(attention.self, name).weight[16:] for name in ("query", "key", "value")]
    expected = sum(part.abs().double().sum() for part in [*parts, attention.output.dense.weight[:, 16:]])
    assert float(sums[1][1]) == pytest.approx(expected.item())
    assert coverage.group_size(1) == 4 * 16 * 32


@pytest.mark.parametrize(("pattern", "changed"), [("2:4", "inputs"), ("4x1", "outputs")])
def test_a_width_that_does_not_divide_is_refused(pattern: str, changed: str) -> None:
    model = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=18))
    coverage = covered(model=model, prune_pattern=pattern)
    where = "output" if changed == "inputs" else "intermediate"
    with pytest.raises(ValueError, match=rf"number of {changed} is a multiple of 4; .*{where}.dense has 18. Leave it"):
        refuse_coverage(coverage, PruningArguments(0.5, prune_pattern=pattern))


def test_a_share_that_means_no_group_is_refused() -> None:
    options = PruningArguments(0.4, prune_pattern="heads")
    with pytest.raises(ValueError, match=r"`--prune_sparsity 0.4` of at most 2 heads in a layer is less than"):
        refuse_coverage(covered(0.4, prune_pattern="heads"), options)
    refuse_coverage(covered(0.4, prune_pattern="heads", prune_scope="global"), options)
    both = PruningArguments(0.4, prune_pattern="neurons+heads")
    with pytest.raises(ValueError, match=r"of at most 2 heads in a layer .*another `--prune_pattern`, neurons\.$"):
        refuse_coverage(Coverage.of(bert(), both), both)
    given = PruningArguments(prune_pattern="heads", prune_keep=["bert.encoder.layer.0.attention=2"])
    with pytest.raises(ValueError, match=r"`--prune_keep bert\S+=2` keeps all groups, so nothing is pruned. Lower"):
        refuse_coverage(Coverage.of(bert(), given), given)
