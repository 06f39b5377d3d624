"""Strict inference of other libraries beside ours: the same weights and data, gradients compared before time is.

python benchmarks/peers.py [names …] [--folder FOLDER] [--source NAME=PATH …] [--rounds N] [--output FILE]

Each peer runs in a process and a virtual environment of its own, which is made under the folder (out/peers) when it is
first asked for; `--source` installs one from a checkout. All take turns on one core; times are medians of CPU time.
A run of all peers writes docs/peers.md.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
ADAPTERS = ROOT / "benchmarks" / "peers"
sys.path.insert(0, str(ADAPTERS))

from worker import Problem  # noqa: E402

ONE_CORE = """import os, sys
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
os.execv(sys.argv[1], sys.argv[1:])"""
"""Runs a command on one core, before any library counts them."""

SIZES, BATCH, STEPS, RATE = (784, 256, 256, 10), 64, 20, 0.1
EQUAL = 1e-2
"""Gradients that differ by less are of the same equations: a value that float32 rounds to the other side of ReLU's kink
changes them by some 1e-3, other equations by more than 1e-1."""
COUNT, ROUNDS = 10, 15
EAGER = "eager"
LAST = 300
"""Characters of a failure that are told."""


@dataclass(frozen=True)
class Peer:
    """What is measured: its title, its adapter's file, what to install (nothing: this environment has it), and beside
    which other one its gradients and its time stand."""

    title: str
    adapter: str
    packages: tuple[str, ...] = ()
    beside: str = "pccompile"


JPC = "jpc @ git+https://github.com/thebuckleylab/jpc@7d6cc05742d28b543311e6c4d4ca140ba996f8b5"
PEERS = {
    EAGER: Peer("backpropagation, eager torch", "torch_eager", beside=EAGER),
    "pccompile": Peer("pccompile, the generated file", "pccompile_file"),
    "compiled": Peer("the same under torch.compile", "pccompile_compiled"),
    "module": Peer("pccompile, `pc.loss(…).backward()`", "pccompile_module"),
    "jit": Peer("the same with `jit=True`", "pccompile_jit"),
    "torch": Peer("torch by hand", "torch_by_hand"),
    "jax": Peer("JAX by hand", "jax_by_hand", ("jax==0.10.2", "numpy==2.4.6")),
    "fabricpc": Peer("FabricPC", "fabricpc_strict", ("fabricpc==0.6.0", "jax==0.10.2", "numpy==2.4.6")),
    "jpc": Peer("JPC", "jpc_strict", (JPC, "jax==0.5.2", "numpy==2.4.6")),
    "pcx": Peer("PCX", "pcx_strict", ("pcx==0.6.3", "jax==0.4.38", "numpy==2.4.6")),
    "before": Peer("torch by hand, of these equations", "torch_by_hand_before", beside="before"),
    "deepity": Peer("Deepity", "deepity_strict", ("pydeepity==0.1.0a3", "numpy==2.4.6"), "before"),
    "ngclearn": Peer("ngc-learn", "ngclearn_strict", ("ngclearn==3.1.1", "jax==0.10.2", "numpy==2.4.6"), "before"),
}


@dataclass(frozen=True)
class Row:
    """What became of a peer: its version, seconds a gradient, and how far its gradients are from ours and from those it
    stands beside, relative, of the parameter where that is most; or why there is nothing."""

    version: str
    seconds: float = 0.0
    to_ours: float = 0.0
    to_beside: float = 0.0
    failure: str = ""


class Failure(Exception):
    """A peer that cannot be measured, and why."""


def problem(sizes: Sequence[int] = SIZES, batch: int = BATCH, steps: int = STEPS, rate: float = RATE) -> Problem:
    """A network as `torch.nn.Linear` begins, normal inputs, and labels as 0 and 1."""
    draws = np.random.default_rng(0)
    pairs = list(itertools.pairwise(sizes))
    weights = tuple((draws.uniform(-1, 1, (n, k)) / k**0.5).astype(np.float32) for k, n in pairs)
    biases = tuple((draws.uniform(-1, 1, n) / k**0.5).astype(np.float32) for k, n in pairs)
    x = draws.standard_normal((batch, sizes[0]), np.float32)
    y = np.eye(sizes[-1], dtype=np.float32)[draws.integers(sizes[-1], size=batch)]
    return Problem(weights, biases, x, y, steps, rate)


def version(name: str, source: str | None) -> str:
    """What was installed: the pinned version, or the commit that is checked out."""
    if not PEERS[name].packages:
        return ""
    package, _, address = PEERS[name].packages[0].partition(" @ ")
    if source is None:
        return f"{package} at {address.rpartition('@')[2][:7]}" if address else package.replace("==", " ")
    ran = subprocess.run(["git", "-C", source, "rev-parse", "HEAD"], capture_output=True, text=True)
    return f"{name} at {ran.stdout[:7]}" if ran.returncode == 0 else f"{name} from a folder"


def interpreter(name: str, folder: Path, source: str | None) -> str:
    """The Python that has a peer, installed into an environment of its own if it is not. Raises Failure."""
    packages = [*PEERS[name].packages]
    if not packages:
        return sys.executable
    packages[0] = source or packages[0]
    place = folder / name
    done, python = place / "installed.txt", place / ("Scripts" if os.name == "nt" else "bin") / "python"
    if done.exists() and done.read_text().splitlines() == packages:
        return str(python)
    print(f"installing {', '.join(packages)}", file=sys.stderr)
    venv.create(place, clear=True, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
    ran = subprocess.run(pip, capture_output=True, text=True)
    if ran.returncode:
        errors = [line for line in ran.stderr.splitlines() if line.startswith("ERROR:")]
        raise Failure(f"not installed: {(errors or ran.stderr.splitlines())[-1].removeprefix('ERROR: ')[:LAST]}")
    done.write_text("\n".join(packages))
    return str(python)


class Worker:
    """A peer's process, warm and waiting. Raises Failure where it does not come that far."""

    def __init__(self, process: subprocess.Popen[str], gradients: Path, errors: Path) -> None:
        self.process, self.errors = process, errors
        self._answer("ready")
        with np.load(gradients) as file:
            self.gradients = [file[key] for key in file]

    def seconds(self, count: int) -> float:
        """CPU time of a gradient, the mean of so many."""
        assert self.process.stdin
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        return float(self._answer("")) / count

    def _answer(self, expected: str) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline().strip()
        if not line or (expected and line != expected):
            told = [text for text in self.errors.read_text().splitlines() if text.strip()]
            raise Failure(f"failed: {told[-1][:LAST] if told else 'it ended without a word'}")
        return line


