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
BLOCK = 2**13


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
        noise: Noise = {}
        large: list[tuple[str, NDArray[Any]]] = []
        for name, (kind, shape) in spec.items():
            size = (*shape, num_envs)
            if math.prod(size) <= BLOCK:
                sample = self._sampler(0, kind)(size, self.dtype)
            else:
                sample = np.empty(size, self.dtype)
                large.append((kind, sample.reshape(-1)))
            noise[name] = sample.transpose(len(shape), *range(len(shape)))
        if large:
            self._fill(large)
        return noise

    def _sampler(self, block: int, kind: str) -> Any:
        generator = self._generators[block]
        return generator.standard_normal if kind == "normal" else generator.random

    def _fill(self, arrays: list[tuple[str, NDArray[Any]]]) -> None:
        blocks = -(-max(array.size for _, array in arrays) // BLOCK)
        while len(self._generators) < blocks:
            self._generators.append(np.random.Generator(np.random.SFC64(self._seed.spawn(1)[0])))

        def fill(block: int) -> None:
            for kind, array in arrays:
                part = array[block * BLOCK : (block + 1) * BLOCK]
                self._sampler(block, kind)(dtype=self.dtype, out=part)

        list(_pool().map(fill, range(blocks)))


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
