"""PettingZoo ``ParallelEnv``: all agents act at once, dictionaries in and out."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from pettingzoo import ParallelEnv

from p2penv.core import validation
from p2penv.core.contract import MarketEnv
from p2penv.faces.runner import Runner
from p2penv.faces.window import Picture

Observation = NDArray[np.float32]
Infos = dict[str, dict[str, float]]


def records(market_keys: tuple[str, ...], agent_keys: tuple[str, ...]) -> Callable[..., Infos]:
    """A function of the agents and of arrays ``(1,)`` by market key and ``(1, N)`` by agent key: everybody's infos.

    As ``namedtuple`` does, it writes the code for the keys: ``{"price": m0, "shift": a0}`` takes a third of the time
    of ``dict(zip(keys, values))``, and there is one for each agent and step.

    >>> records(("price",), ("shift",))(["a", "b"], {"price": np.array([9.5]), "shift": np.array([[0.0, 1.0]])})
    {'a': {'price': 9.5, 'shift': 0.0}, 'b': {'price': 9.5, 'shift': 1.0}}
    """
    market, own = ([f"{kind}{n}" for n in range(len(keys))] for kind, keys in (("m", market_keys), ("a", agent_keys)))
    pairs = zip((*market_keys, *agent_keys), (*market, *own), strict=True)
    record = ", ".join(f"{key!r}: {name}" for key, name in pairs)
    columns = ", ".join(("agents", *(f"info[{key!r}].tolist()[0]" for key in agent_keys)))
    rows = f"{{agent: {{{record}}} for {', '.join(('agent', *own))}, in zip({columns})}}"
    values = ", ".join(f"info[{key!r}].item()" for key in market_keys)
    source = f"lambda agents, info: (lambda {', '.join(market)}: {rows})({values})"
    built: Callable[..., Infos] = eval(source, {"__builtins__": {"zip": zip}})
    return built


class MarketParallelEnv(ParallelEnv[str, Observation, NDArray[Any]]):
    """A market as a PettingZoo parallel environment.

    Args:
        env: the functional environment.
        render_mode: None, ``"rgb_array"`` or ``"human"``.
        dtype: of the arithmetic inside.
        out_of_range: ``"raise"`` or ``"clip"`` actions outside [−1, 1].
    """

    def __init__(
        self, env: MarketEnv, render_mode: str | None = None, dtype: str = "float64", out_of_range: str = "raise"
    ) -> None:
        self.functional = env
        self.runner = Runner(env, 1, dtype=dtype, out_of_range=out_of_range)
        self.metadata = dict(env.metadata)
        self.render_mode = validation.choice("render_mode", render_mode, (None, *self.metadata["render_modes"]))
        self.possible_agents = list(self.runner.agents)
        self.agents: list[str] = []
        # One name more than needed, for of a single one there would be no tuple.
        self._pick = itemgetter(*self.possible_agents, self.possible_agents[0])
        self.observation_spaces = self.runner.observation_spaces
        self.action_spaces = self.runner.action_spaces
        self.state_space = spaces.Box(-1.0, 1.0, (int(np.prod(self.runner.observation_shape)),), np.float32)
        self._flags = [dict.fromkeys(self.possible_agents, flag) for flag in (False, True)]  # copies take a quarter
        self._padded = len({space.shape for space in self.action_spaces.values()}) > 1
        self._info: dict[str, NDArray[Any]] = {}
        self._picture = Picture(self.runner, self.render_mode)
        self._market_keys = tuple(key for key, axis in env.info_axes.items() if axis == "env")
        self._agent_keys = tuple(key for key, axis in env.info_axes.items() if axis == "agent")
        self._records: Callable[..., Infos] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_records": None}  # written code cannot be pickled

    def observation_space(self, agent: str) -> spaces.Box:
        """Observation space of an agent, the same object each time."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Box:
        """Action space of an agent, the same object each time."""
        return self.action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Observation], Infos]:
        """Start an episode. A seed restarts the random stream; ``options`` are accepted for the API, none exist."""
        del options
        self._info = self.runner.reset(seed)
        self.agents = self.possible_agents[:]
        return dict(zip(self.agents, self._observed(), strict=True)), self._infos()

    def step(
        self, actions: dict[str, NDArray[Any]]
    ) -> tuple[dict[str, Observation], dict[str, float], dict[str, bool], dict[str, bool], Infos]:
        """Play one action an agent.

        Raises:
            ValueError: an agent is missing or unknown, or its action has the wrong shape, is not finite or leaves
                [−1, 1]; nothing has changed then.
            TypeError: no dictionary, or actions that are no numbers.
            RuntimeError: before the first reset.
        """
        agents = self.agents
        if not agents:
            if self.runner.state is None:
                raise RuntimeError("call reset before step")
            return {}, {}, {}, {}, {}
        step = self.runner.step(self.runner.check(self._gather(actions)))
        self._info = step.info
        terminated, truncated = step.terminated.item(), step.truncated.item()
        results = (
            dict(zip(agents, self._observed())),  # noqa: B905, any strictness takes a quarter as long again
            dict(zip(agents, step.reward.tolist()[0])),  # noqa: B905
            self._flags[terminated].copy(),
            self._flags[truncated].copy(),
            self._infos(),
        )
        if terminated or truncated:
            self.agents = []
        if self.render_mode == "human":
            self.render()
        return results

    def _gather(self, actions: dict[str, NDArray[Any]]) -> NDArray[Any]:
        if not isinstance(actions, dict):
            raise TypeError(f"actions must be a dictionary by agent, got {type(actions).__name__}")
        try:
            rows = self._pick(actions)[:-1]
        except KeyError:
            rows = ()
        if len(rows) != len(actions) or not rows:
            names = set(self.agents)
            missing, unknown = sorted(names - actions.keys()), sorted(actions.keys() - names, key=str)
            raise ValueError(f"every agent needs one action; missing: {missing}, unknown: {unknown}")
        if not self._padded:
            try:
                joint = np.array([rows])
                if joint.shape == self.runner.shape:
                    return joint
            except ValueError:
                pass  # ragged; the loop below finds the row
        joint = np.zeros(self.runner.shape)
        for row, action, agent in zip(joint[0], rows, self.agents, strict=True):
            shape = self.action_spaces[agent].shape
            if np.shape(action) != shape:
                raise ValueError(f"action of {agent} must have shape {shape}, got {np.shape(action)}")
            row[: shape[0]] = action
        return joint

    def _infos(self) -> Infos:
        info = self._info
        if not info:
            return {agent: {} for agent in self.agents}
        if self._records is None:
            self._records = records(self._market_keys, self._agent_keys)
        return self._records(self.agents, info)

    def state(self) -> Observation:
        """All observations, flattened ``(N·F,)``: an array of its own each time.

        Raises:
            RuntimeError: before the first reset.
        """
        if self.runner.state is None:
            raise RuntimeError("call reset before state")
        return self._observed().reshape(-1)

    def _observed(self) -> Observation:
        return self.runner.observations(self.runner.state)[0]

    def render(self) -> NDArray[np.uint8] | None:
        """Picture of the market: an ``(height, width, 3)`` array, or a window with ``"human"``."""
        return self._picture.draw(self._info)

    def close(self) -> None:
        """Close the window, if there is one."""
        self._picture.close()
