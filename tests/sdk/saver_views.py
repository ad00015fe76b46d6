"""What `GET /threads/{id}/state` shows of graphs that run in Python, beside what their own `get_state` says."""

import json
import operator
import os
import sys
import urllib.request
import uuid
from typing import Annotated, TypedDict

from langgraph.channels import DeltaChannel
from langgraph.func import entrypoint, task
from langgraph.graph import START, StateGraph
from langgraph.types import Command, Send, interrupt
from session_store_langgraph import HttpSaver

BASE = os.environ["BASE_URL"]


class State(TypedDict):
    a: Annotated[list, operator.add]


Odd = TypedDict("Odd", {"a:b": int, "__x": int, "join:at": int, "__b__": int})
Log = Annotated[list, DeltaChannel(lambda state, writes: state + [n for w in writes for n in w], list, snapshot_frequency=3)]
Deltas = TypedDict("Deltas", {"log": Log})


def get(path):
    with urllib.request.urlopen(f"{BASE}{path}") as answer:
        return json.load(answer)


def graph(schema, edges, saver=None, **options):
    """`edges`: what leads to a node, its name and what it does."""
    builder = StateGraph(schema)
    for _, name, node in edges:
        builder.add_node(name, node)
    for before, name, _ in edges:
        if before:
            builder.add_edge(before, name)
    return builder.compile(checkpointer=saver, **options)


def adds(item):
    return lambda state: {"a": [item]}


def theirs(state, finished):
    """A snapshot as this server shows states; without the results of tasks, and the states inside those that finished."""
    tasks = []
    for one in state.tasks:
        inner = theirs(one.state, finished) if hasattr(one.state, "values") else None
        asked = [{"id": question.id, "value": question.value} for question in one.interrupts]
        tasks.append((one.name, one.id, asked, inner, one.result if finished else None))
    at = state.config["configurable"]
    return (state.values, list(state.next), sorted(tasks, key=str), at["checkpoint_id"], at.get("checkpoint_map"))


def ours(state, finished):
    tasks = []
    for one in state["tasks"]:
        inner = ours(one["state"], finished) if one["state"] else None
        tasks.append((one["name"], one["id"], one["interrupts"], inner, one["result"] if finished else None))
    at = state["checkpoint"]
    return (state["values"], state["next"], sorted(tasks, key=str), at["checkpoint_id"], at.get("checkpoint_map"))


def without_ids(state):
    """Of a task that has not told its id it is not known."""
    values, following, tasks, *at = state
    return (values, following, [(name, questions, inner) for name, _, questions, inner, _ in tasks], *at)


def compare(what, built, thread, *, known=True, values=True):
    config = {"configurable": {"thread_id": thread}}
    want = theirs(built.get_state(config, subgraphs=True), known)
    got = ours(get(f"/threads/{thread}/state?subgraphs=true"), known)
    if not known:
        assert all(task[1] is None for task in got[2]), got
        want, got = without_ids(want), without_ids(got)
    if not values:
        want, got = want[1:], got[1:]
    assert got == want, f"{what}:\n  ours   {got}\n  theirs {want}"
    session = get(f"/threads/{thread}/session")
    at = built.get_state(config)
    position = session["position"]
    assert (position["checkpoint_id"], position["step"], position["source"], position["next"]) == (
        at.config["configurable"]["checkpoint_id"],
        at.metadata["step"],
        at.metadata["source"],
        list(at.next),
    ), (what, position)
    pending = [(asked["interrupt_id"], asked["value"]) for asked in session["interrupts"]["pending"]]
    assert pending == [(asked.id, asked.value) for asked in at.interrupts], (what, pending)
    assert session["counts"]["checkpoints"] == len(list(built.checkpointer.list(config))), (what, session["counts"])
    print(f"ok      {what}")


