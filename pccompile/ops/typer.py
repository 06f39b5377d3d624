"""Types of results, from torch's own shape functions run on fake tensors: nothing here knows a shape rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, TypeVar

import sympy
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from pccompile.ir import DEVICE, Arg, Dim, Ref, TensorType, Type
from pccompile.ops.signatures import SIGNATURES, overload

T = TypeVar("T")


class Typer:
    """Infers types within one compilation, whose free dimensions it knows.

    `mode` is the fake-tensor mode of the imported program; `names` maps its shape symbols to the graph's dimensions.
    """

    def __init__(
        self, mode: FakeTensorMode | None = None, names: Mapping[sympy.Symbol, sympy.Symbol] | None = None
    ) -> None:
        self.mode = mode or FakeTensorMode(shape_env=ShapeEnv())
        self.names = dict(names or {})
        self.symbols = {v: k for k, v in self.names.items()}
        self.device = torch.device("cpu")
        self._fakes: dict[TensorType, torch.Tensor] = {}
        self._results: dict[Any, Type] = {}
        self._unmet: dict[Any, str] = {}
        self.stand_in: StandIn | None = None

    def dim(self, size: Any) -> Dim:
        """A torch size as a Dim."""
        if isinstance(size, int):
            return size
        expr = size.node.expr.xreplace(self.names)
        return int(expr) if expr.is_Integer else expr

    def size(self, dim: Dim) -> Any:
        """A Dim as a torch size."""
        if isinstance(dim, int):
            return dim
        env = self.mode.shape_env
        assert env is not None
        expr = dim.xreplace(self.symbols)
        return env.create_symintnode(expr, hint=None)

    def type_of(self, tensor: torch.Tensor) -> TensorType:
        """The type of a fake or real tensor."""
        return TensorType(tuple(map(self.dim, tensor.shape)), tensor.dtype)

    def fake(self, type_: TensorType) -> torch.Tensor:
        """A fake tensor of type `type_`."""
        if type_ not in self._fakes:
            with self.mode:
                size = [self.size(d) for d in type_.shape]
                self._fakes[type_] = torch.empty(size, dtype=type_.dtype, device=self.device)
        return self._fakes[type_]

    def value(self, arg: Arg, types: Mapping[str, Type]) -> Any:
        """What torch is called with for `arg`: a fake tensor for a name, sizes for dimensions."""
        if isinstance(arg, Ref):
            type_ = types[arg]
            assert isinstance(type_, TensorType)
            return self.fake(type_)
        if isinstance(arg, tuple):
            return [self.value(a, types) for a in arg]
        if isinstance(arg, sympy.Expr):
            return self.size(arg)
        return self.device if arg is DEVICE else arg

    def infer(self, op: str, args: Mapping[str, Arg], types: Mapping[str, Type]) -> Type:
        """The type of `op(args)`."""
        if op == "getitem":
            whole, index = types[args["of"]], args["index"]
            assert isinstance(whole, tuple)
            assert isinstance(index, int)
            part = whole[index]
            assert part is not None
            return part
        definition = SIGNATURES.get(op)
        if definition and definition.infer:
            return definition.infer(args, lambda r: types[r])  # type: ignore[arg-type, return-value]
        key = (op, tuple(_key(a, types) for a in args.values()))
        if key not in self._results:
            self._results[key] = self._run(op, args, types)
        return self._results[key]

    def either(self, run: Callable[[Typer], T], form: Callable[[T], Any]) -> T:
        """run(typer), with this typer or, where torch took a free dimension for a number, with one that has numbers.

        What torch once took for a number it takes for one ever after, without saying so: there is no way back.
        form: a result with its Dims as plain data, by which what numbers gave is checked at lengths that may occur.
        Raises RuntimeError where that differs.
        """
        if self.stand_in is None:
            try:
                found = run(self)
                if not self.fixed():
                    return found
                self.stand_in = StandIn(self)
            except RuntimeError:
                if not self.names:
                    raise
                return self._checked(run, form, StandIn(self))
        return self._checked(run, form, self.stand_in)

    def _checked(self, run: Callable[[Typer], T], form: Callable[[T], Any], stand_in: StandIn) -> T:
        found = run(stand_in)
        for lengths in self._lengths():
            numbers = {symbol: lengths.get(symbol, 3) for symbol in stand_in.numbers}
            if _at(form(found), numbers) != form(run(Numbered(self, numbers))):
                raise RuntimeError("what is computed depends on a free length")
        return found

    def example(self) -> dict[sympy.Symbol, int]:
        """The lengths of the free dimensions in the example that the model was captured with."""
        known = getattr(self.mode.shape_env, "backed_var_to_val", {})
        return {name: int(known[symbol]) for symbol, name in self.names.items() if symbol in known}

    def _lengths(self) -> list[dict[sympy.Symbol, int]]:
        """Lengths that the free dimensions may have: the example's, and two where nothing is said against it."""
        example = self.example()
        small = dict.fromkeys(example, 2)
        return [example] if self.unmet(small) else [example, small]

    def unmet(self, sizes: Mapping[sympy.Symbol, int]) -> str:
        """A condition on free dimensions that was relied on so far and does not hold for `sizes`; '' if all hold.

        That a free dimension is neither 0 nor 1 is one of them: torch takes it for granted, and code may branch on it.
        """
        env = self.mode.shape_env
        guards = env.guards if env is not None else []
        key = (*sizes.items(), self.conditions())
        if key not in self._unmet:
            ranges = getattr(env, "var_to_range", {})
            conditions = [g.expr.xreplace(self.names) for g in guards]
            conditions += [name >= ranges[symbol].lower for symbol, name in self.names.items() if symbol in ranges]
            self._unmet[key] = next((str(c) for c in conditions if c.xreplace(sizes) == sympy.false), "")
        return self._unmet[key]

    def conditions(self) -> int:
        """How many conditions on free dimensions were relied on so far."""
        env = self.mode.shape_env
        return len(env.guards) if env is not None else 0

    def decided_on(self) -> frozenset[sympy.Symbol]:
        """The free dimensions that were compared with numbers, and not just with one another."""
        env = self.mode.shape_env
        conditions = [g.expr.xreplace(self.names) for g in env.guards] if env is not None else []
        return frozenset(s for c in conditions if not _is_alike(c) for s in c.free_symbols)

    def fixed(self) -> bool:
        """Whether torch took a free dimension for a number."""
        env = self.mode.shape_env
        return env is not None and any(symbol in env.replacements for symbol in self.names)

    def _run(self, op: str, args: Mapping[str, Arg], types: Mapping[str, Type]) -> Type:
        return self.either(lambda typer: typer._evaluate(op, args, types), _shapes)

    def _evaluate(self, op: str, args: Mapping[str, Arg], types: Mapping[str, Type]) -> Type:
        """What torch says; the next trace need not find lengths that data decide here among its results."""
        target = overload(op)
        values = {k: self.value(a, types) for k, a in args.items()}
        positional, named = split_arguments(target, values)
        env = self.mode.shape_env
        with self.mode, torch.no_grad(), env.ignore_fresh_unbacked_symbols() if env else nullcontext():
            out = target(*positional, **named)
        if isinstance(out, torch.Tensor):
            return self.type_of(out)
        return tuple(self.type_of(t) if isinstance(t, torch.Tensor) else None for t in out or ())


