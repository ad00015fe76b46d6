"""Frames: a JSON header with bytes behind it, as the server speaks them.

The length of the header comes first, in 4 bytes, little endian. A value in the header is ``{"type", "bytes": [offset,
length]}``, counted from where the header ends.
"""

from __future__ import annotations

import json
from typing import Any

FRAME = "application/vnd.session-store.frame"

# Made once: `json.dumps` makes one for each call when it is told how.
_ENCODE = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def dumps(document: Any) -> bytes:
    """JSON without white space. Refuses what JSON cannot say."""
    return _ENCODE(document).encode()


class Writer:
    """Collects the bytes of a frame."""

    __slots__ = ("_chunks", "size")

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self.size = 0

    def value(self, tag: str, data: bytes) -> dict[str, Any]:
        at = [self.size, len(data)]
        self._chunks.append(data)
        self.size += len(data)
        return {"type": tag, "bytes": at}

    def frame(self, header: bytes) -> bytes:
        """The frame with this JSON before the values."""
        return b"".join((len(header).to_bytes(4, "little"), header, *self._chunks))


class Reader:
    """A frame taken apart."""

    __slots__ = ("document", "_bytes")

    def __init__(self, frame: bytes) -> None:
        """Raises `ValueError` when it is none."""
        end = 4 + int.from_bytes(frame[:4], "little")
        if not 4 < end <= len(frame):
            raise ValueError("not a frame")
        self.document: Any = json.loads(frame[4:end])
        self._bytes = memoryview(frame)[end:]

    def value(self, value: dict[str, Any]) -> tuple[str, bytes]:
        at, length = value["bytes"]
        return value["type"], bytes(self._bytes[at : at + length])
