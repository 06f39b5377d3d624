"""The paper's experiments on tiny synthetic data, and what is said where data is absent."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import reproduce_paper
import torch
from paper import data, experiments, training
from paper.settings import SETTINGS, Setting

TINY = {
    "cnn": Setting(1, 2, 4, 1e-3, 25, 8, 1.0, 8, 4, evaluations=1),
    "rnn": Setting(1, 2, 1, 1e-2, 50, 1, 1.0, held_out=4, hidden=3, length=2, evaluations=1),
    "lstm": Setting(1, 2, 2, 1e-2, 50, 30, 1.0, 40, 8, hidden=3, length=2, evaluations=1),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Names, a text, and ten images in CIFAR-10's binary format."""
    (tmp_path / "names").mkdir()
    (tmp_path / "names" / "Greek.txt").write_text("Ándros\n" * 12, encoding="utf-8")
    (tmp_path / "names" / "Polish.txt").write_text("Nowak\n" * 12, encoding="utf-8")
    (tmp_path / "tinyshakespeare.txt").write_text("to be or not to be, " * 5, encoding="utf-8")
    binary = tmp_path / "cifar-10-batches-bin"
    binary.mkdir()
    records = np.random.default_rng(0).integers(0, 256, (10, 3073), dtype=np.uint8)
    records[:, 0] = range(10)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        records.tofile(binary / f"{name}.bin")
    return tmp_path


def test_the_command_writes_results_figures_and_a_page(folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(SETTINGS, "small", TINY)
    monkeypatch.setattr(experiments, "SCALAR", {**experiments.SCALAR, "rates": (0.01, 0.1, 1.0), "steps": (3, 500)})
    output = tmp_path / "out"
    assert reproduce_paper.main(["--data", str(folder), "--output", str(output)]) == 0
    results = json.loads((output / "results.json").read_text(encoding="utf-8"))
    assert sorted(results) == ["cnn", "lstm", "rnn", "scalar"]
    assert results["scalar"]["divergence"]["1"] == pytest.approx([0, 0], abs=1e-12)
    assert abs(results["scalar"]["divergence"]["0.01"][0]) > 0.99 * abs(results["scalar"]["gradient"])
    for name in ("cnn", "lstm"):  # at rate 1 and as many steps as edges, predictive coding is backpropagation
        curves = results[name]["variants"]
        for mine, theirs in zip(curves[training.PREDICTIVE], curves[training.BACKPROP], strict=True):
            assert mine[-1]["loss"] == pytest.approx(theirs[-1]["loss"], rel=1e-5)
            assert max(p["divergence"] for p in mine) < 1e-5
    short = results["rnn"]["variants"][training.PREDICTIVE]
    assert min(p["divergence"] for curve in short for p in curve) > 0.01  # one step reaches the readout alone
    page = (tmp_path / "out.md").read_text(encoding="utf-8")
    assert "| Its steps and rate give the RNN the gradient of backpropagation | **not held** |" in page
    assert "| The CNN does so on SVHN and on CIFAR-100 | not run |" in page
    assert "| Its steps and rate give the CNN the gradient of backpropagation | held |" in page
    assert all((output / f"{name}.png").stat().st_size < 100_000 for name in results)


def test_an_update_applied_twice_goes_twice_as_far(folder: Path) -> None:
    experiment = experiments.images(folder, Setting(1, 1, 4, 1e-3, 25, 8, 1.0, 8, 4, evaluations=1), "cifar10")
    moved = []
    for variant in (training.BACKPROP, training.TWICE):
        learner = training.Learner(experiment, variant)
        torch.manual_seed(0)
        start = [p.detach().clone() for p in experiment.build().parameters()]
        learner.run(0)
        moved.append([p.detach() - q for p, q in zip(learner.model.parameters(), start, strict=True)])
    for once, twice in zip(*moved, strict=True):
        torch.testing.assert_close(twice, 2 * once, rtol=1e-3, atol=1e-7)


def test_svhn_is_read_from_its_own_files(tmp_path: Path) -> None:
    from scipy.io import savemat

    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 6), dtype=np.uint8)
    for part in ("train", "test"):
        savemat(tmp_path / f"{part}_32x32.mat", {"X": pixels, "y": np.array([[1], [2], [3], [4], [5], [10]])})
    images = data.svhn(tmp_path, 6, 6)
    order = np.random.default_rng(0).permutation(6)
    assert images.y.tolist() == [[1, 2, 3, 4, 5, 0][i] for i in order]
    assert images.x[2, 1, 5, 7] == pytest.approx(pixels[5, 7, 1, order[2]] / 127.5 - 1)


def test_what_is_absent_is_named_with_what_to_do(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    empty, output = tmp_path / "empty", tmp_path / "out"
    empty.mkdir()
    for arguments in ([], ["--images", "svhn"]):
        options = ["--experiments", "cnn", "rnn", "lstm", "--output", str(output), *arguments]
        assert reproduce_paper.main(["--data", str(empty), *options]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == (
        "cnn did not run. CIFAR-10: neither cifar10_train_jpeg.npz and cifar10_test_jpeg.npz, or cifar-10-batches-bin, "
        f"in {empty}, nor torchvision; --data FOLDER, or pip install torchvision"
    )
    assert (
        lines[1] == f"rnn did not run. names: no names/*.txt in {empty}; --data FOLDER with names/English.txt and so on"
    )
    assert lines[2].startswith(f"lstm did not run. Shakespeare: no tinyshakespeare.txt in {empty}; --data FOLDER")
    assert lines[3].startswith(f"cnn did not run. SVHN: neither train_32x32.mat and test_32x32.mat in {empty}, nor")
    assert "Not run: CNN, RNN, LSTM" in (tmp_path / "out.md").read_text(encoding="utf-8")
    with pytest.raises(data.DataAbsent, match="there is no such folder"):
        data.folder_of(tmp_path / "nowhere")
