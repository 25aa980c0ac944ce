"""Mechanisms of the VCG market: allocation, payments, what they cost in privacy and what may be gained by lying.

Source: Hoseinpour et al., Algorithms 1 to 3, Section VI-F. A mechanism is made for a scenario, whose valuations are the
true ones; every method takes ``reports``, by default the truth.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from p2penv.core import validation
from p2penv.core.arrays import namespace
from p2penv.core.params import freeze
from p2penv.dpvcg import continuous, finite, rules, sampling
from p2penv.dpvcg.quadrature import InaccurateError, make_quadrature
from p2penv.dpvcg.rules import Bids, Bounds, Law, Payments
from p2penv.dpvcg.scenario import Scenario
from p2penv.dpvcg.typespace import LEAST_CURVATURE, TypeSpace, reported_bids

Floats = NDArray[np.float64]
Support = Literal["continuous", "finite"]
Calibration = Literal["declared", "paper"]
# Relative error of expectations over the polytope; the second where β is so large that rounding forbids the first.
TOLERANCES = (1e-9, 1e-7)
# How far the allocations printed in Table III are off balance [kWh].
PRINTED = 0.05
PAYMENTS: Mapping[str, tuple[Payments, ...]] = {
    "vcg": ("vcg",),
    "exponential": ("algorithm3", "entropy"),
    "laplace": ("vcg",),
}


class Mechanism(Protocol):
    """What all mechanisms offer; energies are signed quantities [kWh], money in $."""

    scenario: Scenario
    space: TypeSpace
    kind: str
    """``"vcg"``, ``"exponential"`` or ``"laplace"``."""
    nominal_epsilon: float
    """ε asked for."""
    epsilon: float
    """ε that one published draw really costs each agent; infinite where nothing is hidden."""
    releases: Mapping[str, float]
    """What may be published, and the ε it costs. Payments never are: but for Laplace noise they follow from raw
    reports."""

    def accept(self, reports: Any) -> Bids:
        """Bids ``(..., n)`` of reports, or an error that names the agent."""

    def sample(self, size: int, rng: Any = None, reports: Any = None) -> Floats:
        """Allocations ``(size, n)``."""

    def expected_welfare(self, reports: Any = None) -> Floats:
        """Expected true welfare ``(...)``."""

    def expected_allocation(self, reports: Any = None) -> Floats:
        """Expected allocation ``(..., n)``."""

    def payments(self, kind: Payments | None = None, reports: Any = None) -> Floats:
        """Expected payments ``(..., n)``, negative where an agent is paid."""

    def payoffs(self, kind: Payments | None = None, reports: Any = None) -> Floats:
        """Expected true value less payment ``(..., n)``."""

    def regret_bound(self, kind: Payments | None = None) -> Floats:
        """``(n,)`` proven bound on what truthful reports leave an agent to gain; infinite where there is none."""


class VCGMechanism:
    """Algorithm 1: the efficient allocation, with truth a dominant strategy and no privacy.

    Not individually rational in general: minimum demands keep agents from opting out. Not budget balanced either.

    Args:
        scenario: the scenario.
        space: in whose parameters best reports are given; any concave report is taken. ``TypeSpace.group(scenario)`` if
            not given.

    Raises:
        ValueError: a scenario that does not clear without one of its agents.
    """

    kind = "vcg"
    nominal_epsilon = float("inf")
    epsilon = float("inf")
    releases: Mapping[str, float] = {}

    def __init__(self, scenario: Scenario, *, space: TypeSpace | None = None) -> None:
        scenario.check_submarkets()
        self.scenario = scenario
        self.space = declared_space(scenario, space)

    def accept(self, reports: Any) -> Bids:
        """Bids of reports, whatever they are as long as they are concave."""
        return reported_bids(self.scenario, reports)

    def sample(self, size: int, rng: Any = None, reports: Any = None) -> Floats:
        """The efficient allocation, ``size`` times ``(size, n)``."""
        del rng
        allocation = self.expected_allocation(reports)
        return np.tile(allocation, (validation.count("size", size), 1))

    def expected_welfare(self, reports: Any = None) -> Floats:
        """True welfare ``(...)`` of the allocation that is efficient for the reports."""
        return np.asarray(rules.value(self.scenario.bids, self.expected_allocation(reports)).sum(axis=-1))

    def expected_allocation(self, reports: Any = None) -> Floats:
        """The efficient allocation ``(..., n)``."""
        return rules.clear(self.accept(reports), self.scenario.bounds).allocation

    def payments(self, kind: Payments | None = None, reports: Any = None) -> Floats:
        """VCG payments ``(..., n)``."""
        check_payments(self.kind, kind)
        return rules.pivots(self.accept(reports), self.scenario.bounds).payment

    def payoffs(self, kind: Payments | None = None, reports: Any = None) -> Floats:
        """True value less payment ``(..., n)``."""
        check_payments(self.kind, kind)
        outcome = rules.pivots(self.accept(reports), self.scenario.bounds)
        return rules.value(self.scenario.bids, outcome.clearing.allocation) - outcome.payment

    def regret_bound(self, kind: Payments | None = None) -> Floats:
        """Zero ``(n,)``: truth is dominant."""
        check_payments(self.kind, kind)
        return np.zeros(self.scenario.size)


class ExponentialMechanism:
    """Algorithm 2: an allocation drawn with density ∝ exp(βW), W the reported welfare.

    Args:
        scenario: the scenario.
        epsilon: ε > 0 asked for.
        support: ``"continuous"``, the whole polytope with exact expectations and draws; ``"finite"``, a range of
            points drawn uniformly once, whatever the reports.
        calibration: ``"declared"``, β = ε/ω with ω the largest sensitivity over the type space, so that ε holds;
            ``"paper"``, β = ε/2, as if valuations lay in [0, 1]: ``epsilon`` then says what that gives.
        space: what agents may declare; ``TypeSpace.group(scenario)`` if not given. Reports outside it are refused
            under the declared calibration: no ε holds for them.
        range_size: points of a finite range; with ``points`` of those of the markets without an agent.
        seed: of the ranges drawn.
        sampler: of the range, ``"exact"`` (independent points) or ``"hopsy"`` (the paper's Markov chain; an extra).
        points: ``(m, n)`` signed allocations to use as the range of the market with all agents, or a whole
            ``finite.Range``, with those of the markets without each agent.
        balance_tolerance: how far such points may be off balance; those printed in Table III are by 0.04 [kWh].
        paper_compat: the paper's range, its sampled points and the optimum of the reports. That range depends on the
            reports, so the privacy loss is infinite: **not private**.

    Raises:
        ValueError: ε ≤ 0 or too large for the quadrature, an option that is unknown or without effect beside the
            others, an infeasible sub-market, a type space without width or of another scenario.
    """

    kind = "exponential"

    def __init__(
        self,
        scenario: Scenario,
        epsilon: float,
        support: Support = "continuous",
        calibration: Calibration = "declared",
        *,
        space: TypeSpace | None = None,
        range_size: int = 100,
        seed: int = 0,
        sampler: Literal["exact", "hopsy"] = "exact",
        points: Any = None,
        balance_tolerance: float = 1e-9,
        paper_compat: bool = False,
    ) -> None:
        scenario.check_submarkets()
        self.scenario = scenario
        self.nominal_epsilon = check_epsilon(epsilon)
        self.support: Support = validation.choice("support", support, ("continuous", "finite"))
        self.calibration: Calibration = validation.choice("calibration", calibration, ("declared", "paper"))
        self.space = declared_space(scenario, space)
        self.paper_compat = paper_compat
        if support == "continuous" and (points is not None or paper_compat):
            raise ValueError("points and paper_compat belong to support='finite'; support is 'continuous'")
        drawn, owner = support == "finite" and not isinstance(points, finite.Range), "support='finite'"
        if isinstance(points, finite.Range):
            owner = "ranges to be drawn; points is a whole one"
        validation.refuse_idle(
            ExponentialMechanism,
            range_size=(range_size, drawn, owner),
            seed=(seed, drawn, owner),
            sampler=(sampler, drawn, owner),
            balance_tolerance=(balance_tolerance, points is not None, "points"),
        )
        self.sensitivity = self.space.sensitivity
        """(n,) ω_i [$]"""
        self.beta = calibrate(self.nominal_epsilon, calibration, self.sensitivity)
        """β [1/$]"""
        own = self.beta * float(self.sensitivity.max())
        self.epsilon = float("inf") if paper_compat else self.nominal_epsilon if calibration == "declared" else own
        draws = scenario.size * self.epsilon
        self.releases: Mapping[str, float] = {} if paper_compat else {"draw": self.epsilon, "all_draws": draws}
        if support == "continuous":
            self.table: Any = _quadrature(scenario.bounds, self.space.spread(), self.beta)
        else:
            if points is None and paper_compat and scenario.sampled_allocations is not None:
                points, balance_tolerance = scenario.sampled_allocations * scenario.sign, PRINTED
            if isinstance(points, finite.Range):
                self.table = finite.check_range(points, scenario.bounds, balance_tolerance=balance_tolerance)
            else:
                size, seed = validation.count("range_size", range_size), validation.seed("seed", seed)
                self.table = finite.draw_range(
                    scenario.bounds, size, seed, sampler, points, balance_tolerance=balance_tolerance
                )

    def accept(self, reports: Any) -> Bids:
        """Bids of reports; refuses those outside the declared type space if ε is calibrated to it."""
        bids = reported_bids(self.scenario, reports)
        if self.calibration == "declared":
            self.space.check(bids)
        return bids

    def law(self, reports: Any = None) -> Law:
        """Everything that follows from the law of the draw, for reports ``(..., n)``."""
        return self.law_of(self.accept(reports), self.scenario.bids)

    def law_of(self, bids: Bids, true: Bids) -> Law:
        """The same for bids and true valuations ``(..., n)`` as arrays, unchecked."""
        if self.support == "continuous":
            return continuous.law(self.table, bids, self.beta, true)
        return finite.law(self.range(bids), bids, self.beta, true)

    def range(self, bids: Bids) -> finite.Range:
        """The finite range; with ``paper_compat`` it gets the optima of the reports, with all agents and without i."""
        if not self.paper_compat:
            return self.table
        bounds = self.scenario.bounds
        best, without = rules.clear(bids, bounds).allocation, rules.allocations_without(bids, bounds)
        return finite.Range(
            finite.with_optimum(self.table.points, best), finite.with_optimum(self.table.without, without)
        )

    def probabilities(self, reports: Any = None) -> Floats:
        """Law ``(..., m)`` on a finite range.

        Raises:
            ValueError: the support is continuous.
        """
        if self.support != "finite":
            raise ValueError("probabilities exist for support='finite'; support is 'continuous'")
        bids = self.accept(reports)
        return finite.probabilities(self.range(bids).points, bids, self.beta)

    def sample(self, size: int, rng: Any = None, reports: Any = None) -> Floats:
        """Independent draws ``(size, n)`` [kWh]; reports without leading axes."""
        rng, size = np.random.default_rng(rng), validation.count("size", size)
        bids = self.accept(reports)
        if self.support == "continuous":
            return sampling.sample(bids, self.scenario.bounds, self.beta, size, rng)
        points = self.range(bids).points
        return points[rng.choice(len(points), size, p=finite.probabilities(points, bids, self.beta))]

    def expected_welfare(self, reports: Any = None) -> Floats:
        """Expected true welfare ``(...)``."""
        return np.asarray(self.law(reports).true_value.sum(axis=-1))

    def expected_allocation(self, reports: Any = None) -> Floats:
        """Expected allocation ``(..., n)``."""
        return self.law(reports).quantity

    def payments(self, kind: Payments | None = None, reports: Any = None) -> Floats:
        """Expected payments ``(..., n)`` of Algorithm 3, or entropy payments. Not private if published."""
        return payments(self.law(reports), check_payments(self.kind, kind))

    def payoffs(self, kind: Payments | None = None, reports: Any = None) -> Floats:
        """Expected true value less payment ``(..., n)``."""
        kind, law = check_payments(self.kind, kind), self.law(reports)
        return law.true_value - payments(law, kind)

    def regret_bound(self, kind: Payments | Literal["none"] | None = None) -> Floats:
        """``(n,)`` bound on what truthful reports leave an agent to gain within the type space.

        ``"entropy"``: zero. ``"algorithm3"``: osc(W)·tanh(βω/4). ``"none"``: payments left aside, osc(v_i)·tanh(βω/4).
        Infinite for ``paper_compat``, whose range moves with the report.
        """
        true = self.scenario.bids
        if kind == "none":
            spread = rules.scale_sensitivity(true, self.scenario.bounds, 1.0)
            bound = rules.regret_bound(self.beta, self.sensitivity, spread)
            return np.full_like(bound, np.inf) if self.paper_compat else bound
        if check_payments(self.kind, kind) == "entropy":
            return np.zeros(self.scenario.size)
        return self.regret_bound_of(true, true)

    def regret_bound_of(self, bids: Bids, true: Bids) -> Floats:
        """Bound ``(..., n)`` under Algorithm 3 on what any report gains an agent over that in ``bids (..., n)`` [$]."""
        if self.paper_compat:
            return np.full(bids.linear.shape, np.inf)
        bids = rules.one_honest(bids, true)
        if self.support == "continuous":
            spread = rules.oscillation(bids, self.scenario.bounds)
        else:
            spread = np.ptp(finite.welfare(self.table.points, bids), axis=-1)
        return rules.regret_bound(self.beta, self.sensitivity, spread)


class LaplaceMechanism:
    """Input perturbation (Section VI-F): noise on what is reported, then VCG on the noisy reports.

    Each of the k parameters of a report gets Laplace noise of scale k·range/ε, range being the width of the type space;
    valuations are held concave. Whatever follows from the noisy reports alone, all of it together, costs ε once.
    Expectations are averages over fixed draws, the same for all reports: an estimate, see :meth:`standard_error`.

    Args:
        scenario: the scenario.
        epsilon: ε > 0.
        space: what agents may declare; ``TypeSpace.group(scenario)`` if not given.
        samples: draws an expectation averages over.
        seed: of these draws.

    Raises:
        ValueError: ε ≤ 0 or an infeasible sub-market.
    """

    kind = "laplace"

    def __init__(
        self, scenario: Scenario, epsilon: float, *, space: TypeSpace | None = None, samples: int = 4096, seed: int = 0
    ) -> None:
        scenario.check_submarkets()
        self.scenario = scenario
        self.epsilon = self.nominal_epsilon = check_epsilon(epsilon)
        self.space = declared_space(scenario, space)
        count = validation.count("samples", samples)
        self.draws = np.random.default_rng(validation.seed("seed", seed)).laplace(
            size=(count, scenario.size, self.space.statistics)
        )
        """(S, n, k) fixed unit draws"""
        self.scale = noise_scale(self.space, self.epsilon)
        """(n, k) of the noise"""
        self.releases: Mapping[str, float] = {"noisy_reports": self.epsilon, "draw": self.epsilon}

    def accept(self, reports: Any) -> Bids:
        """Bids of reports; refuses those outside the declared type space."""
        bids = reported_bids(self.scenario, reports)
        self.space.check(bids)
        return bids

    def _parameters(self, reports: Any) -> Floats:
        return self.space.parameters(self.accept(reports))

    def _noisy(self, parameters: Floats, draws: Floats) -> Bids:
        """Noisy bids ``(S, ..., n)`` of report parameters ``(..., n, k)`` and unit draws ``(S, n, k)``."""
        axes = (1,) * (parameters.ndim - 2)
        noise = self.scale * draws
        return perturb(self.scenario.bids, parameters, noise.reshape(len(draws), *axes, *self.scale.shape))

    def _fixed(self, parameters: Floats) -> Bids:
        return self._noisy(parameters, self.draws)

    def sample(self, size: int, rng: Any = None, reports: Any = None) -> Floats:
        """Independent draws ``(size, n)`` of the allocation; reports without leading axes."""
        shape = validation.count("size", size), *self.scale.shape
        noisy = self._noisy(self._parameters(reports), np.random.default_rng(rng).laplace(size=shape))
        return rules.clear(noisy, self.scenario.bounds).allocation

    def _welfare(self, reports: Any) -> Floats:
        allocation = rules.clear(self._fixed(self._parameters(reports)), self.scenario.bounds).allocation
        return np.asarray(rules.value(self.scenario.bids, allocation).sum(axis=-1))

    def expected_welfare(self, reports: Any = None) -> Floats:
        """Estimated true welfare ``(...)``."""
        return np.asarray(self._welfare(reports).mean(axis=0))

    def standard_error(self, reports: Any = None) -> Floats:
        """Standard error ``(...)`` of :meth:`expected_welfare`."""
        return np.asarray(self._welfare(reports).std(axis=0, ddof=1) / np.sqrt(len(self.draws)))

    def expected_allocation(self, reports: Any = None) -> Floats:
        """Estimated allocation ``(..., n)``."""
        noisy = self._fixed(self._parameters(reports))
        return np.asarray(rules.clear(noisy, self.scenario.bounds).allocation.mean(axis=0))

    def payments(self, kind: Payments | None = None, reports: Any = None) -> Floats:
        """Estimated VCG payments ``(..., n)`` on the noisy reports."""
        check_payments(self.kind, kind)
        noisy = self._fixed(self._parameters(reports))
        return np.asarray(rules.pivots(noisy, self.scenario.bounds).payment.mean(axis=0))

    def payoffs(self, kind: Payments | None = None, reports: Any = None) -> Floats:
        """Estimated true value less payment ``(..., n)``."""
        check_payments(self.kind, kind)
        return self.payoffs_at(self._parameters(reports), self.scenario.bids)

    def payoffs_at(self, parameters: Floats, true: Bids) -> Floats:
        """The same ``(..., n)`` for report parameters ``(..., n, k)`` and true valuations ``(..., n)``, unchecked."""
        outcome = rules.pivots(self._fixed(parameters), self.scenario.bounds)
        return np.asarray((rules.value(true, outcome.clearing.allocation) - outcome.payment).mean(axis=0))

    def clairvoyant(self, parameters: Floats, true: Bids) -> Floats:
        """What each agent ``(n,)`` would get if its own valuation went in without noise, the others' being noisy.

        VCG makes truth optimal against any reports of the others, so no noisy report is worth more.
        """
        noisy = self._fixed(parameters)
        without = rules.pivots(noisy, self.scenario.bounds).welfare_without
        welfare = rules.clear(rules.one_honest(noisy, true), self.scenario.bounds).welfare
        return np.asarray((welfare - without).mean(axis=0))

    def regret_bound(self, kind: Payments | None = None) -> Floats:
        """``(n,)`` bound on the gain from a misreport: :meth:`clairvoyant` less the truthful payoff, both estimated."""
        check_payments(self.kind, kind)
        return self.clairvoyant(self.space.truth, self.scenario.bids) - self.payoffs()


def _quadrature(bounds: Bounds, bids: Bids, beta: float) -> continuous.Quadrature:
    return _quadrature_of(tuple(field.tobytes() for field in (*bounds, *bids)), len(bounds.low), beta)


@lru_cache(maxsize=16)
def _quadrature_of(fields: tuple[bytes, ...], size: int, beta: float) -> continuous.Quadrature:
    """Fitting takes longer than an episode, and the same market is often made again."""
    low, high, *bids = (np.frombuffer(field) for field in fields)
    reports = Bids(*(field.reshape(-1, size) for field in bids))
    failure = None
    for tolerance in TOLERANCES:
        try:
            return freeze(make_quadrature(Bounds(low, high), reports, beta, tolerance))
        except InaccurateError as error:
            failure = error
    raise ValueError(
        f"epsilon is too large for support='continuous' on this type space: β = {beta:g} per $ ({failure}); "
        "take a smaller epsilon, support='finite' or mechanism='vcg'"
    )


def declared_space(scenario: Scenario, space: TypeSpace | None) -> TypeSpace:
    """The type space of a mechanism, :meth:`TypeSpace.group` if not given.

    Raises:
        ValueError: the space was made for other limits or valuations; what it says of sensitivities is then wrong.
    """
    if space is None:
        return TypeSpace.group(scenario)
    own, given = ((*of.bids, *of.bounds) for of in (scenario, space.scenario))
    if not all(np.array_equal(one, other) for one, other in zip(own, given, strict=True)):
        raise ValueError(
            f"space must be made for this scenario ({scenario.name}), got one of a scenario with other valuations or "
            f"limits ({space.scenario.name}); build TypeSpace(scenario, kind, low, high)"
        )
    return space


def check_epsilon(epsilon: float) -> float:
    """``epsilon`` as a number > 0."""
    return validation.number("epsilon", epsilon, 0.0, open_low=True)


def check_payments(mechanism: str, kind: Payments | None) -> Payments:
    """The payment rule, the mechanism's first if not given.

    Raises:
        ValueError: a rule that does not belong to the mechanism.
    """
    allowed = PAYMENTS[mechanism]
    if kind is None:
        return allowed[0]
    if kind not in allowed:
        raise ValueError(
            f"payments of mechanism {mechanism!r} must be one of {', '.join(map(repr, allowed))}; got {kind!r}"
        )
    return kind


def calibrate(epsilon: float, calibration: Calibration, sensitivity: Floats) -> float:
    """β of the exponential mechanism [1/$].

    Raises:
        ValueError: the declared type space has no width, so there is nothing to hide and no finite β.
    """
    if calibration == "paper":
        return 0.5 * epsilon
    largest = float(sensitivity.max())
    if largest <= 0:
        raise ValueError("the declared type space has no width, so there is nothing to hide: widen it")
    return epsilon / largest


def payments(law: Law, kind: Payments) -> Floats:
    """Payments ``(..., n)`` that go with a law of the exponential mechanism."""
    return rules.entropy_payments(law) if kind == "entropy" else rules.algorithm3_payments(law)


def noise_scale(space: TypeSpace, epsilon: float) -> Floats:
    """Scale ``(n, k)`` of Laplace noise; the k parameters of a report share ε equally."""
    return space.statistics * (space.high - space.low) / epsilon


def perturb(base: Bids, parameters: Any, noise: Any) -> Bids:
    """Bids of noisy report parameters ``(..., n, k)``, held concave."""
    xp = namespace(parameters)
    noisy = parameters + noise
    if noisy.shape[-1] == 1:
        return rules.report_bids(base, xp.maximum(noisy, (LEAST_CURVATURE / base.quadratic)[..., None]))
    bids = rules.report_bids(base, noisy)
    return bids._replace(quadratic=xp.minimum(bids.quadratic, xp.full_like(bids.quadratic, LEAST_CURVATURE)))


def same_bids(bids: Bids, true: Bids) -> NDArray[np.bool_]:
    """Where ``(..., n)`` reports are the valuations."""
    return np.logical_and.reduce([given == right for given, right in zip(bids, true, strict=True)])
