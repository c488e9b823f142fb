"""Where kernels take the place of eager functions: on a GPU, after a check, and with a fallback that says why."""

import logging
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from hf_compress.layers import fused
from hf_compress.layers.affine import round_in_bounds
from hf_compress.layers.compressed import CompressedLinear
from hf_compress.layers.grids import SCHEMES, Grid, round_rows
from hf_compress.layers.steps import fake_quantize_steps, round_to_steps
from hf_compress.layers.turning import turn

ROW = Grid(8, "row")
CPU = torch.device("cpu")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CPU stand for a GPU that nothing is known about."""
    monkeypatch.setattr(fused, "may_fuse", lambda values: not (values.requires_grad and torch.is_grad_enabled()))
    monkeypatch.setattr(fused, "_kernels", {})
    monkeypatch.setattr(fused, "_off", {})


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    monkeypatch.setattr(fused.logger, "propagate", True)
    caplog.set_level(logging.WARNING)
    return lambda: [record.getMessage() for record in caplog.records]


def with_kernels(monkeypatch: pytest.MonkeyPatch, **kernels: Any) -> None:
    monkeypatch.setitem(sys.modules, fused.KERNELS, SimpleNamespace(**kernels))  # type: ignore[misc]


class Counted:
    """A kernel that calls the eager function, and counts."""

    def __init__(self, name: str) -> None:
        self.function, samples = fused.FUNCTIONS[name]
        self.calls, self.samples = 0, sum(1 for _ in samples(torch.float32))

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        return self.function(*args)


def test_a_kernel_is_compared_once_for_each_dtype(
    device: None, monkeypatch: pytest.MonkeyPatch, said: Callable[[], list[str]]
) -> None:
    kernel = Counted("round_rows")
    with_kernels(monkeypatch, round_rows=kernel)
    values = torch.randn(3, 4)
    for count in (1, 2):
        assert torch.equal(round_rows(values, ROW), fused.FUNCTIONS["round_rows"][0](values, ROW))
        assert kernel.calls == kernel.samples + count
    round_rows(values.bfloat16(), ROW)
    assert kernel.calls == 2 * kernel.samples + 3
    assert said() == []


def changed(values: Tensor, grid: Grid) -> Tensor:
    result: Tensor = fused.FUNCTIONS["round_rows"][0](values, grid).clone()
    result.view(-1)[-1] = torch.nextafter(result.view(-1)[-1], torch.tensor(9.0))
    return result


def raises(error: Exception) -> Callable[..., Tensor]:
    def kernel(*args: Any) -> Tensor:
        raise error

    return kernel


@pytest.mark.parametrize(
    ("kernel", "why"),
    [
        (changed, "the kernel `round_rows` gives other bits for torch.float32 than its operations do"),
        (lambda values, grid: None, "gives other bits"),
        (raises(RuntimeError("Failed to find C compiler")), "Failed to find C compiler"),
        (raises(subprocess.CalledProcessError(1, "gcc")), "gcc"),
    ],
)
def test_a_kernel_that_differs_or_fails_is_left_with_a_warning(
    kernel: Any, why: str, device: None, monkeypatch: pytest.MonkeyPatch, said: Callable[[], list[str]]
) -> None:
    other = Counted("round_in_bounds")
    with_kernels(monkeypatch, round_rows=kernel, round_in_bounds=other)
    values = torch.randn(3, 4)
    for _ in range(2):
        assert torch.equal(round_rows(values, ROW), fused.FUNCTIONS["round_rows"][0](values, ROW))
    (message,) = said()
    assert message.startswith("Rounding on cpu takes one launch for each operation") and why in message
    sample = next(iter(fused.FUNCTIONS["round_in_bounds"][1](torch.float32)))
    round_in_bounds(*sample)
    assert other.calls == 0 and len(said()) == 1


def test_without_triton_everything_is_computed_eagerly(
    device: None, monkeypatch: pytest.MonkeyPatch, said: Callable[[], list[str]]
) -> None:
    monkeypatch.delitem(sys.modules, fused.KERNELS, raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)  # type: ignore[arg-type]
    values = torch.randn(3, 4)
    assert torch.equal(round_rows(values, ROW), fused.FUNCTIONS["round_rows"][0](values, ROW))
    (message,) = said()
    assert "import of triton halted" in message


def test_a_kernel_that_fails_later_is_left_too(
    device: None, monkeypatch: pytest.MonkeyPatch, said: Callable[[], list[str]]
) -> None:
    kernel = Counted("round_rows")
    with_kernels(monkeypatch, round_rows=kernel)
    values = torch.randn(3, 4)
    round_rows(values, ROW)
    monkeypatch.setattr(fused, "_kernels", {("round_rows", CPU, torch.float32): raises(RuntimeError("no registers"))})
    assert torch.equal(round_rows(values, ROW), fused.FUNCTIONS["round_rows"][0](values, ROW))
    assert len(said()) == 1 and "no registers" in said()[0]


def test_memory_that_runs_out_is_no_fault_of_a_kernel(device: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with_kernels(monkeypatch, round_rows=raises(torch.OutOfMemoryError("CUDA out of memory")))
    with pytest.raises(torch.OutOfMemoryError):
        round_rows(torch.randn(3, 4), ROW)
    assert fused._off == {}


def test_compilers_and_gradients_of_gradients_see_operations(device: None, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Counted("round_to_steps")
    with_kernels(monkeypatch, round_to_steps=kernel, mask_by_steps=fused.FUNCTIONS["mask_by_steps"][0])
    values, step = torch.randn(3, 4, requires_grad=True), torch.ones(3, 1)
    round_to_steps(values, step)
    compiled = torch.compile(fake_quantize_steps, backend="aot_eager", fullgraph=True)
    compiled(values, step).sum().backward()
    assert kernel.calls == 0
    (slope,) = torch.autograd.grad(fake_quantize_steps(values, step).square().sum(), values, create_graph=True)
    assert kernel.calls == kernel.samples + 1 and slope.requires_grad


def test_a_process_can_compute_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGpu(Tensor):
        is_cuda = True

    values = torch.randn(2).as_subclass(OnGpu)
    monkeypatch.setattr(fused, "PLAIN", (OnGpu,))
    assert fused.may_fuse(values)
    with fused.eagerly(), ThreadPoolExecutor(1) as pool:
        assert not fused.may_fuse(values)
        assert not pool.submit(fused.may_fuse, values).result()
    assert fused.may_fuse(values)


@pytest.mark.parametrize(
    "values",
    [torch.randn(2), torch.randn(2, dtype=torch.float64, device="meta"), torch.randn(2, device="meta")],
    ids=["CPU", "float64", "meta"],
)
def test_elsewhere_than_on_a_gpu_no_kernel_computes(values: Tensor) -> None:
    assert not fused.may_fuse(values)


def test_only_a_first_use_imports_the_kernels() -> None:
    package = Path(fused.__file__).parents[1]
    sources = {path.relative_to(package).as_posix(): path.read_text("utf-8") for path in package.rglob("*.py")}
    naming = {name for name, text in sources.items() if "layers.kernels" in text or "import triton" in text}
    assert naming == {"layers/fused.py", "layers/kernels.py"}
    assert "import hf_compress.layers.kernels" not in sources["layers/fused.py"]


class Launches(TorchDispatchMode):
    """Counts the operations that a GPU computes in a launch of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not (func.is_view or "empty" in func._schema.name or func._schema.name == "aten::detach")
        return func(*args, **(kwargs or {}))


