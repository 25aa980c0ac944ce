"""Exponential mechanism on a finite range of allocations: pure array functions, batched over leading axes.

Source: Hoseinpour et al. (Algorithm 2 and equation (12)). Each range is drawn once, uniformly from its polytope, and
never looks at reports: then P(r) ∝ exp(βW(r)) is private. The paper adds the optimum of the reports to the range,
which gives privacy away (the support itself tells reports apart); :func:`with_optimum` does that for comparison.
"""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType
from typing import Any, Literal, NamedTuple

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from p2penv.core import validation
from p2penv.core.arrays import Array, namespace, row_max, row_sum, running_sum
from p2penv.dpvcg import sampling
from p2penv.dpvcg.rules import Bids, Bounds, Law

Floats = NDArray[np.float64]


class Range(NamedTuple):
    """Allocations a mechanism chooses from [kWh]: those of the market, and those of the market without each agent."""

    points: Array  # (m, n), or (..., m, n) where the range differs among environments
    without: Array  # (n, m, n) or (..., n, m, n); [i] balances without agent i, whose column is zero


class Residual(NamedTuple):
    """How the law of the draw depends on one agent's report: P(r) ∝ weight·exp(βv_i(quantity))."""

    quantity: Array  # (..., m) y_i [kWh]
    weight: Array  # (..., m) exp(βW_{-i}), scaled so that the largest is one
    others: Array  # (..., m) W_{-i} = Σ_{j≠i} v_j [$]


# Laws.


def _product(first: Array, second: Array) -> Array:
    """Matrix product; by default JAX multiplies with ten bits or fewer on accelerators, too coarse for βW."""
    if array_api_compat.is_jax_array(first) or array_api_compat.is_jax_array(second):
        import jax

        return jax.numpy.matmul(first, second, precision="highest")
    return first @ second


def _features(points: Array) -> Array:
    """(y², y) ``(..., m, 2n)``: welfare is linear in them."""
    return namespace(points).concat([points * points, points], axis=-1)


def _coefficients(bids: Bids) -> Array:
    xp = namespace(bids.quadratic, bids.linear)
    return xp.concat(xp.broadcast_arrays(bids.quadratic, bids.linear), axis=-1)


def _apply(features: Array, coefficients: Array) -> Array:
    """Products ``(..., m)`` of features ``(..., m, 2n)`` with coefficients ``(..., 2n)``; shared features are fast."""
    if features.ndim == 2:
        return _product(coefficients, features.T)
    return _product(features, coefficients[..., None])[..., 0]


def _apply_without(features: Array, coefficients: Array) -> Array:
    """Products ``(..., n, m)`` for each sub-market's features ``(..., n, m, 2n)``."""
    if features.ndim > 3:
        return _apply(features, coefficients[..., None, :])
    size, points, width = features.shape
    xp = namespace(features)
    flat = _apply(xp.reshape(features, (size * points, width)), coefficients)
    return xp.reshape(flat, (*coefficients.shape[:-1], size, points))


def welfare(points: Array, bids: Bids) -> Array:
    """Welfare ``(..., m)`` of the points ``(m, n)`` or ``(..., m, n)`` [$]."""
    return _apply(_features(points), _coefficients(bids)) + row_sum(bids.constant)[..., None]


def _tilt(scores: Array, beta: Array | float) -> tuple[Array, Array, Array]:
    """Weights ``(..., m)`` proportional to exp(β·score), their sums and the best scores ``(...)``."""
    xp = namespace(scores)
    top = row_max(scores)
    weight = xp.exp(beta * (scores - top[..., None]))
    return weight, row_sum(weight), top


