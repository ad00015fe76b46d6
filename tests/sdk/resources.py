"""Every method of the Python SDK for assistants, threads and runs, unchanged, against BASE_URL."""

import asyncio
import uuid

from checks import BASE, check, equal, refused, run, until
from langgraph_sdk import get_sync_client

COUNTER = {"counter": 0}
SLOW = {"n": 0, "steps": 500, "sleep_ms": 20}


def ids(rows, key="thread_id"):
    return [row[key] for row in rows]


@check
async def assistants_have_versions(client):
    made = await client.assistants.create(
        "counter", name="first", description="d", metadata={"tag": "v"}, config={"configurable": {"speed": 1}}
    )
    aid = made["assistant_id"]
    equal((made["version"], made["context"], made["description"]), (1, {"speed": 1}, "d"))
    changed = await client.assistants.update(aid, name="second", metadata={"more": True})
    equal((changed["version"], changed["name"]), (2, "second"))
    equal(changed["metadata"], {"tag": "v", "more": True}, "merged")
    equal([v["version"] for v in await client.assistants.get_versions(aid)], [2, 1])
    equal([v["version"] for v in await client.assistants.get_versions(aid, metadata={"more": True})], [2])
    back = await client.assistants.set_latest(aid, 1)
    equal((back["version"], back["name"], (await client.assistants.get(aid))["name"]), (1, "first", "first"))
    equal((await client.assistants.update(aid, context={"speed": 9}))["version"], 3, "counted from the greatest")
    await refused(409, client.assistants.create("counter", assistant_id=aid))
    again = await client.assistants.create("counter", assistant_id=aid, if_exists="do_nothing")
    equal(again["version"], 3)
    await client.assistants.delete(aid)
    await refused(404, client.assistants.get(aid))


@check
async def assistants_are_searched(client):
    tag = uuid.uuid4().hex
    for n in range(3):
        await client.assistants.create("chat", name=f"Named {n} {tag}", metadata={"tag": tag})
    equal(await client.assistants.count(metadata={"tag": tag}), 3)
    page = await client.assistants.search(
        metadata={"tag": tag}, limit=2, sort_by="name", sort_order="desc", response_format="object"
    )
    equal([a["name"][:7] for a in page["assistants"]], ["Named 2", "Named 1"])
    assert page["next"], page
    rest = await client.assistants.search(metadata={"tag": tag}, limit=2, offset=2, sort_by="name", sort_order="desc")
    equal([a["name"][:7] for a in rest], ["Named 0"])
    equal(len(await client.assistants.search(name=f"NAMED 1 {tag}")), 1, "by name, whatever its case")
    picked = await client.assistants.search(metadata={"tag": tag}, select=["name", "version"])
    assert all(set(a) == {"name", "version"} for a in picked), picked
    await refused(404, client.assistants.search(graph_id="no-such-graph"))


@check
async def every_graph_has_an_assistant(client):
    own = await client.assistants.search(graph_id="counter", metadata={"created_by": "system"})
    namespace = uuid.UUID("6ba7b821-9dad-11d1-80b4-00c04fd430c8")
    equal(ids(own, "assistant_id"), [str(uuid.uuid5(namespace, "counter"))])
    aid = own[0]["assistant_id"]
    drawing = await client.assistants.get_graph(aid, xray=True)
    equal({node["id"] for node in drawing["nodes"]}, {"__start__", "increment", "__end__"})
    schemas = await client.assistants.get_schemas(aid)
    assert {"graph_id", "input_schema", "output_schema", "state_schema", "config_schema"} <= set(schemas), schemas
    equal(await client.assistants.get_subgraphs(aid, recurse=True), {})
    await refused(409, client.assistants.delete(aid))


@check
async def runs_follow_their_assistant(client):
    made = await client.assistants.create("counter", config={"recursion_limit": 2}, metadata={"team": "a"})
    aid = made["assistant_id"]
    tid = (await client.threads.create())["thread_id"]
    failed = await client.runs.wait(tid, aid, input=COUNTER, raise_error=False)
    equal(failed["__error__"]["error"], "GraphRecursionError")
    await client.assistants.update(aid, config={"recursion_limit": 20})
    equal(await client.runs.wait(tid, aid, input=COUNTER), {"counter": 3})
    latest = (await client.runs.list(tid, limit=1))[0]
    equal((latest["assistant_id"], latest["metadata"]["team"]), (aid, "a"))
    await client.assistants.delete(aid, delete_threads=True)
    await refused(404, client.threads.get(tid))
    await refused(404, client.runs.create(None, aid, input=COUNTER))


