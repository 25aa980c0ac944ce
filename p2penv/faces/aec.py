"""PettingZoo ``AECEnv``: agents act in turn, the market moves when the last one has."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from pettingzoo import AECEnv
from pettingzoo.utils import AgentSelector

from p2penv.faces.parallel import MarketParallelEnv, Observation


class MarketAECEnv(AECEnv[str, Observation, NDArray[Any]]):
    """A market as a turn-based environment; nobody sees what others chose before the round is over."""

    def __init__(self, parallel: MarketParallelEnv) -> None:
        super().__init__()
        self.parallel = parallel
        self.functional = parallel.functional
        self.metadata = parallel.metadata | {"is_parallelizable": True}
        self.render_mode = parallel.render_mode
        self.possible_agents = parallel.possible_agents
        self.observation_spaces = parallel.observation_spaces
        self.action_spaces = parallel.action_spaces
        self.state_space = parallel.state_space
        self._actions: dict[str, NDArray[Any]] | None = None

    def observation_space(self, agent: str) -> spaces.Box:
        """Observation space of an agent, the same object each time."""
        return self.parallel.observation_space(agent)

    def action_space(self, agent: str) -> spaces.Box:
        """Action space of an agent, the same object each time."""
        return self.parallel.action_space(agent)

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        """Start an episode."""
        self._observations, self.infos = self.parallel.reset(seed, options)
        self.agents = self.parallel.agents[:]
        self.rewards = dict.fromkeys(self.agents, 0.0)
        self._cumulative_rewards = dict.fromkeys(self.agents, 0.0)
        self.terminations = dict.fromkeys(self.agents, False)
        self.truncations = dict.fromkeys(self.agents, False)
        self._actions = {}
        self._selector = AgentSelector(self.agents)
        self.agent_selection = self._selector.next()

    def observe(self, agent: str) -> Observation:
        """Observation of the current round."""
        return self._observations[agent]

    def state(self) -> Observation:
        """All observations, flattened."""
        return self.parallel.state()

    def step(self, action: NDArray[Any] | None) -> None:
        """Choose for the agent whose turn it is.

        Raises:
            ValueError: the action has the wrong shape, is not finite or leaves [−1, 1]; the turn is not over then.
            TypeError: no numbers.
            RuntimeError: before the first reset.
        """
        if self._actions is None:
            raise RuntimeError("call reset before step")
        agent = self.agent_selection
        if self.terminations[agent] or self.truncations[agent]:
            self._was_dead_step(action)
            return
        (self._actions[agent],) = self.parallel.runner.check_own(agent, [action])
        self._cumulative_rewards[agent] = 0.0
        if self._selector.is_last():
            played, self._actions = self._actions, {}
            (self._observations, self.rewards, self.terminations, self.truncations, self.infos) = self.parallel.step(
                played
            )
        else:
            self._clear_rewards()
        self.agent_selection = self._selector.next()
        self._accumulate_rewards()

    def render(self) -> NDArray[np.uint8] | None:
        """Picture of the market."""
        return self.parallel.render()

    def close(self) -> None:
        """Close the window, if there is one."""
        self.parallel.close()
