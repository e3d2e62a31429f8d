"""Module, Parameter and Buffer: what layers and networks are made of."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

import numpy as np

from gpucnn.backends import Backend, get_backend
from gpucnn.functional import validate
from gpucnn.live import replaced
from gpucnn.nn import backward_hooks
from gpucnn.nn.backward_hooks import BackwardHook
from gpucnn.tensor import Elsewhere, Tensor, checked_dtype, checked_shape, is_grad_enabled, no_grad, zero_grad

if TYPE_CHECKING:
    from gpucnn.data import Normalize
    from gpucnn.explain import Explanation

Found = TypeVar("Found", bound="Module | Tensor")
Hook = Callable[["Module", tuple[Any, ...], Any], None]
PreHook = Callable[["Module", tuple[Any, ...]], Any]


class Parameter(Tensor):
    """A tensor that a Module learns: an attribute of this type is found by `parameters()`."""

    __slots__ = ()

    def __init__(self, data: Tensor, requires_grad: bool = True) -> None:
        validate.one_backend("Parameter", data=data)
        super().__init__(data.array, data.backend, requires_grad)

    def _is_variable(self) -> bool:
        return True


class Buffer(Tensor):
    """A tensor that belongs to a Module's state but is not learned, such as a running mean."""

    __slots__ = ()

    def __init__(self, data: Tensor) -> None:
        validate.one_backend("Buffer", data=data)
        super().__init__(data.array, data.backend)

    def _is_variable(self) -> bool:
        return True


