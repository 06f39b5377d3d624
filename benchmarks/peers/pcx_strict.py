"""PCX: vodes behind each activation, an optax step in their values, under one `jit`, as its first tutorial has it."""

import jax
import jax.numpy as jnp
import optax
import pcx as px
import pcx.functional as pxf
import pcx.nn as pxnn
import pcx.predictive_coding as pxc
import pcx.utils as pxu
from worker import Arrays, Problem, Step, serve

VALUES = pxc.VodeParam | pxc.VodeParam.Cache


class Model(pxc.EnergyModule):
    """A perceptron with ReLU and the squared error at every vode."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.layers = [pxnn.Linear(w.shape[1], w.shape[0]) for w in problem.weights]
        for layer, weight, bias in zip(self.layers, problem.weights, problem.biases, strict=True):
            layer.nn.weight.set(jnp.asarray(weight))
            layer.nn.bias.set(jnp.asarray(bias))
        self.vodes = [pxc.Vode() for _ in problem.weights]
        self.vodes[-1].h.frozen = True

    def __call__(self, x, y):  # type: ignore[no-untyped-def]
        for vode, layer in zip(self.vodes[:-1], self.layers[:-1], strict=True):
            x = vode(jax.nn.relu(layer(x)))
        self.vodes[-1](self.layers[-1](x))
        if y is not None:
            self.vodes[-1].set("h", y)
        return self.vodes[-1].get("u")


@pxf.vmap(pxu.M(VALUES).to((None, 0)), in_axes=(0, 0), out_axes=0)
def forward(x, y, *, model):  # type: ignore[no-untyped-def]
    return model(x, y)


@pxf.vmap(pxu.M(VALUES).to((None, 0)), in_axes=(0,), out_axes=(None, 0), axis_name="batch")
def energy(x, *, model):  # type: ignore[no-untyped-def]
    out = model(x, None)
    return jax.lax.psum(model.energy().sum(), "batch"), out


def build(problem: Problem) -> tuple[Step, Arrays]:
    """Energies are sums over the batch, and so are gradients."""
    px.RKG.seed(0)
    model, x, y = Model(problem), jnp.asarray(problem.x), jnp.asarray(problem.y)
    moving = pxu.M_hasnot(pxc.VodeParam, frozen=True)
    optimizer = pxu.Optim(lambda: optax.sgd(problem.rate))

    @pxf.jit()
    def gradients(x, y, *, model, optimizer):  # type: ignore[no-untyped-def]
        model.train()
        with pxu.step(model, pxc.STATUS.INIT, clear_params=pxc.VodeParam.Cache):
            forward(x, y, model=model)
        optimizer.init(moving(model))
        for _ in range(problem.steps):
            with pxu.step(model, clear_params=pxc.VodeParam.Cache):
                _, found = pxf.value_and_grad(moving.to([False, True]), has_aux=True)(energy)(x, model=model)
            optimizer.step(model, found["model"])
        optimizer.clear()
        with pxu.step(model, clear_params=VALUES):
            _, found = pxf.value_and_grad(pxu.M(pxnn.LayerParam).to([False, True]), has_aux=True)(energy)(
                x, model=model
            )
        return [p.get() for layer in found["model"].layers for p in (layer.nn.weight, layer.nn.bias)]

    return lambda: jax.block_until_ready(gradients(x, y, model=model, optimizer=optimizer)), lambda found: found


if __name__ == "__main__":
    serve(build)
