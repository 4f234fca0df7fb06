"""A relay of TCP connections on loopback, which can delay and cut them."""

import contextlib
import socket
import threading
import time

#: Seconds before a cut, in which a busy machine's client reads what was passed on: a cut connection
#: takes with it what nobody has read, and a client could not go on from what it never saw.
SETTLED = 1.5


class Relay:
    """Passes connections on to a port.

    Parameters
    ----------
    target : int
        Port on loopback that it passes on to.
    port : int
        Its own; 0 takes a free one.
    """

    def __init__(self, target: int, port: int = 0) -> None:
        self.target = target
        #: Bytes that were passed on, from and to the client.
        self.up = self.down = 0
        #: Cuts all connections, once, after so many more bytes.
        self.cut_up: int | None = None
        self.cut_down: int | None = None
        #: Seconds by which answers are late: those that a cut finds under way are lost.
        self.late = 0.0
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Break all connections; what is under way is lost."""
        sockets, self._sockets = self._sockets, []
        for each in sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def close(self) -> None:
        """Take no more connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self.target))
                except OSError:  # there is no server for the moment
                    client.close()
                    continue
                self._sockets += [client, server]
                for pair in ((client, server, "up"), (server, client, "down")):
                    threading.Thread(target=self._pass, args=pair, daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket, way: str) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(16384):
                if way == "down":
                    time.sleep(self.late)
                other.sendall(data)
                setattr(self, way, getattr(self, way) + len(data))
                left = getattr(self, f"cut_{way}")
                if left is not None:
                    setattr(self, f"cut_{way}", None if left < len(data) else left - len(data))
                    if left < len(data):
                        time.sleep(SETTLED)
                        self.cut()
        for each in (one, other):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
