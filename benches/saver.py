"""`HttpSaver` beside LangGraph's own `AsyncPostgresSaver`, on the same Postgres, one after the other in turns.

    pip install ./clients/python langgraph langgraph-checkpoint-postgres 'psycopg[binary,pool]'
    cargo build --release --bin session-store
    python benches/saver.py --postgres postgres://postgres@127.0.0.1:5432/postgres

It makes a database for each, starts the release build on one of them, and prints a table: runs of a counter graph (three
supersteps, a new thread each) per second at 1 and at 16 at once, and what a chat of 200 turns writes to the WAL.
"""

import argparse
import asyncio
import contextlib
import operator
import os
import pathlib
import re
import resource
import statistics
import subprocess
import time
import uuid
from typing import Annotated, TypedDict

import psycopg
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool
from session_store_langgraph import HttpSaver

ROOT = pathlib.Path(__file__).parent.parent
ASKED = "A question of about a hundred characters, so that rows have a realistic size; number {} of this conversation."
ANSWER = "An answer of about the same length, always another one, as a model's would be; this one is number {} of them."


class Counter(TypedDict):
    counter: int


class Chat(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]
    turns: Annotated[int, operator.add]


def counter(saver):
    async def increment(state: Counter):
        return {"counter": state["counter"] + 1}

    builder = StateGraph(Counter)
    builder.add_node("increment", increment)
    builder.add_edge(START, "increment")
    builder.add_conditional_edges(
        "increment", lambda state: "increment" if state["counter"] < 3 else END, ["increment", END]
    )
    return builder.compile(checkpointer=saver)


def chat(saver):
    async def answer(state: Chat):
        return {"messages": [AIMessage(ANSWER.format(state["turns"]))], "turns": 1}

    builder = StateGraph(Chat)
    builder.add_node("answer", answer)
    builder.add_edge(START, "answer")
    builder.add_edge("answer", END)
    return builder.compile(checkpointer=saver)


async def runs(graph, at_once, seconds):
    """Runs per second, their median in milliseconds, and CPU of this process per run."""
    taken, stop = [], 0.0

    async def worker():
        while (began := time.perf_counter()) < stop:
            config = {"configurable": {"thread_id": str(uuid.uuid4())}}
            result = await graph.ainvoke({"counter": 0}, config)
            assert result == {"counter": 3}, result
            taken.append(time.perf_counter() - began)

    stop = time.perf_counter() + 0.5
    await asyncio.gather(*(worker() for _ in range(at_once)))
    taken.clear()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu = usage.ru_utime + usage.ru_stime
    began = time.perf_counter()
    stop = began + seconds
    await asyncio.gather(*(worker() for _ in range(at_once)))
    elapsed = time.perf_counter() - began
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu = usage.ru_utime + usage.ru_stime - cpu
    return len(taken) / elapsed, statistics.median(taken) * 1e3, cpu / len(taken) * 1e3


async def talk(graph, turns):
    config = {"configurable": {"thread_id": str(uuid.uuid4())}}
    for turn in range(turns):
        result = await graph.ainvoke({"messages": [HumanMessage(ASKED.format(turn))]}, config)
    assert len(result["messages"]) == 2 * turns
    return await graph.aget_state(config)


def wal(admin):
    return int(admin.execute("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')").fetchone()[0])


@contextlib.contextmanager
def database(admin, url, name):
    name = f"{name}_{uuid.uuid4().hex[:8]}"
    admin.execute(f"CREATE DATABASE {name}")
    try:
        yield re.sub(r"/[^/]*$", f"/{name}", url)
    finally:
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@contextlib.contextmanager
def server(binary, url):
    command = [binary, "serve", "--listen", "127.0.0.1:0", "--database-url", url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        yield re.search(r"http://\S+", process.stdout.readline())[0]
    finally:
        process.terminate()
        process.wait()


async def measure(options, admin, ours, theirs):
    async with AsyncConnectionPool(
        theirs, min_size=4, max_size=16, kwargs={"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    ) as pool:
        postgres = AsyncPostgresSaver(pool)
        await postgres.setup()
        async with HttpSaver(ours) as http:
            savers = {"AsyncPostgresSaver": postgres, "HttpSaver": http, "InMemorySaver": InMemorySaver()}
            for at_once in (1, 16):
                figures = {name: [] for name in savers}
                for _ in range(options.rounds):
                    for name, saver in savers.items():
                        figures[name].append(await runs(counter(saver), at_once, options.seconds))
                for name, found in figures.items():
                    rate, median, cpu = (statistics.median(column) for column in zip(*found))
                    print(f"counter, {at_once:2} at once  {name:20} {rate:8.0f} runs/s  p50 {median:7.2f} ms  "
                          f"client CPU {cpu:5.2f} ms/run")
            for name in ("AsyncPostgresSaver", "HttpSaver"):
                before, began = wal(admin), time.perf_counter()
                state = await talk(chat(savers[name]), options.turns)
                elapsed = time.perf_counter() - began
                assert len(state.values["messages"]) == 2 * options.turns
                print(f"chat of {options.turns} turns  {name:20} {wal(admin) - before:12,} bytes of WAL  {elapsed:6.1f} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--postgres", required=True, help="a URL whose user may create databases")
    parser.add_argument("--binary", default=os.fspath(ROOT / "target/release/session-store"))
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=200)
    options = parser.parse_args()
    with psycopg.connect(options.postgres, autocommit=True) as admin:
        with database(admin, options.postgres, "ours") as ours, database(admin, options.postgres, "theirs") as theirs:
            with server(options.binary, ours) as url:
                asyncio.run(measure(options, admin, url, theirs))


if __name__ == "__main__":
    main()
