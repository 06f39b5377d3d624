"""The functions of a generated file behind torch.compile: what `compile(..., jit=True)` runs."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import local
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from pccompile.diagnostics import CompileError
from pccompile.frontends.tensor_forms import like

PASSES = ("predict", "clamp")
"""What a call runs once, besides inference and learning; alone they are compiled only where those take no steps."""
FORWARD, CHECKED = "predict_and_clamp", "infer_learn_and_check"
"""Prediction and the loss as one function; inference, learning, and whether gradients are finite."""
INDUCTOR: dict[str, str | int | bool | Callable[..., Any]] = {"layout_optimization": False, "fallback_random": True}
"""Channels-last makes training gradients of convolutional networks slower on a CPU; samples are eager torch's."""
FORMS = 64
"""So many forms of a call are remembered by a function."""


def refuse_without_compiler() -> None:
    """Raise CompileError where torch.compile has nothing to build its kernels with."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, OSError, RuntimeError) as e:
        hint = "install g++ or clang++, or name one in the environment variable CXX; without jit=True none is needed"
        raise CompileError("jit=True needs a C++ compiler, and there is none", hint=hint) from e


def refuse_updates(algorithm: str) -> None:
    """Raise CompileError for an algorithm that moves parameters inside inference."""
    what = f"jit=True compiles a step as a whole, and {algorithm} hands its gradients to an optimizer within it"
    raise CompileError(what, hint=f"leave out jit=True, or compile another algorithm than {algorithm}")


_JOINED = f'''

def {FORWARD}(params, buffers, inputs, targets):
    """The outputs, the context, the loss, and its errors where inference takes them."""
    outputs, context = predict(params, buffers, inputs)
    loss, errors = clamp(outputs, targets)
    return outputs, context, loss, {{errors}}


def {CHECKED}(params, context, targets):
    """What inference and learning return, and whether all gradients are finite; None where that is not known."""
    learned = infer_and_learn(params, context, targets)
    gradients = learned[0] if isinstance(learned, tuple) else learned
    largest = [g.abs().amax() for g in gradients.values() if g is not None and g.numel()]
    return learned, torch.stack([m.isfinite() for m in largest]).all() if largest else None
'''


def joined(moving: bool) -> str:
    """Functions that stand behind those of a file that is compiled. moving: inference takes no errors but targets."""
    return _JOINED.replace("{errors}", "[]" if moving else "errors")


Call = tuple[Callable[..., Any], tuple[Any, ...], Sequence[Any]]
"""What runs a graph, its arguments, and its results."""


@dataclass(frozen=True)
class _Kernels:
    """What Dynamo made of a call: one graph, which of the call's values it reads, and where its results belong.

    like: whether the tensors of another call are of the same forms. assemble: the function's result, from the graph's
    results and behind them the call's tensors. shared: what of these lies in the memory of another.
    """

    like: Callable[..., bool]
    run: Callable[..., Any]
    inputs: tuple[int, ...]
    assemble: Callable[[Sequence[Any]], Any]
    shared: tuple[tuple[int, int], ...]

    def __call__(self, tensors: Sequence[Tensor]) -> Any:
        """The function's result."""
        values = [*self.run(*[tensors[i] for i in self.inputs]), *tensors]
        return self.assemble(_as_views(values, self.shared) if self.shared else values)


class Compiled:
    """A function of a generated file by torch.compile. It is compiled anew for tensors of other types and shapes.

    Dynamo decides that, and its guards are evaluated whenever a call comes in a form that has not been seen. A form is
    all that those guards compare of tensors, numbers and torch's settings; one that has been seen is run at once.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._run: Callable[..., Any] = torch.compile(inspect.unwrap(function), backend=self._backend)
        self._known: dict[Any, tuple[_Kernels, ...]] = {}
        self._local = local()

    def __call__(self, *args: Any, **numbers: Any) -> Any:
        """The function's result, without gradients."""
        tensors, form = _form(args, numbers)
        with torch.no_grad():
            for kernels in self._known.get(form, ()):
                if kernels.like(*tensors):
                    return kernels(tensors)
            return self._first(form, tensors, args, numbers)

    def _first(self, form: Any, tensors: list[Tensor], args: tuple[Any, ...], numbers: dict[str, Any]) -> Any:
        """A call in a form that has not been seen; what runs it is noted, unless it does more than to run a graph."""
        versions = _versions(tensors)
        self._local.calls = calls = list[Call]()
        try:
            result = self._run(*args, **numbers)
        finally:
            self._local.calls = None
        now, same = _form(args, numbers)
        unchanged = form == same and all(map(_is, now, tensors)) and _versions(tensors) == versions
        kernels = _kernels(calls[0], tensors, result) if unchanged and len(calls) == 1 else None
        if kernels is not None:
            known = self._known if len(self._known) < FORMS else {}
            self._known = {**known, form: (*known.get(form, ())[1 - FORMS :], kernels)}
        leaves, spec = pytree.tree_flatten(result)
        shared = _shared(leaves, tensors)
        return pytree.tree_unflatten(_as_views([*leaves, *tensors], shared)[: len(leaves)], spec) if shared else result

    def _backend(self, graph: fx.GraphModule, examples: list[Any]) -> Callable[..., Any]:
        """What runs a graph that Dynamo has found."""
        from torch._inductor.compile_fx import compile_fx

        from pccompile.runtime.matrix_products import MatrixProducts

        choices = {**INDUCTOR, "post_grad_custom_post_pass": MatrixProducts()}
        run = cast(Callable[..., Any], compile_fx(graph, examples, config_patches=choices))

        def call(*inputs: Any) -> Any:
            results = run(*inputs)
            calls = getattr(self._local, "calls", None)
            if calls is not None:
                calls.append((run, inputs, results))
            return results

        return call


