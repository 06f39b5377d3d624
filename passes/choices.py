"""What passes leave to the user's choice: names alone, which the command line shows before it loads anything heavy."""

GRANULARITIES = ("op", "layer", "output")
"""What a vertex is: see passes.insert_vertices."""
TRANSPOSE, RANDOM, SIGN, KOLEN_POLLACK, DKP = FEEDBACK = ("transpose", "random", "sign", "kolen-pollack", "dkp")
"""Which weights messages to values read: see passes.feedback."""
EXACT, DROPPED = DERIVATIVES = ("exact", "dropped")
"""Whether messages carry the slopes of activations: see passes.feedback."""
