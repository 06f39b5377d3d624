"""Gradient descent on one network by backpropagation and by predictive coding, with everything else equal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import pccompile
from paper.settings import Setting

BACKPROP = "backpropagation"
PREDICTIVE = "predictive coding"
TWICE = "predictive coding, each update applied twice"
ORDERED = "predictive coding, its steps at each time step"
Batch = tuple[Tensor, Tensor]
Curve = list[dict[str, float]]


@dataclass(frozen=True)
class Experiment:
    """A network and its data.

    build: the network, drawn by torch's generator. batches(seed): batches for training, without end. test: batches to
    test on. loss: of outputs and targets, summed. correct: how many of the targets are met, and of how many. variants:
    the ways of learning that are compared.
    """

    name: str
    title: str
    origin: str
    setting: Setting
    build: Callable[[], nn.Module]
    batches: Callable[[int], Iterator[Batch]]
    test: Iterable[Batch]
    loss: Callable[[Tensor, Tensor], Tensor]
    correct: Callable[[Tensor, Tensor], tuple[int, int]]
    variants: tuple[str, ...]


@dataclass
class Learner:
    """One network that learns in one way from seed to seed, so that what was compiled is compiled once."""

    experiment: Experiment
    variant: str
    model: nn.Module = field(init=False)
    compiled: dict[int, Any] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.model = self.experiment.build()

    def forward(self, x: Tensor) -> Tensor:
        """The outputs, whose `backward()` is the variant's."""
        outputs: Tensor = (self.model if self.variant == BACKPROP else self.predictive(x))(x)
        return outputs

    def predictive(self, x: Tensor) -> Any:
        """The model in predictive-coding form for inputs of this length in time."""
        times = x.shape[1] if self.variant == ORDERED else 1
        if times not in self.compiled:
            setting = self.experiment.setting
            self.compiled[times] = pccompile.compile(
                self.model,
                (x,),
                algorithm="fixed-prediction",
                granularity="layer",
                steps=setting.steps * times,
                rate=setting.rate,
                check=False,
            )
        return self.compiled[times]

    def run(self, seed: int) -> Curve:
        """Train from a fresh draw, the same for all variants, and return the curve."""
        torch.manual_seed(seed)
        self.model.load_state_dict(self.experiment.build().state_dict())
        setting, curve = self.experiment.setting, list[dict[str, float]]()
        optimizer = torch.optim.SGD(self.model.parameters(), setting.learning_rate)
        every = max(1, setting.updates // setting.evaluations)
        total, seen = 0.0, 0
        for update, (x, y) in zip(range(1, setting.updates + 1), self.experiment.batches(seed), strict=False):
            if update == 1:
                curve.append({"update": 0, "accuracy": self.accuracy(), "divergence": self.divergence(x, y)})
            optimizer.zero_grad()
            value = self.experiment.loss(self.forward(x), y)
            value.backward()
            nn.utils.clip_grad_value_(self.model.parameters(), setting.clip)
            for _ in range(2 if self.variant == TWICE else 1):
                optimizer.step()
            total, seen = total + value.item(), seen + len(x)
            if update % every == 0:
                divergence = self.divergence(x, y)
                point = {"loss": total / seen, "accuracy": self.accuracy(), "divergence": divergence}
                curve.append({"update": update, **point})
                total, seen = 0.0, 0
        return curve

    def accuracy(self) -> float:
        """The part of the held-out targets that is met."""
        hits, all_ = 0, 0
        with torch.no_grad():
            for x, y in self.experiment.test:
                met, of = self.experiment.correct(self.model(x), y)
                hits, all_ = hits + met, all_ + of
        return hits / all_

    def divergence(self, x: Tensor, y: Tensor) -> float:
        """‖g − g_autograd‖ / ‖g_autograd‖ over all parameters, at the weights of the moment, before clipping."""
        parameters = list(self.model.parameters())
        mine = torch.autograd.grad(self.experiment.loss(self.forward(x), y), parameters)
        true = torch.autograd.grad(self.experiment.loss(self.model(x), y), parameters)
        norm = torch.cat([g.flatten() for g in true]).norm()
        return float(torch.cat([(a - b).flatten() for a, b in zip(mine, true, strict=True)]).norm() / norm)


def needs(experiment: Experiment) -> dict[str, Any]:
    """What inference as the paper writes it, step by step, needs of a substrate."""
    x, _ = next(experiment.batches(0))
    pc = pccompile.compile(
        experiment.build(),
        (x,),
        algorithm="fixed-prediction",
        granularity="layer",
        steps=experiment.setting.steps,
        rate=experiment.setting.rate,
        lowering="relax",
        check=False,
    )
    found = pc.locality().as_dict()
    turns = [t["hops"] for t in found["turns"]]
    return {"local": found["local"], "hops": max(turns), "longest": found["longest"], "kept": list(found["kept"])}


def compare(experiment: Experiment, say: Callable[[str], None]) -> dict[str, Any]:
    """Every variant with every seed: curves and seconds of CPU, and where the numbers are from."""
    results: dict[str, Any] = {"title": experiment.title, "data": experiment.origin, "setting": experiment.setting.text}
    results["needs"] = needs(experiment)
    for variant in experiment.variants:
        learner, curves, start = Learner(experiment, variant), [], time.process_time()
        for seed in range(experiment.setting.seeds):
            curves.append(learner.run(seed))
            say(f"{experiment.name}: {variant}, seed {seed}: accuracy {100 * curves[-1][-1]['accuracy']:.2f} %")
        results.setdefault("variants", {})[variant] = curves
        results.setdefault("seconds", {})[variant] = round((time.process_time() - start) / len(curves), 1)
    return results
