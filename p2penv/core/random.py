"""Random streams: the noise a market declares, drawn outside of it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2penv.core.contract import Draw, Noise

# Numbers one generator fills at a time. Part of what a seed means: another size gives other numbers.
BLOCK = 2**14


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(os.cpu_count() or 1, 8), "p2penv-noise")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a child process has the pool but not its threads


class NumpyStream:
    """Draws in the declared order, a whole batch at once.

    The same seed gives the same numbers on every face with the same number of environments. Draws of more than
    ``BLOCK`` numbers are filled block by block, block k from a generator of its own (the k-th child of the seed)
    and side by side on all cores; how many there are does not change the numbers.
    """

    def __init__(self, seed: int | np.random.SeedSequence | None = None, dtype: Any = np.float64) -> None:
        given = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
        # A copy, because children are counted in the sequence.
        self._seed = np.random.SeedSequence(given.entropy, spawn_key=given.spawn_key, pool_size=given.pool_size)
        self._generators = [np.random.Generator(np.random.SFC64(self._seed))]
        self.dtype = np.dtype(dtype)

    def draw(self, spec: Mapping[str, Draw], num_envs: int) -> Noise:
        """One array ``(num_envs, *shape)`` a name; in memory the environments lie side by side."""
        noise = {}
        for name, (kind, shape) in spec.items():
            sample = self._sample(kind, (*shape, num_envs))
            noise[name] = sample.transpose(len(shape), *range(len(shape)))
        return noise

    def _sample(self, kind: str, shape: tuple[int, ...]) -> NDArray[Any]:
        size = math.prod(shape)
        if size <= BLOCK:
            return self._fill(0, kind, shape)
        out = np.empty(size, self.dtype)
        parts = [out[start : start + BLOCK] for start in range(0, size, BLOCK)]
        while len(self._generators) < len(parts):
            self._generators.append(np.random.Generator(np.random.SFC64(self._seed.spawn(1)[0])))
        list(_pool().map(lambda block: self._fill(block, kind, None, parts[block]), range(len(parts))))
        return out.reshape(shape)

    def _fill(
        self, block: int, kind: str, shape: tuple[int, ...] | None, out: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        generator = self._generators[block]
        if kind == "normal":
            return generator.standard_normal(shape, self.dtype, out)  # type: ignore[no-any-return,call-overload]
        return generator.random(shape, self.dtype, out)  # type: ignore[no-any-return,call-overload]


class JaxStream:
    """Stateless draws for JAX: the ``i``-th name uses ``fold_in(key, i)``.

    Args:
        key: a ``jax.random`` key; give each step its own.
        dtype: a floating dtype; ``float64`` needs JAX's x64 mode.
    """

    def __init__(self, key: Any, dtype: Any = None) -> None:
        self.key = key
        self.dtype = dtype

    def draw(self, spec: Mapping[str, Draw], num_envs: int) -> Noise:
        """One array ``(num_envs, *shape)`` a name."""
        import jax

        dtype = jax.numpy.zeros(()).dtype if self.dtype is None else self.dtype
        samplers = {"normal": jax.random.normal, "uniform": jax.random.uniform}
        return {
            name: samplers[kind](jax.random.fold_in(self.key, index), (num_envs, *shape), dtype)
            for index, (name, (kind, shape)) in enumerate(spec.items())
        }
