"""FabricPC: linear nodes with Gaussian energies, `InferenceSGD`, and its local weight gradients, under one `jit`."""

import itertools

import jax
import jax.numpy as jnp
from fabricpc.core.activations import IdentityActivation, ReLUActivation
from fabricpc.core.inference import InferenceSGD, run_inference
from fabricpc.core.learning import compute_local_weight_gradients
from fabricpc.core.topology import Edge
from fabricpc.graph_assembly import TaskMap, graph
from fabricpc.graph_initialization import initialize_params
from fabricpc.graph_initialization.state_initializer import initialize_graph_state
from fabricpc.nodes import IdentityNode, Linear
from worker import Arrays, Problem, Step, serve


def build(problem: Problem) -> tuple[Step, Arrays]:
    """A node a layer; its gradients are those of the batch's sum."""
    batch, last = len(problem.x), len(problem.weights) - 1
    nodes = [IdentityNode(shape=(problem.x.shape[1],), name="layer")]
    for i, weight in enumerate(problem.weights):
        activation = IdentityActivation() if i == last else ReLUActivation()
        nodes.append(Linear(shape=(weight.shape[0],), name=f"layer{i}", activation=activation))
    structure = graph(
        nodes=nodes,
        edges=[Edge(source=a, target=b.slot("in")) for a, b in itertools.pairwise(nodes)],
        task_map=TaskMap(x=nodes[0], y=nodes[-1]),
        inference=InferenceSGD(eta_infer=problem.rate, infer_steps=problem.steps),
    )
    params, key = initialize_params(structure, jax.random.PRNGKey(0)), jax.random.PRNGKey(1)
    table = dict(params.nodes)
    for i, (weight, bias) in enumerate(zip(problem.weights, problem.biases, strict=True)):
        (edge,) = table[f"layer{i}"].weights
        shape = table[f"layer{i}"].biases["b"].shape
        table[f"layer{i}"] = table[f"layer{i}"]._replace(
            weights={edge: jnp.asarray(weight.T)}, biases={"b": jnp.asarray(bias).reshape(shape)}
        )
    params = params._replace(nodes=table)
    clamps = {nodes[0].name: jnp.asarray(problem.x), nodes[-1].name: jnp.asarray(problem.y)}

    @jax.jit
    def gradients(params, clamps, key):  # type: ignore[no-untyped-def]
        state = initialize_graph_state(structure, batch, key, clamps=clamps, params=params)
        state = run_inference(params, state, clamps, structure)
        return compute_local_weight_gradients(params, state, structure)

    def arrays(found):  # type: ignore[no-untyped-def]
        layers = [found.nodes[f"layer{i}"] for i in range(last + 1)]
        return [g for n in layers for g in (next(iter(n.weights.values())).T, n.biases["b"].reshape(-1))]

    return lambda: jax.block_until_ready(gradients(params, clamps, key)), arrays


if __name__ == "__main__":
    serve(build)
