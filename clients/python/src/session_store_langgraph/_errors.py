"""What can go wrong."""

from __future__ import annotations


class SessionStoreError(Exception):
    """The server refused a request. The text is the server's and names the field."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"{detail} (HTTP {status})")
        self.status = status
        self.detail = detail


class SessionStoreUnavailable(SessionStoreError):
    """The server could not be reached, or not in time. What was sent may be sent again: repeating changes nothing."""
