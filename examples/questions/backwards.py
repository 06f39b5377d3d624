"""Is information not still sent backwards? What feedback reads, and a circuit whose feedback has weights of its own."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import pccompile


def main() -> None:
    """What messages read; then backward weights that begin at random and come to match while the circuit learns."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x = torch.randn(32, 4, dtype=torch.float64)
    y = torch.sin(2 * x[:, :3])
    pc = pccompile.compile(model, (x,), algorithm="fixed-prediction", lowering="relax", check=False)
    print("\n".join(line for line in str(pc.locality()).splitlines() if line.startswith(("hops", "transport"))))
    tied = pccompile.compile(model, (x[:1],), backend="netlist", eta=2.0**-8, rate=0.5, ticks=24)
    untied = tied.untie("kolen-pollack", init="random", decay=0.1, seed=0)
    print("\nlearning ticks   squared error, shared weights   own feedback   ‖feedback − W‖ / ‖W‖ of the two layers")
    circuits = [net.session(replicas=len(x)) for net in (tied, untied)]
    for circuit in circuits:
        circuit.present(x[:, None].numpy(), y[:, None].numpy())
    for tick in range(241):
        if tick % 80 == 0:
            off = []
            for circuit in circuits:
                circuit.run()
                off.append(float(((next(iter(circuit.outputs.values()))[:, 0] - y.numpy()) ** 2).sum()))
            params = circuits[1].params
            gaps = [
                np.linalg.norm(params[f"{w}.feedback"] - params[w]) / np.linalg.norm(params[w])
                for w in ("2.weight", "4.weight")
            ]
            print(f"{tick:14} {off[0]:31.2f} {off[1]:14.2f} {gaps[0]:20.3f} {gaps[1]:8.3f}")
        for circuit in circuits:
            circuit.run(learn=True)


if __name__ == "__main__":
    main()
