"""What a command line names: a model file, or a function that makes a model, with example inputs."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from pccompile.api.models import load_onnx, load_program
from pccompile.cli.shapes import Shape
from pccompile.cli.targets import Code, code_of, kind_of, search_here
from pccompile.cli.user_inputs import UserInputs, as_argument
from pccompile.diagnostics import NOWHERE, CompileError, Location, UsageError, listing, printable


@dataclass(frozen=True)
class Target:
    """A model to compile. `model` is what `pccompile.compile` takes, `name` that of its files, `path` an ONNX file.

    inputs: what the model calls its inputs.
    """

    model: Any
    args: tuple[Any, ...] | None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    name: str = "model"
    path: Path | None = None
    inputs: tuple[str, ...] = ()


def load(target: str, inputs: UserInputs, seed: int, trust_code: bool = False) -> Target:
    """The model that `target` names, and example inputs. Raises CompileError and UsageError.

    trust_code: whether a .pt2 file may be opened.
    """
    if code := code_of(target):
        return _from_code(code, inputs, seed)
    if kind_of(target) == "onnx":
        return _from_onnx(Path(target), inputs, seed)
    program = load_program(Path(target), trust_code)
    args, kwargs = program.example_inputs or ((), {})
    return Target(program, tuple(args), kwargs, Path(target).stem)


def _from_onnx(path: Path, inputs: UserInputs, seed: int) -> Target:
    module = load_onnx(path, constants=inputs.constants, train=inputs.train, freeze=inputs.freeze)
    from pccompile.frontends.onnx.boundary import from_numpy
    from pccompile.frontends.onnx.given_numbers import fitted
    from pccompile.frontends.onnx.input_types import mismatches

    types = {t.name: t for t in module.input_types}
    shapes = inputs.of(list(types))
    for s in shapes:
        if s.dtype and s.dtype is not types[s.name].dtype:
            declared = str(types[s.name].dtype).removeprefix("torch.")
            raise UsageError(f"--shape {printable(s.name)}: the file says that this input is {declared}")
    sizes = {s.name: s.sizes for s in shapes}
    fits = {n: torch.empty(size, dtype=types[n].dtype, device="meta") for n, size in sizes.items()}
    if problems := [problem for name, tensor in fits.items() for problem in mismatches(types[name], tensor)]:
        raise CompileError(problems)
    numbers = inputs.numbers(list(types))
    values = {n: from_numpy(fitted(types[n], v, sizes.get(n))) for n, v in numbers.items()}
    args = module.example_inputs({n: s for n, s in sizes.items() if n not in values}, seed, values)
    return Target(module, args, name=path.stem, path=path, inputs=tuple(types))


def _from_code(code: Code, inputs: UserInputs, seed: int) -> Target:
    torch.manual_seed(seed)
    with redirect_stdout(sys.stderr):  # stdout is for results
        factory = _attribute(code)
        torch.manual_seed(seed)  # whether or not importing, which happens once, has drawn
        model = _made(factory, f"{code.file or code.module}:{code.attribute}")
        args, kwargs = _inputs(model, factory, inputs, seed)
        _probe(model, args, kwargs)
    return Target(model, args, kwargs, code.attribute.rpartition(".")[2], inputs=tuple(_signature(model)[0]))


def _run_file(name: str, file: Path) -> ModuleType:
    """A file of Python as a module, which is run anew; modules beside it are found."""
    sys.path.insert(0, str(file.parent.resolve()))
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) != str(file.resolve()):
        name = f"{name}_py"  # the name is another module's
    spec = importlib.util.spec_from_file_location(name, file.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _attribute(code: Code) -> Any:
    """The object that is named."""
    module_name, path = code.module, code.attribute
    search_here()
    try:
        found: Any = _run_file(module_name, code.file) if code.file else importlib.import_module(module_name)
    except ModuleNotFoundError as e:
        if e.name and (module_name == e.name or module_name.startswith(f"{e.name}.")):
            raise CompileError(
                f"there is no module {e.name}", hint="it was looked for here and on Python's path"
            ) from None
        raise _raised(f"importing {module_name}", e) from e
    except (Exception, SystemExit) as e:
        raise _raised(f"importing {module_name}", e) from e
    for name in path.split("."):
        if not hasattr(found, name):
            names = [n for n in dir(found) if not n.startswith("_")]
            near = difflib.get_close_matches(name, names, 3, 0.4)
            raise CompileError(f"{module_name} has no {path}", hint=f"did you mean {listing(near)}?" if near else "")
        found = getattr(found, name)
    return found


def _made(factory: Any, target: str) -> nn.Module:
    """The module that a factory returns, or is."""
    model = factory
    if not isinstance(factory, nn.Module):
        if not callable(factory):
            raise CompileError(
                f"{target} is neither a module nor a function that returns one: {type(factory).__name__}"
            )
        try:
            model = factory()
        except (Exception, SystemExit) as e:
            raise _raised(f"{target}()", e) from e
    if not isinstance(model, nn.Module):
        raise CompileError(f"{target}() returns no nn.Module: {type(model).__name__}")
    return model


def _raised(what: str, error: BaseException) -> CompileError:
    """What went wrong in the user's code, in one line, and where."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _theirs(f.filename)]
    where = NOWHERE
    if frames:
        file = frames[-1].filename
        here = os.path.relpath(file) if file.startswith(os.getcwd() + os.sep) else file
        where = Location(file=here, line=frames[-1].lineno or 0)
    line = next((ln.strip() for ln in str(error).splitlines() if ln.strip()), "")
    return CompileError(f"{what} raises {type(error).__name__}{': ' if line else ''}{line}", where)


