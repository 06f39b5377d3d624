"""A recorder of training: what it logs is what the reports say, and what it logged can be watched."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping

import pytest
import torch
from algorithms.nets import problem

import pccompile
from pccompile.cli import main


def train(algorithm: str, path, every: int = 2, steps: int = 5, **settings: object) -> list[dict[str, float]]:
    p = problem("chain")
    pc = p.compile(algorithm, **settings)
    optimizer, recorder = torch.optim.SGD(pc.parameters(), 1e-2), pccompile.Recorder(path, every=every)
    for step in range(steps):
        pc.train_step(p.x, p.target, optimizer)
        assert recorder.measure(pc, step, p.x, target=p.target) == (step % every == 0)
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("algorithm", ["strict", "exact", "zil"])
def test_every_so_many_steps_a_line(algorithm: str, tmp_path) -> None:
    lines = train(algorithm, tmp_path / "log.jsonl")
    assert [line["step"] for line in lines] == [0, 2, 4]
    names = set(lines[0])
    assert {"loss", "free_energy", "energy/n1"} <= names
    assert ("cosine/0.weight" in names) == ("q" in names) == (algorithm == "strict")
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_what_is_logged_is_what_reports_say(tmp_path) -> None:
    p = problem("chain")
    pc = p.compile("strict", steps=9)
    pc.loss(p.x, target=p.target).backward()
    before = {k: (q.detach().clone(), q.grad.clone()) for k, q in pc.named_parameters() if q.grad is not None}
    found: dict[int, Mapping[str, float]] = {}

    class Board:
        def log(self, step: int, values: Mapping[str, float]) -> None:
            found[step] = values

    recorder = pccompile.Recorder(Board(), every=1)
    recorder.measure(pc, 7, p.x, target=p.target)
    recorder.log(8, {"accuracy": 0.5})
    assert found[8] == {"accuracy": 0.5}
    for k, q in pc.named_parameters():
        assert torch.equal(q, before[k][0])
        assert torch.equal(q.grad, before[k][1])
    values = found[7]
    own = p.gradients("strict", steps=9)
    for k, g in own.items():
        b = p.backprop[k]
        assert values[f"cosine/{k}"] == pytest.approx(float((g * b).sum() / (g.norm() * b.norm())), rel=1e-9)
    trace = copy.copy(pc.infer(p.x, target=p.target))
    assert values["free_energy"] == pytest.approx(float(trace.free_energy[-1]))
    hidden = sum(v for k, v in values.items() if k.startswith("energy/"))
    assert values["free_energy"] < values["loss"] + hidden + 1e-9
    spectrum = pc.analyse(p.x, target=p.target, kinds=("spectrum",)).spectrum
    assert spectrum is not None
    assert values["lambda_max"] == pytest.approx(spectrum.quantities["λmax(H)"].value)
    assert values["q"] == pytest.approx(0.1 * 9 * values["lambda_max"])


def test_watch(tmp_path, capsys) -> None:
    path = tmp_path / "log.jsonl"
    recorder = pccompile.Recorder(path)
    for step, loss in enumerate((4.0, 3.0, float("nan"), 1.0)):
        recorder.log(step, {"loss": loss, "energy/a": step, "energy/b": 2 * step})
    assert main(["watch", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "steps 0 to 3" in shown
    assert "█▆ ▁" in shown
    assert main(["watch", str(path), "-o", str(tmp_path / "curves.png")]) == 0
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert main(["watch", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] == [[0, 4.0], [1, 3.0], [2, None], [3, 1.0]]


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "has no numbers yet"),
        ("{}", "line 1 of"),
        ('{"step": 1, "loss": 2}\nnothing', "line 2 of"),
        ('{"step": 1, "loss": "__import__"}', "is no step of a recorder"),
        ('{"step": 1, "loss": [1]}', "is no step of a recorder"),
        (None, "cannot read"),
    ],
)
def test_a_log_that_is_none(content: str | None, message: str, tmp_path, capsys) -> None:
    path = tmp_path / "log.jsonl"
    if content is not None:
        path.write_text(content)
    assert main(["watch", str(path)]) == 1
    assert message in capsys.readouterr().err
    assert main(["watch"]) == 2


def test_every_is_at_least_one(tmp_path) -> None:
    with pytest.raises(pccompile.CompileError, match="every is 0"):
        pccompile.Recorder(tmp_path / "log.jsonl", every=0)
