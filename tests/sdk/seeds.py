"""The Python `langgraph-sdk`, unchanged, against BASE_URL: the reference documents' programs over HTTP.

Expected values are what those programs print. Every check makes its own thread, but for the three thread names the
documents use themselves, which their first run creates. Exit status 1 when any check fails.
"""

import uuid

from checks import check, equal, run

HELLO = "Hello from the agent"


@check
async def session_store_demonstration(client):
    """--- First Run --- and --- Resume Run --- on the thread `demo-session`: {'counter': 3}."""
    seen, last = [], None
    async for part in client.runs.stream(
        "demo-session", "counter", input={"counter": 0}, stream_mode=["values", "custom"]
    ):
        if part.event == "custom":
            seen.append(part.data)
        elif part.event == "values":
            last = part.data
    equal(seen, [f"Current counter: {n}" for n in range(3)] + ["Stopping condition reached"])
    equal(last, {"counter": 3}, "the first run")
    equal(await client.runs.wait("demo-session", "counter", input=None), {"counter": 3}, "the resumed run")


@check
async def state_store_demonstration(client):
    """First run and resume after a crash on the thread `order-123`: {'count': 5}."""
    equal(await client.runs.wait("order-123", "count", input={"count": 0}), {"count": 5})
    equal(await client.runs.wait("order-123", "count", input=None), {"count": 5})
    state = await client.threads.get_state("order-123")
    equal((state["values"], state["next"]), ({"count": 5}, []))


@check
async def session_demonstration(client):
    """Three runs on one thread: each sees the messages of the earlier ones."""
    equal(await client.runs.wait("user-42", "greeter", input={"messages": []}), {"messages": [HELLO]})
    equal(await client.runs.wait("user-42", "greeter", input={}), {"messages": [HELLO] * 2})
    equal(await client.runs.wait("user-42", "greeter", input={}), {"messages": [HELLO] * 3})


@check
async def a_thread_that_was_created_first(client):
    thread = await client.threads.create(metadata={"owner": "alice"})
    tid = thread["thread_id"]
    uuid.UUID(tid)
    equal((thread["status"], thread["metadata"]["owner"]), ("idle", "alice"))
    equal(await client.runs.wait(tid, "counter", input={"counter": 0}), {"counter": 3})
    equal(await client.runs.wait(tid, "counter", input={"counter": 0}), {"counter": 3}, "the second run")
    thread = await client.threads.get(tid)
    equal((thread["status"], thread["values"]), ("idle", {"counter": 3}))
    await client.threads.delete(tid)


@check
async def streams(client):
    thread = await client.threads.create()
    tid, parts = thread["thread_id"], []
    async for part in client.runs.stream(tid, "counter", input={"counter": 0}, stream_mode=["values", "updates"]):
        parts.append((part.event, part.data))
    equal(parts[0][0], "metadata")
    assert parts[0][1]["run_id"], parts[0]
    equal([data for event, data in parts if event == "values"], [{"counter": n} for n in range(4)])
    equal(
        [data for event, data in parts if event == "updates"],
        [{"increment": {"counter": n}} for n in range(1, 4)],
    )


@check
async def chain_events(client):
    tid, events = (await client.threads.create())["thread_id"], []
    async for part in client.runs.stream(tid, "greeter", input={"messages": []}, stream_mode="events"):
        if part.event == "events":
            events.append((part.data["event"], part.data["name"]))
    node = [(f"on_chain_{what}", "chat") for what in ("start", "stream", "end")]
    equal(events, [("on_chain_start", "greeter"), *node, ("on_chain_end", "greeter")])


@check
async def history_and_replay(client):
    tid = (await client.threads.create())["thread_id"]
    await client.runs.wait(tid, "counter", input={"counter": 0})
    history = await client.threads.get_history(tid, limit=100)
    equal([state["metadata"]["step"] for state in history], [3, 2, 1, 0, -1])
    equal([state["metadata"]["source"] for state in history], ["loop"] * 4 + ["input"])
    equal([state["values"].get("counter") for state in history[:4]], [3, 2, 1, 0])
    equal([state["next"] for state in history[:4]], [[], ["increment"], ["increment"], ["increment"]])
    for newer, older in zip(history, history[1:]):
        equal(newer["parent_checkpoint"]["checkpoint_id"], older["checkpoint"]["checkpoint_id"])
    # Run again from the middle: a branch that ends the same.
    again = await client.runs.wait(tid, "counter", input=None, checkpoint_id=history[2]["checkpoint"]["checkpoint_id"])
    equal(again, {"counter": 3})
    at = await client.threads.get_state(tid, checkpoint_id=history[2]["checkpoint"]["checkpoint_id"])
    equal(at["values"], {"counter": 1}, "the past is unchanged")


