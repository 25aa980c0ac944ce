"""What agents may declare: the public space of types that privacy is calibrated to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from p2penv.core import validation
from p2penv.dpvcg import rules
from p2penv.dpvcg.rules import Bids
from p2penv.dpvcg.scenario import Scenario

Floats = NDArray[np.float64]
Kind = Literal["scale", "coefficients"]
# A noisy coefficient of y² is held at or below this, so that noisy valuations stay concave [$/kWh²].
LEAST_CURVATURE = -1e-6


@dataclass(frozen=True, eq=False)
class TypeSpace:
    """A box of report parameters per agent.

    ``"scale"``: α v_i of the scenario's valuations v_i. ``"coefficients"``: (a, b) of ay² + by in the signed quantity,
    the constant being the scenario's. Made by :meth:`group`, :meth:`around` or :meth:`scalings`.

    Raises:
        ValueError: a box that is empty, not concave throughout, or without the scenario's own valuations.
    """

    scenario: Scenario
    kind: Kind
    low: Floats
    """(n, k)"""
    high: Floats
    """(n, k)"""

    def __post_init__(self) -> None:
        validation.choice("kind", self.kind, ("scale", "coefficients"))
        shape = (self.scenario.size, 1 if self.kind == "scale" else 2)
        for field in ("low", "high"):
            box = validation.floats(field, getattr(self, field))
            if box.shape != shape or not np.isfinite(box).all():
                raise ValueError(f"{field} of a type space must be finite and of shape {shape}, got shape {box.shape}")
            box.flags.writeable = False
            object.__setattr__(self, field, box)
        self._check("the scenario's valuation", self.truth)
        # Concave at the flattest report is concave throughout: α > 0, or a < 0.
        flat = self.low[:, 0] <= 0 if self.kind == "scale" else self.high[:, 0] >= 0
        if flat.any():
            agent = int(np.argmax(flat))
            reach = f"α >= {self.low[agent, 0]:g}" if self.kind == "scale" else f"a <= {self.high[agent, 0]:g}"
            raise ValueError(
                f"type space of {self.scenario.agents[agent]} must be concave throughout (α > 0, a < 0), got {reach}"
            )

    @classmethod
    def group(cls, scenario: Scenario) -> TypeSpace:
        """Coefficients within the span of those of the agent's group, consumers or producers."""
        own = np.stack(scenario.bids[:2], axis=-1)
        low, high = own.copy(), own.copy()
        for part in (slice(0, scenario.consumers), slice(scenario.consumers, None)):
            low[part], high[part] = own[part].min(axis=0), own[part].max(axis=0)
        return cls(scenario, "coefficients", low, high)

    @classmethod
    def around(cls, scenario: Scenario, spread: float = 0.5) -> TypeSpace:
        """Coefficients within ``1 ± spread`` of the scenario's, 0 < spread < 1."""
        spread = validation.number("spread", spread, 0.0, 1.0 - 1e-9, open_low=True)
        own = np.stack(scenario.bids[:2], axis=-1)
        reach = spread * np.abs(own)
        return cls(scenario, "coefficients", own - reach, own + reach)

    @classmethod
    def scalings(cls, scenario: Scenario, low: float = 0.5, high: float = 1.5) -> TypeSpace:
        """Scalings α of the scenario's valuations, 0 < low ≤ 1 ≤ high."""
        shape = (scenario.size, 1)
        return cls(scenario, "scale", np.full(shape, low), np.full(shape, high))

    @property
    def truth(self) -> Floats:
        """(n, k) parameters of the scenario's own valuations."""
        if self.kind == "scale":
            return np.ones((self.scenario.size, 1))
        return np.stack(self.scenario.bids[:2], axis=-1)

    @property
    def statistics(self) -> Literal[1, 2]:
        """Number k of parameters of a report."""
        return 1 if self.kind == "scale" else 2

    @property
    def sensitivity(self) -> Floats:
        """(n,) ω_i, most that a change of one declaration within the box moves W(r) − W(r') [$]."""
        width = self.high - self.low
        if self.kind == "scale":
            return rules.scale_sensitivity(self.scenario.bids, self.scenario.bounds, width[:, 0])
        return rules.coefficient_sensitivity(width[:, 0], width[:, 1], self.scenario.bounds)

    def parameters(self, bids: Bids) -> Floats:
        """(..., n, k) of bids; for scalings by their quadratic coefficients, which are never 0."""
        if self.kind == "coefficients":
            return np.stack([bids.quadratic, bids.linear], axis=-1)
        return np.asarray(bids.quadratic / self.scenario.bids.quadratic)[..., None]

    def spread(self) -> Bids:
        """Bids ``(9, n)`` all over the box, to fit numerical methods to: truth, both ends of all and mixed ends."""
        mixed = np.random.default_rng(0).integers(0, 2, (6, *self.low.shape))
        ends = np.stack([self.truth, self.low, self.high])
        reports = np.concatenate([ends, np.where(mixed == 1, self.high, self.low)])
        return rules.report_bids(self.scenario.bids, reports)

    def check(self, bids: Bids) -> None:
        """Refuse bids ``(..., n)`` outside the box.

        Raises:
            ValueError: names the agent and its box.
        """
        parameters = self.parameters(bids)
        self._check("report", parameters)
        given, meant = np.asarray(bids.linear), rules.report_bids(self.scenario.bids, parameters).linear
        odd = ~np.isclose(given, meant, rtol=1e-9, atol=1e-12)
        if odd.any():
            agent = int(np.argwhere(odd)[0][-1])
            raise ValueError(f"report of {self.scenario.agents[agent]} must be a scaling of its declared valuation")

    def _check(self, what: str, parameters: Floats) -> None:
        slack = 1e-9 * np.maximum(np.abs(self.low), np.abs(self.high))
        outside = (parameters < self.low - slack) | (parameters > self.high + slack)
        if outside.any():
            index = tuple(int(i) for i in np.argwhere(outside)[0])
            agent, entry = index[-2:]
            name = "scale α" if self.kind == "scale" else ("quadratic coefficient", "linear coefficient")[entry]
            raise ValueError(
                f"{what} of {self.scenario.agents[agent]} is outside the declared type space: its {name} must be in "
                f"[{self.low[agent, entry]:g}, {self.high[agent, entry]:g}], got {parameters[index]:g}"
            )


