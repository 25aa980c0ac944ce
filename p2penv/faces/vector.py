"""Batched stepping: E environments × N agents in one call, also a ``gymnasium.vector.VectorEnv``."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from p2penv.core.contract import MarketEnv
from p2penv.faces.runner import Runner

Floats = NDArray[Any]


class BatchedEnv(VectorEnv[Floats, Floats, Floats]):
    """What batched faces have in common: spaces, same-step autoreset, one seed for the whole batch."""

    def __init__(self, env: MarketEnv, num_envs: int, observation_space: spaces.Box, action_space: spaces.Box) -> None:
        self.functional = env
        self.num_envs = num_envs
        self.metadata = dict(env.metadata) | {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.single_observation_space, self.single_action_space = observation_space, action_space
        self.observation_space = batch_space(observation_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Floats, dict[str, Any]]:
        """Start fresh episodes everywhere; one seed for the whole batch. ``options`` are not used.

        Raises:
            ValueError: not one whole number ≥ 0.
        """
        del options
        if np.ndim(seed):  # type: ignore[arg-type]
            raise ValueError(f"give one seed: a batch draws its noise at once; got {seed!r}")
        return self._start(seed)  # type: ignore[arg-type]

    def _start(self, seed: int | None) -> tuple[Floats, dict[str, Any]]:
        raise AssertionError("every batched face starts its own way")

    def close_extras(self, **kwargs: Any) -> None:
        """Nothing to release."""


class MarketVectorEnv(BatchedEnv):
    """E environments stepped together; every agent of every environment has its own row.

    ``reset`` gives observations ``(E, N, F)``; ``step`` takes actions ``(E, N, A)`` and gives observations, rewards
    ``(E, N)``, terminated and truncated ``(E,)`` and infos ``(E,)`` or ``(E, N)``. Environments that end are reset
    within the step (``AutoresetMode.SAME_STEP``): ``final_obs (E, N, F)`` then holds the last observations, valid
    where ``_final_obs (E,)``. Rewards are per agent, so wrappers that expect ``(E,)`` want the solo face instead.

    Args:
        env: the functional environment.
        num_envs: E ≥ 1.
        dtype: of the arithmetic inside and the rewards.
        out_of_range: ``"raise"`` or ``"clip"`` actions outside [−1, 1].
        copy: fresh observations from every call. Without, they are views of buffers that the next step overwrites,
            with the environments side by side in memory: faster, for those who use them at once.
    """

    def __init__(
        self, env: MarketEnv, num_envs: int, dtype: str = "float64", out_of_range: str = "raise", copy: bool = True
    ) -> None:
        self.runner = Runner(env, num_envs, dtype=dtype, out_of_range=out_of_range)
        self.agents = self.runner.agents
        joint = (self.runner.observation_shape, self.runner.shape[1:])
        super().__init__(env, self.runner.num_envs, *(spaces.Box(-1.0, 1.0, shape, np.float32) for shape in joint))
        self._current = None if copy else self.runner.buffer()
        self._final = None if copy else self.runner.buffer()

    def _start(self, seed: int | None) -> tuple[Floats, dict[str, Any]]:
        info = self.runner.reset(seed)
        return self.runner.observations(self.runner.state, self._current), dict(info)

    def step(self, actions: Floats) -> tuple[Floats, Floats, Floats, Floats, dict[str, Any]]:
        """Play actions ``(E, N, A)`` in [−1, 1].

        Raises:
            ValueError: wrong shape, not finite or out of range; names environment, agent and entry.
        """
        runner = self.runner
        step = runner.step(runner.check(np.asarray(actions)))
        info: dict[str, Any] = dict(step.info)
        done = step.terminated | step.truncated
        if done.any():
            info |= {"final_obs": runner.observations(step.state, self._final), "_final_obs": done}
            runner.restart(done)
        observations = runner.observations(runner.state, self._current)
        return observations, step.reward, step.terminated, step.truncated, info
