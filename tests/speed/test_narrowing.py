"""A graph with fewer neurons and heads computes what zeros would, on inputs of the model's kind, in both runtimes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hf_compress import QuantizationArguments
from hf_compress.export import in_onnx_runtime, in_openvino
from hf_compress.goals import SPEED_RUNTIMES
from hf_compress.models.examples import shape_in_words
from hf_compress.speed import measure_table, measuring
from hf_compress.speed.graphs import Graphs
from tests.architectures.families import FAMILIES
from tests.speed.test_measuring import zeroed

INT8 = QuantizationArguments(quant_scheme="int8")
KINDS = ("neurons", "heads")
# An export takes most of the time, so few: a class token, and a mask of sounds.
NAMES = ("vit", "whisper")
INPUTS = {"vit": "pixel_values", "whisper": "input_features"}
BATCH = {
    "bert": "2 x 8 tokens",
    "vit": "2 x 8 x 8 pixels",
    "wav2vec2": "2 x 90 samples",
    "whisper": "2 x 8 x 20 values",
}


def built(name: str) -> Any:
    torch.manual_seed(0)
    (family,) = (one for one in FAMILIES if one.name == name)
    return family.auto_class.from_config(family.config())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_graph_with_fewer_heads_computes_what_zeros_would(name: str, tmp_path: Path) -> None:
    model = built(name)
    graphs = Graphs(type(model), model.config, INT8, tmp_path, KINDS)
    # Other numbers in each block: shapes belong to their block.
    kept = {block.name: max(1, block.count // 4 * (1 + place % 2)) for place, block in enumerate(graphs.blocks)}
    paths = graphs.write(kept), graphs.whole, zeroed(graphs, kept, tmp_path / "zeroed.onnx")
    for run in (in_onnx_runtime, in_openvino):
        with torch.no_grad():
            narrow, whole, same = (run(path, graphs.config)(**graphs.batch(2, 8)).logits for path in paths)
        assert torch.allclose(narrow, same, atol=1e-4)
        assert (narrow - whole).abs().max() > 10 * (narrow - same).abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("name", INPUTS)
def test_times_are_measured_on_inputs_of_the_kind(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, set[str]]] = []
    call = measuring._call

    def watched(path: Path, config: Any, inputs: Any, runtime: str) -> Any:
        seen.append((runtime, {*inputs}))
        return call(path, config, inputs, runtime)

    monkeypatch.setattr(measuring, "_call", watched)
    monkeypatch.setattr(measuring, "ROUNDS", (2, 2))
    model = built(name)
    table = measure_table(type(model), model.config, INT8, KINDS, batch=2, runtime="openvino")
    assert {runtime for runtime, _ in seen} == {"openvino"}
    assert all(INPUTS[name] in inputs for _, inputs in seen)
    assert table.shape == BATCH[name]
    assert table.runtime.startswith("OpenVINO 20")


@pytest.mark.parametrize("name", BATCH)
def test_the_shape_of_a_batch_is_said_in_words(name: str) -> None:
    model = built(name)
    assert shape_in_words(model.config, model.main_input_name, 2, 8) == BATCH[name]


def test_every_runtime_of_the_option_is_known() -> None:
    assert tuple(measuring.RUNTIMES) == SPEED_RUNTIMES
