"""`HttpSaver` and `HttpStore` at their edges: many at once, event loops that come and go, bad neighbours in one request,
answers of other servers, and mistakes in how they are made or asked. BASE_URL is a real server; the others are made here.
"""

import asyncio
import gc
import threading
import uuid
import warnings

from langgraph.store.memory import InMemoryStore
from saver_support import (
    BASE,
    FRAME,
    NO_CHECKPOINT,
    Told,
    answer,
    check,
    checkpoint,
    committed,
    config,
    raises,
    run,
)
from session_store_langgraph import HttpSaver, HttpStore, SessionStoreError


def names(count, what="t"):
    return [f"{what}-{number}-{uuid.uuid4()}" for number in range(count)]


def puts(saver, threads, metadata=None, **values):
    return [
        asyncio.ensure_future(
            saver.aput(config(thread), checkpoint(1, **(values or {"n": 1})), metadata or {}, {name: 1 for name in values or "n"})
        )
        for thread in threads
    ]


# ---- many at once -------------------------------------------------------------------------------------------------


@check
async def all_answers_at_once_leave_nobody_waiting():
    came, go = asyncio.Semaphore(0), asyncio.Event()

    async def serve(path, body):
        came.release()
        await go.wait()
        return committed(body)

    async with Told(serve) as server, HttpSaver(server.url) as saver:
        waiting = []
        for thread in names(4):
            # As many requests as there may be, each alone: nothing else is there to go along.
            waiting += puts(saver, [thread])
            await came.acquire()
        waiting += puts(saver, names(4, "later"))
        for _ in range(50):
            # Turns of the loop, not time: until nothing is about to begin.
            await asyncio.sleep(0)
        assert len(server.requests) == 4, server.requests
        # All four are answered in one turn.
        go.set()
        await asyncio.wait_for(asyncio.gather(*waiting), 20)
        assert len(server.requests) == 5, "those that waited went together"


@check
async def connections_are_few():
    enough = asyncio.Event()

    async def serve(path, body):
        if len(server.requests) >= 100:
            enough.set()
        await enough.wait()
        return NO_CHECKPOINT

    async with Told(serve) as server, HttpSaver(server.url) as saver:
        found = await asyncio.gather(*(saver.aget_tuple(config(f"t{number}")) for number in range(250)))
        assert found == [None] * 250
        assert server.most_open == 100, server.most_open


# ---- event loops and threads --------------------------------------------------------------------------------------


@check
async def connections_go_with_their_event_loop():
    async def serve(path, body):
        return committed(body) if body else NO_CHECKPOINT

    async def in_chunks(path, body):
        # Which httpx reads.
        head, _, said = (await serve(path, body)).partition(b"\r\n\r\n")
        lines = [line for line in head.split(b"\r\n") if not line.startswith(b"content-length")]
        lines.append(b"transfer-encoding: chunked")
        return b"\r\n".join(lines) + b"\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(said), said)

    async def use(saver):
        await asyncio.gather(saver.aget_tuple(config("t")), *puts(saver, names(2)))

    def run_loops(saver):
        for _ in range(5):
            asyncio.run(use(saver))

    def close_loops(saver):
        for _ in range(5):
            # Without a word: its connections go when another loop comes.
            loop = asyncio.new_event_loop()
            loop.run_until_complete(use(saver))
            loop.close()
        asyncio.run(use(saver))

    for answers, loops in [(serve, run_loops), (serve, close_loops), (in_chunks, run_loops)]:
        async with Told(answers) as server:
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                saver = HttpSaver(server.url)
                await asyncio.to_thread(loops, saver)
                await asyncio.wait_for(server.all_closed.wait(), 20)
                del saver
                gc.collect()
            told = [str(each.message) for each in warned if each.category is ResourceWarning]
            assert not told, told


