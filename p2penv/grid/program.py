"""Sparse convex programs: variables with diagonal costs, rows that name them, and Clarabel to solve them.

minimise ½xᵀPx + qᵀx subject to Ax + s = b, with P diagonal and s in a product of {0}, [0, ∞) and second-order cones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

Floats = NDArray[np.float64]
Index = NDArray[np.intp]
Mask = NDArray[np.bool_]
# Interior points stop at the first of these tolerances that they reach; the KKT residual says what is left.
TOLERANCES = (1e-9, 1e-8, 1e-7)
# Above so many entries of the factor the supernodal method is faster than the plain one.
LARGE = 5_000_000
EQUAL, MOST, CONE = "equal", "most", "cone"


class MissingSolverError(ImportError):
    """Clarabel is not installed."""


class Matrices(NamedTuple):
    """A program as arrays; rows are equations, then inequalities, then cones of three rows each."""

    quadratic: Floats  # (n,) diagonal of P
    linear: Floats  # (n,) q
    matrix: sparse.csc_matrix  # (m, n) A
    right: Floats  # (m,) b
    counts: tuple[int, int, int]  # equations, inequalities, cones


class Solution(NamedTuple):
    """Primal and dual solution of a program."""

    status: str  # Clarabel's
    x: Floats  # (n,)
    z: Floats  # (m,) multipliers in the order of the rows; the Lagrangian is ½xᵀPx + qᵀx + zᵀ(Ax − b)
    iterations: int
    seconds: float  # of the solver alone

    @property
    def found(self) -> bool:
        """Solved, maybe to reduced accuracy."""
        return self.status in ("Solved", "AlmostSolved")

    @property
    def infeasible(self) -> bool:
        """A certificate says that no point satisfies all constraints."""
        return self.status in ("PrimalInfeasible", "AlmostPrimalInfeasible")


@dataclass
class Program:
    """A program being built. Variables and rows have names, and numbers in arrays of any shape, −1 where none is."""

    size: int = 0
    variables: dict[str, Index] = field(default_factory=dict)
    rows: dict[str, tuple[str, Index, Floats]] = field(default_factory=dict)  # kind, numbers, right-hand sides
    _costs: list[tuple[Floats, Floats]] = field(default_factory=list)
    _terms: list[tuple[str, Index, Index, Floats]] = field(default_factory=list)
    _counts: dict[str, int] = field(default_factory=lambda: {EQUAL: 0, MOST: 0, CONE: 0})
    _late: list[Index] = field(default_factory=list)

    def add(self, name: str, mask: Mask, quadratic: ArrayLike = 0.0, linear: ArrayLike = 0.0) -> Index:
        """Variables where ``mask``, with cost ½·quadratic·x² + linear·x; their numbers in its shape."""
        index = _numbers(mask, self.size)
        self.variables[name] = index
        square, slope = (
            np.broadcast_to(np.asarray(cost, np.float64), mask.shape)[mask] for cost in (quadratic, linear)
        )
        self._costs.append((square, slope))
        self.size += int(mask.sum())
        return index

    def require(self, name: str, kind: str, mask: Mask, right: ArrayLike, *terms: tuple[Index, ArrayLike]) -> Index:
        """Rows Σ terms = right (``EQUAL``) or ≤ right (``MOST``) where ``mask``; their numbers in its shape.

        A term is ``(variables, coefficients)`` in the shape of the mask; more can follow by :meth:`extend`.
        """
        index = _numbers(mask, self._counts[kind])
        self._counts[kind] += int(mask.sum())
        self.rows[name] = (kind, index, np.broadcast_to(np.asarray(right, np.float64), mask.shape)[mask])
        for variables, coefficients in terms:
            self.extend(kind, index, variables, coefficients)
        return index

    def extend(self, kind: str, rows: Index, variables: Index, coefficients: ArrayLike) -> None:
        """More terms of rows; whatever names no row or no variable is left out."""
        row, column, value = (np.ravel(each) for each in np.broadcast_arrays(rows, variables, coefficients))
        keep = (row >= 0) & (column >= 0)
        self._terms.append((kind, row[keep], column[keep], value[keep].astype(np.float64)))

    def bound(self, name: str, low: ArrayLike | None, high: ArrayLike | None) -> None:
        """Finite bounds of the variables of that name; rows ``name_min`` and ``name_max``."""
        index = self.variables[name]
        for suffix, limit, sign in (("_min", low, -1.0), ("_max", high, 1.0)):
            if limit is not None:
                limits = np.broadcast_to(np.asarray(limit, np.float64), index.shape)
                self.require(name + suffix, MOST, (index >= 0) & np.isfinite(limits), sign * limits, (index, sign))

    def discs(self, name: str, mask: Mask, radius: ArrayLike, first: Index, second: Index) -> None:
        """Cones ‖(first, second)‖ ≤ radius where ``mask``."""
        triples = _tripled(self.require(name, CONE, mask, radius))
        for offset, variables in ((1, first), (2, second)):
            self.extend(CONE, np.where(triples >= 0, triples + offset, -1), variables, -1.0)

    def relax(self, costs: dict[str, float]) -> None:
        """Let rows of these names be missed, at a cost per unit that replaces all others."""
        self._costs = [(np.zeros(self.size), np.zeros(self.size))]
        for name in [name for name in costs if name in self.rows]:
            kind, index, _ = self.rows[name]
            slack = self.add("slack_" + name, index >= 0, 0.0, costs[name])
            self.extend(kind, _tripled(index) if kind == CONE else index, slack, -1.0)
            self.bound("slack_" + name, 0.0, None)

    def eliminate_late(self, groups: Index) -> None:
        """Tell the solver's ordering to eliminate the variables of each row of ``groups`` together, after others.

        By entries of P that are there and zero. They change nothing but the fill of the factor.
        """
        self._late.extend(row[row >= 0] for row in groups)

    def matrices(self) -> Matrices:
        """The program as arrays."""
        equal, most, cones = (self._counts[kind] for kind in (EQUAL, MOST, CONE))
        start = {EQUAL: 0, MOST: equal, CONE: equal + most}
        row = np.concatenate([rows + start[kind] for kind, rows, _, _ in self._terms])
        column, value = (np.concatenate([term[k] for term in self._terms]) for k in (2, 3))
        shape = (equal + most + 3 * cones, self.size)
        right = np.zeros(shape[0])
        for kind, index, values in self.rows.values():
            right[start[kind] + (_tripled(index) if kind == CONE else index)[index >= 0]] = values
        quadratic, linear = (np.concatenate([costs[k] for costs in self._costs]) for k in (0, 1))
        return Matrices(
            quadratic, linear, sparse.csc_matrix((value, (row, column)), shape=shape), right, (equal, most, cones)
        )

    def value(self, name: str, x: Floats) -> Floats:
        """Variables of that name out of a solution, 0 where there is none."""
        index = self.variables[name]
        return np.where(index >= 0, np.append(x, 0.0)[index], 0.0)

    def multiplier(self, name: str, z: Floats) -> Floats:
        """Multipliers of rows of that name, 0 where there is none; of a cone that of its radius."""
        kind, index, _ = self.rows[name]
        start = {EQUAL: 0, MOST: self._counts[EQUAL], CONE: self._counts[EQUAL] + self._counts[MOST]}[kind]
        number = start + (_tripled(index) if kind == CONE else index)
        return np.where(index >= 0, np.append(z, 0.0)[np.where(index >= 0, number, -1)], 0.0)

    def solve(self, tolerances: Sequence[float] = TOLERANCES) -> Solution:
        """Solve by Clarabel's interior points, to the first tolerance at which they do not get stuck.

        Raises:
            MissingSolverError: Clarabel is not installed.
        """
        try:
            import clarabel
        except ImportError:
            raise MissingSolverError(
                'exact equilibria of the grid market need Clarabel: pip install "p2penv[grid]"'
            ) from None
        quadratic, linear, matrix, right, (equal, most, cones) = self.matrices()
        domain: list[Any] = [clarabel.ZeroConeT(equal)] * (equal > 0) + [clarabel.NonnegativeConeT(most)] * (most > 0)
        domain += [clarabel.SecondOrderConeT(3)] * cones
        problem = (self._hessian(quadratic), linear, matrix, right, domain)
        options = clarabel.DefaultSettings()
        options.verbose = False
        options.direct_solve_method = "qdldl"
        for tolerance in tolerances:
            options.tol_gap_abs = options.tol_gap_rel = options.tol_feas = tolerance
            solver = clarabel.DefaultSolver(*problem, options)
            if solver.get_info().linsolver.nnzL > LARGE:
                options.direct_solve_method = "faer"
                solver = clarabel.DefaultSolver(*problem, options)
            found = solver.solve()
            solution = Solution(
                str(found.status), np.array(found.x), np.array(found.z), found.iterations, found.solve_time
            )
            if solution.found or solution.infeasible:
                break
        return solution

    def _hessian(self, quadratic: Floats) -> sparse.csc_matrix:
        row = [np.arange(self.size)]
        column, value = list(row), [quadratic]
        for group in self._late:
            first, second = np.triu_indices(len(group), 1)
            row.append(group[first])
            column.append(group[second])
            value.append(np.zeros(len(first)))
        entries = (np.concatenate(value), (np.concatenate(row), np.concatenate(column)))
        return sparse.csc_matrix(entries, shape=(self.size, self.size))


def kkt_residual(program: Program, x: Floats, z: Floats) -> float:
    """Largest violation of the Karush-Kuhn-Tucker conditions of a program, worked out from its own data.

    Of stationarity relative to the largest price, of constraints relative to the largest right-hand side and of
    complementarity relative to the value, where right-hand side and value count as 1 if they are less. Multipliers of
    inequalities and cones are moved into their cones first, so their signs cannot be wrong.
    """
    quadratic, linear, matrix, right, (equal, most, _) = program.matrices()
    rest = right - matrix @ x
    z = z.copy()
    z[equal : equal + most] = np.maximum(z[equal : equal + most], 0.0)
    dual, slack = (vector[equal + most :].reshape(-1, 3) for vector in (z, rest))
    dual[:, 0] = np.maximum(dual[:, 0], np.linalg.norm(dual[:, 1:], axis=1))
    outside = np.maximum(np.linalg.norm(slack[:, 1:], axis=1) - slack[:, 0], 0.0)
    missed = np.concatenate([np.abs(rest[:equal]), -rest[equal : equal + most], outside, [0.0]])
    gap = np.abs(z[equal : equal + most] * rest[equal : equal + most]).sum() + np.abs((dual * slack).sum(axis=1)).sum()
    gradient = quadratic * x + linear
    prices = max(float(np.abs(gradient).max()), float(np.abs(z[:equal]).max(initial=0.0)))
    return max(
        float(np.abs(gradient + matrix.T @ z).max()) / max(prices, 1e-12),
        float(missed.max()) / max(float(np.abs(right).max(initial=0.0)), 1.0),
        float(gap) / max(abs(float(gradient @ x)), 1.0),
    )


def _numbers(mask: Mask, start: int) -> Index:
    """Consecutive numbers from ``start`` where ``mask``, −1 elsewhere."""
    index = np.full(mask.shape, -1, np.intp)
    index[mask] = start + np.arange(int(mask.sum()))
    return index


def _tripled(index: Index) -> Index:
    """First rows of cones of three rows."""
    return np.where(index >= 0, 3 * index, -1)
