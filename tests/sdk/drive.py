"""Every resource of the Python SDK, its synchronous client, `RemoteGraph` and `threads.stream`, unchanged, against BASE_URL.

What a user of LangGraph Server would try in an afternoon, on the fixture graphs `counter`, `chat`, `approval` and `nested`
of `examples/conformance/refapp.rs`. Every check makes its own threads. `tests/it/sdk.rs` counts them.
"""

import asyncio
import time
import uuid

import httpx
from checks import BASE, check, equal, refused, run, until
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.pregel.remote import RemoteGraph
from langgraph.types import Command
from langgraph_sdk import get_sync_client

REPLY = "Hello from a fixed reply."
LONG = {"target": 100, "sleep_ms": 50}


def human(text="hi"):
    return {"messages": [{"type": "human", "content": text}]}


async def new_thread(client, **given):
    return (await client.threads.create(**given))["thread_id"]


def ids(rows, key):
    return [row[key] for row in rows]


async def running(client, thread, **given):
    """A long run that has begun."""
    made = (await client.runs.create(thread, "counter", input=LONG, **given))["run_id"]

    async def has_begun():
        return (await client.runs.get(thread, made))["status"] == "running"

    await until(has_begun, "the run begins")
    return made


# System


@check
async def the_server_tells_of_itself(_):
    async with httpx.AsyncClient(base_url=BASE) as http:
        equal((await http.get("/ok")).json()["ok"], True)
        info = (await http.get("/info")).json()
        assert {"version", "flags"} <= set(info), info
        assert "/threads/{thread_id}/runs/stream" in (await http.get("/openapi.json")).json()["paths"]


# Assistants


@check
async def assistants_are_made_changed_and_set_back(client):
    made = await client.assistants.create(
        "chat", name="one", metadata={"tag": "t"}, config={"configurable": {"k": 1}}, description="d"
    )
    aid = made["assistant_id"]
    equal((made["version"], made["graph_id"], made["description"]), (1, "chat", "d"))
    changed = await client.assistants.update(aid, name="two", metadata={"more": 1})
    equal((changed["version"], changed["name"], changed["metadata"]), (2, "two", {"tag": "t", "more": 1}))
    equal(ids(await client.assistants.get_versions(aid), "version"), [2, 1])
    back = await client.assistants.set_latest(aid, 1)
    equal((back["version"], back["name"]), (1, "one"))
    again = await client.assistants.create("chat", assistant_id=aid, if_exists="do_nothing")
    equal(again["assistant_id"], aid)
    await refused(409, client.assistants.create("chat", assistant_id=aid, if_exists="raise"))
    await client.assistants.delete(aid)
    await refused(404, client.assistants.get(aid))


@check
async def assistants_are_searched_and_counted(client):
    tag = uuid.uuid4().hex
    made = [await client.assistants.create("chat", name=f"n{n}", metadata={"tag": tag}) for n in range(3)]
    equal(await client.assistants.count(metadata={"tag": tag}), 3)
    by_name = {"metadata": {"tag": tag}, "limit": 2, "sort_by": "name", "sort_order": "asc"}
    equal(ids(await client.assistants.search(**by_name), "name"), ["n0", "n1"])
    equal(ids(await client.assistants.search(**by_name, offset=2), "name"), ["n2"])
    picked = await client.assistants.search(metadata={"tag": tag}, select=["assistant_id"])
    equal([set(row) for row in picked], [{"assistant_id"}] * 3)
    page = await client.assistants.search(metadata={"tag": tag}, limit=1, response_format="object")
    assert len(page["assistants"]) == 1 and page["next"], page
    for assistant in made:
        await client.assistants.delete(assistant["assistant_id"])


@check
async def every_graph_has_one_assistant_of_a_known_id(client):
    own = await client.assistants.search(graph_id="counter", metadata={"created_by": "system"})
    namespace = uuid.UUID("6ba7b821-9dad-11d1-80b4-00c04fd430c8")
    equal(ids(own, "assistant_id"), [str(uuid.uuid5(namespace, "counter"))])


@check
async def graphs_are_drawn_and_described(client):
    aid = (await client.assistants.search(graph_id="nested"))[0]["assistant_id"]
    drawn = await client.assistants.get_graph(aid)
    assert {"__start__", "p_one", "child", "p_end", "__end__"} <= set(ids(drawn["nodes"], "id")), drawn
    inside = await client.assistants.get_graph(aid, xray=True)
    assert any(":" in node["id"] for node in inside["nodes"]), inside
    schemas = await client.assistants.get_schemas(aid)
    assert {"graph_id", "input_schema", "output_schema", "state_schema", "config_schema"} <= set(schemas), schemas
    equal(list(await client.assistants.get_subgraphs(aid)), ["child"])


