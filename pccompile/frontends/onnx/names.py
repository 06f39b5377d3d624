"""Initializer names as paths of parameters. Names are data: what could not stand as an attribute path is escaped."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable

from torch import Tensor, nn

RESERVED = ("self", "torch", "pytree")
"""Names that the code which torch.fx prints uses itself."""

SAFE = re.compile(r"[\w/:\-+@#~ ]+")


def parameter_paths(names: Iterable[str], owner: nn.Module) -> dict[str, str]:
    """A path for each name: the name itself wherever torch can hold a parameter under it, else an escaped form.

    `fc1.weight` becomes the parameter `weight` of the submodule `fc1`. Escaped are: empty segments, attributes of
    modules, Python keywords, characters that torch would paste into source code, and a name that is also the
    beginning of another (`a` beside `a.b`).
    """
    names = list(names)
    modules = {n.rsplit(".", i)[0] for n in names for i in range(1, n.count(".") + 1)}
    taken: set[str] = set()
    paths: dict[str, str] = {}
    for name in sorted(names, key=lambda n: (not natural(n, modules, owner), n)):
        path = name if natural(name, modules, owner) else escaped(name)
        while path in taken or path in modules:
            path += "_"
        taken.add(path)
        paths[name] = path
    return paths


def distinct(names: Iterable[str]) -> list[str]:
    """Names with a number behind those that came before: the branches of an If may use the same ones."""
    names = list(names)
    taken, seen, result = set(names), set[str](), list[str]()
    for name in names:
        label, count = name, 1
        while label in seen or (count > 1 and label in taken):
            count += 1
            label = f"{name}_{count}"
        seen.add(label)
        result.append(label)
    return result


def natural(name: str, modules: set[str], owner: nn.Module) -> bool:
    """Whether torch can hold a parameter under exactly this name."""
    segments = name.split(".")
    plain = all(SAFE.fullmatch(s) and not keyword.iskeyword(s) and s not in RESERVED for s in segments)
    return plain and name not in modules and not any(hasattr(owner, s) for s in segments)


def escaped(name: str) -> str:
    """A harmless spelling of any name, one segment."""
    return "onnx_" + re.sub(r"\W", "_", name, flags=re.ASCII)[:200]


def attach(owner: nn.Module, path: str, tensor: Tensor, learnable: bool) -> None:
    """Register a tensor under a dotted path, as a parameter or a buffer."""
    *modules, last = path.split(".")
    for name in modules:
        if name not in owner._modules:
            owner.add_module(name, nn.Module())
        owner = owner.get_submodule(name)
    if learnable:
        owner.register_parameter(last, nn.Parameter(tensor))
    else:
        owner.register_buffer(last, tensor)


def lookup(owner: nn.Module, path: str) -> Tensor:
    """The parameter or buffer under a dotted path."""
    *modules, last = path.split(".")
    for name in modules:
        child = owner._modules[name]
        assert child is not None
        owner = child
    found: Tensor | None = owner._parameters.get(last)
    found = owner._buffers[last] if found is None else found
    assert found is not None
    return found
