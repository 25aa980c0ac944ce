"""Reference policies of the communication game: exact profiles as joint policies with full information."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from p2penv.communication import equilibrium
from p2penv.communication.params import Params
from p2penv.core.arrays import Array
from p2penv.core.contract import Draw, Noise

if TYPE_CHECKING:
    from p2penv.communication.env import Communication, State


class ProfilePolicy:
    """Plays an exact profile of the stage game in every state.

    Args:
        env: the environment whose action encoding to use.
        name: ``"truthful"`` (x = 0), ``"ve"`` (variational equilibrium) or ``"coordinated"`` (planner); where the
            joint set of a state is empty the nearest reachable report total is used.
    """

    full_information = True

    def __init__(self, env: Communication, name: Literal["truthful", "ve", "coordinated"]) -> None:
        self.env = env
        self.name = name
        self.noise: Mapping[str, Draw] = {}

    def act(self, params: Params, observations: Array, state: State, noise: Noise) -> Array:
        """Actions ``(E, N, 2)`` in the states."""
        del observations, noise
        y = state.private_information
        if self.name == "truthful":
            return self.env.encode(params, 0.0 * y)
        solve = equilibrium.variational_equilibrium if self.name == "ve" else equilibrium.coordinated
        floor = self.env.scenario.privacy == "floor"
        profile = solve(params, private_information=y, infeasible="nearest", floor=floor)
        return self.env.encode(params, profile.shift)
