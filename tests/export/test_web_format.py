"""The format `web`: a graph whose weights are made from the packed file, and the list that says how."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from hf_compress.export.formats import write_formats
from hf_compress.export.onnx_format import PATH as ONNX_PATH
from hf_compress.export.onnx_nodes import _pairs
from hf_compress.export.parity import load, random_batches
from hf_compress.export.runtimes import in_onnx_runtime
from hf_compress.export.web_format import INLINE, PATH, data_of, packed_weights, read_web
from hf_compress.export.web_parts import ALIGNMENT, HALVES, NIBBLES, Part, find_parts, places
from hf_compress.packing.packed import Packed, pack
from tests.quantized import quantized

ml_dtypes = pytest.importorskip("ml_dtypes")
onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxscript")

SIZES: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 80,
}
SCHEMES = [["int8"], ["int8", "embeddings=4"], ["int4-weight"]]


def opened(integers: list[list[int]], scale: float = 0.5) -> Packed:
    """A packed tensor of these integers, with one scale for all rows."""
    values = torch.tensor(integers, dtype=torch.int8)
    return Packed.open(pack(values, "weight", torch.full((len(values), 1), scale)), "weight")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that gives the folder of a tiny BERT in a scheme, with the formats `onnx` and `web`."""
    folders: dict[str, Path] = {}

    def run(*options: str | None) -> Path:
        if str(options) not in folders:
            torch.manual_seed(0)
            model = BertForSequenceClassification(BertConfig(**SIZES))
            folder = quantized(model, tmp_path_factory.mktemp("web") / "compressed", *options)
            write_formats(folder, ["onnx", "web"])
            folders[str(options)] = folder
        return folders[str(options)]

    return run


def listed(folder: Path) -> Any:
    return json.loads((folder / PATH).with_suffix(".json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("options", SCHEMES, ids=str)
def test_the_graph_without_weights_computes_the_same(options: list[str | None], exported: Callable[..., Path]) -> None:
    folder = exported(*options)
    reference = load(folder)
    whole = in_onnx_runtime(folder / ONNX_PATH, reference.config)
    without = read_web(folder / PATH, reference)
    for batch in random_batches(reference):
        assert torch.equal(without(**batch).logits, whole(**batch).logits)


@pytest.mark.slow
@pytest.mark.parametrize("options", SCHEMES, ids=str)
def test_every_large_weight_comes_from_the_packed_file(
    options: list[str | None], exported: Callable[..., Path]
) -> None:
    folder = exported(*options)
    graph = onnx.load(folder / PATH, load_external_data=False).graph
    inside = [tensor for tensor in graph.initializer if tensor.data_location != onnx.TensorProto.EXTERNAL]
    # The numbers of positions are no weight, and not in the packed file.
    large = [tensor for tensor in inside if len(tensor.raw_data) >= INLINE]
    assert all(tensor.data_type == onnx.TensorProto.INT64 for tensor in large)
    data = data_of(listed(folder), packed_weights(folder))
    whole = {tensor.name: tensor.raw_data for tensor in onnx.load(folder / ONNX_PATH).graph.initializer}
    for tensor in graph.initializer:
        where = {entry.key: entry.value for entry in tensor.external_data}
        if where:
            begin, size = int(where["offset"]), int(where["length"])
            assert bytes(data[begin : begin + size]) == whole[tensor.name], tensor.name


@pytest.mark.slow
def test_files_of_two_models_are_refused(exported: Callable[..., Path], tmp_path: Path) -> None:
    folder = shutil.copytree(exported("int8"), tmp_path / "compressed")
    reference, graph = load(folder), (folder / PATH).read_bytes()
    (folder / PATH).write_bytes(graph[:-1] + b"\0")
    with pytest.raises(ValueError, match="is not the graph that graph.json describes"):
        read_web(folder / PATH, reference)
    (folder / PATH).write_bytes(graph)
    shutil.copy(exported("int8", "embeddings=4") / "model.safetensors", folder)
    with pytest.raises(ValueError, match="belongs to other weights"):
        read_web(folder / PATH, reference)


def test_a_dense_checkpoint_has_no_packed_file(tiny_bert: BertForSequenceClassification, tmp_path: Path) -> None:
    tiny_bert.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Compress the model .* or write `onnx`"):
        write_formats(tmp_path, ["web"])
    assert not (tmp_path / "web").exists()


@pytest.mark.parametrize("width", [6, 7])
def test_integers_share_bytes_as_the_graph_reads_them(width: int) -> None:
    integers = torch.randint(-8, 8, (5, width), generator=torch.Generator().manual_seed(0), dtype=torch.int8)
    packed = opened(integers.tolist())
    assert np.array_equal(Part("weight", "values", pack=HALVES).data(packed), _pairs(integers).numpy())
    narrow = Part("weight", "values", transposed=True, pack=NIBBLES).data(packed)
    assert narrow.tobytes() == ir.tensor(integers.t().numpy().astype(ml_dtypes.int4)).tobytes()


def test_constants_are_found_in_every_layout() -> None:
    packed = opened([[1, -2, 3], [-8, 7, 0]])
    made = {
        "values": torch.tensor([[1, -2, 3], [-8, 7, 0]], dtype=torch.int8),
        "columns": torch.tensor([[1, -8], [-2, 7], [3, 0]], dtype=torch.int8),
        "scales": torch.tensor([0.5, 0.5]),
        "weight": torch.tensor([[0.5, -1.0, 1.5], [-4.0, 3.5, 0.0]]),
        "other": torch.tensor([1.0, 2.0, 3.0]),
    }
    found = find_parts({name: tensor.contiguous().numpy().tobytes() for name, tensor in made.items()}, [packed])
    assert found == {
        "values": Part("weight", "values"),
        "columns": Part("weight", "values", transposed=True),
        "scales": Part("weight", "scales"),
        "weight": Part("weight", "weight"),
    }


def test_equal_constants_share_one_place() -> None:
    packed = opened([[1, -2, 3], [4, 5, 6]])
    data = packed.values().numpy().tobytes()
    found = find_parts({"one": data, "other": data}, [packed])
    assert found["one"] == found["other"]


def test_constants_begin_where_kernels_read_vectors() -> None:
    sizes = {Part("weight", "values"): 100, Part("weight", "scales"): 8, Part("bias", "values"): 3}
    begins, size = places(sizes)
    assert list(begins.values()) == [0, 2 * ALIGNMENT, 3 * ALIGNMENT]
    assert size == 3 * ALIGNMENT + 3