def _expectations(scores: Array, average: Array, beta: Array | float) -> tuple[Array, Array, Array, Array]:
    """Weights ``(..., m)`` and their sums, expected score, and ln mean exp(β·score) / β, all ``(...)``."""
    xp = namespace(scores)
    weight, total, top = _tilt(scores, beta)
    expected = xp.vecdot(weight, scores) / total
    # Near β = 0 the logarithm over β loses digits; what it is, the mean of E_b[W] over b in [0, β], is then the
    # mean of both ends to O(β²). Where to change over makes both errors small.
    reach = beta * (top - average)
    flat = reach < float(xp.finfo(scores.dtype).eps) ** (1.0 / 3.0)
    divisor = xp.where(flat, 1.0, beta + 0.0 * reach)
    free = xp.where(flat, 0.5 * (average + expected), top + xp.log(total / scores.shape[-1]) / divisor)
    return weight, total, expected, free


def _mean(features: Array) -> Array:
    """Mean over the points, ``(..., m, 2n)`` to ``(..., 2n)``."""
    return namespace(features).mean(features, axis=-2)


def law(support: Range, bids: Bids, beta: Array | float, true: Bids | None = None) -> Law:
    """What follows from P(r) ∝ exp(βW(r)) on the range, with and without each agent.

    Args:
        support: shared by all environments (fast: matrix products), or with their leading axes.
        bids: reported, ``(..., n)``, of the same namespace and dtype as the range.
        beta: β ≥ 0, one number [1/$]; zero is the uniform law.
        true: valuations for ``true_value``; None: as reported.
    """
    xp, agents = namespace(support.points, bids.linear), support.points.shape[-1]
    coefficients, constant = _coefficients(bids), row_sum(bids.constant)
    features, without = _features(support.points), _features(support.without)

    scores = _apply(features, coefficients)
    average = xp.vecdot(_mean(features), coefficients)
    weight, total, expected, free = _expectations(scores, average, beta)
    moments = _product(weight, features) if features.ndim == 2 else _product(weight[..., None, :], features)[..., 0, :]
    moments = moments / total[..., None]
    square, quantity = moments[..., :agents], moments[..., agents:]

    scores = _apply_without(without, coefficients)
    average = xp.vecdot(_mean(without), coefficients[..., None, :])
    *_, expected_without, free_without = _expectations(scores, average, beta)
    constants_without = constant[..., None] - bids.constant
    own = bids.quadratic * square + bids.linear * quantity + bids.constant
    return Law(
        welfare=expected + constant,
        quantity=quantity,
        value=own,
        true_value=own if true is None else true.quadratic * square + true.linear * quantity + true.constant,
        free=free + constant,
        welfare_without=expected_without + constants_without,
        free_without=free_without + constants_without,
    )


def probabilities(points: Array, bids: Bids, beta: Array | float) -> Array:
    """Probabilities ``(..., m)`` of the points ``(m, n)`` or ``(..., m, n)`` under bids ``(..., n)`` (12)."""
    weight, total, _ = _tilt(_apply(_features(points), _coefficients(bids)), beta)
    return weight / total[..., None]


def choose(chances: Array, uniforms: Array) -> Array:
    """Index ``(...)`` of the point drawn, by the inverse distribution function.

    Args:
        chances: ``(..., m)`` nonnegative, not all zero; need not add up to one.
        uniforms: ``(...)`` in [0, 1); 1, to which a change of precision may round, counts as just below.
    """
    xp = namespace(chances, uniforms)
    below = running_sum(chances)
    total = below[..., -1:]
    # The second condition stops at the last point that has a chance.
    passed = (below <= uniforms[..., None] * total) & (below < total)
    return xp.count_nonzero(passed, axis=-1)


def residual(points: Array, bids: Bids, beta: Array | float, agent: int) -> Residual:
    """The law of the draw as a family in the report of ``agent``, whose own bid in ``bids`` does not matter.

    Args:
        points: ``(m, n)`` or ``(..., m, n)``.
        bids: ``(..., n)`` of the others.
        beta: β ≥ 0 [1/$].
        agent: index, 0 to n − 1.
    """
    if not 0 <= agent < points.shape[-1]:
        raise ValueError(f"agent must be in [0, {points.shape[-1] - 1}], got {agent}")
    xp = namespace(points, bids.linear)
    absent = xp.asarray(np.arange(points.shape[-1]) == agent)
    others = welfare(points, Bids(*(xp.where(absent, 0.0, field) for field in bids)))
    quantity = xp.broadcast_to(points[..., agent], others.shape)
    return Residual(quantity, _tilt(others, beta)[0], others)


