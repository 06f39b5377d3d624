"""Deepity's SimplePCN, driven by the functions of its network and layers.

An activation behind a linear layer acts on what that layer reads, so that the values are those in front of the
nonlinearities. Its own `train_step` begins at values of zero and learns by the errors from before the last move; here
it begins at the forward pass, and looks once more before it learns.
"""

import numpy as np
from deepity import Linear, ReLU, SimplePCN
from worker import Array, Arrays, Problem, Step, serve


def build(problem: Problem) -> tuple[Step, Arrays]:
    """Gradients are what its weights move by, times the batch: it has no others."""
    batch, last = len(problem.x), len(problem.weights) - 1
    parts = []
    for i, weight in enumerate(problem.weights):
        parts += [Linear(weight.shape[1], weight.shape[0]), *([ReLU()] if i else [])]
    net = SimplePCN(*parts, batch_size=batch, device="cpu")
    net.configure(learning_rate=0.0, inference_rate=problem.rate, lmbda=0.0, optimizer="SGD")
    layers = list(net.layers)
    for layer, weight, bias in zip(layers[: last + 1], problem.weights, problem.biases, strict=True):
        layer.set_weights(weight)
        layer.set_biases(bias)

    def inference_rate(size: float) -> None:
        for layer in layers:
            layer.set_inference_rate(size)

    def step() -> None:
        net.clamp_input(problem.x)
        layers[-1].unclamp_state()
        net.project_forward()
        layers[-1].clamp_state(problem.y)
        for _ in range(problem.steps):
            net.calculate_state(False)
            net.update_state()
        inference_rate(0.0)
        net.calculate_state(False)
        net.update_state()
        inference_rate(problem.rate)
        net.update_weights()

    def arrays(_: None) -> list[Array]:
        for layer in layers:
            layer.set_learning_rate(float(batch))
        step()
        moved = [p for layer in layers[: last + 1] for p in (np.array(layer.weights), np.array(layer.biases))]
        for layer, weight, bias in zip(layers[: last + 1], problem.weights, problem.biases, strict=True):
            layer.set_weights(weight)
            layer.set_biases(bias)
        for layer in layers:
            layer.set_learning_rate(0.0)  # the same work, from the same weights again
        return [before - after for before, after in zip(problem.parameters, moved, strict=True)]

    return step, arrays


if __name__ == "__main__":
    serve(build)
