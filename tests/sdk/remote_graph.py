"""`RemoteGraph` of the Python `langgraph` library, unchanged, against BASE_URL: alone, and as a node of a Python graph."""

from checks import BASE, check, equal, run, until
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.pregel.remote import RemoteGraph
from langgraph.types import Command


async def _thread(client):
    return {"configurable": {"thread_id": (await client.threads.create())["thread_id"]}}


@check
async def a_remote_graph_is_invoked_read_and_changed(client):
    graph, config = RemoteGraph("counter", url=BASE), await _thread(client)
    equal(await graph.ainvoke({"counter": 0}, config), {"counter": 3})
    state = await graph.aget_state(config)
    equal((state.values, state.next), ({"counter": 3}, ()))
    history = [state async for state in graph.aget_state_history(config)]
    equal([state.metadata["step"] for state in history], [3, 2, 1, 0, -1])
    older = [state async for state in graph.aget_state_history(config, before=history[2].config)]
    equal([state.metadata["step"] for state in older], [0, -1])
    edited = await graph.aupdate_state(history[2].config, {"counter": 2}, as_node="increment")
    assert edited["configurable"]["checkpoint_id"], edited
    equal(await graph.ainvoke(None, config), {"counter": 3})
    chunks = [chunk async for chunk in graph.astream({"counter": 1}, config, stream_mode="updates")]
    equal(chunks, [{"increment": {"counter": 2}}, {"increment": {"counter": 3}}])


@check
async def a_remote_graph_is_drawn(_):
    graph = await RemoteGraph("counter", url=BASE).aget_graph(xray=True)
    equal(set(graph.nodes), {"__start__", "increment", "__end__"})
    assert "increment" in graph.draw_mermaid()


@check
async def a_remote_graph_asks_and_is_answered(client):
    graph, config = RemoteGraph("approval", url=BASE), await _thread(client)
    asked = await graph.ainvoke({"topic": "tea"}, config)
    equal(asked["__interrupt__"][0].value["question"] if hasattr(asked["__interrupt__"][0], "value")
          else asked["__interrupt__"][0]["value"]["question"], "Publish this draft?")
    state = await graph.aget_state(config)
    equal((state.next, len(state.tasks[0].interrupts)), (("approve",), 1))
    equal((await graph.ainvoke(Command(resume="yes"), config))["approved"], True)


@check
async def a_remote_graph_streams_its_events(client):
    graph, config = RemoteGraph("chat", url=BASE), await _thread(client)
    given = {"messages": [{"role": "user", "content": "hello"}]}
    async with await graph.astream_events(given, config, version="v3") as stream:
        messages = [message async for message in stream.messages]
        texts = [await message.text for message in messages]
        output = await stream.output()
        asked = await stream.interrupted()
    equal((texts, asked), ([output["messages"][-1]["content"]], False))
    equal((await graph.aget_state(config)).values["messages"][-1]["id"], output["messages"][-1]["id"])
    asking, config = RemoteGraph("approval", url=BASE), await _thread(client)
    async with await asking.astream_events({"topic": "tea"}, config, version="v3") as stream:

        async def is_asked():
            return await stream.interrupted()

        await until(is_asked, "the question")
        equal((await stream.interrupts())[0]["value"]["question"], "Publish this draft?")
    async with await asking.astream_events(Command(resume="yes"), config, version="v3") as stream:
        equal((await stream.output())["approved"], True)


@check
async def a_remote_graph_is_a_node_of_a_python_graph(_):
    chat = RemoteGraph("chat", url=BASE, name="chat")
    outer = StateGraph(MessagesState).add_node("chat", chat).add_edge(START, "chat").add_edge("chat", END).compile()
    values = await outer.ainvoke({"messages": [{"role": "user", "content": "hello"}]})
    equal([message.type for message in values["messages"]], ["human", "ai"])
    chunks = [chunk async for chunk in outer.astream({"messages": []}, stream_mode="updates")]
    equal([list(chunk) for chunk in chunks], [["chat"]])


run()
