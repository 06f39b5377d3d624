"""Does it work for reinforcement learning? Policy gradient in a small grid world, by three ways of learning."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

import pccompile

SIDE, STEPS, EPISODES, UPDATES = 4, 12, 64, 60
Way = Literal["backpropagation"] | pccompile.AlgorithmName
RUNS: dict[Way, dict[str, Any]] = {
    "backpropagation": {},
    "exact": {},
    "fixed-prediction": {"steps": 100, "rate": 0.1},
    "strict": {"steps": 20, "rate": 0.1},
}
MOVES = torch.tensor([[0, 1], [1, 0], [0, -1], [-1, 0]])


def loss(output: Tensor, target: Tensor) -> Tensor:
    """−Σ advantage · log π(action): `target` is the one-hot action times the advantage."""
    return -(target * torch.log_softmax(output, 1)).sum()


def episodes(model: nn.Module, chance: torch.Generator) -> tuple[Tensor, Tensor, Tensor, float]:
    """States `[n, 16]`, one-hot actions `[n, 4]` and returns `[n]` of walks from a corner, and the part that arrives.

    The opposite corner pays 1 and ends a walk; each step costs 0.02.
    """
    at, alive = torch.zeros(EPISODES, 2, dtype=torch.long), torch.ones(EPISODES, dtype=torch.bool)
    seen, taken, paid, living = [], [], [], []
    for _ in range(STEPS):
        state = nn.functional.one_hot(at[:, 0] * SIDE + at[:, 1], SIDE * SIDE).float()
        with torch.no_grad():
            action = torch.multinomial(torch.softmax(model(state), 1), 1, generator=chance)[:, 0]
        living.append(alive)
        at = torch.where(alive[:, None], (at + MOVES[action]).clamp(0, SIDE - 1), at)
        arrived = alive & (at == SIDE - 1).all(1)
        seen.append(state)
        taken.append(nn.functional.one_hot(action, 4).float())
        paid.append(arrived.float() - 0.02 * alive.float())
        alive = alive & ~arrived
    reward = torch.stack(paid)
    returns = reward.flip(0).cumsum(0).flip(0)
    mask = torch.stack(living)
    arrivals = float((reward > 0.5).sum()) / EPISODES
    return torch.stack(seen)[mask], torch.stack(taken)[mask], returns[mask], arrivals


def learn(way: Way, settings: dict[str, Any]) -> list[float]:
    """The part of the walks that arrive, before the first update, every tenth one, and after the last."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(SIDE * SIDE, 16), nn.Tanh(), nn.Linear(16, 4))
    optimizer, chance, curve = torch.optim.Adam(model.parameters(), 2e-2), torch.Generator().manual_seed(0), []
    pc = None
    if way != "backpropagation":
        example = torch.zeros(2, SIDE * SIDE)
        pc = pccompile.compile(model, (example,), algorithm=way, loss=loss, check=False, **settings)
    for update in range(UPDATES + 1):
        states, actions, returns, arrivals = episodes(model, chance)
        if update % 10 == 0:
            curve.append(arrivals)
        target = actions * (returns - returns.mean())[:, None] / EPISODES
        optimizer.zero_grad()
        (loss(model(states), target) if pc is None else pc.loss(states, target=target)).backward()
        optimizer.step()
    return curve


def main() -> None:
    """A line a way of learning."""
    print("walks that arrive, %, after updates" + "".join(f"{n:6}" for n in range(0, UPDATES + 1, 10)))
    for name, settings in RUNS.items():
        print(f"{name:35}" + "".join(f"{100 * part:6.0f}" for part in learn(name, settings)))


if __name__ == "__main__":
    main()
