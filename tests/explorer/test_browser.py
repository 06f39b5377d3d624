"""The page in a browser: what a click, a key and a link do, and that it asks nobody for anything."""

import json
import re

import pytest
import torch
from helpers.browser import CHROMIUM, browser
from torch import nn

import pccompile

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)"),
]


class Block(nn.Module):
    def __init__(self, wide: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(wide, wide), nn.Linear(wide, wide)

    def forward(self, x):
        return x + torch.tanh(self.second(torch.relu(self.first(x))))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = nn.Linear(5, 6), nn.Sequential(Block(6), Block(6)), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)))


VIEWS = ("graph", "modules", "map", "convergence", "compare", "code", "stages")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    torch.manual_seed(0)
    x = torch.randn(4, 5)
    how = {"algorithm": "fixed-prediction", "lowering": "relax", "steps": 12, "rate": 0.3, "granularity": "op"}
    path = tmp_path_factory.mktemp("page") / "net.html"
    pc = pccompile.compile(Net(), (x,), check=False, **how)
    pc.explore((x,), algorithms={"exact": {}, "strict": {"steps": 9, "rate": 0.05}}, path=path)
    return path


@pytest.fixture(scope="module")
def opened(page):
    with browser() as b:
        yield b


@pytest.fixture
def tab(opened, page):
    """The page, opened anew; after the test nothing was complained of and nothing was asked for but the file."""
    opened.errors.clear()
    opened.requests.clear()
    opened.go(page)
    yield opened
    opened.run("new Promise(r => setTimeout(r, 50))")
    assert opened.errors == []
    assert {re.match(r"\w+:", r)[0] for r in opened.requests} <= {"file:", "about:", "data:", "blob:"}
    assert [r for r in opened.requests if r.startswith("file:")] == [page.as_uri()]


def state(tab) -> dict:
    return tab.run("Object.fromEntries(new URLSearchParams(location.hash.slice(1)))")


def test_a_click_chooses_and_the_panel_says_all(tab) -> None:
    tab.click('[data-id="blocks_0_second"] rect')
    assert state(tab)["vertex"] == "blocks_0_second"
    text = tab.run("document.getElementById('panel').innerText")
    for part in ("blocks › 0 › second", "blocks_0_second", "float32[batch, 6]", "return x + torch.tanh(self.second",
                 "prediction_blocks_0_second = F.linear(", "in range(steps):", "error_blocks_0_second",
                 "blocks.0.second.weight", "multilinear"):  # fmt: skip
        assert part in text, part
    assert tab.run("document.querySelectorAll('#panel .katex').length") >= 4
    assert tab.run("document.querySelectorAll('#panel canvas').length") >= 2  # uPlot's and the picture
    tab.press("ArrowUp")
    assert state(tab)["vertex"] == "blocks_0_relu"
    tab.press("ArrowDown")
    assert state(tab)["vertex"] == "blocks_0_second"


def test_scrubbing_colours_the_wave_of_errors(tab) -> None:
    def filled() -> int:
        return tab.run(
            "[...document.querySelectorAll('#world .vertex rect')].filter(r => r.style.fill.startsWith('rgb')).length"
        )

    tab.press("Home")
    assert state(tab)["step"] == "0"
    counts = [filled()]
    for _ in range(12):
        tab.press("ArrowRight")
        counts.append(filled())
    assert counts[0] == 1  # the output
    assert counts == sorted(counts)
    assert counts[-1] == tab.run("document.querySelectorAll('#world .vertex').length")
    assert counts[3] < counts[-1]
    tab.run("(s => { s.value = 4; s.dispatchEvent(new Event('input')); })(document.getElementById('step'))")
    assert state(tab)["step"] == "4"
    assert "4 of 12 steps" in tab.run("document.getElementById('now').innerText")
    tab.press(" ")
    tab.wait("location.hash.includes('step=7')")
    tab.press(" ")


def test_modules_fold_by_mouse_and_by_keyboard(tab) -> None:
    count = "document.querySelectorAll('#world .vertex').length"
    whole = tab.run(count)
    tab.click('[data-fold="blocks.1"]')
    assert tab.run("document.querySelectorAll('.vertex.closed').length") == 1
    assert tab.run(count) < whole
    tab.click(".vertex.closed rect")
    assert tab.run(count) == whole
    tab.run("document.querySelector('[data-fold=\"blocks.0\"]').focus()")
    tab.press("Enter")
    assert tab.run("document.querySelector('.vertex.closed').dataset.id") == "blocks.0"
    assert tab.run("document.activeElement.dataset.id") == "blocks.0"  # what has the focus keeps it
    tab.press("Enter")
    assert tab.run(count) == whole
    tab.click('[data-id="blocks_1_first"] rect')
    tab.press("f")
    assert tab.run("document.querySelector('.vertex.closed.chosen').dataset.id") == "blocks.1"
    tab.press("f")
    assert tab.run("document.querySelector('.vertex.closed').dataset.id") == "blocks"
    tab.press("u")
    tab.press("u")
    assert tab.run(count) == whole


