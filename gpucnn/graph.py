"""compile: a whole training step as one launch, without Python in between."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

from gpucnn.backends import get_precision
from gpucnn.backends.kernel_backend import KernelBackend
from gpucnn.backends.tuning import wanted
from gpucnn.devices import Device
from gpucnn.devices.graph import Arena, Graph, Report
from gpucnn.functional.casting import is_autocast_enabled
from gpucnn.live import CaptureError, replaced
from gpucnn.tensor import ADDS_UP, Tensor, capturing_gradients, is_grad_enabled

__all__ = ["CaptureError", "Compiled", "Report", "compile"]

MOST_GRAPHS = 8  # of one step, each with memory of its own


def compile(step: Callable[..., Any]) -> Compiled:
    """`step`, captured in a graph at its third call and then launched as a whole; as a call or a decorator.

    step(*tensors) returns a tensor, several in a tuple or list, or None. The first call of each set of shapes makes all
    that is made once, the second finds out how much memory the step takes, the third captures it. A graph launches what
    the third call launched, with the arguments of each call and the learning rate, step count and dropout masks of the
    moment; all else that Python does in the step is not done again. What is returned has no history and is valid until
    the next call: copy what must last longer.

    A step that can't be captured runs as it is; `reason` says why, and a warning does once. See docs/graphs.md.

    >>> @gpucnn.compile
    ... def step(images, labels):
    ...     optimizer.zero_grad()
    ...     loss = F.cross_entropy(model(images), labels)
    ...     loss.backward()
    ...     optimizer.step()
    ...     return loss
    """
    return Compiled(step)


class Compiled:
    """What `compile` returns. `reason`: why it runs the step as it is, or None."""

    def __init__(self, step: Callable[..., Any], on_fallback: Callable[[str], object] | None = None) -> None:
        functools.update_wrapper(self, step)
        self.reason: str | None = None
        self._step = step
        self._on_fallback = on_fallback or self._warn
        self._plans: dict[Any, _Plan] = {}

    def __call__(self, *inputs: Tensor) -> Any:
        """What step(*inputs) returns, without its history; valid until the next call."""
        for i, x in enumerate(inputs):
            if not isinstance(x, Tensor):
                raise TypeError(f"compile: argument {i} of the step must be a Tensor, got {type(x).__name__}")
        device = self._device(inputs)
        if device is None or device.capturing or device.measuring:  # the last two: within another compiled step
            return _each_tensor(Tensor.detach, self._step(*inputs))
        key = (*((x.shape, x.dtype) for x in inputs), get_precision(), wanted(), is_grad_enabled())
        if key not in self._plans and len(self._plans) == MOST_GRAPHS:
            self._fall_back(f"its arguments have more than {MOST_GRAPHS} sets of shapes")
            return self(*inputs)
        plan = self._plans.setdefault(key, _Plan(self._step, device))
        try:
            return plan(*inputs)
        except CaptureError as error:
            reason = str(error)
        del plan  # and what the capture has taken
        self._fall_back(reason)
        return self(*inputs)

    def report(self) -> list[Report]:
        """What each graph takes: bytes of memory, the most in use at a time, launches of our kernels."""
        return [plan.graph.report() for plan in self._plans.values() if plan.graph is not None]

    def _device(self, inputs: tuple[Tensor, ...]) -> Device | None:
        """Where the step can be captured, or None and the reason."""
        if self.reason is None:
            backend = inputs[0].backend if inputs else None
            if backend is None:
                self._fall_back("it has no arguments")
            elif not isinstance(backend, KernelBackend):
                self._fall_back(f"the backend {backend.name!r} has no graphs")
            elif any(x.backend is not backend for x in inputs):
                self._fall_back("its arguments are on several backends")
            elif any(x.requires_grad for x in inputs):
                self._fall_back("an argument requires a gradient; detach() it, or make the parameter outside")
            elif is_autocast_enabled():
                self._fall_back("autocast is around the step; put it inside")
            else:
                return backend.device
        return None

    def _fall_back(self, reason: str) -> None:
        self.reason = reason
        self._plans.clear()
        self._on_fallback(reason)

    def _warn(self, reason: str) -> None:
        name = getattr(self._step, "__name__", "the step")
        warnings.warn(f"{name} is not captured in a graph, it runs as it is: {reason}", UserWarning, stacklevel=5)


class _Plan:
    """The step for arguments of one set of shapes: run, then measured, then captured, then launched."""

    def __init__(self, step: Callable[..., Any], device: Device) -> None:
        self.step, self.device = step, device
        self.has_run = False
        self.measured: Arena | None = None
        self.graph: Graph | None = None

    def __call__(self, *inputs: Tensor) -> Any:
        """Raises CaptureError for what can't be captured: then nothing has been done."""
        if self.graph is not None and (self.graph.is_stale() or self.replaced != replaced.arrays):
            self.has_run, self.measured, self.graph = False, None, None
        if not self.has_run:
            outputs = _each_tensor(Tensor.detach, self.step(*inputs))
            self.has_run = True
            return outputs
        if self.measured is None:
            with self.device.measure() as arena:
                outputs = _each_tensor(Tensor.detach, self.step(*inputs))
            self.measured = arena
            return outputs
        if self.graph is None:
            self.graph = self.capture(inputs, self.measured)
        return self.launch(self.graph, inputs)

    def capture(self, inputs: tuple[Tensor, ...], measured: Arena) -> Graph:
        with capturing_gradients() as gradients:
            try:
                self.inputs = [Tensor(x.array.copy(order="K"), x.backend) for x in inputs]
                with self.device.capture(measured) as graph:
                    outputs = self.step(*self.inputs)
                    self.outputs = _each_tensor(Tensor.detach, outputs, only_tensors=True)
                    del outputs
            except Exception as error:  # whatever it is: if it has another cause, the step itself will raise it again
                for node in gradients:  # what was put there was never computed
                    node.gradient = None
                raise error if isinstance(error, CaptureError) else CaptureError(_shown(error)) from error
        self.gradients = {node: node.gradient for node in gradients}
        self.added_to = gradients.added_to()
        for node in self.added_to:  # as it was: the capture computed none
            node.gradient = None
        self.replaced = replaced.arrays
        return graph

    def launch(self, graph: Graph, inputs: tuple[Tensor, ...]) -> Any:
        if any(node.gradient is not None for node in self.added_to):
            raise CaptureError(ADDS_UP)
        for own, given in zip(self.inputs, inputs, strict=True):
            own.array[...] = given.array
        graph.launch()
        for node, gradient in self.gradients.items():  # others may have set it to None since
            node.gradient = gradient
        return _each_tensor(Tensor.detach, self.outputs)


def _each_tensor(function: Callable[[Tensor], Tensor], value: Any, only_tensors: bool = False) -> Any:
    """`value` with function(tensor) for each of its tensors. Raises CaptureError for what is no tensor, if told to."""
    if isinstance(value, Tensor):
        return function(value)
    if type(value) in (tuple, list):
        return type(value)(_each_tensor(function, part, only_tensors) for part in value)
    if only_tensors and value is not None:
        raise CaptureError(f"it returns {type(value).__name__}, which would be the same in every call; return tensors")
    return value


def _shown(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
