"""Clearing in the clear, on published integers: what every other backend must equal."""

from __future__ import annotations

import numpy as np

from p2penv.pem.protocols.market import FULL, Clearing, Window, case_of, closed, general_price, part, taken
from p2penv.pem.rules import GENERAL


def evaluate(window: Window) -> tuple[int, int]:
    """Case and price [ticks] of an open market."""
    case = case_of(int(np.maximum(window.net, 0).sum()), int(window.demand.sum()))
    if case != GENERAL:
        return case, int(window.prices.low)
    sells = window.net > 0
    return case, general_price(int(window.preference[sells].sum()), int(window.capacity[sells].sum()), window.prices)


def clear(window: Window) -> Clearing:
    """Case, price and fill of the paper's mechanism.

    Each buyer gets ⌊F·D/2¹⁶⌋, each seller sells ⌊Ψ·s/2¹⁶⌋; what these floors leave over is with the grid.
    """
    if not window.open:
        return closed(window)
    case, price = evaluate(window)
    supply, demand = window.supply, window.demand
    fill, share = part(int(supply.sum()), int(demand.sum())), part(int(demand.sum()), int(supply.sum()))
    assert FULL in (fill, share)
    return Clearing(case, price, fill, share, taken(demand, fill) + taken(supply, share))
