"""Random inputs that fit a graph, and random weights for files that hold constant ones."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from pccompile.diagnostics import CompileError, first_line
from pccompile.frontends.onnx.graph import uses
from pccompile.frontends.onnx.names import lookup
from pccompile.frontends.onnx.open_sizes import OpenSizes
from pccompile.frontends.onnx.plausible import Plausible, finite
from pccompile.frontends.onnx.runner import Runner
from pccompile.limits import Account, BudgetError, opened

SECONDS = 12.0
"""What the search for sizes may take."""

MOST_RUNS = 9
"""So many times a model may run with results that are no numbers before those are taken for its own."""
ELEMENT = 50
"""Operations that an element counts for which passes through anything but a multiplication of matrices."""
UNKNOWN = (torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output)


def example_inputs(
    module: Runner, shapes: Mapping[str, Sequence[int]], seed: int = 0, values: Mapping[str, Tensor] | None = None
) -> tuple[Tensor, ...]:
    """Inputs on which `module` runs, the smallest: floats from N(0, 1), and whole numbers that fit what reads them.

    shapes, values: sizes and numbers by name, for which nothing is guessed.
    """
    values = values or {}
    check_inputs(module, (*shapes, *values))
    known = {**shapes, **{n: list(v.shape) for n, v in values.items()}}
    sizes, plausible = OpenSizes(module, known), Plausible(module)
    failure: CompileError | None = None
    runs: list[tuple[Tensor, ...]] = []
    end = time.monotonic() + SECONDS
    tried: dict[str, list[int]] = {}
    spent = opened(module.stored)
    for (size, tried), fill in itertools.product(sizes.tried(), plausible.open_fills(module.input_types)):
        generator = torch.Generator().manual_seed(seed)
        try:
            with metered(spent):
                inputs = tuple(
                    values[t.name] if t.name in values else plausible.draw(t, tried[t.name], size, fill, generator)
                    for t in module.input_types
                )
                results = module(*inputs)
        except BudgetError as error:
            if failure is None and not runs:
                raise
            failure = failure or error
            break
        except Exception as error:  # a model raises CompileError; sizes that nothing can be drawn of, anything
            failure = failure or as_refusal(error, tried)
            if time.monotonic() > end:
                break
            continue
        runs.append(inputs)
        if finite(results):
            return inputs
        if len(runs) == MOST_RUNS or time.monotonic() > end:
            break
    if runs:
        return runs[0]
    assert failure is not None
    raise CompileError(
        f"no input sizes were found that the model runs on, the last tried being {tried}: {failure.problems[0].what}",
        failure.problems[0].where,
        hint="give the sizes: shapes={input name: [...]}",
    )


def check_inputs(module: Runner, names: Sequence[str]) -> None:
    """Raise CompileError for names of inputs that the module does not have, and for inputs that carry no gradient."""
    absent = sorted(set(names) - {t.name for t in module.input_types})
    if absent:
        raise CompileError(f"there is no input {absent[0]}; inputs are {', '.join(t.name for t in module.input_types)}")
    for entry in module.input_types:
        if entry.form != "tensor":
            hint = "cut the model where it has become tensors of numbers, or run it without compiling it"
            raise CompileError(f"input {entry.name} is {entry.form}, which carries no gradient", hint=hint)


def as_refusal(error: Exception, tried: Mapping[str, list[int]]) -> CompileError:
    """What is said of sizes on which a model does not run, or of which no numbers can be drawn."""
    if isinstance(error, CompileError):
        return error
    return CompileError(f"no numbers of the sizes {dict(tried)} can be drawn: {first_line(error)}")


@contextmanager
def metered(spent: Account) -> Iterator[None]:
    """Within: what torch computes is counted; the memory of what was computed before is free again."""
    spent.spent["memory"] = 0
    with torch.no_grad(), Meter(spent):
        yield


def try_inputs(module: Runner, inputs: Sequence[Tensor]) -> None:
    """Run a file once on inputs of the user's. Raises CompileError where it does not run, or asks for too much."""
    with metered(opened(module.stored)):
        module(*inputs)


def randomize(module: Runner, seed: int = 0) -> None:
    """Draw anew, in place, the weights that are one number throughout, so that gradients through them mean something.

    Matrices and kernels get N(0, 2 / fan in), scales of normalisations N(1, 0.1²), the rest N(0, 0.1²); statistics keep
    their means near 0 and variances near 1.
    """
    generator = torch.Generator().manual_seed(seed)
    readers = uses(module.graph)
    with torch.no_grad():
        for part in module.graph.subgraphs():
            for constant in part.constants.values():
                tensor = lookup(module, constant.path) if constant.path else None
                if (
                    tensor is None
                    or not tensor.is_floating_point()
                    or tensor.numel() < 2
                    or tensor.min() != tensor.max()
                ):
                    continue
                slot = next(
                    ((n.op_type, i) for n, i in readers.get(constant.name, ()) if "Normalization" in n.op_type), None
                )
                if constant.kind == "parameter" or (slot and slot[0] == "BatchNormalization"):
                    tensor.copy_(redrawn(tensor, slot[1] if slot else -1, generator))


def redrawn(tensor: Tensor, slot: int, generator: torch.Generator) -> Tensor:
    """Random numbers for a weight of this shape; `slot` is its place among a normalisation's inputs, if it is one."""
    noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32).to(tensor.dtype)
    if slot == 1:
        return 1 + 0.1 * noise
    if slot == 4:
        return 1 + 0.1 * noise.abs()
    if tensor.dim() < 2 or slot > 1:
        return 0.1 * noise
    fan_in = tensor[0].numel() if tensor.dim() > 2 else max(tensor.shape)
    return noise * math.sqrt(2.0 / fan_in)


class Meter(TorchDispatchMode):
    """Within: what torch computes is charged to an account. An operation beyond the budget raises BudgetError.

    Sizes come from torch's own kernels for the meta device, which compute shapes only.
    """

    def __init__(self, account: Account) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.account = account

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """The operation's result."""
        kwargs = kwargs or {}
        if not func.is_view:
            bytes_, operations = cost(func, args, kwargs)
            what = f"computing {func.overloadpacket.__name__.strip('_')}"
            self.account.spend("memory", bytes_, what)
            self.account.spend("operations", operations, what)
        return func(*args, **kwargs)


def cost(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int, int]:
    """Bytes of new memory and operations that an ATen operation takes."""
    inputs = list(tensors((args, kwargs)))
    read = sum(t.numel() for t in inputs)
    if any(tag in func.tags for tag in UNKNOWN):
        return (0 if read <= 1 else 8 * sum(t.numel() * max(t.dim(), 1) for t in inputs)), ELEMENT * read
    given, named = pytree.tree_map_only(Tensor, shape_only, (args, dict(kwargs)))
    if "device" in named:
        named["device"] = torch.device("meta")
    try:
        with torch._C._DisableTorchDispatch():
            result = func(*given, **named)
            multiplications = flop_registry.get(func.overloadpacket)
            flops = int(multiplications(*given, **named, out_val=result)) if multiplications else 0
    except Exception:  # what torch cannot do at all, it says itself where it is computed
        return 0, ELEMENT * read
    known = {id(t) for t in tensors((given, named))}
    made = [t for t in tensors(result) if id(t) not in known]
    written = sum(t.numel() for t in made)
    return sum(t.numel() * t.element_size() for t in made), max(flops, ELEMENT * (read + written) if not flops else 0)


def shape_only(tensor: Tensor) -> Tensor:
    """A tensor of the same shape, layout and type without numbers."""
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in a nest of arguments or results."""
    return (leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor))
