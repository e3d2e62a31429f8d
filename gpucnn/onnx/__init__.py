"""ONNX files: networks of other frameworks in, networks of this one out.

The format is that of onnx.ai; the package of that name reads and writes it.
"""

from importlib.util import find_spec

if find_spec("onnx") is None:
    raise ImportError('reading and writing ONNX files needs the package onnx: pip install "gpucnn[onnx]"')

from gpucnn.onnx.graph import Graph, load
from gpucnn.onnx.write import save

__all__ = ["Graph", "load", "save"]
