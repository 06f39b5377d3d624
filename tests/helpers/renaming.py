"""Models under other names: every module, parameter, buffer and input of one may be called anything."""

from __future__ import annotations

import builtins
import inspect
import io
import itertools
import keyword
import tokenize
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

TABLES = ("_modules", "_parameters", "_buffers")

IR_WORDS = (
    *("err", "value", "prediction", "pull", "clamp", "predict", "error", "force", "zero", "seed", "gradient"),
    *("minus_error", "part0", "minus_part1", "value_x", "prediction_", "error_err", "gradient_weight", "output"),
    *("input x", "input_x", "#const", "#index", "#weights", "x.v", "leaf", "given", "alias", "copy", "getitem", "of"),
    *("prediction x", "error x", "v1", "v12", "u0", "s0", "batch", "x_size1", "_output", "err_output", "origin"),
)
TORCH_WORDS = ("torch", "F", "math", "nn", "tanh", "linear", "mul", "add", "sum", "norm", "softmax", "dropout", "to")
ODD_WORDS = ("ﬁ", "fi", "ｅｒｒ", "ℯrr", "é", "e", "ünï", "_", "__", "0", "1x", "a b", "n" * 300, "x", "self", "args")


def words(source: str, values: Sequence[str] = ()) -> tuple[str, ...]:
    """Names for a model that could be taken for something else: those of a generated file, of a graph, of the code.

    Every other one is a word of the code, or what the code makes of the name of a value.
    """
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    own = {t.string for t in tokens if t.type == tokenize.NAME}
    python = {*keyword.kwlist, *keyword.softkwlist, "range", "next", "iter", "max", "min", "int", "float", "len"}
    derived = {form.format(v) for v in values for form in ("{}_output", "prediction_{}", "error_{}", "{}_mul")}
    broad = sorted({*own, *values, *python, *TORCH_WORDS, *ODD_WORDS})
    sharp = itertools.cycle((*IR_WORDS, *sorted(derived)))
    return tuple(word for pair in zip(broad, sharp, strict=False) for word in pair)


OF_TESTS = ("torch.nn.modules.linear", "helpers.", "gradients.", "zoo.")
"""Modules whose classes hold nothing that torch reads by its name."""


def entries(model: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """Each submodule, parameter and buffer: its owner, the table, and its name there."""
    for module in model.modules():
        for table in TABLES:
            if table == "_modules" or type(module).__module__.startswith(OF_TESTS):
                yield from ((module, table, name) for name in list(getattr(module, table)))


def renamed(model: nn.Module, names: Callable[[], str]) -> nn.Module:
    """`model`, each entry of it called names() where torch allows that; the code reads it under the old name."""
    reading: dict[nn.Module, dict[str, property]] = {}
    every = list(entries(model))
    for module, table, old in every:
        new = names()
        if not allowed(module, new) or any(owner is module and name == new for owner, _, name in every):
            continue
        here = getattr(module, table)
        items = [(new if name == old else name, entry) for name, entry in here.items()]
        here.clear()
        here.update(items)
        if table == "_buffers" and old in module._non_persistent_buffers_set:
            module._non_persistent_buffers_set.add(new)
        reading.setdefault(module, {})[old] = reader(table, new)
    for module, readers in reading.items():
        kind = type(module)
        known = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
        module.__class__ = type(kind.__name__, (kind,), {**readers, **known})
    return model


def allowed(module: nn.Module, name: str) -> bool:
    """Whether torch lets an entry of a module be called so."""
    return bool(name) and "." not in name and not hasattr(module, name)


def reader(table: str, name: str) -> property:
    """What reads an entry by the name that it has now."""
    return property(lambda self: self.__dict__[table][name])


def with_inputs(model: nn.Module, names: Sequence[str]) -> nn.Module:
    """`model` whose arguments are called `names`, where these are names of arguments and distinct."""
    forward = type(model).forward
    if len(set(names)) == len(names) and all(is_argument(n) for n in names):

        def called(self: nn.Module, *args: Any, **named: Any) -> Any:
            return forward(self, *args, *(named[n] for n in names if n in named))

        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        called.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [inspect.Parameter(n, kind) for n in ("self", *names)]
        )
        model.__dict__["forward"] = types.MethodType(called, model)
    return model


def is_argument(name: str) -> bool:
    """Whether a function can have an argument called `name` besides self."""
    return name.isidentifier() and not keyword.iskeyword(name) and name != "self"


def shadowed(source: str) -> set[str]:
    """The names that a generated file calls or reads attributes of, and that are local where it does."""
    import ast

    def is_global(name: str) -> bool:
        return name in ("torch", "F", "math") or hasattr(builtins, name)

    found = set()
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef):
            continue
        local = {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in local:
                found.add(node.func.id)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in local:
                found |= {node.value.id} if is_global(node.value.id) else set()
    return found


def parameters(model: nn.Module) -> list[torch.Tensor]:
    """All parameters, in an order that names do not change."""
    return list(model.parameters())
