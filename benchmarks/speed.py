"""Time and memory of one training gradient, as a ratio to autograd: interleaved in one run, medians, one thread.

python benchmarks/speed.py [names …] [--compile] [--exponentials] [--relax] [--repeats N]
python benchmarks/speed.py --strict [--compile] [--cpu-time] [--repeats N]

exact is the generated file's `step`; "as a module" is `pc(x)` with a loss and autograd around it; fixed prediction is
in the lowering that is chosen for it, which "lowering" names, and "lines" is the length of its file.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from models import BENCHES, Bench

from pccompile.algorithms.law import PathLengths
from pccompile.algorithms.lowerings import Lowerings
from pccompile.api.module import PCModule
from pccompile.backends.torch import emit
from pccompile.pipeline import Options
from pccompile.runtime.losses import targets_of

Step = Callable[[], Any]

# Inductor's switch to channels-last makes a compiled training gradient of a convolutional network slower on a CPU, for
# autograd too (ResNet-18: 84 ms against 67 ms), so both sides of the ratio go without it.
INDUCTOR = {"layout_optimization": False}
FIXED: dict[str, Any] = {"algorithm": "fixed-prediction", "steps": 100, "rate": 0.1}


def autograd_step(
    bench: Bench, model: torch.nn.Module, x: tuple[torch.Tensor, ...], y: torch.Tensor, forward: Any = None
) -> Step:
    """Forward, loss and gradients by autograd. `forward` replaces the loss of the model's output, e.g. compiled."""
    params = [p for p in model.parameters() if p.requires_grad]
    run = forward or (lambda x, y: bench.loss(model(*x), y))

    def step() -> Any:
        loss = run(x, y)
        return loss.detach(), torch.autograd.grad(loss, params)

    return step


def program_step(bench: Bench, model: torch.nn.Module, x: Any, y: Any, compiled: bool = False, **options: Any) -> Step:
    """The same by the generated file's `step`."""
    algorithm = options.pop("algorithm", "exact")
    pc = PCModule(model, Options(algorithm, None, options), bench.loss)
    runtime = pc.prepare(x, loss=bench.loss, target=y)
    params, buffers = pc.tables(runtime)
    params = {k: p.detach() for k, p in params.items()}
    inputs, targets = runtime.interface.bind(x, {}), targets_of(y)
    run = runtime.function("step")
    if compiled:
        run = torch.compile(run, fullgraph=True, options=INDUCTOR)
    return lambda: run(params, buffers, inputs, targets)


def fixed_prediction(bench: Bench, model: torch.nn.Module, x: Any, y: Any) -> tuple[str, str]:
    """The lowering that is chosen for it, and how long the generated file is."""
    settings = {"steps": FIXED["steps"], "rate": FIXED["rate"]}
    runtime = PCModule(model, Options("fixed-prediction", None, settings), bench.loss).prepare(
        x, loss=bench.loss, target=y
    )
    pc = runtime.compiled.pc
    chosen, _ = Lowerings(pc, PathLengths(pc), settings["steps"], settings["rate"], None).cheapest()
    return chosen, f"{len(runtime.source.text.splitlines()):,}"


def module_step(bench: Bench, model: torch.nn.Module, x: tuple[torch.Tensor, ...], y: torch.Tensor) -> Step:
    """The same as a user takes it: the compiled module, a loss outside it, and `torch.autograd.grad`."""
    pc = PCModule(model, Options("exact"))
    pc.prepare(x)
    return autograd_step(bench, pc, x, y)


def strict_network() -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    """784-256-256-10 with ReLU, a batch of 64 and labels."""
    layers = (m for n, k in ((784, 256), (256, 256)) for m in (torch.nn.Linear(n, k), torch.nn.ReLU()))
    return torch.nn.Sequential(*layers, torch.nn.Linear(256, 10)), torch.randn(64, 784), torch.randint(10, (64,))


def by_hand(
    model: torch.nn.Sequential, x: torch.Tensor, y: torch.Tensor, steps: int, rate: float
) -> list[torch.Tensor]:
    """Strict inference on `strict_network` as one would write it in torch; the gradients of its parameters."""
    w0, b0, w1, b1, w2, b2 = (p.detach() for p in model.parameters())
    first = F.linear(x, w0, b0).relu_()
    v1, v2, labels = first.clone(), F.linear(first, w1, b1).relu_(), F.one_hot(y, 10).to(x.dtype)
    for step in range(steps + 1):
        second, sent = F.linear(v1, w1, b1).relu_(), labels - torch.softmax(F.linear(v2, w2, b2), 1)
        e1, e2 = v1 - first, v2 - second
        d2 = e2 * (second > 0)
        if step < steps:
            v1.add_((d2 @ w1).sub_(e1), alpha=rate)
            v2.add_((sent @ w2).sub_(e2), alpha=rate)
    d1 = e1 * (first > 0)
    pairs = ((d1, x), (d2, v1), (sent, v2))
    return [g for d, v in pairs for g in ((d.t() @ v).neg_(), d.sum(0).neg_())]


def jit_steps(model: torch.nn.Module, loss: Any, x: torch.Tensor, y: torch.Tensor, options: Options) -> list[Step]:
    """The module with jit=True, as a loss, and the step of the file that it compiles, compiled as a whole."""
    pc = PCModule(model, replace(options, jit=True), loss)
    runtime = pc.prepare((x,), loss=loss, target=y)
    scope: dict[str, Any] = {}
    exec(emit(runtime.compiled.program, runtime.compiled.loss, functional=True, lengths=runtime.lengths).text, scope)
    params, buffers = pc.tables(runtime)
    params = {k: p.detach() for k, p in params.items()}
    whole = torch.compile(scope["step"], fullgraph=True, options=INDUCTOR)
    inputs, targets = runtime.interface.bind((x,), {}), targets_of(y)
    return [lambda: pc.loss(x, target=y), lambda: whole(params, buffers, inputs, targets)]


