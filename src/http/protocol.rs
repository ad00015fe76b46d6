//! Commands of protocol v2 (contract section 5.1): what is asked, what is answered, and in which envelope. The same over
//! HTTP and over a WebSocket.

use std::time::Duration;

use serde_json::json;

use super::AppState;
use super::auth::Caller;
use super::error::{ApiError, ApiResult};
use super::object::{Object, parse_uuid};
use super::run_request;
use crate::model::event::RESUME_GAP;
use crate::model::{Fields, Interrupt, Json, MultitaskStrategy, OnCompletion, Thread, ThreadId};
use crate::runtime::protocol::{Channel, Filter};
use crate::runtime::{AssistantName, RunRequest};

/// How long `input.respond` waits for a run to come to its question.
const SETTLE: Duration = Duration::from_secs(5);
/// Stream modes of every run that a command starts.
const MODES: [&str; 6] = ["values", "updates", "messages-tuple", "custom", "tasks", "checkpoints"];
pub(crate) const MAX_CHANNELS: usize = 100;
pub(crate) const MAX_NAMESPACES: usize = 1000;
pub(crate) const MAX_DEPTH: i64 = 1000;
const MAX_ANSWERS: usize = 1000;

/// Why a command was refused.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) code: &'static str,
    pub(crate) message: String,
    /// Further members of the envelope.
    pub(crate) more: Fields,
}

impl Refusal {
    pub(crate) fn new(code: &'static str, message: impl Into<String>) -> Refusal {
        Refusal { code, message: message.into(), more: Fields::new() }
    }

    /// Events after `since` are gone; those from `available` on are there.
    pub(crate) fn gap(since: i64, available: i64) -> Refusal {
        let message = format!("Events after {since} are gone; what follows them begins at {available}");
        let more = [("since", since), ("min_available_seq", available)];
        let more = more.into_iter().map(|(key, seq)| (key.to_owned(), Json::from(seq))).collect();
        Refusal { more, ..Refusal::new(RESUME_GAP, message) }
    }
}

impl<E: Into<ApiError>> From<E> for Refusal {
    fn from(error: E) -> Refusal {
        let (code, message) = error.into().into_protocol();
        Refusal::new(code, message)
    }
}

/// A command, read: its id, what it asks, and its parameters.
pub(crate) struct Command {
    pub(crate) id: i64,
    pub(crate) method: String,
    /// A refusal where they are no object: the envelope itself is well-formed then (contract section 5.1).
    pub(crate) params: Result<Object, Refusal>,
}

impl Command {
    /// Reads the envelope. The refusal carries the id when there is one.
    pub(crate) fn read(json: &Json) -> Result<Command, Json> {
        let fields = json.fields().unwrap_or_default();
        let id = fields.get("id").and_then(Json::as_i64);
        let refuse = |text: &str| Err(failure(id, &Refusal::new("invalid_argument", text)));
        if !json.is_object() {
            return refuse("Command: expected an object {id, method, params}");
        }
        let Some(number) = id else { return refuse("id: expected an integer") };
        let Some(method) = fields.get("method").and_then(Json::as_str) else {
            return refuse("method: expected a string");
        };
        let params = fields.get("params").filter(|params| !params.is_null()).cloned().unwrap_or_else(Json::object);
        let params = match params.is_object() {
            true => Object::body(&params).map_err(Refusal::from),
            false => Err(Refusal::new("invalid_argument", "params: expected an object")),
        };
        Ok(Command { id: number, method: method.to_owned(), params })
    }
}

/// The envelope of an answer.
pub(crate) fn success(id: i64, result: &Json) -> Json {
    let (kind, id, meta) = (Json::from("success"), Json::from(id), Json::from(json!({"applied_through_seq": 0})));
    Json::from_fields([("type", &kind), ("id", &id), ("result", result), ("meta", &meta)])
}

/// The envelope of a refusal.
pub(crate) fn failure(id: Option<i64>, refusal: &Refusal) -> Json {
    let envelope = json!({"type": "error", "id": id, "error": refusal.code, "message": refusal.message});
    let mut fields = Json::from(envelope).fields().unwrap_or_default();
    fields.extend(refusal.more.clone());
    Json::from(&fields)
}

/// Carries out a command that both transports know.
pub(crate) async fn execute(
    state: &AppState,
    caller: &Caller,
    thread: &ThreadId,
    method: &str,
    params: Result<Object, Refusal>,
) -> Result<Json, Refusal> {
    let params = params?;
    match method {
        "run.start" => start(state, caller, thread, params).await,
        "input.respond" => respond(state, caller, thread, params).await,
        "agent.getTree" => Err(Refusal::new("no_such_run", "No run of this thread is held here")),
        "subscription.subscribe" | "subscription.unsubscribe" | "subscription.reconnect" => Err(Refusal::new(
            "not_supported",
            format!("{method} needs a WebSocket; over HTTP, POST /threads/{{id}}/stream/events subscribes"),
        )),
        _ => {
            let name: String = method.chars().take(64).collect();
            Err(Refusal::new("unknown_command", format!("Unknown command '{name}'")))
        }
    }
}

