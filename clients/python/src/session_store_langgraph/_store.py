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

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        results = []
        for op in ops:
            answer = self._http.checked(self._http.send(*_request(op)), missing_ok=isinstance(op, GetOp))
            results.append(_result(op, answer.json() if answer is not None and answer.content else None))
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
        answer = self._http.checked(await self._http.asend(*_request(op)), missing_ok=isinstance(op, GetOp))
        return _result(op, answer.json() if answer is not None and answer.content else None)

    def close(self) -> None:
        """Closes the connections of the synchronous methods."""
        self._http.close()

    async def aclose(self) -> None:
        """Closes the connections of this event loop."""
        await self._http.aclose()
        self._http.close()


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


def _result(op: Op, found: Any) -> Result:
    if isinstance(op, GetOp):
        return None if found is None else Item(**_item(found))
    if isinstance(op, SearchOp):
        return [SearchItem(**_item(item), score=item.get("score")) for item in found["items"]]
    if isinstance(op, ListNamespacesOp):
        return [tuple(namespace) for namespace in found["namespaces"]]
    return None


def _item(found: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "namespace": tuple(found["namespace"]),
        "key": found["key"],
        "value": found["value"],
        "created_at": datetime.fromisoformat(found["created_at"]),
        "updated_at": datetime.fromisoformat(found["updated_at"]),
    }
