"""Files are written together or not at all: killed anywhere, edited, read-only, without room, as links."""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from netlist.nets import net

from pccompile.diagnostics import OutputError
from pccompile.files import writing
from pccompile.files.writing import SCRATCH, SEAL, check_replaceable, forced, sealed, write_together
from pccompile.runtime.saving import save_generated

OLD, NEW = ("value = 1\n", {"w": torch.ones(3)}), ("value = 2\n", {"w": torch.zeros(4), "b": torch.ones(2)})


def pair(folder: Path, what: tuple[str, dict[str, torch.Tensor]]) -> None:
    save_generated(*what, folder, "m")


def circuit(folder: Path, name: str) -> None:
    net(name).save(folder, "m")


WRITERS: dict[str, tuple[Callable[..., None], object, object]] = {
    "source": (pair, OLD, NEW),
    "netlist": (circuit, "mlp", "ranked"),
}
CALLS = ("replace", "fsync", "open", "chmod", "mkdir", "rmdir", "unlink", "scandir")


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def killed(write: Callable[[], object], at: int, after: bool) -> bool:
    """Run in a fork that is killed before or after its call `at` to the system; whether it got that far."""
    child = os.fork()
    if child == 0:
        count = 0

        def counted(real: Callable[..., object]) -> Callable[..., object]:
            def call(*args: object, **named: object) -> object:
                nonlocal count
                count += 1
                if count == at and not after:
                    os._exit(137)
                mine = count
                try:
                    return real(*args, **named)
                finally:
                    if mine == at:
                        os._exit(137)

            return call

        for name in CALLS:
            setattr(os, name, counted(getattr(os, name)))
        write()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 137


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("fresh", [False, True], ids=["over", "fresh"])
def test_a_kill_anywhere_is_repaired_by_the_next_run(kind: str, after: bool, fresh: bool, tmp_path: Path) -> None:
    write, old, new = WRITERS[kind]
    write(tmp_path / "new", new)
    right = contents(tmp_path / "new")
    write(tmp_path / "old", old)
    before = {} if fresh else contents(tmp_path / "old")
    at = 0
    while True:
        at += 1
        folder = tmp_path / f"{at}"
        if not fresh:
            write(folder, old)
        if not killed(lambda place=folder: write(place, new), at, after):
            break
        left = contents(folder) if folder.exists() else {}
        scratch = folder.exists() and any(p.name.startswith(SCRATCH) for p in folder.iterdir())
        assert scratch or left in (before, right), at
        assert all(data in (before.get(name), right.get(name)) for name, data in left.items()), (
            "no file is half written"
        )
        write(folder, new)
        assert contents(folder) == right, at
        assert sorted(p.name for p in folder.iterdir()) == sorted(right), at
    assert at > 8


def test_a_scratch_folder_of_a_process_that_lives_stays(tmp_path: Path) -> None:
    def slow(path: Path) -> None:
        path.write_text("a")
        write_together(tmp_path, {"other.txt": lambda p: p.write_text("b")})
        assert path.exists()

    write_together(tmp_path, {"slow.txt": slow})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other.txt", "slow.txt"]


def test_files_have_the_mode_that_open_gives(tmp_path: Path) -> None:
    for umask in (0o022, 0o077, 0o002):
        before = os.umask(umask)
        try:
            pair(tmp_path / f"{umask}", OLD)
            (tmp_path / "plain").write_text("")
        finally:
            os.umask(before)
        wanted = stat.S_IMODE((tmp_path / "plain").stat().st_mode)
        assert {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / f"{umask}").iterdir()} == {wanted}
        (tmp_path / "plain").unlink()


def test_a_file_that_is_overwritten_keeps_its_mode(tmp_path: Path) -> None:
    pair(tmp_path, OLD)
    (tmp_path / "m_pc.py").chmod(0o750)
    (tmp_path / "m_pc.safetensors").chmod(0o640)
    pair(tmp_path, NEW)
    assert stat.S_IMODE((tmp_path / "m_pc.py").stat().st_mode) == 0o750
    assert stat.S_IMODE((tmp_path / "m_pc.safetensors").stat().st_mode) == 0o640


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)