def with_optimum(points: Array, allocation: Array) -> Array:
    """Range ``(..., m + 1, n)`` with the efficient allocation ``(..., n)`` of the reports added last, as in the paper.

    Not private: the range depends on the reports, so neighbouring reports have different supports and the privacy
    loss is infinite. ``points`` is ``(m, n)``, or ``(n, m, n)`` for allocations ``(..., n, n)`` of the sub-markets.
    """
    xp = namespace(points, allocation)
    last = allocation[..., None, :]
    shape = np.broadcast_shapes(tuple(last.shape[:-2]), tuple(points.shape[:-2]))
    return xp.concat([xp.broadcast_to(points, (*shape, *points.shape[-2:])), last], axis=-2)


# Ranges.


def _check_volume(bounds: Bounds, name: str) -> None:
    low, high = float(np.sum(bounds.low)), float(np.sum(bounds.high))
    if len(bounds.low) < 2 or not low < 0.0 < high:
        raise ValueError(
            f"{name} has no range of allocations that balance: the limits of its {len(bounds.low)} agents add up to "
            f"[{low:g}, {high:g}], which must contain 0 in its interior, and there must be at least two agents"
        )


def _hopsy() -> ModuleType:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a plotting library it imports announces its next major version
            return importlib.import_module("hopsy")
    except ImportError:
        raise ImportError('sampler="hopsy" needs the library hopsy: pip install p2penv[hopsy]') from None


def _hit_and_run(bounds: Bounds, size: int, seed: np.random.SeedSequence) -> Floats:
    """Uniform points by coordinate hit-and-run in the rounded null space of the balance, started and thinned by 20n.

    Steps along coordinates are exact draws from a line, so nothing is rejected. Neighbouring draws have a correlation
    below 0.01 at n = 6 and of 0.02 at n = 60; rounding takes seconds at n = 60 and a minute at 200.
    """
    hopsy, agents = _hopsy(), len(bounds.low)
    box = np.concatenate([np.eye(agents), -np.eye(agents)])
    problem = hopsy.Problem(box, np.concatenate([bounds.high, -bounds.low]))
    problem = hopsy.round(hopsy.add_equality_constraints(problem, np.ones((1, agents)), np.zeros(1)))
    chain = hopsy.MarkovChain(problem, proposal=hopsy.UniformCoordinateHitAndRunProposal)
    generator = hopsy.RandomNumberGenerator(int(seed.generate_state(1)[0]))
    # One draw more than asked: the first is burn-in.
    _, states = hopsy.sample(chain, generator, n_samples=size + 1, thinning=20 * agents)
    return np.array(states[0, 1:])


def _draw(bounds: Bounds, size: int, seed: np.random.SeedSequence, sampler: str) -> Floats:
    if sampler == "hopsy":
        return _hit_and_run(bounds, size, seed)
    agents = len(bounds.low)
    flat = Bids(np.full(agents, -1.0), np.zeros(agents), np.zeros(agents))  # β = 0 makes any valuation the uniform law
    return np.asarray(sampling.sample(flat, bounds, 0.0, size, np.random.default_rng(seed)))


