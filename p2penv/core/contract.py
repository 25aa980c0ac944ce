"""The functional contract: what a market must offer so that every face, policy and learner can use it.

A market is a pure function of arrays with exactly one leading axis, the environments ``E``. What is static
(roles, horizon, options) are attributes; what is numeric is an argument (``params``), so that a second scenario
reuses a compiled function and scenarios can be mapped over and differentiated. Randomness comes in as arrays,
episodes are restarted by the faces, and actions are checked by the faces: ``step`` does neither. ``assess`` is part of
the contract, so that training, evaluation and reports serve every market without knowing it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from p2penv.core.arrays import Array

Noise = dict[str, Array]


class Draw(NamedTuple):
    """One random input of a step, per environment."""

    kind: Literal["normal", "uniform"]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Role:
    """A contiguous block of agents with the same spaces; agents are called ``<name>_<n>``."""

    name: str
    count: int
    actions: int
    """Number of actions, each in [−1, 1]."""
    action_names: tuple[str, ...] = ()
    """Of its actions, if they mean something else than the market's first ones."""


class Step(NamedTuple):
    """Outcome of one step of ``E`` environments."""

    state: Any
    reward: Array  # (E, N)
    terminated: Array  # (E,) bool
    truncated: Array  # (E,) bool
    info: dict[str, Array]  # (E,) or (E, N), as `info_axes` says


class MarketEnv(Protocol):
    """A batched, pure market environment: one-shot games terminate, repeated ones truncate, never both.

    Learners use two members more of a market that has them. ``worth(params, state)``: what a state is worth to each
    agent ``(E, N)`` should the episode end in it, so that rewards can be shaped by it. ``rehearsal()``: a faster market
    that pays the same but for rounding, to measure in.
    """

    name: str
    metadata: Mapping[str, Any]
    scenario: Any
    """Has a ``name``."""
    action_names: tuple[str, ...]
    """Of the actions of the roles that do not name their own."""
    roles: tuple[Role, ...]
    horizon: int
    params: Any
    """NamedTuple of float64 NumPy arrays."""
    noise: Mapping[str, Draw]
    """What a step draws; empty for a deterministic one."""
    initial_noise: Mapping[str, Draw]
    info_axes: Mapping[str, Literal["env", "agent"]]
    context: Array
    """(N, Fs) constant features in [−1, 1]."""
    policies: tuple[str, ...]
    """Names of the exact profiles :meth:`policy` knows, what comes closest to an equilibrium first."""
    equilibrium: str
    """What ``cost_equilibrium`` of ``assess`` belongs to."""
    reward_scale: Array
    """(N,) relative size of each agent's stakes; learners may divide by it, which changes no equilibrium."""
    dtypes: tuple[str, ...]
    """Floating types it may be played in."""
    discount: float
    """What learners should discount by: 0 where actions do not move the state that pays."""
    features: tuple[str, ...]
    """Names of all features, the constant ones first."""
    reference: str
    """What play is compared with, one of ``policies``; measures called truthful are its."""
    money: str
    """Unit of costs."""
    episodic: bool
    """Whether ``assess`` judges whole episodes: what is done in one step pays in others."""

    def parameters(self, xp: ModuleType = np, dtype: Any = None) -> Any:
        """``params`` in a namespace and dtype, float64 by default.

        Raises:
            ValueError: the namespace cannot hold the dtype.
        """

    def initial(self, params: Any, noise: Noise, num_envs: int) -> Any:
        """State of ``num_envs`` fresh episodes."""

    def initial_info(self, params: Any, state: Any) -> dict[str, Array]:
        """The keys of ``Step.info`` for fresh episodes."""

    def step(self, params: Any, state: Any, actions: Array, noise: Noise) -> Step:
        """Play actions ``(E, N, A)`` in [−1, 1]."""

    def observe(self, params: Any, state: Any) -> tuple[Array, ...]:
        """Changing features, each broadcastable to ``(E, N)``, in [−1, 1]."""

    def policy(self, name: str) -> Policy:
        """Reference policy by name, one of ``policies``."""

    def assess(self, params: Any, state: Any, actions: Array) -> dict[str, Array]:
        """Exact measures of a joint action, what every report needs: of its stage game, or of whole episodes.

        Of an ``episodic`` market ``state`` and ``actions`` are all those of episodes played to the end, with the steps
        as a first axis before E; what comes back has none.

        Keys: ``cost``, ``cost_truthful``, ``cost_equilibrium``, ``cost_coordinated`` (the planner's),
        ``exploitability``, each ``(E, N)``; ``social_cost`` and the same three variants ``(E,)``, which with
        transfers to an operator is not the sum of the agents' costs; ``nearest (E,)`` where no feasible equilibrium
        exists and the nearest profile stands in. Where a bound on what a deviation gains is proven, ``regret_bound``
        ``(E, N)`` too. Other keys are measures of the market's own, ``(E, N)`` or ``(E,)``.
        """

    def render(self, state: Any, info: Mapping[str, Array]) -> Any:
        """Matplotlib figure of environment 0: the state actions answered, and the infos of that step."""


class Stream(Protocol):
    """A source of the random inputs a market declares."""

    def draw(self, spec: Mapping[str, Draw], num_envs: int) -> Noise:
        """One array ``(num_envs, *shape)`` for each name, drawn in the declared order."""


class Policy(Protocol):
    """A joint policy: actions for all agents of all environments at once."""

    full_information: bool
    """Whether ``act`` reads ``state`` (all agents' private data); otherwise it is given ``None``."""
    noise: Mapping[str, Draw]

    def act(self, params: Any, observations: Array, state: Any, noise: Noise) -> Array:
        """Actions ``(E, N, A)`` in [−1, 1]."""
