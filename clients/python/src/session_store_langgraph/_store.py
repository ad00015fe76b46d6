"""`HttpStore`: LangGraph's long-term memory, kept by a session-store server as items."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote

from langgraph.store.base import (
    BaseStore,
    GetOp,
    Item,
    ListNamespacesOp,
    Op,
    PutOp,
    Result,
    SearchItem,
    SearchOp,
)

from ._http import Http

_Request = tuple[str, str, Any]
# The most that the server gives at once.
_MAX_PAGE = 1000


class HttpStore(BaseStore):
    """Keeps items that threads share in a session-store server; they are the ones its own graphs and SDKs see.

    The arguments are those of `HttpSaver`.
    """

    supports_ttl = True

    def __init__(
        self,
        url: str = "http://127.0.0.1:8123",
        *,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 60.0,
        retry_for: float = 30.0,
    ) -> None:
        self._http = Http(url, api_key, headers, timeout, retry_for)

    def __enter__(self) -> HttpStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> HttpStore:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        results: list[Result] = []
        for op in ops:
            pages = _Pages(op)
            while (request := pages.next()) is not None:
                pages.add(self._http.json(self._http.send(*request), pages.member))
            results.append(pages.result)
        return results

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        listed = [*ops]
        # What reads may run side by side; writes keep their order, and whatever comes after one sees it.
        results: list[Result] = []
        start = 0
        while start < len(listed):
            end = start + 1
            if not isinstance(listed[start], PutOp):
                while end < len(listed) and not isinstance(listed[end], PutOp):
                    end += 1
            results.extend(await asyncio.gather(*(self._one(op) for op in listed[start:end])))
            start = end
        return results

    async def _one(self, op: Op) -> Result:
        pages = _Pages(op)
        while (request := pages.next()) is not None:
            pages.add(self._http.json(await self._http.asend(*request), pages.member))
        return pages.result

    def close(self) -> None:
        """Closes the connections of the synchronous methods. Requests under way in other threads come to their end, and
        later ones open connections again.
        """
        self._http.close()

    async def aclose(self) -> None:
        """As `close`, for the connections of this event loop, which also close when it ends. Those of other loops and of the
        synchronous methods stay.
        """
        await self._http.aclose()


class _Pages:
    """The requests of an operation, one after the other: a list that is longer than the server gives at once takes several."""

    def __init__(self, op: Op) -> None:
        self._op = op
        self._asked = 0
        self._is_done = False
        self._result: Result = None
        self._listed: list[Any] = []
        # What of the answers counts.
        self.member = "items" if isinstance(op, SearchOp) else "namespaces" if isinstance(op, ListNamespacesOp) else None

    def next(self) -> _Request | None:
        """What is to be asked now."""
        op = self._op
        if not isinstance(op, (SearchOp, ListNamespacesOp)):
            return None if self._is_done else _request(op)
        had = len(self._listed)
        self._asked = min(op.limit - had, _MAX_PAGE)
        if self._is_done or self._asked <= 0:
            return None
        return _request(op._replace(limit=self._asked, offset=op.offset + had))

    def add(self, found: Any) -> None:
        """What the server says to that."""
        if isinstance(self._op, SearchOp):
            self._listed += [SearchItem(**_item(item), score=item.get("score")) for item in found]
        elif isinstance(self._op, ListNamespacesOp):
            self._listed += [tuple(namespace) for namespace in found]
        elif isinstance(self._op, GetOp):
            self._result = None if found is None else Item(**_item(found))
        self._is_done = self.member is None or len(found) < self._asked

    @property
    def result(self) -> Result:
        return self._result if self.member is None else self._listed


def _request(op: Op) -> _Request:
    body: dict[str, Any]
    if isinstance(op, GetOp):
        namespace = quote(".".join(op.namespace), safe="")
        refresh = "" if op.refresh_ttl else "&refresh_ttl=false"
        return "GET", f"/store/items?namespace={namespace}&key={quote(op.key, safe='')}{refresh}", None
    if isinstance(op, PutOp):
        place: dict[str, Any] = {"namespace": [*op.namespace], "key": op.key}
        if op.value is None:
            return "DELETE", "/store/items", place
        body = {**place, "value": op.value}
        if op.index is not None:
            body["index"] = op.index
        if op.ttl is not None:
            body["ttl"] = op.ttl
        return "PUT", "/store/items", body
    if isinstance(op, SearchOp):
        body = {"namespace_prefix": [*op.namespace_prefix], "limit": op.limit, "offset": op.offset}
        if op.filter:
            body["filter"] = op.filter
        if op.query:
            body["query"] = op.query
        if not op.refresh_ttl:
            body["refresh_ttl"] = False
        return "POST", "/store/items/search", body
    if isinstance(op, ListNamespacesOp):
        body = {"limit": op.limit, "offset": op.offset}
        if op.max_depth is not None:
            body["max_depth"] = op.max_depth
        for condition in op.match_conditions or ():
            body[condition.match_type] = [*condition.path]
        return "POST", "/store/namespaces", body
    raise TypeError(f"unknown operation {type(op).__name__}")


def _item(found: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "namespace": tuple(found["namespace"]),
        "key": found["key"],
        "value": found["value"],
        "created_at": datetime.fromisoformat(found["created_at"]),
        "updated_at": datetime.fromisoformat(found["updated_at"]),
    }
