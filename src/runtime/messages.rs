//! The `messages` streams: tokens while a model speaks, and whole messages that nodes return (engine specification,
//! section 8; contract section 4.3).

use super::executor::Around;
use super::shared::{Shared, lock};
use crate::engine::command::{Command, CommandUpdate, Output};
use crate::engine::message::{identify, is_message, message_id};
use crate::engine::step::{Task, TaskInput, state_write};
use crate::engine::{GraphSpec, ids};
use crate::model::{Fields, Json, StreamMode};

/// True when anybody listens to messages of a graph.
pub(crate) fn wanted(shared: &Shared, graph_ns: &str) -> bool {
    let asked = shared.modes.contains(&StreamMode::MessagesTuple) || shared.modes.contains(&StreamMode::Messages);
    asked && (graph_ns.is_empty() || shared.subgraphs)
}

/// Messages a node is given are known already: they are not told again when it returns them.
pub(crate) fn note_input(shared: &Shared, task: &Task) {
    let values: Vec<&Json> = match &task.input {
        TaskInput::State(fields) => fields.values().collect(),
        TaskInput::Arg(arg) => vec![arg],
    };
    let mut seen = lock(&shared.seen_messages);
    for value in values {
        each_message(value, &mut |message| {
            if let Some(id) = message_id(message) {
                seen.insert(id.to_owned());
            }
        });
    }
}

/// Tells the messages of an output that were not told before, with the ids they have in the state. LangGraph does not look
/// into updates that are pairs.
pub(crate) fn tell_output(shared: &Shared, around: &Around, spec: &GraphSpec, task: &Task, output: &Output) {
    // Of the writes to the state, which are counted as they are recorded, and of the others.
    let (mut index, mut other) = (0, 0);
    each_output(output, &mut |output| {
        let is_told = !matches!(output, Output::Command(Command { update: Some(CommandUpdate::Pairs(_)), .. }));
        each_write(output, &mut |key, value| {
            let written = key.and_then(|key| state_write(spec, task, index, key, value));
            *(if written.is_some() { &mut index } else { &mut other }) += 1;
            if !is_told {
                return;
            }
            let value = written.map_or_else(|| value.clone(), |(_, value)| value);
            // No list names it: whoever follows the stream has to know it by something.
            let named = identify(&value, |n| ids::derived(&task.id, &[index, other, n]));
            each_message(named.as_ref().unwrap_or(&value), &mut |message| tell_whole(shared, around, task, message));
        });
    });
}

fn tell_whole(shared: &Shared, around: &Around, task: &Task, message: &Json) {
    let is_new = message_id(message).is_none_or(|id| lock(&shared.seen_messages).insert(id.to_owned()));
    if is_new {
        tell(shared, &around.ns, message, &metadata(shared, around, task, false), Form::Whole);
    }
}

/// Tells a chunk of a message that is being generated.
pub(crate) fn tell_chunk(shared: &Shared, around: &Around, task: &Task, message: &Json, complete: bool) {
    if let Some(id) = message_id(message) {
        lock(&shared.seen_messages).insert(id.to_owned());
    }
    shared.said.note(around, task, message, complete);
    let form = if complete { Form::Whole } else { Form::Chunk };
    tell(shared, &around.ns, message, &metadata(shared, around, task, true), form);
}

#[derive(Clone, Copy, PartialEq)]
enum Form {
    Chunk,
    Whole,
}

fn tell(shared: &Shared, graph_ns: &str, message: &Json, metadata: &Json, form: Form) {
    if shared.modes.contains(&StreamMode::MessagesTuple) {
        let pair: Json = [message.clone(), metadata.clone()].into_iter().collect();
        shared.emit(graph_ns, "messages", pair);
        return;
    }
    let Some(id) = message_id(message).map(str::to_owned) else { return };
    let (text, is_first) = {
        let mut partial = lock(&shared.partial_messages);
        let is_first = !partial.contains_key(&id);
        let entry = partial.entry(id.clone()).or_insert_with(Json::null);
        *entry = if form == Form::Chunk && !entry.is_null() { joined(entry, message) } else { whole(message) };
        (entry.clone(), is_first)
    };
    if is_first {
        let entry = Json::from_fields([("metadata", metadata)]);
        shared.emit_named("messages/metadata".to_owned(), Json::from_fields([(id.as_str(), &entry)]));
    }
    let name = if form == Form::Chunk { "messages/partial" } else { "messages/complete" };
    // Clients of this older form know no namespaces.
    shared.emit_named(name.to_owned(), [text].into_iter().collect());
}