class Numbered(Typer):
    """A typer for which free dimensions are numbers.

    Where torch has a shape only by running its kernel, it has none here: the numbers may be large.
    """

    def __init__(self, typer: Typer, numbers: Mapping[sympy.Symbol, int]) -> None:
        super().__init__(FakeTensorMode(allow_fallback_kernels=False), typer.names)
        self.numbers = dict(numbers)

    def size(self, dim: Dim) -> Any:
        """A Dim as a number."""
        return dim if isinstance(dim, int) else int(dim.xreplace(self.numbers))


class StandIn(Numbered):
    """A typer that puts a number which occurs nowhere else in the place of each free dimension.

    For torch code that insists on numbers: those in its results are then told by their size, and named again.
    """

    FIRST, NEAR, PARTS = 118_171, 100, 16

    def __init__(self, typer: Typer) -> None:
        super().__init__(typer, {})

    def size(self, dim: Dim) -> Any:
        """A Dim as a number."""
        for symbol in () if isinstance(dim, int) else dim.free_symbols:
            self.numbers.setdefault(symbol, sympy.nextprime(self.FIRST, len(self.numbers) + 1))
        return super().size(dim)

    def dim(self, size: Any) -> Dim:
        """The Dim that a number stands for: some free dimensions' product, or a little more or less than a multiple.

        Raises RuntimeError where the number looks like a part of a free dimension, which this cannot name.
        """
        for symbol, number in self.numbers.items():
            if size and size % number == 0:
                return self.dim(size // number) * symbol
            if times := self._times(size, number):
                return times * symbol + (size - times * number)
            if any(self._times(parts * size, number) for parts in range(2, self.PARTS)):
                raise RuntimeError(f"a length is a part of the free length {symbol}")
        return int(size)

    def _times(self, size: int, number: int) -> int:
        """How often a number stands in a size that is near a multiple of it; 0 for any other size."""
        times = round(size / number)
        return times if abs(size - times * number) < self.NEAR else 0


def split_arguments(target: torch._ops.OpOverload, values: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword arguments for a call of `target`, from all of them by name."""
    positional = [values[a.name] for a in target._schema.arguments if not a.kwarg_only]
    keyword = [a for a in target._schema.arguments if a.kwarg_only]
    named = {a.name: values[a.name] for a in keyword if values[a.name] is not None or not a.has_default_value()}
    return positional, named


def _is_alike(condition: Any) -> bool:
    """Whether a condition says of two free dimensions that they are the same, which broadcasting checks."""
    return isinstance(condition, sympy.Eq) and all(a.is_Symbol for a in condition.args)


def _key(arg: Arg, types: Mapping[str, Type]) -> Any:
    if isinstance(arg, Ref):
        return types[arg]
    if isinstance(arg, tuple):
        return tuple(_key(a, types) for a in arg)
    return (type(arg), arg)


def _shapes(type_: Type | None) -> Any:
    """A type as plain data."""
    return tuple(map(_shapes, type_)) if isinstance(type_, tuple) else type_ and (type_.shape, type_.dtype)


def _at(form: Any, numbers: Mapping[sympy.Symbol, int]) -> Any:
    """Plain data with its Dims at these lengths."""
    if isinstance(form, tuple):
        return tuple(_at(f, numbers) for f in form)
    return int(form.xreplace(numbers)) if isinstance(form, sympy.Expr) else form