@check
async def threads_are_made_changed_and_found(client):
    tag = uuid.uuid4().hex
    made = [await client.threads.create(metadata={"tag": tag, "n": n}, ttl=60) for n in range(3)]
    first = made[0]["thread_id"]
    equal((await client.threads.update(first, metadata={"more": 1}))["metadata"]["n"], 0, "merged")
    equal((await client.threads.get(first, include=["ttl"]))["ttl"]["ttl_minutes"], 60)
    await client.runs.wait(made[1]["thread_id"], "counter", input=COUNTER)
    equal(await client.threads.count(metadata={"tag": tag}), 3)
    ordered = await client.threads.search(metadata={"tag": tag}, sort_by="created_at", sort_order="asc")
    equal(ids(ordered), ids(made))
    equal(ids(await client.threads.search(values={"counter": 3}, metadata={"tag": tag})), [made[1]["thread_id"]])
    equal(ids(await client.threads.search(ids=[first])), [first])
    equal(len(await client.threads.search(metadata={"tag": tag}, status="idle", limit=2)), 2)
    picked = await client.threads.search(
        metadata={"tag": tag}, select=["status"], extract={"count": "values.counter"}, sort_by="created_at"
    )
    equal(sorted(picked[1]), ["extracted", "status"])
    equal([row["extracted"]["count"] for row in picked], [None, 3, None])
    pruned = await client.threads.prune(ids(made))
    equal(pruned["pruned_count"], 3)
    await refused(404, client.threads.get(first))


@check
async def threads_are_copied_and_made_with_a_history(client):
    tid = (await client.threads.create())["thread_id"]
    await client.runs.wait(tid, "counter", input=COUNTER)
    copy = (await client.threads.copy(tid))["thread_id"]
    equal((await client.threads.get_state(copy))["values"], {"counter": 3})
    equal(len(await client.threads.get_history(copy)), len(await client.threads.get_history(tid)))
    await client.threads.prune([copy], strategy="keep_latest")
    equal([s["values"] for s in await client.threads.get_history(copy)], [{"counter": 3}], "the latest is left")
    steps = [{"updates": [{"values": {"counter": n}, "as_node": node}]} for n, node in [(0, "__input__"), (2, "increment")]]
    told = (await client.threads.create(graph_id="counter", supersteps=steps))["thread_id"]
    equal(await client.runs.wait(told, "counter", input=None), {"counter": 3})
    history = await client.threads.get_history(tid, limit=20)
    older = await client.threads.get_history(tid, limit=2, before=history[2]["checkpoint"])
    equal([s["metadata"]["step"] for s in older], [0, -1])
    equal(len(await client.threads.get_history(tid, metadata={"source": "input"})), 1)


@check
async def runs_are_listed_joined_and_deleted(client):
    tid = (await client.threads.create())["thread_id"]
    made = await client.runs.create(tid, "counter", input=COUNTER, metadata={"m": 1})
    equal(made["status"], "pending")
    equal(await client.runs.join(tid, made["run_id"]), {"counter": 3})
    equal(ids(await client.runs.list(tid, status="success"), "run_id"), [made["run_id"]])
    equal(await client.runs.list(tid, status="error"), [])
    await client.runs.delete(tid, made["run_id"])
    await refused(404, client.runs.get(tid, made["run_id"]))
    batch = await client.runs.create_batch([{"assistant_id": "counter", "input": COUNTER}] * 2)
    equal(len({r["run_id"] for r in batch}), 2)
    await refused(404, client.runs.wait(str(uuid.uuid4()), "counter", input=COUNTER))
    made_by_run = await client.runs.wait(str(uuid.uuid4()), "counter", input=COUNTER, if_not_exists="create")
    equal(made_by_run, {"counter": 3})


async def _running(client, tid):
    made = await client.runs.create(tid, "slow", input=SLOW)

    async def is_running():
        return (await client.runs.get(tid, made["run_id"]))["status"] == "running"

    await until(is_running, "the run starts")
    return made["run_id"]


@check
async def runs_are_cancelled(client):
    tid = (await client.threads.create())["thread_id"]
    one = await _running(client, tid)
    await client.runs.cancel(tid, one, wait=True)
    equal((await client.runs.get(tid, one))["status"], "interrupted")
    two = await _running(client, tid)
    await client.runs.cancel(tid, two, wait=True, action="rollback")
    await refused(404, client.runs.get(tid, two))
    many = [await _running(client, tid), (await client.runs.create(tid, "slow", input=SLOW))["run_id"]]
    await client.runs.cancel_many(thread_id=tid, run_ids=many)
    for one in many:
        await client.runs.join(tid, one)
        equal((await client.runs.get(tid, one))["status"], "interrupted")


@check
async def strategies_decide_what_a_second_run_does(client):
    quick = {"n": 0, "steps": 1, "sleep_ms": 1}
    tid = (await client.threads.create())["thread_id"]
    first = await _running(client, tid)
    await refused(409, client.runs.create(tid, "slow", input=quick, multitask_strategy="reject"))
    await client.runs.wait(tid, "slow", input=quick, multitask_strategy="interrupt")
    equal((await client.runs.get(tid, first))["status"], "interrupted")
    second = await _running(client, tid)
    after = await client.runs.wait(tid, "slow", input=quick, multitask_strategy="rollback")
    equal(after["n"], 1)
    await refused(404, client.runs.get(tid, second))


@check
async def the_synchronous_client(_):
    def work():
        client = get_sync_client(url=BASE)
        tid = client.threads.create()["thread_id"]
        events = [part.event for part in client.runs.stream(tid, "chat", input={"messages": []}, stream_mode="updates")]
        return client.runs.wait(tid, "counter", input=COUNTER), events

    values, events = await asyncio.to_thread(work)
    equal((values, events), ({"counter": 3}, ["metadata", "updates"]))


run()
