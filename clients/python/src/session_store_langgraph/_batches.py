"""Several changes in one request: those that are asked for while others are on their way go together.

Every caller is told only after its change is committed. Changes of one thread keep their order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from ._errors import SessionStoreError
from ._frames import Writer, dumps
from ._http import Http

# The server takes 32 MiB unless told otherwise.
_MAX_BYTES = 16 * 1024 * 1024
_MAX_OPERATIONS = 500
_MAX_REQUESTS = 4
_TURNS = 8
# Refusals of what a request says: it may be one change of many that is at fault.
_OF_CONTENT = frozenset({400, 413, 422})

# Writes the operation into a frame and returns its JSON; the flag says that all values are to be sent whole.
Operation = Callable[[Writer, bool], bytes]


@dataclass(slots=True, eq=False)
class Change:
    """A change of a thread on its way. `size` is about what it adds to a request, in bytes."""

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
        b'{"thread_id":%b,"operations":[%b]}'
        % (dumps(thread), b",".join([change.operation(writer, change.whole) for change in group]))
        for thread, group in groups.items()
    ]
    return writer.frame(b'{"threads":[%b]}' % b",".join(threads)), list(groups.values())


class Batches:
    """The changes of one event loop."""

    def __init__(self, http: Http) -> None:
        self._http = http
        self._waiting: list[Change] = []
        # The requests under way, by what stands for each, and the threads that they change.
        self._requests: dict[object, asyncio.Task[None]] = {}
        self._busy: set[str] = set()
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
        # What nobody waits for any more is not begun.
        self._waiting = [change for change in self._waiting if change.done is None or not change.done.done()]
        while self._waiting and len(self._requests) < _MAX_REQUESTS:
            taken: list[Change] = []
            left: list[Change] = []
            held: set[str] = set()
            size, alone = 0, False
            for change in self._waiting:
                fits = not taken or (size + change.size <= _MAX_BYTES and len(taken) < _MAX_OPERATIONS)
                is_apart = alone or (change.alone and taken)
                if change.thread in self._busy or change.thread in held or not fits or is_apart:
                    held.add(change.thread)
                    left.append(change)
                else:
                    taken.append(change)
                    size += change.size
                    alone = change.alone
            if not taken:
                # All are of threads that a request under way changes: its end schedules them.
                return
            self._waiting = left
            self._busy.update(change.thread for change in taken)
            request = object()
            task = asyncio.get_running_loop().create_task(self._send(request, taken))
            self._requests[request] = task
            # A task that is cancelled before it begins never comes to its own end.
            task.add_done_callback(partial(self._cancelled, request, taken))

    async def _send(self, request: object, changes: list[Change]) -> None:
        try:
            again = await self._exchange(changes)
        except Exception as error:
            again = []
            for change in changes:
                change.finish(error)
        except asyncio.CancelledError:
            self._cancelled(request, changes)
            raise
        # Not left to the task's callbacks: they run turns later, and what is scheduled here must find this one gone.
        self._end(request, changes, again)

    def _cancelled(self, request: object, changes: list[Change], _: object = None) -> None:
        if request in self._requests:
            for change in changes:
                change.finish(asyncio.CancelledError())
            self._end(request, changes, [])

    def _end(self, request: object, changes: list[Change], again: list[Change]) -> None:
        """The request is under way no more, and its threads are free."""
        del self._requests[request]
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
            # What cannot be written down concerns its own caller only.
            return self._apart(changes, error)
        try:
            answer = self._http.checked(await self._http.asend("POST", "/checkpoints/batch", body))
        except SessionStoreError as error:
            if error.status not in _OF_CONTENT:
                raise
            return self._apart(changes, error)
        again: list[Change] = []
        for group, result in zip(groups, self._http.results(answer, len(groups)), strict=True):
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
