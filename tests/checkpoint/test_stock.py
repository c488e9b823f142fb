"""Transformers without hf_compress computes the same with `trust_remote_code=True`, and else says what to do."""

import ast
import copy
import io
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    ConvNextConfig,
    GPT2Config,
    PreTrainedModel,
    dynamic_module_utils,
    pipeline,
)
from transformers.quantizers import auto

from hf_compress.checkpoint import hf_compress_loading
from hf_compress.checkpoint.config import FORMAT_VERSION, METHOD, CompressionConfig
from hf_compress.checkpoint.hf_compress_loading import PackedTensor
from hf_compress.checkpoint.reader import MESSAGE_FIELD, READER_NAME, message
from hf_compress.checkpoint.save import save_compressed
from hf_compress.models.heads import find_head
from hf_compress.packing.packed import KINDS, Packed, pack
from hf_compress.recipe import Recipe
from tests.checkpoint.test_format import RECIPES, compressed
from tests.invariants import test_heads, test_models

SOURCE = Path(hf_compress_loading.__file__)
IDS = torch.arange(20).reshape(2, 10)


@pytest.fixture
def stock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Transformers as it is in a process that has not imported hf_compress, with its own cache of modules."""
    for mapping in ("AUTO_QUANTIZER_MAPPING", "AUTO_QUANTIZATION_CONFIG_MAPPING"):
        monkeypatch.setattr(
            auto, mapping, {name: kind for name, kind in getattr(auto, mapping).items() if name != METHOD}
        )
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def folder(make_bert: Callable[..., PreTrainedModel], tmp_path: Path) -> Path:
    return compressed(make_bert(), RECIPES["pruned int8"], tmp_path / "packed")


def weights(model: PreTrainedModel) -> dict[str, Tensor]:
    ours = ("input_range", "weight_step")
    return {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(ours)}


def alike(model: PreTrainedModel, ours: PreTrainedModel) -> bool:
    """Whether both have the same weights and logits, bit for bit."""
    first, second = weights(model), weights(ours)
    with torch.no_grad():
        logits, expected = (one.eval()(input_ids=IDS).logits for one in (model, ours))
    return (
        first.keys() == second.keys()
        and all(torch.equal(first[name], second[name]) and first[name].dtype == second[name].dtype for name in first)
        and torch.equal(logits, expected)
    )


def with_and_without(folder: Path, request: pytest.FixtureRequest, auto_class: Any, **options: Any) -> Any:
    """The model loaded by hf_compress, and by Transformers with the file in the folder."""
    ours = auto_class.from_pretrained(folder, **options)
    request.getfixturevalue("stock")
    model = auto_class.from_pretrained(folder, trust_remote_code=True, **options)
    assert type(model) is type(ours) and type(model.config.quantization_config) is not CompressionConfig
    return model, ours


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_file_gives_the_same_bits_as_hf_compress(
    recipe: str, dtype: torch.dtype, make_bert: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    # Rows of 72 have a last group of 8, and 4000 of them are two chunks.
    sizes = {"hidden_size": 72, "intermediate_size": 100, "vocab_size": 4000}
    folder = compressed(make_bert(**sizes), RECIPES[recipe], tmp_path / "packed")
    model, ours = with_and_without(folder, request, AutoModelForSequenceClassification, dtype=dtype)
    assert alike(model, ours)


OWN_ATTENTION = ("deberta-v2", "mpnet")


def families() -> list[Any]:
    """Every architecture and every kind of head that is tested, each once: its configuration and auto class."""
    found = {(case.config, case.auto_class): case for case in test_models.CASES}
    cases = [
        (key[0], case.auto_class, test_models.CONFIGS[case.config](**case.changes)) for key, case in found.items()
    ]
    cases += [(case.name, case.auto_class, case.config) for case in test_heads.CASES]
    return [pytest.param(auto_class, config, id=f"{name}-{auto_class.__name__}") for name, auto_class, config in cases]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["int8", "int8-attention"])
@pytest.mark.parametrize(("auto_class", "config"), families())
def test_every_family_and_head_computes_the_same(
    auto_class: Any, config: Any, scheme: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = auto_class.from_config(copy.deepcopy(config))
    if scheme == "int8-attention" and config.model_type in OWN_ATTENTION:
        pytest.skip(f"{config.model_type} computes its attention without Transformers' interface")
    folder = compressed(model, RECIPES[scheme], tmp_path / "packed")
    loaded, ours = with_and_without(folder, request, auto_class)
    head = find_head(ours)
    batch = head.example_batch(ours, rows=3, length=8)
    with torch.no_grad():
        logits, expected = (head.logits(one.eval()(**batch)) for one in (loaded, ours))
    assert weights(loaded).keys() == weights(ours).keys()
    assert all(torch.equal(tensor, weights(ours)[name]) for name, tensor in weights(loaded).items())
    assert all(torch.equal(one, other) for one, other in zip(logits, expected, strict=True))


@pytest.mark.parametrize("recipe", ["int8", "int8-dynamic", "int4-weight", "int8-attention", "mixed", "steps"])
def test_it_reads_transposed_and_tied_weights_alike(
    recipe: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    config = GPT2Config(vocab_size=29, n_positions=32, n_embd=32, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    folder = compressed(AutoModelForCausalLM.from_config(config), RECIPES[recipe], tmp_path / "packed")
    model, ours = with_and_without(folder, request, AutoModelForCausalLM)
    assert alike(model, ours)
    assert model.lm_head.weight is model.transformer.wte.weight


@pytest.mark.parametrize("recipe", ["int8", "int8-dynamic", "int4-weight", "steps"])
def test_it_reads_convolutions_alike(recipe: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    config = ConvNextConfig(depths=[1, 1], hidden_sizes=[16, 32], num_stages=2)
    folder = compressed(AutoModelForImageClassification.from_config(config), RECIPES[recipe], tmp_path / "packed")
    model, ours = with_and_without(folder, request, AutoModelForImageClassification)
    batch = find_head(ours).example_batch(ours)
    with torch.no_grad():
        assert torch.equal(model.eval()(**batch).logits, ours.eval()(**batch).logits)


def test_it_reads_shards_alike(folder: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    shards = tmp_path / "shards"
    AutoModelForSequenceClassification.from_pretrained(folder).save_pretrained(shards, max_shard_size="4KB")
    assert len(list(shards.glob("*.safetensors"))) > 2
    assert alike(*with_and_without(shards, request, AutoModelForSequenceClassification))


def test_a_folder_that_any_transformers_reads_has_no_file(make_bert: Any, tmp_path: Path) -> None:
    folder = save_compressed(make_bert(), tmp_path / "dense", Recipe())
    assert not (folder / READER_NAME).exists() and MESSAGE_FIELD not in (folder / "config.json").read_text()


@pytest.mark.parametrize("dtype", KINDS, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 5), (2, 3, 4), (600, 700)], ids=str)
@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.97])
def test_it_decodes_every_kind_of_tensor(shape: tuple[int, ...], zeros: float, dtype: torch.dtype) -> None:
    drawn = torch.randn(shape) * 20 * (torch.rand(shape) >= zeros)
    tensor = drawn.abs().to(dtype) if dtype in (torch.uint8, torch.bool) else drawn.to(dtype)
    packed = pack(tensor, "a.weight")
    decoded = PackedTensor("a.weight", packed).weight()
    assert decoded.shape == tensor.shape and torch.equal(decoded, Packed.open(packed, "a.weight").values())


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group", [None, 16, 24], ids=["row", "16", "24"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("zeros", [0.0, 0.6, 0.95])
def test_it_decodes_integers_with_scales(bits: int, group: int | None, transposed: bool, zeros: float) -> None:
    rows, width, most = 40, 64, 2 ** (bits - 1) - 1
    integers = (torch.randn(rows, width) * most / 3).round().clamp(-most, most) * (torch.rand(rows, width) >= zeros)
    scale = torch.rand(rows, -(-width // (group or width))).add(0.01).bfloat16().float()
    packed = pack(integers.to(torch.int8), "a.weight", scale, group, transposed)
    expected = Packed.open(packed, "a.weight").weight(torch.float32)
    assert torch.equal(PackedTensor("a.weight", packed).weight(), expected)


@pytest.mark.parametrize("shape", [(40, 3, 5), (40, 2, 3, 3), (40, 1, 7, 7)], ids=str)
@pytest.mark.parametrize("group", [None, 8], ids=["row", "8"])
def test_it_decodes_integers_of_convolutions(shape: tuple[int, ...], group: int | None) -> None:
    integers = (torch.randn(shape) * 40).round().clamp(-127, 127)
    width = integers[0].numel()
    scale = torch.rand(40, -(-width // (group or width))).add(0.01).bfloat16().float()
    packed = pack(integers.to(torch.int8), "a.weight", scale, group)
    expected = integers * scale.repeat_interleave(group or width, 1)[:, :width].reshape(shape)
    for found in (PackedTensor("a.weight", packed).weight(), Packed.open(packed, "a.weight").weight(torch.float32)):
        assert torch.equal(found, expected)


def test_a_flipped_bit_is_refused(folder: Path, stock: None) -> None:
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-10] ^= 1
    file.write_bytes(data)
    with pytest.raises(
        ValueError, match="the checksum of 'classifier.weight' differs. Download the whole folder again"
    ):
        AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("version", FORMAT_VERSION + 1, f"config.json names version {FORMAT_VERSION + 1}, this file reads"),
        ("pruned", [], "are not of one saving"),
        ("quantized", ["bert.nowhere"], "has no layer bert.nowhere: load the class that was saved"),
    ],
)
def test_an_edited_configuration_is_refused(field: str, value: Any, said: str, folder: Path, stock: None) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"][field] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=said):
        AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)


def test_another_class_than_the_saved_one_is_refused(folder: Path, stock: None) -> None:
    with pytest.raises(ValueError, match="BertModel has no layer bert"):
        AutoModel.from_pretrained(folder, trust_remote_code=True)


def test_without_zstandard_the_error_names_it(folder: Path, monkeypatch: pytest.MonkeyPatch, stock: None) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "compression", None)  # type: ignore[arg-type]
    with pytest.raises(ImportError, match="Run `pip install zstandard`"):
        AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)


@pytest.mark.parametrize("deleted", [(), ("quantization_config",), ("quantization_config", "auto_map")], ids=len)
@pytest.mark.parametrize("options", [{}, {"ignore_mismatched_sizes": True}], ids=["", "mismatched"])
def test_without_trust_the_error_says_what_to_do(
    deleted: tuple[str, ...], options: dict[str, Any], folder: Path, stock: None
) -> None:
    """Also after the advice of Transformers, to delete `quantization_config`: never a model of random weights."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({name: config[name] for name in config if name not in deleted}))
    for auto_class in (AutoModelForSequenceClassification, BertForSequenceClassification):
        with pytest.raises(ValueError) as caught:
            auto_class.from_pretrained(folder, **options)
        assert message() in str(caught.value)
    assert "trust_remote_code=True" in message() and "import hf_compress" in message() and "pip install" in message()


