"""Does it go unstable when run to convergence? Free energy near the measured bound on the rate, after 400 steps."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

import pccompile


def loss(output: Tensor, target: Tensor) -> Tensor:
    """Half the squared error, summed."""
    return 0.5 * (output - target).pow(2).sum()


def main() -> None:
    """The bound that is measured on the batch, and what happens on its two sides."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 3)).double()
    x, y = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    pc = pccompile.compile(model, (x,), algorithm="strict", loss=loss, check=False)
    spectrum = pc.analyse(x, target=y, kinds=("spectrum",)).spectrum
    assert spectrum is not None
    bound = spectrum.rates["strict"]
    print(f"strict: 2 / λmax(H) = {bound:.3f}")
    for part in (0.25, 0.5, 0.95, 1.05, 1.5):
        trace = pc.infer(x, target=y, steps=400, rate=part * bound)
        energy = trace.free_energy
        change = abs(float(energy[-1] - energy[-2]))
        words = "at rest" if change < 1e-12 else "not at rest"
        words = words if trace.settles else "ends higher than it began, or not finite"
        print(f"  {part:.2f} × bound: free energy {float(energy[0]):.4f} → {float(energy[-1]):.4g}, {words}")
    print("fixed-prediction: 2, whatever the weights (here 30 times as large, with ReLU)")
    large = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3)).double()
    with torch.no_grad():
        for p in large.parameters():
            p.mul_(30)
    (true, *_) = torch.autograd.grad(loss(large(x), y), list(large.parameters()))
    for rate in (0.1, 1.0, 1.9, 2.1):
        try:
            fixed = pccompile.compile(large, (x,), algorithm="fixed-prediction", steps=400, rate=rate, check=False)
        except pccompile.CompileError as e:
            print(f"  rate {rate} is refused: {e.problems[0].what}")
            continue
        (mine, *_) = torch.autograd.grad(loss(fixed(x), y), list(large.parameters()))
        gap = float((mine - true).norm() / true.norm())
        print(f"  rate {rate}: relative difference to backpropagation {'below 1e-6' if gap < 1e-6 else f'{gap:.0e}'}")


if __name__ == "__main__":
    main()
