//! What an execution tells its listeners, as payloads of the stream modes (section 8).

use std::collections::BTreeMap;
use std::sync::Arc;

use indexmap::IndexMap;

use super::record::TaskRecord;
use super::step::{Task, TaskWrite};
use super::{EngineError, GraphSpec};
use crate::model::{CheckpointId, Fields, Interrupt, Json, special};

/// One payload. `debug` events wrap the last three with their step.
#[derive(Debug, Clone)]
pub enum Chunk {
    Values(Json),
    Updates(Json),
    Checkpoint { step: i64, payload: Json },
    TaskStart { step: i64, payload: Json },
    TaskEnd { step: i64, payload: Json },
}

/// Which payloads anybody listens to: the others are not built.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted {
    pub values: bool,
    pub updates: bool,
    pub tasks: bool,
    pub checkpoints: bool,
    /// What routers are asked and answer.
    pub routers: bool,
}

fn is_one_of(channel: &str, keys: &[String]) -> bool {
    keys.iter().any(|key| key == channel)
}

/// The `updates` payload of a finished task: its output keys, a list when a key was written twice, null for none.
pub fn updates(task: &Task, outputs: &[TaskWrite], keys: &[String], cached: bool) -> Json {
    let shown: Vec<&TaskWrite> = outputs.iter().filter(|(channel, _)| is_one_of(channel, keys)).collect();
    let mut counts: IndexMap<&str, usize> = IndexMap::new();
    for (channel, _) in &shown {
        *counts.entry(channel).or_default() += 1;
    }
    let one = |(channel, value): &TaskWrite| Json::from_fields([(&**channel, value)]);
    let update = if shown.is_empty() {
        Json::null()
    } else if counts.values().any(|count| *count > 1) {
        match shown.as_slice() {
            [only] => one(only),
            several => several.iter().map(|write| one(write)).collect(),
        }
    } else {
        Json::from_fields(shown.iter().map(|(channel, value)| (&**channel, value)))
    };
    let mut fields = vec![(&*task.name, &update)];
    let metadata = Json::from(&serde_json::json!({"cached": true}));
    if cached {
        fields.push(("__metadata__", &metadata));
    }
    Json::from_fields(fields)
}

/// Interrupts as streams show them: with `response_schema`, null when there is none.
pub fn interrupts(list: &[Interrupt]) -> Json {
    list.iter()
        .map(|interrupt| {
            let null = Json::null();
            let schema = interrupt.response_schema.as_ref().unwrap_or(&null);
            Json::from_fields([
                ("value", &interrupt.value),
                ("id", &Json::from(interrupt.id.as_str())),
                ("response_schema", schema),
            ])
        })
        .collect()
}

/// What a task wrote, by key; a key written more than once is folded into `{"$writes": [..]}`.
pub fn result_of(outputs: &[TaskWrite], keys: &[String]) -> Json {
    let mut folded: IndexMap<&str, Vec<&Json>> = IndexMap::new();
    for (channel, value) in outputs.iter().filter(|(channel, _)| is_one_of(channel, keys)) {
        folded.entry(channel).or_default().push(value);
    }
    let fields: Fields = folded
        .into_iter()
        .map(|(channel, values)| {
            let value = match values.as_slice() {
                [one] => (*one).clone(),
                several => {
                    let list: Json = several.iter().map(|value| (*value).clone()).collect();
                    Json::from_fields([("$writes", &list)])
                }
            };
            (channel.to_owned(), value)
        })
        .collect();
    Json::from(&fields)
}

/// The start of a task.
pub fn task_start(task: &Task, metadata: &Json) -> Json {
    let triggers: Json = task.triggers.iter().map(|trigger| Json::from(trigger.as_str())).collect();
    let (id, name) = (Json::from(&*task.id), Json::from(&*task.name));
    Json::from_fields([
        ("id", &id),
        ("name", &name),
        ("input", &task.input.to_json()),
        ("triggers", &triggers),
        ("metadata", metadata),
    ])
}

/// The end of a task.
pub fn task_end(task: &Task, error: Option<&EngineError>, result: &Json, questions: &[Interrupt]) -> Json {
    let error = error.map_or_else(Json::null, |error| Json::of(&error.info()).unwrap_or_default());
    let (id, name) = (Json::from(&*task.id), Json::from(&*task.name));
    Json::from_fields([
        ("id", &id),
        ("name", &name),
        ("error", &error),
        ("result", result),
        ("interrupts", &interrupts(questions)),
    ])
}

/// `{"configurable": {checkpoint_ns, thread_id, checkpoint_id, ..}}`.
pub fn config(
    thread_id: &str,
    ns: &str,
    checkpoint_id: Option<&str>,
    parents: &BTreeMap<String, CheckpointId>,
) -> Json {
    let mut fields = serde_json::Map::new();
    fields.insert("checkpoint_ns".into(), ns.into());
    fields.insert("thread_id".into(), thread_id.into());
    if let Some(id) = checkpoint_id {
        fields.insert("checkpoint_id".into(), id.into());
        if !parents.is_empty() {
            let mut map = serde_json::Map::new();
            for (ns, id) in parents {
                map.insert(ns.clone(), id.as_str().into());
            }
            map.insert(ns.to_owned(), id.into());
            fields.insert("checkpoint_map".into(), map.into());
        }
    }
    Json::from(&serde_json::json!({"configurable": fields}))
}

/// The tasks of a checkpoint event.
pub fn checkpoint_tasks(
    spec: &GraphSpec,
    thread_id: &str,
    tasks: &[Arc<Task>],
    record_of: impl Fn(&str) -> Option<Arc<TaskRecord>>,
) -> Json {
    tasks
        .iter()
        .map(|task| {
            let record = record_of(&task.id);
            let state = match spec.nodes.get(&*task.name) {
                Some(node) if node.is_subgraph => config(thread_id, &task.ns, None, &BTreeMap::new()),
                _ => Json::null(),
            };
            let mut fields: Vec<(&str, Json)> = vec![("id", Json::from(&*task.id)), ("name", Json::from(&*task.name))];
            let error = record.as_ref().and_then(|record| record.error());
            match error {
                Some(error) => fields.push(("error", Json::from(error))),
                None => {
                    let finished = record.as_ref().filter(|record| record.is_finished());
                    let result = finished.map(|record| result_of(&record.writes, &spec.stream));
                    // A task that wrote nothing shows no result.
                    let shown = result.filter(|result| result.fields().is_none_or(|fields| !fields.is_empty()));
                    fields.extend(shown.map(|result| ("result", result)));
                    let list = record.as_ref().map(|record| record.interrupts()).unwrap_or_default();
                    fields.push(("interrupts", interrupts(&list)));
                }
            }
            fields.push(("state", state));
            Json::from_fields(fields.iter().map(|(key, value)| (*key, value)))
        })
        .collect()
}

/// A `values` payload with pending questions merged in.
pub fn values_with_interrupts(values: &Fields, list: &[Interrupt]) -> Json {
    let mut fields = values.clone();
    fields.insert(special::INTERRUPT.to_owned(), interrupts(list));
    Json::from(&fields)
}
