"""An exchange with a web endpoint that ends in time, whatever the endpoint does.

An HTTP library bounds every single read, so that a server which sends a byte now and then, of its
headers, its body or its TLS greeting, holds a request for ever. Here the connection itself is shut
down when the time is over, which wakes whoever waits for it.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any


class Cutoff:
    """The connection that a client used last, and the power to break it.

    One per client, used by one thread at a time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Our own handle of the client's socket: a TLS handshake takes the first one away.
        self._socket: socket.socket | None = None
        self._late = False

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """What the HTTP library calls at every step ("trace" of its request extensions)."""
        if not event.endswith("connect_tcp.complete"):
            return
        found = info["return_value"].get_extra_info("socket")
        with self._lock:
            self._forget()
            self._socket = found.dup()
            if self._late:
                self._break()

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[Callable[[], bool]]:
        """Break the connection if the block takes longer; gives whether that has happened."""
        self._late = False
        timer = threading.Timer(seconds, self._end)
        timer.daemon = True
        timer.start()
        try:
            yield lambda: self._late
        finally:
            timer.cancel()
            # It may be at work just now, and must not break what the next block does.
            timer.join()

    def _end(self) -> None:
        with self._lock:
            self._late = True
            self._break()

    def _break(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._forget()

    def _forget(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def close(self) -> None:
        """Give the handle back."""
        with self._lock:
            self._forget()

    def __del__(self) -> None:
        self._forget()
