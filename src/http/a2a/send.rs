//! Messages to an agent: each is a run, waited for, watched, or left alone.

use axum::Json as Reply;
use axum::body::Bytes;
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use super::tasks;
use super::wire::{self, Artifact, Dialect, Incoming, NO_PUSH_NOTIFICATIONS, Task, UNSUPPORTED_OPERATION};
use crate::http::auth::Caller;
use crate::http::extract::thread_id;
use crate::http::jsonrpc::{INVALID_PARAMS, Refusal, answer, failure};
use crate::http::object::Object;
use crate::http::sse::{FrameStream, respond_frames, write_frame};
use crate::http::{AppState, keepalive, run_request};
use crate::model::{Assistant, Event, Json, Run, ThreadId, ThreadStatus};
use crate::runtime::{Runtime, RuntimeError, Submitted};

/// `SendMessage`: the task when it has ended, or at once if that is wanted.
pub(super) async fn message(
    state: &AppState,
    caller: &Caller,
    assistant: &Assistant,
    id: Json,
    params: Object,
    dialect: Dialect,
    pretty: bool,
) -> Response {
    let (submitted, waits) = match start(state, caller, assistant, params).await {
        Ok(started) => started,
        Err(refusal) => return Reply(failure(&id, &refusal)).into_response(),
    };
    if !waits {
        let task = tasks::rendered(&submitted.run, None);
        return Reply(answer(&id, Ok(Json::from(dialect.sent(&task))))).into_response();
    }
    let (runtime, caller) = (state.runtime.clone(), caller.clone());
    keepalive::respond(state, pretty, async move {
        let task = finish(&runtime, &caller, submitted).await;
        Ok(answer(&id, task.map(|task| Json::from(dialect.sent(&task)))))
    })
}

/// `SendStreamingMessage`: the task, what it says while it says it, all of it, and where it ended.
pub(super) async fn stream(
    state: &AppState,
    caller: &Caller,
    assistant: &Assistant,
    id: Json,
    params: Object,
    dialect: Dialect,
) -> Response {
    match start(state, caller, assistant, params).await {
        Ok((submitted, _)) => {
            let frames = told(state.runtime.clone(), caller.clone(), id, submitted, dialect);
            respond_frames(state, frames, false)
        }
        Err(refusal) => Reply(failure(&id, &refusal)).into_response(),
    }
}

/// Starts the run of a message. True if its end is to be waited for.
async fn start(
    state: &AppState,
    caller: &Caller,
    assistant: &Assistant,
    mut params: Object,
) -> Result<(Submitted, bool), Refusal> {
    let mut message = params.nested("message")?.ok_or_else(|| params.missing("message"))?;
    let message = wire::read_message(&mut message)?;
    let waits = match params.nested("configuration")? {
        Some(mut configuration) => {
            for key in ["taskPushNotificationConfig", "pushNotificationConfig"] {
                if configuration.json(key).is_some() {
                    return Err(Refusal::new(NO_PUSH_NOTIFICATIONS, "Push notifications are not supported"));
                }
            }
            let at_once = configuration.bool("returnImmediately")?.unwrap_or(false);
            configuration.bool("blocking")?.unwrap_or(!at_once)
        }
        None => true,
    };
    let (thread, is_answer) = place(state, caller, assistant, &message).await?;
    let what = if is_answer {
        ("command", Json::from(json!({"resume": message.text})))
    } else {
        let id = message.id.unwrap_or_else(|| state.runtime.clock().new_uuid().to_string());
        ("input", Json::from(json!({"messages": [{"type": "human", "id": id, "content": message.text}]})))
    };
    let body = Json::from_fields([
        ("assistant_id", &Json::from(assistant.assistant_id.to_string())),
        ("if_not_exists", &Json::from("create")),
        ("stream_mode", &Json::from(json!(["values", "messages-tuple"]))),
        (what.0, &what.1),
    ]);
    let request = run_request::read(caller, Some(thread), Object::body(&body)?, true)?;
    Ok((state.runtime.submit(&caller.scope, request).await?, waits))
}