class IncompatibleKeys(NamedTuple):
    """What `Module.load_state_dict` returns: the names that the state lacks, and those that the module lacks."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class Module:
    """Base class of layers and networks: assign parameters, buffers and modules as attributes, define `forward`.

    Names, `state_dict` keys and semantics are torch.nn.Module's.
    """

    training: bool = True
    config: dict[str, Any]  # of a model that from_pretrained made: what config.json says
    _arguments: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        module = super().__new__(cls)
        module._arguments = (args, kwargs)  # for repr, and to build the same module from a file
        return module

    def __init__(self) -> None:
        """A subclass need not call this; it is here so that a layer without arguments refuses some."""

    def forward(self, *inputs: Any, **keywords: Any) -> Any:
        """What the module computes; call the module itself, not this."""
        raise NotImplementedError(f"{type(self).__name__} has no forward(); define it, or call the modules in it")

    def __call__(self, *inputs: Any, **keywords: Any) -> Any:
        own = vars(self)
        for pre_hook in list(own.get("_pre_hooks", ())):
            changed = pre_hook(self, inputs)
            if changed is not None:
                inputs = changed if isinstance(changed, tuple) else (changed,)
        watches_gradients = own.get("_backward_hooks") and is_grad_enabled()
        if watches_gradients:
            inputs, behind = backward_hooks.watched(self, inputs)
        try:
            output = self.forward(*inputs, **keywords)
        except MemoryError as error:
            from gpucnn.memory import out_of_memory  # it knows modules

            raise out_of_memory(error, "forward pass", module=self, inputs=inputs) from None
        for hook in list(own.get("_hooks", ())):
            hook(self, inputs, output)
        return behind(output) if watches_gradients else output

    def __setattr__(self, name: str, value: Any) -> None:
        current = vars(self).get(name)
        if isinstance(current, Parameter | Buffer) and not isinstance(value, type(current) | None):
            kind = type(current).__name__
            raise TypeError(
                f"{type(self).__name__}.{name} is a {kind} and can't become a {type(value).__name__}; "
                f"assign nn.{kind}(tensor), or change its values inside no_grad() with module.{name}.copy_(tensor)"
            )
        replaced.arrays += isinstance(current, Parameter | Buffer | Module)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        replaced.arrays += 1
        super().__delattr__(name)

    half = Elsewhere("its weights stay float32: gpucnn.autocast() computes in a half type")
    bfloat16 = Elsewhere("its weights stay float32: gpucnn.autocast() computes in a half type")
    compile = Elsewhere("gpucnn.compile(step) makes a graph of a whole training step")

    # -- what it contains ------------------------------------------------------------------------------

    def register_buffer(self, name: str, tensor: Tensor, persistent: bool = True) -> None:
        """The same as ``self.name = nn.Buffer(tensor)``.

        Raises ValueError for persistent=False and for None: buffers are part of the state from the beginning, other
        tensors are plain attributes.
        """
        if not persistent:
            raise ValueError(
                f"register_buffer: {name} would be part of state_dict() as every buffer is; make what is not, and does "
                f"not move along, a plain attribute: self.{name} = tensor"
            )
        if tensor is None:
            raise ValueError(
                f"register_buffer: {name} must be a tensor; for one that is not there yet set self.{name} = None, and "
                f"self.{name} = nn.Buffer(tensor) once it is"
            )
        self._register_as("register_buffer", name, Buffer(tensor))

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """The same as ``self.name = param``."""
        if param is not None and not isinstance(param, Parameter):
            raise TypeError(f"register_parameter: {name} must be a Parameter, got {type(param).__name__}")
        self._register_as("register_parameter", name, param)

    def add_module(self, name: str, module: Module | None) -> None:
        """The same as ``self.name = module``."""
        if module is not None and not isinstance(module, Module):
            raise TypeError(f"add_module: {name} must be a Module, got {type(module).__name__}")
        self._register_as("add_module", name, module)

    def _register_as(self, method: str, name: str, value: Any) -> None:
        if not isinstance(name, str) or not name or "." in name or hasattr(type(self), name):
            raise ValueError(
                f"{method}: the name must be a text without a dot that is no attribute of a {type(self).__name__}, got "
                f"{name!r:.100}"
            )
        there = vars(self).get(name)
        if there is not None and not isinstance(value, type(there)) and not isinstance(there, type(value)):
            raise ValueError(
                f"{method}: {name} is a {type(there).__name__} of this {type(self).__name__} already; take another name"
            )
        setattr(self, name, value)

    def get_submodule(self, target: str) -> Module:
        """The module of that dotted name, as `named_modules` gives it. Raises AttributeError."""
        return self._named(Module, "get_submodule", target) if target else self

    def get_parameter(self, target: str) -> Parameter:
        """The parameter of that dotted name, as `named_parameters` gives it. Raises AttributeError."""
        return self._named(Parameter, "get_parameter", target)

    def get_buffer(self, target: str) -> Buffer:
        """The buffer of that dotted name, as `named_buffers` gives it. Raises AttributeError."""
        return self._named(Buffer, "get_buffer", target)

    def _named(self, kind: type[Found], method: str, target: str) -> Found:
        if not isinstance(target, str):
            raise TypeError(f"{method}: target must be a dotted name, got {target!r:.100}")
        found: Any = self
        for part in target.split("."):
            found = vars(found).get(part) if isinstance(found, Module) else None
        if not isinstance(found, kind):
            raise AttributeError(
                f"{method}: there is no {kind.__name__} {target!r:.100} in {type(self).__name__}; "
                f"named_{'modules' if kind is Module else kind.__name__.lower() + 's'}() has their names"
            )
        return found

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """(attribute name, module) of each direct child, in the order of assignment."""
        return ((name, value) for name, value in vars(self).items() if isinstance(value, Module))

    def children(self) -> Iterator[Module]:
        """The direct children."""
        return (child for _, child in self.named_children())

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """(dotted name, module) of this module and all below it, each once."""
        seen: set[int] = set()
        waiting: list[tuple[str, Module]] = [(prefix, self)]
        while waiting:
            name, module = waiting.pop()
            if id(module) in seen:
                continue
            seen.add(id(module))
            yield name, module
            waiting += reversed([(f"{name}.{n}" if name else n, child) for n, child in module.named_children()])

    def modules(self) -> Iterator[Module]:
        """This module and all below it."""
        return (module for _, module in self.named_modules())

    def _require_weights(self) -> None:
        """Raises ValueError if its weights are still to be made."""

    def _named_tensors(self, kind: type[Tensor] | tuple[type[Tensor], ...]) -> Iterator[tuple[str, Tensor]]:
        seen: set[int] = set()
        for prefix, module in self.named_modules():
            module._require_weights()
            for name, value in vars(module).items():
                if isinstance(value, kind) and id(value) not in seen:
                    seen.add(id(value))
                    yield (f"{prefix}.{name}" if prefix else name), value

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """(dotted name, parameter), each once, in the order of assignment."""
        return self._named_tensors(Parameter)

    def parameters(self) -> Iterator[Tensor]:
        """All parameters."""
        return (parameter for _, parameter in self.named_parameters())

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """(dotted name, buffer), each once."""
        return self._named_tensors(Buffer)

    def buffers(self) -> Iterator[Tensor]:
        """All buffers."""
        return (buffer for _, buffer in self.named_buffers())

    # -- state -----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """Name -> tensor for all parameters and buffers; the tensors share memory with the module."""
        return {name: value.detach() for name, value in self._named_tensors((Parameter, Buffer))}

    def _state_names(self, above: tuple[Module, ...] = ()) -> Iterator[tuple[str, Tensor]]:
        """(dotted name, tensor) of the state; what several modules share comes under each name."""
        above = (*above, self)
        for name, value in vars(self).items():
            if isinstance(value, Parameter | Buffer):
                yield name, value
            elif isinstance(value, Module) and not any(value is module for module in above):
                yield from ((f"{name}.{rest}", tensor) for rest, tensor in value._state_names(above))

    def load_state_dict(
        self, state_dict: Mapping[str, Tensor | np.ndarray[Any, Any]], strict: bool = True
    ) -> IncompatibleKeys:
        """Copy values in, by name. Nothing changes unless everything fits. Returns the names that did not meet.

        A tensor that several modules share may come under any of its names, or under all, as in PyTorch's states.

        Raises ValueError that names the keys that are missing or not expected (unless strict=False) and those with
        another shape.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"load_state_dict: state_dict must be a mapping, got {type(state_dict).__name__}")
        own = dict(self._named_tensors((Parameter, Buffer)))
        names = {id(value): name for name, value in own.items()}
        known = {name: names[id(value)] for name, value in self._state_names()}
        given = {known[name]: state_dict[name] for name in state_dict if name in known}
        given |= {name: state_dict[name] for name in own if name in state_dict}
        for name, value in given.items():
            if not hasattr(value, "__array__"):  # PyTorch's tensors have it too
                raise TypeError(f"load_state_dict: {name} must be a tensor or an array, got {type(value).__name__}")
            if not isinstance(value, Tensor):
                checked_dtype(np.asarray(value).dtype)
        missing = [name for name in own if name not in given]
        unexpected = [name for name in state_dict if name not in known]
        problems = []
        if strict and missing:
            problems.append(f"missing: {', '.join(missing)}")
        if strict and unexpected:
            problems.append(f"not expected: {', '.join(map(str, unexpected))}")
        problems += [
            f"{name} has shape {tuple(value.shape)}, the module's is {own[name].shape}"
            for name, value in given.items()
            if tuple(value.shape) != own[name].shape
        ]
        if problems:
            raise ValueError(f"this state does not fit {type(self).__name__}: {'; '.join(problems)}")
        with no_grad():
            for name in given:
                own[name]._writable()
            for name, value in given.items():
                own[name].copy_(value)
        return IncompatibleKeys(missing, unexpected)

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        classes: Sequence[str] | None = None,
        normalise: Normalize | tuple[Any, Any] | None = None,
        image_size: Sequence[int] | None = None,
        channels: int | None = None,
    ) -> None:
        """Write a folder as Hugging Face lays it out, config.json and model.safetensors, for `from_pretrained`.

        classes are the names of the outputs (id2label and label2id), normalise the (mean, std) of the images in 0..1,
        image_size [H, W] and channels what the model takes. What is not given is what `config` says, if from_pretrained
        made the model. Raises ValueError for two classes of one name.
        """
        from gpucnn import pretrained

        pretrained.save(self, Path(save_directory), classes, normalise, image_size, channels)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, backend: str | Backend | None = None
    ) -> Self:
        """The model in a folder that `save_pretrained` wrote, in evaluation mode; `config` is what config.json says.

        nn.Module.from_pretrained makes any model of gpucnn.nn's classes; a class of your own, called on itself, is made
        with the arguments that config.json names. The weights may be divided among several files, by an index
        (model.safetensors.index.json). Nothing in the folder is executed, nothing is downloaded.

        Raises FileNotFoundError, and ValueError for a damaged file, another class, and weights that are missing, not
        expected or of another shape: all are named.
        """
        from gpucnn import pretrained

        model, _ = pretrained.load(Path(pretrained_model_name_or_path), cls, backend)
        return model  # type: ignore[return-value]

    def train(self, mode: bool = True) -> Self:
        """Training mode (dropout drops, batch norm uses the batch) for this module and all below; returns self."""
        if not isinstance(mode, bool | np.bool_):
            raise ValueError(f"train: mode must be True or False, got {mode!r:.100}")
        self.training = bool(mode)
        for child in self.children():  # which may have a train() of its own
            child.train(mode)
        return self

    def eval(self) -> Self:
        """Evaluation mode; returns self."""
        return self.train(False)

    def cpu(self) -> Self:
        """`to` the backend "numpy"."""
        return self.to("numpy")

    def cuda(self) -> Self:
        """`to` the backend "cuda"."""
        return self.to("cuda")

    def float(self) -> Self:
        """`to` float32."""
        return self.to("float32")

    def double(self) -> Self:
        """`to` float64."""
        return self.to("float64")

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Freeze (False) or unfreeze all parameters; returns self."""
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients, or make them zeros."""
        zero_grad(self.parameters(), set_to_none)

    def to(self, target: str | Backend | np.dtype[Any] | type) -> Self:
        """Move all parameters and buffers to a backend ("numpy", "cuda") or dtype ("float64"), in place; returns self.

        A dtype converts the floating ones. The gradients of those that change are forgotten.
        """
        for module in self.modules():  # of which those without weights yet follow their first input
            for value in list(vars(module).values()):
                if isinstance(value, Parameter | Buffer):
                    value.move_(target)
        return self

    def apply(self, function: Callable[[Module], Any]) -> Self:
        """Call function on all modules below and then on this one, each once; returns self."""
        _callable("apply: function", function)
        seen: set[int] = set()

        def visit(module: Module) -> None:
            if id(module) not in seen:
                seen.add(id(module))
                for child in list(module.children()):
                    visit(child)
                function(module)

        visit(self)
        return self

    # -- looking inside --------------------------------------------------------------------------------

    def register_forward_hook(self, hook: Hook) -> RemovableHandle:
        """Call hook(module, inputs, output) after each forward; the handle's remove() ends that."""
        return self._register("_hooks", "register_forward_hook", hook)

    def register_forward_pre_hook(self, hook: PreHook) -> RemovableHandle:
        """Call hook(module, inputs) before each forward, with a tuple of the inputs that have no name; the handle's
        remove() ends that.

        What it returns, unless that is None, takes the place of the inputs: a tuple of them, or a single one.
        """
        return self._register("_pre_hooks", "register_forward_pre_hook", hook)

    def register_full_backward_hook(self, hook: BackwardHook) -> RemovableHandle:
        """Call hook(module, grad_input, grad_output) once `backward` has come through the module; the handle's remove()
        ends that.

        Both are tuples: a gradient for each input that has no name and for each output, None for what is no tensor or
        has none. Those of the parameters may still be on their way. The hook only looks: it must leave the gradients
        as they are and return None, or `backward` raises TypeError. So does a call of the module if its forward returns
        neither a tensor nor a tuple.
        """
        return self._register("_backward_hooks", "register_full_backward_hook", hook)

    def _register(self, kind: str, method: str, hook: Any) -> RemovableHandle:
        _callable(f"{method}: hook", hook)
        hooks: list[Any] = vars(self).setdefault(kind, [])
        hooks.append(hook)
        return RemovableHandle(hooks, hook)

    def multiply_adds(self, output: Tensor) -> int:
        """Multiply-adds that this layer itself (not its children) spent on `output`."""
        return 0

    def summary(self, *input_shape: int) -> Summary:
        """A table of all layers: output shape, parameters, multiply-adds, for one input [C, H, W] (no batch axis).

        A layer that another one computes along with its own results, in evaluation mode, says in which.

        >>> print(model.summary(1, 28, 28))
        """
        from gpucnn.nn.fusion import watching_fusion  # it knows the layers, which are modules

        input_shape = checked_shape([validate.integer("summary", "a length", n, least=1) for n in input_shape])
        rows: dict[str, SummaryRow] = {}
        own: dict[str, int] = {}  # parameters of each module itself; one that two modules share counts at the first
        modules = dict(self.named_modules())
        for name, parameter in self.named_parameters():
            place = name.rpartition(".")[0]
            while place and type(modules[place]).forward is Module.forward:  # a list of parameters is never called
                place = place.rpartition(".")[0]
            own[place] = own.get(place, 0) + parameter.numel()

        def note(name: str, module: Module) -> RemovableHandle:
            def hook(module: Module, inputs: tuple[Any, ...], output: Any) -> None:
                while isinstance(output, tuple | list | dict) and output:
                    output = next(iter(output.values() if isinstance(output, dict) else output))
                tensor = output if isinstance(output, Tensor) else Tensor(np.zeros(1), backend)
                earlier = rows.get(name)  # a layer that runs twice spends twice
                work = module.multiply_adds(tensor) + (earlier.multiply_adds if earlier else 0)
                kind = type(module).__name__
                rows[name] = SummaryRow(name or kind, kind, tensor.shape[1:], own.get(name, 0), work)

            return module.register_forward_hook(hook)

        handles = [
            note(name, module)
            for name, module in self.named_modules()
            if name in own or not any(True for _ in module.children())
        ]
        was_training = {id(m): m.training for m in self.modules()}
        reference = next(iter(self.parameters()), None)
        backend = get_backend() if reference is None else reference.backend
        x = Tensor(
            backend.asarray(np.zeros((1, *input_shape), np.float32 if reference is None else reference.dtype)), backend
        )
        try:
            self.eval()
            with no_grad():
                self(x)
                for handle in handles:
                    handle.remove()
                with watching_fusion() as groups:  # a layer with a hook is computed by itself
                    self(x)
        finally:
            for handle in handles:
                handle.remove()
            for module in self.modules():
                module.training = was_training[id(module)]
        names = {id(module): name for name, module in self.named_modules()}
        for first, *others in groups:
            for name in (names[id(module)] for module in others):
                rows[name] = replace(rows[name], computed_in=names[id(first)])
        return Summary(type(self).__name__, tuple(input_shape), list(rows.values()))

    def explain(
        self,
        x: Any,
        layer: str,
        unit: int | Sequence[int],
        *,
        target: int | None = None,
        label: int | None = None,
        gradient: builtins.float | None = None,
    ) -> Explanation:
        """Where one number of a layer's output comes from for one image x, and where its gradient goes, step by step.

        layer is a name as in `summary`, unit (k, p, q) or k; all else is as in `gpucnn.explain.explain`.

        >>> print(model.explain(image, "0", (2, 7, 13)))
        """
        from gpucnn.explain import explain

        return explain(self, x, layer, unit, target=target, label=label, gradient=gradient)

    def extra_repr(self) -> str:
        """What stands in the parentheses of repr: the constructor's arguments."""
        args, kwargs = self._arguments
        return ", ".join([*map(repr, args), *(f"{k}={v!r}" for k, v in kwargs.items())])

    def __repr__(self) -> str:
        children = list(self.named_children())
        if not children:
            return f"{type(self).__name__}({self.extra_repr()})"
        lines = [f"({name}): {child!r}".replace("\n", "\n  ") for name, child in children]
        return f"{type(self).__name__}(\n  " + "\n  ".join(lines) + "\n)"

    def _repr_html_(self) -> str:
        from gpucnn.notebook import module_html

        return module_html(self)