# Threads


@check
async def threads_are_made_changed_and_deleted(client):
    made = await client.threads.create(metadata={"a": 1})
    tid = made["thread_id"]
    equal((made["status"], made["metadata"]), ("idle", {"a": 1}))
    assert made["values"] in (None, {}), made
    equal((await client.threads.update(tid, metadata={"b": 2}))["metadata"], {"a": 1, "b": 2})
    equal((await client.threads.create(thread_id=tid, if_exists="do_nothing"))["thread_id"], tid)
    await refused(409, client.threads.create(thread_id=tid, if_exists="raise"))
    await client.threads.delete(tid)
    await refused(404, client.threads.get(tid))
    await refused(404, client.threads.get_state(tid))
    # Names are allowed here: one that nobody used is unknown, not malformed.
    await refused(404, client.threads.get("not-a-uuid"))


@check
async def threads_are_searched_and_counted(client):
    tag = uuid.uuid4().hex
    made = [await new_thread(client, metadata={"tag": tag, "n": n}) for n in range(3)]
    await client.runs.wait(made[1], "counter", input={"target": 1})
    here = {"metadata": {"tag": tag}, "sort_by": "created_at", "sort_order": "asc"}
    equal(await client.threads.count(metadata={"tag": tag}), 3)
    found = await client.threads.search(**here, limit=10)
    equal((ids(found, "thread_id"), found[1]["values"]["count"]), (made, 1))
    equal(len(await client.threads.search(**here, status="idle")), 3)
    equal(ids(await client.threads.search(ids=[made[0]]), "thread_id"), [made[0]])
    picked = await client.threads.search(**here, select=["thread_id", "status"])
    equal(set(picked[0]), {"thread_id", "status"})
    extracted = await client.threads.search(**here, extract={"n": "values.count"})
    equal([row["extracted"]["n"] for row in extracted], [None, 1, None])


@check
async def threads_are_found_by_their_values(client):
    tag = uuid.uuid4().hex
    await client.threads.create(metadata={"tag": tag})
    tid = await new_thread(client, metadata={"tag": tag})
    await client.runs.wait(tid, "counter", input={"target": 1})
    found = await client.threads.search(metadata={"tag": tag}, values={"count": 1})
    equal(ids(found, "thread_id"), [tid], "one without values is no error")


@check
async def a_thread_has_a_history_and_forks(client):
    tid = await new_thread(client)
    values = await client.runs.wait(tid, "counter", input={"target": 3})
    equal((values["count"], len(values["steps"])), (3, 3))
    state = await client.threads.get_state(tid)
    equal((state["values"]["count"], state["next"]), (3, []))
    history = await client.threads.get_history(tid, limit=20)
    equal([s["metadata"]["source"] for s in history], ["loop"] * 4 + ["input"])
    equal([s["metadata"]["step"] for s in history], [3, 2, 1, 0, -1])
    middle = history[2]
    equal((middle["values"]["count"], middle["next"]), (1, ["bump"]))
    at = middle["checkpoint"]
    equal((await client.threads.get_state(tid, checkpoint_id=at["checkpoint_id"]))["values"]["count"], 1)
    again = await client.threads.get_state(tid, checkpoint=at)
    equal(again["checkpoint"]["checkpoint_id"], at["checkpoint_id"])
    older = await client.threads.get_history(tid, limit=2, before={"configurable": at})
    equal([s["metadata"]["step"] for s in older], [0, -1])
    equal(len(await client.threads.get_history(tid, metadata={"source": "input"})), 1)
    edit = {"count": 100, "steps": ["edited"]}
    edited = await client.threads.update_state(tid, edit, as_node="bump", checkpoint=at)
    assert edited["checkpoint"]["checkpoint_id"], edited
    fork = await client.threads.get_state(tid)
    equal((fork["values"]["count"], fork["metadata"]["source"]), (101, "update"))
    equal(fork["parent_checkpoint"]["checkpoint_id"], at["checkpoint_id"])
    replayed = await client.runs.wait(tid, "counter", input=None, checkpoint_id=at["checkpoint_id"])
    equal(replayed["count"], 3, "the branch that was there runs on as before")


