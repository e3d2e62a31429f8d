"""Pictures of what a network learned and did: filters, feature maps, mistakes, confusion, curves, and where it looks.

Each function returns a matplotlib Figure, made without pyplot, so nothing global changes and no window is needed.
`path` also saves it, as PNG, PDF or SVG by its suffix, atomically. Raises ImportError with the pip command where
matplotlib is missing.
"""

from gpucnn.viz.layers import feature_maps, filters
from gpucnn.viz.reasons import grad_cam, occlusion, saliency
from gpucnn.viz.results import confusion, curves, misclassified

__all__ = ["confusion", "curves", "feature_maps", "filters", "grad_cam", "misclassified", "occlusion", "saliency"]