def strict_table(repeats: int, compiled: bool = False) -> None:
    """Print strict inference against one eager gradient; raise AssertionError where gradients differ."""
    torch.manual_seed(0)
    (model, x, y), loss = strict_network(), torch.nn.CrossEntropyLoss(reduction="sum")
    options = Options("strict", None, {"steps": 20, "rate": 0.1})
    bench = Bench("strict", lambda: model, lambda: (x,), lambda: y, loss)

    def backward(run: Callable[[], torch.Tensor]) -> Step:
        def step() -> list[torch.Tensor | None]:
            model.zero_grad()
            run().backward()
            return [p.grad for p in model.parameters()]

        return step

    pc = PCModule(model, options, loss)
    steps = {
        "eager": backward(lambda: loss(model(x), y)),
        "file": program_step(bench, model, (x,), y, algorithm="strict", steps=20, rate=0.1),
        "module": backward(lambda: pc.loss(x, target=y)),
        "by hand": torch.no_grad()(lambda: by_hand(model, x, y, 20, 0.1)),
    }
    if compiled:
        by_loss, whole = jit_steps(model, loss, x, y, options)
        steps |= {"compiled step": whole, "module, jit": backward(by_loss)}
    for name in steps.keys() - {"eager", "file", "compiled step"}:
        gradients = dict(zip((n for n, _ in model.named_parameters()), steps[name](), strict=True))
        for key, expected in steps["file"]()[1].items():  # what is left of errors in values that are larger
            assert float((gradients[key] - expected).norm() / expected.norm()) < 1e-2, (name, key)
    times = interleaved(steps, repeats)
    ratios = (f"{times[name] / times['eager']:.2f}" for name in steps if name != "eager")
    print(f"| strict, 20 steps | eager ms | {' | '.join(name for name in steps if name != 'eager')} |")
    print("|---" * (len(steps) + 1) + "|")
    print(f"| 784-256-256-10, batch 64 | {1e3 * times['eager']:.2f} | {' | '.join(ratios)} |")


clock = time.perf_counter


def interleaved(steps: dict[str, Step], repeats: int) -> dict[str, float]:
    """The median seconds of each step, all of them taken in turns."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        for _ in range(3):
            step()
    for _ in range(repeats):
        for name, step in steps.items():
            start = clock()
            step()
            times[name].append(clock() - start)
    return {name: statistics.median(t) for name, t in times.items()}


def peak(step: Step) -> int:
    """The most bytes of tensors that are alive at once in a step, beyond what was alive before."""
    step()
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        result = step()
    del result
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = most = 0
    for e in sorted(events, key=lambda e: e.start_ns()):
        alive += e.nbytes()
        most = max(most, alive)
    return most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(BENCHES))
    parser.add_argument("--compile", action="store_true", help="also under torch.compile (minutes of compilation)")
    parser.add_argument("--exponentials", action="store_true", help="also fixed prediction in damped sweeps")
    parser.add_argument("--relax", action="store_true", help="also the T-step relaxation")
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--strict", action="store_true", help="strict inference instead")
    parser.add_argument("--cpu-time", action="store_true", help="time of the processor, where others share it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.cpu_time:
        global clock
        clock = time.thread_time
    if options.strict:
        strict_table(options.repeats, options.compile)
        return
    header = "| network | eager autograd ms | exact | as a module | fixed prediction T=100 |"
    header += " exponentials T=100 |" * options.exponentials
    header += " relax T=100 |" * options.relax + " lowering | lines |"
    header += " compiled autograd ms | compiled exact |" * options.compile
    header += " peak memory | as a module |"
    print(header)
    print("|---" * (header.count("|") - 1) + "|")
    for name in options.names:
        print(row(BENCHES[name], options), flush=True)


def row(bench: Bench, options: argparse.Namespace) -> str:
    """One line of the table."""
    torch.manual_seed(0)
    model, x, y = bench.build(), bench.inputs(), bench.target()
    steps = {
        "eager": autograd_step(bench, model, x, y),
        "exact": program_step(bench, model, x, y),
        "module": module_step(bench, model, x, y),
        "fixed": program_step(bench, model, x, y, **FIXED),
    }
    for lowering in ("exponentials", "relax"):
        if getattr(options, lowering):
            steps[lowering] = program_step(bench, model, x, y, lowering=lowering, **FIXED)
    times = interleaved(steps, options.repeats)
    cells = [
        bench.name,
        f"{1e3 * times['eager']:.2f}",
        *(f"{times[k] / times['eager']:.3f}" for k in steps if k != "eager"),
        *fixed_prediction(bench, model, x, y),
    ]
    if options.compile:
        forward = torch.compile(lambda x, y: bench.loss(model(*x), y), fullgraph=True, options=INDUCTOR)
        pair = {
            "eager": autograd_step(bench, model, x, y, forward),
            "exact": program_step(bench, model, x, y, compiled=True),
        }
        times = interleaved(pair, options.repeats)
        cells += [f"{1e3 * times['eager']:.2f}", f"{times['exact'] / times['eager']:.3f}"]
    eager = peak(steps["eager"])
    cells += [f"{peak(steps[k]) / eager:.3f}" for k in ("exact", "module")]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
