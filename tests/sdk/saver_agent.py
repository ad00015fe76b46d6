"""An agent with tools, interrupts, subgraphs, fan-out, delta values and time travel: the same transcript with `HttpSaver` as
with LangGraph's `InMemorySaver`, synchronous and asynchronous. Only ids and times may differ.
"""

import asyncio
import os
import re
import sys
import uuid
from operator import add
from typing import Annotated, Any, TypedDict

from langchain_core.language_models.fake_chat_models import FakeMessagesListChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.channels import DeltaChannel
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.store.memory import InMemoryStore
from langgraph.types import Command, Send, interrupt
from session_store_langgraph import HttpSaver, HttpStore

BASE = os.environ["BASE_URL"]


class Model(FakeMessagesListChatModel):
    def bind_tools(self, tools: Any, **_: Any) -> "Model":
        return self


def model():
    call = {"name": "weather", "args": {"city": "Oslo"}, "id": "call-1", "type": "tool_call"}
    return Model(responses=[AIMessage("Let me look.", tool_calls=[call]), AIMessage("It snows in Oslo.")])


class Inner(TypedDict):
    city: str
    report: str


class State(MessagesState):
    notes: Annotated[list[str], add]
    approved: bool
    raw: Any


def graph(checkpointer, store):
    llm = model()

    def fetch(state: Inner):
        return {"report": f"snow in {state['city']}"}

    def confirm(state: Inner):
        answer = interrupt({"question": "Publish?", "report": state["report"]})
        return {"report": f"{state['report']} ({answer})"}

    inner = StateGraph(Inner)
    inner.add_node("fetch", fetch)
    inner.add_node("confirm", confirm)
    inner.add_edge(START, "fetch")
    inner.add_edge("fetch", "confirm")
    inner.add_edge("confirm", END)

    def agent(state: State):
        return {"messages": [llm.invoke(state["messages"])]}

    def tools(state: State):
        call = state["messages"][-1].tool_calls[0]
        report = weather.invoke({"city": call["args"]["city"]})["report"]
        return {"messages": [ToolMessage(report, tool_call_id=call["id"])], "raw": {"bytes": b"\x00\xff", "t": (1, 2.5)}}

    def route(state: State):
        return "tools" if state["messages"][-1].tool_calls else "fan"

    def fan(state: State):
        return Command(goto=[Send("note", {"n": n}) for n in (2, 1, 3)])

    def note(state: Any):
        return {"notes": [f"note {state['n']}"]}

    def approve(state: State):
        return {"approved": interrupt("Approve?") == "yes"}

    weather = inner.compile()
    builder = StateGraph(State)
    builder.add_node("agent", agent)
    builder.add_node("tools", tools)
    builder.add_node("fan", fan, destinations=("note",))
    builder.add_node("note", note)
    builder.add_node("approve", approve)
    builder.add_edge(START, "agent")
    builder.add_conditional_edges("agent", route, ["tools", "fan"])
    builder.add_edge("tools", "agent")
    builder.add_edge("note", "approve")
    builder.add_edge("approve", END)
    return builder.compile(checkpointer=checkpointer, store=store)


def shown(value):
    """What a state shows, without what differs from run to run."""
    text = repr(value)
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|[0-9a-f]{32}", "ID", text)
    return re.sub(r"\d{4}-\d\d-\d\dT[0-9:.+]+|lc_run--ID", "TIME", text)


def snapshot(state):
    tasks = sorted((task.name, shown(task.interrupts), shown(task.error)) for task in state.tasks)
    return shown((state.values, state.next, tasks, {k: v for k, v in state.metadata.items() if k != "thread_id"}))


def conversation(checkpointer, store, thread):
    lines = []
    built = graph(checkpointer, store)
    config = {"configurable": {"thread_id": thread}}
    for asked in ({"messages": [HumanMessage("Weather in Oslo?")]}, Command(resume="fine"), Command(resume="yes")):
        parts = list(built.stream(asked, config, stream_mode=["updates", "values"], subgraphs=True))
        lines.append(shown([part for part in parts if part[1] == "values"]))
        # Tasks that run side by side finish in any order.
        lines.append(str(sorted(shown(part) for part in parts if part[1] == "updates")))
        state = built.get_state(config, subgraphs=True)
        lines.append(snapshot(state))
    history = list(built.get_state_history(config))
    lines.extend(snapshot(state) for state in history)
    lines.append(str([len(list(built.get_state_history(config, limit=n))) for n in (1, 3)]))
    lines.append(str([state.metadata["step"] for state in built.get_state_history(config, filter={"source": "input"})]))
    # Time travel: from an earlier state, and from an edited one.
    early = next(state for state in history if state.next == ("tools",))
    lines.append(shown(built.invoke(None, early.config)))
    fork = built.update_state(early.config, {"notes": ["edited"]}, as_node="agent")
    lines.append(shown(built.invoke(None, fork)))
    lines.append(snapshot(built.get_state(config)))
    lines.extend(snapshot(state) for state in built.get_state_history(config))
    return lines