def _versions(tensors: Sequence[Tensor]) -> list[object]:
    """How often each tensor was written to; nothing that is equal again where torch does not count."""
    return [object() if t.is_inference() else t._version for t in tensors]


def _is(a: object, b: object) -> bool:
    return a is b


def _form(args: tuple[Any, ...], numbers: Mapping[str, Any]) -> tuple[list[Tensor], tuple[Any, ...]]:
    """The tensors of a call in order, and what else decides which kernels run it; like no other where it is unknown."""
    tensors, form = list[Tensor](), list[Any]()
    for table in args:
        form.append(tuple(table) if isinstance(table, dict) else len(table))
        for i, value in enumerate(table.values() if isinstance(table, dict) else table):
            if isinstance(value, Tensor):
                tensors.append(value)
            else:
                form.append((i, type(value), value) if isinstance(value, int | float | None) else object())
    form += (str(numbers) if numbers else "", *_settings())
    return tensors, tuple(form)


def _settings() -> tuple[Any, ...]:
    """What of torch's settings decides what is compiled, or whether."""
    return (
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch._C._get_deterministic_algorithms(),
        torch._C._get_deterministic_algorithms_warn_only(),
        torch._C._len_torch_dispatch_stack(),
        torch._C._len_torch_function_stack(),
        torch._dynamo.eval_frame._stance.stance,
    )


def _kernels(call: Call, tensors: list[Tensor], result: Any) -> _Kernels | None:
    """What runs a call again; None where Dynamo does more than to call one graph on tensors of the call."""
    run, inputs, results = call
    places = {id(t): i for i, t in enumerate(tensors)}
    found = {id(t): i for i, t in enumerate((*results, *tensors)) if isinstance(t, Tensor)}
    read, same, assemble = [places.get(id(t)) for t in inputs], like(tensors), _assembly(result, found)
    if same is None or assemble is None or len(places) < len(tensors) or None in read:
        return None
    return _Kernels(same, run, tuple(i for i in read if i is not None), assemble, _shared(results, tensors))


def _shared(results: Sequence[Any], tensors: Sequence[Tensor]) -> tuple[tuple[int, int], ...]:
    """Which results lie in the memory of another value, a tensor of the call if there is one, unknown to autograd.

    Kernels return such results as tensors of their own: what is written into one would change the other unseen.
    """
    bases: dict[int, int] = {}
    pairs: list[tuple[int, int]] = []
    values = [*results, *tensors]
    for i in (*range(len(results), len(values)), *range(len(results))):
        value = values[i]
        if not isinstance(value, Tensor) or value.layout is not torch.strided or not value.numel():
            continue
        first = bases.setdefault(value.untyped_storage().data_ptr(), i)
        base = values[first]
        known = value is base or (value._is_view() and value._base is (base._base if base._is_view() else base))
        if i < len(results) and not known and value.dtype == base.dtype:
            pairs.append((i, first))
    return tuple(pairs)


def _as_views(values: list[Any], shared: Sequence[tuple[int, int]]) -> list[Any]:
    """`values`, in which those that lie in the memory of another are views of it."""
    for i, base in shared:
        own = values[i]
        values[i] = values[base].as_strided(own.shape, own.stride(), own.storage_offset())
    return values


def _assembly(result: Any, places: Mapping[int, int]) -> Callable[[Sequence[Any]], Any] | None:
    """What puts such a result together, given where its tensors are; None where some are nowhere."""
    if isinstance(result, Tensor):
        return operator.itemgetter(places[id(result)]) if id(result) in places else None
    if result is None:
        return lambda found: None
    if type(result) not in (dict, list, tuple):
        return None
    kind, keys = type(result), tuple(result) if isinstance(result, dict) else ()
    parts = [_assembly(r, places) for r in (result.values() if keys else result)]
    known = [p for p in parts if p is not None]
    if len(known) < len(parts):
        return None
    if kind is dict:
        return lambda found: dict(zip(keys, [part(found) for part in known], strict=True))
    return lambda found: kind([part(found) for part in known])
