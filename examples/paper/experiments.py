"""The four experiments: the scalar function, the CNN on images, the RNN on names, the LSTM on Shakespeare."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import pccompile
from paper.data import LETTERS, cifar10, names, shakespeare, svhn
from paper.networks import LongShortTerm, Recurrent, Scalar, convolutional
from paper.settings import SCALAR, Setting
from paper.training import BACKPROP, ORDERED, PREDICTIVE, TWICE, Batch, Experiment


def scalar() -> dict[str, Any]:
    """The gradient at v₀ after so many steps at such a rate, minus autograd's; by rate."""
    theta, target = (torch.tensor(SCALAR[k], dtype=torch.float64) for k in ("theta", "target"))
    model = Scalar(SCALAR["v0"])
    (true,) = torch.autograd.grad(halved_square(model(theta), target), model.v0)
    divergence = {}
    for rate in SCALAR["rates"]:
        errors = []
        for steps in SCALAR["steps"]:
            pc = pccompile.compile(
                model, (theta,), algorithm="fixed-prediction", granularity="op", steps=steps, rate=rate, check=False
            )
            (gradient,) = torch.autograd.grad(halved_square(pc(theta), target), model.v0)
            errors.append(float(gradient - true))
        divergence[f"{rate:g}"] = errors
    setting = "v₀ = 5, θ = 2, target 1, float64, a vertex an operation (3 edges from the output to θ v₀)"
    return {
        "title": "Scalar function",
        "setting": setting,
        "gradient": float(true),
        "steps": list(SCALAR["steps"]),
        "divergence": divergence,
    }


def halved_square(output: Tensor, target: Tensor) -> Tensor:
    """½‖target − output‖², summed."""
    return 0.5 * (target - output).pow(2).sum()


def images(folder: Path, setting: Setting, dataset: str) -> Experiment:
    """The CNN on SVHN or CIFAR-10, with the summed square of the outputs' distance to one-hot labels."""
    load = {"svhn": svhn, "cifar10": cifar10}[dataset]
    data = load(folder, setting.examples, setting.held_out)

    def batches(seed: int) -> Iterator[Batch]:
        shuffle = torch.Generator().manual_seed(seed)
        while True:
            for chosen in torch.randperm(len(data.x), generator=shuffle).split(setting.batch):
                if len(chosen) == setting.batch:
                    yield data.x[chosen], F.one_hot(data.y[chosen], 10).float()

    test = list(zip(data.x_test.split(500), data.y_test.split(500), strict=True))

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return (output - target).pow(2).sum()

    def correct(output: Tensor, label: Tensor) -> tuple[int, int]:
        return int((output.argmax(1) == label).sum()), len(label)

    variants = (BACKPROP, PREDICTIVE, TWICE)
    title = f"Convolutional network on {dataset.upper().replace('CIFAR10', 'CIFAR-10')}"
    return Experiment("cnn", title, data.origin, setting, convolutional, batches, test, loss, correct, variants)


def name_origins(folder: Path, setting: Setting) -> Experiment:
    """The RNN that tells the nationality of a surname; every tenth name of each is held out."""
    data = {k: [n[: setting.length] for n in lines] for k, lines in names(folder).items()}
    kinds = list(data)
    train = {k: [n for i, n in enumerate(lines) if i % 10] for k, lines in data.items()}
    held = {k: lines[::10] for k, lines in data.items()}

    def drawn(lines: dict[str, list[str]], choose: random.Random) -> tuple[str, int]:
        kind = choose.choice(kinds)
        return choose.choice(lines[kind]), kinds.index(kind)

    def letters(name: str) -> Tensor:
        return F.one_hot(torch.tensor([[LETTERS.index(c) for c in name]]), len(LETTERS)).float()

    def batches(seed: int) -> Iterator[Batch]:
        choose = random.Random(seed)
        while True:
            name, kind = drawn(train, choose)
            yield letters(name), F.one_hot(torch.tensor([kind]), len(kinds)).float()

    choose = random.Random("held out")
    chosen = [drawn(held, choose) for _ in range(setting.held_out)]
    test = [(letters(name), torch.tensor([kind])) for name, kind in chosen]

    def correct(output: Tensor, label: Tensor) -> tuple[int, int]:
        return int((output.argmax(1) == label).sum()), len(label)

    n = sum(map(len, train.values()))
    origin = f"{n:,} surnames of {len(kinds)} nationalities, drawn evenly by nationality; tested on {setting.held_out}"
    return Experiment(
        "rnn",
        "Recurrent network on names",
        origin,
        setting,
        lambda: Recurrent(len(LETTERS), setting.hidden, len(kinds)),
        batches,
        test,
        halved_square,
        correct,
        (BACKPROP, PREDICTIVE, ORDERED),
    )


def next_character(folder: Path, setting: Setting) -> Experiment:
    """The LSTM that predicts the next character of Shakespeare at each time; the end of the text is held out."""
    text = shakespeare(folder)
    known = sorted(set(text))
    codes = torch.tensor([known.index(c) for c in text[: setting.examples + setting.held_out + 1]])
    windows = codes.unfold(0, setting.length + 1, setting.length)
    held_out = windows[-(setting.held_out // setting.length) :]
    train = windows[: len(windows) - len(held_out)]

    def batches(seed: int) -> Iterator[Batch]:
        shuffle = torch.Generator().manual_seed(seed)
        while True:
            for chosen in torch.randperm(len(train), generator=shuffle).split(setting.batch):
                if len(chosen) == setting.batch:
                    yield train[chosen, :-1], F.one_hot(train[chosen, 1:], len(known)).float()

    def correct(output: Tensor, label: Tensor) -> tuple[int, int]:
        return int((output.argmax(-1) == label).sum()), label.numel()

    test = [(part[:, :-1], part[:, 1:]) for part in held_out.split(64)]
    n, m = train[:, 1:].numel(), held_out[:, 1:].numel()
    origin = f"tinyshakespeare, {n:,} characters to predict for training and {m:,} for testing"
    return Experiment(
        "lstm",
        "LSTM on Shakespeare, next character",
        origin,
        setting,
        lambda: LongShortTerm(len(known), setting.hidden),
        batches,
        test,
        halved_square,
        correct,
        (BACKPROP, PREDICTIVE, ORDERED),
    )
