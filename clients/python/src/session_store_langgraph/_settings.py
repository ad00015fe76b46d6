"""What a client is made with, checked at once: a mistake here must not show up as a failing graph later."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t\x20-\x7e]*")
# How long a body is, is not for others to say.
_OWN = frozenset({"content-length", "transfer-encoding", "connection"})
# What each request says for itself.
_OF_REQUESTS = frozenset({"accept", "content-type"})


def shown(url: str) -> str:
    """The address without a password, for messages."""
    return re.sub(r"//[^/]*@", "//", url)


def checked_url(url: str) -> str:
    """The address without the slash at its end. Raises `ValueError` for what cannot be one."""
    if not isinstance(url, str) or not url:
        raise ValueError(f"url: must be the server's address, as in http://127.0.0.1:8123, got {url!r}")
    got = f"got {shown(url)!r}"
    if re.search(r"[\x00-\x20\x7f\\]", url):
        raise ValueError(f"url: must not hold white space, control characters or backslashes, {got}")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"url: {error}, {got}") from None
    if parts.scheme not in ("http", "https") or "://" not in url:
        raise ValueError(f"url: must begin with http:// or https://, {got}")
    if not parts.hostname:
        raise ValueError(f"url: names no host, {got}")
    if port == 0:
        raise ValueError(f"url: the port must be 1-65535, {got}")
    if parts.query or parts.fragment:
        raise ValueError(f"url: must end before any ? or #, {got}")
    return url.rstrip("/")


def checked_headers(api_key: str | None, headers: Mapping[str, str] | None) -> dict[str, str]:
    """The headers of every request, names in lower case. Raises `ValueError` for what HTTP cannot carry as it is."""
    checked: dict[str, str] = {}
    for name, value in (headers or {}).items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"headers: {name!r} is not the name of a header")
        if name.lower() in _OWN:
            raise ValueError(f"headers: {name} is the client's own to send")
        if name.lower() not in _OF_REQUESTS:
            checked[name.lower()] = _checked_value(f"headers: the value of {name}", value)
    if api_key:
        checked["x-api-key"] = _checked_value("api_key:", api_key)
    return checked


def _checked_value(what: str, value: str) -> str:
    # The value is not repeated: it may be a secret.
    if not isinstance(value, str):
        raise ValueError(f"{what} must be a string, got {type(value).__name__}")
    if re.search(r"[\r\n\0]", value):
        raise ValueError(f"{what} must not hold line breaks or NUL (one at the end comes from a file read without strip())")
    if not _VALUE.fullmatch(value):
        raise ValueError(f"{what} must be printable ASCII")
    return value
