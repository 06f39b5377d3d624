"""From a torch module to SystemVerilog that computes its gradients and learns, run by iverilog where it is installed.

python examples/netlist/to_verilog.py [folder]
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from pccompile.backends.netlist import NetlistOptions
from pccompile.backends.netlist.export.verilog import EXPORTER
from pccompile.backends.netlist.simulate.formats import Formats
from pccompile.backends.netlist.transforms.quantise import quantise
from pccompile.pipeline import compile_netlist


def main(folder: Path) -> None:
    """Write the circuit, then show how its outputs approach their targets."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, t = torch.randn(4, 1, 4).double(), 0.5 * torch.randn(4, 1, 3).double()

    # The circuit: value units beside error units, plasticity at every parameter; 15 ticks to settle, one to learn.
    net = compile_netlist(model, (x[0],), options=NetlistOptions(rate=0.25, eta=0.125, ticks=15), name="small")
    presentation = net.presentation(x, t)

    # Fixed point: a format for each population and parameter, from the ranges seen while it settles.
    fixed = quantise(net, weight_bits=12, state_bits=16, presentations=[presentation])

    # Hardware for every synapse, and a testbench that shows the four samples in turn and compares with the simulator.
    ticks = 100 * 16
    files = EXPORTER.emit(fixed, folder, form="parallel", presentation=presentation, ticks=ticks)
    print(*(f"{file}: {len(file.read_text().splitlines())} lines" for file in files), sep="\n")

    if shutil.which("iverilog") is None:
        sys.exit("iverilog is not installed: apt install iverilog")
    sources = [file.name for file in files if file.suffix == ".sv"]
    subprocess.run(["iverilog", "-g2012", "-o", "sim", *sources], cwd=folder, check=True)
    print(subprocess.run(["vvp", "-n", "sim"], cwd=folder, check=True, capture_output=True, text=True).stdout, end="")

    # Of each tick: the outputs, the errors (output layer first), the parameters.
    words = [int(w, 16) for w in (folder / "pc_small.trace.hex").read_text().split()]
    tick, scale = len(words) // ticks, 2.0 ** Formats.of(fixed.spec, fixed.tensors).states["n2.e"][1]
    errors = [[(w ^ 1 << 31) - (1 << 31) for w in words[i + 3 : i + 6]] for i in range(0, len(words), tick)]
    for round_ in (0, 1, 5, 24):
        last = [errors[(4 * round_ + i) * 16 + 15] for i in range(4)]
        print(f"after {round_:2} rounds: ½ |t − y|² = {sum(e * e for s in last for e in s) / scale**2 / 2:.5f}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/verilog"))
