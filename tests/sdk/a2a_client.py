"""The Python client of the Agent2Agent protocol, unchanged, against BASE_URL."""

import uuid

import httpx
from a2a.client import ClientConfig, create_client
from a2a.types import GetTaskRequest, ListTasksRequest, Message, Part, Role, SendMessageRequest, TaskState
from checks import BASE, check, equal, run

ANSWER = "This is the fixed answer of the benchmark node, about eighty characters long, ok."


def _message(text, **more):
    message = Message(message_id=str(uuid.uuid4()), role=Role.ROLE_USER, parts=[Part(text=text)], **more)
    return SendMessageRequest(message=message)


async def _client(http, streaming):
    return await create_client(f"{BASE}/a2a/chat", ClientConfig(streaming=streaming, httpx_client=http))


@check
async def a_message_is_answered_and_its_task_is_found(_):
    async with httpx.AsyncClient() as http:
        client = await _client(http, streaming=False)
        [answer] = [event async for event in client.send_message(_message("hello"))]
        task = answer.task
        equal((task.status.state, task.artifacts[0].parts[0].text), (TaskState.TASK_STATE_COMPLETED, ANSWER))
        equal((await client.get_task(GetTaskRequest(id=task.id))), task)
        [again] = [event async for event in client.send_message(_message("more", context_id=task.context_id))]
        listed = await client.list_tasks(ListTasksRequest(context_id=task.context_id))
        equal([task.id for task in listed.tasks], [again.task.id, task.id])


@check
async def a_message_is_streamed(_):
    async with httpx.AsyncClient() as http:
        client = await _client(http, streaming=True)
        events = [event async for event in client.send_message(_message("hello"))]
    kinds = [event.WhichOneof("payload") for event in events]
    equal((kinds[0], kinds[-2], kinds[-1]), ("task", "artifact_update", "status_update"))
    equal(events[-2].artifact_update.artifact.parts[0].text, ANSWER)
    equal(events[-1].status_update.status.state, TaskState.TASK_STATE_COMPLETED)


run()
