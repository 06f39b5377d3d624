"""What it costs at each call to notice that a model has changed: µs a call and a module, and a whole training step.

python benchmarks/guards.py [--repeats N]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from models import BENCHES
from torch import nn
from transformers import BertConfig, BertModel

from pccompile.runtime.model_state import ModelState, modules


class Bottleneck(nn.Module):
    """A block of ResNet-50."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU()
        first = nn.Conv2d(channels, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
        self.downsample = nn.Sequential(*first) if channels != 4 * width else None


def resnet50() -> nn.Module:
    """The modules of ResNet-50."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3)]
    channels = 64
    for width, depth in ((64, 3), (128, 4), (256, 6), (512, 3)):
        blocks = [Bottleneck(channels if i == 0 else 4 * width, width, 2 if i == 0 else 1) for i in range(depth)]
        layers.append(nn.Sequential(*blocks))
        channels = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "MLP": BENCHES["mlp"].build,
    "ResNet-50": resnet50,
    "BERT-base": lambda: BertModel(BertConfig()),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=200)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    print("| network | modules | µs a call | µs a module | ms to describe it anew |")
    print("|---|---|---|---|---|")
    for name, build in NETWORKS.items():
        model = build()
        count = len(list(modules(model)))
        start = time.thread_time()
        state = ModelState(model)
        anew = time.thread_time() - start
        call = measured(state.holds, repeats)
        assert state.holds()
        print(f"| {name} | {count} | {1e6 * call:.1f} | {1e6 * call / count:.2f} | {1e3 * anew:.1f} |", flush=True)


def measured(run: Callable[[], object], repeats: int, calls: int = 20) -> float:
    """The median seconds of CPU that a call takes; reading the clock costs half a microsecond, so `calls` share it."""
    times = []
    for _ in range(repeats):
        start = time.thread_time()
        for _ in range(calls):
            run()
        times.append((time.thread_time() - start) / calls)
    return statistics.median(times)


if __name__ == "__main__":
    main()
