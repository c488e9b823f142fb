"""Pruned neurons and heads leave the file by themselves; models go on from it, and Transformers may read it alone."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

from hf_compress.checkpoint.save import save_compressed
from hf_compress.cut.rehearsal import check_uniform
from hf_compress.export.formats import FORMATS, write_formats
from hf_compress.export.onnx_format import export_onnx
from hf_compress.models.blocks import find_groups
from hf_compress.models.heads import find_outputs
from hf_compress.models.widths import widths_of
from hf_compress.prune.arguments import PruningArguments
from hf_compress.quantize.arguments import QuantizationArguments
from hf_compress.recipe import Recipe
from tests.cut.test_removal import BOTH, unread
from tests.invariants.harness import in_two_processes
from tests.invariants.test_models import SIZES, SPECIAL
from tests.quantized import quantized
from tests.tiny import NO_DROPOUT, bert

IDS = torch.arange(20).reshape(2, 10)


def recipe_of(pattern: str, scheme: str | None = None, **pruning: Any) -> Recipe:
    options = PruningArguments(prune_sparsity=0.5, prune_pattern=pattern, prune_every=1, **pruning)
    return Recipe(pruning=options, quantization=QuantizationArguments(quant_scheme=scheme))


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    return model.eval()(IDS).logits


@pytest.fixture
def train(tiny_dataset: Any, tmp_path: Path) -> Callable[[PreTrainedModel, Recipe], PreTrainedModel]:
    """A function that trains a model by a recipe for a few steps."""

    def run(model: PreTrainedModel, recipe: Recipe) -> PreTrainedModel:
        arguments = TrainingArguments(
            output_dir=str(tmp_path / "training"),
            max_steps=10,
            learning_rate=1e-3,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        Trainer(model, arguments, train_dataset=tiny_dataset, callbacks=recipe.callbacks()).train()
        return model.eval()

    return run


def counts(model: PreTrainedModel) -> dict[str, list[int]]:
    return {kind: [block.count for block in find_groups(model, [kind])] for kind in BOTH}


@pytest.mark.slow
def test_a_model_goes_from_training_to_file_to_training_to_graph(
    make_bert: Callable[..., PreTrainedModel], train: Any, tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript")
    recipe = recipe_of("neurons+heads", "int8")
    model = train(make_bert(), recipe)
    assert counts(model) == {"neurons": [64, 64], "heads": [2, 2]}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = save_compressed(model, tmp_path / "first", recipe)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert counts(model) == {"neurons": [64, 64], "heads": [2, 2]} and model.config.intermediate_size == 64
    reloaded = AutoModelForSequenceClassification.from_pretrained(first)
    assert counts(reloaded) == {"neurons": [32, 32], "heads": [1, 1]}
    assert torch.allclose(logits(reloaded), logits(model), atol=1e-5)
    again = train(reloaded, recipe)
    assert counts(again) == {"neurons": [32, 32], "heads": [1, 1]}, "what was removed counts as pruned"
    second = save_compressed(again, tmp_path / "second", recipe)
    last = AutoModelForSequenceClassification.from_pretrained(second)
    assert torch.equal(logits(last), logits(again)) and widths_of(last) == widths_of(again)
    int8 = Recipe(quantization=recipe.quantization)
    whole = save_compressed(train(make_bert(), int8), tmp_path / "whole", int8)
    assert export_onnx(second).deviation < 1e-3 and export_onnx(whole).deviation < 1e-3
    graphs = [(folder / "onnx" / "model_quantized.onnx").stat().st_size for folder in (second, whole)]
    assert graphs[0] < graphs[1] - 8000, "a byte for each of 8,192 weights that are gone"


@pytest.mark.slow
def test_openvino_computes_a_smaller_model_at_any_length(
    make_bert: Callable[..., PreTrainedModel], train: Any, tmp_path: Path
) -> None:
    openvino = pytest.importorskip("openvino")
    recipe = recipe_of("neurons+heads", "int8")
    trained = train(make_bert(), recipe)
    folder = save_compressed(trained, tmp_path / "packed", recipe)
    write_formats(folder, ["openvino"])
    path = folder / FORMATS["openvino"].path
    graph = FORMATS["openvino"].read(path, trained)
    for rows, length in ((1, 3), (3, 17)):
        batch = find_outputs(trained).example_batch(trained, rows, length)
        with torch.no_grad():
            expected = trained(**batch).logits
        assert (graph(**batch).logits - expected).abs().max() < 0.02 * expected.abs().max()
    nodes = [node for node in openvino.Core().read_model(path).get_ops() if node.get_type_name() == "Constant"]
    shapes = {tuple(node.shape) for node in nodes}
    assert (32, 32) in shapes and (64, 32) not in shapes, "32 of 64 neurons are left"


@pytest.mark.parametrize("pattern", ["neurons", "heads"])
def test_a_reloaded_model_keeps_its_recipe(
    pattern: str, make_bert: Callable[..., PreTrainedModel], train: Any, tmp_path: Path
) -> None:
    recipe = recipe_of(pattern)
    first = save_compressed(train(make_bert(), recipe), tmp_path / "first", recipe)
    reloaded = AutoModelForSequenceClassification.from_pretrained(first)
    second = save_compressed(reloaded, tmp_path / "second", recipe)
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    more = Recipe(pruning=PruningArguments(prune_sparsity=0.75, prune_pattern=pattern))
    if pattern == "neurons":
        with pytest.raises(ValueError, match="too few in"):
            save_compressed(reloaded, tmp_path / "third", more)


def test_other_patterns_leave_all_matrices_as_they_are(
    make_bert: Callable[..., PreTrainedModel], train: Any, tmp_path: Path
) -> None:
    recipe = recipe_of("unstructured")
    model = train(make_bert(), recipe)
    unread(model, BOTH, whole=True)
    folder = save_compressed(model, tmp_path / "packed", recipe)
    assert "widths" not in json.loads((folder / "config.json").read_text())["quantization_config"]


ALONE = """
import sys
sys.modules["hf_compress"] = None  # `import hf_compress` fails.
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
auto_class = {"llama": AutoModelForCausalLM, "bert": AutoModelForSequenceClassification}[sys.argv[2]]
model, info = auto_class.from_pretrained(sys.argv[1], output_loading_info=True)
assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
with torch.no_grad():
    torch.save(model.eval()(torch.arange(20).reshape(2, 10)).logits, sys.argv[3])
