"""Requests: pooled connections, and repeating what may be repeated."""

from __future__ import annotations

import asyncio
import json
import os
import random
import threading
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

from ._errors import SessionStoreError, SessionStoreUnavailable
from ._frames import FRAME, Reader, dumps
from ._loops import PerLoop
from ._settings import checked_headers, checked_url, shown
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


def _answer(answer: httpx.Response) -> Answer:
    return Answer(answer.status_code, answer.content, answer.headers.get("content-type", ""))


def _kind(answer: Answer) -> str:
    return answer.content_type.partition(";")[0].strip().lower()


def _detail(answer: Answer) -> str | None:
    """What the server says about a refusal; None when somebody else seems to have answered."""
    try:
        detail = json.loads(answer.content)["detail"]
        return detail if isinstance(detail, str) else json.dumps(detail)
    except (ValueError, TypeError, KeyError, RecursionError):
        # Some refusals of the store are plain text.
        is_said = 400 <= answer.status_code < 500 and answer.status_code != 404 and _kind(answer) == "text/plain"
        return answer.content[:500].decode(errors="replace") if is_said and answer.content else None


def names_thread(error: SessionStoreError) -> bool:
    """Whether the server says that there is no such thread."""
    return error.status == 404 and error.detail.startswith("Thread ")


