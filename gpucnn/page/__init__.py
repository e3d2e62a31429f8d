"""The local page of `gpucnn demo`: draw a digit, see what each layer makes of it, ask a unit why."""

from gpucnn.page.networks import Networks, find
from gpucnn.page.server import serve

__all__ = ["Networks", "find", "serve"]
