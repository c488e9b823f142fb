"""On CPUs whose int8 kernels saturate, parity is that of exact kernels, and the CPU's own deviation is told apart."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import nn
from transformers import BertForSequenceClassification

from hf_compress.export import descriptor, kernels, runtimes
from hf_compress.export.formats import FORMATS
from hf_compress.export.parity import load, random_batches
from tests.quantized import quantized

pytest.importorskip("onnxscript")
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("machine", "info", "expected"),
    [
        ("x86_64", "flags\t\t: fpu sse2 avx2 avx512f avx512_vnni", False),
        ("x86_64", "flags\t\t: fpu sse2 avx2 avx_vnni", False),
        ("x86_64", "flags\t\t: fpu sse2 avx2 avx512f", True),
        ("aarch64", "Features\t: fp asimd", False),
    ],
)
def test_saturation_is_read_off_the_flags_of_the_cpu(
    machine: str, info: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{info}\n")
    monkeypatch.setattr(kernels, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert kernels.saturates() is expected


class Saturating(nn.Module):
    """A model whose logits are as far off as those of kernels that saturate."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> Any:
        outputs = self.model(**inputs)
        outputs["logits"] = outputs["logits"] * 1.07
        return outputs


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The entries of the session configuration; without the one for exact kernels, the logits are off."""
    found: list[tuple[str, str]] = []
    options, load_graph = onnxruntime.SessionOptions, runtimes.in_onnx_runtime

    class Options(options):  # type: ignore[misc, valid-type]
        def add_session_config_entry(self, name: str, value: str) -> None:
            found.append((name, value))
            super().add_session_config_entry(name, value)

    def loaded(*args: Any, exact: bool = False, **more: Any) -> nn.Module:
        model = load_graph(*args, exact=exact, **more)
        return model if exact else Saturating(model)

    monkeypatch.setattr(onnxruntime, "SessionOptions", Options)
    monkeypatch.setattr("hf_compress.export.onnx_format.in_onnx_runtime", loaded)
    return found


@pytest.mark.slow
def test_a_cpu_that_saturates_is_compared_on_exact_kernels(
    entries: list[tuple[str, str]],
    tiny_bert: BertForSequenceClassification,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = quantized(tiny_bert, tmp_path / "compressed", "int8")
    warnings: list[str] = []
    monkeypatch.setattr(descriptor.logger, "warning", warnings.append)
    for module in (descriptor, runtimes):
        monkeypatch.setattr(module, "saturates", lambda: True)
    parity = FORMATS["onnx"].export(folder)
    assert entries == [("session.x64quantprecision", "1")]
    assert parity.deviation < 0.02
    reference = load(folder)
    with torch.no_grad():
        logits = torch.cat([reference(**batch).logits for batch in random_batches(reference)])
    size, spread = logits.square().mean().sqrt(), (logits - logits.mean(0)).square().mean().sqrt()
    assert parity.native_deviation == pytest.approx(0.07 * float(size / spread), rel=0.1)
    (warning,) = warnings
    for words in ("no VNNI", "saturate", "`session.x64quantprecision` set to 1", "`--quant_bits .=7`"):
        assert words in warning


@pytest.mark.slow
def test_a_cpu_with_exact_kernels_is_not_warned_of(
    entries: list[tuple[str, str]],
    tiny_bert: BertForSequenceClassification,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = quantized(tiny_bert, tmp_path / "compressed", "int8")
    monkeypatch.setattr(descriptor.logger, "warning", pytest.fail)
    monkeypatch.setattr(descriptor, "saturates", lambda: False)
    assert FORMATS["onnx"].export(folder).native_deviation is None


WITHOUT_VNNI = """
import sys
from pathlib import Path
from hf_compress.export import descriptor, runtimes
from hf_compress.export.formats import FORMATS
descriptor.saturates = runtimes.saturates = lambda: True
parity = FORMATS["openvino"].export(sys.argv[1])
print(parity.deviation, parity.native_deviation)
"""


@pytest.mark.skipif("avx512_vnni" not in kernels.cpu_flags(), reason="needs a CPU whose VNNI can be switched off")
@pytest.mark.slow
def test_openvino_without_vnni_saturates_and_is_exact_on_demand(make_bert: Any, tmp_path: Path) -> None:
    """oneDNN, which OpenVINO computes with, leaves VNNI alone on demand: no simulation is closer."""
    pytest.importorskip("openvino")
    torch.manual_seed(0)
    folder = quantized(make_bert(hidden_size=64, intermediate_size=128), tmp_path / "compressed", "int8")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_VNNI, str(folder)], env=environment, capture_output=True, text=True, check=True
    )
    exact, native = map(float, done.stdout.split())
    assert 2 * exact < native
