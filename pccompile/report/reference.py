"""What another runtime makes of an ONNX file: onnxruntime, or the slow reference of the onnx package."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from pccompile.diagnostics import CompileError, printable
from pccompile.frontends.onnx import OnnxModule, randomize
from pccompile.frontends.onnx.names import lookup
from pccompile.ops import OPS
from pccompile.report.gradients import Bench
from pccompile.report.tables import count
from pccompile.report.verify import VerifyReport, verify

if TYPE_CHECKING:
    from pccompile.runtime.module import PCModule

INSTALL = 'pip install "pccompile[check]"'


def require_onnxruntime() -> None:
    """Raise CompileError where onnxruntime is not installed."""
    try:
        import onnxruntime  # noqa: F401
    except ImportError:
        raise CompileError(
            "--verify compares ONNX files with onnxruntime, which is not installed", hint=INSTALL
        ) from None


def constant_weights(module: OnnxModule) -> list[str]:
    """The weights, of more than one entry, that are one number throughout: gradients through them mean nothing."""
    weights = {n: lookup(module, path) for n, path in module.parameter_names.items()}
    return [n for n, w in weights.items() if w.dim() > 1 and w.numel() > 1 and bool((w == w.reshape(-1)[0]).all())]


def outputs(
    path: Path, module: OnnxModule, inputs: Sequence[Tensor], redrawn: bool
) -> tuple[list[Tensor] | None, str, list[str]]:
    """The file's outputs, who computed them, and what a reader must know; None where nobody could.

    redrawn: use the weights of `module`, which differ from the file's.
    """
    feed = {
        t.name: np.ascontiguousarray(x.detach().cpu().numpy()) for t, x in zip(module.input_types, inputs, strict=True)
    }
    notes: list[str] = []
    model: onnx.ModelProto | None = None
    if redrawn:
        model = with_weights(onnx.load(path), module)
        if model is None:
            return (
                None,
                "",
                ["the forward pass was not compared with onnxruntime: the re-drawn weights do not fit into the file"],
            )
    for name, run in (("onnxruntime", _onnxruntime), ("onnx.reference", _reference)):
        try:
            found = run(model if model is not None else path, list(module.output_names), feed)
        except Exception as e:
            line = (str(e).strip().splitlines() or [type(e).__name__])[0]
            notes.append(f"{name} cannot run the file: {printable(line, 160)}")
            continue
        if all(isinstance(f, np.ndarray | np.generic) for f in found):
            return [torch.from_numpy(np.array(f)) for f in found], name, notes
        notes.append(f"{name} returns what is no tensor")
    return None, "", notes


def _onnxruntime(model: onnx.ModelProto | Path, names: list[str], feed: Mapping[str, Any]) -> Sequence[Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or 0)
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    known = {i.name for i in session.get_inputs()}
    return session.run(names, {k: v for k, v in feed.items() if k in known})  # type: ignore[no-any-return]


def _reference(model: onnx.ModelProto | Path, names: list[str], feed: Mapping[str, Any]) -> Sequence[Any]:
    from onnx.reference import ReferenceEvaluator

    source = str(model) if isinstance(model, Path) else model
    found = ReferenceEvaluator(source).run(names, dict(feed))
    return list(found)


def with_weights(model: onnx.ModelProto, module: OnnxModule) -> onnx.ModelProto | None:
    """`model` with the weights that `module` has now, as initializers; None where it does not know them all."""
    kept = {c.name: lookup(module, c.path) for c in module.graph.constants.values() if c.path}
    graph = model.graph
    made = {o for n in graph.node for o in n.output} | {i.name for i in graph.initializer}
    if not set(kept) <= made or any(len(n.output) > 1 and set(n.output) & set(kept) for n in graph.node):
        return None
    nodes = [n for n in graph.node if not set(n.output) & set(kept)]
    initializers = [i for i in graph.initializer if i.name not in kept]
    initializers += [numpy_helper.from_array(t.detach().cpu().numpy(), name) for name, t in kept.items()]
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.graph.node[:], changed.graph.initializer[:]
    changed.graph.node.extend(nodes)
    changed.graph.initializer.extend(initializers)
    return changed


def verify_file(pc: PCModule, path: Path, args: tuple[Tensor, ...], seed: int, **settings: Any) -> VerifyReport:
    """`report.verify.verify` for a compiled ONNX file, its forward pass against another runtime's.

    Weights that are one number throughout are drawn anew meanwhile.
    """
    module = pc.__dict__["model"]
    assert isinstance(module, OnnxModule)
    notes: list[str] = []
    constant = constant_weights(module)
    if constant:
        notes.append(f"drawn anew: {count(len(constant), 'weight')} of one number throughout")
    with ExitStack() as stack:
        drawn = stack.enter_context(redrawn(module, seed)) if constant else []
        notes += scaled(pc, drawn, args, seed)
        if any(n.op in OPS and OPS[n.op].random for n in pc.compiled.graph.nodes):
            expected, name, said = (
                None,
                "",
                ["the model draws random numbers: its outputs were compared with its own in torch"],
            )
        else:
            expected, name, said = outputs(path, module, args, bool(constant))
        if expected is None and not said:
            said = ["no other runtime could run the file: its outputs were compared with its own in torch"]
        return verify(
            pc,
            args,
            seed=seed,
            expected=expected,
            reference=name or "the model run by torch",
            notes=[*notes, *said],
            **settings,
        )


@contextmanager
def redrawn(module: OnnxModule, seed: int) -> Iterator[list[Tensor]]:
    """Weights of one number throughout are random inside; gives those."""
    tensors = [*module.parameters(), *module.buffers()]
    before = [
        (t, t.detach().reshape(-1)[0].clone()) for t in tensors if t.numel() > 1 and bool((t == t.reshape(-1)[0]).all())
    ]
    randomize(module, seed)
    try:
        yield [tensor for tensor, _ in before]
    finally:
        with torch.no_grad():
            for tensor, value in before:
                tensor.fill_(value)


def scaled(pc: PCModule, drawn: list[Tensor], args: tuple[Tensor, ...], seed: int) -> list[str]:
    """Shrink `drawn` weights until most gradients are not 0: a saturated softmax would let nothing through."""
    weights = [t for t in drawn if t.dim() > 1]
    factor = 1.0
    while weights and factor > 0.02:
        gradients = Bench(pc, args, {}, None, None, seed).autograd().values()
        if 2 * sum(g is not None and bool(g.any()) for g in gradients) > len(gradients):
            break
        factor *= 0.7
        with torch.no_grad():
            for weight in weights:
                weight.mul_(0.7)
    return [f"the weights were scaled by {factor:.2g}, as the outputs were saturated"] if factor < 1 else []
