"""Private clearing of a window: cryptographic protocols between homes; needs the ``private`` extra.

Source: Xie, Wang, Hong, Thai, "Privacy preserving distributed energy trading" (PEM), Protocols 1 to 4.
"""

from p2penv.pem.protocols.market import Clearing, Window

__all__ = ["Clearing", "Window"]