async fn start(state: &AppState, caller: &Caller, thread: &ThreadId, mut params: Object) -> Result<Json, Refusal> {
    let input = params.json("input");
    let assistant = params.string("assistant_id")?.filter(|name| !name.is_empty());
    let strategy = params.json("multitaskStrategy").and_then(|name| MultitaskStrategy::parse(name.as_str()?));
    let mut request = request(caller, thread, &mut params)?;
    request.assistant = assistant.as_deref().map(AssistantName::parse);
    request.multitask_strategy = strategy.unwrap_or_default();
    let is_fork = match request.kwargs.config.get("configurable").and_then(|given| given.get("checkpoint_id")) {
        Some(id) if !id.is_null() => {
            parse_uuid("config.configurable.checkpoint_id", id.as_str().unwrap_or_default())?;
            true
        }
        _ => false,
    };
    let is_answer = match &input {
        Some(_) if !is_fork => {
            let found = state.runtime.questions(&caller.scope, thread, Duration::ZERO).await?;
            found.is_some_and(|(_, questions)| !questions.is_empty())
        }
        _ => false,
    };
    if is_answer {
        let resume = input.unwrap_or_default();
        request.kwargs.command = Some(Json::from_fields([("resume", &resume)]));
    } else {
        request.kwargs.input = input;
    }
    let submitted = state.runtime.submit(&caller.scope, request).await?;
    Ok(Json::from(json!({"run_id": submitted.run.run_id})))
}

async fn respond(state: &AppState, caller: &Caller, thread: &ThreadId, mut params: Object) -> Result<Json, Refusal> {
    let answers = answers(&mut params)?;
    let mut command = Fields::new();
    for key in ["update", "goto"] {
        if let Some(value) = params.json(key) {
            command.insert(key.to_owned(), value);
        }
    }
    let mut request = request(caller, thread, &mut params)?;
    let found = state.runtime.questions(&caller.scope, thread, SETTLE).await?;
    let (row, questions) = found.ok_or_else(|| unknown(answers.keys().next()))?;
    let is_open = |id: &String| questions.iter().any(|question: &Interrupt| question.id == *id);
    if let Some(strange) = answers.keys().find(|id| !is_open(id)) {
        return Err(unknown(Some(strange)));
    }
    request.assistant = Some(assistant_of(&row)?);
    command.insert("resume".to_owned(), Json::from(&answers));
    request.kwargs.command = Some(Json::from(&command));
    state.runtime.submit(&caller.scope, request).await?;
    Ok(Json::object())
}

fn unknown(id: Option<&String>) -> Refusal {
    let id: String = id.map(|id| id.chars().take(64).collect()).unwrap_or_default();
    Refusal::new("no_such_interrupt", format!("No open interrupt with the id '{id}' on this thread"))
}

fn assistant_of(thread: &Thread) -> Result<AssistantName, Refusal> {
    let id = thread.metadata.get("assistant_id").and_then(|id| id.as_str().map(AssistantName::parse));
    id.or_else(|| thread.graph_id.clone().map(AssistantName::Graph))
        .ok_or_else(|| Refusal::new("invalid_argument", "The thread has no assistant: start a run on it first"))
}

/// Answers by interrupt id: one, or a list of `{interrupt_id, response}`.
fn answers(params: &mut Object) -> Result<Fields, Refusal> {
    let mut answers = Fields::new();
    match params.objects("responses", MAX_ANSWERS)? {
        Some(list) => {
            for mut one in list {
                let id = one.required_string("interrupt_id")?;
                answers.insert(id, one.json("response").unwrap_or_default());
            }
        }
        None => {
            let id = params.required_string("interrupt_id")?;
            answers.insert(id, params.json("response").unwrap_or_default());
        }
    }
    if answers.is_empty() {
        return Err(Refusal::new("invalid_argument", "responses: expected at least one answer"));
    }
    Ok(answers)
}

/// A run with the fixed options of the protocol.
fn request(caller: &Caller, thread: &ThreadId, params: &mut Object) -> Result<RunRequest, Refusal> {
    let given: Fields = ["config", "metadata"]
        .into_iter()
        .filter_map(|key| params.json(key).map(|value| (key.to_owned(), value)))
        .collect();
    let body = Object::body(&Json::from(&given))?;
    let mut request = run_request::read(caller, Some(thread.clone()), body, false)?;
    request.create_thread = Some(true);
    request.on_completion = OnCompletion::Keep;
    request.kwargs.stream_mode = MODES.iter().map(|mode| (*mode).to_owned()).collect();
    request.kwargs.subgraphs = true;
    request.kwargs.resumable = true;
    request.kwargs.protocol = true;
    Ok(request)
}

/// Reads `{channels, namespaces?, depth?, since?}`: the filter, and the number after which events are wanted.
pub(crate) fn subscription(body: &mut Object) -> ApiResult<(Filter, Option<i64>)> {
    let names = body.strings("channels", MAX_CHANNELS)?.unwrap_or_default();
    if names.is_empty() {
        return Err(ApiError::invalid(format!("channels: expected at least one of {}", Channel::NAMES)));
    }
    let mut channels = Vec::new();
    for name in &names {
        let channel = Channel::parse(name);
        channels.push(channel.ok_or_else(|| {
            let got: String = name.chars().take(64).collect();
            ApiError::invalid(format!("channels: expected {}, got '{got}'", Channel::NAMES))
        })?);
    }
    let namespaces = match body.list("namespaces", MAX_NAMESPACES)? {
        None => None,
        Some(list) => {
            let path = |json: &Json| json.decode::<Vec<String>>();
            let paths: Result<Vec<_>, _> = list.iter().map(path).collect();
            Some(paths.map_err(|_| ApiError::invalid("namespaces: expected an array of arrays of strings"))?)
        }
    };
    let depth = body.integer("depth", 0..=MAX_DEPTH)?.and_then(|depth| usize::try_from(depth).ok());
    let since = body.integer("since", 0..=i64::MAX)?;
    Ok((Filter { channels, namespaces, depth }, since))
}