def _theirs(filename: str) -> bool:
    return not any(part in filename for part in ("/torch/", "/pccompile/", "<frozen", "/importlib/"))


def _inputs(model: nn.Module, factory: Any, inputs: UserInputs, seed: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments for a call: given numbers, random ones of given shapes, or the examples that the model brings."""
    names, required, free = _signature(model)
    shapes = {s.name: s for s in inputs.shapes}
    if not (shapes or inputs.values or inputs.data):
        examples = getattr(model, "example_inputs", None) or getattr(factory, "example_inputs", None)
        if examples is None:
            if not required and not free:
                return (), {}
            shown = " ".join(f"--shape {n}=2,3" for n in required or ["x"])
            raise UsageError(f"example inputs are missing: give {shown}, with your sizes")
        return _examples(examples)
    known = list(dict.fromkeys([*shapes, *inputs.data, *inputs.values])) if free else names
    shapes = {s.name: s for s in inputs.of(known)}
    numbers = inputs.numbers(known)
    if missing := [n for n in required if n not in {*shapes, *numbers}]:
        option = "--value" if inputs.values else "--data" if inputs.data else "--shape"
        raise UsageError(f"{option}: the model also needs {listing(missing, 10)}")
    generator = torch.Generator().manual_seed(seed)
    limit = min([m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)] or [2])
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    drawn = {
        n: as_argument(numbers[n], dtype, shapes.get(n)) if n in numbers else _drawn(shapes[n], dtype, limit, generator)
        for n in known
        if n in shapes or n in numbers
    }
    if free:
        return tuple(drawn.values()), {}
    parameters = inspect.signature(model.forward).parameters
    fits = [n in drawn and parameters[n].kind is not inspect.Parameter.KEYWORD_ONLY for n in names]
    positional = names[: fits.index(False) if False in fits else len(names)]
    return tuple(drawn[n] for n in positional), {n: t for n, t in drawn.items() if n not in positional}


def _examples(examples: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What `example_inputs` gives: a tensor, a tuple, or a dict of named arguments."""
    try:
        found = examples() if callable(examples) else examples
    except Exception as e:
        raise _raised("example_inputs()", e) from e
    if isinstance(found, Mapping):
        return (), dict(found)
    return (found,) if isinstance(found, Tensor) else tuple(found), {}


def _signature(model: nn.Module) -> tuple[list[str], list[str], bool]:
    """The names of `forward`'s parameters, those without a default, and whether it takes any number of arguments."""
    parameters = inspect.signature(model.forward).parameters.values()
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    free = any(p.kind is p.VAR_POSITIONAL for p in parameters) and not named
    return [p.name for p in named], [p.name for p in named if p.default is p.empty], free


def _drawn(shape: Shape, default: torch.dtype, limit: int, generator: torch.Generator) -> Tensor:
    """Normal numbers; small indices, within the smallest embedding; a fair coin."""
    dtype = shape.dtype or default
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(
            shape.sizes, generator=generator, dtype=torch.complex64 if dtype.is_complex else torch.float32
        ).to(dtype)
    return torch.randint(0, 2 if dtype is torch.bool else min(limit, 127), shape.sizes, generator=generator).to(dtype)


def _probe(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Run the model once, without a trace in its buffers. Raises CompileError with the model's own message."""
    before = {k: b.clone() for k, b in model.named_buffers()}
    given = [*args, *kwargs.values()]
    shown = ", ".join(str(list(a.shape)) if isinstance(a, Tensor) else type(a).__name__ for a in given)
    run: Callable[..., Any] = model
    try:
        with torch.no_grad(), torch.random.fork_rng():
            run(*args, **kwargs)
    except Exception as e:
        raise _raised(f"{type(model).__name__} on inputs {shown}", e) from e
    finally:
        with torch.no_grad():
            for k, b in model.named_buffers():
                if k in before and b.shape == before[k].shape:
                    b.copy_(before[k])
