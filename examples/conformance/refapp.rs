//! The five graphs that client tests run against: what `clients/refapp` is for the reference server.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use session_store::graph::{
    AiChunk, BuildErrors, Context, END, Graph, Message, NodeError, Role, START, StateGraph, ToolCall, Update, Usage,
};
use session_store::update;

/// All five.
pub(crate) fn all() -> Vec<Result<Graph, BuildErrors>> {
    vec![counter(), chat(), approval(), tools(), nested()]
}

// --- counter: loops until a target; can sleep, fail and ask -----------------------------------------------------------

#[derive(Serialize, Deserialize, JsonSchema, Default)]
#[serde(default)]
struct Counter {
    count: i64,
    steps: Vec<String>,
    target: Option<i64>,
    by: Option<i64>,
    sleep_ms: Option<u64>,
    fail_at: Option<i64>,
    ask_at: Option<i64>,
    note: Value,
}

fn counter() -> Result<Graph, BuildErrors> {
    let or_one = |number: Option<i64>| number.filter(|number| *number != 0).unwrap_or(1);
    StateGraph::<Counter>::new("counter")
        .sum("count")
        .append("steps")
        .node("bump", bump)
        .edge(START, "bump")
        .branch(
            "bump",
            "more",
            ["bump", END],
            move |state: &Counter| {
                if state.count < or_one(state.target) { "bump" } else { END }
            },
        )
        .build()
}

async fn bump(state: Counter, ctx: Context) -> Result<Update, NodeError> {
    let n = state.count;
    ctx.write(json!({"kind": "tick", "before": n}))?;
    if let Some(millis) = state.sleep_ms {
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }
    if state.fail_at.is_some_and(|at| n >= at) {
        return Err(NodeError::new("ValueError", format!("counter refused at {n}")));
    }
    let mut note = Value::Null;
    if state.ask_at.is_some_and(|at| n >= at) && state.note.is_null() {
        note = ctx.interrupt(json!({"question": "continue?", "count": n}))?.value().clone();
    }
    let by = state.by.filter(|by| *by != 0).unwrap_or(1);
    let update = update!(Counter { count: by, steps: vec![format!("{n}->{}", n + by)] });
    Ok(if note.is_null() { update } else { update.set("note", note) })
}

// --- chat: a fixed reply, word by word --------------------------------------------------------------------------------

const REPLY: &str = "Hello from a fixed reply.";

#[derive(Serialize, Deserialize, JsonSchema)]
struct Chat {
    messages: Vec<Message>,
}

fn chat() -> Result<Graph, BuildErrors> {
    StateGraph::<Chat>::new("chat")
        .messages("messages")
        .node("reply", reply)
        .edge(START, "reply")
        .edge("reply", END)
        .build()
}

async fn reply(state: Chat, ctx: Context) -> Result<Update, NodeError> {
    let count = |text: &str| text.split_whitespace().count() as u64;
    let heard = state.messages.iter().map(|message| count(&message.text())).sum();
    let usage = Usage::new(heard, count(REPLY));
    let id = format!("run--{}", ctx.info().task_id);
    let words: Vec<&str> = REPLY.split_inclusive(' ').collect();
    for (n, word) in words.iter().enumerate() {
        let chunk = AiChunk::new(&id, *word);
        let is_last = n + 1 == words.len();
        ctx.messages().chunk(&if is_last { chunk.with_usage(usage.clone()).last() } else { chunk })?;
        tokio::task::yield_now().await;
    }
    Ok(update!(Chat { messages: vec![Message::ai(REPLY).with_id(id).with_usage(usage)] }))
}

// --- approval: a human reviews a tool call ----------------------------------------------------------------------------

#[derive(Serialize, Deserialize, JsonSchema)]
struct Approval {
    messages: Vec<Message>,
    #[serde(default)]
    outcome: Option<String>,
}

fn approval() -> Result<Graph, BuildErrors> {
    StateGraph::<Approval>::new("approval")
        .messages("messages")
        .node("propose", propose)
        .node("review", review)
        .node("act", act)
        .edge(START, "propose")
        .edge("propose", "review")
        .edge("review", "act")
        .edge("act", END)
        .build()
}

