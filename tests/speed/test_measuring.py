"""Graphs with fewer neurons and heads compute what they should, and their times make a table."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertForSequenceClassification

from hf_compress import QuantizationArguments
from hf_compress.export import in_onnx_runtime
from hf_compress.prune.latency import LatencyTable
from hf_compress.speed import measure_table, measuring
from hf_compress.speed.graphs import Graphs
from tests.tiny import bert

pytestmark = pytest.mark.slow
INT8 = QuantizationArguments(quant_scheme="int8")
KINDS = ("neurons", "heads")
KEPT = {"bert.encoder.layer.0": 5, "bert.encoder.layer.1.attention": 1}


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    """The graphs of a tiny BERT."""
    return Graphs(
        BertForSequenceClassification,
        bert(initializer_range=0.5).config,
        INT8,
        tmp_path_factory.mktemp("graphs"),
        KINDS,
    )


def zeroed(graphs: Graphs, kept: dict[str, int], path: Path) -> Path:
    """Write the whole graph with zeros where the groups that go are read: an oracle for the narrow one."""
    import onnx_ir as ir

    graph = ir.load(graphs.whole)
    for block in graphs.blocks:
        part = block.consumer
        value = graph.graph.initializers[f"model.{part.target.name}.weight"]
        integers = value.const_value.numpy().copy()
        integers[part.indices()[kept.get(block.name, block.count) :].flatten().numpy()] = 0
        value.const_value = ir.tensor(integers, name=value.name)
    ir.save(graph, path)
    return path


def test_a_narrow_graph_computes_what_zeros_would(graphs: Graphs, tmp_path: Path) -> None:
    inputs = graphs.batch(2, 16)
    with torch.no_grad():
        narrow, whole, same = (
            in_onnx_runtime(path, graphs.config, exact=True)(**inputs).logits
            for path in (graphs.write(KEPT), graphs.whole, zeroed(graphs, KEPT, tmp_path / "zeroed.onnx"))
        )
    assert torch.allclose(narrow, same, atol=1e-4)
    assert not torch.allclose(narrow, whole, atol=1e-3)


def test_a_narrow_graph_has_fewer_integers(graphs: Graphs) -> None:
    import onnx_ir as ir

    kept = ir.load(graphs.write(KEPT)).graph.initializers
    assert tuple(kept["model.bert.encoder.layer.0.intermediate.dense.weight"].shape) == (32, 5)
    assert tuple(kept["model.bert.encoder.layer.1.attention.output.dense.weight"].shape) == (16, 32)
    assert tuple(kept["model.bert.encoder.layer.1.intermediate.dense.weight"].shape) == (32, 64)


def test_times_never_fall_as_more_groups_stay(graphs: Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "Graphs", lambda *given: graphs)
    table = measure_table(BertForSequenceClassification, graphs.config, INT8, KINDS, length=32)
    assert {(one.kind, one.count, one.blocks) for one in table.courses} == {("neurons", 64, 2), ("heads", 2, 2)}
    for course in table.courses:
        assert course.kept[-1] == course.count
        assert course.shares[-1] == 1
        assert (np.diff(course.shares) >= 0).all()
        assert (np.diff(course.kept) > 0).all()
    assert table.most >= 1
    assert table.seconds > 0
    assert LatencyTable.from_dict(table.to_dict()) == table


def test_a_batch_that_does_not_fit_into_memory_is_refused(graphs: Graphs) -> None:
    with pytest.raises(ValueError, match=r"does not run on 1000000000 x 16 tokens .*Lower `--compress_speedup_batch`"):
        measuring._timed(graphs, {}, 10**9, 16)