@check
async def history_before_a_checkpoint_object(client):
    tid = await new_thread(client)
    await client.runs.wait(tid, "counter", input={"target": 3})
    history = await client.threads.get_history(tid, limit=20)
    older = await client.threads.get_history(tid, limit=2, before=history[2]["checkpoint"])
    equal([s["metadata"]["step"] for s in older], [0, -1])


@check
async def threads_are_copied_begun_with_supersteps_and_pruned(client):
    tid = await new_thread(client)
    await client.runs.wait(tid, "counter", input={"target": 2})
    copy = (await client.threads.copy(tid))["thread_id"]
    assert copy != tid
    equal((await client.threads.get_state(copy))["values"]["count"], 2)
    equal(len(await client.threads.get_history(copy)), len(await client.threads.get_history(tid)))
    begin = {"target": 5, "count": 2, "steps": ["s"]}
    steps = [(begin, "__input__"), (begin, "__start__"), ({"count": 3, "steps": ["b"]}, "bump")]
    supersteps = [{"updates": [{"values": values, "as_node": node}]} for values, node in steps]
    told = await new_thread(client, graph_id="counter", supersteps=supersteps)
    equal((await client.threads.get_state(told))["values"]["count"], 5)
    equal((await client.threads.prune([tid], strategy="delete"))["pruned_count"], 1)
    await refused(404, client.threads.get(tid))


# Runs


@check
async def runs_are_waited_for_with_and_without_a_thread(client):
    values = await client.runs.wait(await new_thread(client), "chat", input=human())
    equal((values["messages"][-1]["type"], values["messages"][-1]["content"]), ("ai", REPLY))
    equal(len((await client.runs.wait(None, "chat", input=human()))["messages"]), 2)
    unknown = str(uuid.uuid4())
    await refused(404, client.runs.wait(unknown, "chat", input=human()))
    made = await client.runs.wait(unknown, "chat", input=human(), if_not_exists="create")
    equal(len(made["messages"]), 2)


@check
async def runs_are_created_listed_joined_and_deleted(client):
    tid = await new_thread(client)
    made = await client.runs.create(tid, "counter", input={"target": 1}, metadata={"m": "x"})
    rid = made["run_id"]
    equal((made["status"], made["thread_id"]), ("pending", tid))
    equal((await client.runs.join(tid, rid))["count"], 1)
    found = await client.runs.get(tid, rid)
    equal((found["status"], found["metadata"]["m"]), ("success", "x"))
    equal(ids(await client.runs.list(tid), "run_id"), [rid])
    equal(len(await client.runs.list(tid, status="success")), 1)
    equal(await client.runs.list(tid, status="error"), [])
    await client.runs.delete(tid, rid)
    await refused(404, client.runs.get(tid, rid))


@check
async def every_stream_mode_streams(client):
    modes = ["values", "updates", "messages", "messages-tuple", "custom", "debug", "tasks", "checkpoints", "events"]
    seen = {}
    for mode in modes:
        graph, given = ("counter", {"target": 2}) if mode == "custom" else ("chat", human())
        parts = [part async for part in client.runs.stream(await new_thread(client), graph, input=given, stream_mode=mode)]
        assert parts[0].event == "metadata" and parts[0].data["run_id"], parts[0]
        assert len(parts) > 1 and all(part.event != "error" for part in parts), (mode, parts)
        seen[mode] = {part.event for part in parts}
    for mode in ["values", "updates", "custom", "debug", "tasks", "checkpoints", "events"]:
        equal(seen[mode], {"metadata", mode})
    equal(seen["messages-tuple"], {"metadata", "messages"})
    assert {"messages/metadata", "messages/partial"} <= seen["messages"], seen["messages"]


@check
async def several_modes_and_graphs_inside_stream_together(client):
    tid, given = await new_thread(client), {"stream_mode": ["updates", "values"], "stream_subgraphs": True}
    parts = [part async for part in client.runs.stream(tid, "nested", input={"trail": []}, **given)]
    equal({part.event.split("|")[0] for part in parts}, {"metadata", "updates", "values"})
    assert any(part.event.startswith("updates|child:") for part in parts), parts
    last = [part for part in parts if part.event == "values"][-1]
    # The child hands back all it has seen, and the parent appends that.
    equal(last.data, {"trail": ["p_one", "p_one", "c_one", "c_two", "p_end"]})


