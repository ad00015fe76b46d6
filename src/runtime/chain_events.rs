//! The `events` stream: LangChain's events (version 2) of graphs, the executions of nodes, routers, and models (contract
//! section 4.3). Nothing of this is built for runs that do not ask for it.
//!
//! Each of these is a [`Chain`]: it starts, it may say chunks, and it ends; one that fails or asks a human ends without
//! a word. Graphs inside nodes are always told of, whether or not the other modes show them. Ids are derived from the
//! run, the task and the message, so that an execution repeated after a crash is told under the same ids.

use std::sync::{Arc, Mutex};

use indexmap::IndexMap;
use uuid::Uuid;

use super::executor::Around;
use super::messages::{self, joined, whole};
use super::shared::{Shared, lock};
use crate::engine::command::{Command, CommandUpdate, Destination, Output};
use crate::engine::message::{is_message, message_id};
use crate::engine::step::{Routed, Task};
use crate::model::{Fields, Json, StreamMode};

/// What a graph inside a node is called; the root graph goes by its own name.
const INNER_GRAPH: &str = "LangGraph";
/// What a model is called whose chunks do not name it.
const MODEL: &str = "ChatModel";
/// The place of the first router among the parts of its node: after the body and its writes.
const FIRST_ROUTER: usize = 3;

/// Something that starts and ends within a run.
#[derive(Debug, Clone)]
pub(crate) struct Chain {
    kind: &'static str,
    id: Uuid,
    name: String,
    /// The chains around it, the outermost first.
    parents: Vec<Uuid>,
    /// The tags of the run.
    run_tags: Arc<[Json]>,
    /// Its place in the chain around it; empty at the root.
    place: String,
    metadata: Json,
}

impl Chain {
    /// The root graph of a run; `None` if nobody asked for events.
    pub(crate) fn root(shared: &Shared) -> Option<Chain> {
        if !shared.modes.contains(&StreamMode::Events) {
            return None;
        }
        let mut metadata = shared.task_metadata.fields().unwrap_or_default();
        metadata.insert("thread_id".to_owned(), Json::from(shared.thread_id.as_str()));
        let tags = shared.config.get("tags").and_then(|tags| tags.items()).unwrap_or_default();
        Some(Chain {
            kind: "chain",
            id: shared.run_id,
            name: shared.graph_id.clone(),
            parents: Vec::new(),
            run_tags: tags.iter().cloned().collect(),
            place: String::new(),
            metadata: Json::from(&metadata),
        })
    }

    fn child(&self, name: &str, seed: &str, place: String, metadata: Json) -> Chain {
        let mut parents = self.parents.clone();
        parents.push(self.id);
        Chain {
            kind: "chain",
            id: Uuid::new_v5(&self.id, seed.as_bytes()),
            name: name.to_owned(),
            parents,
            run_tags: Arc::clone(&self.run_tags),
            place,
            metadata,
        }
    }

    /// `on_<kind>_start`.
    pub(crate) fn started(&self, input: &Json) -> Json {
        self.event("start", &[("input", input)])
    }

    fn said(&self, chunk: &Json) -> Json {
        self.event("stream", &[("chunk", chunk)])
    }

    /// `on_<kind>_end`.
    pub(crate) fn ended(&self, output: &Json, input: Option<&Json>) -> Json {
        let mut data = vec![("output", output)];
        data.extend(input.map(|input| ("input", input)));
        self.event("end", &data)
    }

    fn event(&self, what: &str, data: &[(&str, &Json)]) -> Json {
        let place = (!self.place.is_empty()).then(|| Json::from(self.place.as_str()));
        let tags: Json = place.into_iter().chain(self.run_tags.iter().cloned()).collect();
        let parents: Json = self.parents.iter().map(|id| Json::from(id.to_string())).collect();
        Json::from_fields([
            ("event", &Json::from(format!("on_{}_{what}", self.kind))),
            ("name", &Json::from(self.name.as_str())),
            ("run_id", &Json::from(self.id.to_string())),
            ("tags", &tags),
            ("metadata", &self.metadata),
            ("data", &Json::from_fields(data.iter().copied())),
            ("parent_ids", &parents),
        ])
    }
}

/// One execution of a node, and the models that speak in it.
#[derive(Debug)]
pub(crate) struct NodeChain {
    chain: Chain,
    input: Json,
    /// The metadata of models and graphs called in it.
    inner_metadata: Json,
    /// Messages being generated, by id.
    models: Mutex<IndexMap<String, Model>>,
}

/// A model that speaks, and what it has said.
#[derive(Debug)]
struct Model {
    chain: Chain,
    said: Json,
}

