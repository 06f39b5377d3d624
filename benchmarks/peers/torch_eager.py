"""Backpropagation in eager torch: the gradient that all others are a multiple of. It is no predictive coding."""

import torch
from worker import Arrays, Problem, Step, serve


def build(problem: Problem) -> tuple[Step, Arrays]:
    """Forward, loss and `torch.autograd.grad`."""
    torch.set_num_threads(1)
    parameters = [torch.from_numpy(p).requires_grad_() for p in problem.parameters]
    x, y = torch.from_numpy(problem.x), torch.from_numpy(problem.y)
    layers = list(zip(parameters[::2], parameters[1::2], strict=True))

    def step() -> tuple[torch.Tensor, ...]:
        value = x
        for i, (weight, bias) in enumerate(layers):
            value = torch.nn.functional.linear(value, weight, bias)
            value = value if i == len(layers) - 1 else torch.relu(value)
        return torch.autograd.grad(0.5 * ((y - value) ** 2).sum(), parameters)

    return step, lambda gradients: [g.numpy() for g in gradients]


if __name__ == "__main__":
    serve(build)
