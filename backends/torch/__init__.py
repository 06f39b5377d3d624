"""The torch backend: a program as one readable, standalone, autograd-free Python file."""

from pccompile.backends.torch.emit import MARK, Loss, Source, emit

__all__ = ["MARK", "Loss", "Source", "emit"]