def lengthened(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("file", [0, 1])
@pytest.mark.parametrize("edit", [flipped, lengthened])
def test_a_file_that_was_edited_is_overwritten_by_force_only(kind, file: int, edit, tmp_path: Path) -> None:
    write, old, new = WRITERS[kind]
    write(tmp_path, old)
    path = sorted(tmp_path.iterdir())[file]
    edit(path)
    edited = contents(tmp_path)
    with pytest.raises(OutputError, match=r"was edited since pccompile wrote it.*\n.*--force"):
        write(tmp_path, new)
    assert contents(tmp_path) == edited
    with forced():
        write(tmp_path, new)
    assert contents(tmp_path) != edited
    write(tmp_path, old)


def test_a_file_without_a_seal_is_never_overwritten(tmp_path: Path) -> None:
    for name in ("m_pc.py", "m_pc.safetensors"):
        (tmp_path / name).write_text("# Generated by pccompile, says the user")
        with forced(), pytest.raises(OutputError, match="was not generated by pccompile"):
            pair(tmp_path, OLD)
        (tmp_path / name).unlink()


def test_a_read_only_file_is_overwritten_by_force_only(tmp_path: Path) -> None:
    pair(tmp_path, OLD)
    (tmp_path / "m_pc.py").chmod(0o444)
    with pytest.raises(OutputError, match="is read-only"):
        pair(tmp_path, NEW)
    with forced():
        pair(tmp_path, NEW)
    assert stat.S_IMODE((tmp_path / "m_pc.py").stat().st_mode) == 0o444


@pytest.mark.parametrize("place", ["m_pc.py", "m_pc.safetensors"])
@pytest.mark.parametrize("dangling", [False, True])
def test_links_are_not_followed_nor_replaced(place: str, dangling: bool, tmp_path: Path) -> None:
    if not dangling:
        pair(tmp_path / "there", OLD)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / place).symlink_to(tmp_path / "there" / place)
    with pytest.raises(OutputError, match="was not generated by pccompile"):
        pair(tmp_path / "out", NEW)
    assert (tmp_path / "out" / place).is_symlink()
    assert (tmp_path / "there").exists() != dangling


@pytest.mark.parametrize("special", [os.mkdir, os.mkfifo])
def test_folders_and_pipes_are_not_replaced(special, tmp_path: Path) -> None:
    special(tmp_path / "m_pc.py")
    with pytest.raises(OutputError, match="was not generated by pccompile"):
        pair(tmp_path, OLD)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("most", [0, 10, 100])
def test_a_full_disk_leaves_what_was_there(kind: str, most: int, tmp_path: Path) -> None:
    write, old, new = WRITERS[kind]
    write(tmp_path, old)
    before = contents(tmp_path)
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        try:
            write(tmp_path, new)
        except OutputError:
            os._exit(1)
        except BaseException:
            os._exit(70)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert contents(tmp_path) == before
    assert len(list(tmp_path.iterdir())) == 2


def test_the_disk_has_the_files_before_they_take_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    real = {name: getattr(os, name) for name in ("fsync", "replace")}
    for name, function in real.items():
        monkeypatch.setattr(os, name, lambda *a, name=name, function=function: (calls.append(name), function(*a))[1])
    pair(tmp_path, OLD)
    assert calls == ["fsync", "fsync", "replace", "replace", "fsync"]


def test_the_tensors_come_before_the_source_that_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(os, "replace", lambda a, b, real=os.replace: (order.append(Path(b).suffix), real(a, b)))
    pair(tmp_path, OLD)
    assert order == [".safetensors", ".py"]


def test_two_runs_give_equal_seals(tmp_path: Path) -> None:
    for folder in "ab":
        pair(tmp_path / folder, OLD)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert SEAL.encode() not in (tmp_path / "a" / "m_pc.py").read_bytes()
    assert sealed(tmp_path / "a" / "m_pc.py")
    assert sealed(tmp_path / "a" / "m_pc.safetensors")
    check_replaceable((tmp_path / "a").iterdir())


def test_systems_without_locks_write_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "fcntl", None)
    (tmp_path / f"{SCRATCH}old").mkdir()
    pair(tmp_path, OLD)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m_pc.py", "m_pc.safetensors"]