/// The thread of a message, and whether the message answers what a task of it has asked.
async fn place(
    state: &AppState,
    caller: &Caller,
    assistant: &Assistant,
    message: &Incoming,
) -> Result<(ThreadId, bool), Refusal> {
    let Some(id) = &message.task else {
        let new = || ThreadId::from_uuid(state.runtime.clock().new_thread_id());
        return Ok((message.context.as_deref().map(thread_id).transpose()?.unwrap_or_else(new), false));
    };
    let run = tasks::find(state, caller, assistant, id).await?;
    if message.context.as_ref().is_some_and(|context| context.as_str() != run.thread_id.as_str()) {
        return Err(Refusal::new(INVALID_PARAMS, "params.message.contextId: is not the context of the task"));
    }
    let thread = state.runtime.storage().find_thread(&caller.scope, &run.thread_id).await?;
    if thread.is_none_or(|thread| thread.status != ThreadStatus::Interrupted) {
        let text = format!("Task {id} asks nothing: send a message with its contextId and without its id");
        return Err(Refusal::new(UNSUPPORTED_OPERATION, text));
    }
    Ok((run.thread_id, true))
}

/// Waits for the end of a task.
async fn finish(runtime: &Runtime, caller: &Caller, submitted: Submitted) -> Result<Task, Refusal> {
    let run = submitted.run.clone();
    let result = match runtime.wait(&caller.scope, submitted).await {
        Ok(result) => result,
        // Somebody rolled it back.
        Err(RuntimeError::RunNotFound(_)) => {
            return Err(tasks::not_found(&format!("{}:{}", run.thread_id, run.run_id)));
        }
        Err(error) => return Err(error.into()),
    };
    let run: Run = runtime.find_run(&caller.scope, &run.thread_id, run.run_id).await?;
    Ok(tasks::rendered(&run, Some(&result)))
}

fn told(runtime: Runtime, caller: Caller, id: Json, mut submitted: Submitted, dialect: Dialect) -> FrameStream {
    let frame = move |id: &Json, result: Result<Value, Refusal>| -> Bytes {
        write_frame("message", &answer(id, result.map(Json::from)), None::<&str>)
    };
    let task = tasks::rendered(&submitted.run, None);
    let events = submitted.events.take().unwrap_or_else(|| stream::empty().boxed());
    let first = frame(&id, Ok(dialect.sent(&task)));
    let (chunk_id, chunk_task) = (id.clone(), task.clone());
    let mut begun: Option<String> = None;
    let chunks = events.filter_map(move |event| {
        let update = said(&event).map(|(piece, is_whole)| {
            let append = !is_whole && begun.as_ref() == Some(&piece.id);
            begun = Some(piece.id.clone());
            frame(&chunk_id, Ok(dialect.artifact_update(&chunk_task, &piece, append, is_whole)))
        });
        std::future::ready(update)
    });
    let end = stream::once(async move {
        match finish(&runtime, &caller, submitted).await {
            Ok(task) => {
                let whole =
                    task.artifact.as_ref().map(|artifact| dialect.artifact_update(&task, artifact, false, true));
                let updates = whole.into_iter().chain([dialect.status_update(&task)]);
                updates.map(|update| frame(&id, Ok(update))).collect::<Vec<Bytes>>()
            }
            Err(refusal) => vec![frame(&id, Err(refusal))],
        }
    });
    stream::iter([first]).chain(chunks).chain(end.map(stream::iter).flatten()).boxed()
}

/// A piece of what the agent says, and whether it is the whole message.
fn said(event: &Event) -> Option<(Artifact, bool)> {
    let message = event.data.items().filter(|_| event.name == "messages")?.front()?.clone();
    let kind = wire::kind_of(&message)?;
    let is_whole = kind == "ai";
    let text = wire::text_of(&message);
    let piece = Artifact { id: wire::id_of(&message)?, text };
    ((is_whole || kind == "AIMessageChunk") && !piece.text.is_empty()).then_some((piece, is_whole))
}
