"""A circuit on the same page: populations for vertices, projections for edges, states by tick, and the chip."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pccompile.backends.netlist import Netlist
from pccompile.backends.netlist.chip import Chip
from pccompile.backends.netlist.format import Projection
from pccompile.backends.netlist.placement import Placement
from pccompile.explorer.explore import FORMAT, VERSION, Exploration
from pccompile.explorer.runs import DECADES, PIXELS, SIDE, picture_of, rounded
from pccompile.files.writing import SEAL
from pccompile.report.floorplan import fullness


def explore_circuit(
    net: Netlist,
    inputs: Any = (),
    targets: Any = (),
    *,
    clamps: Any = (),
    ticks: int | None = None,
    chip: str | Path | Chip | None = None,
    path: str | Path | None = None,
    title: str = "",
    **options: Any,
) -> Exploration:
    """A circuit and its states while it settles; on a chip, where the units of each population lie.

    inputs, targets, clamps, ticks: as for `Netlist.simulate`. options: as for `Netlist.session`. path: where to write
    the page, or with `.json` its data. Raises CompileError.
    """
    placed = None if chip is None else net.place(chip)
    net = net if placed is None else placed.net
    states = settled(net, net.presentation(inputs, targets, clamps), ticks, options)
    found = Exploration(_data(net, states, placed, title or net.spec.name))
    if path is not None:
        found.save(path)
    return found


def settled(
    net: Netlist, presentation: Mapping[str, np.ndarray], ticks: int | None, options: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """The states of every population, `[ticks + 1, replicas, *shape]`, first what is presented."""
    names = list(net.spec.populations)
    session = net.session(max((len(v) for v in presentation.values()), default=1), **options)
    session.set(presentation)
    first = session.states
    later = session.run(ticks, trace=names)
    parts = {n: [first[n][None], *([later[n]] if n in later else [])] for n in names}
    return {n: torch.from_numpy(np.concatenate(p).astype(np.float64)) for n, p in parts.items()}


def _data(net: Netlist, states: Mapping[str, torch.Tensor], placed: Placement | None, title: str) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "generator": SEAL,
        "kind": "circuit",
        "title": title,
        "granularity": "population",
        "parameters": {k: list(v.shape) for k, v in net.tensors.items() if k in net.spec.plastic()},
        "made_with": {"torch": torch.__version__},
        "graphs": [populations(net)],
        "runs": [_run(net, states)],
        "stages": [],
        "chip": None if placed is None else chip_data(placed),
    }


def populations(net: Netlist) -> list[dict[str, Any]]:
    """Every population as a vertex: what arrives at it stands where a vertex has its rules."""
    arriving: dict[str, list[Projection]] = {name: [] for name in net.spec.populations}
    for q in net.spec.projections:
        arriving[q.target].append(q)
    outputs = {port.population for port in net.spec.outputs.values()}
    found = []
    for name, p in net.spec.populations.items():
        parameters = [q.param for q in arriving[name] if q.param] + ([p.bias] if p.bias else [])
        found.append(
            {
                "name": name,
                "role": "output" if name in outputs else "hidden",
                "type": f"{p.unit}[{', '.join(map(str, p.shape))}]",
                "operations": [p.unit, p.role, *([p.function] if p.function else [])],
                "parents": list(dict.fromkeys(q.pre for q in arriving[name])),
                "inputs": [],
                "parameters": list(dict.fromkeys(parameters)),
                "rules": [[q.name, _said(q)] for q in arriving[name]],
                "source": {"file": "", "line": 0, "text": ""},
                "path": [p.vertex] if p.vertex else [],
                "label": name,
            }
        )
    return found


def _said(p: Projection) -> str:
    """A projection in words."""
    parts = [f"{p.op}{' transposed' if p.transpose else ''} from {p.pre} to {p.post}"]
    parts += [f"through {p.param}"] if p.param else []
    parts += [f"times {p.gain:g}"] if p.gain != 1 else []
    parts += [f"{p.delay} ticks late"] if p.delay else []
    return ", ".join(parts)


def _run(net: Netlist, states: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    spec = net.spec
    of_errors = [n for n, p in spec.populations.items() if p.role == "error"]
    energies = {n: 0.5 * states[n].square().flatten(1).sum(1) for n in of_errors}
    ticks = len(next(iter(states.values()))) if states else 0
    free = sum(energies.values(), torch.zeros(ticks, dtype=torch.float64))
    nothing: list[float | None] = [0.0] * ticks
    side = SIDE
    while side > 4 and len(states) * ticks * side * side > PIXELS:
        side //= 2
    pictures = {n: p for n, s in states.items() if (p := picture_of(s[:, 0], side)) is not None}
    return {
        "name": "circuit",
        "algorithm": "fixed-prediction",
        "graph": 0,
        "steps": max(ticks - 1, 0),
        "settings": {p.name: p.ticks for p in spec.phases},
        "settles": bool(free.isfinite().all()),
        "diverges": None,
        "errors": {n: [rounded(float(x)) for x in s.square().flatten(1).mean(1).sqrt()] for n, s in states.items()},
        "energy": {n: [rounded(float(x)) for x in energies[n]] if n in energies else nothing for n in states},
        "free_energy": [rounded(float(x)) for x in free],
        "loss": [],
        "pictures": {"decades": DECADES, "of": pictures},
        "gradients": {"steps": [], "parameters": {}},
        "equations": {},
        "code": {"text": "", "lines": {}, "errors": {}},
    }


def chip_data(placed: Placement) -> dict[str, Any]:
    """The cores: the tile of each, how full it is, and what lies on it."""
    used: dict[str, list[int]] = {n: np.unique(cores).tolist() for n, cores in placed.cores.items()}
    return {
        "name": placed.chip.name,
        "tiles": placed.tiles.tolist(),
        "full": [rounded(float(x)) for x in fullness(placed)],
        "cores": used,
        "messages": placed.messages,
        "hops": placed.hops,
    }
