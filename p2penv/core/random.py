"""Random streams: the noise a market declares, drawn outside of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from p2penv.core.contract import Draw, Noise


class NumpyStream:
    """Draws in the declared order from one generator, a whole batch at once.

    The same seed gives the same numbers on every face with the same number of environments.
    """

    def __init__(self, seed: int | np.random.SeedSequence | None = None, dtype: Any = np.float64) -> None:
        self.generator = np.random.Generator(np.random.SFC64(seed))
        self.dtype = np.dtype(dtype)

    def draw(self, spec: Mapping[str, Draw], num_envs: int) -> Noise:
        """One array ``(num_envs, *shape)`` a name."""
        noise = {}
        for name, (kind, shape) in spec.items():
            sample = self.generator.standard_normal if kind == "normal" else self.generator.random
            noise[name] = sample((num_envs, *shape), dtype=self.dtype)  # type: ignore[operator]
        return noise


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
