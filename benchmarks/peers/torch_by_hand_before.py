"""Strict inference by hand in torch on values in front of the nonlinearities, which predict by v̂ = W relu(v) + b."""

import torch
import torch.nn.functional as F
from worker import Arrays, Problem, Step, serve


def build(problem: Problem) -> tuple[Step, Arrays]:
    """Values and errors in lists, one entry a layer; the input is given as it is."""
    torch.set_num_threads(1)
    weights, biases = ([torch.from_numpy(p) for p in ps] for ps in (problem.weights, problem.biases))
    x, y = torch.from_numpy(problem.x), torch.from_numpy(problem.y)
    last = len(weights) - 1

    @torch.no_grad()
    def step() -> list[torch.Tensor]:
        first = F.linear(x, weights[0], biases[0])
        values = [first.clone()]
        for i in range(1, last):
            values.append(F.linear(torch.relu(values[-1]), weights[i], biases[i]))
        for t in range(problem.steps + 1):
            active = [torch.relu(v) for v in values]
            predictions = [first, *(F.linear(active[i - 1], weights[i], biases[i]) for i in range(1, last + 1))]
            errors = [v - p for v, p in zip([*values, y], predictions, strict=True)]
            if t < problem.steps:
                for i, value in enumerate(values):
                    pull = (errors[i + 1] @ weights[i + 1]).mul_(value > 0)
                    value.add_(pull.sub_(errors[i]), alpha=problem.rate)
        pairs = zip(errors, [x, *active], strict=True)
        return [g for e, a in pairs for g in ((e.t() @ a).neg_(), e.sum(0).neg_())]

    return step, lambda gradients: gradients


if __name__ == "__main__":
    serve(build)
