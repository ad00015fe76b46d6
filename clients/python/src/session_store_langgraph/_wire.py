"""HTTP/1.1 for the asynchronous hot path: plain `http://`, answers with a length, connections kept.

A checkpointer makes several small requests per superstep. httpx costs about a millisecond of CPU for each, more than the
rest of the way there and back; this costs a tenth of it. Whatever is not as expected here (TLS, proxies, answers of unknown
length) goes through httpx: requests may always be repeated.
"""

from __future__ import annotations

import asyncio
import urllib.request
from urllib.parse import urlsplit

_MAX_HEAD = 64 * 1024
_MAX_IDLE = 32
_MAX_OPEN = 100
_CONNECTING = 5.0


class Lost(Exception):
    """The connection broke, or never came about."""


class Unexpected(Exception):
    """An answer that httpx should read."""


class Answer:
    """What is used of an `httpx.Response`."""

    __slots__ = ("content", "content_type", "status_code")

    def __init__(self, status_code: int, content: bytes, content_type: str) -> None:
        self.status_code = status_code
        self.content = content
        self.content_type = content_type

    @property
    def is_success(self) -> bool:
        return 200 <= self.status_code < 300


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Answer] | None = None
        self._received = bytearray()
        # Status, type, and where the body begins and ends, once the head is there.
        self._head: tuple[int, str, int, int] | None = None
        self.is_open = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        self._fail(Lost(str(error or "the server closed the connection")))

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._head is None:
            end = self._received.find(b"\r\n\r\n")
            if end < 0:
                if len(self._received) > _MAX_HEAD:
                    self._refuse()
                return
            self._head = self._read_head(bytes(self._received[:end]), end + 4)
            if self._head is None:
                return self._refuse()
        status, kind, start, end = self._head
        if len(self._received) >= end:
            content = bytes(self._received[start:end])
            if len(self._received) > end:
                # More than was asked for: nothing that follows can be trusted.
                self.close()
            self._received.clear()
            self._head = None
            if self._answer is not None and not self._answer.done():
                self._answer.set_result(Answer(status, content, kind))

    def _read_head(self, head: bytes, start: int) -> tuple[int, str, int, int] | None:
        first, *lines = head.split(b"\r\n")
        words = first.split(b" ", 2)
        if len(words) < 2 or not words[0].startswith(b"HTTP/1.1") or not words[1].isdigit():
            return None
        status, kind, length = int(words[1]), "", None
        for line in lines:
            name, _, value = line.partition(b":")
            name = name.strip().lower()
            if name == b"content-length" and value.strip().isdigit():
                length = int(value)
            elif name == b"content-type":
                kind = value.strip().decode("latin-1")
            elif name in (b"transfer-encoding", b"content-encoding"):
                return None
            elif name == b"connection" and b"close" in value.lower():
                self.is_open = False
        if status == 204:
            length = 0
        return None if length is None or status < 200 else (status, kind, start, start + length)

    def _refuse(self) -> None:
        self._fail(Unexpected())
        self.close()

    def _fail(self, error: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

    def close(self) -> None:
        self.is_open = False
        if self._transport is not None:
            self._transport.close()

    def abandon(self) -> None:
        """Closes it when its loop is closed already, and can do nothing for it any more."""
        self.is_open, self._answer = False, None
        # asyncio says nothing about this; without it the socket is closed too, with a warning, when memory is tidied up.
        lose = getattr(self._transport, "_call_connection_lost", None)
        if lose is not None and getattr(self._transport, "_sock", None) is not None:
            lose(None)
        self._transport = None

    async def exchange(self, request: list[bytes]) -> Answer:
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.writelines(request)
        return await self._answer


class Wire:
    """The connections of one event loop to one server: at most 100, beyond that requests wait for a free one."""

    def __init__(self, url: str, headers: dict[str, str], timeout: float) -> None:
        parts = urlsplit(url)
        self._host, self._port, self._path = parts.hostname or "", parts.port or 80, parts.path.rstrip("/")
        host = f"[{self._host}]" if ":" in self._host else self._host
        lines = {"host": f"{host}:{self._port}", "user-agent": "session-store-langgraph", **headers}
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self._timeout = timeout
        self._free = asyncio.Semaphore(_MAX_OPEN)
        self._idle: list[_Connection] = []
        self._in_use: set[_Connection] = set()
        self._is_closed = False

    @staticmethod
    def serves(url: str) -> bool:
        """Plain HTTP, not through a proxy, with nothing that has to be encoded."""
        parts = urlsplit(url)
        proxies = urllib.request.getproxies()
        is_proxied = ("http" in proxies or "all" in proxies) and not urllib.request.proxy_bypass(parts.hostname or "")
        return parts.scheme == "http" and "@" not in parts.netloc and url.isascii() and not is_proxied

    async def request(self, method: str, path: str, headers: dict[str, str], content: bytes) -> Answer:
        """One exchange. Raises `Lost` or `Unexpected`, and `TimeoutError` from a server that does not answer."""
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"{method} {self._path}{path} HTTP/1.1\r\n{self._headers}{lines}content-length: {len(content)}\r\n\r\n"
        request = [head.encode("ascii"), content]
        async with asyncio.timeout(self._timeout), self._free:
            while self._idle:
                connection = self._idle.pop()
                if not connection.is_open:
                    continue
                try:
                    return await self._over(connection, request)
                except Lost:
                    # Closed while it was idle, as servers do: not worth a pause.
                    continue
            return await self._over(await self._connect(), request)

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(min(self._timeout, _CONNECTING)):
                _, connection = await loop.create_connection(_Connection, self._host, self._port)
        except OSError as error:
            # Also when that took too long.
            raise Lost(str(error) or "it cannot be connected to") from None
        return connection

    async def _over(self, connection: _Connection, request: list[bytes]) -> Answer:
        self._in_use.add(connection)
        try:
            answer = await connection.exchange(request)
        except BaseException:
            # Cancelled in the middle, too: what comes later belongs to nobody.
            connection.close()
            raise
        finally:
            self._in_use.discard(connection)
        if connection.is_open and len(self._idle) < _MAX_IDLE and not self._is_closed:
            self._idle.append(connection)
        else:
            connection.close()
        return answer

    def close(self) -> None:
        """Those in use close when their answer has come."""
        self._is_closed = True
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    def abandon(self) -> None:
        """Closes all when the loop is closed."""
        for connection in [*self._idle, *self._in_use]:
            connection.abandon()
        self._idle.clear()
        self._in_use.clear()
