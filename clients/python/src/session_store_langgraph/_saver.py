"""`HttpSaver`: a LangGraph checkpointer whose checkpoints are kept by a session-store server."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from typing import Any, cast
from urllib.parse import quote

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    get_serializable_checkpoint_metadata,
)
from langgraph.checkpoint.serde.base import SerializerProtocol

from ._batches import Batches, Change, Operation, frame
from ._errors import SessionStoreError
from ._frames import Reader, Writer, dumps
from ._http import Http, names_thread
from ._loops import PerLoop

# Values up to this size are always sent; the server refers to larger ones by hash.
_INLINE = 128
# Checkpoints whose values are remembered, so that what has not changed need not be sent.
_REMEMBERED = 4096
_PAGE = 50
# Ids in one request.
_MAX_IDS = 500
# Bytes that a value adds to a request, besides its own and its channel's name.
_ABOUT = 80
# How long a task's writes wait for the checkpoint that begins their thread, when it is on its way.
_BEGINNING = 5.0

# Of a channel: its version, type tag, and the hash of its bytes (None when there are few).
_Known = tuple[Any, str, str | None, bytes | None]


class _Remembered:
    """What the server has of the latest checkpoints, by thread, namespace and id."""

    def __init__(self) -> None:
        self._checkpoints: OrderedDict[tuple[str, str, str], dict[str, _Known]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, thread: str, ns: str, checkpoint: str | None) -> dict[str, _Known]:
        with self._lock:
            return self._checkpoints.get((thread, ns, checkpoint or ""), {})

    def set(self, thread: str, ns: str, checkpoint: str, known: dict[str, _Known]) -> None:
        with self._lock:
            self._checkpoints[(thread, ns, checkpoint)] = known
            self._checkpoints.move_to_end((thread, ns, checkpoint))
            while len(self._checkpoints) > _REMEMBERED:
                self._checkpoints.popitem(last=False)


def _known(version: Any, tag: str, data: bytes) -> _Known:
    if len(data) <= _INLINE:
        return (version, tag, None, data)
    return (version, tag, sha256(data).hexdigest()[:32], None)


class HttpSaver(BaseCheckpointSaver[Any]):
    """Keeps the checkpoints of LangGraph graphs in a session-store server.

    Use it where a `MemorySaver` or `PostgresSaver` would stand; it is both synchronous and asynchronous, and may be shared
    by threads and event loops.

    Args:
        url: The address of the server, as in ``http://127.0.0.1:8123``.
        api_key: What the server's ``auth.api_key`` says, if it has one.
        serde: The serializer; LangGraph's own if not given. The server does not look into what it writes.
        headers: Sent with every request.
        timeout: Seconds a request may take.
        retry_for: Seconds during which a request is repeated when the server cannot be reached. Repeating is safe: putting
            the same thing again changes nothing.

    Raises:
        SessionStoreError: from every method, when the server refuses; its text names the field.
        SessionStoreUnavailable: when the server could not be reached for `retry_for` seconds.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8123",
        *,
        api_key: str | None = None,
        serde: SerializerProtocol | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 60.0,
        retry_for: float = 30.0,
    ) -> None:
        super().__init__(serde=serde)
        self._http = Http(url, api_key, headers, timeout, retry_for)
        self._remembered = _Remembered()
        self._batches: PerLoop[Batches] = PerLoop(lambda: Batches(self._http))

    def __enter__(self) -> HttpSaver:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> HttpSaver:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

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

    # ---- writing ----------------------------------------------------------------------------------------------------

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        thread, operation, size, stored, after = self._put(config, checkpoint, metadata, new_versions)
        self._store(thread, operation, size)
        after()
        return stored

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        thread, operation, size, stored, after = self._put(config, checkpoint, metadata, new_versions)
        await self._batches.get().put(thread, operation, size, is_checkpoint=True)
        after()
        return stored

    def put_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        thread, operation, size = self._put_writes(config, writes, task_id, task_path)
        deadline = time.monotonic() + _BEGINNING
        while True:
            try:
                return self._store(thread, operation, size)
            except SessionStoreError as error:
                # The thread's first checkpoint may be on its way, in another thread of this process.
                if not names_thread(error) or time.monotonic() > deadline:
                    raise
            time.sleep(0.02)

    async def aput_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        thread, operation, size = self._put_writes(config, writes, task_id, task_path)
        deadline = time.monotonic() + _BEGINNING
        while True:
            try:
                return await self._batches.get().put(thread, operation, size, is_checkpoint=False)
            except SessionStoreError as error:
                if not names_thread(error) or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(0.02)

    def _put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> tuple[str, Operation, int, RunnableConfig, Any]:
        configurable = _configurable(config)
        thread, ns = _thread_id(config), configurable.get("checkpoint_ns") or ""
        parent = configurable.get("checkpoint_id")
        versions = checkpoint["channel_versions"]
        values = {name: value for name, value in checkpoint["channel_values"].items() if name in versions}
        before = self._remembered.get(thread, ns, parent)
        known: dict[str, _Known] = {}
        # What has been turned into bytes, by channel: at once, since values may change once this returns.
        made: dict[str, tuple[str, bytes]] = {}
        for name, value in values.items():
            was = before.get(name)
            if was is not None and name not in new_versions and was[0] == versions[name]:
                known[name] = was
                continue
            made[name] = tag, data = self.serde.dumps_typed(value)
            known[name] = _known(versions[name], tag, data)
        document = {name: value for name, value in checkpoint.items() if name != "channel_values"}
        fields = {
            "op": "put",
            "checkpoint_ns": ns,
            "checkpoint": document,
            "metadata": get_serializable_checkpoint_metadata(config, metadata),
        }
        if parent is not None:
            fields["parent_checkpoint_id"] = parent
        begin = dumps(fields)[:-1]
        size = len(begin) + sum(_ABOUT + len(name) for name in known) + sum(len(data) for _, data in made.values())

        def operation(writer: Writer, whole: bool) -> bytes:
            sent = {}
            for name, (_, tag, digest, data) in known.items():
                if name in made:
                    sent[name] = writer.value(*made[name])
                elif data is not None:
                    sent[name] = writer.value(tag, data)
                elif whole:
                    # The server has lost what it had: all of it is sent.
                    sent[name] = writer.value(*self.serde.dumps_typed(values[name]))
                else:
                    sent[name] = {"type": tag, "hash": digest}
            return b'%b,"values":%b}' % (begin, dumps(sent))

        stored: RunnableConfig = {
            "configurable": {"thread_id": thread, "checkpoint_ns": ns, "checkpoint_id": checkpoint["id"]}
        }
        return thread, operation, size, stored, lambda: self._remembered.set(thread, ns, checkpoint["id"], known)

    def _put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str
    ) -> tuple[str, Operation, int]:
        configurable = _configurable(config)
        thread = _thread_id(config)
        if not configurable.get("checkpoint_id"):
            raise ValueError('checkpoint_id: must be given in config["configurable"]: writes hang on a checkpoint')
        made = [
            (channel, WRITES_IDX_MAP.get(channel, index), *self.serde.dumps_typed(value))
            for index, (channel, value) in enumerate(writes)
        ]
        fields = {
            "op": "put_writes",
            "checkpoint_ns": configurable.get("checkpoint_ns") or "",
            "checkpoint_id": configurable["checkpoint_id"],
            "task_id": task_id,
            "task_path": task_path,
        }
        begin = dumps(fields)[:-1]

        def operation(writer: Writer, _: bool) -> bytes:
            sent = [
                {"channel": channel, "idx": index, **writer.value(tag, data)} for channel, index, tag, data in made
            ]
            return b'%b,"writes":%b}' % (begin, dumps(sent))

        size = len(begin) + sum(_ABOUT + len(channel) + len(data) for channel, *_, data in made)
        return thread, operation, size

    def _store(self, thread: str, operation: Operation, size: int) -> None:
        for whole in (False, True):
            body, _ = frame([Change(thread, operation, size, whole=whole)])
            result = self._http.results(self._http.send("POST", "/checkpoints/batch", body), 1)[0]
            if result["status"] < 300:
                return
            if whole or not result.get("missing_hashes"):
                raise SessionStoreError(result["status"], result["detail"])

    # ---- reading ----------------------------------------------------------------------------------------------------

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        answer = self._http.found(self._http.send("GET", self._one(config), frame=True))
        return None if answer is None else self._tuple(self._http.frame(answer))

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        answer = self._http.found(await self._http.asend("GET", self._one(config), frame=True))
        return None if answer is None else self._tuple(self._http.frame(answer))

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """As LangGraph says; newest first by namespace. Without a config, thread by thread."""
        left = limit
        for thread in [_thread_id(config)] if _names_thread(config) else self._threads():
            query = self._query(config, filter, before)
            while left is None or left > 0:
                page = _PAGE if left is None else min(left, _PAGE)
                answer = self._http.send("POST", _at(thread, "/search"), {**query, "limit": page}, frame=True)
                reader = self._http.frame(answer)
                yield from (self._tuple(reader, found) for found in reader.document)
                if left is not None:
                    left -= len(reader.document)
                if len(reader.document) < page:
                    break
                query["after"] = _after(reader.document[-1])

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """As `list`."""
        left = limit
        for thread in [_thread_id(config)] if _names_thread(config) else [thread async for thread in self._athreads()]:
            query = self._query(config, filter, before)
            while left is None or left > 0:
                page = _PAGE if left is None else min(left, _PAGE)
                body = {**query, "limit": page}
                answer = await self._http.asend("POST", _at(thread, "/search"), body, frame=True)
                reader = self._http.frame(answer)
                for found in reader.document:
                    yield self._tuple(reader, found)
                if left is not None:
                    left -= len(reader.document)
                if len(reader.document) < page:
                    break
                query["after"] = _after(reader.document[-1])

    def get_delta_channel_history(self, *, config: RunnableConfig, channels: Sequence[str]) -> Mapping[str, Any]:
        if not channels:
            return {}
        path, body = self._deltas(config, channels)
        return self._history(self._http.frame(self._http.send("POST", path, body, frame=True)))

    async def aget_delta_channel_history(self, *, config: RunnableConfig, channels: Sequence[str]) -> Mapping[str, Any]:
        if not channels:
            return {}
        path, body = self._deltas(config, channels)
        answer = await self._http.asend("POST", path, body, frame=True)
        return self._history(self._http.frame(answer))

    @staticmethod
    def _one(config: RunnableConfig) -> str:
        ns = _configurable(config).get("checkpoint_ns") or ""
        path = _at(_thread_id(config), f"/{quote(_checkpoint_id(config) or 'latest', safe='')}")
        return f"{path}?ns={quote(ns, safe='')}" if ns else path

    @staticmethod
    def _query(
        config: RunnableConfig | None, filter: dict[str, Any] | None, before: RunnableConfig | None
    ) -> dict[str, Any]:
        configurable = _configurable(config)
        query = {
            "checkpoint_ns": configurable.get("checkpoint_ns"),
            "checkpoint_id": configurable.get("checkpoint_id"),
            "before": _checkpoint_id(before),
            "metadata": filter or None,
        }
        return {name: value for name, value in query.items() if value is not None}

    @staticmethod
    def _deltas(config: RunnableConfig, channels: Sequence[str]) -> tuple[str, dict[str, Any]]:
        ns = _configurable(config).get("checkpoint_ns") or ""
        body: dict[str, Any] = {"checkpoint_ns": ns, "channels": [*channels]}
        if checkpoint := _checkpoint_id(config):
            body["checkpoint_id"] = checkpoint
        return _at(_thread_id(config), "/deltas"), body

    def _history(self, reader: Reader) -> dict[str, Any]:
        history: dict[str, Any] = {}
        for channel, found in reader.document["channels"].items():
            writes = [
                (write["task_id"], channel, self.serde.loads_typed(reader.value(write))) for write in found["writes"]
            ]
            history[channel] = {"writes": writes}
            if "seed" in found:
                history[channel]["seed"] = self.serde.loads_typed(reader.value(found["seed"]))
        return history

    def _tuple(self, reader: Reader, found: Any = None) -> CheckpointTuple:
        found = reader.document if found is None else found
        thread, ns, checkpoint_id = found["thread_id"], found["checkpoint_ns"], found["checkpoint_id"]
        document = found["checkpoint"]
        versions = document["channel_versions"]
        values: dict[str, Any] = {}
        known: dict[str, _Known] = {}
        for name, value in found["values"].items():
            tag, data = reader.value(value)
            known[name] = (versions.get(name), tag, value.get("hash"), None if "hash" in value else data)
            values[name] = self.serde.loads_typed((tag, data))
        self._remembered.set(thread, ns, checkpoint_id, known)

        def at(checkpoint: str) -> RunnableConfig:
            return {"configurable": {"thread_id": thread, "checkpoint_ns": ns, "checkpoint_id": checkpoint}}

        parent = found["parent_checkpoint_id"]
        return CheckpointTuple(
            config=at(checkpoint_id),
            checkpoint=cast(Checkpoint, {**document, "channel_values": values}),
            metadata=found["metadata"],
            parent_config=at(parent) if parent else None,
            pending_writes=[
                (write["task_id"], write["channel"], self.serde.loads_typed(reader.value(write)))
                for write in found["pending_writes"]
            ],
        )

    def _threads(self) -> Iterator[str]:
        offset = 0
        while True:
            body = {"limit": 100, "offset": offset, "sort_by": "thread_id", "sort_order": "asc", "select": ["thread_id"]}
            found = self._http.json(self._http.send("POST", "/threads/search", body))
            yield from (thread["thread_id"] for thread in found)
            if len(found) < 100:
                return
            offset += len(found)

    async def _athreads(self) -> AsyncIterator[str]:
        offset = 0
        while True:
            body = {"limit": 100, "offset": offset, "sort_by": "thread_id", "sort_order": "asc", "select": ["thread_id"]}
            found = self._http.json(await self._http.asend("POST", "/threads/search", body))
            for thread in found:
                yield thread["thread_id"]
            if len(found) < 100:
                return
            offset += len(found)

    # ---- whole threads ----------------------------------------------------------------------------------------------

    def delete_thread(self, thread_id: str) -> None:
        self._http.found(self._http.send("DELETE", _thread(thread_id)))

    async def adelete_thread(self, thread_id: str) -> None:
        self._http.found(await self._http.asend("DELETE", _thread(thread_id)))

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        for some in _chunks([str(run_id) for run_id in run_ids]):
            self._http.checked(self._http.send("POST", "/checkpoints/delete", {"run_ids": some}))

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        for some in _chunks([str(run_id) for run_id in run_ids]):
            self._http.checked(await self._http.asend("POST", "/checkpoints/delete", {"run_ids": some}))

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copies everything to a thread that does not exist yet."""
        body = {"thread_id": target_thread_id}
        self._http.checked(self._http.send("POST", _at(source_thread_id, "/copy"), body))

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """As `copy_thread`."""
        body = {"thread_id": target_thread_id}
        self._http.checked(await self._http.asend("POST", _at(source_thread_id, "/copy"), body))

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Removes all but the latest checkpoint of each namespace, and what delta channels are rebuilt from. A thread that is
        unknown is left out; one that changes all the while is a `SessionStoreError` of status 409.
        """
        steps, answer = _pruning(thread_ids, strategy), None
        with suppress(StopIteration):
            while True:
                path, body = steps.send(answer)
                answer = self._http.json(self._http.send("POST", path, body))

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """As `prune`."""
        steps, answer = _pruning(thread_ids, strategy), None
        with suppress(StopIteration):
            while True:
                path, body = steps.send(answer)
                answer = self._http.json(await self._http.asend("POST", path, body))

    def get_next_version(self, current: Any, channel: None) -> Any:
        """Integers, one after the other; a thread that began with another saver's strings goes on with strings."""
        if isinstance(current, str):
            return f"{int(current.split('.')[0]) + 1:032}.{random.random():016}"
        return 1 if current is None else current + 1


