"""Parties of a backend by name, for deployments in which each is a process of its own."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypedDict

from p2penv.core import validation
from p2penv.pem.protocols.channel import Party
from p2penv.pem.protocols.roster import Own, Public

BACKENDS = ("committee", "hardened", "paper")
PACKAGES = ("cryptography", "gmpy2", "mpyc", "tno")  # of the extra


def need() -> None:
    """Refuse what takes the extra where it is not installed.

    Raises:
        ImportError: names what is missing, and the extra.
    """
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise ImportError(f"private clearing needs {', '.join(missing)}: pip install 'p2penv[private]'")


class Options(TypedDict):
    """Of a deployment, the same for all its parties."""

    bits: int  # of keys; the committee has none
    insecure: bool  # whether they may be shorter than 2048
    answers: bool  # whether sellers deliver other than their net energy once they know the price
    coin: str  # in hexadecimal, what those with a task are drawn by


@dataclass
class Maker:
    """Makes one party of window after window.

    Args:
        backend: which protocol.
        name: of the party.
        folder: of its keys.
        options: of the deployment.
    """

    backend: str
    name: str
    folder: Path
    options: Options
    _kept: MutableMapping[str, Any] = field(default_factory=dict)

    def party(self, window: int, public: Public, own: Own | None) -> Party:
        """The party in a window; ``own`` is None for who is no home."""
        module = import_module(f"p2penv.pem.protocols.{self.backend}")
        made: Party
        if self.backend == "committee":
            made = module.party(self.name, public, own)
        else:
            options: dict[str, Any] = {"coin": bytes.fromhex(self.options["coin"]), "answers": self.options["answers"]}
            if own is not None:
                options["member"] = self._member()
            if self.backend == "hardened":
                options["number"] = window
            made = module.party(self.name, public, own, **options)
        return made

    def idle(self) -> None:
        """What the party computes between windows."""
        if "member" in self._kept:
            self._kept["member"].idle()

    def _member(self) -> Any:
        from p2penv.pem.protocols.keys import KeyStore
        from p2penv.pem.protocols.member import Member

        if "member" not in self._kept:
            store = KeyStore(self.name, self.folder, self.options["bits"], insecure=self.options["insecure"])
            self._kept["member"] = Member(store)
        return self._kept["member"]


def helpers(backend: str) -> tuple[str, ...]:
    """Parties beside the homes."""
    validation.choice("backend", backend, BACKENDS)
    return tuple(import_module(f"p2penv.pem.protocols.{backend}").MEMBERS)
