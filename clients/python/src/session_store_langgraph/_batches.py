"""Several changes in one request: those that are asked for while others are on their way go together.

Every caller is told only after its change is committed. Changes of one thread keep their order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ._errors import SessionStoreError
from ._frames import Writer
from ._http import Http

# The server takes 32 MiB unless told otherwise.
_MAX_BYTES = 16 * 1024 * 1024
_MAX_OPERATIONS = 500
_MAX_REQUESTS = 4
_TURNS = 8

# Writes the operation into a frame; the flag says that all values are to be sent whole.
Operation = Callable[[Writer, bool], dict[str, Any]]


@dataclass(slots=True)
class Change:
    """A change of a thread on its way."""

    thread: str
    operation: Operation
    size: int
    is_checkpoint: bool = False
    done: asyncio.Future[None] | None = None
    whole: bool = False
    alone: bool = False

    def finish(self, error: BaseException | None = None) -> None:
        """Tells who waits, unless nobody does any more."""
        if self.done is None or self.done.done():
            return
        if error is None:
            self.done.set_result(None)
        elif isinstance(error, Exception):
            self.done.set_exception(error)
        else:
            self.done.cancel()


def frame(changes: list[Change]) -> tuple[bytes, list[list[Change]]]:
    """The request for some changes, and the changes of each of its threads."""
    writer = Writer()
    groups: dict[str, list[Change]] = {}
    for change in changes:
        groups.setdefault(change.thread, []).append(change)
    threads = [
        {"thread_id": thread, "operations": [change.operation(writer, change.whole) for change in group]}
        for thread, group in groups.items()
    ]
    return writer.frame({"threads": threads}), list(groups.values())


class Batches:
    """The changes of one event loop."""

    def __init__(self, http: Http) -> None:
        self._http = http
        self._waiting: list[Change] = []
        self._busy: set[str] = set()
        self._requests: set[asyncio.Task[None]] = set()
        self._is_scheduled = False
        # Checkpoints that were just committed: each is likely to be followed by the next of its thread.
        self._expected = 0

    async def put(self, thread: str, operation: Operation, size: int, *, is_checkpoint: bool) -> None:
        done = asyncio.get_running_loop().create_future()
        self._waiting.append(Change(thread, operation, size, is_checkpoint, done))
        self._schedule()
        await done

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._wait(_TURNS)

    def _wait(self, turns: int) -> None:
        # Not at once: what is ready to be asked for goes along, as does the next change of those who were just told that
        # theirs is committed. They need some turns of the loop to come back here; when all have, there is no more to wait for.
        are_here = 0 < self._expected <= sum(change.is_checkpoint for change in self._waiting)
        if turns == 0 or are_here:
            self._start()
        else:
            asyncio.get_running_loop().call_soon(self._wait, turns - 1)

    def _start(self) -> None:
        self._is_scheduled = False
        self._expected = 0
        while self._waiting and len(self._requests) < _MAX_REQUESTS:
            taken: list[Change] = []
            left: list[Change] = []
            held: set[str] = set()
            size, alone = 0, False
            for change in self._waiting:
                fits = not taken or (size + change.size <= _MAX_BYTES and len(taken) < _MAX_OPERATIONS)
                if change.thread in self._busy or change.thread in held or not fits or alone:
                    held.add(change.thread)
                    left.append(change)
                elif change.alone and taken:
                    held.add(change.thread)
                    left.append(change)
                else:
                    taken.append(change)
                    size += change.size
                    alone = change.alone
            if not taken:
                return
            self._waiting = left
            self._busy.update(change.thread for change in taken)
            task = asyncio.get_running_loop().create_task(self._send(taken))
            self._requests.add(task)
            task.add_done_callback(self._requests.discard)

    async def _send(self, changes: list[Change]) -> None:
        again: list[Change] = []
        try:
            again = await self._exchange(changes)
        except BaseException as error:
            for change in changes:
                change.finish(error)
            if not isinstance(error, Exception):
                raise
        finally:
            self._busy.difference_update(change.thread for change in changes)
            # What is tried again comes before later changes of its thread.
            self._waiting[:0] = again
            if self._waiting:
                self._schedule()

    async def _exchange(self, changes: list[Change]) -> list[Change]:
        """Sends changes and tells who waits. Returns those to be sent again."""
        try:
            body, groups = frame(changes)
        except Exception as error:
            # What cannot be said in JSON concerns its own caller only.
            return self._apart(changes, error)
        answer = self._http.checked(await self._http.asend("POST", "/checkpoints/batch", body))
        again: list[Change] = []
        for group, result in zip(groups, answer.json()["results"]):
            if result["status"] < 300:
                for change in group:
                    self._expected += change.is_checkpoint
                    change.finish()
            elif result.get("missing_hashes") and not all(change.whole for change in group):
                for change in group:
                    change.whole = True
                again.extend(group)
            else:
                again.extend(self._apart(group, SessionStoreError(result["status"], result["detail"])))
        return again

    @staticmethod
    def _apart(changes: list[Change], error: Exception) -> list[Change]:
        """One of several was refused, and all with it: each is tried by itself. A single one fails."""
        if len(changes) > 1:
            for change in changes:
                change.alone = True
            return changes
        for change in changes:
            change.finish(error)
        return []
