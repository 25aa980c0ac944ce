"""What makes any joint action feasible: energy stays for later, trades are backed, surplus is not exported.

Nothing here is in the paper, whose prosumers choose from their feasible sets. All functions are batched over leading
axes; N prosumers with up to K trading partners each.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from p2penv.core.arrays import Array, clip, namespace, positive, row_sum

Floats = NDArray[np.float64]

# Cuts passed on along chains of resale before resellers buy for themselves alone.
ROUNDS = 3


def charge_floor(
    least: Floats, final: Floats, power: Floats, leakage: Floats, efficiency: Floats, step_hours: float, hours: int
) -> Floats:
    """Charge ``(H + 1, N)`` a storage must not fall below [kWh], so that it can end the day at ``final``.

    Backward along (5) with full charging power p̄: x_h ≥ (x_{h+1} − T_s·η_ch·p̄)/η_st, and never below x̲.

    Args:
        least: (N,) x̲ [kWh].
        final: (N,) charge wanted at the end, ≥ x̲ [kWh].
        power: (N,) p̄ [kW].
        leakage: (N,) η_st.
        efficiency: (N,) η_ch.
        step_hours: T_s.
        hours: H.
    """
    rows = [np.maximum(least, final)]
    for _ in range(hours):
        rows.append(np.maximum(least, (rows[-1] - step_hours * efficiency * power) / leakage))
    return np.stack(rows[::-1])


def cut(trade: Array, share: Array, partner: Array) -> Array:
    """Trades ``(…, N, K)`` with what each buyer buys multiplied by its ``share (…, N)``, for both sides alike."""
    return trade * namespace(trade).where(trade > 0.0, share[..., None], _of_partner(share, partner))


def _of_partner(values: Array, partner: Array) -> Array:
    """Entries ``(…, N, K)`` of partners; anything in empty slots."""
    xp = namespace(values)
    if isinstance(values, np.ndarray) and values.ndim == 2 and values.flags.f_contiguous:
        return values.T[partner].transpose(2, 0, 1)  # environments side by side in memory stay so
    index = xp.reshape(clip(partner, 0 * partner, partner), (-1,))
    return xp.reshape(xp.take(values, index, axis=-1), (*values.shape[:-1], *partner.shape))


def backed(trade: Array, use: Array, partner: Array) -> Array:
    """Trades cut until nobody receives more than it can use itself.

    Buyers with too much buy less of everybody in proportion. Who resells then has less to sell, so that the cut is
    passed on, a few times; if a chain is longer, everybody there buys at most what it uses without reselling.
    Reciprocity stays exact.

    Args:
        trade: (…, N, K) received power, negative where given [kW].
        use: (…, N) most net power each can take, ≥ 0 [kW].
        partner: (N, K) index of the partner, −1 in empty slots.

    Returns:
        (…, N, K), no entry larger in size than before; sums over K are at most ``use``.
    """
    xp = namespace(trade)
    one = 1.0 + 0.0 * use
    for _ in range(ROUNDS):
        bought, sold = row_sum(positive(trade)), row_sum(positive(-trade))
        over = bought > use + sold
        if xp is np and not over.any():
            return trade
        trade = cut(trade, xp.where(over, (use + sold) / xp.where(over, bought, one), one), partner)
    bought, sold = row_sum(positive(trade)), row_sum(positive(-trade))
    # Rounding is no chain.
    close = 64.0 * float(xp.finfo(trade.dtype).eps) * bought
    left = xp.any(bought > use + sold + close, axis=-1)[..., None] & (bought > use)
    if xp is np and not left.any():
        return trade
    return cut(trade, xp.where(left, use / xp.where(left, bought, one), one), partner)


def absorb(surplus: Array, solar: Array, dispatch: Array, discharge: Array) -> tuple[Array, Array, Array]:
    """Take back generation until no surplus is left: first what costs most, so fuel, then storage, then the sun.

    Args:
        surplus: (…, N) what a prosumer has too much [kW]; negative where it has none.
        solar: (…, N) not curtailed yet [kW].
        dispatch: (…, N) [kW].
        discharge: (…, N) [kW].

    Returns:
        (…, N) each: what more is curtailed, and the dispatch and discharge that are left [kW].
    """
    xp = namespace(surplus)
    left = xp.maximum(surplus, 0.0 * surplus)
    taken = []
    for available in (dispatch, discharge, solar):
        part = xp.minimum(left, available)
        taken.append(part)
        left = left - part
    return taken[2], dispatch - taken[0], discharge - taken[1]