@check
async def closing_breaks_off_nobody():
    came, go = threading.Semaphore(0), asyncio.Event()

    async def serve(path, body):
        came.release()
        await go.wait()
        return committed(body) if body else NO_CHECKPOINT

    async with Told(serve) as server:
        saver = HttpSaver(server.url, retry_for=0)
        others = [
            asyncio.create_task(asyncio.to_thread(saver.put, config(thread), checkpoint(1, n=1), {}, {"n": 1}))
            for thread in names(2)
        ]
        # One of another loop, and one of this.
        others.append(asyncio.create_task(asyncio.to_thread(lambda: asyncio.run(saver.aget_tuple(config("t"))))))
        others.append(asyncio.create_task(saver.aget_tuple(config("t"))))
        for _ in others:
            await asyncio.to_thread(came.acquire)
        await asyncio.to_thread(saver.close)
        await saver.aclose()
        go.set()
        await asyncio.gather(*others)
        assert len(server.requests) == 4, server.requests
        # Used again, it opens again.
        assert await saver.aget_tuple(config("t")) is None
        assert await asyncio.to_thread(saver.get_tuple, config("t")) is None
        await saver.aclose()
        await asyncio.to_thread(saver.close)
        await asyncio.wait_for(server.all_closed.wait(), 20)


@check
async def closing_while_it_tries_again_is_fine():
    came = threading.Event()

    async def serve(path, body):
        if len(server.requests) > 1:
            return NO_CHECKPOINT
        came.set()
        return answer(503)

    async with Told(serve) as server:
        saver = HttpSaver(server.url)
        waiting = asyncio.create_task(asyncio.to_thread(saver.get_tuple, config("t")))
        await asyncio.to_thread(came.wait)
        await asyncio.to_thread(saver.close)
        assert await waiting is None
        await asyncio.to_thread(saver.close)


# ---- several in one request ---------------------------------------------------------------------------------------


@check
async def a_request_that_is_refused_whole_fails_only_who_is_at_fault():
    deep = 0
    for _ in range(130):
        deep = [deep]
    async with HttpSaver(BASE) as saver:
        for bad, word in [({"k\0": 1}, "NUL"), ({"deep": deep}, "nesting")]:
            good, at_fault, late = names(3)
            results = await asyncio.gather(
                *puts(saver, [good]), *puts(saver, [at_fault], bad), *puts(saver, [late]), return_exceptions=True
            )
            assert [type(result) for result in results] == [dict, SessionStoreError, dict], results
            assert word in results[1].detail, results[1]
            assert await saver.aget_tuple(config(good)) and await saver.aget_tuple(config(late))
        # And what is no refusal of the content is everybody's.
        async with Told(lambda path, body: asyncio.sleep(0, answer(401, {"detail": "no key"}))) as server:
            results = await asyncio.gather(*puts(HttpSaver(server.url), names(3)), return_exceptions=True)
            assert [result.status for result in results] == [401] * 3 and len(server.requests) == 1, results


@check
async def requests_are_as_large_as_the_server_takes():
    async def serve(path, body):
        return committed(body) if len(body) < 100_000 else answer(413, {"detail": "Request body is larger than the limit"})

    async with Told(serve) as server, HttpSaver(server.url) as saver:
        await asyncio.gather(*puts(saver, names(5), big="x" * 40_000))
        results = await asyncio.gather(
            *puts(saver, names(1)), *puts(saver, names(1), big="x" * 200_000), return_exceptions=True
        )
        assert [type(result) for result in results] == [dict, SessionStoreError] and results[1].status == 413, results


@check
async def metadata_and_documents_count_in_the_size_of_a_request():
    async with Told(lambda path, body: asyncio.sleep(0, committed(body))) as server, HttpSaver(server.url) as saver:
        await asyncio.gather(*puts(saver, names(3), {"m": "x" * 6_000_000}))
        documents = [{**checkpoint(1), "updated_channels": ["x" * 6_000_000]} for _ in range(3)]
        await asyncio.gather(*(saver.aput(config(thread), one, {}, {}) for thread, one in zip(names(3), documents)))
        sizes = [len(body) for _, body in server.requests]
        assert max(sizes) <= 16 * 1024 * 1024, sizes


# ---- answers of others --------------------------------------------------------------------------------------------


