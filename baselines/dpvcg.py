"""Reference policies of the VCG market: truth, iterated best misreports, random."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from baselines.uniform import UniformPolicy
from p2penv.core import validation
from p2penv.core.arrays import Array
from p2penv.core.contract import Draw, Noise, Policy
from p2penv.dpvcg import rules
from p2penv.dpvcg.env import DPVCG, Params, State
from p2penv.dpvcg.equilibrium import gains

Floats = NDArray[np.float64]


class Trace(NamedTuple):
    """Recorded sweeps of best misreports; the first is the start."""

    reports: Floats  # (K, ..., n, k) report parameters
    gain: Floats  # (K, ...) largest gain an agent found in the sweep; the first is NaN
    converged: NDArray[np.bool_]  # (...) nobody gained more than the tolerance in the last sweep


def best_misreport_dynamics(
    env: DPVCG, types: Floats | None = None, sweeps: int = 20, tolerance: float = 1e-6
) -> Trace:
    """Sequential best misreports from truthful play: one agent after another, consumers first.

    Under VCG and entropy payments the first sweep moves nobody. Under Algorithm 3 every agent is paid by what the
    others report; nothing guarantees that sweeps converge.

    Args:
        env: the environment, whose mechanism, payments and type space are used.
        types: ``(..., n, k)`` true parameters, those of the case if not given.
        sweeps: most sweeps, ≥ 1.
        tolerance: a sweep in which nobody gains more ends it [$].
    """
    sweeps = validation.count("sweeps", sweeps)
    tolerance = validation.number("tolerance", tolerance, 0.0)
    truth = np.array(env.space.truth if types is None else types, np.float64)
    true = rules.report_bids(env.scenario.bids, truth)
    reports, recorded, found = truth.copy(), [truth], [np.full(truth.shape[:-2], np.nan)]
    for _ in range(sweeps):
        largest = np.zeros(truth.shape[:-2])
        for agent in range(env.scenario.size):
            bids = rules.report_bids(env.scenario.bids, reports)
            best = gains(env.mechanism, bids, true, env.payments, [agent])
            gain = best.gain[..., agent]
            largest = np.maximum(largest, gain)
            reports = reports.copy()
            better = (gain > tolerance)[..., None]
            reports[..., agent, :] = np.where(better, best.report[..., agent, :], reports[..., agent, :])
        recorded.append(reports)
        found.append(largest)
        if (largest <= tolerance).all():
            break
    return Trace(np.stack(recorded), np.stack(found), found[-1] <= tolerance)


class BestMisreportPolicy:
    """Plays where best misreports end, worked out anew for every state.

    Args:
        env: the environment.
        sweeps: most sweeps, ≥ 1.
        tolerance: of a gain worth a change [$].
    """

    full_information = True

    def __init__(self, env: DPVCG, sweeps: int = 5, tolerance: float = 1e-6) -> None:
        self.env = env
        self.sweeps = validation.count("sweeps", sweeps)
        self.tolerance = validation.number("tolerance", tolerance, 0.0)
        self.noise: Mapping[str, Draw] = {}

    def act(self, params: Params, observations: Array, state: State, noise: Noise) -> Array:
        """Actions ``(E, n, k)`` in the states."""
        del observations, noise
        trace = best_misreport_dynamics(self.env, np.asarray(state.types), self.sweeps, self.tolerance)
        return self.env.encode(params, trace.reports[-1])


def _exact(name: str, env: DPVCG) -> Policy:
    return env.policy(name)


POLICIES: Mapping[str, Callable[..., Policy]] = {
    "truthful": partial(_exact, "truthful"),
    # The mechanism is the environment's option: truth under it is the paper's proposal.
    "dp_vcg": partial(_exact, "truthful"),
    "best_response": BestMisreportPolicy,
    "random": UniformPolicy,
}
