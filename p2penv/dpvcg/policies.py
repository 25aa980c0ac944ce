"""Reference policies of the VCG market."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from p2penv.core.arrays import Array
from p2penv.core.contract import Draw, Noise

if TYPE_CHECKING:
    from p2penv.dpvcg.env import DPVCG, Params, State


class TruthfulPolicy:
    """Everybody reports the own type, taken from the state: observations are rounded to float32.

    Args:
        env: the environment whose action encoding to use.
    """

    full_information = True

    def __init__(self, env: DPVCG) -> None:
        self.env = env
        self.noise: Mapping[str, Draw] = {}

    def act(self, params: Params, observations: Array, state: State, noise: Noise) -> Array:
        """Actions ``(E, n, k)``."""
        del observations, noise
        return self.env.encode(params, state.types)
