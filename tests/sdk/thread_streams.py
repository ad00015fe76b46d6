"""Event streaming of the Python SDK, unchanged: `client.threads.stream` over both transports, and joined streams."""

import asyncio
import uuid

from checks import check, equal, run, until


def human(text):
    return {"messages": [{"type": "human", "content": text, "id": str(uuid.uuid4())}]}


def over_both(function):
    """A check for each of the two transports."""
    for transport in ("sse", "websocket"):

        async def one(client, transport=transport):
            await function(lambda thread, graph: client.threads.stream(thread, assistant_id=graph, transport=transport), client)

        one.__name__ = f"{function.__name__}_over_{transport}"
        check(one)


@over_both
async def a_run_is_started_and_its_output_awaited(opened, client):
    thread_id = str(uuid.uuid4())
    async with opened(thread_id, "chat") as stream:
        started = await stream.run.start(input=human("hi"))
        output = await asyncio.wait_for(stream.output, 30)
    equal([m["type"] for m in output["messages"]], ["human", "ai"])
    found = await client.runs.get(thread_id, started["run_id"])
    equal(found["status"], "success")


@over_both
async def messages_arrive_as_streams_of_their_own(opened, _):
    async with opened(str(uuid.uuid4()), "chat") as stream:
        await stream.run.start(input=human("hi"))
        # The SDK fills messages while they are iterated; they end with the run.
        messages = [message async for message in stream.messages]
        texts = [await message.text for message in messages]
        output = await asyncio.wait_for(stream.output, 30)
    equal(texts, [output["messages"][-1]["content"]])


@over_both
async def a_question_is_seen_and_answered(opened, _):
    thread_id = str(uuid.uuid4())
    async with opened(thread_id, "approval") as stream:
        await stream.run.start(input={"topic": "tea"})

        async def is_asked():
            return bool(stream.interrupted and stream.interrupts)

        await until(is_asked, "the question")
        equal(stream.interrupts[0]["value"]["question"], "Publish this draft?")
        await stream.run.respond({"approved": True})
        output = await asyncio.wait_for(stream.output, 30)
    equal((output["approved"], output["published"]), (True, output["draft"]))


@check
async def a_thread_is_joined_and_shows_all_its_runs(client):
    thread = (await client.threads.create())["thread_id"]
    done = []

    async def listen():
        async for part in await client.threads.join_stream(thread, last_event_id="-", stream_mode="lifecycle"):
            if part.data.get("status") == "run_done":
                done.append(part.data["run_id"])
                if len(done) == 2:
                    return

    listening = asyncio.create_task(listen())
    runs = []
    for _ in range(2):
        made = await client.runs.create(thread, "counter", input={"counter": 0}, stream_resumable=True)
        await client.runs.join(thread, made["run_id"])
        runs.append(made["run_id"])
    await asyncio.wait_for(listening, 30)
    equal(done, runs)


run()
