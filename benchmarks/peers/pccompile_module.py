"""pccompile as a user calls it: `pc.loss(x, target=y).backward()`."""

from dataclasses import replace

import torch
from pccompile_file import loss, network, settings
from worker import Arrays, Problem, Step, serve

from pccompile.api.module import PCModule


def build(problem: Problem, jit: bool = False) -> tuple[Step, Arrays]:
    """A training step without its optimizer."""
    torch.set_num_threads(1)
    model, x, y = network(problem), torch.from_numpy(problem.x), torch.from_numpy(problem.y)
    pc = PCModule(model, replace(settings(problem), jit=jit), loss)

    def step() -> list[torch.Tensor | None]:
        model.zero_grad()
        pc.loss(x, target=y).backward()
        return [p.grad for p in model.parameters()]

    return step, lambda gradients: gradients


if __name__ == "__main__":
    serve(build)
