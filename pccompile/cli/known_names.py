"""Names that the command line knows before it loads anything heavy: of stages, algorithms, transforms and formats.

Tests hold them against what they are names of.
"""

STAGES = (
    "import", "canonicalise", "dce", "settle-layouts", "settle-presence", "insert-vertices", "derive-rules", "schedule",
    "emit",
)  # fmt: skip
SOME_STAGES = ("stop-unsent", "energies", "mirror", "feedback", "roles")  # where there is something to do
CIRCUIT_STAGES = ("import", "canonicalise", "predicate-rows", "simplify", "netlist")

_PREDICTION = ("steps", "rate", "tolerance", "lowering", "lowering_tolerance")
SETTINGS = {
    "alm": ("steps", "rate", "penalty", "dual_rate"),
    "bidirectional": ("steps", "rate", "discriminative", "generative"),
    "error-optimization": ("steps", "rate"),
    "exact": (),
    "fixed-prediction": _PREDICTION,
    "incremental": ("steps", "rate"),
    "langevin": ("steps", "burn_in", "rate", "temperature"),
    "meta-pcn": _PREDICTION,
    "nudged": ("steps", "rate", "nudge", "phases"),
    "strict": ("steps", "rate", "stepper", "mass", "accuracy", "tolerance"),
    "zil": ("dynamics",),
}
"""The settings of each algorithm that comes along; each takes one value."""
WITHOUT_LOSS = ("exact", "fixed-prediction", "meta-pcn", "zil")
"""Algorithms whose inference does not evaluate the loss."""
TRANSFORMS = ("flatten", "untie", "on-off")
"""Passes on circuits that need no numbers of their own."""
EXPORTERS = ("nengo", "nir", "sana-fe", "verilog")
"""The formats that come along."""
