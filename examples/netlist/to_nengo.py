"""From a torch module to a Nengo model that computes its gradients, and then learns.

pip install 'pccompile[nengo]'
python examples/netlist/to_nengo.py
"""

from __future__ import annotations

import nengo
import numpy as np
import torch
from torch import nn

from pccompile.backends.netlist import NetlistOptions
from pccompile.backends.netlist.export.nengo import from_nengo
from pccompile.pipeline import compile_netlist


def main() -> None:
    """Compare error units with autograd, then let the circuit learn."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, t = torch.randn(1, 4).double(), torch.randn(1, 3).double()

    # The circuit: value units beside error units, and plasticity at every parameter.
    net = compile_netlist(model, (x,), options=NetlistOptions(loss="squared-error", rate=0.125, ticks=200))
    print(f"{net.spec.name}: {len(net.spec.populations)} populations, {len(net.spec.projections)} projections")

    # In Nengo, a tick a step: 200 steps to settle, one to learn.
    network = net.to_nengo(x, t, learning="pes")
    with nengo.Simulator(network, dt=0.001, progress_bar=False) as simulator:
        simulator.run_steps(201, progress_bar=False)
        errors = {name: simulator.data[probe][-1] for name, probe in network.watched.items()}
        learned = from_nengo(net, network, simulator)

    # Autograd's gradient of ½ |t − y|² at each value; an error unit is minus that.
    values = [model[0](x)]
    values += [model[1](values[0])]
    values += [model[2](values[1])]
    weight = net.tensors["0.weight"]
    gradients = torch.autograd.grad(0.5 * (t - values[2]).square().sum(), (*values, model[0].weight))
    for name, gradient in zip(("n0.e", "n1.e", "n2.e"), gradients[:3], strict=True):
        difference = np.abs(errors[name] + gradient.numpy().ravel()).max() / gradient.abs().max()
        print(f"{name}: differs from −∂L/∂v by {difference:.1e}")
    step = np.abs(learned.tensors["0.weight"] - weight + gradients[3].numpy() / 16).max()
    print(f"0.weight: learned, differs from a step of gradient descent by {step:.1e}")

    # On and on: 300 presentations of 8 ticks.
    network = net.to_nengo(x, t, learning="pes", ticks=7)
    with nengo.Simulator(network, dt=0.001, progress_bar=False) as simulator:
        simulator.run_steps(300 * 8, progress_bar=False)
    missed = np.abs(simulator.data[network.watched["n2.e"]]).max(axis=1)
    print(f"|t − y|: {missed[0]:.2f} at first, {missed[-1]:.1e} after {len(missed) // 8} presentations")


if __name__ == "__main__":
    main()