def _callable(what: str, function: Any) -> None:
    if not callable(function):
        raise TypeError(f"{what} must be callable, got {function!r:.100}")


def has_hooks(module: Module) -> bool:
    """Whether something looks at the module or changes its inputs, so that it has to be called by itself."""
    own = vars(module)
    return any(own.get(kind) for kind in ("_hooks", "_pre_hooks", "_backward_hooks"))


class RemovableHandle:
    """What register_forward_hook and its kin return."""

    def __init__(self, hooks: list[Any], hook: Any) -> None:
        self._hooks, self._hook = hooks, hook

    def remove(self) -> None:
        """End the hook; a second call does nothing."""
        if self._hook in self._hooks:
            self._hooks.remove(self._hook)


@dataclass(frozen=True)
class SummaryRow:
    """One layer of a summary; `computed_in` is the layer that computes it along with its own results, if any."""

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int
    computed_in: str | None = None

    @property
    def kind_text(self) -> str:
        """BatchNorm2d; or BatchNorm2d, in conv1."""
        return self.kind if self.computed_in is None else f"{self.kind}, in {self.computed_in}"


@dataclass(frozen=True)
class Summary:
    """What `Module.summary` found; str() is a table."""

    name: str
    input_shape: tuple[int, ...]
    rows: Sequence[SummaryRow]

    @property
    def parameters(self) -> int:
        """All parameters, those of a layer that runs twice once."""
        return sum(row.parameters for row in self.rows)

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds for one input."""
        return sum(row.multiply_adds for row in self.rows)

    def __str__(self) -> str:
        def shown(shape: tuple[int, ...]) -> str:
            return "×".join(map(str, shape)) or "1"

        header = ("layer", "kind", "output", "parameters", "multiply-adds")
        table = [
            (r.name, r.kind_text, shown(r.output_shape), f"{r.parameters:,}", f"{r.multiply_adds:,}") for r in self.rows
        ]
        total = ("total", self.name, "", f"{self.parameters:,}", f"{self.multiply_adds:,}")
        widths = [max(len(row[i]) for row in [header, *table, total]) for i in range(5)]

        def line(row: tuple[str, ...]) -> str:
            cells = [
                cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            ]
            return "  ".join(cells).rstrip()

        rule = "─" * (sum(widths) + 8)
        return "\n".join([f"input {shown(self.input_shape)}", line(header), rule, *map(line, table), rule, line(total)])

    def _repr_html_(self) -> str:
        from gpucnn.notebook import summary_html

        return summary_html(self)