class _Sync:
    """The synchronous client, and how many use it: the last of them closes it."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client
        self.users = 0
        self.is_closing = False


class _Connections:
    """Those of one event loop."""

    def __init__(self, url: str, headers: dict[str, str], timeout: float, settings: dict[str, Any]) -> None:
        self.wire = Wire(url, headers, timeout)
        self._settings = settings
        self._client: httpx.AsyncClient | None = None
        self._users = 0
        self._is_closing = False
        self._end: AsyncGenerator[None, None] | None = None

    async def ask(self, method: str, path: str, request: dict[str, Any]) -> Answer:
        """By way of httpx."""
        if self._client is None:
            self._client = httpx.AsyncClient(**self._settings)
        self._users += 1
        try:
            return _answer(await self._client.request(method, path, **request))
        finally:
            self._users -= 1
            await self._close_unused()

    async def close(self) -> None:
        """Requests under way come to their end."""
        self._is_closing = True
        self.wire.close()
        await self._close_unused()

    async def _close_unused(self) -> None:
        if self._is_closing and not self._users and self._client is not None:
            client, self._client = self._client, None
            await client.aclose()

    def abandon(self) -> None:
        """The loop is closed."""
        self.wire.abandon()
        self._client = None

    async def last_as_long_as_the_loop(self, connections: PerLoop[_Connections]) -> None:
        """Closes them when the loop shuts down, as `asyncio.run` makes it do: an open generator hears of that."""
        if self._end is None:
            self._end = self._at_end(connections)
            await anext(self._end)

    async def _at_end(self, connections: PerLoop[_Connections]) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            connections.forget(self)
            await self.close()
            # Sockets close in the loop's next turn.
            await asyncio.sleep(0)


class Http:
    """The server, for any number of threads and event loops. All requests may be repeated: the server knows what it has."""

    def __init__(
        self, url: str, api_key: str | None, headers: Mapping[str, str] | None, timeout: float, retry_for: float
    ) -> None:
        self._url = checked_url(url)
        # As it is in messages.
        self._place = shown(self._url)
        self._headers = checked_headers(api_key, headers)
        self._retry_for = retry_for
        self._settings: dict[str, Any] = {
            "base_url": self._url,
            "headers": self._headers,
            "timeout": httpx.Timeout(timeout, connect=min(timeout, 5.0)),
            "limits": httpx.Limits(max_connections=100, max_keepalive_connections=32, keepalive_expiry=30),
            "follow_redirects": False,
        }
        self._lock = threading.Lock()
        self._sync: _Sync | None = None
        self._pid = os.getpid()
        self._connections: PerLoop[_Connections] = PerLoop(
            lambda: _Connections(self._url, self._headers, timeout, self._settings), _Connections.abandon
        )
        self._is_plain = Wire.serves(self._url)

    @contextmanager
    def _client(self) -> Iterator[httpx.Client]:
        if self._pid != os.getpid():
            # A fork must not share its parent's connections.
            self._lock, self._sync, self._pid = threading.Lock(), None, os.getpid()
        with self._lock:
            if self._sync is None:
                self._sync = _Sync(httpx.Client(**self._settings))
            sync = self._sync
            sync.users += 1
        try:
            yield sync.client
        finally:
            with self._lock:
                sync.users -= 1
                is_last = sync.is_closing and sync.users == 0
            if is_last:
                sync.client.close()

    @staticmethod
    def _request(body: Any, frame: bool) -> dict[str, Any]:
        headers = {"accept": FRAME if frame else _JSON}
        if body is None:
            return {"headers": headers}
        if isinstance(body, bytes):
            return {"headers": {**headers, "content-type": FRAME}, "content": body}
        return {"headers": {**headers, "content-type": _JSON}, "content": dumps(body)}

    def send(self, method: str, path: str, body: Any = None, *, frame: bool = False) -> Answer:
        """The answer, whatever its status below 500 but for refusals that may pass."""
        request = self._request(body, frame)
        waits = _waits(self._retry_for)
        while True:
            try:
                with self._client() as client:
                    answer = _answer(client.request(method, path, **request))
                error = self._refusal(answer) if answer.status_code in _PASSING else None
            except httpx.TransportError as lost:
                error = self._unavailable(lost)
            if error is None:
                return answer
            if (wait := next(waits, None)) is None:
                raise error
            time.sleep(wait)

    async def asend(self, method: str, path: str, body: Any = None, *, frame: bool = False) -> Answer:
        """As `send`."""
        request = self._request(body, frame)
        waits = _waits(self._retry_for)
        while True:
            try:
                answer = await self._ask(method, path, request)
                error = self._refusal(answer) if answer.status_code in _PASSING else None
            except (httpx.TransportError, Lost, TimeoutError) as lost:
                error = self._unavailable(lost)
            if error is None:
                return answer
            if (wait := next(waits, None)) is None:
                raise error
            await asyncio.sleep(wait)

    async def _ask(self, method: str, path: str, request: dict[str, Any]) -> Answer:
        connections = self._connections.get()
        await connections.last_as_long_as_the_loop(self._connections)
        if self._is_plain:
            try:
                return await connections.wire.request(method, path, request["headers"], request.get("content", b""))
            except Unexpected:
                self._is_plain = False
        return await connections.ask(method, path, request)

    def _unavailable(self, lost: Exception) -> SessionStoreUnavailable:
        return SessionStoreUnavailable(503, f"{self._place}: {lost or type(lost).__name__}")

    def _refusal(self, answer: Answer) -> SessionStoreError:
        kind = SessionStoreUnavailable if answer.status_code in _PASSING else SessionStoreError
        detail = _detail(answer)
        return self._unlike(answer, kind) if detail is None else kind(answer.status_code, detail)

    def _unlike(self, answer: Answer, kind: type[SessionStoreError] = SessionStoreError) -> SessionStoreError:
        text = answer.content[:200].decode(errors="replace").strip() or "an empty answer"
        what = f"{answer.content_type}: {text}" if answer.content_type else text
        return kind(answer.status_code, f"{self._place}: this is not an answer of a session-store server: {what}")

    def checked(self, answer: Answer) -> Answer:
        """The answer to a request that was served."""
        if answer.is_success:
            return answer
        raise self._refusal(answer)

    def found(self, answer: Answer) -> Answer | None:
        """As `checked`; None when the server says that there is no such thread or checkpoint."""
        if answer.status_code != 404:
            return self.checked(answer)
        # Others say 404 as well: a proxy, or another program at this address. That must not look like an empty session.
        error = self._refusal(answer)
        if _kind(answer) == _JSON and error.detail.startswith(("Thread ", "Checkpoint ")):
            return None
        raise error

    def frame(self, answer: Answer) -> Reader:
        """What a frame says."""
        if _kind(self.checked(answer)) == FRAME:
            try:
                return Reader(answer.content)
            except (ValueError, RecursionError):
                pass
        raise self._unlike(answer)

    def json(self, answer: Answer, member: str | None = None) -> Any:
        """What an answer says, or a member of it. None for an answer without content, if no member is asked for."""
        if not self.checked(answer).content and member is None:
            return None
        if _kind(answer) == _JSON:
            try:
                document = json.loads(answer.content)
                return document if member is None else document[member]
            except (ValueError, TypeError, KeyError, RecursionError):
                pass
        raise self._unlike(answer)

    def results(self, answer: Answer, count: int) -> list[dict[str, Any]]:
        """What the server says about each thread of several."""
        results = self.json(answer, "results")
        if not isinstance(results, list) or len(results) != count:
            raise self._unlike(answer)
        return results

    def close(self) -> None:
        """Requests under way in other threads come to their end."""
        with self._lock:
            sync, self._sync = self._sync, None
            if sync is not None:
                sync.is_closing = True
            is_free = sync is not None and sync.users == 0
        if sync is not None and is_free:
            sync.client.close()

    async def aclose(self) -> None:
        connections = self._connections.forget()
        if connections is not None:
            await connections.close()
