"""What the mathematical tests share: an independent solver, and reproducible hypothesis runs."""

import clarabel
import numpy as np
import pytest
from hypothesis import settings
from scipy import sparse

settings.register_profile("reproducible", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("reproducible")


def _solve_qp(quadratic, linear, equal, target, low, high):
    """Minimiser of ½xᵀPx + qᵀx subject to Ax = b and low ≤ x ≤ high, and dual of Ax = b, by interior points."""
    size = len(linear)
    below, above = np.isfinite(low), np.isfinite(high)
    rows = np.vstack([equal, -np.eye(size)[below], np.eye(size)[above]])
    limits = np.concatenate([target, -low[below], high[above]])
    options = clarabel.DefaultSettings()
    options.verbose = False
    options.tol_gap_abs = options.tol_gap_rel = options.tol_feas = 1e-11
    cones = [clarabel.ZeroConeT(len(target)), clarabel.NonnegativeConeT(len(limits) - len(target))]
    solution = clarabel.DefaultSolver(
        sparse.csc_matrix(np.triu(quadratic)), linear, sparse.csc_matrix(rows), limits, cones, options
    ).solve()
    assert solution.status in (clarabel.SolverStatus.Solved, clarabel.SolverStatus.AlmostSolved)
    return np.array(solution.x), -np.array(solution.z[: len(target)])


@pytest.fixture(scope="session")
def solve_qp():
    """Clarabel, a generic solver, at tolerance 1e-11."""
    return _solve_qp
