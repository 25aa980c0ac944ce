"""Markets of up to four agents under the continuous exponential mechanism: integrals on panels.

Two groups of up to two agents are integrated by Gauss-Legendre panels given the sum of each, and so are the sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

from p2penv.core.arrays import Array, namespace, row_sum
from p2penv.dpvcg.fourier import constant, gauss
from p2penv.dpvcg.rules import Bids, Bounds, value


class Panels(NamedTuple):
    """Markets of up to four agents, m at once: S sums s of the first group, Q nodes in each group given its sum.

    Groups: the first two agents and the rest, or one each.
    """

    agents: Array  # (m, g) who takes part, the first group first
    first: Array  # (m, g₁, S, Q) quantities of the first group, Σ = s [kWh]
    second: Array  # (m, g₂, S, Q) quantities of the second, Σ = −s [kWh]
    first_weights: Array  # (m, S, Q)
    second_weights: Array  # (m, S, Q)
    weights: Array  # (m, S), zero where a market has fewer sums than the others
    log_volume: Array  # (m,)


class Pairs(NamedTuple):
    """Quadrature for up to four agents."""

    full: Panels  # the market, m = 1
    without: Panels  # the market without each agent, m = n


class _Integral(NamedTuple):
    """Panels with bids: laws of the nodes ``(B, m, S, Q)`` of both groups, and ln Z ``(B, m)``."""

    first: Array
    second: Array
    log: Array


def _group(bids: Bids, agents: Array) -> Bids:
    """Bids ``(B, m, g, 1, 1)`` of the agents ``(m, g)`` of each market."""
    xp = namespace(bids.linear)
    flat, shape = xp.reshape(agents, (-1,)), (bids.linear.shape[0], *agents.shape, 1, 1)
    return Bids(*(xp.reshape(xp.take(field, flat, axis=-1), shape) for field in bids))


def _split(panels: Panels) -> tuple[Array, Array]:
    """Agents of the first and of the second group, ``(m, g₁)`` and ``(m, g₂)``."""
    size = panels.first.shape[1]
    return panels.agents[:, :size], panels.agents[:, size:]


def _integrate(panels: Panels, bids: Bids, beta: Array) -> _Integral:
    """The law of each market on its nodes; bids ``(B, n)``, β ``(B,)``."""
    xp = namespace(beta)
    beta = beta[:, None, None, None]
    masses, laws, tops = [], [], []
    groups = zip(_split(panels), panels[1:3], panels[3:5], strict=True)
    for agents, nodes, weights in groups:
        exponent = beta * xp.sum(value(_group(bids, agents), nodes), axis=2)
        tops.append(constant(xp.max(exponent, axis=-1)))
        law = weights * xp.exp(exponent - tops[-1][..., None])
        masses.append(xp.sum(law, axis=-1))
        laws.append(law)
    top = tops[0] + tops[1]
    highest = xp.max(top, axis=-1)
    outer = panels.weights * xp.exp(top - highest[..., None])
    total = row_sum(outer * masses[0] * masses[1])
    outer = (outer / total[..., None])[..., None]
    return _Integral(
        laws[0] * outer * masses[1][..., None], laws[1] * outer * masses[0][..., None], highest + xp.log(total)
    )


def moments(panels: Panels, bids: Bids, beta: Array) -> tuple[Array, Array, Array, Array]:
    """Returns ln Z and E[W] ``(B, m)``, E[y] and E[y²] ``(B, m, g)``; bids ``(B, n)``, β ``(B,)``."""
    xp = namespace(beta)
    integral = _integrate(panels, bids, beta)
    quantity, square, welfare = [], [], 0.0
    groups = zip(_split(panels), panels[1:3], (integral.first, integral.second), strict=True)
    for agents, nodes, law in groups:
        law = law[:, :, None, :, :]
        quantity.append(xp.sum(law * nodes, axis=(-2, -1)))
        square.append(xp.sum(law * (nodes * nodes), axis=(-2, -1)))
        welfare = welfare + xp.sum(law * value(_group(bids, agents), nodes), axis=(-3, -2, -1))
    return integral.log, welfare, xp.concat(quantity, axis=-1), xp.concat(square, axis=-1)


def residual(quadrature: Pairs, bids: Bids, beta: Array, agent: int) -> tuple[Array, Array, Array]:
    """The same on panels: nodes of the agent's group, the other group integrated out."""
    xp = namespace(beta)
    panels = quadrature.full
    keep = xp.astype(xp.arange(bids.linear.shape[-1]) != agent, bids.linear.dtype)
    bids = Bids(*(field * keep for field in bids))
    integral = _integrate(panels, bids, beta)
    sides = list(zip(_split(panels), panels[1:3], (integral.first, integral.second), strict=True))
    if agent >= panels.first.shape[1]:
        sides.reverse()
    (mates, own, law), (rest, nodes, other) = sides
    welfare = xp.sum(value(_group(bids, mates), own), axis=2)
    beyond = xp.sum(other[:, :, None, ...] * value(_group(bids, rest), nodes), axis=(2, -1)) / xp.sum(other, axis=-1)
    weighted = law * (welfare + beyond[..., None])
    place = agent if agent < panels.first.shape[1] else agent - panels.first.shape[1]
    quantity = xp.broadcast_to(own[:, place, ...], law.shape[1:])
    return xp.reshape(quantity, (-1,)), *(xp.reshape(f, (beta.shape[0], -1)) for f in (law, weighted))


