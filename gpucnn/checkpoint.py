"""Models and training states in safetensors files: arrays under PyTorch's names, the rest as JSON in the metadata.

Nothing read from a file is executed: a description names classes of gpucnn.nn and their arguments, and nothing else is
ever made from it. Files are written whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from gpucnn import nn
from gpucnn.atomic import checked_path, plain, write_atomically
from gpucnn.backends import Backend, get_backend, use_backend
from gpucnn.creation import at_most
from gpucnn.data import Loader, Normalize
from gpucnn.dtypes import bfloat16, named
from gpucnn.names import is_showable, showable
from gpucnn.nn import Module, ModuleDict, ModuleList, ParameterList, Sequential
from gpucnn.optim import LRScheduler, Optimizer, ReduceLROnPlateau, WarmUp
from gpucnn.optim.optimizer import check_optimizer
from gpucnn.random import Generator, get_generator, use_generator
from gpucnn.settings import check_description

Arrays = dict[str, NDArray[Any]]
Description = dict[str, Any]

# One metadata key a file: safetensors writes several in no fixed order, and equal contents should be equal bytes.
_MODEL, _CHECKPOINT = "gpucnn.model", "gpucnn.checkpoint"

# How a file of torch.save begins: a zip, and before PyTorch 1.6 a pickle of this magic number.
_PYTORCH = (b"PK\x03\x04", b"\x80\x02\x8a\x0al\xfc\x9cF")


# -- descriptions ----------------------------------------------------------------------------------


@cache
def _classes() -> dict[str, type[Module]]:
    return {
        name: value
        for namespace in (nn, nn.models)
        for name, value in vars(namespace).items()
        if isinstance(value, type) and issubclass(value, Module) and value is not Module
    }


def describe(module: Module) -> Description:
    """{"class", "args", "kwargs", "children": {name: description}}, as JSON can hold it.

    The arguments are the constructor's, the children those of now: a layer that was replaced or appended is described
    too. One that is used again is {"shared": the name of its first place}. A class from outside gpucnn.nn is named in
    full; `build` refuses it.
    """
    return _describe(module, "", {})


def _describe(module: Module, place: str, places: dict[int, str]) -> Description:
    """The description of what is called `place`; `places` has the names of all that were described before."""
    if id(module) in places:
        return {"shared": places[id(module)]}
    places[id(module)] = place
    kind = type(module)
    known = _classes().get(kind.__name__) is kind
    args, kwargs = ((), {}) if kind in (Sequential, ModuleList, ModuleDict, ParameterList) else module._arguments
    return {
        "class": kind.__name__ if known else f"{kind.__module__}.{kind.__qualname__}",
        "args": [_described(value) for value in args],
        "kwargs": {name: _described(value) for name, value in kwargs.items()},
        "children": {name: _describe(child, _below(place, name), places) for name, child in module.named_children()},
    }


def _below(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _described(value: Any) -> Any:
    if isinstance(value, Module):
        return {"module": describe(value)}
    if isinstance(value, list | tuple):
        return [_described(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return value if value is None or isinstance(value, bool | int | float | str) else {"unknown": repr(value)[:200]}


def build(description: Description, own: type[Module] | None = None) -> Module:
    """The module that `describe` described, with newly drawn parameters.

    own: a class of the caller's, which is made where the description names it. Raises ValueError for any other class
    that is not of gpucnn.nn or gpucnn.nn.models, and for what is no description.
    """
    return _build(description, own, "", {})


def _build(description: Description, own: type[Module] | None, place: str, modules: dict[str, Module]) -> Module:
    """The module that is called `place`; `modules` are those that were built before, by their names."""
    try:
        if "shared" in description:
            return modules[description["shared"]]
        name, args, kwargs = description["class"], description["args"], description["kwargs"]
        children = dict(description["children"])
        kind = _classes().get(name)
        if kind is None and own is not None and name.rpartition(".")[2] == own.__name__:
            kind = own
        if kind is None:
            raise ValueError(
                f"{name} is not a class of gpucnn.nn, so it can't be built from its description; make the model "
                "yourself and pass it as model="
            )
        module = kind(*[_argument(value) for value in args], **{n: _argument(value) for n, value in kwargs.items()})
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"this is no description of a model: {type(error).__name__} {error}") from error
    for child in dict(module.named_children()).keys() - children.keys():
        setattr(module, child, None)
    for child, its_description in children.items():
        if hasattr(kind, child) or child.startswith("_") or not is_showable(child):
            raise ValueError(f"this is no description of a model: {name} can't have a child {child!r}")
        made, its_place = vars(module).get(child), _below(place, child)
        if not isinstance(made, Module) or _describe(made, its_place, {}) != its_description:
            made = _build(its_description, own, its_place, modules)
            setattr(module, child, made)
        modules |= made.named_modules(its_place)
    return module


def _argument(value: Any) -> Any:
    if isinstance(value, list):
        return [_argument(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "module" in value:
        return build(value["module"])
    raise ValueError(
        f"the model was made with {value.get('unknown')}, which a file can't hold; make the model yourself and pass it "
        "as model="
    )


def describe_input(loader: Loader) -> Description:
    """What `save_model` should know about the images a model was trained on.

    Names of classes that no terminal can show are escaped: they are no reason to lose a training at its end.
    """
    dataset, normalise = loader.dataset, loader.normalise
    return {
        "classes": list(map(showable, dataset.classes)),
        "normalise": normalise,
        "image_size": [dataset.height, dataset.width],
        "channels": dataset.channels,
    }


def classes_and_normalise(classes: Sequence[str] | None, normalise: Normalize | tuple[Any, Any] | None) -> Description:
    """Both as JSON can hold them: it knows neither NumPy's arrays nor its numbers. Raises TypeError for what is neither
    names nor (mean, std)."""
    if classes is not None and (isinstance(classes, str) or not isinstance(classes, Iterable)):
        raise TypeError(f"classes must be names, one for each output, got {classes!r:.100}")
    mean_std = (normalise.mean, normalise.std) if isinstance(normalise, Normalize) else normalise
    try:
        numbers = None if mean_std is None else [np.asarray(values, float).tolist() for values in mean_std]
    except (TypeError, ValueError) as error:
        raise TypeError(f"normalise must be (mean, std), numbers or one a channel, got {normalise!r:.100}") from error
    return {"classes": None if classes is None else [str(name) for name in classes], "normalise": numbers}


# -- files -----------------------------------------------------------------------------------------


def _write(op: str, path: str | Path, arrays: Arrays, key: str, content: Mapping[str, Any]) -> None:
    metadata = {key: json.dumps(plain(op, content))}
    write_atomically(checked_path(op, "path", path), lambda temporary: write_arrays(temporary, arrays, metadata))


def write_arrays(path: Path, arrays: Arrays, metadata: dict[str, str]) -> None:
    """A safetensors file, in place: an error is the OSError that it is, and no second temporary file is made.

    The library's own save_file would do both otherwise.
    """
    # safetensors takes the bytes as they lie in memory, so filters must lie as [K, C, R, S] (order="C")
    dense = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    odd = [f"{name} ({a.dtype})" for name, a in dense.items() if a.dtype.kind not in "biufcV" or a.dtype.itemsize > 8]
    if odd:
        raise TypeError(f"arrays in a file must be of numbers of at most 8 bytes, these are not: {', '.join(odd)}")
    path.write_bytes(save(dense, metadata))


def _read(path: Path) -> tuple[Arrays, dict[str, str]]:
    """The arrays and the metadata of a file, or of all files that an index names."""
    return _read_shards(path) if path.name.endswith(".index.json") else _read_file(path)


def _read_shards(index: Path) -> tuple[Arrays, dict[str, str]]:
    """What the files hold among which an index (Hugging Face's model.safetensors.index.json) divides the arrays."""
    places = _read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise ValueError(f"{index} has no weight_map, which says which file each array is in")
    arrays: Arrays = {}
    for file in sorted(set(places.values())):
        if file != Path(file).name or "\\" in file:
            raise ValueError(f"{index} names the file {file!r}; only files beside it are read")
        found, _ = _read_file(index.parent / file)
        listed = {name for name, place in places.items() if place == file}
        if found.keys() != listed:
            differ = ", ".join(sorted(found.keys() ^ listed))
            raise ValueError(f"{index.parent / file} does not hold just what {index.name} says: {differ}")
        arrays |= found
    return arrays, {}


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises FileNotFoundError, and ValueError for a file that holds none."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not whole JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold an object of JSON, {{…}}, not {type(content).__name__}")
    return content


