"""One learner, the others follow a policy: Gymnasium environments, single and vectorised.

With the others at the equilibrium a learner's best reward is what it gets there, so this face is also a learned
best-response oracle.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from p2penv.core import validation
from p2penv.core.contract import MarketEnv, Policy, Step
from p2penv.faces.runner import Runner
from p2penv.faces.vector import BatchedEnv
from p2penv.faces.window import Picture

Floats = NDArray[Any]


class _Learner:
    """One agent's view of E environments."""

    def __init__(self, env: MarketEnv, num_envs: int, agent: str, others: str | Policy | None, **options: Any) -> None:
        self.runner = Runner(env, num_envs, **options)
        self.agent = validation.choice("agent", agent, self.runner.agents)
        self.index = self.runner.agents.index(agent)
        others = env.policies[0] if others is None else others
        self.policy = env.policy(others) if isinstance(others, str) else others
        self.action_space = self.runner.action_spaces[agent]
        self.observation_space = self.runner.observation_spaces[agent]
        self.observations: Floats

    def reset(self, seed: int | None) -> dict[str, Any]:
        info = self.runner.reset(seed)
        self.observations = self.runner.observations(self.runner.state)
        return self._own(info)

    def shaped(self, actions: Floats, space: spaces.Space[Any]) -> Floats:
        """Actions as an array, if they have the shape of the face's action space."""
        array = np.asarray(actions)
        if array.shape != space.shape:
            raise ValueError(f"action of {self.agent} must have shape {space.shape}, got {array.shape}")
        return array

    def step(self, actions: Floats) -> Step:
        """Play the learner's actions ``(E, A)``; the others answer the same state."""
        runner, policy = self.runner, self.policy
        if runner.state is None:
            raise RuntimeError("call reset before step")
        actions = runner.check_own(self.agent, actions)  # before anything is drawn
        size = self.action_space.shape[0]
        noise = runner.stream.draw(policy.noise, runner.num_envs)
        state = runner.state if policy.full_information else None
        joint = np.array(policy.act(runner.params, self.observations, state, noise))
        joint[:, self.index, :size] = actions
        return runner.step(runner.check(joint))

    def own(self, step: Step) -> tuple[Floats, dict[str, Any]]:
        """The learner's observations ``(E, F)`` and infos; call before looking at the next state."""
        self.observations = self.runner.observations(step.state)
        return self.observations[:, self.index], self._own(step.info)

    def _own(self, info: dict[str, Any]) -> dict[str, Any]:
        axes = self.runner.env.info_axes
        return {key: value if axes[key] == "env" else value[:, self.index] for key, value in info.items()}


class MarketSoloEnv(gymnasium.Env[Floats, Floats]):
    """A market for one learner.

    Args:
        env: the functional environment.
        agent: name of the learner.
        others: name of a reference policy or a ``Policy`` for everybody else; by default the equilibrium, the first
            of the market's ``policies``.
        render_mode: None, ``"rgb_array"`` or ``"human"``.
        dtype: of the arithmetic inside.
        out_of_range: ``"raise"`` or ``"clip"`` actions outside [−1, 1].
    """

    def __init__(
        self,
        env: MarketEnv,
        agent: str,
        others: str | Policy | None = None,
        render_mode: str | None = None,
        dtype: str = "float64",
        out_of_range: str = "raise",
    ) -> None:
        self.functional = env
        self.learner = _Learner(env, 1, agent, others, dtype=dtype, out_of_range=out_of_range)
        self.metadata = dict(env.metadata)
        self.render_mode = validation.choice("render_mode", render_mode, (None, *self.metadata["render_modes"]))
        self.action_space = self.learner.action_space
        self.observation_space = self.learner.observation_space
        self._info: dict[str, Any] = {}
        self._picture = Picture(self.learner.runner, self.render_mode)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Floats, dict[str, Any]]:
        """Start an episode."""
        super().reset(seed=seed, options=options)
        if seed is None and self.learner.runner.state is None:
            seed = int(self.np_random.integers(2**31))
        info = self.learner.reset(seed)
        self._info = {}
        return self.learner.observations[0, self.learner.index], {key: value.item() for key, value in info.items()}

    def step(self, action: Floats) -> tuple[Floats, float, bool, bool, dict[str, Any]]:
        """Play the learner's action ``(A,)`` in [−1, 1].

        Raises:
            ValueError: wrong shape, not finite or out of range.
        """
        step = self.learner.step(self.learner.shaped(action, self.action_space)[None])
        self._info = step.info
        observations, info = self.learner.own(step)
        result = (
            observations[0],
            float(step.reward[0, self.learner.index]),
            bool(step.terminated[0]),
            bool(step.truncated[0]),
            {key: value.item() for key, value in info.items()},
        )
        if self.render_mode == "human":
            self.render()
        return result

    def render(self) -> NDArray[np.uint8] | None:
        """Picture of the market: an ``(height, width, 3)`` array, or a window with ``"human"``."""
        return self._picture.draw(self._info)

    def close(self) -> None:
        """Close the window, if there is one."""
        self._picture.close()


class MarketSoloVectorEnv(BatchedEnv):
    """E copies of the solo environment stepped together, with same-step autoreset.

    Arguments as :class:`MarketSoloEnv`; rewards, terminated and truncated are ``(E,)``. ``final_obs (E, F)`` and
    ``_final_obs (E,)`` hold last observations.
    """

    def __init__(
        self,
        env: MarketEnv,
        num_envs: int,
        agent: str,
        others: str | Policy | None = None,
        dtype: str = "float64",
        out_of_range: str = "raise",
    ) -> None:
        self.learner = _Learner(env, num_envs, agent, others, dtype=dtype, out_of_range=out_of_range)
        super().__init__(env, self.learner.runner.num_envs, self.learner.observation_space, self.learner.action_space)

    def _start(self, seed: int | None) -> tuple[Floats, dict[str, Any]]:
        info = self.learner.reset(seed)
        return self.learner.observations[:, self.learner.index], info

    def step(self, actions: Floats) -> tuple[Floats, Floats, Floats, Floats, dict[str, Any]]:
        """Play the learner's actions ``(E, A)`` in [−1, 1]."""
        runner = self.learner.runner
        step = self.learner.step(self.learner.shaped(actions, self.action_space))
        observations, info = self.learner.own(step)
        done = step.terminated | step.truncated
        if done.any():
            runner.restart(done)
            info |= {"final_obs": observations, "_final_obs": done}
            self.learner.observations = runner.observations(runner.state)
            observations = self.learner.observations[:, self.learner.index]
        return observations, step.reward[:, self.learner.index], step.terminated, step.truncated, info