@check
async def the_second_version_of_the_stream_of_the_sdk(client):
    tid, modes = await new_thread(client), ["values", "messages-tuple"]
    stream = client.runs.stream(tid, "chat", input=human(), stream_mode=modes, version="v2")
    parts = [part async for part in stream]
    kinds = {part["type"] if isinstance(part, dict) else part.event for part in parts}
    assert {"metadata", "values", "messages"} <= kinds, kinds


@check
async def a_joined_stream_goes_on_after_the_last_event(client):
    tid = await new_thread(client)
    given = {"target": 4, "sleep_ms": 20}
    rid = (await client.runs.create(tid, "counter", input=given, stream_mode=["updates"], stream_resumable=True))["run_id"]

    async def join(after):
        stream = client.runs.join_stream(tid, rid, stream_mode=["updates"], last_event_id=after)
        return [part async for part in stream]

    parts = await join("-1")
    equal(len([part for part in parts if part.event == "updates"]), 4)
    seen = [part.id for part in parts if part.id]
    equal(len(seen), len(set(seen)))
    equal([part.id for part in await join(seen[1]) if part.id], seen[2:])


@check
async def the_stream_of_a_thread_tells_of_its_runs(client):
    tid, told = await new_thread(client), []

    async def listen():
        async for part in await client.threads.join_stream(tid, stream_mode=["run_modes"], last_event_id="-"):
            told.append(part)
            if part.event == "metadata" and part.data.get("status") == "run_done":
                return

    listening = asyncio.create_task(listen())
    await client.runs.wait(tid, "counter", input={"target": 2})
    await asyncio.wait_for(listening, 30)
    assert {"metadata", "values"} <= {part.event for part in told}, told


@check
async def a_run_is_cancelled_or_rolled_back(client):
    tid = await new_thread(client)
    rid = await running(client, tid)
    await client.runs.cancel(tid, rid, wait=True, action="interrupt")
    equal((await client.runs.get(tid, rid))["status"], "interrupted")
    tid = await new_thread(client)
    rid = await running(client, tid)
    await client.runs.cancel(tid, rid, wait=True, action="rollback")
    await refused(404, client.runs.get(tid, rid))
    equal(await client.threads.get_history(tid), [])


@check
async def many_runs_are_cancelled_at_once(client):
    tid = await new_thread(client)
    both = [(await client.runs.create(tid, "counter", input=LONG))["run_id"] for _ in range(2)]
    await client.runs.cancel_many(thread_id=tid, run_ids=both)
    for rid in both:

        async def is_interrupted():
            return (await client.runs.get(tid, rid))["status"] == "interrupted"

        await until(is_interrupted, "the run ends")


@check
async def strategies_decide_what_a_second_run_does(client):
    seen, quick = {}, {"target": 1}
    tid = await new_thread(client)
    rid = await running(client, tid)
    await refused(409, client.runs.create(tid, "counter", input=quick, multitask_strategy="reject"))
    await client.runs.cancel(tid, rid, wait=True)
    for strategy in ["enqueue", "interrupt", "rollback"]:
        tid = await new_thread(client)
        given = {"target": 3, "sleep_ms": 100}
        first = (await client.runs.create(tid, "counter", input=given))["run_id"]
        second = (await client.runs.create(tid, "counter", input=quick, multitask_strategy=strategy))["run_id"]
        await client.runs.join(tid, second)
        try:
            before = (await client.runs.get(tid, first))["status"]
        except Exception as error:
            before = getattr(error, "status_code", None) or error.response.status_code
        seen[strategy] = (before, (await client.runs.get(tid, second))["status"])
    want = {"enqueue": "success", "interrupt": "interrupted", "rollback": 404}
    equal(seen, {strategy: (before, "success") for strategy, before in want.items()})


@check
async def a_failure_is_told_everywhere(client):
    tid, given = await new_thread(client), {"target": 2, "fail_at": 0}
    parts = [part async for part in client.runs.stream(tid, "counter", input=given, stream_mode="values")]
    error = {"error": "ValueError", "message": "counter refused at 0"}
    equal((parts[-1].event, parts[-1].data), ("error", error))
    thread = await client.threads.get(tid)
    equal((thread["status"], thread["error"]), ("error", error))
    equal((await client.runs.list(tid))[0]["status"], "error")
    state = await client.threads.get_state(tid)
    assert "counter refused at 0" in state["tasks"][0]["error"], state
    waited = await client.runs.wait(tid, "counter", input={"fail_at": 0}, raise_error=False)
    equal(waited["__error__"]["error"], "ValueError")


