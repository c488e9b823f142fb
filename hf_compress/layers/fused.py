"""Functions that a GPU computes in one launch, by a kernel with the bits of the eager function."""

import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from transformers.utils import logging

from hf_compress.failures import exceptions_of, failures, reason

logger = logging.get_logger(__name__)

P = ParamSpec("P")
R = TypeVar("R")
Samples = Callable[[torch.dtype], Iterator[tuple[Any, ...]]]

# It imports triton, which PyTorch's builds for CUDA bring, so nothing imports it before it is needed.
KERNELS = "hf_compress.layers.kernels"
PLAIN = (Tensor, nn.Parameter)  # Wrappers, such as DTensor, have no memory of their own.
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Where triton's exceptions are, in all of its versions, and that of a C compiler that fails.
RAISERS = ("triton.errors", "triton.compiler.errors", "triton.runtime.errors", "subprocess")

# The functions by name, and the samples to compare them with their kernels.
FUNCTIONS: dict[str, tuple[Callable[..., Any], Samples]] = {}
_allowed = True
# The kernels that were found to give the same bits, by function, device and dtype.
_kernels: dict[tuple[Any, ...], Callable[..., Any]] = {}
_off: dict[torch.device, str] = {}  # Devices that compute everything eagerly, and why.


def fused(samples: Samples) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator for a pure function of tensors: where it can, it calls the kernel of the same name.

    It does on a GPU, for tensors that need no gradient, outside compilers, which fuse by themselves. Before the first
    use on a device, and for a dtype, eager function and kernel must give the same bits for the samples. If they do
    not, or something fails, the device computes everything eagerly from then on, and a warning says why.

    Args:
        samples: yields arguments to compare with, on the CPU, for a dtype. The first argument is a tensor of that
            dtype. Its device and dtype decide.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        name = function.__name__
        FUNCTIONS[name] = function, samples

        @functools.wraps(function)
        def either(*args: P.args, **kwargs: P.kwargs) -> R:
            values = cast(Tensor, args[0])
            if torch.compiler.is_compiling() or not may_fuse(values):
                return function(*args, **kwargs)
            result = cast(R | None, _by_kernel(name, values, args))
            return function(*args, **kwargs) if result is None else result

        return either

    return decorate


@contextmanager
def eagerly() -> Iterator[None]:
    """Return a context in which this process computes without kernels, to compare.

    It holds for all threads, because autograd computes gradients in threads of its own.

    Example:
        >>> import torch
        >>> from hf_compress.layers import Grid, eagerly, fake_quantize_symmetric
        >>> with eagerly():
        ...     fake_quantize_symmetric(torch.tensor([[1.0, 127.0]]), Grid(bits=8, per="row"))
        tensor([[  1., 127.]])
    """
    global _allowed
    before, _allowed = _allowed, False
    try:
        yield
    finally:
        _allowed = before


def may_fuse(values: Tensor) -> bool:
    """Return whether a kernel may compute with a tensor, if there is one for it and the device passes its check."""
    return (
        values.is_cuda
        and _allowed
        and type(values) in PLAIN
        and values.dtype in DTYPES
        and not (values.requires_grad and torch.is_grad_enabled())
    )


def same_bits(one: Any, other: Any) -> bool:
    """Return whether tensors, or tuples of them, have the same dtype, strides and bits, or are both NaN."""
    if not isinstance(one, Tensor):
        return len(one) == len(other) and all(map(same_bits, one, other))
    if (one.dtype, one.shape, one.stride()) != (other.dtype, other.shape, other.stride()):
        return False
    integers = {2: torch.int16, 4: torch.int32}[one.dtype.itemsize]
    same = (one.view(integers) == other.view(integers)) | (one.isnan() & other.isnan())
    if one.ndim == 0:
        # Versions of PyTorch differ in the sign of a bound that is zero. It has no effect.
        same = same | (one == other)
    return bool(same.all())


def numbers(dtype: torch.dtype, step: float = 0.01) -> Tensor:
    """Return (1000,) numbers to compare with: ties between multiples of `step`, zeros, extremes, and random ones."""
    draw = torch.Generator().manual_seed(0)
    ties = torch.arange(-300, 300) * (step / 2)
    special = [0.0, -0.0, torch.nan, torch.inf, -torch.inf, 1e-40, -1e-40, 1e30, -1e30, 60000.0]
    scaled = torch.randn(390, generator=draw) * step * 50
    return torch.cat([ties, torch.tensor(special), scaled]).to(dtype)


def _by_kernel(name: str, values: Tensor, args: tuple[Any, ...]) -> Any:
    """Return the result of the kernel; None if there is none for these arguments, or on this device."""
    device = values.device
    if device in _off:
        return None
    key = name, device, values.dtype
    try:
        if key not in _kernels:
            if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                return None  # Results cannot be compared while a graph is recorded.
            _kernels[key] = _compared(name, values)
        return _kernels[key](*args)
    except torch.OutOfMemoryError:
        raise
    except _caught() as error:
        _off[device] = reason(error)
        logger.warning(
            f"Rounding on {_described(device)} takes one launch for each operation, with the same results, because "
            f"its kernels cannot be used: {_off[device]}"
        )
        return None


def _compared(name: str, like: Tensor) -> Callable[..., Any]:
    """Return the kernel, or raise an error unless it gives the bits of its function."""
    kernel = cast(Callable[..., Any], getattr(importlib.import_module(KERNELS), name))
    function, samples = FUNCTIONS[name]
    with torch.device("cpu"):  # Another one may be the default.
        given = list(samples(like.dtype))
    for sample in given:
        moved = tree_map(lambda item: item.to(like.device) if isinstance(item, Tensor) else item, sample)
        found = kernel(*moved)
        if found is None or not same_bits(function(*moved), found):
            raise ArithmeticError(f"the kernel `{name}` gives other bits for {like.dtype} than its operations do")
    return kernel


def _caught() -> tuple[type[Exception], ...]:
    return (*failures(), *(error for module in RAISERS for error in exceptions_of(module)))


def _described(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
