"""A recorder within trainers of other packages: every number that it measures is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

import pccompile
from integrations.test_trainers import Net, data, fitted, gpt

pytestmark = pytest.mark.slow


def compiled() -> tuple[Any, Tensor, Tensor]:
    torch.manual_seed(0)
    x, y = data()[:8]
    return pccompile.compile(Net(), (x,)), x, y


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    pc, x, y = compiled()
    recorder = pccompile.Recorder(pccompile.TensorBoard(tmp_path / "board"), every=1)
    both = pccompile.Recorder(tmp_path / "log.jsonl", every=1)
    for step in range(2):
        for r in (recorder, both):
            r.measure(pc, step, x, target=F.one_hot(y, 3).float())
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    for name in set(lines(tmp_path / "log.jsonl")[0]) - {"step"}:
        found = events.Scalars(name)
        expected = lines(tmp_path / "log.jsonl")
        assert [e.step for e in found] == [line["step"] for line in expected]
        assert [e.value for e in found] == pytest.approx([line[name] for line in expected])


def test_lightning(tmp_path: Path) -> None:
    import lightning

    class Task(lightning.LightningModule):
        def __init__(self, net: Any) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            loss = F.cross_entropy(self.net(batch[0]), batch[1])
            self.log("train_loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    pc, x, y = compiled()
    recorder = pccompile.Recorder(tmp_path / "log.jsonl", every=2)
    callback = pccompile.lightning_callback(recorder, pc, x, target=F.one_hot(y, 3).float())
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", enable_checkpointing=False, callbacks=[callback], **quiet
    )
    trainer.fit(Task(pc), DataLoader(data(), 8))
    found = lines(tmp_path / "log.jsonl")
    assert [line["step"] for line in found if "free_energy" in line] == [2, 4, 6, 8]
    assert [line["step"] for line in found if "train_loss" in line] == [2, 4, 6, 8]


def test_transformers(tmp_path: Path) -> None:
    pc, x, y = compiled()
    recorder = pccompile.Recorder(tmp_path / "log.jsonl", every=2)
    callback = pccompile.trainer_callback(recorder, pc, x, target=F.one_hot(y, 3).float())
    fitted(gpt(), tmp_path, callbacks=[callback])
    found = lines(tmp_path / "log.jsonl")
    assert [line["step"] for line in found if "free_energy" in line] == [2, 4]
    assert any("trainer/train_loss" in line for line in found)
