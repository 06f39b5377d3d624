"""Strict inference as one would write it in JAX: one jitted function, the steps in a `fori_loop`."""

import jax
import jax.numpy as jnp
from worker import Arrays, Problem, Step, serve


def build(problem: Problem) -> tuple[Step, Arrays]:
    """The rules by hand, no derivative taken by JAX."""
    layers = [(jnp.asarray(w), jnp.asarray(b)) for w, b in zip(problem.weights, problem.biases, strict=True)]
    x, y = jnp.asarray(problem.x), jnp.asarray(problem.y)

    def predict(layers, values):  # type: ignore[no-untyped-def]
        found = [v @ w.T + b for v, (w, b) in zip(values, layers, strict=True)]
        return [jax.nn.relu(p) for p in found[:-1]] + found[-1:]

    def look(layers, x, y, values):  # type: ignore[no-untyped-def]
        predictions = predict(layers, [x, *values])
        errors = [v - p for v, p in zip([*values, y], predictions, strict=True)]
        slopes = [e * (p > 0) for e, p in zip(errors[:-1], predictions[:-1], strict=True)] + errors[-1:]
        return errors, slopes

    @jax.jit
    def gradients(layers, x, y):  # type: ignore[no-untyped-def]
        values = []
        for w, b in layers[:-1]:
            values.append(jax.nn.relu((values[-1] if values else x) @ w.T + b))

        def move(_, values):  # type: ignore[no-untyped-def]
            errors, slopes = look(layers, x, y, values)
            pulls = [s @ w for s, (w, _) in zip(slopes[1:], layers[1:], strict=True)]
            return [v + problem.rate * (p - e) for v, p, e in zip(values, pulls, errors[:-1], strict=True)]

        values = jax.lax.fori_loop(0, problem.steps, move, values)
        _, slopes = look(layers, x, y, values)
        return [g for s, v in zip(slopes, [x, *values], strict=True) for g in (-(s.T @ v), -s.sum(0))]

    return lambda: jax.block_until_ready(gradients(layers, x, y)), lambda found: found


if __name__ == "__main__":
    serve(build)