@contextmanager
def worker(name: str, python: str, problem: Path) -> Iterator[Worker]:
    """The process of a peer, which ends with the block."""
    gradients, errors = problem.with_name(f"{name}.npz"), problem.with_name(f"{name}.txt")
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | threads | {"JAX_PLATFORMS": "cpu"}
    if not PEERS[name].packages:
        environment["PYTHONPATH"] = str(ROOT)
    command = [python, str(ADAPTERS / f"{PEERS[name].adapter}.py"), str(problem), str(gradients)]
    with errors.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", ONE_CORE, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            env=environment,
        )
    try:
        yield Worker(process, gradients, errors)
    finally:
        process.terminate()
        process.communicate()


def difference(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """The largest relative distance of a parameter's gradient."""
    pairs = zip(found, expected, strict=True)
    return max(float(np.linalg.norm(f - e) / np.linalg.norm(e)) for f, e in pairs)


def measured(
    names: Sequence[str],
    problem: Problem,
    folder: Path,
    sources: Mapping[str, str] | None = None,
    rounds: int = ROUNDS,
    count: int = COUNT,
) -> dict[str, Row]:
    """A row for each of these peers, and for those that they stand beside."""
    names = [n for n in PEERS if n in {EAGER, "pccompile", *names, *(PEERS[m].beside for m in names)}]
    rows, workers, sources = dict[str, Row](), dict[str, Worker](), sources or {}
    with ExitStack() as stack, tempfile.TemporaryDirectory() as place:
        path = Path(place) / "problem.npz"
        problem.save(str(path))
        for name in names:
            try:
                python = interpreter(name, folder, sources.get(name))
                workers[name] = stack.enter_context(worker(name, python, path))
            except Failure as failure:
                rows[name] = Row(version(name, sources.get(name)), failure=str(failure))
        times: dict[str, list[float]] = {name: [] for name in workers}
        for _ in range(rounds):
            for name, seconds in times.items():
                seconds.append(workers[name].seconds(count))
    gradients = {name: w.gradients for name, w in workers.items()}
    for name, seconds in times.items():
        ours, beside = (difference(gradients[name], gradients[n]) for n in ("pccompile", PEERS[name].beside))
        rows[name] = Row(version(name, sources.get(name)), statistics.median(seconds), ours, beside)
    return {name: rows[name] for name in names}


def table(rows: Mapping[str, Row], beside: str) -> str:
    """The rows that stand beside one of them, as Markdown; no time where gradients are those of something else."""
    lines = ["| | CPU time, ms | × one eager gradient | gradients differ by | version |", "|---|---|---|---|---|"]
    for name, row in rows.items():
        peer = PEERS[name]
        if beside not in (peer.beside, name):
            continue
        if row.failure:
            lines.append(f"| {peer.title} | | | {row.failure.replace('|', '/')} | {row.version} |")
            continue
        cells = f"{1e3 * row.seconds:.2f} | {row.seconds / rows[EAGER].seconds:.1f}"
        if row.to_beside > EQUAL:
            cells = "not compared: something else is computed | "
        lines.append(f"| {peer.title} | {cells} | {f'{row.to_beside:.0e}' if name != beside else ''} | {row.version} |")
    return "\n".join(lines)


def page(rows: Mapping[str, Row]) -> str:
    """The text of docs/peers.md."""
    eager, to_ours = rows[EAGER], [r.to_ours for n, r in rows.items() if PEERS[n].beside == "before" and not r.failure]
    sizes = "-".join(map(str, SIZES))
    apart = f"up to {max(to_ours):.0%}" if to_ours else "not measured how far"
    return f"""# Other libraries

Generated by `make peers` (`python benchmarks/peers.py`): one training gradient of strict inference, T = {STEPS}
steps of size {RATE}, in a perceptron {sizes} with ReLU on {BATCH} samples, float32, loss ½ Σ (y − out)².
All have the same weights and data, each a process and an environment of its own, and one core, on which they take
turns: {ROUNDS} rounds of {COUNT} gradients, medians of CPU time. What a library compiles, it compiled before. Gradients
are compared first, and only those that agree are timed beside each other: "differ by" is the largest relative distance
of a parameter's gradient from that of the first row with these equations. The adapters, a file each, are in
`benchmarks/peers/`.

One gradient of eager torch, backpropagation, took {1e3 * eager.seconds:.2f} ms.

## v̂ = relu(W v + b)

Values stand behind the nonlinearities, a layer with its nonlinearity is a vertex.

{table(rows, "pccompile")}

FabricPC, JPC, PCX and JAX by hand are one XLA program, in which the steps are a loop or unrolled; eager torch calls a
kernel for each operation.

## v̂ = W relu(v) + b

Values stand in front of the nonlinearities. These are other equations: their gradients are {apart} from those above,
and their times are no measure of those above either.

{table(rows, "before")}
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables, and write the page if all peers were asked for."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("names", nargs="*", help=f"{', '.join(PEERS)}; the page stays as it is")
    p.add_argument("--folder", type=Path, default=ROOT / "out" / "peers", help="where the environments are")
    p.add_argument("--source", action="append", default=[], metavar="NAME=PATH", help="install a peer from there")
    p.add_argument("--rounds", type=int, default=ROUNDS)
    p.add_argument("--output", type=Path, default=ROOT / "docs" / "peers.md")
    options = p.parse_args(arguments)
    sources = dict(s.split("=", 1) for s in options.source if "=" in s)
    unknown = [n for n in (*options.names, *sources) if n not in PEERS]
    if unknown or len(sources) < len(options.source):
        p.error(f"no such peer: {', '.join(unknown)}" if unknown else "--source takes NAME=PATH")
    rows = measured(options.names or list(PEERS), problem(), options.folder, sources, options.rounds)
    for beside in ("pccompile", "before"):
        if beside in rows:
            print(f"{table(rows, beside)}\n")
    print(f"one eager gradient: {1e3 * rows[EAGER].seconds:.2f} ms")
    if not options.names:
        options.output.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
