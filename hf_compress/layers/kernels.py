"""Kernels of the functions in `fused`, one launch each. Needs triton, which PyTorch's builds for CUDA bring.

Every operation rounds as the eager one does: division to nearest, halves to even, and no product is contracted with a
sum. Comparisons take the place of clamps, so NaN and the signs of zeros stay. A function returns None for arguments
that its kernel cannot read.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hf_compress.layers.affine import Bounds
from hf_compress.layers.grids import SMALLEST_SCALE, Grid
from hf_compress.layers.steps import LARGEST

FLAT = 1024  # Values of one program, of tensors read as one row.
WIDEST = 4096  # Values of a row that are read at once.

_SIGN = tl.constexpr(-(2**31))
_MAGNITUDE = tl.constexpr(2**31 - 1)
_SMALLEST = tl.constexpr(SMALLEST_SCALE)
_LARGEST = tl.constexpr(float(LARGEST))
_LIMIT = tl.constexpr(LARGEST + 0.5)
# Above it, float32 numbers are integers: a sum with it is rounded to one.
_INTEGERS = tl.constexpr(1.5 * 2**23)


def bounds_of_ends(ends: Tensor, grid: Grid) -> Bounds:
    """Compute `affine.bounds_of_ends`."""
    found = ends.new_empty(len(Bounds._fields))
    _launch(_bounds, (1,), ends, found, LEVELS=float(grid.levels))
    return Bounds(*found.unbind())


def round_in_bounds(values: Tensor, bounds: Bounds) -> Tensor | None:
    """Compute `affine.round_in_bounds`."""
    found, count = torch.empty_like(values), values.numel()
    if not _in_one_order(found, values):
        return None
    _launch(_in_bounds, (triton.cdiv(count, FLAT),), values, found, bounds.step, bounds.low, bounds.high, count)
    return found


def mask_by_bounds(gradient: Tensor, values: Tensor, bounds: Bounds) -> Tensor | None:
    """Compute `affine.mask_by_bounds`."""
    found, count = torch.empty_like(gradient), values.numel()
    if not _in_one_order(found, gradient, values):
        return None
    grid = (triton.cdiv(count, FLAT),)
    _launch(_mask_by_bounds, grid, gradient, values, found, bounds.least, bounds.most, count)
    return found


def round_rows(values: Tensor, grid: Grid) -> Tensor | None:
    """Compute `grids.round_rows`."""
    width = grid.group_size if grid.per == "group" else values.shape[-1]
    if not values.numel() or not values.is_contiguous() or not width or values.shape[-1] % width:
        return None
    found = torch.empty_like(values)
    rows, largest, up = values.numel() // width, float(grid.largest), grid.per == "token"
    _launch(_rows, (rows,), values, found, width, LARGEST=largest, UP=up, BLOCK=_block(width))
    return found


def round_to_steps(values: Tensor, step: Tensor) -> Tensor | None:
    """Compute `steps.round_to_steps`."""
    if not _has_rows(values, step):
        return None
    found, width = torch.empty_like(values), values.shape[-1]
    block = _block(width)
    _launch(_to_steps, (step.numel(), triton.cdiv(width, block)), values, found, step, width, BLOCK=block)
    return found


def mask_by_steps(gradient: Tensor, values: Tensor, step: Tensor) -> Tensor | None:
    """Compute `steps.mask_by_steps`."""
    if not _has_rows(values, step) or not gradient.is_contiguous():
        return None
    found, width = torch.empty_like(gradient), values.shape[-1]
    block = _block(width)
    grid = (step.numel(), triton.cdiv(width, block))
    _launch(_mask_by_steps, grid, gradient, values, found, step, width, BLOCK=block)
    return found


def wider(one: Tensor, other: Tensor) -> Tensor:
    """Compute `shared_inputs.wider`."""
    found = torch.empty_like(one)
    _launch(_wider, (1,), one, other, found)
    return found


def _launch(kernel: Any, grid: tuple[int, ...], first: Tensor, *others: Any, **constants: Any) -> None:
    warps = 8 if constants.get("BLOCK", 0) > 2048 else 4
    with torch.cuda.device_of(first):
        kernel[grid](first, *others, **constants, num_warps=warps, enable_fp_fusion=False)


def _block(width: int) -> int:
    return min(triton.next_power_of_2(width), WIDEST)


def _in_one_order(found: Tensor, *others: Tensor) -> bool:
    """Return whether tensors fill their memory, and in the same order: `found`, which `empty_like` made, does."""
    return found.numel() > 0 and all(other.stride() == found.stride() for other in others)


def _has_rows(values: Tensor, step: Tensor) -> bool:
    """Return whether every row of `values` has a step of its own."""
    shaped = step.shape == (*values.shape[:-1], 1) and step.dtype == torch.float32
    return shaped and values.numel() > 0 and values.is_contiguous() and step.is_contiguous()


@triton.jit
def _bits(number):
    return number.to(tl.int32, bitcast=True)


@triton.jit
def _float(bits):
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _read(pointers, mask):
    values = tl.load(pointers, mask=mask, other=0.0)
    if pointers.dtype.element_ty == tl.bfloat16:
        return _float(values.to(tl.int16, bitcast=True).to(tl.int32) << 16)
    return values.to(tl.float32)


@triton.jit
def _write(pointers, values, mask):
    if pointers.dtype.element_ty == tl.bfloat16:
        # By integers, not by a cast: not all GPUs have one, and triton's interpreter rounds otherwise.
        bits = _bits(values)
        bits = tl.where(values != values, 0x7FC00000, bits + 0x7FFF + ((bits >> 16) & 1))
        values = (bits >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    tl.store(pointers, values.to(pointers.dtype.element_ty), mask=mask)


@triton.jit
def _negated(number):
    return _float(_bits(number) ^ _SIGN)


@triton.jit
def _rounded(number):
    """Round a number to the nearest integer, halves to even. From 2**22 on, the result is only as large."""
    whole = (number + _INTEGERS) - _INTEGERS
    return _float(_bits(whole) | (_bits(number) & _SIGN))


@triton.jit
def _bounds(ends, found, LEVELS: tl.constexpr):
    low, high = tl.load(ends), tl.load(ends + 1)
    low = tl.where(low > 0.0, 0.0, low)
    high = tl.where(high < 0.0, 0.0, high)
    step = tl.div_rn(high - low, LEVELS)
    step = tl.where(step < _SMALLEST, _SMALLEST, step)
    zero = _rounded(tl.div_rn(_negated(low), step))
    zero = tl.where(zero < 0.0, 0.0, zero)
    zero = tl.where(zero > LEVELS, LEVELS, zero)
    low = _negated(zero) * step
    high = (LEVELS - zero) * step
    half = step * 0.5
    tl.store(found, step)
    tl.store(found + 1, low)
    tl.store(found + 2, high)
    tl.store(found + 3, low - half)
    tl.store(found + 4, high + half)


@triton.jit
def _in_bounds(values, found, step, low, high, count, BLOCK: tl.constexpr = FLAT):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < count
    number = _read(values + at, mask)
    least, most, distance = tl.load(low), tl.load(high), tl.load(step)
    number = tl.where(number < least, least, number)
    number = tl.where(most < number, most, number)
    _write(found + at, _rounded(tl.div_rn(number, distance)) * distance, mask)


@triton.jit
def _mask_by_bounds(gradient, values, found, least, most, count, BLOCK: tl.constexpr = FLAT):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < count
    number = _read(values + at, mask)
    inside = (number > tl.load(least)) & (number < tl.load(most))
    slope = tl.load(gradient + at, mask=mask & inside, other=0.0)
    tl.store(found + at, slope, mask=mask)


@triton.jit
def _rows(values, found, width, LARGEST: tl.constexpr, UP: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * width
    # As integers, magnitudes are in order, and NaN is above all others.
    seen = tl.zeros((BLOCK,), dtype=tl.int32)
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        seen = tl.maximum(seen, _bits(_read(values + row + at, at < width)) & _MAGNITUDE)
    scale = tl.div_rn(_float(tl.max(seen, axis=0)), LARGEST)
    scale = tl.where(scale < _SMALLEST, _SMALLEST, scale)
    if UP:
        scale = _float((_bits(scale) + 0xFF) & ~0xFF)
    else:
        scale = _float((_bits(scale) + 0x8000) & ~0xFFFF)
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        number = _read(values + row + at, at < width)
        _write(found + row + at, _rounded(tl.div_rn(number, scale)) * scale, at < width)


@triton.jit
def _to_steps(values, found, step, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    at, mask = row * width + column, column < width
    distance = tl.load(step + row)
    number = _rounded(tl.div_rn(_read(values + at, mask), distance))
    number = tl.where(number < -_LARGEST, -_LARGEST, number)
    number = tl.where(number > _LARGEST, _LARGEST, number)
    _write(found + at, number * distance, mask)


@triton.jit
def _mask_by_steps(gradient, values, found, step, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    at, mask = row * width + column, column < width
    inside = tl.abs(_read(values + at, mask)) < tl.load(step + row) * _LIMIT
    slope = tl.load(gradient + at, mask=mask & inside, other=0.0)
    tl.store(found + at, slope, mask=mask)


@triton.jit
def _lower(one, other):
    """Return the lower number, or NaN; of two zeros the negative one."""
    zeros = _float(_bits(one) | _bits(other))
    lower = tl.where(one == other, zeros, tl.where(other < one, other, one))
    return tl.where(one != one, one, tl.where(other != other, other, lower))


@triton.jit
def _wider(one, other, found):
    tl.store(found, _lower(tl.load(one), tl.load(other)))
    tl.store(found + 1, _negated(_lower(_negated(tl.load(one + 1)), _negated(tl.load(other + 1)))))
