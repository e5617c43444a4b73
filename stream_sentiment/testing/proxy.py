"""A TCP proxy that misbehaves on order: what a network, not a server, does to clients.

In: the address of a server. Out: a port on 127.0.0.1 that passes every byte on, until a fault is set. Faults take effect at once,
on open connections, too. Nothing here blocks the caller. Put it before Redis, or before a Kafka broker whose advertised address you
set to the proxy's (`MockKafka.advertise`, or `advertised.listeners`).
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from typing import Self

from stream_sentiment.errors import ServiceUnavailable
from stream_sentiment.local_process import free_port

__all__ = ["TcpProxy"]

_CHUNK = 65_536

#: The longest a pump waits before it looks again whether a fault was set or cleared.
_TICK_S = 0.02

# SO_LINGER with a timeout of zero: close() sends RST instead of FIN.
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class TcpProxy:
    """A proxy before `host:port`; a context manager.

    ```python
    with TcpProxy("127.0.0.1", redis_port) as proxy:
        client = redis.Redis(port=proxy.port)
        proxy.swallow_reply()      # the server does the next thing asked, the client never hears of it
    ```
    """

    def __init__(self, host: str, port: int) -> None:
        self.host = "127.0.0.1"
        self.port = free_port()
        self.latency_s = 0.0  #: added to every chunk, in each direction
        self.bandwidth: int | None = None  #: bytes per second, per connection and direction
        self._upstream = (host, port)
        self._down = False
        self._blackhole = False
        self._swallow = 0
        self._lock = threading.Lock()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._listener: socket.socket | None = None
        self._stopping = threading.Event()

    @property
    def address(self) -> str:
        """`host:port` of the proxy."""
        return f"{self.host}:{self.port}"

    def start(self) -> Self:
        """Listen and pass on."""
        self._listener = socket.create_server((self.host, self.port))
        self._listener.settimeout(0.1)
        threading.Thread(target=self._accept, name=f"proxy-{self.port}", daemon=True).start()
        return self

    def stop(self) -> None:
        """Close everything."""
        self._stopping.set()
        if self._listener is not None:
            self._listener.close()
        self._close_all(reset=False)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def down(self) -> None:
        """Cut every connection and every new one: the server's machine is up, the server is not."""
        self._down = True
        self._close_all(reset=False)

    def up(self) -> None:
        """End `down` and `blackhole`, and take back a `swallow_reply` that has not happened."""
        self._down = self._blackhole = False
        with self._lock:
            self._swallow = 0

    def reset(self) -> None:
        """Send RST on every open connection; new ones are served."""
        self._close_all(reset=True)

    def blackhole(self) -> None:
        """Keep connections open, accept new ones, and pass nothing: a firewall that drops. Bytes wait and arrive after `up`."""
        self._blackhole = True

    def swallow_reply(self, count: int = 1) -> None:
        """Let the next request through, throw its reply away and cut that connection; `count` times."""
        with self._lock:
            self._swallow = count

    def _accept(self) -> None:
        listener = self._listener
        if listener is None:
            raise ServiceUnavailable("the proxy has not been started")
        while not self._stopping.is_set():
            try:
                client, _ = listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            if self._down:
                _close(client, reset=True)
                continue
            try:
                server = socket.create_connection(self._upstream, timeout=5)
            except OSError:
                _close(client, reset=True)
                continue
            for connection in (client, server):
                connection.settimeout(_TICK_S)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair = (client, server)
            with self._lock:
                self._pairs.add(pair)
            for source, target, is_reply in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._pump, args=(pair, source, target, is_reply), daemon=True).start()

    def _pump(
        self, pair: tuple[socket.socket, socket.socket], source: socket.socket, target: socket.socket, is_reply: bool
    ) -> None:
        try:
            while not self._stopping.is_set():
                self._wait_while_blackholed()
                try:
                    data = source.recv(_CHUNK)
                except TimeoutError:
                    continue
                if not data:
                    return
                self._wait_while_blackholed()
                if is_reply and self._takes_reply():
                    return
                if self.latency_s:
                    time.sleep(self.latency_s)
                self._send(target, data)
        except OSError:
            return  # the other pump or a fault closed the sockets
        finally:
            self._close_pair(pair, reset=False)

    def _wait_while_blackholed(self) -> None:
        while self._blackhole and not self._stopping.is_set():
            time.sleep(_TICK_S)

    def _takes_reply(self) -> bool:
        with self._lock:
            if self._swallow:
                self._swallow -= 1
                return True
        return False

    def _send(self, target: socket.socket, data: bytes) -> None:
        bandwidth = self.bandwidth
        step = len(data) if bandwidth is None else max(1, int(bandwidth * _TICK_S))
        for begin in range(0, len(data), step):
            piece = memoryview(data)[begin : begin + step]
            while piece:
                with contextlib.suppress(TimeoutError):
                    piece = piece[target.send(piece) :]
            if bandwidth is not None:
                time.sleep(step / bandwidth)

    def _close_pair(self, pair: tuple[socket.socket, socket.socket], *, reset: bool) -> None:
        with self._lock:
            self._pairs.discard(pair)
        for connection in pair:
            _close(connection, reset=reset)

    def _close_all(self, *, reset: bool) -> None:
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            self._close_pair(pair, reset=reset)


def _close(connection: socket.socket, *, reset: bool) -> None:
    with contextlib.suppress(OSError):
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        else:
            connection.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in recv
    with contextlib.suppress(OSError):
        connection.close()