fn object(value: Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

async fn propose(state: Approval, _ctx: Context) -> Result<Update, NodeError> {
    let text = state.messages.last().map(|message| message.text().into_owned()).unwrap_or_default();
    let args = object(json!({"to": "ops@example.com", "body": text}));
    let call = ToolCall::new("call-1", "send_email", args);
    Ok(update!(Approval { messages: vec![Message::ai("I would like to send an email.").with_tool_calls([call])] }))
}

async fn review(state: Approval, ctx: Context) -> Result<Update, NodeError> {
    let call = state.messages.last().and_then(|message| message.tool_calls.first().cloned());
    let call = call.ok_or_else(|| NodeError::new("IndexError", "list index out of range"))?;
    let answer = ctx.interrupt(json!({
        "action_requests": [
            {"name": call.name, "args": call.args, "description": "Review the email before it is sent."},
        ],
        "review_configs": [
            {"action_name": call.name, "allowed_decisions": ["approve", "edit", "reject"]},
        ],
    }))?;
    let decision = answer.value()["decisions"][0].clone();
    let kind = decision["type"].as_str().unwrap_or("reject").to_owned();
    let args = if kind == "edit" { object(decision["edited_action"]["args"].clone()) } else { call.args };
    let text = |key: &str| args.get(key).and_then(Value::as_str).unwrap_or_default();
    let result = if kind == "reject" {
        format!("rejected: {}", decision["message"].as_str().unwrap_or_default())
    } else {
        format!("sent to {}: {}", text("to"), text("body"))
    };
    let message = Message::tool(result, call.id.unwrap_or_default()).with_name(call.name);
    Ok(update!(Approval { outcome: Some(kind), messages: vec![message] }))
}

async fn act(state: Approval, _ctx: Context) -> Result<Update, NodeError> {
    let outcome = state.outcome.unwrap_or_default();
    Ok(update!(Approval { messages: vec![Message::ai(format!("Done, outcome was {outcome}."))] }))
}

// --- tools: a fixed tool call -----------------------------------------------------------------------------------------

fn tools() -> Result<Graph, BuildErrors> {
    StateGraph::<Chat>::new("tools")
        .messages("messages")
        .node("agent", async |state: Chat, _ctx| {
            let answered = state.messages.last().is_some_and(|message| message.role == Role::Tool);
            let call = ToolCall::new("call-weather", "weather", object(json!({"city": "SF"})));
            let message = if answered {
                Message::ai("It is 60 degrees and foggy.")
            } else {
                Message::ai("").with_tool_calls([call])
            };
            Ok(update!(Chat { messages: vec![message] }))
        })
        .node("tools", async |state: Chat, _ctx| {
            let calls = state.messages.last().map(|message| message.tool_calls.clone()).unwrap_or_default();
            let results = calls
                .into_iter()
                .take(1)
                .map(|call| Message::tool("60F, foggy", call.id.unwrap_or_default()).with_name(call.name));
            Ok(update!(Chat { messages: results.collect() }))
        })
        .edge(START, "agent")
        .branch("agent", "wants_tool", ["tools", END], |state: &Chat| match state.messages.last() {
            Some(message) if !message.tool_calls.is_empty() => "tools",
            _ => END,
        })
        .edge("tools", "agent")
        .build()
}

// --- nested: a graph in a graph ---------------------------------------------------------------------------------------

#[derive(Serialize, Deserialize, JsonSchema)]
struct Trail {
    trail: Vec<String>,
}

fn nested() -> Result<Graph, BuildErrors> {
    let child = StateGraph::<Trail>::new("nested/child")
        .append("trail")
        .node("c_one", mark)
        .node("c_two", mark)
        .edge(START, "c_one")
        .edge("c_one", "c_two")
        .edge("c_two", END)
        .build()?;
    StateGraph::<Trail>::new("nested")
        .append("trail")
        .node("p_one", mark)
        .subgraph("child", child)
        .node("p_end", mark)
        .edge(START, "p_one")
        .edge("p_one", "child")
        .edge("child", "p_end")
        .edge("p_end", END)
        .build()
}

/// Leaves the node's name.
async fn mark((): (), ctx: Context) -> Result<Update, NodeError> {
    Ok(update!(Trail { trail: vec![ctx.info().node.clone()] }))
}
