"""What belongs to one event loop each: connections cannot be used from another, and must go when theirs does."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class PerLoop(Generic[T]):
    """One of each event loop, made when it is first asked for there.

    Those of loops that are closed are let go when another loop comes, after `abandon` has seen them.
    """

    def __init__(self, make: Callable[[], T], abandon: Callable[[T], None] = lambda _: None) -> None:
        self._make = make
        self._abandon = abandon
        self._lock = threading.Lock()
        self._all: dict[asyncio.AbstractEventLoop, T] = {}
        self._pid = os.getpid()

    def get(self) -> T:
        """That of the running loop."""
        if self._pid != os.getpid():
            # A fork must not touch what is its parent's: not even to close it.
            self._lock, self._all, self._pid = threading.Lock(), {}, os.getpid()
        loop = asyncio.get_running_loop()
        found = self._all.get(loop)
        if found is not None:
            return found
        made = self._make()
        with self._lock:
            closed = [self._all.pop(other) for other in [*self._all] if other.is_closed()]
            self._all[loop] = made
        for one in closed:
            self._abandon(one)
        return made

    def forget(self, one: T | None = None) -> T | None:
        """Takes that of the running loop away, if it is this one (any if none is said)."""
        loop = asyncio.get_running_loop()
        with self._lock:
            if one is not None and self._all.get(loop) is not one:
                return None
            return self._all.pop(loop, None)

    def __len__(self) -> int:
        return len(self._all)
