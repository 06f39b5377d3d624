"""The gradients of single samples, all in one run: the local rules, vectorised over samples.

The gradient of a weight is made of errors and presynaptic values, sample by sample, and summed over them at the end.
Here the generated functions see one sample each and `torch.func.vmap` runs them for all: the sum is of one term.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pccompile.backends.torch import SWEEP, emit
from pccompile.diagnostics import CompileError
from pccompile.ops import definition
from pccompile.runtime.derivative_guards import opaque
from pccompile.runtime.loaded_program import Runtime, load
from pccompile.runtime.losses import targets_of
from pccompile.runtime.module import CompiledModule

Functions = tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]
"""predict, clamp, and inference with learning."""


@opaque
def sample_gradients(
    pc: CompiledModule,
    args: tuple[Any, ...] | Tensor,
    target: Any,
    kwargs: Mapping[str, Any] | None = None,
    chunk: int | None = None,
) -> dict[str, Tensor]:
    """The gradient of each sample's own loss, by the path of each parameter: [samples, *shape of the parameter].

    args, kwargs, target: a batch; all of their tensors have the samples in dimension 0. The loss is that of the
    compiled module, of one sample at a time. chunk: so many samples are run at once; by default all.
    Nothing is added to `grad`.
    Raises CompileError where samples do not stand alone, as with batch norm in training mode, or where the model
    changes a state.
    """
    args = (args,) if isinstance(args, Tensor) else args
    named = dict(kwargs or {})
    tensors = [t for t in pytree.tree_leaves((args, named, target)) if isinstance(t, Tensor)]
    lengths = {t.shape[0] if t.dim() else None for t in tensors}
    if len(lengths) != 1 or None in lengths or not all(lengths):
        what = f"gradients of samples take tensors with the samples in dimension 0, and their lengths are {lengths}"
        raise CompileError(what, hint="repeat what all samples share, or make it a buffer")
    one_args, one_named, one_target = pytree.tree_map_only(Tensor, lambda t: t[:1], (args, named, target))
    runtime, (params, buffers), _ = pc.program_for(one_args, one_named, one_target)
    refuse_coupled(runtime)
    predict, clamp, sweep = functions(runtime)

    def one(inputs: Mapping[str, Tensor], targets: Sequence[Tensor]) -> dict[str, Tensor]:
        """The gradients of one sample."""
        outputs, context = predict(params, buffers, {k: t[None] for k, t in inputs.items()})
        targets = [t[None] for t in targets]
        given = targets if runtime.source.moving else clamp(outputs, targets)[1]
        found = sweep(params, context, given)
        return {k: found[k] for k in params if found.get(k) is not None}

    inputs = {k: t.detach() for k, t in runtime.interface.bind(args, named).items()}
    try:
        with torch.no_grad(), torch.autocast(tensors[0].device.type, enabled=False):
            run = torch.func.vmap(one, randomness="different", chunk_size=chunk)
            result: dict[str, Tensor] = run(inputs, targets_of(target))
    except (RuntimeError, ValueError) as e:
        what = f"the rules cannot be run for all samples at once: {str(e).splitlines()[0]}"
        raise CompileError(what, hint="pc.loss(...).backward() for one sample after the other gives the same") from e
    return result


def functions(runtime: Runtime) -> Functions:
    """The functions of a program in which nothing is written over, since what samples share is no memory of each."""
    if runtime.by_sample is None:
        assert runtime.compiled is not None
        text = emit(runtime.compiled.program, runtime.compiled.loss, functional=True, outlining=None).text
        scope = load(text, f"{runtime.name} by sample")
        runtime.by_sample = tuple(scope[name] for name in ("predict", "clamp", SWEEP))
    found: Functions = runtime.by_sample
    return found


def refuse_coupled(runtime: Runtime) -> None:
    """Raise CompileError where samples do not stand alone or a call leaves traces."""
    assert runtime.compiled is not None
    graph = runtime.compiled.graph
    for n in graph.nodes:
        if definition(n.op).of_the_batch and n["training"]:
            what = f"{n.name} normalises by statistics of the batch, so that samples have no gradients of their own"
            raise CompileError(what, n.where, "model.eval(), or a norm of single samples such as GroupNorm")
    if graph.updates or graph.states or runtime.writes:
        what = "the model changes a state or an argument, once for a batch and not for each sample"
        raise CompileError(what, hint="model.eval()")
    if runtime.source.lasting or runtime.source.updates:
        raise CompileError(f"{runtime.options.algorithm}: what is learned in a call is learned from the whole batch")
