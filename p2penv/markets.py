"""The markets by name, their registration and the factories behind ``p2penv.<market>_v0``."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from p2penv.core.contract import MarketEnv, Policy
    from p2penv.faces.aec import MarketAECEnv
    from p2penv.faces.parallel import MarketParallelEnv
    from p2penv.faces.solo import MarketSoloEnv, MarketSoloVectorEnv
    from p2penv.faces.vector import MarketVectorEnv

MARKETS = {
    # versioned name: (registered id, module, class)
    "communication_v0": ("p2penv/Communication-v0", "p2penv.communication", "Communication"),
    "dpvcg_v0": ("p2penv/DPVCG-v0", "p2penv.dpvcg", "DPVCG"),
    "pem_v0": ("p2penv/PEM-v0", "p2penv.pem", "PEM"),
    "grid_v0": ("p2penv/Grid-v0", "p2penv.grid", "Grid"),
}


def functional(market: str) -> Callable[..., MarketEnv]:
    """Class of a market's functional environment.

    Raises:
        ValueError: unknown name; the message lists the known ones.
    """
    if market not in MARKETS:
        raise ValueError(f"market must be one of {', '.join(MARKETS)}; got {market!r}")
    _, module, name = MARKETS[market]
    return getattr(import_module(module), name)


def make_functional(market: str, **options: Any) -> MarketEnv:
    """The pure, batched environment of a market (see ``p2penv.core.contract``)."""
    return functional(market)(**options)


def make_parallel(
    market: str, *, render_mode: str | None = None, dtype: str = "float64", out_of_range: str = "raise", **options: Any
) -> MarketParallelEnv:
    """A market as a PettingZoo ``ParallelEnv``."""
    from p2penv.faces.parallel import MarketParallelEnv

    return MarketParallelEnv(make_functional(market, **options), render_mode, dtype, out_of_range)


def make_raw(market: str, **options: Any) -> MarketAECEnv:
    """A market as a PettingZoo ``AECEnv``, without wrappers; options as :func:`make_parallel`."""
    from p2penv.faces.aec import MarketAECEnv

    return MarketAECEnv(make_parallel(market, **options))


def make_aec(market: str, **options: Any) -> Any:
    """A market as a PettingZoo ``AECEnv`` that enforces the order of calls; options as :func:`make_parallel`."""
    from pettingzoo.utils.wrappers import OrderEnforcingWrapper

    return OrderEnforcingWrapper(make_raw(market, **options))


def make_solo(
    market: str,
    agent: str,
    *,
    others: str | Policy | None = None,
    render_mode: str | None = None,
    dtype: str = "float64",
    out_of_range: str = "raise",
    **options: Any,
) -> MarketSoloEnv:
    """A market for one learner, as a Gymnasium environment; the others follow a policy, by default the equilibrium."""
    from p2penv.faces.solo import MarketSoloEnv

    return MarketSoloEnv(make_functional(market, **options), agent, others, render_mode, dtype, out_of_range)


def make_solo_vector(
    market: str,
    num_envs: int,
    agent: str,
    *,
    others: str | Policy | None = None,
    render_mode: None = None,
    dtype: str = "float64",
    out_of_range: str = "raise",
    **options: Any,
) -> MarketSoloVectorEnv:
    """E copies of the solo environment, stepped together; they are not drawn."""
    if render_mode is not None:
        raise ValueError(f"render_mode must be None for vectorised environments, got {render_mode!r}")
    from p2penv.faces.solo import MarketSoloVectorEnv

    return MarketSoloVectorEnv(make_functional(market, **options), num_envs, agent, others, dtype, out_of_range)


def make_vector(
    market: str,
    num_envs: int,
    *,
    dtype: str = "float64",
    out_of_range: str = "raise",
    copy: bool = True,
    **options: Any,
) -> MarketVectorEnv:
    """E environments × N agents stepped together; rows ``(E, N, …)``."""
    from p2penv.faces.vector import MarketVectorEnv

    return MarketVectorEnv(make_functional(market, **options), num_envs, dtype, out_of_range, copy)


def register() -> None:
    """Register every market with PettingZoo (parallel and AEC) and its solo face with Gymnasium; idempotent."""
    import gymnasium
    from pettingzoo.env_registry import registration

    for market, (identifier, _, _) in MARKETS.items():
        if identifier in gymnasium.registry:
            continue
        registration.register("parallel", identifier, entry_point=f"p2penv.{market}:parallel_env")
        registration.register("aec", identifier, entry_point=f"p2penv.{market}:env")
        gymnasium.register(
            identifier,
            entry_point=f"p2penv.{market}:solo_env",
            vector_entry_point=f"p2penv.{market}:solo_vector_env",
            disable_env_checker=False,
        )
