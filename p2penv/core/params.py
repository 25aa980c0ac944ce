"""Parameters of a market in another namespace or precision."""

from __future__ import annotations

from types import ModuleType
from typing import Any, TypeVar

import numpy as np

Params = TypeVar("Params", bound=tuple[Any, ...])


def cast(params: Params, xp: ModuleType, dtype: Any = None) -> Params:
    """A NamedTuple of NumPy arrays, nested or not, as arrays of a namespace.

    Floating arrays get ``dtype`` (float64 by default), complex ones the complex type of that precision, whole
    numbers stay what they are. Everything is copied, because namespaces may share memory.

    Raises:
        ValueError: the namespace cannot hold the dtype (JAX without x64 would silently round to float32), or the dtype
            a number.
    """
    dtype = xp.float64 if dtype is None else dtype
    wanted = np.dtype(str(dtype).rsplit(".", 1)[-1]) if not isinstance(dtype, type | np.dtype) else np.dtype(dtype)
    given = str(xp.asarray(np.zeros(1), dtype=dtype).dtype).rsplit(".", 1)[-1]
    if given != wanted.name:
        raise ValueError(f"{xp.__name__} gave {given} for {wanted.name}: enable x64 or ask for float32")
    kinds = {"f": dtype, "c": xp.complex64 if wanted == np.float32 else xp.complex128}

    largest = float(np.finfo(wanted).max)

    def leaf(name: str, field: Any) -> Any:
        if isinstance(field, tuple):
            return type(field)(*map(leaf, getattr(field, "_fields", (name,) * len(field)), field))
        array = np.array(field)
        if array.dtype.kind in kinds and (beyond := np.isfinite(array) & (np.abs(array) > largest)).any():
            raise ValueError(f"{name} is too large for {wanted.name}: {array[beyond][0]:g}")
        return xp.asarray(array, dtype=kinds.get(array.dtype.kind))

    return leaf("params", params)


def freeze(params: Params) -> Params:
    """The same NamedTuple; its NumPy arrays, nested or not, can no longer be written to."""
    for field in params:
        if isinstance(field, tuple):
            freeze(field)
        elif isinstance(field, np.ndarray):
            field.flags.writeable = False
    return params
