"""Descriptions of chips: those that come along, and errors in a user's own."""

import re

import numpy as np
import pytest

from pccompile import CompileError
from pccompile.backends.netlist.chip import load, names, parse
from pccompile.backends.netlist.format import UnitKind

MESH = """
name: tiny
cores: {value: 4, source: mine}
cores_per_tile: {value: 1, source: mine}
grid: {value: [2, 2], source: mine}
units: {value: 16, source: mine}
weight_bits: {value: 8, source: mine}
state_bits: {value: 16, source: mine}
shares_kernels: {value: false, source: mine}
learns: {value: true, source: mine}
native: {value: [sum], source: mine}
"""


@pytest.mark.parametrize("name", names())
def test_chips_that_come_along(name: str) -> None:
    chip = load(name)
    assert all(figure.source for _, figure in chip.figures())
    assert set(chip.native.value) <= set(UnitKind.__args__)
    # A source is a paper, a document or a file that can be found; what is only quoted or concluded is unsure.
    findable = re.compile(r"doi:|arXiv|https?://|et al|\.py|Intel|& Dimitrov")
    vague = [n for n, f in chip.figures() if not f.unsure and not findable.search(f.source)]
    assert vague == [] or name == "mesh"


def test_limits_that_the_papers_state() -> None:
    loihi, north = load("loihi1"), load("truenorth")
    assert (loihi.units.whole, loihi.axons_in.whole, loihi.axons_out.whole, loihi.memory.whole) == (
        1024,
        4096,
        4096,
        128 * 1024 * 8,
    )
    assert (north.units.whole, north.axons_in.whole, north.cores.whole, north.tiles) == (256, 256, 4096, 64 * 64)
    assert not north.learns.value


def test_rows_of_loihi_are_words() -> None:
    # 64 weights of 8 bits and a header of 10 bits are 9 words of 64 bits; 10 weights are 2.
    assert load("loihi1").row_bits(np.array([0, 10, 64, 65, 128]), 8).tolist() == [0, 128, 576, 640, 1152]


def test_a_file_of_ones_own(tmp_path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(MESH)
    assert load(path).units.whole == 16
    assert load(str(path)).memory is None


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("cores: {value: 4, source: mine}", "", "required field `cores`"),
        ("value: 16, source: mine", "value: many, source: mine", "Expected `float`, got `str` - at `$.units.value`"),
        ("units: {value: 16, source: mine}", "units: {value: 16}", "required field `source` - at `$.units`"),
        ("units: {value: 16, source: mine}", "units: {value: 16, source: ' '}", "units has no source"),
        ("units: {value: 16", "units: {value: -3", "units is -3"),
        ("units: {value: 16", "units: {value: 1.5", "units is no whole number"),
        ("units: {value: 16", "units: {value: .nan", "units is nan"),
        ("units: {value: 16", "units: {value: 16, high: 20", "units is no whole number"),
        ("cores: {value: 4", "cores: {value: 5", "5 cores do not fit 4 tiles of 1"),
        ("[2, 2]", "[0, 2]", "0 columns"),
        ("[2, 2]", "[2, 2, 2]", "Expected `array` of length 2"),
        ("[sum]", "[spike]", "Invalid enum value 'spike'"),
        ("name: tiny", "name: tiny\nneurons: 3", "unknown field `neurons`"),
        ("name: tiny", "name: tiny\nenergy: {synapse: {value: 0, source: mine}}", "energy.synapse is 0"),
        ("name: tiny", "name: tiny\nenergy: {heat: {value: 1, source: mine}}", "Invalid enum value 'heat'"),
        ("name: tiny", "name: [tiny", "does not describe a chip"),
        ("name: tiny", "name: !!python/object/apply:os.getcwd []", "does not describe a chip"),
    ],
)
def test_what_is_wrong_is_named(old: str, new: str, said: str) -> None:
    assert old in MESH
    with pytest.raises(CompileError, match=re.escape(said)):
        parse(MESH.replace(old, new).encode(), "tiny.yaml")


def test_hostile_files(tmp_path) -> None:
    with pytest.raises(CompileError, match="larger than"):
        parse(b"#" * 2**17, "long.yaml")
    with pytest.raises(CompileError, match="does not describe a chip"):
        parse(b"\xff\xfe\x00", "bytes.yaml")
    nested = "a: &a [x, x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(20)
    )
    with pytest.raises(CompileError):
        parse(nested.encode(), "nested.yaml")
    with pytest.raises(CompileError, match="no chip is called loihi3"):
        load("loihi3")
    with pytest.raises(CompileError, match="cannot read"):
        load(tmp_path / "absent.yaml")
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(CompileError, match="cannot read"):
        load(tmp_path / "folder.yaml")