"""


@pytest.mark.slow
@pytest.mark.parametrize(("family", "pattern"), [("bert", "neurons"), ("llama", "neurons+heads")])
def test_transformers_alone_loads_a_uniform_model(
    family: str, pattern: str, make_bert: Callable[..., PreTrainedModel], train: Any, tmp_path: Path
) -> None:
    """In a process without hf_compress, from plain safetensors and an ordinary configuration."""
    recipe = recipe_of(pattern, prune_uniform=True)
    if family == "bert":
        model = train(make_bert(), recipe)
    else:
        config = LlamaConfig(**{**SPECIAL, **SIZES, "num_attention_heads": 4}, num_key_value_heads=2, head_dim=8)
        model = AutoModelForCausalLM.from_config(config).eval()
        unread(model, BOTH, whole=True)
    folder = save_compressed(model, tmp_path / "packed", recipe)
    said = json.loads((folder / "config.json").read_text())
    assert "widths" not in said["quantization_config"] and said["uncut_widths"]["intermediate_size"] in (48, 64)
    assert said["intermediate_size"] == said["uncut_widths"]["intermediate_size"] // 2
    if family == "llama":
        assert (said["num_attention_heads"], said["num_key_value_heads"], said["head_dim"]) == (2, 1, 8)
    write_formats(folder, ["dense"])
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": ""}
    run = subprocess.run(
        [sys.executable, "-c", ALONE, str(folder / "dense"), family, str(tmp_path / "logits")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr
    theirs = torch.load(tmp_path / "logits")
    assert torch.allclose(theirs, logits(model), atol=1e-6)


def test_plain_safetensors_are_refused_where_they_cannot_say_it(
    make_bert: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    model = make_bert()
    unread(model, ["neurons"], whole=True)
    folder = save_compressed(model, tmp_path / "widths", recipe_of("neurons"))
    with pytest.raises(ValueError, match="Train with `--prune_uniform`"):
        write_formats(folder, ["dense"])
    folder = quantized(make_bert(), tmp_path / "int8", "int8")
    with pytest.raises(ValueError, match="rounds the inputs"):
        write_formats(folder, ["dense"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prune_pattern": "unstructured"}, "needs a `--prune_pattern` of neurons, heads"),
        ({"prune_pattern": "neurons", "prune_scope": "global"}, "`--prune_scope` must be layer"),
    ],
)
def test_uniform_is_refused_beside_options_that_contradict_it(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PruningArguments(prune_sparsity=0.5, prune_uniform=True, **options)


def test_uniform_heads_of_bert_are_refused_before_training(
    make_bert: Callable[..., PreTrainedModel], train: Any
) -> None:
    model = make_bert()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="`--prune_uniform` needs a configuration that says 1 of 2 heads"):
        train(model, recipe_of("heads", prune_uniform=True))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_width_that_a_configuration_refuses_is_refused() -> None:
    """Llama wants a hidden size that is a multiple of the heads."""
    config = LlamaConfig(**{**SPECIAL, **SIZES, "num_attention_heads": 4}, head_dim=8)
    model = AutoModel.from_config(config)
    check_uniform(model, ["heads"], [2])
    with pytest.raises(ValueError, match="not a multiple"):
        check_uniform(model, ["heads"], [1])


def save_sharded(folder: Path) -> None:
    """Save a model in one of two processes that share its weights."""
    dist.init_process_group("gloo")
    model = bert(**NO_DROPOUT)
    unread(model, BOTH, whole=True)
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.bert.encoder.layer:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    save_compressed(model, folder / "sharded", recipe_of("neurons+heads"))
    dist.destroy_process_group()


@pytest.mark.slow
def test_sharded_weights_give_the_same_file(tmp_path: Path) -> None:
    model = bert(**NO_DROPOUT)
    unread(model, BOTH, whole=True)
    whole = save_compressed(model, tmp_path / "whole", recipe_of("neurons+heads"))
    assert in_two_processes(save_sharded, tmp_path) == [0, 0]
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "sharded" / name).read_bytes() == (whole / name).read_bytes()


def test_groups_of_inputs_with_one_scale_are_refused() -> None:
    with pytest.raises(ValueError, match="consecutive inputs share a scale"):
        recipe_of("neurons", "int4-weight")
