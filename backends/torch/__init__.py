"""The torch backend: a program as one readable, standalone, autograd-free Python file."""

from pccompile.backends.torch.emit import Loss, Source, emit
from pccompile.backends.torch.partial import emit_partial
from pccompile.backends.torch.reserved import MARK, SWEEP
