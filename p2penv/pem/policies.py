"""Reference policies of the private energy market: truthful reports, batteries at rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from p2penv.core.arrays import Array, namespace, safe_divide
from p2penv.core.contract import Draw, Noise
from p2penv.pem import settlement

if TYPE_CHECKING:
    from p2penv.pem.env import PEM, Params, State


class TruthfulPolicy:
    """Base loads, true reports, batteries at rest.

    Args:
        env: the environment whose action encoding to use.
    """

    full_information = True
    pricing: settlement.Pricing = "exact"
    """By which a leading buyer offers."""

    def __init__(self, env: PEM) -> None:
        self.env = env
        self.noise: Mapping[str, Draw] = {}

    def loads(self, params: Params, state: State) -> Array:
        """Loads ``(E, n)`` [kW]."""
        return self.env._row(params.load, state.time)

    def joint(self, params: Params, state: State) -> Array:
        """Actions ``(E, N, 5)``; the leading buyer's are still to come."""
        return self.env.encode(params, state, self.loads(params, state))

    def act(self, params: Params, observations: Array, state: State, noise: Noise) -> Array:
        """Actions ``(E, N, 5)``; a leading buyer offers the rule's price."""
        del observations, noise
        actions = self.joint(params, state)
        if not self.env.led:
            return actions
        xp, prices = namespace(actions), params.prices
        homes, reports, _ = self.env.decode(params, state, actions)
        terms = settlement.price(homes, reports, prices, self.pricing)
        place = 2.0 * safe_divide(terms.price - prices.low, prices.high - prices.low + 0.0 * terms.price) - 1.0
        leader = xp.minimum(xp.maximum(place, 0.0 * place - 1.0), 0.0 * place + 1.0)
        column = xp.concat([leader[:, None, None], *[0.0 * leader[:, None, None]] * (actions.shape[-1] - 1)], axis=-1)
        return xp.concat([actions[:, :-1], column], axis=1)


class StackelbergPolicy(TruthfulPolicy):
    """True reports, batteries at rest, and sellers' loads that answer the rule's price, as far as they can be moved."""

    def loads(self, params: Params, state: State) -> Array:
        """Loads ``(E, n)`` [kW]."""
        homes, reports, charging = self.env.decode(
            params, state, self.env.encode(params, state, super().loads(params, state))
        )
        terms = settlement.price(homes, reports, params.prices, self.pricing)
        net = settlement.best_net(homes, reports, terms, params.prices, self.pricing)
        return homes.capacity - net - 1.0 - params.loss * charging
