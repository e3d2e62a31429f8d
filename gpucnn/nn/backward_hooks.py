"""What `Module.register_full_backward_hook` does: a module's gradients are looked at as they go by on the tape.

In front of the module and behind it each tensor goes through an identity, and all identities of one side through a
gate: a node that is older than all of them, so that it is left only when every gradient that comes has come.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucnn.backends import Array
from gpucnn.tensor import Tensor, record

if TYPE_CHECKING:
    from gpucnn.nn.module import Module

Gradients = tuple[Tensor | None, ...]
BackwardHook = Callable[["Module", Gradients, Gradients], None]


def watched(module: Module, inputs: tuple[Any, ...]) -> tuple[tuple[Any, ...], Callable[[Any], Any]]:
    """The inputs to call forward with, and what its output has to go through, so that the module's hooks are told."""
    of_outputs: list[Gradients] = []  # until those of the inputs have come

    def tell(of_inputs: Gradients) -> None:
        if not of_outputs:  # the gradient came from something that the module has put aside
            return
        arrived = of_outputs.pop()
        for hook in list(vars(module).get("_backward_hooks", ())):
            returned = hook(module, of_inputs, arrived)
            if returned is not None:
                raise TypeError(
                    f"register_full_backward_hook: a hook of {type(module).__name__} can't change gradients, it must "
                    f"return None, got {returned!r:.100}; for other gradients compute with an op that has them, by "
                    "gpucnn.tensor.record"
                )

    behind_a_gate = _gated(inputs, tell, zeros=True)
    alone = (None,) * len(inputs) if behind_a_gate is inputs else None  # no input has a gradient, none will come

    def keep(arrived: Gradients) -> None:
        of_outputs[:] = [arrived]
        if alone is not None:
            tell(alone)

    def behind(output: Any) -> Any:
        if isinstance(output, Tensor):
            return _gated((output,), keep)[0]
        if not isinstance(output, tuple):
            raise TypeError(
                f"register_full_backward_hook: forward() of {type(module).__name__} must return a tensor or a tuple of "
                f"tensors, got {type(output).__name__}; hook the modules in it"
            )
        gated = _gated(output, keep)
        return type(output)(*gated) if hasattr(output, "_fields") else gated

    return behind_a_gate, behind


def _gated(values: tuple[Any, ...], tell: Callable[[Gradients], None], zeros: bool = False) -> tuple[Any, ...]:
    """The values; those that have a gradient are made anew, and `tell` gets all gradients once they have come.

    zeros: whether that of a tensor to which none has come is told as what goes on from here, which is zeros.
    """
    places = {i: value for i, value in enumerate(values) if isinstance(value, Tensor) and value.requires_grad}
    if not places:
        return values
    count, came = len(values), dict[int, Array]()
    kinds = {i: (value.backend, value.shape, value.dtype) for i, value in places.items()}  # and no arrays: memory

    def all_came(_: Array) -> tuple[Array, ...]:
        on = {i: came[i] if i in came else kind[0].xp.zeros(*kind[1:]) for i, kind in kinds.items()}
        told = {i: Tensor(on[i], kinds[i][0]) for i in (on if zeros else came)}
        came.clear()
        tell(tuple(told.get(i) for i in range(count)))
        return tuple(on.values())

    backend = next(iter(places.values())).backend
    nothing = backend.xp.zeros((), np.float32)  # what a gate is made of, and all that goes to it
    gate = record(backend, nothing, (tuple(places.values()), all_came))

    def through(place: int, value: Tensor) -> Tensor:
        def arrive(dy: Array) -> Array:
            came[place] = dy
            return nothing

        result = record(value.backend, value.array, (gate, arrive))
        if result._node is not None and value._node is not None:
            result._node.squashed_by = value._node.squashed_by
        return result

    return tuple(through(i, value) if i in places else value for i, value in enumerate(values))
