"""The models that every gradient of ours is compared with autograd on."""

from zoo.case import Case
from zoo.convolutional import CONVOLUTIONAL
from zoo.layers import LAYERS
from zoo.recurrent import RECURRENT
from zoo.small import SMALL
from zoo.transformers import TRANSFORMERS
from zoo.traps import TRAPS

ZOO: dict[str, Case] = CONVOLUTIONAL | RECURRENT | TRANSFORMERS | SMALL | LAYERS

__all__ = ["TRAPS", "ZOO", "Case"]
