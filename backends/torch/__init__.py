"""The torch backend: a program as one readable, standalone, autograd-free Python file."""

from pccompile.backends.torch.emit import Loss, Source, emit

__all__ = ["Loss", "Source", "emit"]
