"""What passes leave to the user's choice: names alone, which the command line shows before it loads anything heavy."""

from typing import Literal, get_args

Granularity = Literal["op", "layer", "output"]
FeedbackName = Literal["transpose", "random", "sign", "kolen-pollack", "dkp"]
DerivativesName = Literal["exact", "dropped"]

GRANULARITIES: tuple[str, ...] = get_args(Granularity)
"""What a vertex is: see passes.insert_vertices."""
FEEDBACK: tuple[str, ...] = get_args(FeedbackName)
TRANSPOSE, RANDOM, SIGN, KOLEN_POLLACK, DKP = FEEDBACK
"""Which weights messages to values read: see passes.feedback."""
DERIVATIVES: tuple[str, ...] = get_args(DerivativesName)
EXACT, DROPPED = DERIVATIVES
"""Whether messages carry the slopes of activations: see passes.feedback."""
