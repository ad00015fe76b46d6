"""The reference documents' own programs with `HttpSaver` in place of their saver: they print the same.

Usage: `saver_programs.py` runs them all, compared with LangGraph's own savers. `saver_programs.py begin THREAD` runs a
program that kills its process in the middle (`kill -9`); `saver_programs.py resume THREAD` goes on from there. BASE_URL is
the server; it may be another process than before.
"""

import contextlib
import io
import os
import signal
import sys
import uuid
from typing import TypedDict

from langgraph.checkpoint.memory import MemorySaver
from langgraph.graph import END, StateGraph
from session_store_langgraph import HttpSaver

saver = HttpSaver(os.environ["BASE_URL"])


class Counter(TypedDict):
    counter: int


def counter(checkpointer, interrupt_before=None, die_at=None):
    """Counts to three, as the demonstration does."""

    def increment(state):
        if state["counter"] == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        print(f"Current counter: {state['counter']}")
        return {"counter": state["counter"] + 1}

    def check_done(state):
        if state["counter"] >= 3:
            print("Stopping condition reached")
            return END
        return "increment"

    builder = StateGraph(Counter)
    builder.add_node("increment", increment)
    builder.set_entry_point("increment")
    builder.add_conditional_edges("increment", check_done)
    return builder.compile(checkpointer=checkpointer, interrupt_before=interrupt_before)


class Chat(TypedDict):
    messages: list[str]


def chat(checkpointer):
    def chat_node(state):
        state["messages"].append("New message")
        return {"messages": state["messages"]}

    builder = StateGraph(Chat)
    builder.add_node("chat", chat_node)
    builder.set_entry_point("chat")
    builder.add_edge("chat", END)
    return builder.compile(checkpointer=checkpointer)


def session_store_demonstration(checkpointer, thread):
    graph = counter(checkpointer)
    config = {"configurable": {"thread_id": thread}}
    print("--- First Run ---")
    graph.invoke({"counter": 0}, config=config)
    print("--- Resume Run ---")
    print(graph.invoke(None, config=config))


def chat_demonstration(checkpointer, thread):
    graph = chat(checkpointer)
    config = {"configurable": {"thread_id": thread}}
    print(graph.invoke({"messages": []}, config=config))
    print(graph.invoke({}, config=config))
    print(graph.get_state(config).values, graph.get_state(config).next)


def approval_demonstration(checkpointer, thread):
    graph = counter(checkpointer, interrupt_before=["increment"])
    config = {"configurable": {"thread_id": thread}}
    print(graph.invoke({"counter": 1}, config=config))
    print(graph.get_state(config).next)
    graph.update_state(config, {"counter": 2})
    print(graph.invoke(None, config=config))
    print([state.values for state in graph.get_state_history(config)])


class State(TypedDict):
    count: int


def state_store_demonstration(checkpointer, _):
    """As the document has it, thread and all; what it prints stands below."""

    def increment(state: State):
        print("Incrementing:", state["count"])
        return {"count": state["count"] + 1}

    def router(state: State):
        if state["count"] >= 5:
            return END
        return "increment"

    builder = StateGraph(State)
    builder.add_node("increment", increment)
    builder.set_entry_point("increment")
    builder.add_conditional_edges("increment", router, {"increment": "increment", END: END})
    graph = builder.compile(checkpointer=checkpointer)
    print("First run:")
    graph.invoke({"count": 0}, config={"thread_id": "demo-run"})
    print("\nResuming after crash:")
    print(graph.invoke(None, config={"thread_id": "demo-run"}))


STATE_STORE_PRINTS = """\
First run:
Incrementing: 0
Incrementing: 1
Incrementing: 2
Incrementing: 3
Incrementing: 4

Resuming after crash:
{'count': 5}
"""


def resumed_session(checkpointer, _):
    """The fragment that resumes `user-session-123`; what there is to resume was begun by a graph that stopped in between."""
    config = {"thread_id": "user-session-123"}
    counter(checkpointer, interrupt_before=["increment"]).invoke({"counter": 1}, config=config)
    graph = counter(checkpointer)
    resumed_state = graph.invoke(None, config=config)
    print(resumed_state)


def printed(program, checkpointer):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        program(checkpointer, f"seed-{uuid.uuid4()}")
    return out.getvalue()


def main():
    if len(sys.argv) == 3:
        mode, thread = sys.argv[1:]
        config = {"configurable": {"thread_id": thread}}
        if mode == "begin":
            # Two steps are done when the process dies.
            counter(saver, die_at=2).invoke({"counter": 0}, config, durability="sync")
        else:
            graph = counter(saver)
            print(graph.get_state(config).values, graph.get_state(config).next)
            print(graph.invoke(None, config))
        return
    programs = [
        session_store_demonstration,
        chat_demonstration,
        approval_demonstration,
        state_store_demonstration,
        resumed_session,
    ]
    for program in programs:
        got, want = printed(program, saver), printed(program, MemorySaver())
        assert got == want, f"{program.__name__}: got {got}, want {want}"
        assert got, "something is printed"
        print(f"ok      {program.__name__}")
    assert "{'counter': 3}" in printed(session_store_demonstration, saver)
    assert printed(state_store_demonstration, saver) == STATE_STORE_PRINTS
    assert printed(resumed_session, saver).endswith("{'counter': 3}\n")
    print(f"{len(programs)} checks passed")


main()