@check
async def only_the_servers_own_word_means_that_there_is_nothing():
    others = [
        answer(404, b"<html>nope</html>", "text/html"),
        answer(404, {"detail": "Not Found"}),
        answer(404, {"detail": "Checkpoint latest not found."}, kind=None),
        answer(404, b""),
    ]
    for other in others:
        async with Told(lambda path, body: asyncio.sleep(0, other)) as server, HttpSaver(server.url) as saver:
            for ask in [
                lambda: saver.aget_tuple(config("t")),
                lambda: asyncio.to_thread(saver.get_tuple, config("t")),
                lambda: saver.adelete_thread("t"),
                lambda: asyncio.to_thread(saver.delete_thread, "t"),
                lambda: HttpStore(server.url).aget(("a",), "k"),
                # At once: this is not a thread that is about to begin.
                lambda: saver.aput_writes(config("t", "c"), [("n", 1)], "task"),
            ]:
                error = await raises(SessionStoreError, ask)
                assert error.status == 404, error
                assert "Not Found" in error.detail or server.url in error.detail or "Checkpoint" in error.detail, error
            await asyncio.to_thread(saver.close)
    async with HttpSaver(BASE) as saver:
        assert await saver.aget_tuple(config(names(1)[0])) is None
        await saver.adelete_thread(names(1)[0])


@check
async def what_is_no_answer_of_the_server_is_said_to_be_none():
    for status, body, kind in [
        (200, b"<html>hello</html>", "text/html"),
        (200, b"{}", "application/json"),
        (200, b"[", "application/json"),
        (200, b"\xff\xff\xff\xff", FRAME),
        (200, b"", None),
        (301, b"", None),
        (500, b"oh", "text/plain"),
    ]:
        said = answer(status, body, kind)
        async with Told(lambda path, body: asyncio.sleep(0, said)) as server, HttpSaver(server.url) as saver:
            for ask in [
                lambda: saver.aget_tuple(config("t")),
                lambda: asyncio.to_thread(saver.get_tuple, config("t")),
                lambda: saver.aput(config("t"), checkpoint(1), {}, {}),
                lambda: asyncio.to_thread(saver.put, config("t"), checkpoint(1), {}, {}),
                lambda: asyncio.to_thread(lambda: [*saver.list(config("t"))]),
                lambda: HttpStore(server.url).asearch(("a",)),
            ]:
                await raises(SessionStoreError, ask, "not an answer of a session-store server", server.url)
            await asyncio.to_thread(saver.close)


# ---- how they are made and asked ----------------------------------------------------------------------------------


@check
async def mistakes_in_how_it_is_made_are_told_at_once():
    for url in ["", "127.0.0.1:8123", "localhost:8123", "ftp://127.0.0.1", "http://", "http://h:99999", "http://h:x",
                "http://h:0", "http://h/?a=b", "http://a b", "http://h\r\nx: y", None]:
        for kind in HttpSaver, HttpStore:
            await raises(ValueError, lambda: kind(url), "url:")
    for key in ["a\r\nx: y", "a\n", "a\0", "é", 5]:
        for kind in HttpSaver, HttpStore:
            error = await raises(ValueError, lambda: kind(BASE, api_key=key), "api_key:")
            assert str(key) not in str(error), "no secrets in errors"
            await raises(ValueError, lambda: kind(BASE, headers={"X-Trace": key}), "headers:", "X-Trace")
    for name in ["a b", "", "x:y", "a\r\nb", "é", "Content-Length"]:
        await raises(ValueError, lambda: HttpSaver(BASE, headers={name: "v"}), "headers:")
    HttpSaver("https://user:word@example.com:8443/prefix/", api_key="k", headers={"X-Trace": "a b\tc"})
    for ask in [
        lambda: HttpSaver("http://user:word@h:99999"),
        lambda: asyncio.to_thread(HttpSaver("http://user:word@127.0.0.1:1", retry_for=0).get_tuple, config("t")),
        lambda: HttpSaver("http://user:word@127.0.0.1:1", retry_for=0).aget_tuple(config("t")),
    ]:
        error = await raises((ValueError, SessionStoreError), ask)
        assert "word" not in str(error), "no secrets in errors"


@check
async def a_thread_is_always_named():
    saver = HttpSaver(BASE)
    for bad in [{}, {"configurable": {}}, config(None), config(""), config(".."), {"configurable": {"thread_id": None}}]:
        where = {"configurable": {**bad.get("configurable", {}), "checkpoint_id": "c"}}
        for ask in [
            lambda: saver.put(bad, checkpoint(1), {}, {}),
            lambda: saver.aput(bad, checkpoint(1), {}, {}),
            lambda: saver.put_writes(where, [("n", 1)], "task"),
            lambda: saver.aput_writes(where, [("n", 1)], "task"),
            lambda: saver.get_tuple(bad),
            lambda: saver.aget_tuple(bad),
        ]:
            await raises(ValueError, ask, "thread_id:")
    for ask in [lambda: saver.delete_thread(None), lambda: saver.adelete_thread(None), lambda: [*saver.list(config(None))]]:
        await raises(ValueError, ask, "thread_id:")
    await raises(ValueError, lambda: saver.put_writes(config("t"), [("n", 1)], "task"), "checkpoint_id:")