def _read_file(path: Path) -> tuple[Arrays, dict[str, str]]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(str(path), framework="np") as file:
            if any(file.get_slice(name).get_dtype() == "BF16" for name in file.keys()):  # noqa: SIM118
                bfloat16()  # the library asks NumPy for this type by name, which knows it from then on
            return {name: np.array(file.get_tensor(name)) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        hint = ""
        with path.open("rb") as raw:
            if raw.read(8).startswith(_PYTORCH):
                hint = (
                    "; it looks like a PyTorch file, a pickle, which may run code when it is loaded. Convert it where "
                    "PyTorch is: safetensors.torch.save_file(torch.load(path, weights_only=True), 'model.safetensors')"
                )
        raise ValueError(f"{path} is not a whole safetensors file: {error}{hint}") from error
    except (TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"{path} holds numbers of a type that NumPy does not have: {error}") from error


def _content(path: Path, metadata: Mapping[str, str], key: str) -> Description:
    try:
        content = json.loads(metadata[key])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: its description can't be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: its description can't be read: it is {content!r}")
    return content


def _check_state(path: Path, module: Module, arrays: Arrays) -> None:
    """Raises ValueError unless load_state_dict would take these arrays as they are."""
    own = module.state_dict()
    problems = {
        "missing": [name for name in own if name not in arrays],
        "not expected": [name for name in arrays if name not in own],
        "of another shape": [
            f"{name} {arrays[name].shape}, the model's is {own[name].shape}"
            for name in own
            if name in arrays and arrays[name].shape != own[name].shape
        ],
        "of another dtype": [
            f"{name} {arrays[name].dtype}, the model's is {own[name].dtype}"
            for name in own
            if name in arrays and arrays[name].dtype != own[name].dtype
        ],
    }
    found = "; ".join(f"{problem}: {', '.join(names)}" for problem, names in problems.items() if names)
    if found:
        hint = "; convert the model with model.to(dtype)" if problems["of another dtype"] else ""
        raise ValueError(f"{path} does not fit {type(module).__name__}: {found}{hint}")


def _numpy_state(module: Module) -> Arrays:
    return {name: value.numpy() for name, value in module.state_dict().items()}


def _dtype(module: Module) -> str:
    return next((str(p.dtype) for p in module.parameters()), "float32")


# -- models ----------------------------------------------------------------------------------------


def save_model(
    model: Module,
    path: str | Path,
    *,
    classes: Sequence[str] | None = None,
    normalise: Normalize | tuple[Any, Any] | None = None,
    **extra: Any,
) -> None:
    """One safetensors file with the weights under PyTorch's names and a description of how to use them.

    classes are the names of the outputs, normalise the (mean, std) that images are to be normalised with; extra is
    anything else that JSON can hold (fit gives image_size [H, W] and channels). Raises TypeError for what it can't, and
    ValueError for what no images or classes can be and for a name in extra that the description has of its own.
    """
    if not isinstance(model, Module):
        found = "; its state_dict() goes with it" if isinstance(model, dict) else f" {model!r:.100}"
        raise TypeError(f"save_model(model, path): model must be a Module, got {type(model).__name__}{found}")
    from gpucnn import __version__

    description = {
        "gpucnn": __version__,
        "architecture": describe(model),
        "dtype": _dtype(model),
        **classes_and_normalise(classes, normalise),
    }
    taken = sorted(extra.keys() & description.keys())
    if taken:
        raise ValueError(
            f"save_model: {', '.join(f'{name}={extra[name]!r:.100}' for name in taken)} would replace what gpucnn "
            "itself writes under this name; choose another"
        )
    for name, value in extra.items():
        try:
            description[name] = json.loads(json.dumps(plain("save_model", value, name), allow_nan=False))
        except (ValueError, RecursionError) as error:
            raise TypeError(f"save_model: {name}={value!r:.100} is nothing that JSON can hold: {error}") from error
    check_description("save_model: ", description)
    _write("save_model(model, path)", path, _numpy_state(model), _MODEL, description)


def load_model(
    path: str | Path, model: Module | None = None, backend: str | Backend | None = None
) -> tuple[Module, Description]:
    """(model, description) of a file that `save_model` wrote; the model is in evaluation mode.

    A model that is given is filled; otherwise it is built from the description, which works for models made of
    gpucnn.nn's classes. A given model also takes a plain safetensors file, such as one from PyTorch; the description is
    empty then. backend: where the model is to be; the default backend, or where a given model is.

    Raises FileNotFoundError, and ValueError if the file is no safetensors file, not whole, or does not fit the model:
    the error names the arrays, and the model has not changed.
    """
    path = checked_path("load_model(path)", "path", path)
    if not isinstance(model, Module | None):
        raise TypeError(f"load_model(path, model): model must be a Module, got {type(model).__name__} {model!r:.100}")
    arrays, metadata = _read(path)
    if _CHECKPOINT in metadata:
        raise ValueError(f"{path} is the state of a training, not a model; fit(resume=True) goes on from it")
    description = _content(path, metadata, _MODEL) if _MODEL in metadata else {}
    check_description(f"{path}: in its description ", description)
    if model is None:
        if "architecture" not in description:
            raise ValueError(f"{path} does not say which model its weights belong to; make it and pass it as model=")
        model = _built(path, description, arrays, backend)
    _check_state(path, model, arrays)
    model.load_state_dict(arrays)
    return (model if backend is None else model.to(get_backend(backend))).eval(), description


def _built(
    path: Path,
    description: Description,
    arrays: Arrays,
    backend: str | Backend | None,
    own: type[Module] | None = None,
) -> Module:
    """The model of a description, to be filled with those arrays: it may not take much more memory than they do."""
    elements = sum(array.size for array in arrays.values())
    try:
        # a layer may have been replaced; and loading a file is no reason for other random numbers afterwards
        with use_backend(get_backend(backend)), at_most(4 * elements + (1 << 22)), use_generator(Generator()):
            model = build(description["architecture"], own)
        dtype = description.get("dtype", "float32")
        if dtype not in ("float16", "bfloat16", "float32", "float64"):
            raise ValueError(f"its weights are said to be of type {dtype!r}, which no weights can have")
        return model.to(named(dtype))
    except (ValueError, TypeError, ArithmeticError, LookupError, RecursionError) as error:  # from any constructor
        raise ValueError(f"{path}: {error}") from error


# -- training states -------------------------------------------------------------------------------


def save_checkpoint(
    path: str | Path,
    *,
    model: Module,
    optimizer: Optimizer,
    scheduler: LRScheduler | ReduceLROnPlateau | None = None,
    generator: Generator | None = None,
    settings: Mapping[str, Any] | None = None,
    arrays: Arrays | None = None,
    **state: Any,
) -> None:
    """Everything that a training needs to go on bit for bit, in one safetensors file.

    settings are what a resumed run must have in common with this one. arrays and state are the caller's own: position,
    history and so on; state is what JSON can hold.
    """
    _check_parts("save_checkpoint", model, optimizer, scheduler)
    numbers = optimizer.state_dict()
    moments = numbers.pop("arrays")
    content = {
        "classes": _class_names(optimizer, scheduler),
        "optimizer": numbers,
        "scheduler": None if scheduler is None else scheduler.state_dict(),
        "generator": get_generator(generator).state(),
        "settings": dict(settings or {}),
        "state": state,
    }
    parts = {"model": _numpy_state(model), "optimizer": moments, "own": arrays or {}}
    every = {f"{part}/{name}": array for part, named in parts.items() for name, array in named.items()}
    _write("save_checkpoint", path, every, _CHECKPOINT, content)


def load_checkpoint(
    path: str | Path,
    *,
    model: Module,
    optimizer: Optimizer,
    scheduler: LRScheduler | ReduceLROnPlateau | None = None,
    generator: Generator | None = None,
    settings: Mapping[str, Any] | None = None,
    check: Callable[[dict[str, Any]], None] = lambda state: None,
    take: Callable[[dict[str, Any], Arrays], None] = lambda state, arrays: None,
) -> tuple[dict[str, Any], Arrays]:
    """Put all back as it was when save_checkpoint(path) ran; returns the caller's own (state, arrays).

    `check` gets the caller's own state before anything is put back, and raises what it finds wrong in it. `take` gets
    the caller's own (state, arrays) as the last thing that may fail: what it raises leaves all the rest as it was.

    Raises FileNotFoundError, and ValueError if the file is not a checkpoint or the settings, the classes of optimizer
    and schedule, or the arrays differ: the error shows both sides, and nothing has changed.
    """
    _check_parts("load_checkpoint", model, optimizer, scheduler)
    path = Path(path)
    stored, metadata = _read(path)
    if _CHECKPOINT not in metadata:
        raise ValueError(f"{path} is not the state of a training")
    content = _content(path, metadata, _CHECKPOINT)
    wrong = [key for key in ("settings", "optimizer", "generator", "state") if not isinstance(content.get(key), dict)]
    if wrong:
        raise ValueError(f"{path}: its description can't be read: {', '.join(wrong)} must be objects")
    classes = _class_names(optimizer, scheduler)
    own = json.loads(json.dumps(plain("load_checkpoint", settings or {}, "settings")))
    found = _differences(content["settings"], own, "")
    found = found or _differences(content.get("classes", classes), classes, "")  # earlier versions wrote none
    if found:
        more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
        raise ValueError(
            f"{path} is of a run with other settings: {'; '.join(found[:5])}{more}. Resume with the settings of the "
            "run, or start a new one in another folder"
        )
    check(content["state"])
    parts: dict[str, Arrays] = {"model": {}, "optimizer": {}, "own": {}}
    for name, array in stored.items():
        part, _, rest = name.partition("/")
        if part not in parts:
            raise ValueError(f"{path}: {name} belongs neither to the {' nor to the '.join(parts)} part")
        parts[part][rest] = array
    _check_state(path, model, parts["model"])
    generator = get_generator(generator)
    before = optimizer.state_dict(), None if scheduler is None else scheduler.state_dict(), generator.state()

    def put(numbers: Any, schedule: Any, drawn: Any) -> None:
        if scheduler is not None:
            scheduler.load_state_dict(schedule)
        optimizer.load_state_dict(numbers)  # after the scheduler, which sets learning rates: they may be others
        generator.set_state(drawn)

    try:
        for name, own in (("optimizer", before[0]), ("scheduler", before[1])):
            _check_numbers(content.get(name), own, name)
        put({**content["optimizer"], "arrays": parts["optimizer"]}, content.get("scheduler"), content["generator"])
        take(content["state"], parts["own"])
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        put(*before)
        raise ValueError(f"{path}: its state can't be read: {type(error).__name__} {error}") from error
    model.load_state_dict(parts["model"])
    return content["state"], parts["own"]


def _class_names(optimizer: Optimizer, scheduler: LRScheduler | ReduceLROnPlateau | None) -> dict[str, Any]:
    def named(schedule: LRScheduler | ReduceLROnPlateau) -> dict[str, Any]:
        after = {"after": named(schedule.after)} if isinstance(schedule, WarmUp) else {}
        return {"class": type(schedule).__name__} | after

    return {
        "optimizer": {"class": type(optimizer).__name__},
        "scheduler": None if scheduler is None else named(scheduler),
    }


def _check_parts(op: str, model: Any, optimizer: Any, scheduler: Any) -> None:
    if not isinstance(model, Module):
        raise TypeError(f"{op}: model must be a Module, got {type(model).__name__}")
    check_optimizer(op, optimizer)
    if not isinstance(scheduler, LRScheduler | ReduceLROnPlateau | None):
        raise TypeError(f"{op}: scheduler must be one of gpucnn.optim, got {type(scheduler).__name__}")


def _check_numbers(value: Any, own: Any, name: str) -> None:
    """Raises TypeError unless this state is made of numbers, None, lists and objects: it goes into arithmetic. A word
    stands only where our own state has one."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            _check_numbers(item, own.get(key) if isinstance(own, dict) else None, f"{name}.{key}")
    elif not (value is None or isinstance(value, int | float) or (isinstance(value, str) and isinstance(own, str))):
        raise TypeError(f"{name} must be a number, got {value!r}")


def _differences(then: Any, now: Any, name: str) -> list[str]:
    """Each place where two JSON values differ, in words."""
    if isinstance(then, dict) and isinstance(now, dict) and then.get("class") == now.get("class"):
        names = [*then, *(key for key in now if key not in then)]
        return [
            difference
            for key in names
            for difference in _differences(then.get(key), now.get(key), f"{name}.{key}" if name else key)
        ]
    if then == now or json.dumps(then) == json.dumps(now):  # NaN is not equal to itself, but its text is
        return []
    then, now = (value["class"] if isinstance(value, dict) and "class" in value else value for value in (then, now))
    return [f"{name} was {then!r}, is {now!r}"]