async def aconversation(checkpointer, store, thread):
    lines = []
    built = graph(checkpointer, store)
    config = {"configurable": {"thread_id": thread}}
    for asked in ({"messages": [HumanMessage("Weather in Oslo?")]}, Command(resume="fine"), Command(resume="yes")):
        lines.append(shown([part async for part in built.astream(asked, config, stream_mode="values")]))
        lines.append(snapshot(await built.aget_state(config, subgraphs=True)))
    history = [state async for state in built.aget_state_history(config)]
    lines.extend(snapshot(state) for state in history)
    lines.append(shown(await built.ainvoke(None, history[2].config)))
    # Many at once, whose changes share requests.
    asked = {"messages": [HumanMessage("Hi")]}
    for durability in ("async", "sync", "exit"):
        many = [{"configurable": {"thread_id": f"{thread}-{durability}-{n}"}} for n in range(8)]
        # Each has a model of its own, which says the same things in the same order.
        runs = [graph(checkpointer, store).ainvoke(asked, one, durability=durability) for one in many]
        lines.extend(sorted(shown(result) for result in await asyncio.gather(*runs)))
        states = [await built.aget_state(one) for one in many]
        lines.extend(snapshot(state) for state in states)
    return lines


class Deltas(TypedDict):
    log: Annotated[list, DeltaChannel(lambda state, writes: state + [item for write in writes for item in write], list, snapshot_frequency=3)]
    turn: int


def deltas(checkpointer, thread):
    """A channel that is stored as changes: read back, forked, and pruned."""

    def left(state: Deltas):
        return {"log": [f"left {state['turn']}"], "turn": state["turn"] + 1}

    def right(state: Deltas):
        return {"log": [f"right {state['turn']}"]}

    builder = StateGraph(Deltas)
    builder.add_node("left", left)
    builder.add_node("right", right)
    builder.add_edge(START, "left")
    builder.add_edge(START, "right")
    graph = builder.compile(checkpointer=checkpointer)
    config = {"configurable": {"thread_id": thread}}
    lines = [shown(graph.invoke({"turn": 0, "log": ["begin"]}, config))]
    lines.extend(shown(graph.invoke({"log": [f"asked {turn}"]}, config)) for turn in range(4))
    history = list(graph.get_state_history(config))
    lines.extend(snapshot(state) for state in history)
    lines.append(shown(graph.invoke({"log": ["elsewhere"]}, history[4].config)))
    latest = graph.get_state(config)
    lines.append(shown(latest.values))
    if isinstance(checkpointer, HttpSaver):
        checkpointer.prune([thread])
        assert shown(graph.get_state(config).values) == lines[-1], "pruning changes no value"
        assert len(list(graph.get_state_history(config))) < len(history)
    return lines


def memory(store):
    """Items: what is put is found."""
    top = f"t{uuid.uuid4().hex}"
    store.put((top, "a"), "k1", {"color": "red", "n": 1})
    store.put((top, "b"), "k2", {"color": "blue"})
    store.put((top, "b"), "gone", {"color": "blue"})
    store.delete((top, "b"), "gone")
    found = store.get((top, "a"), "k1")
    lines = [shown((found.value, found.key, len(found.namespace))), shown(store.get((top, "b"), "gone"))]
    lines.append(shown(sorted(item.key for item in store.search((top,)))))
    lines.append(shown([item.key for item in store.search((top,), filter={"color": "red"})]))
    lines.append(shown(sorted(names[1:] for names in store.list_namespaces(prefix=(top,)))))
    return lines


def compare(what, got, want):
    for index, (ours, theirs) in enumerate(zip(got, want)):
        assert ours == theirs, f"{what}, line {index}:\n  ours   {ours}\n  theirs {theirs}"
    assert len(got) == len(want) and got, (what, len(got), len(want))
    print(f"ok      {what}: {len(got)} lines")


def main():
    saver, store = HttpSaver(BASE), HttpStore(BASE)
    thread = f"agent-{uuid.uuid4()}"
    compare("synchronous", conversation(saver, store, thread), conversation(InMemorySaver(), InMemoryStore(), thread))
    athread = f"agent-{uuid.uuid4()}"

    async def both():
        async with HttpSaver(BASE) as other:
            return await aconversation(other, store, athread), await aconversation(InMemorySaver(), InMemoryStore(), athread)

    compare("asynchronous", *asyncio.run(both()))
    compare("deltas", deltas(saver, f"deltas-{uuid.uuid4()}"), deltas(InMemorySaver(), "deltas"))
    compare("memory", memory(store), memory(InMemoryStore()))
    # Everything at once, thread by thread.
    threads = {found.config["configurable"]["thread_id"] for found in saver.list(None)}
    assert {thread, athread} <= threads, threads
    print("5 checks passed")


if __name__ == "__main__":
    try:
        main()
    except AssertionError as error:
        print(error)
        sys.exit(1)
