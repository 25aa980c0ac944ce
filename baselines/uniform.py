"""The policy that knows nothing: uniform actions, for any market."""

from __future__ import annotations

from collections.abc import Mapping

from p2penv.core.arrays import Array
from p2penv.core.contract import Draw, MarketEnv, Noise


class UniformPolicy:
    """Independent uniform actions on [−1, 1], drawn through declared noise."""

    full_information = False

    def __init__(self, env: MarketEnv) -> None:
        shape = (sum(role.count for role in env.roles), max(role.actions for role in env.roles))
        self.noise: Mapping[str, Draw] = {"actions": Draw("uniform", shape)}

    def act(self, params: object, observations: Array, state: object, noise: Noise) -> Array:
        """Actions ``(E, N, A)``."""
        del params, observations, state
        return 2.0 * noise["actions"] - 1.0
