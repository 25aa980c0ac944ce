"""Small array helpers the array API standard lacks.

Everything here works on NumPy, JAX and PyTorch arrays alike. NumPy arrays are handled by ``numpy`` itself:
the compatibility wrapper nearly doubles the time of a small step.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any, TypeVar

import array_api_compat
import numpy as np
from scipy import special

Array = Any  # an array of any namespace that follows the array API standard
Tree = TypeVar("Tree")
NUMPY = (np.ndarray, np.generic, float, int)
SCALAR = (np.floating, float)
SHORT = 2048  # longest row summed as a product with ones


def namespace(*arrays: Array) -> ModuleType:
    """Array namespace of the arguments: ``numpy`` unless one of them is a JAX or PyTorch array."""
    for array in arrays:
        if not isinstance(array, NUMPY):
            return array_api_compat.array_namespace(array)
    return np


def clip(values: Array, low: Array, high: Array) -> Array:
    """Elementwise ``min(max(values, low), high)`` with array bounds of any broadcastable shape."""
    if isinstance(values, SCALAR) and isinstance(low, SCALAR) and isinstance(high, SCALAR):
        return min(max(values, low), high)  # a quarter of the time
    xp = namespace(values, low, high)
    return xp.minimum(xp.maximum(values, low), high)


def positive(values: Array) -> Array:
    """Elementwise ``max(values, 0)``."""
    if isinstance(values, NUMPY):
        return np.maximum(values, 0.0)
    return namespace(values).clip(values, 0.0, None)


@cache
def _ones(size: int, dtype: np.dtype[Any]) -> np.ndarray:
    return np.ones(size, dtype)


def smaller(first: Array, second: Array) -> Array:
    """Elementwise minimum of two arrays of any broadcastable shape."""
    if isinstance(first, SCALAR) and isinstance(second, SCALAR):
        return min(first, second)
    return namespace(first, second).minimum(first, second)


def scalar(values: Array) -> Array:
    """The number in a NumPy array of one, whose arithmetic takes a tenth of the time; other arrays as they are.

    Python's own for float64, which it is; NumPy's for others, so that they keep their type.
    """
    if not isinstance(values, np.ndarray) or values.shape != (1,):
        return values
    return values.item() if values.dtype.char == "d" else values[0]


def vector(values: Array) -> Array:
    """An array of one for a number, undoing :func:`scalar`; other arrays as they are."""
    return np.array((values,)) if isinstance(values, SCALAR) else values


def column(values: Array, rows: Array) -> Array:
    """``values (...)`` with an axis for the agents, to combine with ``rows (..., N)``.

    A single value stays a scalar where that gives the same: NumPy then takes less than half the time.
    """
    if isinstance(values, SCALAR):
        return values
    if isinstance(values, np.ndarray) and values.size == 1 and values.ndim < rows.ndim:
        return values.reshape(())
    return values[..., None]


def row_sum(values: Array) -> Array:
    """Sum over the last axis."""
    if isinstance(values, np.ndarray):
        size = values.shape[-1]
        # One environment: a third of the time of a reduction, whose pairwise sums long rows need for accuracy.
        if values.size == size <= SHORT and values.dtype.kind == "f":
            return values.dot(_ones(size, values.dtype))
        return np.add.reduce(values, axis=-1)  # np.sum without its detour
    return namespace(values).sum(values, axis=-1)


def row_sums(*rows: Array) -> list[Array]:
    """Sum over the last axis of rows of one shape, as :func:`scalar` has it; float64 ``(1, N)`` take half the time."""
    first = rows[0]
    if not isinstance(first, np.ndarray) or first.dtype.char != "d" or len(first) > 1 or first.size > SHORT:
        return [scalar(row_sum(row)) for row in rows]
    ones = _ones(first.size, first.dtype)
    return [row.dot(ones).item() for row in rows]


def row_max(values: Array) -> Array:
    """Largest entry along the last axis."""
    if isinstance(values, np.ndarray):
        return np.maximum.reduce(values, axis=-1)  # np.max without its detour
    return namespace(values).max(values, axis=-1)


def running_sum(values: Array) -> Array:
    """Cumulative sum along the last axis."""
    if isinstance(values, np.ndarray):
        return np.add.accumulate(values, axis=-1)
    return namespace(values).cumulative_sum(values, axis=-1)


def order(values: Array) -> Array:
    """Permutation that sorts the last axis, ties in any order."""
    if isinstance(values, np.ndarray):
        return values.argsort(axis=-1)  # a third of the time of the function
    return namespace(values).argsort(values, axis=-1, stable=False)


def some(mask: Array) -> bool:
    """Whether a mask holds anywhere; on NumPy a fifth of the time of ``any()``."""
    if isinstance(mask, np.ndarray):
        return bool(np.count_nonzero(mask))
    return bool(mask if isinstance(mask, np.bool_ | bool) else namespace(mask).any(mask))


def gather(values: Array, index: Array) -> Array:
    """Entries along the last axis by ``index``, an array of as many axes."""
    if values.ndim == 1:
        return values[index]
    if isinstance(values, np.ndarray) and values.shape[:-1] == index.shape[:-1]:
        rows = np.arange(0, values.size, values.shape[-1]).reshape(*values.shape[:-1], 1)
        return values.reshape(-1).take(index + rows)  # half the time
    return namespace(values).take_along_axis(values, index, axis=-1)


def safe_divide(numerator: Array, denominator: Array, default: float = 0.0) -> Array:
    """Elementwise quotient, ``default`` where the denominator is zero (safe under automatic differentiation)."""
    xp = namespace(numerator, denominator)
    if xp is np and np.count_nonzero(denominator) == np.size(denominator):
        return numerator / denominator
    zero = denominator == 0
    return xp.where(zero, default, numerator / xp.where(zero, 1.0, denominator))


def normal_cdf(values: Array) -> Array:
    """Distribution function of the standard normal law, accurate in both tails."""
    if array_api_compat.is_jax_array(values):
        from jax.scipy.special import ndtr

        return ndtr(values)
    if array_api_compat.is_torch_array(values):
        import torch

        return 0.5 * torch.special.erfc(-(0.5**0.5) * values)  # its ndtr has no lower tail
    return special.ndtr(values)


def normal_quantile(probabilities: Array) -> Array:
    """Inverse of :func:`normal_cdf`; most accurate in the lower tail."""
    if array_api_compat.is_jax_array(probabilities):
        from jax.scipy.special import ndtri

        return ndtri(probabilities)
    if array_api_compat.is_torch_array(probabilities):
        import torch

        return torch.special.ndtri(probabilities)
    return special.ndtri(probabilities)


def merge(done: Array, fresh: Tree, old: Tree) -> Tree:
    """Take ``fresh`` where ``done (E,)`` and ``old`` elsewhere, leaf by leaf of a NamedTuple of ``(E, …)`` arrays."""
    xp = namespace(done)

    def leaf(new: Array, kept: Array) -> Array:
        return xp.where(xp.reshape(done, done.shape + (1,) * (kept.ndim - 1)), new, kept)

    return type(old)(*(leaf(new, kept) for new, kept in zip(fresh, old, strict=True)))  # type: ignore[call-overload]