@check
async def runs_stop_at_breakpoints_and_may_be_delayed(client):
    tid = await new_thread(client)
    await client.runs.wait(tid, "approval", input=human("go"), interrupt_before=["review"])
    equal((await client.threads.get_state(tid))["next"], ["review"])
    equal((await client.threads.get(tid))["status"], "interrupted")
    assert "__interrupt__" in await client.runs.wait(tid, "approval", input=None)
    began = time.monotonic()
    await client.runs.wait(None, "counter", input={"target": 1}, after_seconds=0.5)
    assert time.monotonic() - began >= 0.5, "it began too early"


@check
async def a_human_approves_edits_and_rejects(client):
    action = {"name": "send_email", "args": {"to": "me@x", "body": "new"}}
    for decision, told in [
        ({"type": "approve"}, "sent to ops@example.com: mail"),
        ({"type": "edit", "edited_action": action}, "sent to me@x: new"),
        ({"type": "reject", "message": "no"}, "rejected: no"),
    ]:
        tid = await new_thread(client)
        stream = client.runs.stream(tid, "approval", input=human("mail"), stream_mode=["values", "updates"])
        parts = [part async for part in stream]
        assert any("__interrupt__" in part.data for part in parts), parts
        thread = await client.threads.get(tid)
        equal(thread["status"], "interrupted")
        ((question,),) = thread["interrupts"].values()
        equal(question["value"]["action_requests"][0]["name"], "send_email")
        assert question["id"], question
        found = await client.threads.search(status="interrupted", ids=[tid])
        equal(ids(found, "thread_id"), [tid])
        values = await client.runs.wait(tid, "approval", command={"resume": {"decisions": [decision]}})
        equal((values["outcome"], values["messages"][-2]["content"]), (decision["type"], told))
        equal((await client.threads.get(tid))["status"], "idle")


@check
async def commands_answer_by_id_update_and_go(client):
    tid = await new_thread(client)
    await client.runs.wait(tid, "counter", input={"target": 2, "ask_at": 0})
    question = (await client.threads.get_state(tid))["tasks"][0]["interrupts"][0]["id"]
    values = await client.runs.wait(tid, "counter", command={"resume": {question: "yes"}})
    equal((values["note"], values["count"]), ("yes", 2))
    tid = await new_thread(client)
    await client.runs.wait(tid, "counter", input={"target": 1})
    command = {"update": {"count": 5, "target": 8}, "goto": "bump"}
    assert (await client.runs.wait(tid, "counter", command=command))["count"] >= 8


@check
async def a_batch_of_runs(client):
    batch = [{"assistant_id": "counter", "input": {"target": 1}}, {"assistant_id": "chat", "input": human()}]
    made = await client.runs.create_batch(batch)
    equal(len({row["run_id"] for row in made}), 2)


@check
async def a_run_keeps_its_config(client):
    tid, config = await new_thread(client), {"tags": ["x"], "recursion_limit": 7, "configurable": {"a": 1}}
    rid = (await client.runs.create(tid, "chat", input=human(), config=config))["run_id"]
    await client.runs.join(tid, rid)
    kept = (await client.runs.get(tid, rid))["kwargs"]["config"]
    equal((kept["recursion_limit"], kept["configurable"]["a"]), (7, 1))
    await refused(422, client.runs.create(tid, "no-such-graph", input={}))


# Crons


@check
async def crons_are_made_found_changed_and_deleted(client):
    tag, yearly = uuid.uuid4().hex, {"schedule": "0 0 1 1 *", "input": {"target": 1}}
    free = await client.crons.create("counter", **yearly, metadata={"tag": tag})
    tid = await new_thread(client)
    bound = await client.crons.create_for_thread(tid, "counter", **yearly, metadata={"tag": tag})
    found = await client.crons.search(limit=50)
    assert {free["cron_id"], bound["cron_id"]} <= set(ids(found, "cron_id")), found
    equal(ids(await client.crons.search(thread_id=tid), "cron_id"), [bound["cron_id"]])
    assert await client.crons.count() >= 2
    changed = await client.crons.update(free["cron_id"], schedule="5 0 1 1 *", enabled=False)
    equal((changed["schedule"], changed["enabled"]), ("5 0 1 1 *", False))
    for cron in (free, bound):
        await client.crons.delete(cron["cron_id"])
    equal(await client.crons.search(thread_id=tid), [])


