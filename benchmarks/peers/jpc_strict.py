"""JPC: its energy, its gradients in activities and parameters, an optax step in the activities, under one `jit`."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jpc
import optax
from worker import Arrays, Problem, Step, serve


def build(problem: Problem) -> tuple[Step, Arrays]:
    """A callable a layer. Energies are means over the batch there: the rate is a batch larger, and so are gradients."""
    batch, last = len(problem.x), len(problem.weights) - 1
    model = []
    for i, (weight, bias) in enumerate(zip(problem.weights, problem.biases, strict=True)):
        linear = eqx.nn.Linear(weight.shape[1], weight.shape[0], key=jax.random.PRNGKey(i))
        linear = eqx.tree_at(lambda m: (m.weight, m.bias), linear, (jnp.asarray(weight), jnp.asarray(bias)))
        activation = eqx.nn.Lambda(lambda v: v) if i == last else eqx.nn.Lambda(jax.nn.relu)
        model.append(eqx.nn.Sequential([linear, activation]))
    x, y, optimizer = jnp.asarray(problem.x), jnp.asarray(problem.y), optax.sgd(problem.rate * batch)

    @eqx.filter_jit
    def gradients(model, x, y):  # type: ignore[no-untyped-def]
        activities = jpc.init_activities_with_ffwd(model=model, input=x)
        state = optimizer.init(activities)
        for _ in range(problem.steps):
            moved = jpc.update_pc_activities((model, None), activities, optimizer, state, y, input=x)
            activities, state = moved["activities"], moved["opt_state"]
        return jpc.compute_pc_param_grads((model, None), activities, y, x=x)

    def arrays(found):  # type: ignore[no-untyped-def]
        return [batch * g for layer in found[0] for g in (layer.layers[0].weight, layer.layers[0].bias)]

    return lambda: jax.block_until_ready(eqx.filter(gradients(model, x, y), eqx.is_array)), arrays


if __name__ == "__main__":
    serve(build)
