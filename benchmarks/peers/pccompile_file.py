"""What pccompile generates for strict inference: the file's `step`, on the model's parameters."""

from collections.abc import Callable
from typing import Any

import torch
from worker import Arrays, Problem, Step, serve

from pccompile.api.module import PCModule
from pccompile.pipeline import Options
from pccompile.runtime.losses import targets_of


def network(problem: Problem) -> torch.nn.Sequential:
    """The problem's perceptron as a torch module."""
    modules: list[torch.nn.Module] = []
    for weight, bias in zip(problem.weights, problem.biases, strict=True):
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
        modules += [linear, torch.nn.ReLU()]
    return torch.nn.Sequential(*modules[:-1])


def loss(out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """½ Σ (y − out)²."""
    return 0.5 * ((y - out) ** 2).sum()


def settings(problem: Problem) -> Options:
    """Strict inference as the problem has it."""
    return Options("strict", None, {"steps": problem.steps, "rate": problem.rate})


def build(
    problem: Problem, prepared: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda run: run
) -> tuple[Step, Arrays]:
    """The generated `step`, or what `prepared` makes of it."""
    torch.set_num_threads(1)
    model, x, y = network(problem), torch.from_numpy(problem.x), torch.from_numpy(problem.y)
    pc = PCModule(model, settings(problem), loss)
    runtime = pc.prepare((x,), loss=loss, target=y)
    params, buffers = pc.tables(runtime)
    params = {name: p.detach() for name, p in params.items()}
    inputs, targets, run = runtime.interface.bind((x,), {}), targets_of(y), prepared(runtime.function("step"))
    names = [name for name, _ in model.named_parameters()]
    return lambda: run(params, buffers, inputs, targets), lambda result: [result[1][name] for name in names]


if __name__ == "__main__":
    serve(build)
