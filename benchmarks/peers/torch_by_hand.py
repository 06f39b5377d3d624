"""Strict inference as one would write it in torch, without autograd."""

import torch
import torch.nn.functional as F
from worker import Arrays, Problem, Step, serve


def build(problem: Problem) -> tuple[Step, Arrays]:
    """Values and errors in lists, one entry a layer."""
    torch.set_num_threads(1)
    weights, biases = ([torch.from_numpy(p) for p in ps] for ps in (problem.weights, problem.biases))
    x, y = torch.from_numpy(problem.x), torch.from_numpy(problem.y)
    last = len(weights) - 1

    def predict(i: int, value: torch.Tensor) -> torch.Tensor:
        found = F.linear(value, weights[i], biases[i])
        return found if i == last else found.relu_()

    @torch.no_grad()
    def step() -> list[torch.Tensor]:
        first = predict(0, x)  # what is given predicts the first hidden layer: it does not move
        values = [first.clone()]
        for i in range(1, last):
            values.append(predict(i, values[-1]))
        for t in range(problem.steps + 1):
            predictions = [first, *(predict(i, values[i - 1]) for i in range(1, last + 1))]
            errors = [v - p for v, p in zip([*values, y], predictions, strict=True)]
            slopes = [e * (p > 0) for e, p in zip(errors[:-1], predictions[:-1], strict=True)] + [errors[-1]]
            if t < problem.steps:
                for i, value in enumerate(values):
                    value.add_((slopes[i + 1] @ weights[i + 1]).sub_(errors[i]), alpha=problem.rate)
        pairs = zip(slopes, [x, *values], strict=True)
        return [g for s, v in pairs for g in ((s.t() @ v).neg_(), s.sum(0).neg_())]

    return step, lambda gradients: [g.numpy() for g in gradients]


if __name__ == "__main__":
    serve(build)
