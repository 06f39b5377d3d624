"""The names of the stages of compiling, as the command line knows them before it loads anything heavy."""

STAGES = (
    "import", "canonicalise", "dce", "settle-layouts", "settle-presence", "insert-vertices", "derive-rules", "schedule",
    "emit",
)  # fmt: skip
SOME_STAGES = ("stop-unsent", "energies", "mirror", "feedback", "roles")  # where there is something to do
CIRCUIT_STAGES = ("import", "canonicalise", "predicate-rows", "simplify", "netlist")