# Items


@check
async def items_are_kept_filtered_and_listed(client):
    root = ["t", uuid.uuid4().hex]
    for path, key, color, n in [("a", "k1", "red", 1), ("a", "k2", "blue", 2), ("b", "k3", "red", 3)]:
        await client.store.put_item([*root, path], key, {"color": color, "n": n})
    item = await client.store.get_item([*root, "a"], "k1")
    equal((item["value"], item["namespace"]), ({"color": "red", "n": 1}, [*root, "a"]))

    async def keys(**given):
        return sorted(ids((await client.store.search_items(root, **given))["items"], "key"))

    equal(await keys(), ["k1", "k2", "k3"])
    equal(await keys(filter={"color": "red"}), ["k1", "k3"])
    equal(await keys(filter={"n": {"$gt": 1}}), ["k2", "k3"])
    equal(len(await keys(limit=2, offset=2)), 1)

    async def namespaces(**given):
        return sorted((await client.store.list_namespaces(prefix=root, **given))["namespaces"])

    equal(await namespaces(), [[*root, "a"], [*root, "b"]])
    equal(await namespaces(max_depth=2), [root])
    equal(await namespaces(suffix=["b"]), [[*root, "b"]])
    await client.store.delete_item([*root, "a"], "k1")
    equal(await client.store.get_item([*root, "a"], "k1"), None)
    async with httpx.AsyncClient(base_url=BASE) as http:  # The SDK refuses such a label itself.
        bad = await http.put("/store/items", json={"namespace": ["bad.label"], "key": "k", "value": {}})
        equal(bad.status_code, 422)


@check
async def items_take_a_time_to_live_and_no_index(client):
    place = ["ttl", uuid.uuid4().hex]
    await client.store.put_item(place, "k", {"v": 1}, index=False, ttl=1)
    equal((await client.store.get_item(place, "k", refresh_ttl=True))["value"], {"v": 1})


# Other clients


@check
async def the_synchronous_client(_):
    def work():
        client = get_sync_client(url=BASE)
        tid = client.threads.create()["thread_id"]
        values = client.runs.wait(tid, "counter", input={"target": 2})
        parts = client.runs.stream(tid, "chat", input=human(), stream_mode="updates")
        return values["count"], [part.event for part in parts]

    equal(await asyncio.to_thread(work), (2, ["metadata", "updates"]))


@check
async def a_remote_graph_is_invoked_read_changed_and_drawn(client):
    graph, config = RemoteGraph("counter", url=BASE), {"configurable": {"thread_id": await new_thread(client)}}
    equal((await graph.ainvoke({"target": 3}, config))["count"], 3)
    state = await graph.aget_state(config)
    equal((state.values["count"], state.next), (3, ()))
    history = [state async for state in graph.aget_state_history(config)]
    equal(len(history), 5)
    edited = await graph.aupdate_state(history[2].config, {"count": 10, "steps": ["x"]}, as_node="bump")
    assert edited["configurable"]["checkpoint_id"], edited
    chunks = [chunk async for chunk in graph.astream({"target": 99, "count": 80}, config, stream_mode="updates")]
    assert chunks and "bump" in chunks[0], chunks[:1]
    drawn = await graph.aget_graph()
    assert "bump" in drawn.nodes and "bump" in drawn.draw_mermaid(), drawn


@check
async def a_remote_graph_asks_and_is_a_node(client):
    graph, config = RemoteGraph("approval", url=BASE), {"configurable": {"thread_id": await new_thread(client)}}
    await graph.ainvoke(human("x"), config)
    state = await graph.aget_state(config)
    equal((state.next, len(state.tasks[0].interrupts)), (("review",), 1))
    answered = await graph.ainvoke(Command(resume={"decisions": [{"type": "approve"}]}), config)
    equal(answered["outcome"], "approve")
    chat = RemoteGraph("chat", url=BASE, name="chat")
    outer = StateGraph(MessagesState).add_node("chat", chat).add_edge(START, "chat").add_edge("chat", END).compile()
    values = await outer.ainvoke(human("nested"))
    equal(values["messages"][-1].content, REPLY)


@check
async def a_thread_is_streamed_by_the_newer_protocol(client):
    async with client.threads.stream(await new_thread(client), assistant_id="chat") as stream:
        await stream.run.start(input=human())
        output = await asyncio.wait_for(stream.output, 30)
    equal(output["messages"][-1]["content"], REPLY)


run()