def reported_bids(scenario: Scenario, reports: Any = None) -> Bids:
    """Bids ``(..., n)`` of all agents from what a user hands in.

    Args:
        scenario: whose valuations are the true ones.
        reports: None (truthful), :class:`Bids`, scales ``(n,)`` of the true valuations, or coefficients ``(n, 2)``
            (a, b) in the signed quantity.

    Raises:
        ValueError: wrong shape, not finite, or not concave; names the agent.
    """
    if reports is None:
        return scenario.bids
    size = scenario.size
    if isinstance(reports, Bids):
        bids = Bids(*validation.per_agent(size, **reports._asdict()))
    else:
        array = validation.floats("reports", reports)
        if array.shape not in ((size,), (size, 1), (size, 2)):
            raise ValueError(f"reports must be Bids, scales ({size},) or coefficients ({size}, 2), got {array.shape}")
        bids = rules.report_bids(scenario.bids, array if array.ndim == 2 else array[:, None])
        validation.per_agent(size, reports=bids.quadratic, linear=bids.linear)
    convex = np.asarray(bids.quadratic) >= 0
    if convex.any():
        index = tuple(int(i) for i in np.argwhere(convex)[0])
        raise ValueError(
            f"report of {scenario.agents[index[-1]]} must be concave (quadratic coefficient < 0, scale > 0), "
            f"got {float(np.asarray(bids.quadratic)[index])!r}"
        )
    return bids


def with_report(scenario: Scenario, agent: int, report: Any, reports: Bids | None = None) -> Bids:
    """Bids ``(n,)`` with one agent's report replaced.

    Args:
        scenario: the scenario.
        agent: its number, consumers first.
        report: a scale of its true valuation, or (a, b) in the signed quantity.
        reports: of all; truthful if not given.

    Raises:
        ValueError: no such agent, or as :func:`reported_bids`.
    """
    agent = check_agent(scenario, agent)
    parameters = np.atleast_1d(validation.floats("report", report))
    if parameters.shape not in ((1,), (2,)):
        raise ValueError(f"report must be a scale or a pair of coefficients (a, b), got shape {parameters.shape}")
    own = rules.report_bids(Bids(*(field[agent : agent + 1] for field in scenario.bids)), parameters[None])
    changed = [np.array(field) for field in reports or scenario.bids]
    for field, new in zip(changed, own, strict=True):
        field[agent] = new[0]
    return reported_bids(scenario, Bids(*changed))


def check_agent(scenario: Scenario, agent: int) -> int:
    """The number of an agent, if there is one."""
    if isinstance(agent, bool) or not isinstance(agent, int | np.integer) or not 0 <= agent < scenario.size:
        raise ValueError(f"agent must be a whole number from 0 to {scenario.size - 1}, got {agent!r}")
    return int(agent)
