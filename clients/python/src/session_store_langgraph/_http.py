"""Requests: pooled connections, and repeating what may be repeated."""

from __future__ import annotations

import asyncio
import os
import random
import time
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import httpx

from ._errors import SessionStoreError, SessionStoreUnavailable
from ._frames import FRAME, dumps
from ._wire import Answer, Lost, Unexpected, Wire

# What a proxy or a server that starts or stops says.
_PASSING = frozenset({429, 502, 503, 504})
_JSON = "application/json"


def _waits(seconds: float) -> Iterator[float]:
    """How long to wait before each repetition: longer each time, `seconds` in all."""
    deadline, wait = time.monotonic() + seconds, 0.05
    while (left := deadline - time.monotonic()) > 0:
        yield min(wait * random.uniform(0.5, 1.0), left)
        wait = min(wait * 2, 2.0)


def _refusal(answer: httpx.Response | Answer) -> SessionStoreError:
    try:
        detail = answer.json()["detail"]
    except Exception:
        detail = answer.text[:500] or answer.reason_phrase
    kind = SessionStoreUnavailable if answer.status_code in _PASSING else SessionStoreError
    return kind(answer.status_code, str(detail))


class Http:
    """The server, for any number of threads and event loops. All requests may be repeated: the server knows what it has."""

    def __init__(
        self, url: str, api_key: str | None, headers: Mapping[str, str] | None, timeout: float, retry_for: float
    ) -> None:
        self.url = url.rstrip("/")
        self._headers = {**(headers or {}), **({"x-api-key": api_key} if api_key else {})}
        self._seconds = timeout
        self._timeout = httpx.Timeout(timeout, connect=min(timeout, 5.0))
        self._retry_for = retry_for
        self._limits = httpx.Limits(max_connections=100, max_keepalive_connections=32, keepalive_expiry=30)
        self._sync: httpx.Client | None = None
        self._async: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = (
            weakref.WeakKeyDictionary()
        )
        self._wires: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Wire] = weakref.WeakKeyDictionary()
        self._is_plain = Wire.serves(self.url)
        self._pid = os.getpid()

    def _settings(self) -> dict[str, Any]:
        if self._pid != os.getpid():
            # A fork must not share its parent's connections.
            self._sync, self._async, self._pid = None, weakref.WeakKeyDictionary(), os.getpid()
            self._wires = weakref.WeakKeyDictionary()
        return {
            "base_url": self.url,
            "headers": self._headers,
            "timeout": self._timeout,
            "limits": self._limits,
            "follow_redirects": False,
        }

    @staticmethod
    def _request(body: Any, frame: bool) -> dict[str, Any]:
        headers = {"accept": FRAME if frame else _JSON}
        if body is None:
            return {"headers": headers}
        if isinstance(body, bytes):
            return {"headers": {**headers, "content-type": FRAME}, "content": body}
        return {"headers": {**headers, "content-type": _JSON}, "content": dumps(body)}

    def send(self, method: str, path: str, body: Any = None, *, frame: bool = False) -> httpx.Response | Answer:
        """The answer, whatever its status below 500 but for refusals that may pass."""
        settings = self._settings()
        if self._sync is None:
            self._sync = httpx.Client(**settings)
        request = self._request(body, frame)
        waits = _waits(self._retry_for)
        while True:
            try:
                answer = self._sync.request(method, path, **request)
                error = _refusal(answer) if answer.status_code in _PASSING else None
            except httpx.TransportError as lost:
                error = SessionStoreUnavailable(503, f"{self.url}: {lost or type(lost).__name__}")
            if error is None:
                return answer
            if (wait := next(waits, None)) is None:
                raise error
            time.sleep(wait)

    async def asend(
        self, method: str, path: str, body: Any = None, *, frame: bool = False
    ) -> httpx.Response | Answer:
        """As `send`."""
        settings = self._settings()
        loop = asyncio.get_running_loop()
        request = self._request(body, frame)
        waits = _waits(self._retry_for)
        while True:
            try:
                answer = await self._ask(loop, settings, method, path, request)
                error = _refusal(answer) if answer.status_code in _PASSING else None
            except (httpx.TransportError, Lost, TimeoutError) as lost:
                error = SessionStoreUnavailable(503, f"{self.url}: {lost or type(lost).__name__}")
            if error is None:
                return answer
            if (wait := next(waits, None)) is None:
                raise error
            await asyncio.sleep(wait)

    async def _ask(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: dict[str, Any],
        method: str,
        path: str,
        request: dict[str, Any],
    ) -> httpx.Response | Answer:
        if self._is_plain:
            wire = self._wires.get(loop)
            if wire is None:
                wire = self._wires[loop] = Wire(self.url, self._headers, self._seconds)
            try:
                return await wire.request(method, path, request["headers"], request.get("content", b""))
            except Unexpected:
                self._is_plain = False
        client = self._async.get(loop)
        if client is None:
            client = self._async[loop] = httpx.AsyncClient(**settings)
        return await client.request(method, path, **request)

    @staticmethod
    def checked(answer: httpx.Response | Answer, *, missing_ok: bool = False) -> Any:
        """The answer to a request that was served; None when what it asks for is not there and that is fine."""
        if answer.is_success:
            return answer
        if missing_ok and answer.status_code == 404:
            return None
        raise _refusal(answer)

    def close(self) -> None:
        if self._sync is not None:
            self._sync.close()
            self._sync = None

    async def aclose(self) -> None:
        wire = self._wires.pop(asyncio.get_running_loop(), None)
        if wire is not None:
            wire.close()
        client = self._async.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()