def draw_range(
    bounds: Bounds,
    size: int,
    seed: int,
    sampler: Literal["exact", "hopsy"] = "exact",
    points: Any = None,
    *,
    balance_tolerance: float = 1e-9,
) -> Range:
    """Points drawn uniformly from the polytope {low ≤ y ≤ high, Σy = 0} and from that of each market without one agent.

    Each polytope has a stream of its own: the same seed gives the same range.

    Args:
        bounds: public limits ``(n,)``, n ≥ 3.
        size: points of each range, ≥ 1.
        seed: of all draws.
        sampler: "exact", independent draws; "hopsy", the Markov chain of that library (an optional extra).
        points: ``(m, n)`` to use for the market with all agents; None: drawn like the others.
        balance_tolerance: how far such a point may be off balance [kWh]; those printed in Table III need 0.05.

    Raises:
        ValueError: the market, or the market without an agent, leaves no room to balance, or a given point is not an
            allocation; names which.
        ImportError: "hopsy" without the library.
    """
    validation.count("size", size)
    validation.choice("sampler", sampler, ("exact", "hopsy"))
    low, high = np.asarray(bounds.low, np.float64), np.asarray(bounds.high, np.float64)
    agents = len(low)
    validation.ordered("low", low, "high", high)
    _check_volume(Bounds(low, high), "the market")
    seeds = np.random.SeedSequence(seed).spawn(agents + 1)
    given = None if points is None else _points("points", points, agents)
    if given is None:
        given = _draw(Bounds(low, high), size, seeds[-1], sampler)
    else:
        _check_points("points", given, Bounds(low, high), 1e-9, balance_tolerance)
    without = np.zeros((agents, size, agents))
    for agent in range(agents):
        others = np.arange(agents) != agent
        rest = Bounds(low[others], high[others])
        _check_volume(rest, f"the market without agent {agent}")
        without[agent][:, others] = _draw(rest, size, seeds[agent], sampler)
    return Range(given, without)


def _points(name: str, values: Any, agents: int) -> Floats:
    points = validation.floats(name, values)
    if points.ndim != 2 or points.shape[0] < 1 or points.shape[1] != agents:
        raise ValueError(f"{name} must have shape (m, {agents}) with m >= 1, got {points.shape}")
    return points


def _check_points(name: str, points: Floats, bounds: Bounds, bound_tolerance: float, balance_tolerance: float) -> None:
    low, high = np.asarray(bounds.low) - bound_tolerance, np.asarray(bounds.high) + bound_tolerance
    for wrong, allowed in (
        (~np.isfinite(points), "finite"),
        ((points < low) | (points > high), f"inside its limits to within {bound_tolerance:g} kWh"),
    ):
        if wrong.any():
            point, agent = (int(i) for i in np.argwhere(wrong)[0])
            value = float(points[point, agent])
            raise ValueError(f"{name}[{point}] of agent {agent} must be {allowed}, got {value!r}")
    excess = np.abs(points.sum(axis=-1))
    if (excess > balance_tolerance).any():
        point = int(np.argmax(excess > balance_tolerance))
        raise ValueError(
            f"{name}[{point}] must balance to within balance_tolerance = {balance_tolerance:g} kWh, "
            f"got a total of {float(points[point].sum()):g}"
        )


def check_range(
    support: Range, bounds: Bounds, *, bound_tolerance: float = 1e-9, balance_tolerance: float = 1e-9
) -> Range:
    """A range given by the user as float arrays, if it is one.

    Args:
        support: ``points (m, n)`` and ``without (n, k, n)``, whose own columns must be zero.
        bounds: public limits ``(n,)``.
        bound_tolerance: how far a quantity may lie outside its limits [kWh].
        balance_tolerance: how far a point may be off balance [kWh]. The ten points printed in Table III are rounded
            and need 0.05.

    Raises:
        ValueError: names range, point, agent, value and what is allowed.
    """
    agents = np.shape(bounds.low)[0]
    points, without = _points("points", support.points, agents), validation.floats("without", support.without)
    if without.ndim != 3 or without.shape[1] < 1 or without.shape[::2] != (agents, agents):
        raise ValueError(f"without must have shape ({agents}, m, {agents}) with m >= 1, got {without.shape}")
    _check_points("points", points, bounds, bound_tolerance, balance_tolerance)
    for agent in range(agents):
        absent = np.arange(agents) == agent
        limits = Bounds(np.where(absent, 0.0, bounds.low), np.where(absent, 0.0, bounds.high))
        if without[agent][:, absent].any():
            raise ValueError(f"without[{agent}] must be zero in column {agent}: agent {agent} is not there")
        _check_points(f"without[{agent}]", without[agent], limits, bound_tolerance, balance_tolerance)
    return Range(points, without)