def main():
    saver = HttpSaver(BASE)
    checks = 0

    def check(what, built, *inputs, **options):
        nonlocal checks
        thread = f"views-{uuid.uuid4()}"
        for given in inputs:
            built.invoke(given, {"configurable": {"thread_id": thread}})
        compare(what, built, thread, **options)
        checks += 1
        return thread

    @task
    def double(x):
        return x * 2

    @entrypoint(checkpointer=saver)
    def work(x, *, previous=None):
        y = double(x).result()
        if x == 3:
            y += interrupt("sure?")
        return entrypoint.final(value=y + (previous or 0), save=y)

    check("a function that has returned", work, 1)
    thread = check("a function that waits", work, 1, 3)
    assert get(f"/threads/{thread}/session")["values"] == 2
    # What has stored nothing yet has no values: {} here, as for a graph, which it may be.
    check("a function that waits in its first call", work, 3, values=False)
    check("a function that went on", work, 3, Command(resume=1))

    chain = [(START, "first", adds(1)), ("first", "last", adds(2))]
    check("stopped before a node", graph(State, chain, saver, interrupt_before=["last"]), {"a": [0]}, known=False)
    thread = check("at the end", graph(State, chain, saver), {"a": [0]})
    odd = [(START, "s", lambda state: {"a:b": 1, "__x": 2, "join:at": 3, "__b__": 4}), (START, "t", lambda state: {})]
    odd += [(["s", "t"], "u", lambda state: {})]
    check("odd names, and an edge from two nodes", graph(Odd, odd, saver, interrupt_before=["u"]), {"a:b": 0}, known=False)
    check("a state that is a list", graph(Annotated[list, operator.add], [(START, "n", lambda s: [1])], saver), [0])

    sends = lambda state: Command(goto=[Send("p", 1), Send("q", 2), Send("p", 3)])
    edges = [(START, "s", sends), (None, "p", lambda n: {"a": [interrupt(n)]}), (None, "q", lambda n: {"a": [n]})]
    # Their values have what finished tasks wrote, which takes the graph's reducers.
    check("sends, two of which wait", graph(State, edges, saver), {"a": []}, values=False)

    inner = graph(State, [(START, "x", adds("x")), ("x", "y", lambda state: {"a": [interrupt("y?")]})])
    middle = graph(State, [(START, "in", inner)])
    outer = graph(State, [(START, "m", middle), (START, "o", adds("o"))], saver)
    check("a question two graphs deep", outer, {"a": [0]}, values=False)
    stops = graph(State, [(START, "x", adds("x"))], interrupt_before=["x"])
    thread = f"views-{uuid.uuid4()}"
    built = graph(State, [(START, "m", stops)], saver)
    config = {"configurable": {"thread_id": thread}}
    built.invoke({"a": [0]}, config)
    state = get(f"/threads/{thread}/state?subgraphs=true")
    want = built.get_state(config, subgraphs=True).tasks[0]
    assert state["tasks"][0]["id"] == want.id, "met in the namespace of the graph inside"
    assert state["tasks"][0]["state"]["next"] == ["x"], state
    told = get(f"/threads/{thread}/state")["tasks"][0]["checkpoint"]
    assert told == {"thread_id": thread, "checkpoint_ns": f"m:{want.id}"}, told
    keeps = graph(State, [(START, "x", lambda state: {"a": [interrupt("x?")]})], True)
    check("a graph inside that keeps its state", graph(State, [(START, "m", keeps)], saver), {"a": [0]})

    deltas = graph(Deltas, [(START, "s", lambda state: {"log": ["s"]})], saver)
    thread = f"views-{uuid.uuid4()}"
    config = {"configurable": {"thread_id": thread}}
    shown = []
    for turn in range(2):
        deltas.invoke({"log": [f"in {turn}"]}, config)
        shown.append(get(f"/threads/{thread}/state")["values"])
    want = [{"type": "delta", "seed": None, "writes": [["in 0"], ["s"]]}]
    want += [{"type": "delta", "seed": ["in 0", "s", "in 1"], "writes": [["s"]]}]
    assert [values["log"] for values in shown] == want, shown
    assert get(f"/threads/{thread}")["values"] == {"log": {"type": "delta"}}
    checks += 2
    print(f"{checks} checks passed")


if __name__ == "__main__":
    try:
        main()
    except AssertionError as error:
        print(error)
        sys.exit(1)
