"""`gpucnn.functional` by its name in PyTorch: `import gpucnn.nn.functional as F`."""

from gpucnn.functional import *  # noqa: F403
from gpucnn.functional import __all__ as __all__
