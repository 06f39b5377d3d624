"""State that lasts between calls: slots of vertices and parameters that a compiled module keeps as buffers."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

LASTING = "lasting"
"""The path under which the buffers are, unless the model has something there."""


@dataclass(frozen=True, slots=True)
class Lasting:
    """`slot` of `owner`, a vertex or a parameter, kept between calls.

    It has no samples, since batches come and go. That of a vertex is [1, …] and stretches over them: a number for each
    element of one sample, or one for all where it is `single`. That of a parameter has the parameter's shape.
    start: the number that it begins as; or of a vertex a tensor that broadcasts to one sample, whose shape it keeps.
    learned: the equation by which learning moves it where inference has ended, "" where only an algorithm does.
    """

    owner: str
    slot: str
    start: float | Tensor = field(default=0.0, compare=False)
    single: bool = False
    learned: str = ""

    @property
    def place(self) -> tuple[str, str]:
        """The owner and the slot."""
        return str(self.owner), self.slot

    def path(self, home: str) -> str:
        """Where the buffer is, in the tables of a generated file and in a state_dict."""
        return f"{home}.{self.slot}.{self.owner}"

    def __str__(self) -> str:
        shape = ", one number" if self.single else ""
        return f"{self.slot}[{self.owner}]{shape}"
