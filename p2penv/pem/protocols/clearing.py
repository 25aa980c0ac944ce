"""Clearing of a window by any backend."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, get_args

from p2penv.core import validation
from p2penv.pem.protocols import plain
from p2penv.pem.protocols.backends import need
from p2penv.pem.protocols.market import Backend, Clearing, Window

if TYPE_CHECKING:
    from p2penv.pem.protocols.member import Community


def clear(
    window: Window, backend: Backend = "plain", *, community: Community | None = None, timeout: float = 60.0
) -> Clearing:
    """Clear a window in this process.

    Args:
        window: what homes bring to it.
        backend: ``"plain"``, in the clear; ``"paper"``, the paper's protocols with their leaks; ``"hardened"``, which
            give away price and fill only; ``"committee"``, by three parties of which no two may collude.
        community: keys of the homes, for ``"paper"`` and ``"hardened"``; of at least as many homes.
        timeout: longest wait for a message [s].

    Raises:
        ImportError: the extra is not installed.
        ValueError: unknown backend, no community where one is needed, or too small a one.
        ProtocolError: a party that does not keep to the protocol.
    """
    validation.choice("backend", backend, get_args(Backend))
    if backend == "plain":
        return plain.clear(window)
    need()
    module = import_module(f"p2penv.pem.protocols.{backend}")
    if backend == "committee":
        cleared: Clearing = module.clear(window, timeout)
        return cleared
    if community is None or len(community.members) < window.size:
        have = "none" if community is None else f"one of {len(community.members)}"
        raise ValueError(f"backend {backend!r} needs a community of at least {window.size} homes, got {have}")
    cleared = module.clear(window, community, timeout)
    return cleared
