"""The paper's data sets: from a folder of yours, or by torchvision where it is installed."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from string import ascii_letters

import numpy as np
import torch
from torch import Tensor

LETTERS = ascii_letters + " .,;'"
BESIDE = Path(__file__).parents[3] / "shared" / "data"
"""Where data is looked for when no folder is given: next to the checkout."""


class DataAbsent(Exception):
    """A data set that is not there. The text names it and says what to do."""


@dataclass(frozen=True)
class Images:
    """Images `[n, 3, 32, 32]` in −1…1 and labels `[n]`, for training and for testing, and where they are from."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    origin: str


def folder_of(given: Path | None) -> Path:
    """The folder with the data. Raises DataAbsent where a folder was given that is none."""
    if given is not None and not given.is_dir():
        raise DataAbsent(f"--data {given}: there is no such folder")
    return BESIDE if given is None else given


def cifar10(folder: Path, train: int, test: int) -> Images:
    """CIFAR-10: as JPEG in two .npz files (lossy), in its binary files, or by torchvision. Raises DataAbsent."""
    packed = [folder / f"cifar10_{part}_jpeg.npz" for part in ("train", "test")]
    binary = folder / "cifar-10-batches-bin"
    if all(p.is_file() for p in packed):
        return _images("CIFAR-10 as lossy JPEG", _jpeg(packed[0], train), _jpeg(packed[1], test))
    if binary.is_dir():
        files = [binary / f"data_batch_{i}.bin" for i in range(1, 6)]
        return _images("CIFAR-10", _records(files, train), _records([binary / "test_batch.bin"], test))
    where = f"cifar10_train_jpeg.npz and cifar10_test_jpeg.npz, or cifar-10-batches-bin, in {folder}"
    return _by_torchvision("CIFAR-10", "CIFAR10", folder, where, lambda part: {"train": part == "train"}, train, test)


def svhn(folder: Path, train: int, test: int) -> Images:
    """SVHN: train_32x32.mat and test_32x32.mat as published, or by torchvision. Raises DataAbsent."""
    files = [folder / f"{part}_32x32.mat" for part in ("train", "test")]
    if all(f.is_file() for f in files):
        return _images("SVHN", _matlab(files[0], train), _matlab(files[1], test))
    where = f"train_32x32.mat and test_32x32.mat in {folder}"
    return _by_torchvision("SVHN", "SVHN", folder, where, lambda part: {"split": part}, train, test)


def names(folder: Path) -> dict[str, list[str]]:
    """Surnames by nationality, without accents: the files names/*.txt. Raises DataAbsent."""
    files = sorted((folder / "names").glob("*.txt"))
    if not files:
        raise DataAbsent(f"names: no names/*.txt in {folder}; --data FOLDER with names/English.txt and so on")
    found = {}
    for file in files:
        lines = [plain_letters(line) for line in file.read_text(encoding="utf-8").splitlines()]
        found[file.stem] = [line for line in lines if line]
    return found


def shakespeare(folder: Path) -> str:
    """The text of tinyshakespeare.txt. Raises DataAbsent."""
    file = folder / "tinyshakespeare.txt"
    if not file.is_file():
        raise DataAbsent(f"Shakespeare: no tinyshakespeare.txt in {folder}; --data FOLDER with that file")
    return file.read_text(encoding="utf-8")


def plain_letters(line: str) -> str:
    """A name in the 57 characters that the network knows."""
    return "".join(c for c in unicodedata.normalize("NFD", line.strip()) if c in LETTERS)


def _images(origin: str, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> Images:
    return Images(*train, *test, f"{origin}, {len(train[0]):,} images for training and {len(test[0]):,} for testing")


def _drawn(all_: int, n: int) -> np.ndarray:
    """Which n of all examples are taken, the same each time: files may be sorted by label."""
    return np.random.default_rng(0).permutation(all_)[:n]


def _scaled(pixels: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    """Bytes `[n, 3, 32, 32]` as numbers in −1…1, and labels."""
    return torch.tensor(pixels).float().div(127.5).sub(1), torch.tensor(labels.astype(np.int64))


def _jpeg(file: Path, n: int) -> tuple[Tensor, Tensor]:
    from PIL import Image

    with np.load(file) as arrays:
        blob, offsets, labels = arrays["blob"], arrays["offsets"], arrays["labels"]
    chosen = _drawn(len(labels), n)
    files = (blob[offsets[i] : offsets[i + 1]].tobytes() for i in chosen)
    pixels = [np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files]
    return _scaled(np.stack(pixels).transpose(0, 3, 1, 2), labels[chosen])


def _records(files: list[Path], n: int) -> tuple[Tensor, Tensor]:
    """CIFAR-10's binary files: a byte for the label, then 3 × 32 × 32 bytes, for each image."""
    if absent := [f.name for f in files if not f.is_file()]:
        raise DataAbsent(f"CIFAR-10: no {', '.join(absent)} in {files[0].parent}")
    records = np.concatenate([np.fromfile(f, np.uint8).reshape(-1, 3073) for f in files])
    records = records[_drawn(len(records), n)]
    return _scaled(records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0])


def _matlab(file: Path, n: int) -> tuple[Tensor, Tensor]:
    """SVHN's files: X is `[32, 32, 3, n]`, y is `[n, 1]` with 10 for the digit 0."""
    from scipy.io import loadmat

    arrays = loadmat(str(file))
    chosen = _drawn(len(arrays["y"]), n)
    return _scaled(arrays["X"][..., chosen].transpose(3, 2, 0, 1), arrays["y"][chosen, 0] % 10)


def _by_torchvision(
    name: str, kind: str, folder: Path, where: str, part_of: Callable[[str], dict[str, object]], train: int, test: int
) -> Images:
    try:
        from torchvision import datasets
    except ImportError:
        raise DataAbsent(
            f"{name}: neither {where}, nor torchvision; --data FOLDER, or pip install torchvision"
        ) from None
    parts = []
    for part, n in (("train", train), ("test", test)):
        try:
            found = getattr(datasets, kind)(str(folder), download=True, **part_of(part))
        except (OSError, RuntimeError) as e:
            raise DataAbsent(f"{name}: neither {where}, nor could torchvision fetch it: {e}") from None
        labels = np.asarray(found.targets if hasattr(found, "targets") else found.labels)
        chosen = _drawn(len(labels), n)
        pixels = found.data if found.data.shape[1] == 3 else found.data.transpose(0, 3, 1, 2)
        parts.append(_scaled(pixels[chosen], labels[chosen]))
    return _images(name, parts[0], parts[1])