def test_search(tab) -> None:
    tab.press("/")
    assert tab.run("document.activeElement.id") == "search"
    tab.press(*"second")
    assert tab.run("document.querySelectorAll('#found [data-go]').length") == 2
    tab.press("ArrowDown", "Enter")
    assert state(tab)["vertex"] == "blocks_1_second"
    assert tab.run("document.getElementById('found').hidden")
    tab.press("/")
    tab.press(*"nothing")
    assert "nothing found" in tab.run("document.getElementById('found').innerText")
    tab.press("Escape")


def test_every_view_under_every_algorithm(tab) -> None:
    assert tab.run("[...document.querySelectorAll('[role=tab]')].map(t => t.dataset.view)") == [*VIEWS]
    for algorithm in ("fixed-prediction", "exact", "strict"):
        tab.click(f'[data-algorithm="{algorithm}"]')
        for i, view in enumerate(VIEWS):
            tab.press(str(i + 1))
            assert state(tab)["view"] == view
            assert state(tab)["algorithm"] == algorithm
            assert tab.run("document.getElementById('view').childElementCount") > 0
            assert "[object" not in tab.run("document.body.innerText")
    assert tab.run("document.querySelectorAll('.katex-error, .tex.raw').length") == 0


def test_what_the_views_say(tab) -> None:
    tab.press("4")
    rows = tab.run("[...document.querySelectorAll('tbody tr')].map(r => [...r.children].map(c => c.innerText))")
    assert {r[0] for r in rows} == {n for n, _ in Net().named_parameters()}
    assert all(len(r) == 7 for r in rows)  # 1, 2, 4, 8, 12 steps, a name and a ratio
    tab.press("5")
    assert "3 ways" in tab.run("document.getElementById('view').innerText")
    assert "1.000" in tab.run("document.querySelectorAll('.columns > div')[1].innerText")  # exact is backpropagation
    tab.press("6")
    assert "error_" in tab.run("document.querySelector('.line.mine').parentElement.innerText")
    tab.press("7")
    stages = tab.run("[...document.querySelectorAll('.passes button')].map(b => b.childNodes[0].data)")
    assert stages[0] == "import-graph"
    assert stages[-1] == "emit"
    tab.click(f'[data-stage="{stages.index("derive-rules")}"]')
    assert tab.run("document.querySelectorAll('.difference .in').length") > 10


def test_a_link_restores_a_view(tab, page) -> None:
    tab.go(page, "#vertex=blocks_1_first&step=3&algorithm=strict&view=map&folded=blocks.0")
    assert state(tab) == {
        "vertex": "blocks_1_first",
        "step": "3",
        "algorithm": "strict",
        "view": "map",
        "folded": "blocks.0",
    }
    assert tab.run("document.querySelector('#panel h2').innerText") == "blocks_1_first"
    tab.press("1")
    assert tab.run("document.querySelector('.vertex.closed').dataset.id") == "blocks.0"
    tab.requests[:] = tab.requests[:1] + [r for r in tab.requests if not r.startswith("file:")]
    tab.go(page, "#vertex=no_such&step=-7&algorithm=none&view=nothing")  # what there is not becomes what there is
    assert state(tab)["step"] == "0"
    assert state(tab)["view"] == "graph"
    tab.requests[:] = [page.as_uri()]


def test_all_equations_are_read(tab) -> None:
    tab.press("5")
    assert tab.run("document.querySelectorAll('.tex').length") > 6
    for name in tab.run("[...document.querySelectorAll('#world .vertex')].map(g => g.dataset.id)"):
        tab.run(f"location.hash = 'view=graph&vertex={name}'")
    assert tab.run("document.querySelectorAll('.tex.raw').length") == 0


def test_text_alternatives(tab) -> None:
    unnamed = tab.run(
        "[...document.querySelectorAll('button, input, [role=button], [role=img], [role=tab]')]"
        ".filter(e => !(e.getAttribute('aria-label') || e.textContent.trim())).map(e => e.outerHTML)"
    )
    assert unnamed == []
    assert re.fullmatch(
        r"stem: error .+ at step 12", tab.run("document.querySelector('[data-id=stem]').getAttribute('aria-label')")
    )
    tab.press("2")
    assert tab.run("document.querySelectorAll('.outline a').length") == len(
        tab.run("[...new Set([...document.querySelectorAll('.outline a')].map(a => a.dataset.go))]")
    )


