"""Checks of what users hand in: one clear error that names field, agent, value and what is allowed."""

from __future__ import annotations

import datetime
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ONE = np.array(1.0, np.float32)  # to compare with an array takes half the time of a number


def number(name: str, value: Any, low: float = -np.inf, high: float = np.inf, *, open_low: bool = False) -> float:
    """``value`` as a finite float in ``[low, high]`` (``(low, high]`` with ``open_low``)."""
    try:
        result = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    if not np.isfinite(result) or result > high or result < low or (open_low and result <= low):
        raise ValueError(f"{name} must be {_range(low, high, open_low)}, got {result!r}")
    return result


def count(name: str, value: Any, low: int = 1) -> int:
    """``value`` as a whole number of at least ``low``."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < low:
        raise ValueError(f"{name} must be a whole number >= {low}, got {value!r}")
    return int(value)


def seed(name: str, value: Any) -> int:
    """``value`` as a whole number of at least 0."""
    return count(name, value, 0)


def date(name: str, value: Any) -> str:
    """``value``, text or a date, as text like "2014-07-25"."""
    text = str(value)
    try:
        if not re.fullmatch(r"\d{4}-\d\d-\d\d", text):
            raise ValueError
        datetime.date.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{name} must be a date like 2014-07-25, got {value!r}") from None
    return text


def forecast(ahead: Any, error: Any, horizon: int, unit: str) -> tuple[int, float]:
    """How many steps ahead forecasts look, 0 for none, and their relative error: 0.1 if not given.

    Args:
        ahead: ``forecast`` of an environment, a whole number in [0, horizon].
        error: its ``forecast_error``, ≥ 0; None unless there are forecasts.
        horizon: steps of an episode.
        unit: what the steps are called.

    Raises:
        ValueError: names the option, its value and what is allowed.
    """
    steps = int(number("forecast", ahead, 0, horizon))
    if steps != ahead:
        raise ValueError(f"forecast must be a whole number of {unit}, got {ahead!r}")
    if error is not None and not steps:
        raise ValueError(f"forecast_error is for forecasts; forecast is 0, got forecast_error={error!r}")
    return steps, number("forecast_error", 0.1 if error is None else error, 0.0)


def refuse_idle(of: Callable[..., Any], **options: tuple[Any, bool, str]) -> None:
    """Refuse options that are set and would do nothing.

    Args:
        of: whose options they are.
        **options: value, whether it does anything, and what it belongs to.

    Raises:
        ValueError: an option that does nothing differs from its default.
    """
    usual = inspect.signature(of).parameters
    for name, (value, used, owner) in options.items():
        if not used and not np.array_equal(value, usual[name].default):
            raise ValueError(f"{name} belongs to {owner} and would do nothing here; leave it out, got {value!r}")


def vector(
    name: str,
    value: Any,
    size: int,
    low: float = -np.inf,
    high: float = np.inf,
    *,
    open_low: bool = False,
    owner: str = "agent",
) -> NDArray[np.float64]:
    """``value`` (scalar or ``(size,)``) as a read-only float vector with every entry, one an owner, in the range."""
    array = floats(name, value)
    if array.shape not in ((), (size,)):
        raise ValueError(f"{name} must be a scalar or of shape ({size},), got shape {array.shape}")
    array = np.array(np.broadcast_to(array, (size,)))
    outside = ~np.isfinite(array) | (array < low) | (array > high) | ((array <= low) if open_low else False)
    if outside.any():
        k = int(np.argmax(outside))
        raise ValueError(f"{name}[{k}] must be {_range(low, high, open_low)}, got {float(array[k])!r} ({owner} {k})")
    array.flags.writeable = False
    return array


def per_agent(size: int, **values: Any) -> list[Any]:
    """Each value as an array ``(..., size)``, lists as NumPy ones; leading axes must go together.

    Only NumPy values are checked to be finite: compiled code cannot look at values.
    """
    arrays = [value if hasattr(value, "shape") else floats(name, value) for name, value in values.items()]
    for name, array in zip(values, arrays, strict=True):
        if array.shape[-1:] != (size,):
            raise ValueError(f"{name} must have shape (..., {size}), got {tuple(array.shape)}")
        if not isinstance(array, np.ndarray):
            continue
        if array.dtype.kind not in "fiub":
            raise TypeError(f"{name} must hold numbers, got an array of {array.dtype}")
        finite = np.isfinite(array)
        if not finite.all():
            index = tuple(int(i) for i in np.argwhere(~finite)[0])
            raise ValueError(f"{name} of agent {index[-1]} must be finite, got {float(array[index])!r}")
    shapes = {tuple(array.shape) for array in arrays}
    if len(shapes) > 1:
        try:
            np.broadcast_shapes(*shapes)
        except ValueError:
            found = ", ".join(f"{name} {tuple(array.shape)}" for name, array in zip(values, arrays, strict=True))
            raise ValueError(f"leading axes must be equal or broadcast, got shapes {found}") from None
    return arrays


def floats(name: str, value: Any) -> NDArray[np.float64]:
    """``value`` as a float array, or an error that names the field."""
    try:
        return np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must hold numbers, got {value!r}") from None


def ordered(low_name: str, low: NDArray[Any], high_name: str, high: NDArray[Any]) -> None:
    """Refuse ``low > high`` anywhere."""
    wrong = low > high
    if wrong.any():
        agent = int(np.argmax(wrong))
        raise ValueError(
            f"{low_name}[{agent}] = {low[agent]:g} exceeds {high_name}[{agent}] = {high[agent]:g} (agent {agent})"
        )


def choice(name: str, value: Any, allowed: Iterable[Any]) -> Any:
    """``value`` if it is one of ``allowed``."""
    options = list(allowed)
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}; got {value!r}")
    return value


def actions(
    values: NDArray[Any], shape: tuple[int, ...], agents: Sequence[str], names: Mapping[str, Sequence[str]]
) -> None:
    """Refuse a joint action ``(..., N, A)`` of the wrong shape, not finite, or outside [−1, 1].

    Args:
        values: what is checked.
        shape: what it must have.
        agents: N names.
        names: of each agent's actions; those of an agent with fewer than A are followed by padding.

    Raises:
        TypeError: not real numbers.
        ValueError: names agent, entry and value.
    """
    if values.dtype.kind not in "fiub":
        raise TypeError(f"actions must be real numbers, got an array of {values.dtype}")
    if values.shape != shape:
        raise ValueError(f"actions must have shape {shape}, got {values.shape}")
    # Counting is the cheapest test, and NaN fails it; details are worked out only for the message.
    if np.count_nonzero(np.abs(values) <= _ONE) != values.size:
        index = tuple(int(i) for i in np.argwhere(~(np.abs(values) <= 1.0))[0])
        agent = agents[index[-2]]
        own = names[agent]
        entry = own[index[-1]] if index[-1] < len(own) else f"{index[-1]} (padding)"
        where = f" in environment {index[0]}" if len(index) > 2 and len(values) > 1 else ""
        raise ValueError(f"action of {agent}{where}, entry {entry}, must lie in [-1, 1], got {float(values[index])!r}")


def _range(low: float, high: float, open_low: bool) -> str:
    if np.isinf(low) and np.isinf(high):
        return "finite"
    if np.isinf(high):
        return f"finite and {'>' if open_low else '>='} {low:g}"
    return f"in {'(' if open_low else '['}{low:g}, {high:g}]"
