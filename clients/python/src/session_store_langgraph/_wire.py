"""HTTP/1.1 for the asynchronous hot path: plain `http://`, answers with a length, connections kept.

A checkpointer makes several small requests per superstep. httpx costs about a millisecond of CPU for each, more than the
rest of the way there and back; this costs a tenth of it. Whatever is not as expected here (TLS, proxies, answers of unknown
length) goes through httpx: requests may always be repeated.
"""

from __future__ import annotations

import asyncio
import json
import urllib.request
from typing import Any
from urllib.parse import urlsplit

_MAX_HEAD = 64 * 1024
_MAX_IDLE = 16


class Lost(Exception):
    """The connection broke, or never came about."""


class Unexpected(Exception):
    """An answer that httpx should read."""


class Answer:
    """What is used of an `httpx.Response`."""

    __slots__ = ("content", "status_code")

    def __init__(self, status_code: int, content: bytes) -> None:
        self.status_code = status_code
        self.content = content

    @property
    def is_success(self) -> bool:
        return 200 <= self.status_code < 300

    @property
    def text(self) -> str:
        return self.content.decode(errors="replace")

    @property
    def reason_phrase(self) -> str:
        return ""

    def json(self) -> Any:
        return json.loads(self.content)


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Answer] | None = None
        self._received = bytearray()
        # Status and where the body ends, once the head is there.
        self._head: tuple[int, int, int] | None = None
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
        status, start, end = self._head
        if len(self._received) >= end:
            content = bytes(self._received[start:end])
            if len(self._received) > end:
                # More than was asked for: nothing that follows can be trusted.
                self.close()
            self._received.clear()
            self._head = None
            if self._answer is not None and not self._answer.done():
                self._answer.set_result(Answer(status, content))

    def _read_head(self, head: bytes, start: int) -> tuple[int, int, int] | None:
        first, *lines = head.split(b"\r\n")
        words = first.split(b" ", 2)
        if len(words) < 2 or not words[0].startswith(b"HTTP/1.1") or not words[1].isdigit():
            return None
        status, length = int(words[1]), None
        for line in lines:
            name, _, value = line.partition(b":")
            name = name.strip().lower()
            if name == b"content-length" and value.strip().isdigit():
                length = int(value)
            elif name in (b"transfer-encoding", b"content-encoding"):
                return None
            elif name == b"connection" and b"close" in value.lower():
                self.is_open = False
        if status == 204:
            length = 0
        return None if length is None or status < 200 else (status, start, start + length)

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

    async def exchange(self, request: list[bytes]) -> Answer:
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.writelines(request)
        return await self._answer


class Wire:
    """The connections of one event loop to one server."""

    def __init__(self, url: str, headers: dict[str, str], timeout: float) -> None:
        parts = urlsplit(url)
        self._host, self._port, self._path = parts.hostname or "", parts.port or 80, parts.path.rstrip("/")
        host = f"[{self._host}]" if ":" in self._host else self._host
        lines = {"host": f"{host}:{self._port}", "user-agent": "session-store-langgraph", **headers}
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self._timeout = timeout
        self._idle: list[_Connection] = []

    @staticmethod
    def serves(url: str) -> bool:
        """Plain HTTP, not through a proxy."""
        parts = urlsplit(url)
        proxies = urllib.request.getproxies()
        is_proxied = ("http" in proxies or "all" in proxies) and not urllib.request.proxy_bypass(parts.hostname or "")
        return parts.scheme == "http" and not is_proxied

    async def request(self, method: str, path: str, headers: dict[str, str], content: bytes) -> Answer:
        """One exchange. Raises `Lost` or `Unexpected`, and `TimeoutError` from a server that does not answer."""
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"{method} {self._path}{path} HTTP/1.1\r\n{self._headers}{lines}content-length: {len(content)}\r\n\r\n"
        request = [head.encode("ascii"), content]
        async with asyncio.timeout(self._timeout):
            while self._idle:
                connection = self._idle.pop()
                if not connection.is_open:
                    continue
                try:
                    return await self._over(connection, request)
                except Lost:
                    # Closed while it was idle, as servers do: not worth a pause.
                    continue
            loop = asyncio.get_running_loop()
            try:
                _, connection = await loop.create_connection(_Connection, self._host, self._port)
            except OSError as error:
                raise Lost(str(error)) from None
            return await self._over(connection, request)

    async def _over(self, connection: _Connection, request: list[bytes]) -> Answer:
        try:
            answer = await connection.exchange(request)
        except BaseException:
            # Cancelled in the middle, too: what comes later belongs to nobody.
            connection.close()
            raise
        if connection.is_open and len(self._idle) < _MAX_IDLE:
            self._idle.append(connection)
        else:
            connection.close()
        return answer

    def close(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()