impl NodeChain {
    /// Tells that an execution of a node begins. `None` if nobody asked for events.
    pub(crate) fn begin(shared: &Shared, around: &Around, task: &Task, attempt: u32) -> Option<NodeChain> {
        let graph = around.chain.as_deref()?;
        let place = format!("graph:step:{}", around.step);
        let metadata = messages::metadata(shared, around, task, false);
        let chain = graph.child(&task.name, &format!("node:{}:{attempt}", task.id), place, metadata);
        let input = task.input.to_json();
        tell(shared, chain.started(&input));
        let inner_metadata = messages::metadata(shared, around, task, true);
        Some(NodeChain { chain, input, inner_metadata, models: Mutex::default() })
    }

    /// The `index`-th graph called in it.
    pub(crate) fn graph(&self, index: usize) -> Chain {
        self.chain.child(INNER_GRAPH, &format!("graph:{index}"), body_place(), self.inner_metadata.clone())
    }

    /// Tells a chunk of a message, or takes note of a whole one (`complete`).
    pub(crate) fn say(&self, shared: &Shared, message: &Json, complete: bool) {
        let key = message_id(message).unwrap_or_default().to_owned();
        let mut models = lock(&self.models);
        if !models.contains_key(&key) {
            let chain = self.model(&key, message);
            tell(shared, chain.started(&self.prompt()));
            models.insert(key.clone(), Model { chain, said: Json::null() });
        }
        let Some(model) = models.get_mut(&key) else { return };
        if complete {
            model.said = whole(message);
        } else {
            tell(shared, model.chain.said(message));
            model.said = if model.said.is_null() { whole(message) } else { joined(&model.said, message) };
        }
    }

    /// After [`NodeChain::say`], and after the other modes have told it: ends the model if this was all of the message.
    pub(crate) fn end_message(&self, shared: &Shared, message: &Json, complete: bool) {
        let is_last = message.get("chunk_position").is_some_and(|position| position.as_str() == Some("last"));
        if (complete || is_last)
            && let Some(model) = lock(&self.models).shift_remove(message_id(message).unwrap_or_default())
        {
            tell(shared, model.chain.ended(&model.said, Some(&self.prompt())));
        }
    }

    fn model(&self, id: &str, message: &Json) -> Chain {
        let info = message.get("response_metadata").unwrap_or_default();
        let named = info.get("model_name").and_then(|name| name.as_str().map(str::to_owned));
        let mut metadata = self.inner_metadata.fields().unwrap_or_default();
        metadata.insert("ls_model_type".to_owned(), Json::from("chat"));
        let name = named.as_deref().unwrap_or(MODEL);
        let chain = self.chain.child(name, &format!("model:{id}"), body_place(), Json::from(&metadata));
        // LangChain names messages by the run of the model that wrote them.
        let run = id.rsplit_once("run--").and_then(|(_, run)| Uuid::try_parse(run).ok());
        Chain { kind: "chat_model", id: run.unwrap_or(chain.id), ..chain }
    }

    /// What a model is taken to have read: the messages of the node's input.
    fn prompt(&self) -> Json {
        let mut read = Vec::new();
        let mut take = |value: &Json| {
            let list = value.items().unwrap_or_default();
            read.extend(list.iter().filter(|item| item.is_object() && is_message(item)).cloned());
        };
        match self.input.fields() {
            Some(fields) => fields.values().for_each(take),
            None => take(&self.input),
        }
        let batch: Json = [read.into_iter().collect::<Json>()].into_iter().collect();
        Json::from_fields([("messages", &batch)])
    }

    /// Tells what its routers decided, and unless that failed, what it returned.
    pub(crate) fn end(&self, shared: &Shared, routed: &[Routed], output: Option<&Json>) {
        for (_, model) in std::mem::take(&mut *lock(&self.models)) {
            tell(shared, model.chain.ended(&model.said, Some(&self.prompt())));
        }
        for (index, router) in routed.iter().enumerate() {
            let place = format!("seq:step:{}", FIRST_ROUTER + index);
            let (seed, metadata) = (format!("router:{index}"), self.chain.metadata.clone());
            let chain = self.chain.child(&router.name, &seed, place, metadata);
            let input = Json::from(&router.state);
            tell(shared, chain.started(&input));
            if let Some(destinations) = &router.destinations {
                tell(shared, chain.ended(&decision(destinations), Some(&input)));
            }
        }
        if let Some(output) = output {
            tell(shared, self.chain.said(output));
            tell(shared, self.chain.ended(output, Some(&self.input)));
        }
    }
}

/// Sends an event. Under one name for all graphs: who tells it is in its data.
pub(crate) fn tell(shared: &Shared, event: Json) {
    shared.emit_named(StreamMode::Events.as_str().to_owned(), event);
}

/// The place of what a node's body calls.
fn body_place() -> String {
    "seq:step:1".to_owned()
}