@check
async def without_a_thread_everything_is_listed():
    mine = names(3)
    async with HttpSaver(BASE) as saver:
        await asyncio.gather(*puts(saver, mine))
        for what in [None, {}, {"configurable": {}}, {"metadata": {}}]:
            found = [one.config["configurable"]["thread_id"] async for one in saver.alist(what)]
            assert set(mine) <= set(found), found
            with saver:
                listed = await asyncio.to_thread(lambda: [one.config["configurable"]["thread_id"] for one in saver.list(what)])
            assert set(mine) <= set(listed), listed


@check
async def pruning_that_did_not_happen_is_told():
    unknown = names(1)[0]
    async with HttpSaver(BASE) as saver:
        thread = names(1)[0]
        stored = (await asyncio.gather(*puts(saver, [thread])))[0]
        await saver.aput(stored, checkpoint(2, n=2), {}, {"n": 2})
        await saver.aprune([thread, unknown, thread])
        await asyncio.to_thread(saver.prune, [unknown])
        assert [one.checkpoint["id"][-1] async for one in saver.alist(config(thread))] == ["2"]

    async def serve(path, body):
        # The thread `busy` is there as `calm` is, and changes whenever it is looked at.
        if path == "/threads/search":
            return answer(200, [{"thread_id": name} for name in ("busy", "calm") if name.encode() in body])
        return answer(200, {"pruned_count": body.count(b"calm")})

    async with Told(serve) as server, HttpSaver(server.url) as saver:
        for ask in [
            lambda: saver.aprune(["calm", "busy", "gone"]),
            lambda: asyncio.to_thread(saver.prune, ["calm", "busy", "gone"]),
        ]:
            error = await raises(SessionStoreError, ask, "thread_ids:", "busy")
            assert error.status == 409, error
        await saver.aprune(["calm", "gone"])
        await asyncio.to_thread(saver.close)


# ---- the store ----------------------------------------------------------------------------------------------------


@check
async def long_lists_of_the_store_come_whole():
    root, count = uuid.uuid4().hex, 1005
    with HttpStore(BASE) as store:
        async with HttpStore(BASE) as asynchronous:
            memory = InMemoryStore()
            for start in range(0, count, 50):
                numbers = range(start, min(start + 50, count))
                await asyncio.gather(*(asynchronous.aput((root, str(n)), "k", {"n": n, "odd": n % 2}) for n in numbers))
            for n in range(count):
                memory.put((root, str(n)), "k", {"n": n, "odd": n % 2})

            def sorted_keys(found):
                return sorted(found, key=repr)

            for options in [{"limit": 5000}, {"limit": 1004}, {"limit": 0}, {"limit": 1001, "offset": 10},
                            {"limit": 5000, "filter": {"odd": 1}}]:
                want = [one.value["n"] for one in memory.search((root,), **options)]
                for found in [
                    await asyncio.to_thread(lambda: store.search((root,), **options)),
                    await asynchronous.asearch((root,), **options),
                ]:
                    got = [one.value["n"] for one in found]
                    assert len(got) == len(want) == len(set(got)), (options, len(got), len(want))
            for options in [{"limit": 5000}, {"limit": 1004}, {"limit": 0}, {"limit": 1001, "offset": 10}]:
                want = memory.list_namespaces(prefix=(root,), **options)
                for found in [
                    await asyncio.to_thread(lambda: store.list_namespaces(prefix=(root,), **options)),
                    await asynchronous.alist_namespaces(prefix=(root,), **options),
                ]:
                    assert len(found) == len(want) == len({*found}), (options, len(found), len(want))
            assert sorted_keys(store.list_namespaces(prefix=(root,), limit=5000)) == sorted_keys(
                memory.list_namespaces(prefix=(root,), limit=5000)
            )


run()