def test_without_the_message_the_shapes_are_still_refused(folder: Path, stock: None) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"], config[MESSAGE_FIELD]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForSequenceClassification.from_pretrained(folder)


@pytest.mark.parametrize("trust", [None, False, True])
def test_with_hf_compress_imported_it_reads_the_folder(trust: bool | None, folder: Path, stock: None) -> None:
    auto.AUTO_QUANTIZER_MAPPING[METHOD], auto.AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = QUANTIZER, CompressionConfig
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=trust)
    assert isinstance(model.config.quantization_config, CompressionConfig)
    assert not {MESSAGE_FIELD, "auto_map"} & vars(model.config).keys()


QUANTIZER = auto.AUTO_QUANTIZER_MAPPING[METHOD]


@pytest.mark.parametrize(
    "copied", [lambda model: model, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))]
)
def test_saving_a_loaded_model_keeps_the_file(
    copied: Callable[[PreTrainedModel], PreTrainedModel], folder: Path, tmp_path: Path
) -> None:
    model = copied(AutoModelForSequenceClassification.from_pretrained(folder))
    model.save_pretrained(tmp_path / "again")
    for name in ("config.json", "model.safetensors", READER_NAME):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes(), name


def test_a_copy_saves_its_own_weights(folder: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.classifier.bias.fill_(3.0)
    other.save_pretrained(tmp_path / "again")
    assert torch.equal(
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "again").classifier.bias, torch.full((2,), 3.0)
    )