/// What a node returned, as its events show it.
pub(crate) fn returned(output: &Output) -> Json {
    match output {
        Output::Nothing => Json::null(),
        Output::Update(fields) => Json::from(fields),
        Output::Command(command) => shown_command(command),
        Output::Many(outputs) => outputs.iter().map(returned).collect(),
        Output::Other(value) => value.clone(),
    }
}

fn shown_command(command: &Command) -> Json {
    let update = match &command.update {
        None => Json::null(),
        Some(CommandUpdate::Fields(fields)) => Json::from(fields),
        Some(CommandUpdate::Pairs(pairs)) => {
            pairs.iter().map(|(key, value)| [Json::from(key.as_str()), value.clone()].into_iter().collect()).collect()
        }
        Some(CommandUpdate::Other(value)) => value.clone(),
    };
    let graph = if command.parent { Json::from("__parent__") } else { Json::null() };
    Json::from_fields([
        ("graph", &graph),
        ("update", &update),
        ("resume", &command.resume.clone().unwrap_or_default()),
        ("goto", &decision(&command.goto)),
    ])
}

/// One destination by itself, several as a list.
fn decision(destinations: &[Destination]) -> Json {
    let shown = |destination: &Destination| match destination {
        Destination::Node(name) => Json::from(name.as_str()),
        Destination::Send(packet) => {
            Json::from_fields([("node", &Json::from(packet.node.as_str())), ("arg", &packet.arg)])
        }
    };
    match destinations {
        [one @ Destination::Node(_)] => shown(one),
        several => several.iter().map(shown).collect(),
    }
}

/// What a run was given, as the start of its graph shows it: the input, or all members of the Command.
pub(crate) fn given(input: Option<&Json>, command: Option<&Json>) -> Json {
    let command = command.filter(|command| !command.is_null()).and_then(Json::fields);
    let Some(command) = command else { return input.cloned().unwrap_or_default() };
    let mut shown: Fields = ["graph", "update", "resume", "goto"].map(|key| (key.to_owned(), Json::null())).into();
    shown.extend(command);
    Json::from(&shown)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn chain() -> Chain {
        Chain {
            kind: "chain",
            id: Uuid::nil(),
            name: "graph".to_owned(),
            parents: Vec::new(),
            run_tags: [Json::from("mine")].into(),
            place: String::new(),
            metadata: Json::object(),
        }
    }

    #[test]
    fn a_chain_names_all_chains_around_it() {
        let root = chain();
        let node = root.child("n", "node:t:1", "graph:step:1".to_owned(), Json::object());
        let inner = node.child("g", "graph:0", body_place(), Json::object());
        let event = inner.ended(&Json::from(2), Some(&Json::from(1)));
        assert_eq!(
            *event.value(),
            json!({
                "event": "on_chain_end", "name": "g", "run_id": inner.id.to_string(), "tags": ["seq:step:1", "mine"],
                "metadata": {}, "data": {"output": 2, "input": 1},
                "parent_ids": [Uuid::nil().to_string(), node.id.to_string()],
            })
        );
        assert_eq!(root.started(&Json::null()).value()["tags"], json!(["mine"]));
        // The same execution has the same id, another attempt another one.
        assert_eq!(root.child("n", "node:t:1", String::new(), Json::null()).id, node.id);
        assert_ne!(root.child("n", "node:t:2", String::new(), Json::null()).id, node.id);
    }

    #[test]
    fn outputs_are_shown_as_they_were_returned() {
        assert_eq!(returned(&Output::Nothing), Json::null());
        let fields: Fields = [("a".to_owned(), Json::from(1))].into_iter().collect();
        let command = Command {
            update: Some(CommandUpdate::Fields(fields.clone())),
            goto: vec!["next".into()],
            ..Command::default()
        };
        let many = Output::Many(vec![Output::Update(fields), Output::Command(command)]);
        assert_eq!(
            *returned(&many).value(),
            json!([{"a": 1}, {"graph": null, "update": {"a": 1}, "resume": null, "goto": "next"}])
        );
        let send = Destination::send("e", Json::from(1));
        assert_eq!(*decision(&[send]).value(), json!([{"node": "e", "arg": 1}]));
        assert_eq!(*decision(&["a".into(), "b".into()]).value(), json!(["a", "b"]));
        assert_eq!(*decision(&[]).value(), json!([]));
    }

    #[test]
    fn the_start_of_a_run_shows_what_it_was_given() {
        let (input, command) = (Json::from(json!({"n": 1})), Json::from(json!({"resume": "yes"})));
        assert_eq!(given(Some(&input), None), input);
        assert_eq!(given(Some(&input), Some(&Json::null())), input);
        assert_eq!(given(None, None), Json::null());
        let shown = json!({"graph": null, "update": null, "resume": "yes", "goto": null});
        assert_eq!(*given(None, Some(&command)).value(), shown);
    }
}
