"""Cores onto the tiles of a mesh, so that messages have a short way."""

from __future__ import annotations

import math

import numpy as np

from pccompile.backends.netlist.chip import Chip

SWEEPS, TRIALS = 20, 5000
"""How often all cores are tried at other places, at most; and how many cores in all, whole sweeps."""


def spread(traffic: np.ndarray, chip: Chip) -> np.ndarray:
    """The column and row of each core's tile, `[cores, 2]`: first greedily, then exchanged as long as that helps.

    traffic: messages from core to core. The cost is messages × hops, a hop being a step to a neighbouring tile.
    """
    mesh = Mesh(traffic, _places(len(traffic), chip))
    mesh.fill()
    for _ in range(max(1, min(SWEEPS, TRIALS // max(len(traffic), 1)))):
        if not mesh.sweep():
            break
    found: np.ndarray = mesh.places[mesh.at]
    return found


def hops(tiles: np.ndarray) -> np.ndarray:
    """The hops from each core to each, `[cores, cores]`."""
    found: np.ndarray = np.abs(tiles[:, None, :] - tiles[None, :, :]).sum(-1)
    return found


def _places(cores: int, chip: Chip) -> np.ndarray:
    """A place a core of a compact corner of the grid, with some to spare: `[places, 2]`, a tile's places together."""
    each, (columns, rows) = min(chip.cores_per_tile.whole, cores), chip.grid.value
    tiles = -(-cores // each)
    side = math.isqrt(max(2 * tiles - 1, 0)) + 1
    width, height = min(columns, side), min(rows, side)
    width = min(columns, max(width, -(-tiles // height)))
    height = min(rows, max(height, -(-tiles // width)))
    return np.array([(x, y) for y in range(height) for x in range(width) for _ in range(each)])


class Mesh:
    """Cores at places. What a core would cost at each column and at each row is kept: the two add up.

    at: the place of each core, −1 where it has none yet. away[axis][core, position]: messages × steps on that axis.
    """

    def __init__(self, traffic: np.ndarray, places: np.ndarray) -> None:
        self.both = (traffic + traffic.T).astype(np.float64)
        np.fill_diagonal(self.both, 0)
        self.places = places
        self.at = np.full(len(traffic), -1)
        self.occupant = np.full(len(places), -1)
        sizes = places.max(0) + 1
        self.steps = [np.abs(np.arange(n)[:, None] - np.arange(n)[None, :]).astype(np.float64) for n in sizes]
        self.away = [np.zeros((len(traffic), n)) for n in sizes]

    def cost(self, cores: np.ndarray | int, places: np.ndarray | int) -> np.ndarray:
        """What the messages of cores to those that have a place cost when they are at places."""
        x, y = self.places[places].T
        found: np.ndarray = self.away[0][cores, x] + self.away[1][cores, y]
        return found

    def put(self, core: int, place: int) -> None:
        """Place a core, or move it."""
        for axis, steps in enumerate(self.steps):
            change = steps[self.places[place, axis]]
            if self.at[core] >= 0:
                change = change - steps[self.places[self.at[core], axis]]
            self.away[axis] += np.outer(self.both[core], change)
        self.at[core], self.occupant[place] = place, core

    def fill(self) -> None:
        """Place every core: the busiest in the middle, then always the one that most talks to those already there."""
        everywhere = np.arange(len(self.places))
        central = np.abs(self.places - self.places.mean(0)).sum(1)
        total, pull = self.both.sum(1), np.zeros(len(self.at))
        for _ in range(len(self.at)):
            waiting = np.nonzero(self.at < 0)[0]
            core = int(waiting[np.lexsort((waiting, -total[waiting], -pull[waiting]))[0]])
            cost = np.where(self.occupant < 0, self.cost(core, everywhere) + 1e-6 * central, np.inf)
            self.put(core, int(np.argmin(cost)))
            pull += self.both[core]

    def sweep(self) -> bool:
        """Move each core to where that, and moving away who is there, helps most; whether anything moved."""
        helped, everywhere = False, np.arange(len(self.places))
        for core in range(len(self.at)):
            here = int(self.at[core])
            cost = self.cost(core, everywhere)
            gain = cost[here] - cost
            taken = np.nonzero((self.occupant >= 0) & (self.occupant != core))[0]
            who = self.occupant[taken]
            between = np.abs(self.places[taken] - self.places[here]).sum(1)
            gain[taken] += self.cost(who, taken) - self.cost(who, here) - 2 * self.both[core, who] * between
            there = int(np.argmax(gain))
            if gain[there] > 1e-6:
                helped, other = True, int(self.occupant[there])
                self.put(core, there)
                self.occupant[here] = -1
                if other >= 0:
                    self.put(other, here)
        return helped
