"""The loss of a generated file: its value, and minus its gradient at each output."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pccompile.backends.torch.lower import lower_loss
from pccompile.backends.torch.optimise import without_dead
from pccompile.backends.torch.printer import Printer
from pccompile.backends.torch.spell import Speller

if TYPE_CHECKING:
    from pccompile.backends.torch.emit import Loss

SQUARED = '''@torch.no_grad()
def clamp(outputs, targets):
    """Squared error ½‖t − v̂‖², summed. Returns it and minus its gradient at each output, t − v̂."""
    output_errors = {errors}
    return {loss}, output_errors'''


def _squared(indices: Sequence[int], results: int) -> list[str]:
    zeros = {j: f"torch.zeros_like(outputs[{j}])" for j in indices if j >= results}
    errors = f"[{', '.join(zeros.get(j, f'targets[{i}] - outputs[{j}]') for i, j in enumerate(indices))}]"
    terms = [f"0.5 * output_errors[{i}].square().sum()" for i, j in enumerate(indices) if j not in zeros]
    return SQUARED.format(errors=errors, loss=" + ".join(terms) or "torch.zeros(())").splitlines()


def clamp_lines(
    loss: Loss | None, indices: Sequence[int], results: int, speller: Speller, reserved: Iterable[str]
) -> list[str]:
    """The function `clamp(outputs, targets)`. indices: which of the outputs carry an error.

    results: how many outputs are the model's results; the loss sends nothing to those behind.
    """
    if loss is None:
        return _squared(indices, results)
    texts = {name: f"outputs[{i}]" for i, name in enumerate(loss.outputs) if name is not None}
    texts |= {name: f"targets[{i}]" for i, name in enumerate(loss.targets) if name is not None}
    f, labels = lower_loss(loss.pc, texts, loss.constants)
    f = without_dead(f)
    speller.dims, speller.device = set(), False
    words = speller.words(s.op for s in f.statements())
    printer = Printer(f, labels, {}, {}, speller, lambda vertex: "", [*reserved, *loss.pc.graph.dims, *words])
    lines = printer.run({})
    head = [
        "@torch.no_grad()",
        "def clamp(outputs, targets):",
        '    """The loss, and minus its gradient at each output."""',
    ]
    if speller.device or any("device=device" in c for c in loss.constants.values()):
        head.append("    device = outputs[0].device")
    for dim in sorted(speller.dims & set(loss.pc.graph.dims)):
        source = loss.pc.graph.dims[dim]
        head.append(f"    {dim} = {texts[source.tensor]}.shape[{source.axis}]")
    by_output = [loss.outputs[j] for j in indices]
    zeros = {j: f"torch.zeros_like(outputs[{j}])" for j in indices}
    sent = {name: printer.spell(value) for (slot, name), value in f.results.items() if slot == "gradient"}
    errors = [zeros[j] if n is None else sent.get(n, zeros[j]) for n, j in zip(by_output, indices, strict=True)]
    value = printer.spell(f.results["output", loss.pc.graph.outputs[0]])
    return [*head, *lines, "", f"    return {value}, [{', '.join(errors)}]"]
