"""The Python client of the Model Context Protocol, unchanged, against BASE_URL."""

import json
import uuid
from contextlib import asynccontextmanager

from checks import BASE, check, equal, run
from mcp import Client, ClientSession, MCPError
from mcp.client.streamable_http import streamable_http_client
from mcp_types import PaginatedRequestParams

MCP = f"{BASE}/mcp"


@asynccontextmanager
async def _session():
    async with streamable_http_client(MCP) as (read, write, *_):
        async with ClientSession(read, write) as session:
            await session.initialize()
            yield session


async def _refused(code, coroutine):
    try:
        got = await coroutine
    except MCPError as error:
        equal(error.code, code, str(error))
        return str(error)
    raise AssertionError(f"want the error {code}, got {got!r}")


@check
async def the_client_connects_as_it_comes(_):
    # It asks for the newest protocol first, is refused, and falls back.
    async with Client(MCP) as client:
        tools = (await client.list_tools()).tools
        assert {"counter", "chat", "approval"} <= {tool.name for tool in tools}, tools
        result = await client.call_tool("counter", {"counter": 0})
        equal((result.is_error, result.structured_content), (False, {"counter": 3}))


@check
async def a_session_begins_lists_and_calls(_):
    async with _session() as session:
        equal(session.initialize_result.protocol_version, "2025-11-25")
        equal(session.initialize_result.server_info.name, "LangGraph")
        await session.send_ping()
        tools = {tool.name: tool for tool in (await session.list_tools()).tools}
        equal(tools["counter"].input_schema["properties"]["counter"]["type"], "integer")
        assert tools["counter"].description and tools["counter"].output_schema, tools["counter"]
        # The client checks structured results against the schema of the tool.
        result = await session.call_tool("counter", {"counter": 1})
        equal((result.is_error, result.structured_content), (False, {"counter": 3}))
        equal(json.loads(result.content[0].text), {"counter": 3})


@check
async def every_graph_gives_what_its_schema_says(_):
    async with _session() as session:
        await session.list_tools()
        chat = await session.call_tool("chat", {"messages": [{"role": "user", "content": "hello"}]})
        equal([message["type"] for message in chat.structured_content["messages"]], ["human", "ai"])
        greeter = await session.call_tool("greeter", {"messages": ["Hi"]})
        equal(greeter.structured_content, {"messages": ["Hi", "Hello from the agent"]})
        approval = await session.call_tool("approval", {"topic": "tea"})
        equal(approval.structured_content["__interrupt__"][0]["value"]["question"], "Publish this draft?")


@check
async def errors_are_told(_):
    async with _session() as session:
        await session.list_tools()
        assert "nobody" in await _refused(-32602, session.call_tool("nobody", {}))
        await _refused(-32602, session.list_tools(params=PaginatedRequestParams(cursor="x")))
        await _refused(-32601, session.list_resources())
        # What goes wrong in the graph is a result that a model reads.
        result = await session.call_tool("counter", {"counter": "many"})
        equal(result.is_error, True)
        assert len(result.content) == 2 and result.content[0].text, result


@check
async def progress_is_told(_):
    told = []

    async def note(progress, total, message):
        told.append((progress, total, message))

    async with _session() as session:
        result = await session.call_tool("counter", {"counter": 0}, progress_callback=note)
    equal(result.structured_content, {"counter": 3})
    equal(told, [(n, None, "increment") for n in (1, 2, 3)])


@check
async def an_assistant_is_a_tool_of_its_own(client):
    name = f"A counter {uuid.uuid4().hex}"
    assistant = await client.assistants.create("counter", name=name, description="mine")
    async with _session() as session:
        tools = {tool.name: tool for tool in (await session.list_tools()).tools}
        tool = tools[name.replace(" ", "_")]
        equal((tool.title, tool.description), (name, "mine"))
        equal((await session.call_tool(tool.name, {"counter": 2})).structured_content, {"counter": 3})
    await client.assistants.delete(assistant["assistant_id"])


run()