@check
async def update_state(client):
    tid = (await client.threads.create())["thread_id"]
    await client.runs.wait(tid, "counter", input={"counter": 0})
    done = await client.threads.update_state(tid, {"counter": 1}, as_node="increment")
    assert done["checkpoint"]["checkpoint_id"], done
    state = await client.threads.get_state(tid)
    equal((state["values"], state["next"]), ({"counter": 1}, ["increment"]))
    equal(state["metadata"]["source"], "update")
    equal(await client.runs.wait(tid, "counter", input=None), {"counter": 3}, "null input goes on from the edit")


DRAFT = "Everything worth knowing about tea."
PUBLISHED = {"topic": "tea", "draft": DRAFT, "approved": True, "published": DRAFT}


@check
async def interrupt_before_and_resume(client):
    """graph.invoke(input, interrupt_before=["approve"]), later graph.invoke(None)."""
    tid = (await client.threads.create())["thread_id"]
    await client.runs.wait(tid, "approval", input={"topic": "tea"}, interrupt_before=["approve"])
    state = await client.threads.get_state(tid)
    equal((state["next"], state["values"]["draft"]), (["approve"], DRAFT))
    equal((await client.threads.get(tid))["status"], "interrupted")
    # The human looks, decides, and the run goes on from where it stopped.
    await client.threads.update_state(tid, {"approved": True}, as_node="draft")
    equal(await client.runs.wait(tid, "approval", input=None), PUBLISHED)
    state = await client.threads.get_state(tid)
    equal((state["next"], state["tasks"]), ([], []))
    equal((await client.threads.get(tid))["status"], "idle")


@check
async def a_breakpoint_then_a_question(client):
    tid = (await client.threads.create())["thread_id"]
    await client.runs.wait(tid, "approval", input={"topic": "tea"}, interrupt_before=["approve"])
    asked = await client.runs.wait(tid, "approval", input=None)
    equal(asked["__interrupt__"][0]["value"], {"question": "Publish this draft?", "draft": DRAFT})
    equal(await client.runs.wait(tid, "approval", command={"resume": "yes"}), PUBLISHED)


@check
async def interrupt_and_resume(client):
    tid = (await client.threads.create())["thread_id"]
    asked = await client.runs.wait(tid, "approval", input={"topic": "tea"})
    question = asked["__interrupt__"][0]
    equal(len(question["id"]), 32)
    equal(question["value"], {"question": "Publish this draft?", "draft": DRAFT})
    thread = await client.threads.get(tid)
    equal(thread["status"], "interrupted")
    equal([i["value"] for many in thread["interrupts"].values() for i in many], [question["value"]])
    state = await client.threads.get_state(tid)
    equal([task["interrupts"][0]["id"] for task in state["tasks"]], [question["id"]])
    done = await client.runs.wait(tid, "approval", command={"resume": "no"})
    equal((done["approved"], done["published"]), (False, None))
    equal((await client.threads.get(tid))["status"], "idle")


@check
async def the_other_graphs(client):
    answer = "This is the fixed answer of the benchmark node, about eighty characters long, ok."
    tid = (await client.threads.create())["thread_id"]
    hello = {"messages": [{"type": "human", "content": "hello"}]}
    values = await client.runs.wait(tid, "chat", input=hello)
    equal([(m["type"], m["content"]) for m in values["messages"]], [("human", "hello"), ("ai", answer)])
    assert all(m["id"] for m in values["messages"]), values
    values = await client.runs.wait(tid, "chat", input=hello)
    equal(len(values["messages"]), 4, "the second turn")
    tid = (await client.threads.create())["thread_id"]
    values = await client.runs.wait(tid, "fanout", input={"items": []})
    equal(sorted(values["items"]), list(range(20)), "twenty parallel tasks")


@check
async def background_runs(client):
    tid = (await client.threads.create())["thread_id"]
    run = await client.runs.create(tid, "count", input={"count": 0})
    equal(await client.runs.join(tid, run["run_id"]), {"count": 5})
    run = await client.runs.get(tid, run["run_id"])
    equal(run["status"], "success")


@check
async def stateless_runs(client):
    equal(await client.runs.wait(None, "counter", input={"counter": 0}), {"counter": 3})


run()
