"""Reference policies of every market under one roof: ``baselines.make(env, "ve")``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from baselines import communication, dpvcg, grid, pem
from p2penv.core import validation
from p2penv.core.contract import Policy

REGISTRY: Mapping[str, Mapping[str, Callable[..., Policy]]] = {
    "communication_v0": communication.POLICIES,
    "dpvcg_v0": dpvcg.POLICIES,
    "pem_v0": pem.POLICIES,
    "grid_v0": grid.POLICIES,
}

__all__ = ["REGISTRY", "make", "names"]


def names(env: Any) -> list[str]:
    """Names of the baselines of an environment's market.

    Args:
        env: a functional environment, or a face of one.

    Raises:
        TypeError: neither.
        ValueError: a market without baselines.
    """
    return list(REGISTRY[_market(_functional(env))])


def make(env: Any, name: str, **options: Any) -> Policy:
    """A reference policy for an environment.

    Args:
        env: a functional environment (``p2penv.make_functional``), or a face of one.
        name: one of :func:`names`.
        **options: of that baseline.

    Raises:
        ValueError: unknown name (the error lists the known ones), or an option out of range.
        TypeError: unknown option, or ``env`` is no environment of this project.
    """
    functional = _functional(env)
    known = REGISTRY[_market(functional)]
    baseline = known[validation.choice("baseline", name, known)]
    try:
        inspect.signature(baseline).bind(functional, **options)
    except TypeError as error:
        raise TypeError(f"baseline {name!r}: {error}") from None
    return baseline(functional, **options)


def _functional(env: Any) -> Any:
    face = getattr(env, "unwrapped", env)
    functional = getattr(face, "functional", face)
    if not hasattr(functional, "roles"):
        raise TypeError(f"env must be a functional environment or a face of one, got {type(env).__name__}")
    return functional


def _market(functional: Any) -> str:
    return str(validation.choice("market", functional.name, REGISTRY))
