//! `tools/call`: a run without a thread of its own, waited for, and its result as a tool's.

use axum::Json as Reply;
use axum::body::Bytes;
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use super::{Accepts, tools};
use crate::http::auth::Caller;
use crate::http::jsonrpc::{Refusal, answer, failure, notification};
use crate::http::object::Object;
use crate::http::sse::{FrameStream, respond_frames, write_frame};
use crate::http::{AppState, keepalive, run_request};
use crate::model::{Event, Json};
use crate::runtime::{Runtime, Submitted};

/// Calls a tool. What is wrong with the call is refused at once; what goes wrong in the run is the tool's result. The
/// answer is JSON, kept alive by white space; for a client that gave a token for progress and reads event streams, it is
/// a stream that tells each node that finishes.
pub(super) async fn respond(
    state: &AppState,
    caller: &Caller,
    id: Json,
    params: Object,
    accepts: Accepts,
    pretty: bool,
) -> Response {
    let started = match start(state, caller, params).await {
        Ok(started) => started,
        Err(refusal) => return Reply(failure(&id, &refusal)).into_response(),
    };
    let Started { submitted, is_structured, progress } = started;
    let (runtime, caller) = (state.runtime.clone(), caller.clone());
    match progress.filter(|_| accepts.events) {
        Some(token) => respond_frames(state, told(runtime, caller, id, submitted, is_structured, token), false),
        None => keepalive::respond(state, pretty, async move {
            Ok(answer(&id, finish(&runtime, &caller, submitted, is_structured).await))
        }),
    }
}

struct Started {
    submitted: Submitted,
    /// The tool's result has a schema.
    is_structured: bool,
    progress: Option<Json>,
}

async fn start(state: &AppState, caller: &Caller, mut params: Object) -> Result<Started, Refusal> {
    let name = params.required_string("name")?;
    let arguments = params.object("arguments")?.unwrap_or_else(Json::object);
    let context = params.object("context")?.unwrap_or_else(Json::object);
    let progress = match params.nested("_meta")? {
        Some(mut meta) => {
            meta.json("progressToken").filter(|token| token.as_str().is_some() || token.value().is_number())
        }
        None => None,
    };
    let assistant = tools::find(state, caller, &name).await?;
    let graph = state.runtime.graph(&assistant.graph_id);
    let is_structured = graph.is_some_and(|graph| tools::output_schema(&graph.schemas().output).is_some());
    let body = Json::from_fields([
        ("assistant_id", &Json::from(assistant.assistant_id.to_string())),
        ("input", &arguments),
        ("context", &context),
        ("stream_mode", &Json::from(json!(["values", "updates"]))),
    ]);
    let request = run_request::read(caller, None, Object::body(&body)?, true)?;
    let submitted = state.runtime.submit(&caller.scope, request).await?;
    Ok(Started { submitted, is_structured, progress })
}

async fn finish(
    runtime: &Runtime,
    caller: &Caller,
    submitted: Submitted,
    is_structured: bool,
) -> Result<Json, Refusal> {
    Ok(result(&runtime.wait(&caller.scope, submitted).await?, is_structured))
}

/// The frames of a call whose progress is told.
fn told(
    runtime: Runtime,
    caller: Caller,
    id: Json,
    mut submitted: Submitted,
    is_structured: bool,
    token: Json,
) -> FrameStream {
    let events = submitted.events.take().unwrap_or_else(|| stream::empty().boxed());
    let finished = events.filter_map(|event| std::future::ready(finished_nodes(&event)));
    let notes = finished.enumerate().map(move |(count, nodes)| frame(&progress(&token, count + 1, &nodes)));
    let end =
        stream::once(async move { frame(&answer(&id, finish(&runtime, &caller, submitted, is_structured).await)) });
    notes.chain(end).boxed()
}

fn frame(message: &Json) -> Bytes {
    write_frame("message", message, None::<&str>)
}

/// The nodes of the graph itself that an event says have finished.
fn finished_nodes(event: &Event) -> Option<String> {
    let fields = event.data.fields().filter(|_| event.name == "updates")?;
    let nodes: Vec<&str> = fields.keys().map(String::as_str).filter(|node| !node.starts_with("__")).collect();
    (!nodes.is_empty()).then(|| nodes.join(", "))
}

/// `notifications/progress`: how many nodes have finished, and which just did. How many there will be, nobody knows.
fn progress(token: &Json, count: usize, nodes: &str) -> Json {
    let params = Json::from_fields([
        ("progressToken", token),
        ("progress", &Json::from(json!(count))),
        ("message", &Json::from(nodes)),
    ]);
    notification("notifications/progress", &params)
}

/// What a run left, as a tool's result. A failure is one too, so that a model reads it: its class, then its text.
fn result(values: &Json, is_structured: bool) -> Json {
    let text = |text: &str| json!({"type": "text", "text": text});
    if let Some(error) = values.get("__error__").filter(Json::is_object) {
        let member = |key: &str| error.get(key).and_then(|text| text.as_str().map(str::to_owned));
        let class = member("error").unwrap_or_else(|| "Error".to_owned());
        let message = member("message").filter(|message| !message.is_empty());
        let content: Vec<Value> = [Some(class), message].iter().flatten().map(|line| text(line)).collect();
        return Json::from(json!({"content": content, "isError": true}));
    }
    let content = Json::from(json!([text(&values.text())]));
    let mut members = vec![("content", &content)];
    if is_structured && values.is_object() {
        members.push(("structuredContent", values));
    }
    let is_error = Json::from(json!(false));
    members.push(("isError", &is_error));
    Json::from_fields(members)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::RunId;

    fn json(text: &str) -> Json {
        Json::parse(text).expect("JSON")
    }

    #[test]
    fn results_are_text_and_structure() {
        let values = json(r#"{"n":1.0}"#);
        assert_eq!(
            result(&values, true).text(),
            r#"{"content":[{"type":"text","text":"{\"n\":1.0}"}],"structuredContent":{"n":1.0},"isError":false}"#
        );
        assert_eq!(
            result(&values, false).text(),
            r#"{"content":[{"type":"text","text":"{\"n\":1.0}"}],"isError":false}"#
        );
        assert!(result(&json("[1]"), true).get("structuredContent").is_none(), "structure is an object");
    }

    #[test]
    fn failures_are_results_that_name_the_class_first() {
        let failed = json(r#"{"__error__":{"error":"ValueError","message":"no"}}"#);
        assert_eq!(
            result(&failed, true).text(),
            r#"{"content":[{"type":"text","text":"ValueError"},{"type":"text","text":"no"}],"isError":true}"#
        );
    }

    #[test]
    fn progress_counts_the_nodes_of_the_graph_itself() {
        let event =
            |name: &str, data: &str| Event { id: None, run_id: RunId::nil(), name: name.to_owned(), data: json(data) };
        assert_eq!(finished_nodes(&event("updates", r#"{"a":null}"#)).as_deref(), Some("a"));
        for other in [("updates|sub:1", r#"{"a":1}"#), ("values", r#"{"a":1}"#), ("updates", r#"{"__interrupt__":[]}"#)]
        {
            assert_eq!(finished_nodes(&event(other.0, other.1)), None, "{other:?}");
        }
        assert_eq!(
            progress(&Json::from("t"), 2, "a").text(),
            r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"t","progress":2,"message":"a"}}"#
        );
    }
}
