"""What the mathematical tests share: an independent solver, and reproducible hypothesis runs."""

import clarabel
import numpy as np
import pytest
from hypothesis import settings
from scipy import sparse

settings.register_profile("reproducible", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("reproducible")


def _solve_qp(quadratic, linear, equal, target, low, high):
    """Minimiser of ½xᵀPx + qᵀx subject to Ax = b and low ≤ x ≤ high, and the dual of Ax = b.

    Interior points (Clarabel), then one Newton step on the bounds found active, which takes out their barrier's
    rest of about 1e-7.
    """
    size, rows = len(linear), len(target)
    below, above = np.isfinite(low), np.isfinite(high)
    constraints = np.vstack([equal, -np.eye(size)[below], np.eye(size)[above]])
    limits = np.concatenate([target, -low[below], high[above]])
    options = clarabel.DefaultSettings()
    options.verbose = False
    options.tol_gap_abs = options.tol_gap_rel = options.tol_feas = 1e-11
    cones = [clarabel.ZeroConeT(rows), clarabel.NonnegativeConeT(len(limits) - rows)]
    solution = clarabel.DefaultSolver(
        sparse.csc_matrix(np.triu(quadratic)), linear, sparse.csc_matrix(constraints), limits, cones, options
    ).solve()
    assert solution.status == clarabel.SolverStatus.Solved
    rough, dual = np.array(solution.x), -np.array(solution.z[:rows])
    active = (np.array(solution.z) > np.array(solution.s))[rows:]
    at_low, at_high = np.zeros(size, bool), np.zeros(size, bool)
    at_low[below], at_high[above] = np.split(active, [below.sum()])
    x = np.where(at_low, low, np.where(at_high, high, rough))
    free = ~(at_low | at_high)
    newton = np.block([[quadratic[np.ix_(free, free)], -equal[:, free].T], [equal[:, free], np.zeros((rows, rows))]])
    rest = np.concatenate([(equal.T @ dual - quadratic @ x - linear)[free], target - equal @ x])
    step = np.linalg.lstsq(newton, rest)[0]
    x[free] += step[: free.sum()]
    assert np.abs(x - rough).max() < 1e-5
    assert (x >= low - 1e-10).all()
    assert (x <= high + 1e-10).all()
    return x, dual + step[free.sum() :]


@pytest.fixture(scope="session")
def solve_qp():
    """Clarabel, a generic solver, at tolerance 1e-11, and polished."""
    return _solve_qp
