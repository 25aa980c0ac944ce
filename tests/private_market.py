"""Random windows for tests of private clearing."""

from __future__ import annotations

import numpy as np

from p2penv.pem.protocols.market import ENERGY, SCALE, TICKS, Window, general_price
from p2penv.pem.rules import Prices

PRICES = Prices(800, 900, 1100, 1200)
HOURS = 1 / 60


def random_window(
    rng: np.random.Generator, homes: int, coalition: int = 3, answers: bool = False, tilt: float | None = None
) -> Window:
    """A window of whatever case; with ``answers`` sellers deliver other than their net energy, some nothing."""
    tilt = rng.uniform(-0.6, 0.5) if tilt is None else tilt
    net = np.rint(rng.normal(tilt, 1.0, homes) * HOURS * ENERGY).astype(int)
    net[rng.random(homes) < 0.05] = 0
    capacity = np.rint(rng.uniform(1.0, 6.0, homes) * SCALE).astype(int)
    preference = np.rint(capacity * rng.uniform(60.0, 115.0) * rng.uniform(0.8, 1.2, homes)).astype(int)
    delivery = None
    if answers:
        scale = rng.uniform(0.0, 2.0) * rng.uniform(0.5, 1.5, homes) * (rng.random(homes) < 0.9)
        delivery = np.rint(np.maximum(net, 0) * scale).astype(int)
    return Window(net, preference, capacity, PRICES, delivery, coalition)


def answered_window(rng: np.random.Generator, sellers: int, buyers: int) -> Window:
    """A general window in which sellers' net energy is their best answer to its price, S − k/p."""
    capacity = rng.integers(2 * SCALE, 6 * SCALE, sellers)
    preference = np.rint(capacity * rng.uniform(70.0, 85.0, sellers)).astype(int)
    price = general_price(int(preference.sum()), int(capacity.sum()), PRICES)
    supply = np.rint((capacity - preference * TICKS / price) / SCALE * HOURS * ENERGY).astype(int)
    need = rng.uniform(1.05, 3.0) * supply.sum()
    demand = np.ceil(need * rng.dirichlet(np.full(buyers, 3.0))).astype(int)
    order = rng.permutation(sellers + buyers)
    none = np.zeros(buyers, int)
    columns = (np.concatenate(pair)[order] for pair in ((supply, -demand), (preference, none), (capacity, none)))
    return Window(*columns, PRICES)
