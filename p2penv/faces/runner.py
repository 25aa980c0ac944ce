"""What all NumPy faces share: spaces, parameters, random stream, state and observations of E environments."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from p2penv.core import validation
from p2penv.core.arrays import merge, scalar
from p2penv.core.contract import MarketEnv, Step
from p2penv.core.random import NumpyStream

Floats = NDArray[Any]


class Runner:
    """Steps E environments of a market on NumPy; faces put their interface around it.

    Args:
        env: the functional environment.
        num_envs: E ≥ 1.
        dtype: of the arithmetic inside, ``"float64"`` or ``"float32"``.
        out_of_range: ``"raise"`` an error on actions outside [−1, 1], or ``"clip"`` them.
    """

    def __init__(
        self, env: MarketEnv, num_envs: int = 1, *, dtype: str = "float64", out_of_range: str = "raise"
    ) -> None:
        self.env = env
        self.num_envs = validation.count("num_envs", num_envs)
        name = dtype if isinstance(dtype, str) else np.dtype(dtype).name
        self.dtype = np.dtype(validation.choice("dtype", name, env.dtypes))
        self.clips = validation.choice("out_of_range", out_of_range, ("raise", "clip")) == "clip"
        self.params = env.params if self.dtype == np.float64 else env.parameters(np, np.float32)
        self._step_params = _aligned(self.params, sum(role.count for role in env.roles), self.num_envs)
        self.agents = [f"{role.name}_{n}" for role in env.roles for n in range(role.count)]
        self.actions = max(role.actions for role in env.roles)
        self.action_names = {
            f"{role.name}_{n}": role.action_names or env.action_names[: role.actions]
            for role in env.roles
            for n in range(role.count)
        }
        self.constant = env.context.shape[1]
        self.shape = (self.num_envs, len(self.agents), self.actions)
        self.observation_shape = (len(self.agents), len(env.features))
        self.action_spaces = {
            f"{role.name}_{n}": spaces.Box(-1.0, 1.0, (role.actions,), np.float32)
            for role in env.roles
            for n in range(role.count)
        }
        self.observation_spaces = {
            agent: spaces.Box(-1.0, 1.0, self.observation_shape[1:], np.float32) for agent in self.agents
        }
        self._template = np.zeros((self.num_envs, *self.observation_shape), np.float32)
        self._template[..., : self.constant] = env.context
        self.stream = NumpyStream(None, self.dtype)
        self.state: Any = None
        self.played: Any = None  # the state the last actions answered, what a picture of them shows

    def reset(self, seed: int | None = None) -> dict[str, Floats]:
        """Start fresh episodes in all environments; a seed restarts the random stream. Returns the infos."""
        if seed is not None:
            self.stream = NumpyStream(validation.seed("seed", seed), self.dtype)
        self.state = self.played = self.fresh()
        return self.env.initial_info(self.params, self.state)

    def fresh(self) -> Any:
        """State of E fresh episodes."""
        return self.env.initial(self.params, self.stream.draw(self.env.initial_noise, self.num_envs), self.num_envs)

    def restart(self, ended: NDArray[np.bool_]) -> None:
        """Put fresh episodes in the place of those that ended ``(E,)``."""
        fresh = self.fresh()
        self.state = fresh if ended.all() else merge(ended, fresh, self.state)

    def check_own(self, agent: str, actions: Any) -> Floats:
        """A copy of one agent's actions ``(E, A)``, refused as :meth:`check` would."""
        array = np.array(actions)
        shape = (self.num_envs, *self.action_spaces[agent].shape)
        if array.shape != shape:
            first = 1 if self.num_envs == 1 else 0
            raise ValueError(f"action of {agent} must have shape {shape[first:]}, got {array.shape[first:]}")
        if not self._clipped(array):
            rows = array[:, None]
            validation.actions(rows, rows.shape, [agent], self.action_names)
        return array

    def _clipped(self, actions: Floats) -> bool:
        """Whether numbers out of range are to be clipped, and these are numbers."""
        return self.clips and actions.dtype.kind in "fiub" and not np.isnan(actions).any()

    def check(self, actions: Floats) -> Floats:
        """Actions ``(E, N, A)`` in the runner's dtype, checked or clipped before anything changes.

        In memory the environments lie side by side, as in the noise: sums over agents and products with agents'
        parameters are then long loops, several times as fast.
        """
        if self.clips and actions.shape == self.shape and self._clipped(actions):
            actions = np.clip(actions, -1.0, 1.0)
        else:
            validation.actions(actions, self.shape, self.agents, self.action_names)
        return actions.astype(self.dtype, order="F", copy=False)

    def step(self, actions: Floats) -> Step:
        """Play checked actions ``(E, N, A)``; no autoreset."""
        if self.state is None:
            raise RuntimeError("call reset before step")
        noise = self.stream.draw(self.env.noise, self.num_envs) if self.env.noise else {}
        step = self.env.step(self._step_params, self.state, actions, noise)
        self.played, self.state = self.state, step.state
        return step

    def observations(self, state: Any, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Observations ``(E, N, F)`` of a state: a fresh array, or ``out``, whose constant features are kept."""
        observations = self._template.copy() if out is None else out
        for index, feature in enumerate(self.env.observe(self._step_params, state), self.constant):
            observations[..., index] = feature
        return observations

    def buffer(self) -> NDArray[np.float32]:
        """An ``out`` for :meth:`observations`, with the environments side by side in memory."""
        return np.asfortranarray(self._template)


def _aligned(params: Any, agents: int, num_envs: int) -> Any:
    """Parameters in the shapes of a step: NumPy takes thrice as long where it has to broadcast one row of agents."""

    def leaf(array: Any) -> Any:
        shape = getattr(array, "shape", None)
        if shape == ():  # with one environment it will meet other scalars, with several arrays
            return scalar(array[None]) if num_envs == 1 else np.asarray(array)
        return array[None] if num_envs == 1 and shape == (agents,) else array

    return type(params)(*map(leaf, params))
