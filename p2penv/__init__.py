"""Peer-to-peer electricity markets as multi-agent environments whose rewards are equilibrium costs."""

from p2penv.markets import MARKETS, make_functional, make_parallel, make_solo, make_vector, register

__version__ = "0.1.0"
__all__ = ["MARKETS", "__version__", "make_functional", "make_parallel", "make_solo", "make_vector", "register"]

register()
