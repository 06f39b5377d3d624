"""Ensembles of decision trees, walked for all samples and trees at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pccompile.diagnostics import CompileError
from pccompile.frontends.onnx.registry import Node, operator
from pccompile.frontends.onnx.scores import (
    LEARNED,
    TRANSFORMS,
    attribute_tensor,
    chosen,
    floats,
    labels_of,
    transformed,
    two_classes,
)
from pccompile.frontends.onnx.values import Value
from pccompile.limits import spend

MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ", "BRANCH_MEMBER")
AGGREGATES = ("AVERAGE", "SUM", "MIN", "MAX")
Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Forest:
    """Branches numbered 0 …, then leaves; `true` and `false` say where each branch leads.

    votes: `[leaf, target]`, NaN where a leaf has no vote. members: `[branch, …]`, NaN where there are no more.
    """

    roots: Array
    feature: Array
    split: Array
    mode: Array
    true: Array
    false: Array
    missing: Array
    members: Array
    votes: Array

    def depth(self) -> int:
        """The number of branches on the longest way to a leaf."""
        count, level, depth = len(self.feature), set(self.roots.tolist()), 0
        while level := {i for i in level if i < count}:
            level = {int(n[i]) for i in level for n in (self.true, self.false)}
            depth += 1
            if depth > count:
                raise CompileError("a tree leads back to itself")
        return depth

    def votes_for(self, x: Tensor) -> Tensor:
        """What each tree votes for each sample, `[sample, tree, target]`, NaN for no vote."""
        count = len(self.feature)
        place = torch.from_numpy(self.roots).expand(x.shape[0], -1)
        table = {n: torch.from_numpy(getattr(self, n)) for n in ("feature", "mode", "true", "false", "missing")}
        split, members = (torch.from_numpy(a).to(x.dtype) for a in (self.split, self.members))
        for _ in range(self.depth()):
            branch = torch.clamp(place, max=count - 1)
            value = torch.gather(x, 1, table["feature"][branch])
            taken = torch.zeros_like(place, dtype=torch.bool)
            for mode in sorted(set(self.mode.tolist())):
                holds = self.compare(mode, value, split[branch], members, branch)
                taken = torch.where(table["mode"][branch] == mode, holds, taken)
            taken = taken | (torch.isnan(value) & table["missing"][branch])
            step = torch.where(taken, table["true"][branch], table["false"][branch])
            place = torch.where(place < count, step, place)
        return torch.from_numpy(self.votes).to(x.dtype)[place - count]

    def compare(self, mode: int, value: Tensor, split: Tensor, members: Tensor, branch: Tensor) -> Tensor:
        """Whether the branches of one mode are taken."""
        match MODES[mode]:
            case "BRANCH_LEQ":
                return value <= split
            case "BRANCH_LT":
                return value < split
            case "BRANCH_GTE":
                return value >= split
            case "BRANCH_GT":
                return value > split
            case "BRANCH_EQ":
                return value == split
            case "BRANCH_NEQ":
                return value != split
        return (value.unsqueeze(-1) == members[branch]).any(-1)


def aggregated(votes: Tensor, how: str, trees: int) -> Tensor:
    """The votes `[sample, tree, target]` of all trees put together."""
    absent = torch.isnan(votes)
    if how in ("SUM", "AVERAGE"):
        total = torch.where(absent, 0.0, votes).sum(1)
        return total / trees if how == "AVERAGE" else total
    low, high = float("-inf"), float("inf")
    best = torch.where(absent, high, votes).amin(1) if how == "MIN" else torch.where(absent, low, votes).amax(1)
    return torch.where(absent.all(1), 0.0, best)


@operator("TreeEnsemble", domain=LEARNED)
def tree_ensemble(node: Node, x: Tensor) -> Tensor:
    """What the trees say together of each sample, `[sample, target]`."""
    forest = forest_of(node)
    votes = forest.votes_for(x)
    result = aggregated(votes, AGGREGATES[node.get("aggregate_function", 1)], len(forest.roots))
    return transformed(result, TRANSFORMS[node.get("post_transform", 0)])


def forest_of(node: Node) -> Forest:
    """The trees of a TreeEnsemble."""
    modes = node.get("nodes_modes").array.astype(np.int64)
    count = len(modes)

    def leads(name: str) -> Array:
        target = np.asarray(node.get(f"nodes_{name}nodeids"), dtype=np.int64)
        return np.where(np.asarray(node.get(f"nodes_{name}leafs"), dtype=bool), target + count, target)

    weights = node.get("leaf_weights").array
    spend("memory", 8 * len(weights) * node.get("n_targets"), node.op_type)
    votes = np.full((len(weights), node.get("n_targets")), np.nan)
    votes[np.arange(len(weights)), np.asarray(node.get("leaf_targetids"), dtype=np.int64)] = weights
    given = node.get("membership_values")
    sets = iter(np.split(given.array, np.flatnonzero(np.isnan(given.array)) + 1) if given is not None else ())
    members = [next(sets) if mode == MODES.index("BRANCH_MEMBER") else np.zeros(0) for mode in modes]
    return Forest(
        roots=np.asarray(node.get("tree_roots"), dtype=np.int64),
        feature=np.asarray(node.get("nodes_featureids"), dtype=np.int64),
        split=node.get("nodes_splits").array.astype(np.float64),
        mode=modes,
        true=leads("true"),
        false=leads("false"),
        missing=np.asarray(node.get("nodes_missing_value_tracks_true") or [0] * count, dtype=bool),
        members=padded(members),
        votes=votes,
    )


def padded(rows: list[Array]) -> Array:
    """Rows of different lengths as a matrix, filled up with NaN."""
    spend("memory", 8 * len(rows) * max((len(r) for r in rows), default=0), "TreeEnsemble")
    result = np.full((len(rows), max((len(r) for r in rows), default=0)), np.nan)
    for target, row in zip(result, rows, strict=True):
        target[: len(row)] = row
    return result


def old_forest(node: Node, prefix: str, targets: int) -> Forest:
    """The trees of a TreeEnsembleRegressor or TreeEnsembleClassifier, whose votes are called `prefix`_…."""
    keys = list(zip(node.get("nodes_treeids"), node.get("nodes_nodeids"), strict=True))
    names = node.get("nodes_modes")
    branches = [i for i, mode in enumerate(names) if mode != "LEAF"]
    leaves = [i for i, mode in enumerate(names) if mode == "LEAF"]
    place = {keys[i]: n for n, i in enumerate((*branches, *leaves))}
    values = listed(node, "nodes_values")
    spend("memory", 8 * len(leaves) * targets, node.op_type)
    votes = np.full((len(leaves), targets), np.nan)
    ids, weights = node.get(f"{prefix}_ids"), listed(node, f"{prefix}_weights")
    for key, target, weight in zip(
        zip(node.get(f"{prefix}_treeids"), node.get(f"{prefix}_nodeids"), strict=True), ids, weights, strict=True
    ):
        row = votes[place[key] - len(branches)]
        row[target] = weight if np.isnan(row[target]) else row[target] + weight
    first: dict[int, int] = {}
    reached = {
        (t, n)
        for i in branches
        for t, n in ((keys[i][0], node.get("nodes_truenodeids")[i]), (keys[i][0], node.get("nodes_falsenodeids")[i]))
    }
    for key in keys:
        if key not in reached:
            first.setdefault(key[0], place[key])
    missing = node.get("nodes_missing_value_tracks_true") or [0] * len(keys)
    return Forest(
        roots=np.array(list(first.values()), dtype=np.int64),
        feature=np.array([node.get("nodes_featureids")[i] for i in branches] or [0], dtype=np.int64),
        split=np.array([values[i] for i in branches] or [0.0], dtype=np.float64),
        mode=np.array([MODES.index(names[i]) for i in branches] or [0], dtype=np.int64),
        true=np.array([place[keys[i][0], node.get("nodes_truenodeids")[i]] for i in branches] or [0]),
        false=np.array([place[keys[i][0], node.get("nodes_falsenodeids")[i]] for i in branches] or [0]),
        missing=np.array([missing[i] for i in branches] or [0], dtype=bool),
        members=np.zeros((max(len(branches), 1), 0)),
        votes=votes,
    )


def listed(node: Node, name: str) -> list[float]:
    """A list of numbers among the attributes, or its form as a tensor."""
    given = node.get(f"{name}_as_tensor")
    numbers: list[float] = given.array.tolist() if given is not None else node.get(name)
    return numbers


@operator("TreeEnsembleRegressor", domain=LEARNED)
def tree_ensemble_regressor(node: Node, x: Tensor) -> Tensor:
    """What the trees say together of each sample, `[sample, target]`."""
    forest = old_forest(node, "target", node.get("n_targets"))
    result = aggregated(forest.votes_for(floats(node, x)), node.get("aggregate_function", "SUM"), len(forest.roots))
    base = attribute_tensor(node, "base_values", result)
    return transformed(result if base is None else result + base, node.get("post_transform", "NONE")).to(node.single)


@operator("TreeEnsembleClassifier", domain=LEARNED)
def tree_ensemble_classifier(node: Node, x: Tensor) -> tuple[Value, Tensor]:
    """The label that the trees vote for, and the classes' scores."""
    classes, transform = len(labels_of(node)), node.get("post_transform", "NONE")
    weights = listed(node, "class_weights")
    only = set(node.get("class_ids"))
    votes = old_forest(node, "class", classes).votes_for(floats(node, x))
    scores = aggregated(votes, "SUM", 1).to(node.single)
    base = attribute_tensor(node, "base_values", scores)
    if classes > 2 or len(only) > 1:
        if base is not None:
            scores, voted = scores + base, torch.ones_like(scores, dtype=torch.bool)
        else:
            voted = ~torch.isnan(votes).all(1)
        best = torch.argmax(torch.where(voted, scores, float("-inf")), 1)
        return chosen(node, best), transformed(scores, transform)
    if classes != 2:
        raise CompileError(f"{node.op_type} with a single class")
    (voted_for,) = only
    score = scores[:, voted_for : voted_for + 1]
    score = score if base is None else score + base[-1]
    probability = min(weights) >= 0
    second = (score > (0.5 if probability else 0.0)).squeeze(1).to(torch.int64)
    if voted_for == 1:
        return chosen(node, second), transformed(torch.cat([torch.zeros_like(score), score], 1), transform)
    return chosen(node, second), two_classes(score, transform, probability)
