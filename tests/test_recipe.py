"""Recipes: names, JSON there and back, and the eight subsets as one set of flags."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForSequenceClassification, HfArgumentParser, Trainer, TrainingArguments

from hf_compress.goals import BudgetArguments
from hf_compress.prune.arguments import PruningArguments
from hf_compress.prune.callback import PruningCallback
from hf_compress.quantize.arguments import QuantizationArguments
from hf_compress.quantize.callback import QuantizationCallback
from hf_compress.recipe import ARGUMENTS, Recipe, RecipeCallback

FLAGS = {
    "kd": ["--distill_teacher", "self"],
    "mp60": ["--prune_sparsity", "0.6"],
    "int8": ["--quant_scheme", "int8"],
}
SUBSETS = [subset for size in range(4) for subset in itertools.combinations(FLAGS, size)]


def _parsed(*flags: str) -> Recipe:
    return Recipe(*HfArgumentParser(ARGUMENTS).parse_args_into_dataclasses(list(flags)))


@pytest.mark.parametrize("subset", SUBSETS, ids="+".join)
def test_each_of_the_eight_subsets_is_one_set_of_flags(subset: tuple[str, ...], tmp_path: Path) -> None:
    recipe = _parsed(*itertools.chain.from_iterable(FLAGS[method] for method in subset))
    assert recipe.name == ("+".join(subset) or "dense")
    *kinds, last = [type(callback) for callback in recipe.callbacks()]
    assert last is RecipeCallback
    assert kinds == [PruningCallback] * ("mp60" in subset) + [QuantizationCallback] * ("int8" in subset)
    recipe.save(tmp_path / "recipe.json")
    assert Recipe.load(tmp_path / "recipe.json") == recipe


def test_a_fractional_sparsity_keeps_its_fraction_in_the_name() -> None:
    assert _parsed("--prune_sparsity", "0.975").name == "mp97.5"


def test_two_trainers_share_no_callbacks() -> None:
    recipe = _parsed("--prune_sparsity", "0.6")
    assert recipe.callbacks()[0] is not recipe.callbacks()[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [({"magic": {}}, "no `magic`"), ({"pruning": {"prune_hard": 1}}, "no `pruning.prune_hard`")],
)
def test_unknown_methods_and_options_are_refused_by_name(change: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Recipe.from_dict(change)


def test_a_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text("kd+mp60")
    with pytest.raises(ValueError, match="is not a recipe"):
        Recipe.load(tmp_path / "recipe.json")


def test_json_of_a_recipe_is_plain_values(tmp_path: Path) -> None:
    _parsed(*FLAGS["mp60"]).save(tmp_path / "recipe.json")
    assert json.loads((tmp_path / "recipe.json").read_text())["pruning"]["prune_sparsity"] == 0.6


@pytest.mark.parametrize(
    ("method", "option", "value", "switch"),
    [
        ("pruning", "prune_schedule", "linear", "prune_sparsity"),
        ("pruning", "prune_every", 5, "prune_sparsity"),
        ("pruning", "prune_exclude", ["pooler"], "prune_sparsity"),
        ("quantization", "quant_begin", 0.2, "quant_scheme"),
        ("quantization", "quant_bits", ["embeddings=4"], "quant_scheme"),
        ("quantization", "quant_exclude", ["pooler"], "quant_scheme"),
        ("quantization", "quant_step", 0.01, "quant_scheme"),
    ],
)
def test_an_option_without_its_method_warns(method: str, option: str, value: Any, switch: str) -> None:
    with pytest.warns(UserWarning, match=f"`--{option}` has no effect without `--{switch}`"):
        Recipe.from_dict({method: {option: value}})


def test_a_budget_turns_quantization_on_and_nothing_else(recwarn: pytest.WarningsRecorder) -> None:
    budget = {"compress_budget_mb": 10}
    recipe = Recipe.from_dict({"quantization": {"quant_exclude": ["pooler"], "quant_begin": 0.2}, "budget": budget})
    assert not recwarn.list
    assert recipe.quantization == QuantizationArguments("int8", quant_exclude=["pooler"], quant_begin=0.2)
    assert recipe.name == "int8+10MB" and not recipe.pruning.enabled
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    with pytest.warns(UserWarning, match="`--prune_every` has no effect without `--prune_sparsity`"):
        Recipe.from_dict({"pruning": {"prune_every": 5}, "budget": budget})


@pytest.mark.parametrize("steps", [{"quantization": {"quant_step": 0.01}}, {"budget": {"compress_budget_mb": 10}}])
@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"quant_scheme": "int8", "quant_bits": ["query=4"]}, "`--quant_bits query=4` cannot be given beside it"),
        ({"quant_scheme": "int4-weight"}, r"needs a `--quant_scheme` of 8 bits with one scale per row: int8, .*int4"),
    ],
)
def test_fixed_steps_need_eight_bits_per_row(steps: dict[str, Any], options: dict[str, Any], refused: str) -> None:
    quantization = options | steps.get("quantization", {})
    with pytest.raises(ValueError, match=rf"`--(quant_step|compress_budget_mb)` .*{refused}"):
        Recipe.from_dict(steps | {"quantization": quantization})


@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan")])
def test_a_budget_or_a_step_that_is_no_size_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"`--compress_budget_mb` must be a number of megabytes above 0; got"):
        BudgetArguments(value)
    with pytest.raises(ValueError, match=r"`--quant_step` must be a number above 0; got"):
        QuantizationArguments("int8", quant_step=value)


def test_undeclared_shared_weights_fail_before_training(
    make_bert: Callable[..., BertForSequenceClassification], tmp_path: Path
) -> None:
    model = make_bert()
    first, second = (layer.attention.self for layer in model.bert.encoder.layer[:2])
    second.query.weight = first.query.weight
    recipe = Recipe(pruning=PruningArguments(prune_sparsity=0.5))
    arguments = TrainingArguments(tmp_path, max_steps=4, report_to="none", use_cpu=True)
    rows = [{"input_ids": torch.tensor([1, 2]), "labels": torch.tensor(0)}] * 4
    with pytest.raises(ValueError, match=r"layer\.0\S+ and \S+layer\.1\S+, but .*`_tied_weights_keys`"):
        Trainer(model, arguments, train_dataset=rows, callbacks=recipe.callbacks()).train()
    second.query.weight = torch.nn.Parameter(first.query.weight.detach().clone())
    Trainer(model, arguments, train_dataset=rows, callbacks=recipe.callbacks()).train()
