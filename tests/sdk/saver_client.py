"""What `HttpSaver` does when things go wrong: servers that break off, refuse, or speak HTTP in other ways; values that the
server has lost; writes that come before their thread. BASE_URL is a real server; the others are made here.
"""

import asyncio
import threading
import uuid

from saver_support import BASE, check, checkpoint, config, run
from session_store_langgraph import HttpSaver, SessionStoreError, SessionStoreUnavailable

BIG = "x" * 5000


class Scripted:
    """A server that gives one scripted answer per connection; None closes it unread."""

    def __init__(self, *answers):
        self.answers, self.seen = list(answers), 0

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_):
        self.server.close()

    async def serve(self, reader, writer):
        answer = self.answers[min(self.seen, len(self.answers) - 1)]
        self.seen += 1
        if answer is not None:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]) if b"content-length" in head.lower() else 0
            await reader.readexactly(length)
            writer.write(answer)
            await writer.drain()
        writer.close()


DETAIL = b'{"detail":"field: no"}'
NONE = b'{"detail":"Checkpoint latest not found"}'
MISSING = (
    b"HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(NONE) + NONE
)
BUSY = b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
CHUNKED = (
    b"HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
    b"%x\r\n%b\r\n0\r\n\r\n" % (len(NONE), NONE)
)
REFUSED = b"HTTP/1.1 422 No\r\ncontent-length: %d\r\n\r\n" % len(DETAIL) + DETAIL


@check
async def what_breaks_is_repeated():
    async with Scripted(None, BUSY, b"HTTP/1.1 200 OK\r\ncontent-le", MISSING) as server:
        async with HttpSaver(server.url) as saver:
            assert await saver.aget_tuple(config("t")) is None
            assert server.seen == 4, server.seen
    async with Scripted(None, BUSY, MISSING) as server:
        saver = HttpSaver(server.url)
        assert await asyncio.to_thread(saver.get_tuple, config("t")) is None
        saver.close()


@check
async def other_ways_of_http_are_understood():
    async with Scripted(CHUNKED) as server:
        async with HttpSaver(server.url) as saver:
            for _ in range(2):
                assert await saver.aget_tuple(config("t")) is None
            # The first answer is read twice: then httpx asks.
            assert server.seen == 3, server.seen


@check
async def refusals_name_their_field():
    async with Scripted(REFUSED) as server:
        async with HttpSaver(server.url) as saver:
            for ask in (lambda: saver.aget_tuple(config("t")), lambda: asyncio.to_thread(saver.get_tuple, config("t"))):
                try:
                    await ask()
                    raise AssertionError("not refused")
                except SessionStoreError as error:
                    assert (error.status, error.detail) == (422, "field: no")


@check
async def nobody_is_waited_for_for_ever():
    async with Scripted(None) as server:
        url = server.url
    async with HttpSaver(url, retry_for=0.2) as saver:
        for ask in (lambda: saver.aget_tuple(config("t")), lambda: asyncio.to_thread(saver.get_tuple, config("t"))):
            try:
                await ask()
                raise AssertionError("not unavailable")
            except SessionStoreUnavailable as error:
                assert url in error.detail, error


@check
async def what_the_server_lost_is_sent_again():
    thread = f"lost-{uuid.uuid4()}"
    async with HttpSaver(BASE) as saver, HttpSaver(BASE) as other:
        first = checkpoint(1, big=BIG)
        stored = await saver.aput(config(thread), first, {}, {"big": 1})
        await other.adelete_thread(thread)
        await other.aput(config(thread), checkpoint(1, small=1), {}, {"small": 1})
        await saver.aput(stored, checkpoint(2, big=BIG), {}, {})
        found = await other.aget_tuple(config(thread))
        assert found.checkpoint["channel_values"] == {"big": BIG}
        await other.adelete_thread(thread)
        await other.aput(config(thread), checkpoint(2, small=1), {}, {"small": 1})
        after = config(thread, checkpoint(2)["id"])
        await asyncio.to_thread(saver.put, after, checkpoint(3, big=BIG), {}, {})
        assert (await other.aget_tuple(config(thread))).checkpoint["channel_values"] == {"big": BIG}


@check
async def an_unchanged_value_is_not_sent_again():
    thread = f"same-{uuid.uuid4()}"
    async with HttpSaver(BASE) as saver:
        stored = await saver.aput(config(thread), checkpoint(1, big=BIG), {}, {"big": 1})

        class Unsent(str):
            pass

        made = []
        original = saver.serde.dumps_typed
        saver.serde.dumps_typed = lambda value: made.append(value) or original(value)
        await saver.aput(stored, checkpoint(2, big=BIG), {}, {})
        assert made == [], made
        assert (await saver.aget_tuple(config(thread))).checkpoint["channel_values"] == {"big": BIG}


@check
async def one_that_is_refused_spoils_no_other():
    thread = f"mixed-{uuid.uuid4()}"
    async with HttpSaver(BASE) as saver:
        good = saver.aput(config(thread), checkpoint(1, n=1), {}, {"n": 1})
        bad = saver.aput(config(thread, "nowhere"), checkpoint(2, n=1), {}, {"n": 1})
        late = saver.aput(config(thread, checkpoint(1)["id"]), checkpoint(3, n=2), {}, {"n": 1})
        unsaid = saver.aput(config(thread), {**checkpoint(4), "ts": object()}, {}, {})
        results = await asyncio.gather(good, bad, late, unsaid, return_exceptions=True)
        assert [type(result) for result in results] == [dict, SessionStoreError, dict, TypeError], results
        assert "parent_checkpoint_id" in results[1].detail
        assert [found.checkpoint["id"][-1] async for found in saver.alist(config(thread))] == ["3", "1"]


@check
async def writes_wait_for_their_thread():
    thread = f"early-{uuid.uuid4()}"
    where = config(thread, checkpoint(1)["id"])
    async with HttpSaver(BASE) as saver:
        writes = asyncio.create_task(saver.aput_writes(where, [("n", 1)], "task"))
        waiting = threading.Thread(target=saver.put_writes, args=(where, [("m", 2)], "other"))
        waiting.start()
        # Whoever comes first: the writes are there in the end.
        await saver.aput(config(thread), checkpoint(1, n=1), {}, {"n": 1})
        await writes
        await asyncio.to_thread(waiting.join)
        found = await saver.aget_tuple(config(thread))
        assert sorted(found.pending_writes) == [("other", "m", 2), ("task", "n", 1)], found.pending_writes


run()