def test_a_model_that_the_file_has_loaded_is_not_saved(folder: Path, stock: None, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
    with pytest.raises(ValueError, match="To save one, load it with hf_compress"):
        model.save_pretrained(tmp_path / "again")
    assert not model.hf_quantizer.is_trainable


def test_its_rounding_survives_copying_and_pickling(folder: Path, stock: None) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
    stored = io.BytesIO()
    torch.save(model, stored)
    stored.seek(0)
    for other in (copy.deepcopy(model), torch.load(stored, weights_only=False)):
        assert alike(other, model)


def test_the_map_of_a_model_with_its_own_code_is_kept(make_bert: Any, tmp_path: Path) -> None:
    model = make_bert()
    model.config.auto_map = {"AutoConfig": "configuration_mine.MyConfig", "AutoModel": "modeling_mine.MyModel"}
    folder = compressed(model, RECIPES["pruned"], tmp_path / "packed")
    config = json.loads((folder / "config.json").read_text())
    assert config["auto_map"] == model.config.auto_map and config[MESSAGE_FIELD] == message()
    assert not (folder / READER_NAME).exists()


def test_the_file_is_the_source_and_does_nothing_else(folder: Path) -> None:
    assert (folder / READER_NAME).read_bytes() == SOURCE.read_bytes()
    tree = ast.parse(SOURCE.read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    packages = {str(module).partition(".")[0] for module in modules}
    allowed = {"numpy", "torch", "safetensors", "transformers", "zstandard"}
    allowed |= {"collections", "compression", "json", "math", "re", "struct", "sys", "typing", "zlib"}
    assert packages <= allowed
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not called & {"eval", "exec", "compile", "open", "__import__", "input", "torch.load"}
    assert hf_compress_loading.FORMAT_VERSION == FORMAT_VERSION and hf_compress_loading.METHOD == METHOD


def test_the_configuration_loads_without_any_of_it(folder: Path, stock: None) -> None:
    """Tokenizers and other tools read config.json without trusting the folder."""
    config = AutoConfig.from_pretrained(folder)
    assert config.model_type == "bert" and config.quantization_config["quant_method"] == METHOD


WITHOUT = """
import sys
sys.modules["hf_compress"] = None  # `import hf_compress` fails.
from transformers import AutoModelForSequenceClassification, pipeline
folder, trust = sys.argv[1], {"trust_remote_code": True} if sys.argv[2] == "trust" else {}
print(pipeline("text-classification", model=folder, **trust)("the film was warm", top_k=None))
"""


@pytest.mark.slow
def test_a_process_without_hf_compress_runs_a_pipeline(folder: Path, tiny_tokenizer: Any, tmp_path: Path) -> None:
    tiny_tokenizer.save_pretrained(folder)
    expected = pipeline("text-classification", model=str(folder))("the film was warm", top_k=None)
    environment = os.environ | {"HF_HOME": str(tmp_path / "home")}
    runs = [
        subprocess.run(
            [sys.executable, "-c", WITHOUT, folder, trust],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        for trust in ("trust", "no")
    ]
    assert runs[0].returncode == 0, runs[0].stderr
    assert runs[0].stdout.strip() == str(expected)
    assert runs[1].returncode != 0 and runs[1].stderr.strip().endswith(message())


@pytest.mark.slow
@pytest.mark.parametrize("places", ["cpu", {"bert": "disk", "classifier": "cpu"}], ids=["cpu", "disk"])
def test_it_loads_where_transformers_puts_the_weights(
    places: Any, folder: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    ours = AutoModelForSequenceClassification.from_pretrained(folder)
    request.getfixturevalue("stock")
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, trust_remote_code=True, device_map=places, offload_folder=tmp_path / "offload"
    )
    with torch.no_grad():
        assert torch.equal(model.eval()(IDS).logits, ours.eval()(IDS).logits)