def _configurable(config: RunnableConfig | None) -> dict[str, Any]:
    return (config or {}).get("configurable") or {}


def _names_thread(config: RunnableConfig | None) -> bool:
    """None for a thread names one, badly: whoever asks for a session must not be given all."""
    return "thread_id" in _configurable(config)


def _thread_id(config: RunnableConfig | None) -> str:
    return _checked_thread(_configurable(config).get("thread_id"), 'in config["configurable"]')


def _checked_thread(thread_id: Any, where: str) -> str:
    if thread_id is None:
        raise ValueError(f"thread_id: must be given {where}: it names the session")
    if (thread := str(thread_id)) in ("", ".", ".."):
        raise ValueError(f"thread_id: {thread!r} cannot name a session")
    return thread


def _checkpoint_id(config: RunnableConfig | None) -> str | None:
    configurable = _configurable(config)
    return configurable.get("checkpoint_id") or configurable.get("thread_ts") or None


def _pruning(thread_ids: Sequence[str], strategy: str) -> Generator[tuple[str, dict[str, Any]], Any, None]:
    """The requests of a pruning, each a path and a body; their answers are sent in."""
    for some in _chunks([*dict.fromkeys(_checked_thread(thread_id, "here") for thread_id in thread_ids)]):
        pruned = yield "/threads/prune", {"thread_ids": some, "strategy": strategy}
        if pruned["pruned_count"] >= len(some) or strategy != "keep_latest":
            continue
        # Those that are unknown do not count, and neither do those that the server did not get to the end of.
        known = yield "/threads/search", {"ids": some, "limit": len(some), "select": ["thread_id"]}
        if pruned["pruned_count"] >= len(known):
            continue
        for thread in [found["thread_id"] for found in known]:
            one = {"thread_ids": [thread], "strategy": strategy}
            pruned = yield "/threads/prune", one
            if not pruned["pruned_count"] and (yield "/threads/search", {"ids": [thread], "select": ["thread_id"]}):
                raise SessionStoreError(409, f"thread_ids: {thread!r} was not pruned, since it changed all the while")


def _thread(thread_id: str) -> str:
    return f"/threads/{quote(_checked_thread(thread_id, 'here'), safe='')}"


def _at(thread_id: str, rest: str) -> str:
    return f"{_thread(thread_id)}/checkpoints{rest}"


def _after(found: dict[str, Any]) -> dict[str, str]:
    return {"checkpoint_ns": found["checkpoint_ns"], "checkpoint_id": found["checkpoint_id"]}


def _chunks(items: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(items), _MAX_IDS):
        yield items[start : start + _MAX_IDS]
