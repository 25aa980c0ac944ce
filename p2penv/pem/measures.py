"""Measures of a joint action in a window of the private energy market, beside truth, the exact price and a planner."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from p2penv.core.arrays import Array, clip, namespace, row_sum, safe_divide
from p2penv.core.roots import piecewise_root
from p2penv.pem import settlement
from p2penv.pem.equilibrium import exploitability_of
from p2penv.pem.settlement import Homes, Reports

if TYPE_CHECKING:
    from p2penv.pem.env import PEM, Params, State

# Exploitability is certified to this [cents/h].
GAIN_TOLERANCE = 1e-2


def assess(env: PEM, params: Params, state: State, actions: Array) -> dict[str, Array]:
    """Costs and exploitability ``(E, N)``, social costs ``(E,)``; see ``PEM.assess`` [cents]."""
    homes, reports, charging = env.decode(params, state, actions)
    offer, truth = env._offer(params, actions), settlement.truthful(homes)
    played = env.play(params, homes, reports, charging, offer)
    honest = env.play(params, homes, truth, charging, offer)
    # Net power and payments.
    outcomes = {
        "": (played.net, played.settled.payment),
        "_truthful": (honest.net, honest.settled.payment),
        "_equilibrium": _equilibrium(params, homes, truth),
        "_coordinated": _planned(env, params, state, homes, charging),
    }
    costs, social = {}, {}
    for name, (net, payment) in outcomes.items():
        cost = -params.hours * settlement.rewards(homes, net, payment)
        social[f"social_cost{name}"] = row_sum(cost)
        bill = [params.hours * settlement.bill(homes, payment)] if env.led else []
        costs[f"cost{name}"] = namespace(cost).concat([cost, *bill], axis=-1)
    gain = params.hours * exploitability_of(
        homes, reports, params.prices, env.pricing, env.response, env.caps, GAIN_TOLERANCE
    )
    if env.led:
        gain = namespace(gain).concat([gain, 0.0 * gain[:, :1]], axis=-1)
    return costs | social | {"exploitability": gain, "nearest": np.zeros(len(state.charge), bool)}


def _equilibrium(params: Params, homes: Homes, truth: Reports) -> tuple[Array, Array]:
    prices = params.prices
    terms = settlement.price(homes, truth, prices, "exact")
    net = settlement.best_net(homes, truth, terms, prices, "exact")
    return net, settlement.settle(homes, truth, terms, net, prices, "exact").payment


def _planned(env: PEM, params: Params, state: State, homes: Homes, charging: Array) -> tuple[Array, Array]:
    """Net power and payments ``(E, n)`` when a planner sets all loads and all trade at its price λ.

    λ is between buyback and retail. Loads answer it, so net power S − k/λ is linear in 1/λ within its limits: the λ
    at which it adds up to zero is a root of a piecewise-linear function. Where there is none the grid makes up the
    difference at its own price.
    """
    xp, prices = namespace(homes.nominal), params.prices
    base = env._row(params.load, state.time)
    free = env._row(params.generation, state.time) - charging
    # Sellers' answers may use up all they have, beyond their flexibility: so may the planner's.
    lowest = xp.minimum(free - (1.0 + params.flexibility) * base, 0.0 * base)
    highest = free - (1.0 - params.flexibility) * base
    k, capacity = homes.preference, homes.capacity
    points = xp.concat([(capacity - highest) / k, (capacity - lowest) / k], axis=-1)
    most = row_sum(highest)
    root = piecewise_root(points, xp.concat([k, -k], axis=-1), -most, 0.0 * most)
    root = xp.where(most < 0.0, 0.0 * root, root)  # bought from the grid, whatever the loads
    inverse = clip(root, 0.0 * root + 1.0 / prices.retail, 0.0 * root + safe_divide(1.0, prices.buyback, np.inf))
    net = clip(capacity - k * inverse[..., None], lowest, highest)
    return net, -net / inverse[..., None]
