"""Stable-Baselines3 ``VecEnv``: each agent of each environment is one sub-environment, parameters are shared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from p2penv.core.contract import MarketEnv
from p2penv.faces.runner import Runner

try:
    from stable_baselines3.common.vec_env import VecEnv
except ImportError as error:  # pragma: no cover
    raise ImportError("the sb3 face needs the 'train' extra: pip install 'p2penv[train]'") from error

Floats = NDArray[Any]


class OneMarketVecEnv(VecEnv):
    """What VecEnvs have in common whose sub-environments are parts of one market."""

    render_mode: str | None = None  # asked for by VecEnv's constructor

    def close(self) -> None:
        """Nothing to release."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The same attribute for each sub-environment."""
        return [getattr(self, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refused: sub-environments share one market."""
        raise ValueError(f"cannot set {attr_name!r} on single sub-environments: they share one market")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Refused: sub-environments share one market."""
        raise ValueError(f"cannot call {method_name!r} on single sub-environments: they share one market")

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        """Never wrapped."""
        return [False] * len(list(self._get_indices(indices)))


class MarketVecEnv(OneMarketVecEnv):
    """E·N sub-environments in the order of environments, then agents; one policy plays them all.

    Truncated sub-environments carry ``TimeLimit.truncated`` and ``terminal_observation``, so learners bootstrap
    them; one-shot games terminate. Observations are fresh arrays: learners may keep them. All agents must have the
    same number of actions, or those that have fewer ignore the rest.

    Args:
        env: the functional environment.
        num_envs: E ≥ 1; ``VecEnv.num_envs`` is E·N.
        identity: append a one-hot code of the agent to its observation, so that one network can tell agents apart.
        scale_rewards: divide rewards by the market's ``reward_scale``, so that small stakes are learned too.
        dtype: of the arithmetic inside.
    """

    def __init__(
        self,
        env: MarketEnv,
        num_envs: int,
        *,
        identity: bool = True,
        scale_rewards: bool = False,
        dtype: str = "float64",
    ) -> None:
        self.functional = env
        self.runner = Runner(env, num_envs, dtype=dtype)
        envs, agents, features = self.runner.num_envs, *self.runner.observation_shape
        self.agents = self.runner.agents
        self._scale = env.reward_scale if scale_rewards else None
        code = np.eye(agents, dtype=np.float32) if identity else np.zeros((agents, 0), np.float32)
        rows = np.concatenate([np.zeros((agents, features), np.float32), code], axis=-1)
        rows[:, : self.runner.constant] = env.context
        self._template = np.tile(rows, (envs, 1, 1))
        observation_space = spaces.Box(-1.0, 1.0, (self._template.shape[-1],), np.float32)
        super().__init__(envs * agents, observation_space, spaces.Box(-1.0, 1.0, (self.runner.actions,), np.float32))
        self.metadata = dict(env.metadata)
        self._seed: int | None = None
        self._actions: Floats | None = None

    def observations(self, state: Any) -> NDArray[np.float32]:
        """Fresh array ``(E·N, F)`` of a state."""
        observations = self._template.copy()
        self.runner.observations(state, out=observations)
        return observations.reshape(self.num_envs, -1)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed the next reset: one stream serves the whole batch."""
        self._seed = seed
        return [seed] * self.num_envs

    def reset(self) -> NDArray[np.float32]:
        """Start fresh episodes everywhere."""
        self.runner.reset(self._seed)
        self._seed = None
        self.reset_infos = [{} for _ in range(self.num_envs)]
        return self.observations(self.runner.state)

    def step_async(self, actions: Floats) -> None:
        """Take actions ``(E·N, A)`` in [−1, 1]."""
        array, shape = np.asarray(actions), (self.num_envs, self.runner.actions)
        if array.shape != shape:
            raise ValueError(f"actions must have shape {shape}, got {array.shape}")
        self._actions = self.runner.check(array.reshape(self.runner.shape))

    def step_wait(self) -> tuple[NDArray[np.float32], Floats, NDArray[np.bool_], list[dict[str, Any]]]:
        """Play them."""
        if self._actions is None:
            raise RuntimeError("call step_async before step_wait")
        runner = self.runner
        step = runner.step(self._actions)
        self._actions = None
        observations = self.observations(step.state)
        ended = step.terminated | step.truncated
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if ended.any():
            agents = len(self.agents)
            for index in np.flatnonzero(np.repeat(ended, agents)):
                infos[index] = {
                    "terminal_observation": observations[index],
                    "TimeLimit.truncated": bool(step.truncated[index // agents]),
                }
            runner.restart(ended)
            observations = self.observations(runner.state)
        reward = step.reward if self._scale is None else step.reward / self._scale
        rewards = reward.astype(np.float32).reshape(-1)
        return observations, rewards, np.repeat(ended, len(self.agents)), infos