def _corners(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Sums at which the density of a group's sum is not smooth."""
    return np.array([sum(ends) for ends in product(*zip(low, high, strict=True))])


def _given_sum(low: np.ndarray, high: np.ndarray, total: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes ``(g, S, Q)`` and weights ``(S, Q)`` for up to two quantities that add up to ``total (S,)``."""
    if low.size < 2:
        return np.broadcast_to(total, (low.size, total.size))[..., None], np.ones((total.size, 1))
    nodes, weights = gauss(count)
    start, end = np.maximum(low[0], total - high[1]), np.minimum(high[0], total - low[1])
    own = 0.5 * (start + end)[:, None] + 0.5 * (end - start)[:, None] * nodes
    return np.stack([own, total[:, None] - own]), 0.5 * (end - start)[:, None] * weights


def _panels(low: np.ndarray, high: np.ndarray, markets: Sequence[Sequence[int]], count: int) -> Panels:
    """Panels of markets of equally many agents, with ``count`` nodes a panel."""
    nodes, weights = gauss(count)
    found = []
    for agents in map(list, markets):
        cut = 2 if len(agents) > 2 else 1
        one, other = ((low[group], high[group]) for group in (agents[:cut], agents[cut:]))
        ends = max(one[0].sum(), -other[1].sum()), min(one[1].sum(), -other[0].sum())
        if len(agents) == 1:
            sums, outer = np.zeros(1), np.ones(1)
        else:
            kinks = np.concatenate([_corners(*one), -_corners(*other)])
            breaks = np.unique(np.clip(kinks, *ends))
            breaks = breaks[np.diff(breaks, prepend=-np.inf) > 1e-12 * np.ptp(breaks)]
            width = 0.5 * np.diff(breaks)[:, None]
            sums, outer = (breaks[:-1, None] + width + width * nodes).ravel(), (width * weights).ravel()
        found.append((sums, outer, _given_sum(*one, sums, count), _given_sum(*other, -sums, count)))
    # The shorter ones repeat their first sum, with no weight.
    longest = max(sums.size for sums, *_ in found)
    rows = [np.r_[np.arange(sums.size), np.zeros(longest - sums.size, int)] for sums, *_ in found]
    outer = np.array([np.pad(outer, (0, longest - outer.size)) for _, outer, *_ in found])
    groups = [
        (
            np.stack([entry[side][0][:, row] for entry, row in zip(found, rows, strict=True)]),
            np.stack([entry[side][1][row] for entry, row in zip(found, rows, strict=True)]),
        )
        for side in (2, 3)
    ]
    volume = (outer * groups[0][1].sum(-1) * groups[1][1].sum(-1)).sum(-1)
    return Panels(np.array(markets), groups[0][0], groups[1][0], groups[0][1], groups[1][1], outer, np.log(volume))


def build(bounds: Bounds, count: int) -> Pairs:
    """Quadrature with ``count`` nodes a panel."""
    size = bounds.low.size
    everyone = range(size)
    rest = [[j for j in everyone if j != i] for i in everyone]
    full, without = (_panels(bounds.low, bounds.high, markets, count) for markets in ([everyone], rest))
    return Pairs(full, without)
