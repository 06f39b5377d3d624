"""The report of a netlist's costs, as text and as a page."""

import re
from html.parser import HTMLParser

import msgspec
import torch
from torch import nn

from pccompile.backends.netlist import Netlist
from pccompile.backends.netlist.resources import Energy
from pccompile.pipeline import compile_netlist
from pccompile.report.netlist import energy, resources_page, resources_report


def small(name: str = "small") -> Netlist:
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    return compile_netlist(model, (torch.randn(1, 4),), name=name)


class Reader(HTMLParser):
    """Elements that were opened and not closed, all tags with their attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.text += data


def test_text() -> None:
    text = str(resources_report(small().resources("loihi1")))
    assert "relative error of a gradient, at most 0.002 after 64 ticks" in " ".join(text.split())
    assert "limits       all hold" in text
    assert "not native   product units (n1.g): Loihi 1 does not run them as they are" in text
    assert "chip" not in str(resources_report(small().resources()))


def test_a_page_is_complete_in_itself() -> None:
    page = Reader(resources_page(small(), "loihi1"))
    assert page.open == []
    tags = [tag for tag, _ in page.tags]
    assert not {"script", "link", "img", "iframe"} & set(tags)
    assert not [a for _, attrs in page.tags for a in attrs if a in ("src", "href") or a.startswith("on")]
    assert "svg" in tags
    assert "Davies et al. 2018" in page.text
    assert page.text.count("core 0,") == 1


def test_lines_between_tiles_are_the_traffic() -> None:
    wide = compile_netlist(nn.Sequential(nn.Linear(784, 256), nn.Tanh(), nn.Linear(256, 10)), (torch.randn(1, 784),))
    page = resources_page(wide, "mesh")
    p = wide.place("mesh")
    between = int(p.use.traffic.sum() - p.use.traffic.trace())
    shown = [int(n.replace(",", "")) for n in re.findall(r"<path[^>]*>\s*<title>([\d,]+) messages a tick", page)]
    assert sum(shown) == between > 0


def test_names_are_no_markup() -> None:
    hostile = '<script>alert("x")</script>'
    given = small(hostile)
    populations = {n if n != "n1.g" else hostile: p for n, p in given.spec.populations.items()}
    projections = tuple(
        msgspec.structs.replace(
            p,
            pre=hostile if p.pre == "n1.g" else p.pre,
            post=f"{hostile}:{p.port}" if p.target == "n1.g" else p.post,
        )
        for p in given.spec.projections
    )
    spec = msgspec.structs.replace(given.spec, populations=populations, projections=projections)
    page = resources_page(Netlist(spec, given.tensors), "loihi1")
    assert "<script" not in page
    assert hostile in Reader(page).text


def test_energies_are_read_easily() -> None:
    assert energy(Energy(5.0e6, 7.5e6)) == "5 to 7.5 µJ"
    assert energy(Energy(120, 120)) == "120 pJ"
    assert energy(Energy(0, 0, missing=("unit",))) == "–"
    assert energy(Energy(2e12, 2e12)) == "2 J"


def test_a_long_table_is_cut_on_the_terminal() -> None:
    layers = [m for _ in range(9) for m in (nn.Linear(3, 3), nn.Tanh())]
    made = compile_netlist(nn.Sequential(*layers), (torch.randn(1, 3),), name="deep")
    shown = str(resources_report(made.resources()))
    assert f"… and {len(made.spec.populations) - 30} more" in shown
    assert all(name in resources_page(made, "mesh") for name in made.spec.populations)
