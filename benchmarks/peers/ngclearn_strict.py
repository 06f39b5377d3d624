"""ngc-learn: rate cells, Gaussian error cells and synapses, wired as its museum's discriminative network.

A rate cell sends relu(z) of its value z: the values are those in front of the nonlinearities.
"""

import itertools

import jax
import jax.numpy as jnp
from ngclearn import Context, MethodProcess
from ngclearn.components import DenseSynapse, GaussianErrorCell, HebbianSynapse, RateCell
from ngclearn.utils.distribution_generator import DistributionGenerator
from worker import Arrays, Problem, Step, serve


def build(problem: Problem) -> tuple[Step, Arrays]:
    """Synapses for the predictions, their transposes for the messages, and one process for each stage."""
    batch, last = len(problem.x), len(problem.weights) - 1
    sizes = [problem.x.shape[1], *(len(w) for w in problem.weights)]
    nothing, still = DistributionGenerator.constant(0.0), {"tau_m": 0.0, "act_fx": "identity"}
    moving = {"tau_m": 1 / problem.rate, "act_fx": "relu", "integration_type": "euler"}
    with Context("network"):
        cells = [
            RateCell(f"z{i}", n, batch_size=batch, **(still if i in (0, last + 1) else moving))
            for i, n in enumerate(sizes)
        ]
        errors, synapses, transposes = [], [], {}
        for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
            synapse = HebbianSynapse(
                f"W{i}",
                shape=(fan_in, fan_out),
                weight_init=nothing,
                bias_init=nothing,
                w_bound=0.0,
                sign_value=-1.0,
                batch_size=batch,
            )
            synapse.weights.set(jnp.asarray(problem.weights[i].T))
            synapse.biases.set(jnp.asarray(problem.biases[i])[None])
            error = GaussianErrorCell(f"e{i}", n_units=fan_out, batch_size=batch)
            cells[i].zF >> synapse.inputs
            synapse.outputs >> error.mu
            cells[i + 1].z >> error.target
            cells[i].zF >> synapse.pre
            error.dmu >> synapse.post
            if i:
                transposes[i] = DenseSynapse(f"E{i}", shape=(fan_out, fan_in), weight_init=nothing, batch_size=batch)
                transposes[i].weights.set(jnp.asarray(problem.weights[i]))
                error.dmu >> transposes[i].inputs
                transposes[i].outputs >> cells[i].j
            if i < last:
                error.dtarget >> cells[i + 1].j_td
            errors.append(error)
            synapses.append(synapse)
        look = MethodProcess("look")
        for cell in (cells[0], cells[-1]):
            look = look >> cell.advance_state
        for part in (*synapses, *errors):
            look = look >> part.advance_state
        move = MethodProcess("move")
        for part in (*transposes.values(), *cells[1:-1], *synapses, *errors):
            move = move >> part.advance_state
        learn = MethodProcess("learn")
        for synapse in synapses:
            learn = learn >> synapse.calc_update
    x, y = jnp.asarray(problem.x), jnp.asarray(problem.y)

    @jax.jit
    def forward(weights, biases, x):  # type: ignore[no-untyped-def]
        values = []
        for i, (w, b) in enumerate(zip(weights[:-1], biases[:-1], strict=True)):
            values.append((jax.nn.relu(values[-1]) if i else x) @ w + b)
        return values, [jax.nn.relu(v) for v in values]

    def step() -> list[jax.Array]:
        values, active = forward([s.weights.get() for s in synapses], [s.biases.get() for s in synapses], x)
        cells[0].j.set(x)
        cells[-1].j.set(y)
        for cell, value, sent in zip(cells[1:-1], values, active, strict=True):
            cell.z.set(value)
            cell.zF.set(sent)
        look.run(t=0.0, dt=1.0)
        for t in range(problem.steps):
            move.run(t=float(t), dt=1.0)
        learn.run()
        return jax.block_until_ready([g for s in synapses for g in (s.dWeights.get().T, s.dBiases.get()[0])])

    return step, lambda found: found


if __name__ == "__main__":
    serve(build)