def launches(scheme: str | None, *, moving: bool, steps: bool, embedding: bool) -> int:
    """Launches of the second forward and backward of a layer between two changes of its range, as if on a GPU."""
    grids = SCHEMES[scheme or "int8"]
    with torch.device("meta"):
        layer: Any = nn.Embedding(99, 128) if embedding else nn.Linear(128, 48)
        values: Any = torch.ones(3, 5, dtype=torch.int64) if embedding else torch.randn(3, 5, 128, requires_grad=True)
        upstream = torch.randn(3, 5, 128 if embedding else 48)
        extremes = torch.tensor([-1.0, 2.0])
    if scheme is not None:
        layer = turn(layer, "embedding" if embedding else "linear", grids.of(embedding), grids.activation)
        layer.quantizing, layer.observing, layer.step_range = True, moving, extremes
        layer.keep_step(layer.weight.detach()[:, :1] if steps else None)
        if layer.has_range and not moving:
            layer(values)
    with Launches() as seen:
        layer(values).backward(upstream)
    return seen.count


@pytest.mark.parametrize(
    ("scheme", "more", "eager", "fused_"),
    [
        ("int8", {"moving": True}, 43, 7),
        ("int8", {}, 21, 3),
        ("int8", {"moving": True, "steps": True}, 40, 8),
        ("int8-dynamic", {}, 24, 2),
        ("int8-weight", {}, 12, 1),
        ("int4-weight", {}, 15, 1),
        ("int8", {"embedding": True}, 12, 1),
        ("int8", {"embedding": True, "steps": True}, 10, 3),
    ],
)
def test_with_kernels_a_rounded_layer_takes_few_launches(
    scheme: str, more: dict[str, bool], eager: int, fused_: int, device: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than a plain layer, forward and backward together. The counts are those of docs/benchmarks.md."""
    given: Any = {"moving": False, "steps": False, "embedding": False} | more
    monkeypatch.setattr(fused, "_compared", lambda name, like: partial(in_one_launch, fused.FUNCTIONS[name][0]))
    plain = launches(None, **given)
    found = launches(scheme, **given) - plain
    assert fused._off == {}
    monkeypatch.setattr(fused, "may_fuse", lambda values: False)
    assert (launches(scheme, **given) - plain, found) == (eager, fused_)


def in_one_launch(function: Callable[..., Any], *args: Any) -> Any:
    """The result of a function, counted as one operation."""
    with _disable_current_modes():
        result = function(*args)
    torch.zeros((), device="meta")
    return result


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", fused.DTYPES, ids=str)
@pytest.mark.parametrize("name", fused.FUNCTIONS)
def test_on_a_gpu_a_kernel_gives_the_bits_of_its_function(name: str, dtype: torch.dtype) -> None:
    if name in ("bounds_of_ends", "wider") and dtype != torch.float32:
        pytest.skip("ranges are float32")
    assert fused._compared(name, torch.zeros(1, dtype=dtype, device="cuda")) is not None


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", fused.DTYPES, ids=str)
@pytest.mark.parametrize("scheme", ["int8", "int8-dynamic", "int8-weight", "int4-weight"])
def test_on_a_gpu_a_layer_trains_with_the_same_bits(scheme: str, dtype: torch.dtype) -> None:
    found = []
    for eager in (True, False):
        torch.manual_seed(0)
        grids = SCHEMES[scheme]
        layer: Any = turn(nn.Linear(384, 1536), "linear", grids.weight, grids.activation).to("cuda", dtype)
        if layer.has_range:
            layer.input_range.copy_(torch.tensor([-0.7, 2.1]))
            layer.step_range = torch.tensor([torch.inf, -torch.inf], device="cuda")
        layer.observing = layer.quantizing = True
        values = torch.randn(32, 128, 384, device="cuda", dtype=dtype, requires_grad=True)
        upstream = torch.randn(32, 128, 1536, device="cuda", dtype=dtype)
        context = fused.eagerly() if eager else torch.enable_grad()
        with context:
            rounded, weight = layer.rounded_input(values), layer.rounded_weight()
            slopes = torch.autograd.grad(nn.functional.linear(rounded, weight), [values, layer.weight], upstream)
        seen = [layer.step_range] if layer.has_range else []
        found.append([rounded.detach(), weight.detach(), *slopes, *seen])
    assert fused._off == {}
    assert isinstance(layer, CompressedLinear)
    assert all(fused.same_bits(one, other) for one, other in zip(*found, strict=True))