/// A chunk as the message it will become.
pub(super) fn whole(message: &Json) -> Json {
    let mut fields = message.fields().unwrap_or_default();
    if fields.get("type").and_then(Json::as_str) == Some("AIMessageChunk") {
        fields.insert("type".to_owned(), Json::from("ai"));
        fields.shift_remove("tool_call_chunks");
        fields.shift_remove("chunk_position");
    }
    Json::from(&fields)
}

/// The accumulated message with a chunk's text, tool calls and usage added.
pub(super) fn joined(before: &Json, chunk: &Json) -> Json {
    let mut fields = before.fields().unwrap_or_default();
    let mut chunk = whole(chunk).fields().unwrap_or_default();
    let text = |fields: &Fields| fields.get("content").and_then(Json::as_str).map(str::to_owned);
    if let (Some(a), Some(b)) = (text(&fields), text(&chunk)) {
        fields.insert("content".to_owned(), Json::from(a + &b));
    }
    for key in ["usage_metadata", "tool_calls", "response_metadata"] {
        let is_something = |value: &Json| !value.is_null() && !matches!(value.text().as_str(), "[]" | "{}");
        if let Some(value) = chunk.shift_remove(key).filter(is_something) {
            fields.insert(key.to_owned(), value);
        }
    }
    Json::from(&fields)
}

/// What is known of whoever tells something: the task's place in the run. `streamed`: told by what the task calls.
pub(super) fn metadata(shared: &Shared, around: &Around, task: &Task, streamed: bool) -> Json {
    let triggers: Json = task.triggers.iter().map(|trigger| Json::from(trigger.as_str())).collect();
    let mut fields = shared.task_metadata.fields().unwrap_or_default();
    fields.insert("thread_id".to_owned(), Json::from(shared.thread_id.as_str()));
    fields.insert("langgraph_step".to_owned(), Json::from(around.step));
    fields.insert("langgraph_node".to_owned(), Json::from(&*task.name));
    fields.insert("langgraph_triggers".to_owned(), triggers);
    fields.insert("langgraph_path".to_owned(), Json::from(task.path.to_json()));
    fields.insert("langgraph_checkpoint_ns".to_owned(), Json::from(&*task.ns));
    // Graphs inside a task, like models, get the namespace they are called from.
    if streamed || !around.ns.is_empty() {
        fields.insert("checkpoint_ns".to_owned(), Json::from(around.outermost_of(task)));
    }
    Json::from(&fields)
}

/// The parts of an output, in their order.
fn each_output(output: &Output, visit: &mut dyn FnMut(&Output)) {
    match output {
        Output::Many(outputs) => outputs.iter().for_each(|output| each_output(output, visit)),
        one => visit(one),
    }
}

/// The values an output writes, with their keys where they have one.
pub(super) fn each_write(output: &Output, visit: &mut dyn FnMut(Option<&str>, &Json)) {
    match output {
        Output::Nothing => {}
        Output::Update(fields) => fields.iter().for_each(|(key, value)| visit(Some(key), value)),
        Output::Command(command) => match &command.update {
            Some(CommandUpdate::Fields(fields)) => fields.iter().for_each(|(key, value)| visit(Some(key), value)),
            Some(CommandUpdate::Pairs(pairs)) => pairs.iter().for_each(|(key, value)| visit(Some(key), value)),
            Some(CommandUpdate::Other(_)) | None => {}
        },
        Output::Many(outputs) => outputs.iter().for_each(|output| each_write(output, visit)),
        Output::Other(value) => visit(None, value),
    }
}

fn each_message(value: &Json, visit: &mut dyn FnMut(&Json)) {
    if value.is_object() {
        if is_message(value) {
            visit(value);
        }
    } else if value.is_array() {
        for item in value.items().into_iter().flatten() {
            if item.is_object() && is_message(&item) {
                visit(&item);
            }
        }
    }
}