@pytest.mark.parametrize("dark", [False, True])
def test_narrow(page, dark) -> None:
    with browser(400, 800, dark) as b:
        b.go(page)
        for view in range(1, len(VIEWS) + 1):
            b.press(str(view))
            assert b.run("document.documentElement.scrollWidth") <= 400, VIEWS[view - 1]
        assert b.errors == []


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'`${1}\\u2028é漢$\\frac{1}{"


class Hostile(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.add_module(HOSTILE.replace(".", ""), nn.Linear(3, 3))
        self.out = nn.Linear(3, 2)

    def forward(self, x):
        return self.out(torch.tanh(next(iter(self._modules.values()))(x)))


def test_names_are_text(tmp_path) -> None:
    x = torch.randn(2, 3)
    pc = pccompile.compile(Hostile(), (x,), granularity="op", check=False)
    path = pc.explore((x,), title=HOSTILE, algorithms=["fixed-prediction"]).save(tmp_path / "hostile.html")
    with browser() as b:
        b.go(path)
        assert b.run("document.getElementById('title').textContent") == HOSTILE
        for view in range(1, len(VIEWS) + 1):
            b.press(str(view))
        assert b.run("document.querySelectorAll('img, iframe, object, embed, [onerror]').length") == 0
        names = b.run("[...document.querySelectorAll('script')].length")
        assert names == 3 + 1 + 1 + 3  # those packed, the data, the page's own, and the three unpacked
        assert b.errors == []
        assert {r.partition(":")[0] for r in b.requests} <= {"file", "about", "data", "blob"}


def test_the_policy_lets_nothing_out_and_no_script_in(page) -> None:
    with browser() as b:
        b.go(page)
        asked = "fetch('https://example.com').then(() => 'answered', () => 'refused')"
        assert b.run(asked) == "refused"
        assert any("Content Security Policy" in e for e in b.errors)
        b.errors.clear()
        b.run("document.head.append(Object.assign(document.createElement('script'), {text: 'window.intruder = 1'}))")
        b.run("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.intruder = 2\">')")
        b.run("new Promise(r => setTimeout(r, 100))")
        assert b.run("window.intruder === undefined")
        assert json.dumps(b.errors).count("Content Security Policy") >= 2


def test_the_least_and_the_wildest(tmp_path) -> None:
    """One vertex and no step; and inference that ends in what is no number."""
    x = torch.randn(2, 3)
    alone = pccompile.compile(nn.Linear(3, 2).requires_grad_(False), (x.clone().requires_grad_(),), check=False)
    paths = [alone.explore((x.clone().requires_grad_(),)).save(tmp_path / "alone.html")]
    deep = nn.Sequential(nn.Linear(3, 4), nn.ELU(), nn.Linear(4, 2))
    how = {"algorithm": "strict", "steps": 40, "rate": 50.0, "loss": nn.functional.mse_loss, "on_divergence": "ignore"}
    wild = pccompile.compile(deep, (x,), granularity="op", check=False, **how)
    paths.append(wild.explore((x,), target=torch.randn(2, 2)).save(tmp_path / "wild.html"))
    for path in paths:
        with browser() as b:
            b.go(path)
            for view in range(1, len(VIEWS) + 1):
                b.press(str(view))
                assert "NaN" not in b.run("document.body.innerText")
                assert "undefined" not in b.run("document.body.innerText")
            assert b.errors == []
            settles = b.run("!document.getElementById('now').innerText.includes('does not settle')")
            assert settles == (path == paths[0])


def test_graphviz_reads_what_is_drawn_for_it(tab) -> None:
    pc = pccompile.compile(Hostile(), (torch.randn(2, 3),), granularity="op", check=False)
    drawing = tab.run(f"Viz.instance().then(v => v.renderJSON({json.dumps(pc.dot())}).objects.map(o => o.label))")
    assert len(drawing) == len(pc.graph.vertices)
    assert any("漢" in label for label in drawing) or all("漢" not in v.name for v in pc.graph.vertices)


def test_within_a_notebook(tmp_path) -> None:
    pc = pccompile.compile(Net(), (torch.randn(2, 5),), granularity="op", check=False)
    shown = pc.explore((torch.randn(2, 5),), algorithms=[])._repr_html_()
    path = tmp_path / "notebook.html"
    path.write_text(f"<!doctype html><html data-ready='1'><meta charset=utf-8><body>{shown}", encoding="utf-8")
    with browser() as b:
        b.go(path)
        b.run("new Promise(r => setTimeout(r, 2500))")
        frames = b.call("Page.getFrameTree")["frameTree"]["childFrames"]
        world = b.call("Page.createIsolatedWorld", frameId=frames[0]["frame"]["id"])["executionContextId"]
        ready = b.call("Runtime.evaluate", contextId=world, expression="document.documentElement.dataset.ready || ''")
        assert "ready" in ready["result"]["value"]
        assert b.errors == []
