"""docs/paper.md, made of what was measured: each claim of the paper with a verdict that is computed, and the tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from paper.figures import error
from paper.training import BACKPROP, ORDERED, PREDICTIVE, TWICE

Results = dict[str, Any]
NETWORKS = {"cnn": "CNN", "rnn": "RNN", "lstm": "LSTM"}
IMAGES = ("CIFAR-10", "SVHN", "CIFAR-100")
"""What the paper trains the CNN on."""
SMALL_ERROR = 1e-2
"""A gradient counts as that of autograd where it differs by less than this part."""

HEAD = """\
# The paper, run anew

*Predictive Coding Approximates Backprop along Arbitrary Computation Graphs*, Millidge, Tschantz & Buckley,
[arXiv:2006.04182](https://arxiv.org/abs/2006.04182). `make paper` runs its four experiments with
`pccompile.compile(model, args, algorithm="fixed-prediction")` and writes this page; `--full` takes the sizes of the
published code. Predictive coding and backpropagation have the same draws of the weights, batches, loss, learning rate
and clipping; seeds 0 to 4; ± is the standard error over the seeds.

Verdicts are computed: two ways learn equally well where accuracies with the same seed differ by less than half a point
or two standard errors; two gradients are the same where they differ by less than 1 % of autograd's.
"""
DOUBLE = """\
## The update that is applied twice

In the published code (github.com/BerenMillidge/PredictiveCodingBackprop, `cnn.py`, `PCNet.update_weights`) each layer's
`update_weights(…, update_weights=True)` is called with the prediction errors, and then once more, with the messages
that the errors settle to, in order to log the difference between the two. Both calls change the weights. So after
convergence the CNN that learns by predictive coding moves twice as far at each batch as the one that learns by
backpropagation, whose code makes one call. The RNN and the LSTM make one call in both. Factors of 2 stand
in three more places of the CNN: the loss's derivative `2 * (out - label)`, the update `2 * dW`, both in
either network, and the inference step `inference_learning_rate * (2 * dx)`, so that its rate is 0.2. Here each of these
is one number, and "each update applied twice" is a way of learning of its own.
"""
ORDER = """\
## All vertices together, or one time step after the other

The paper's equations move all vertices together. After T steps of size η an error has then come k edges far with the
weight P[Binomial(T, η) ≥ k], and a recurrent network has two edges and more a time step. The published RNN and LSTM do
it otherwise: they take all their steps at the last time, then all at the time before it, and so on, so that a sequence
of n takes n times as many steps and nothing is cut off. "Its steps at each time step" has that many steps.
"""
LIMITS = """\
## What differs from the paper, and what was not run

- `--full` has not been run here; it is written for whoever has the days. The tables below say which setting was run.
- SVHN and CIFAR-100: SVHN's loader (`--images svhn`: its .mat files, or torchvision) is tested on files of its format
  but was not run on the data, which could not be had; CIFAR-100 is left out.
- The CNN's images are CIFAR-10 as lossy JPEG where the table says so.
- Messages are not clipped (the published CNN cuts them off at ±50); gradients are, at the same size for all.
- Names come from the same collection in another edition, so nationalities and counts may differ from the paper's.
- `--small` takes fewer updates at larger learning rates. What it says is whether the ways of learning agree, not how
  good they become.
"""


def page(results: Results, folder: str) -> str:
    """The page in Markdown; figures are in `folder`, relative to it."""
    parts = [HEAD.rstrip(), "## Claims", *_lines(claims(results))]
    text = "\n\n".join(parts[:2]) + "\n\n" + "\n".join(parts[2:])
    sections = [text]
    if "scalar" in results:
        sections.append(_scalar(results["scalar"], folder))
    sections += [_network(name, results[name], folder) for name in NETWORKS if name in results]
    sections += [t.rstrip() for t in (DOUBLE, ORDER, LIMITS)]
    if left := [NETWORKS[n] for n in NETWORKS if n not in results]:
        sections.append(f"Not run: {', '.join(left)}; no data was found when this page was made.")
    return "\n\n".join(sections) + "\n"


def _lines(rows: Iterator[tuple[str, str, str]]) -> list[str]:
    return ["| the paper says | here | measured |", "|---|---|---|", *(f"| {a} | {b} | {c} |" for a, b, c in rows)]


def claims(results: Results) -> Iterator[tuple[str, str, str]]:
    """Each claim, whether it held, and by which numbers."""
    if scalar := results.get("scalar"):
        yield from _scalar_claims(scalar)
    for name, title in NETWORKS.items():
        if found := results.get(name):
            yield _same_accuracy(title, found)
            yield _same_gradient(title, found)
    if cnn := results.get("cnn"):
        left = [name for name in IMAGES if name != cnn["title"].rpartition(" ")[2]]
        yield f"The CNN does so on {' and on '.join(left)}", "not run", "at the end of this page is why"
        yield _small_throughout(cnn)
    needs = {NETWORKS[n]: results[n]["needs"] for n in NETWORKS if n in results}
    if needs:
        held = all(n["local"] for n in needs.values())
        hops = ", ".join(f"{t} {n['hops']}" for t, n in needs.items())
        text = f"hops of an inference step: {hops}; what is kept: errors, and the predictions of the forward pass"
        yield "Inference and learning are local", _verdict(held), f"{text}. Messages read the forward weights"


def _verdict(held: bool) -> str:
    return "held" if held else "**not held**"


def _scalar_claims(scalar: Results) -> Iterator[tuple[str, str, str]]:
    true, last = abs(scalar["gradient"]), {r: abs(v[-1]) for r, v in scalar["divergence"].items()}
    steps, tenth = scalar["steps"][-1], last["0.1"] / true
    numbers = f"rate 0.1, {steps} steps: relative difference {f'{tenth:.1e}' if tenth > 1e-15 else 'below 1e-15'}"
    yield "Errors converge to autograd's gradient on a branching, nonlinear function", _verdict(tenth < 1e-9), numbers
    first = {r: _first(scalar, r) for r in ("0.01", "0.1", "1")}
    shown = ", ".join(f"rate {r}: {n or f'over {steps}'}" for r, n in first.items())
    ordered = [n or steps + 1 for n in first.values()]
    text = f"steps (of those tried) until the difference is below 1 %: {shown}"
    yield "Convergence is rapid, and faster at larger rates", _verdict(ordered == sorted(ordered, reverse=True)), text


def _first(scalar: Results, rate: str) -> int | None:
    values = zip(scalar["steps"], scalar["divergence"][rate], strict=True)
    return next((n for n, v in values if abs(v) < SMALL_ERROR * abs(scalar["gradient"])), None)


def final(found: Results, variant: str, key: str = "accuracy") -> list[float]:
    """The last point of each seed's curve."""
    return [curve[-1][key] for curve in found["variants"][variant]]


def differences(found: Results, variant: str) -> list[float]:
    """Accuracy minus that of backpropagation with the same seed."""
    return [a - b for a, b in zip(final(found, variant), final(found, BACKPROP), strict=True)]


def _same_accuracy(title: str, found: Results) -> tuple[str, str, str]:
    values = differences(found, PREDICTIVE)
    mean, spread = statistics.mean(values), error(values)
    held = abs(mean) <= max(2 * spread, 5e-3)
    text = f"accuracy minus backpropagation's, by seed: {100 * mean:+.2f} ± {100 * spread:.2f} points"
    return f"The {title} learns as well as by backpropagation", _verdict(held), text


def divergences(found: Results, variant: str) -> list[float]:
    """All that were measured along all curves."""
    return [p["divergence"] for curve in found["variants"][variant] for p in curve]


def _same_gradient(title: str, found: Results) -> tuple[str, str, str]:
    values = divergences(found, PREDICTIVE)
    text = f"relative difference to autograd's gradient: median {statistics.median(values):.1e}, most {max(values):.1e}"
    if ORDERED in found["variants"]:
        other = divergences(found, ORDERED)
        text += f"; with its steps at each time step: median {statistics.median(other):.1e}, most {max(other):.1e}"
    claim = f"Its steps and rate give the {title} the gradient of backpropagation"
    return claim, _verdict(max(values) < SMALL_ERROR), text


def _small_throughout(found: Results) -> tuple[str, str, str]:
    curves = found["variants"][PREDICTIVE]
    first, last = (statistics.mean(c[i]["divergence"] for c in curves) for i in (0, -1))
    text = f"CNN, mean relative difference: {first:.1e} before training, {last:.1e} at the end"
    return "The gradients' difference stays small while the network trains", _verdict(last < SMALL_ERROR), text


def _scalar(found: Results, folder: str) -> str:
    chosen = [n for n in found["steps"] if n in (1, 3, 8, 24, 64, 100, 220, 500)]
    lines = [
        "## Scalar function",
        "",
        f"tan(√(θ v₀)) + sin(v₀²); {found['setting']}.",
        f"Autograd's gradient is {found['gradient']:.6g}. The table has the gradient of predictive coding minus that.",
        "",
        f"| rate | {' | '.join(f'{n} steps' for n in chosen)} |",
        "|---" * (len(chosen) + 1) + "|",
    ]
    for rate, values in found["divergence"].items():
        by_steps = dict(zip(found["steps"], values, strict=True))
        lines.append(f"| {rate} | {' | '.join(f'{by_steps[n]:.1e}' if by_steps[n] else '0' for n in chosen)} |")
    return "\n".join([*lines, "", f"![divergence against steps]({folder}/scalar.png)"])


def _network(name: str, found: Results, folder: str) -> str:
    lines = [
        f"## {found['title']}",
        "",
        f"Setting `--{found['size']}`: {found['setting']}.",
        "",
        f"Data: {found['data']}.",
        "",
        f"With a vertex a layer, the longest path to an output has {found['needs']['longest']} edges.",
        "",
        "| way of learning | training loss, last part | held-out accuracy, % | minus backpropagation's, points "
        "| gradient's relative difference, median | most | CPU s a seed |",
        "|---|---|---|---|---|---|---|",
    ]
    for variant in found["variants"]:
        gaps, off = differences(found, variant), divergences(found, variant)
        cells = (
            variant,
            _mean(final(found, variant, "loss"), 1, 4),
            _mean(final(found, variant), 100, 2),
            "" if variant == BACKPROP else _mean(gaps, 100, 2),
            "" if variant == BACKPROP else f"{statistics.median(off):.1e}",
            "" if variant == BACKPROP else f"{max(off):.1e}",
            f"{found['seconds'][variant]:.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    if TWICE in found["variants"]:
        lines += ["", _doubling(found)]
    return "\n".join([*lines, "", f"![accuracy and divergence along training]({folder}/{name}.png)"])


def _doubling(found: Results) -> str:
    loss = {v: statistics.mean(final(found, v, "loss")) for v in (BACKPROP, TWICE)}
    gap, change = 100 * statistics.mean(differences(found, TWICE)), 100 * (loss[TWICE] / loss[BACKPROP] - 1)
    return (
        f"Each update applied twice: {change:+.1f} % of training loss and {gap:+.2f} points of accuracy in the end\n"
        "against backpropagation: it is a learning rate twice as large, not another gradient."
    )


def _mean(values: Sequence[float], scale: float, digits: int) -> str:
    return f"{scale * statistics.mean(values):.{digits}f} ± {scale * error(list(values)):.{digits}f}"
