"""Sparse convex programs of the grid market: one builder for the potential program and for best responses.

minimise ½xᵀPx + qᵀx subject to Ax + s = b, with P diagonal and s in a product of {0}, [0, ∞) and second-order cones.

Reciprocity (8b) is built in: a pair is two variables, what its first prosumer receives and what it delivers. Flows are
tree sums, voltages and angles sums along the path to the source. With ``reactive=True`` reactive flows are data, so
(16a) is an interval for each active flow; without, they are free and (16a) is a second-order cone. Network limits that
nothing the prosumers can do would reach are left out: their multipliers are 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

if TYPE_CHECKING:
    pass

Floats = NDArray[np.float64]
Index = NDArray[np.intp]
# A term of a row: rows, variables (−1: none) and coefficients, broadcast together.
Term = tuple[Index, Index, ArrayLike]
# Interior points stop here; what is left of a solution that stops earlier is in its KKT residual.
TOLERANCE = 1e-10
EQUAL, MOST, CONE = "equal", "most", "cone"


class MissingSolverError(ImportError):
    """Clarabel is not installed."""


@dataclass(frozen=True)
class Solution:
    """Primal and dual solution of a program."""

    status: str  # Clarabel's
    x: Floats  # (n,)
    z: Floats  # (m,) multipliers in the order of the rows
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
    """A program being built: variables with a diagonal cost, then rows that name them."""

    quadratic: list[Floats] = field(default_factory=list)
    linear: list[Floats] = field(default_factory=list)
    size: int = 0
    variables: dict[str, Index] = field(default_factory=dict)
    # Rows by name: kind, their numbers within the kind (−1: no such row), and the right-hand side.
    rows: dict[str, tuple[str, Index, Floats]] = field(default_factory=dict)
    terms: dict[str, list[Term]] = field(default_factory=lambda: {EQUAL: [], MOST: [], CONE: []})
    counts: dict[str, int] = field(default_factory=lambda: {EQUAL: 0, MOST: 0, CONE: 0})

    def add(self, name: str, mask: NDArray[np.bool_], quadratic: ArrayLike = 0.0, linear: ArrayLike = 0.0) -> Index:
        """Variables where ``mask``, with cost ½·quadratic·x² + linear·x; their numbers in the shape of the mask."""
        index = _numbers(mask, self.size)
        self.variables[name] = index
        for costs, value in ((self.quadratic, quadratic), (self.linear, linear)):
            costs.append(np.broadcast_to(np.asarray(value, np.float64), mask.shape)[mask])
        self.size += int(mask.sum())
        return index

    def require(self, name: str, kind: str, mask: NDArray[np.bool_], right: ArrayLike, *terms: Any) -> Index:
        """Rows Σ terms = right (``EQUAL``) or ≤ right (``MOST``) where ``mask``; their numbers in its shape.

        A term is ``(variables, coefficients)`` in the shape of the mask; more can follow by :meth:`extend`.
        """
        index = _numbers(mask, self.counts[kind])
        self.counts[kind] += int(mask.sum())
        self.rows[name] = (kind, index, np.broadcast_to(np.asarray(right, np.float64), mask.shape)[mask])
        for variables, coefficients in terms:
            self.extend(kind, index, variables, coefficients)
        return index

    def extend(self, kind: str, rows: Index, variables: Index, coefficients: ArrayLike) -> None:
        """More terms of rows; whatever names no row or no variable (−1) is left out."""
        self.terms[kind].append((rows, variables, coefficients))

    def bound(self, name: str, low: ArrayLike | None, high: ArrayLike | None) -> None:
        """Bounds of the variables of that name; rows ``name_min`` and ``name_max``."""
        index = self.variables[name]
        for suffix, limit, sign in (("_min", low, -1.0), ("_max", high, 1.0)):
            if limit is not None:
                limits = np.broadcast_to(np.asarray(limit, np.float64), index.shape)
                self.require(name + suffix, MOST, (index >= 0) & np.isfinite(limits), sign * limits, (index, sign))

    def discs(self, name: str, mask: NDArray[np.bool_], radius: ArrayLike, first: Index, second: Index) -> None:
        """Cones ‖(first, second)‖ ≤ radius where ``mask``."""
        index = _numbers(mask, self.counts[CONE])
        radii = np.broadcast_to(np.asarray(radius, np.float64), mask.shape)[mask]
        self.counts[CONE] += int(mask.sum())
        self.rows[name] = (CONE, index, radii)
        triples = np.where(index >= 0, 3 * index, -1)
        for offset, variables in ((1, first), (2, second)):
            self.extend(CONE, np.where(triples >= 0, triples + offset, -1), variables, -1.0)

    def matrices(self) -> tuple[Floats, Floats, sparse.csc_matrix, Floats, tuple[int, int, int]]:
        """Diagonal of P, q, A, b, and the numbers of equations, inequalities and cones (of three rows each)."""
        counts = (self.counts[EQUAL], self.counts[MOST], self.counts[CONE])
        start = {EQUAL: 0, MOST: counts[0], CONE: counts[0] + counts[1]}
        parts: list[tuple[Index, Index, Floats]] = []
        for kind, terms in self.terms.items():
            for term in terms:
                rows, columns, values = (np.ravel(each) for each in np.broadcast_arrays(*term))
                keep = (rows >= 0) & (columns >= 0)
                parts.append((rows[keep] + start[kind], columns[keep], values[keep].astype(np.float64)))
        total = counts[0] + counts[1] + 3 * counts[2]
        row, column, value = (np.concatenate(each) for each in zip(*parts, strict=True))
        matrix = sparse.csc_matrix((value, (row, column)), shape=(total, self.size))
        right = np.zeros(total)
        for kind, index, values in self.rows.values():
            taken = index[index >= 0]
            right[start[kind] + (3 * taken if kind == CONE else taken)] = values
        return np.concatenate(self.quadratic), np.concatenate(self.linear), matrix, right, counts

    def relax(self, names: dict[str, float]) -> None:
        """Let rows of these names be missed, at a cost per unit that replaces all others."""
        self.quadratic = [np.zeros(self.size)]
        self.linear = [np.zeros(self.size)]
        for name, cost in names.items():
            if name in self.rows:
                kind, index, _ = self.rows[name]
                slack = self.add("slack_" + name, index >= 0, 0.0, cost)
                self.extend(kind, np.where(index >= 0, 3 * index, -1) if kind == CONE else index, slack, -1.0)
                self.bound("slack_" + name, 0.0, None)

    def value(self, name: str, x: Floats) -> Floats:
        """A variable out of a solution, 0 where there is none."""
        index = self.variables[name]
        return np.where(index >= 0, x[index], 0.0) if x.size else np.zeros(index.shape)

    def multiplier(self, name: str, z: Floats) -> Floats:
        """Multiplier of rows of that name, 0 where there is none; of a cone that of its radius, ≥ 0."""
        kind, index, _ = self.rows[name]
        start = {EQUAL: 0, MOST: self.counts[EQUAL], CONE: self.counts[EQUAL] + self.counts[MOST]}[kind]
        number = start + (3 * index if kind == CONE else index)
        return np.where(index >= 0, z[np.where(index >= 0, number, 0)], 0.0) if z.size else np.zeros(index.shape)

    def solve(self, tolerance: float = TOLERANCE) -> Solution:
        """Solve by Clarabel's interior points.

        Raises:
            MissingSolverError: Clarabel is not installed.
        """
        return solve(*self.matrices(), tolerance)


def solve(
    quadratic: Floats,
    linear: Floats,
    matrix: sparse.csc_matrix,
    right: Floats,
    counts: tuple[int, int, int],
    tolerance: float = TOLERANCE,
) -> Solution:
    """Solve the program with matrices as :meth:`Program.matrices` gives them.

    Raises:
        MissingSolverError: Clarabel is not installed.
    """
    try:
        import clarabel
    except ImportError:
        raise MissingSolverError('exact equilibria of the grid market need Clarabel; install "p2penv[grid]"') from None
    options = clarabel.DefaultSettings()
    options.verbose = False
    options.tol_gap_abs = options.tol_gap_rel = options.tol_feas = tolerance
    cones = [clarabel.ZeroConeT(counts[0]), clarabel.NonnegativeConeT(counts[1])]
    cones += [clarabel.SecondOrderConeT(3)] * counts[2]
    cones = [cone for cone, size in zip(cones, (*counts[:2], *[3] * counts[2]), strict=True) if size]
    costs = sparse.diags_array(quadratic).tocsc()
    solution = clarabel.DefaultSolver(sparse.csc_matrix(costs), linear, matrix, right, cones, options).solve()
    return Solution(
        str(solution.status), np.array(solution.x), np.array(solution.z), solution.iterations, solution.solve_time
    )


def _numbers(mask: NDArray[np.bool_], start: int) -> Index:
    """Consecutive numbers from ``start`` where ``mask``, −1 elsewhere."""
    index = np.full(mask.shape, -1, np.intp)
    index[mask] = start + np.arange(int(mask.sum()))
    return index
