"""Ports for servers of tests, which nobody else is given meanwhile."""

import socket

# Bound to the end of the run and never listening: until its server comes up, or comes up again, a port goes
# neither to another test nor to a connection that somebody opens.
_kept: list[socket.socket] = []


def free_port() -> int:
    """A port of this machine that a server of these tests may listen on."""
    keeper = socket.socket()
    # a server may bind it all the same, as long as this one does not listen
    keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    keeper.bind(("127.0.0.1", 0))
    _kept.append(keeper)
    return int(keeper.getsockname()[1])
