"""What the scripts about `HttpSaver` share: checks, checkpoints, and servers that answer as they are told."""

import asyncio
import json
import os

from langgraph.checkpoint.base import empty_checkpoint

BASE = os.environ["BASE_URL"]
FRAME = "application/vnd.session-store.frame"
CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def run():
    async def main():
        for function in CHECKS:
            await asyncio.wait_for(function(), 60)
            print(f"ok      {function.__name__}")
        print(f"{len(CHECKS)} checks passed")

    asyncio.run(main())


def config(thread, parent=None):
    configurable = {"thread_id": thread, "checkpoint_ns": ""}
    if parent:
        configurable["checkpoint_id"] = parent
    return {"configurable": configurable}


def checkpoint(number, **values):
    return {
        **empty_checkpoint(),
        "id": f"1efa0000-0000-6000-8000-{number:012}",
        "channel_values": values,
        "channel_versions": {name: 1 for name in values},
    }


async def raises(kind, ask, *words):
    """What `ask` does must fail in this way, with these words in its text."""
    try:
        answer = ask()
        answer = await answer if asyncio.iscoroutine(answer) else answer
    except kind as error:
        assert all(word in str(error) for word in words), error
        return error
    raise AssertionError(f"want {kind}, got the answer {answer!r}")


def answer(status, body=b"", kind="application/json"):
    """The text of an answer."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"HTTP/1.1 {status} Said\r\ncontent-length: {len(body)}\r\n"
    return (head + (f"content-type: {kind}\r\n" if kind else "") + "\r\n").encode() + body


NO_CHECKPOINT = answer(404, {"detail": "Checkpoint latest not found."})


def committed(body):
    """The answer to a batch: each of its threads is committed."""
    header = json.loads(body[4 : 4 + int.from_bytes(body[:4], "little")])
    return answer(200, {"results": [{"status": 204} for _ in header["threads"]]})


class Told:
    """A server that keeps connections, and gives the answer that `serve(path, body)` returns."""

    def __init__(self, serve):
        self.serve, self.requests, self.open, self.most_open, self.all_closed = serve, [], 0, 0, asyncio.Event()

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.connected, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_):
        self.server.close()

    async def connected(self, reader, writer):
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        self.all_closed.clear()
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                _, path, *_ = head.split(" ")
                lengths = [line.split(":")[1] for line in head.lower().split("\r\n") if line.startswith("content-length:")]
                body = await reader.readexactly(int(lengths[0]) if lengths else 0)
                self.requests.append((path, body))
                writer.write(await self.serve(path, body))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            self.open -= 1
            if self.open == 0:
                self.all_closed.set()
