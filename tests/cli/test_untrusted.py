"""Files that cannot be trusted: no regular ones, ones that run code, netlists, chips and data that ask for too much."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import torch
from netlist.nets import net, stored
from onnx_frontend.build import perceptron

import pccompile
from cli.limited import GIBIBYTES, SECONDS, Ending, limited
from pccompile.backends.netlist import Netlist
from pccompile.backends.netlist.format import Population


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(perceptron(), "m.onnx")
    description, tensors = stored(net("mlp"))
    (tmp_path / "m.pcnet.json").write_bytes(description)
    (tmp_path / "m.safetensors").write_bytes(tensors)
    return tmp_path


def refused(ending: Ending, codes: tuple[int, ...] = (1,)) -> str:
    assert ending.code in codes, ending
    assert ending.seconds < SECONDS
    assert ending.gibibytes < GIBIBYTES
    assert "Traceback" not in ending.said
    assert len(ending.said) < 3000
    assert "error: " in ending.said
    return ending.said


SPECIAL: dict[str, Callable[[str], object]] = {
    "pipe": os.mkfifo,
    "folder": os.mkdir,
    "device": lambda name: os.symlink("/dev/zero", name),
    "terminal": lambda name: os.symlink("/dev/tty", name),
    "nothing": lambda name: os.symlink("absent", name),
    "itself": lambda name: os.symlink(name, name),
}
READ: dict[str, tuple[str, tuple[str, ...]]] = {
    "onnx": ("s.onnx", ("s.onnx", "--doctor")),
    "pt2": ("s.pt2", ("s.pt2", "--trust-code")),
    "netlist": ("s.pcnet.json", ("s.pcnet.json",)),
    "tensors": ("m.safetensors", ("m.pcnet.json",)),
    "chip": ("s.yaml", ("m.pcnet.json", "--chip", "s.yaml")),
    "npz": ("s.npz", ("m.pcnet.json", "--simulate", "--data", "s.npz")),
    "npy": ("s.npy", ("m.onnx", "--data", "s.npy")),
    "safetensors": ("s.safetensors", ("m.pcnet.json", "--simulate", "--data", "s.safetensors")),
    "pb": ("s.pb", ("m.onnx", "--data", "s.pb")),
}


@pytest.mark.parametrize("special", SPECIAL)
@pytest.mark.parametrize("kind", READ)
def test_only_regular_files_are_opened(kind: str, special: str, place: Path) -> None:
    name, arguments = READ[kind]
    (place / name).unlink(missing_ok=True)
    SPECIAL[special](name)
    refused(limited(*arguments))


class Touches:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch ran",)


@pytest.mark.parametrize("arguments", [(), ("--doctor",), ("--verify",), ("-o", "out"), ("--backend", "netlist")])
def test_a_program_that_may_run_code_is_opened_only_when_it_is_trusted(arguments, place: Path) -> None:
    with zipfile.ZipFile("evil.pt2", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Touches()))
    said = refused(limited("evil.pt2", *arguments))
    assert "--trust-code" in said
    assert not (place / "ran").exists()
    for backend in ("torch", "netlist"):
        with pytest.raises(pccompile.CompileError, match="can run any code"):
            pccompile.compile("evil.pt2", backend=backend)
    assert not (place / "ran").exists()
    refused(limited("evil.pt2", *arguments, "--trust-code"))


def changed(**fields: object) -> None:
    """Change the populations, the first phase or the first projection of the circuit in this folder."""
    record = json.loads(Path("m.pcnet.json").read_text())
    name = next(n for n, p in record["populations"].items() if p["unit"] == "map")
    for key, value in fields.items():
        if key == "ticks":
            record["phases"][0]["ticks"] = value
        elif key == "delay":
            record["projections"][0]["delay"] = value
        else:
            record["populations"][name][key] = value
    Path("m.pcnet.json").write_text(json.dumps(record))


ACTIONS = ((), ("--simulate",), ("--export", "nengo", "-o", "out"), ("--export", "verilog", "-o", "out"))
WRONG: dict[str, dict[str, object]] = {
    "no branches": {"function": "Piecewise()"},
    "branches of nothing": {"function": "Piecewise(x)"},
    "nested sums": {"function": "+".join("x" * 900)},
    "nested brackets": {"function": "(" * 150 + "x" + ")" * 150 + "+" + "-" * 900 + "x"},
    "nested calls": {"function": "exp(" * 200 + "x" + ")" * 200},
    "large order": {"function": "polygamma(1e300, x)"},
    "infinite order": {"function": "polygamma(1e308*1e308, x)"},
    "ticks": {"ticks": 10**12},
    "more ticks than numbers": {"ticks": 10**400},
    "delay": {"delay": 10**12},
    "units": {"shape": [10**8]},
    "units of many axes": {"shape": [2] * 32},
    "units beyond numbers": {"shape": [2**62, 2**62]},
    "digits": {"shape": [10**400]},
    "guard": {"guard": 10**18},
    "table": {"table": [10**9, 10**9]},
    "bits": {"bits": [10**9, 1]},
}


@pytest.mark.parametrize("name", WRONG)
def test_a_netlist_that_asks_for_too_much(name: str, place: Path) -> None:
    changed(**WRONG[name])
    for action in ACTIONS:
        refused(limited("m.pcnet.json", *action))
    assert not (place / "out").exists()


def test_many_units_within_the_budget_stay_within_memory(place: Path) -> None:
    spec = net("mlp").spec
    units = Population(shape=(9 * 10**6,), unit="input", role="context", vertex="")
    more = msgspec.structs.replace(spec, populations={**spec.populations, "many": units})
    Netlist(more, net("mlp").tensors).save(place, "many")
    for action in (("--simulate",), (), ("--export", "nengo", "-o", "out")):
        ending = limited("many.pcnet.json", *action)
        assert ending.code in (0, 1), ending
        assert "Traceback" not in ending.said
        assert ending.gibibytes < GIBIBYTES, action
    changed(shape=[10**8])
    assert "--budget units=" in refused(limited("m.pcnet.json"))


def test_ticks_of_the_user_are_not_bounded(place: Path) -> None:
    changed(ticks=20_000)
    assert "--budget ticks=" in refused(limited("m.pcnet.json", "--simulate"))
    assert limited("m.pcnet.json", "--simulate", "--ticks", "5", "--budget", "ticks=20000").code == 0


DESCRIPTIONS: dict[str, bytes] = {
    "nested lists": b'{"format": "pcnetlist", "version": "1.0", "a": ' + b"[" * 10**5 + b"]" * 10**5 + b"}",
    "nested records": b'{"a":' * 10**5 + b"1" + b"}" * 10**5,
    "a number of many digits": b'{"format": "pcnetlist", "version": "1.0", "name": ' + b"9" * 5000 + b"}",
    "an infinite number": b'{"format": "pcnetlist", "version": "1.0", "name": 1e999}',
    "no text": b"\xff\xfe\x00",
    "a list": b"[]",
    "half a character": b'{"format": "\\ud800"}',
    "nothing": b"",
}


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_a_description_that_is_none(name: str, place: Path) -> None:
    (place / "m.pcnet.json").write_bytes(DESCRIPTIONS[name])
    refused(limited("m.pcnet.json"))


CHIPS: dict[str, str] = {
    "bad date": "name: 2001-99-99",
    "bad time": "name: 2001-01-01 99:99:99",
    "no whole number": "name: !!int abc",
    "no number": "name: !!float abc",
    "no time": "name: !!timestamp x",
    "no binary": "name: !!binary \u00fc",
    "many digits": f"name: {'9' * 5000}",
    "python": "name: !!python/object/apply:os.system ['touch ran']",
    "doubling": "a: &a0 [x, x]\n" + "".join(f"b{i}: &a{i + 1} [*a{i}, *a{i}]\n" for i in range(60)),
    "itself": "&a [*a]",
    "nested": "[" * 20_000,
    "nested records": "".join(" " * i + "a:\n" for i in range(300)),
    "no alias": "name: *nothing",
    "merged with itself": "a: &a\n  <<: *a",
    "list as key": "? [a, b]\n: c",
    "tabs": "\t- a",
    "two documents": "--- a\n--- b",
    "nothing": "",
    "control characters": "name: \x01",
}


@pytest.mark.parametrize("name", CHIPS)
def test_a_chip_that_is_none(name: str, place: Path) -> None:
    (place / "c.yaml").write_text(CHIPS[name], encoding="utf-8")
    refused(limited("m.pcnet.json", "--chip", "c.yaml"))
    assert not (place / "ran").exists()


def bomb(place: Path) -> None:
    """A compressed array of zeros that would fill memory."""
    header = b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000,), }"
    with zipfile.ZipFile(place / "d.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", header.ljust(127) + b"\n" + bytes(10**7))


DATA: dict[str, Callable[[Path], object]] = {
    "bomb": bomb,
    "objects": lambda p: np.savez(p / "d.npz", x=np.array([{}], dtype=object)),
    "words": lambda p: np.savez(p / "d.npz", x=np.array(["a"])),
    "records": lambda p: np.savez(p / "d.npz", x=np.zeros(2, dtype=[("a", "f4")])),
    "no archive": lambda p: (p / "d.npz").write_bytes(b"PK\x03\x04 not"),
    "empty": lambda p: (p / "d.npz").write_bytes(b""),
    "no arrays": lambda p: zipfile.ZipFile(p / "d.npz", "w").writestr("x.npy", "nothing"),
    "no presentations": lambda p: np.savez(p / "d.npz", input=np.zeros((0, 1, 2))),
    "other sizes": lambda p: np.savez(p / "d.npz", input=np.zeros((1, 3))),
    "other names": lambda p: np.savez(p / "d.npz", **{"n" * 300: np.zeros((1, 2))}),
}


@pytest.mark.parametrize("name", DATA)
def test_data_that_are_none(name: str, place: Path) -> None:
    DATA[name](place)
    refused(limited("m.pcnet.json", "--simulate", "--data", "d.npz"))


TENSORS = (b"", b"\xff" * 8, b"\x08" + bytes(7) + b"{", (2**63 - 1).to_bytes(8, "little") + b"{}")


@pytest.mark.parametrize("data", TENSORS)
def test_tensors_that_are_none(data: bytes, place: Path) -> None:
    (place / "m.safetensors").write_bytes(data)
    refused(limited("m.pcnet.json"))
    (place / "d.safetensors").write_bytes(data)
    refused(limited("m.onnx", "--data", "d.safetensors"))


def test_trusted_programs_still_work(place: Path) -> None:
    program = torch.export.export(torch.nn.Linear(2, 1), (torch.randn(3, 2),))
    torch.export.save(program, "good.pt2")
    assert limited("good.pt2", "--trust-code", "--quiet").code == 0
    assert pccompile.compile("good.pt2", trust_code=True) is not None
