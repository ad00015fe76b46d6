"""LangGraph checkpoints and long-term memory in a session-store server, over HTTP."""

from ._errors import SessionStoreError, SessionStoreUnavailable
from ._saver import HttpSaver
from ._store import HttpStore

__all__ = ["HttpSaver", "HttpStore", "SessionStoreError", "SessionStoreUnavailable"]
