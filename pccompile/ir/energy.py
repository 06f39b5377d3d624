"""What a vertex's value costs against its prediction, as three equations of the program language."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pccompile.ir.equations import names, parse, substituted


@dataclass(frozen=True, slots=True)
class Energy:
    r"""−log p of a vertex's value given its prediction, E(v, v̂), summed over the elements of one sample.

        send  s = −∂E/∂v̂   what goes to its parents and its parameters
        hold  h =  ∂E/∂v   its own restoring force

    All are equations (see `ir.equations`) over `value`, `prediction` and `error`. name: as users write it. density: E
    of one element. rest: where the value begins, which is where `hold` is 0. parameters: for a reader.
    """

    name: str
    density: str
    send: str
    hold: str
    rest: str = "prediction"
    parameters: tuple[tuple[str, float], ...] = ()

    @property
    def of_error(self) -> bool:
        """Whether E depends on v − v̂ alone, so that a vertex sends what it holds."""
        return self.send == self.hold

    @property
    def of_rows(self) -> bool:
        """Whether the elements of a last dimension belong together."""
        return "softmax(" in self.send + self.hold

    @property
    def bounded(self) -> bool:
        """Whether the hold depends on the value. Where it does not, E is linear in v: it falls for ever one way."""
        return bool({"value", "error"} & set(names(parse(self.hold))))

    def observed(self) -> Energy:
        """E as a function of the prediction of a vertex whose value is `given`."""
        by = {"value": "given", "error": "given - prediction"}
        return replace(self, density=substituted(self.density, by), send=substituted(self.send, by), hold="zero")

    def as_prior(self) -> Energy:
        """E(v, 0) of what a vertex predicts: the price of a value that nothing predicts."""
        by = {"value": "prediction", "error": "prediction", "prediction": "zero"}
        send = f"-({substituted(self.hold, by)})"
        return replace(self, density=substituted(self.density, by), send=send, hold="zero")

    def __str__(self) -> str:
        settings = ", ".join(f"{k}={v:g}" for k, v in self.parameters)
        return f"{self.name}({settings})" if settings else self.name


FLAT = Energy("flat", "zero", "zero", "zero")
"""No energy: such a vertex may have any value, and sends nothing."""
