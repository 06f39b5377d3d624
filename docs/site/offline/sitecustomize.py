"""On the PYTHONPATH of what documentation executes: a page that asks another machine for something fails."""

import sys

LOCAL = {"127.0.0.1", "::1", "localhost", ""}


def refuse(event: str, arguments: tuple[object, ...]) -> None:
    """Raise OSError where a socket is about to leave this machine."""
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    else:
        return
    name = host.decode() if isinstance(host, bytes) else host
    if name is not None and name not in LOCAL:
        raise OSError(f"a page of the documentation needs no network, and this one asks {name}")


sys.addaudithook(refuse)
