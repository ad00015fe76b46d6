//! The fold from stored events to protocol events.

use std::collections::{BTreeSet, HashMap, HashSet};

use indexmap::IndexMap;
use serde_json::json;

use super::messages::{Speech, Told};
use super::{ProtocolEvent, normal};
use crate::model::event::{RESUME_GAP, RUN_BEGAN, RUN_ENDED, STATE_UPDATE};
use crate::model::{Json, RunId, special};
use crate::runtime::events::Outcome;
use crate::storage::StoredEvent;

/// Sequence numbers count from 2020-01-01, so that they stay exact in a double until 2089.
const EPOCH_MILLIS: i64 = 1_577_836_800_000;
/// Numbers per millisecond. More events in one millisecond borrow from the next ones.
const PER_MILLI: i64 = 4096;

/// Renders the events of one thread, from its first stored event on.
#[derive(Debug, Default)]
pub struct Renderer {
    seq: i64,
    /// The greatest step of the root's checkpoints so far.
    step: Option<i64>,
    run: Option<RunInProgress>,
}

/// What the events of a run so far say.
#[derive(Debug)]
struct RunInProgress {
    run_id: RunId,
    graph: String,
    /// Checkpoints are told: `values` wait for the checkpoint that belongs to them.
    has_checkpoints: bool,
    /// Graphs inside, in the order they started.
    inside: IndexMap<Vec<String>, ()>,
    started: HashSet<Vec<String>>,
    held: HashMap<Vec<String>, ProtocolEvent>,
    checkpoints: HashSet<(Vec<String>, String)>,
    questions: IndexMap<String, Json>,
    speech: Speech,
    /// Tool calls that tasks were started for, by task.
    causes: HashMap<String, String>,
    error: Option<String>,
}

/// The events of one stored event, being put together.
struct Batch {
    id: String,
    millis: i64,
    pieces: usize,
    /// [`Renderer::step`].
    step: Option<i64>,
    out: Vec<ProtocolEvent>,
}

impl Batch {
    fn of(stored: &StoredEvent, step: Option<i64>) -> Batch {
        Batch { id: stored.id.to_string(), millis: stored.id.millis(), pieces: 0, step, out: Vec::new() }
    }

    /// True the first time that a step, or one after it, is reached.
    fn is_ahead(&mut self, step: Option<i64>) -> bool {
        let is_ahead = step.is_some_and(|step| self.step.is_none_or(|reached| step > reached));
        if is_ahead {
            self.step = step;
        }
        is_ahead
    }

    /// The id of the next piece of the stored event: its own, then with a suffix.
    fn piece(&mut self) -> String {
        self.pieces += 1;
        if self.pieces == 1 { self.id.clone() } else { format!("{}.{}", self.id, self.pieces - 1) }
    }

    fn make(&self, event_id: String, method: &'static str, namespace: &[String], data: Json) -> ProtocolEvent {
        let timestamp = self.millis;
        ProtocolEvent { event_id, seq: 0, method, namespace: namespace.to_vec(), node: None, timestamp, data }
    }

    fn stored(&mut self, method: &'static str, namespace: &[String], data: Json) {
        let id = self.piece();
        self.out.push(self.make(id, method, namespace, data));
    }

    fn synthesized(&mut self, run_id: RunId, kind: &str, method: &'static str, namespace: &[String], data: Json) {
        let (kind, detail) = kind.split_once('|').unwrap_or((kind, ""));
        let id = format!("synth:{run_id}:{kind}|{}|{detail}", namespace.join("\0"));
        self.out.push(self.make(id, method, namespace, data));
    }

    fn told(&mut self, told: Vec<Told>) {
        for Told { method, namespace, node, data } in told {
            let id = self.piece();
            let event = self.make(id, method, &namespace, Json::from(data));
            self.out.push(ProtocolEvent { node, ..event });
        }
    }
}

impl Renderer {
    /// The protocol events of the next stored event of the thread.
    pub fn render(&mut self, stored: &StoredEvent) -> Vec<ProtocolEvent> {
        let mut batch = Batch::of(stored, self.step);
        if self.run.as_ref().is_none_or(|run| run.run_id != stored.run_id) {
            if let Some(mut run) = self.run.take() {
                // Its end is not in the log: its worker died for good, or the run was deleted.
                run.end(Outcome::Interrupted, None, &mut batch);
            }
            if stored.name != RUN_ENDED && stored.name != STATE_UPDATE {
                let run = RunInProgress::begin(stored);
                let data = Json::from(json!({"event": "running", "graph_name": run.graph}));
                batch.synthesized(run.run_id, "lc|running", "lifecycle", &[], data);
                self.run = Some(run);
            }
        } else if stored.name == RUN_BEGAN
            && let Some(run) = &mut self.run
        {
            batch.told(run.speech.break_off("the run continues on another worker"));
        }
        if let Some(run) = &mut self.run {
            if stored.name == RUN_ENDED {
                let text = |key: &str| stored.data.get(key).and_then(|text| text.as_str().map(str::to_owned));
                let outcome = text("outcome").and_then(|outcome| Outcome::parse(&outcome));
                run.end(outcome.unwrap_or(Outcome::Completed), text("error"), &mut batch);
                self.run = None;
            } else {
                run.hear(stored, &mut batch);
            }
        }
        self.number(batch)
    }

    /// The run whose end has not been rendered.
    pub fn open_run(&self) -> Option<RunId> {
        self.run.as_ref().map(|run| run.run_id)
    }

    /// Ends the open run by what its row says, when the log does not: `millis` is when it ended.
    pub fn end_open_run(&mut self, outcome: Outcome, error: Option<String>, millis: i64) -> Vec<ProtocolEvent> {
        let Some(mut run) = self.run.take() else { return Vec::new() };
        let id = format!("synth:{}:end", run.run_id);
        let mut batch = Batch { id, millis, pieces: 0, step: self.step, out: Vec::new() };
        run.end(outcome, error, &mut batch);
        self.number(batch)
    }

    fn number(&mut self, batch: Batch) -> Vec<ProtocolEvent> {
        self.step = batch.step;
        let base = (batch.millis - EPOCH_MILLIS).max(0).saturating_mul(PER_MILLI);
        let mut out = batch.out;
        for event in &mut out {
            self.seq = (self.seq + 1).max(base);
            event.seq = self.seq;
        }
        out
    }
}

impl RunInProgress {
    fn begin(stored: &StoredEvent) -> RunInProgress {
        let fields = (stored.name == RUN_BEGAN).then(|| stored.data.fields()).flatten().unwrap_or_default();
        let modes: Vec<String> = fields.get("modes").and_then(|modes| modes.decode().ok()).unwrap_or_default();
        RunInProgress {
            run_id: stored.run_id,
            graph: fields.get("graph_id").and_then(Json::as_str).unwrap_or_default().to_owned(),
            has_checkpoints: modes.iter().any(|mode| mode == "checkpoints"),
            inside: IndexMap::new(),
            started: HashSet::new(),
            held: HashMap::new(),
            checkpoints: HashSet::new(),
            questions: IndexMap::new(),
            speech: Speech::default(),
            causes: HashMap::new(),
            error: None,
        }
    }

    fn hear(&mut self, stored: &StoredEvent, batch: &mut Batch) {
        let (mode, namespace) = split(&stored.name);
        let data = &stored.data;
        if mode == "error" {
            self.error = data.get("message").and_then(|message| message.as_str().map(str::to_owned));
            return;
        }
        if mode == RESUME_GAP {
            return batch.stored(RESUME_GAP, &[], data.clone());
        }
        if !matches!(mode, "values" | "updates" | "messages" | "custom" | "tasks" | "checkpoints") {
            return;
        }
        self.enter(&namespace, batch);
        if mode == "checkpoints" {
            self.checkpoint(&namespace, data, batch);
        }
        if mode != "custom"
            && mode != "messages"
            && let Some(held) = self.held.remove(&namespace)
        {
            batch.out.push(held);
        }
        match mode {
            "values" => self.values(&namespace, data, batch),
            "updates" => self.updates(&namespace, data, batch),
            "messages" => {
                let told = self.speech.hear(&namespace, data.value());
                batch.told(told);
            }
            "custom" => batch.stored("custom", &namespace, custom(data)),
            "tasks" => self.task(&namespace, data, batch),
            _ => {}
        }
    }

    /// Tells that graphs inside have started, the outer ones first.
    fn enter(&mut self, namespace: &[String], batch: &mut Batch) {
        for depth in 1..=namespace.len() {
            let path = &namespace[..depth];
            if !self.started.insert(path.to_vec()) {
                continue;
            }
            self.inside.insert(path.to_vec(), ());
            let (name, task) = path[depth - 1].split_once(':').unwrap_or((&path[depth - 1], ""));
            let mut data = json!({"event": "started", "namespace": path, "graph_name": name});
            if !task.is_empty() {
                data["trigger_call_id"] = json!(task);
            }
            if let Some(call) = self.causes.get(task) {
                data["cause"] = json!({"type": "toolCall", "tool_call_id": call});
            }
            batch.synthesized(self.run_id, "lc|started", "lifecycle", path, Json::from(data));
        }
    }

    /// Tells the end of a graph inside and of those within it, the inner ones first.
    fn leave(&mut self, path: &[String], outcome: Outcome, error: Option<&str>, batch: &mut Batch) {
        let below: Vec<Vec<String>> =
            self.inside.keys().filter(|inside| inside.starts_with(path)).rev().cloned().collect();
        for inside in below {
            self.inside.shift_remove(&inside);
            if let Some(held) = self.held.remove(&inside) {
                batch.out.push(held);
            }
            let name = inside.last().and_then(|segment| segment.split(':').next()).unwrap_or_default();
            let mut data = json!({"event": outcome.as_str(), "namespace": inside, "graph_name": name});
            if let Some(error) = error {
                data["error"] = json!(error);
            }
            batch.synthesized(self.run_id, &format!("lc|{}", outcome.as_str()), "lifecycle", &inside, Json::from(data));
        }
    }

    fn checkpoint(&mut self, namespace: &[String], data: &Json, batch: &mut Batch) {
        let data = data.value();
        let id = |config: &str| data[config]["configurable"]["checkpoint_id"].as_str();
        let Some(checkpoint) = id("config") else { return };
        if !self.checkpoints.insert((namespace.to_vec(), checkpoint.to_owned())) {
            return;
        }
        let mut out = json!({"id": checkpoint});
        if let Some(parent) = id("parent_config") {
            out["parent_id"] = json!(parent);
        }
        let step = &data["metadata"]["step"];
        // React's hook takes a step it has seen for an old one that is told again, and keeps the messages that a branch
        // from an earlier checkpoint has left behind. Without a step it shows what the branch has.
        if !namespace.is_empty() || batch.is_ahead(step.as_i64()) {
            out["step"] = step.clone();
        }
        out["source"] = data["metadata"]["source"].clone();
        let kind = format!("checkpoint|{checkpoint}");
        batch.synthesized(self.run_id, &kind, "checkpoints", namespace, Json::from(out));
    }

    fn values(&mut self, namespace: &[String], data: &Json, batch: &mut Batch) {
        let questions = data.get(special::INTERRUPT);
        let is_question = questions.is_some();
        self.ask(namespace, questions);
        let id = batch.piece();
        let event = batch.make(id, "values", namespace, normal::values(data));
        if self.has_checkpoints && !is_question {
            self.held.insert(namespace.to_vec(), event);
        } else {
            batch.out.push(event);
        }
    }

    fn updates(&mut self, namespace: &[String], data: &Json, batch: &mut Batch) {
        let fields = data.fields().unwrap_or_default();
        if let Some(questions) = fields.get(special::INTERRUPT) {
            return self.ask(namespace, Some(questions.clone()));
        }
        let id = batch.piece();
        let node = fields.keys().find(|key| *key != "__metadata__").cloned();
        let event = batch.make(id, "updates", namespace, data.clone());
        batch.out.push(ProtocolEvent { node, ..event });
    }

    /// Notes questions: they are told together at the end of the run, and only once however deep they were asked.
    fn ask(&mut self, namespace: &[String], questions: Option<Json>) {
        if !namespace.is_empty() {
            return;
        }
        for question in questions.and_then(|list| list.items()).into_iter().flatten() {
            let mut fields = question.fields().unwrap_or_default();
            let id = fields.get("id").and_then(|id| id.as_str().map(str::to_owned));
            if let Some(id) = id {
                self.questions.insert(id, fields.shift_remove("value").unwrap_or_default());
            }
        }
    }

    fn task(&mut self, namespace: &[String], data: &Json, batch: &mut Batch) {
        let fields = data.fields().unwrap_or_default();
        let text = |key: &str| fields.get(key).and_then(Json::as_str).unwrap_or_default();
        let (id, name) = (text("id"), text("name"));
        if fields.contains_key("triggers") {
            let call = fields.get("input").filter(|input| input.is_object()).and_then(|input| {
                let input = input.value();
                let call = if input["type"] == "tool_call" { input } else { &input["tool_call"] };
                call["id"].as_str().map(str::to_owned)
            });
            if let Some(call) = call {
                self.causes.insert(id.to_owned(), call);
            }
        } else {
            batch.told(self.speech.task_ended(id));
            let error = fields.get("error").and_then(Json::as_str);
            let is_asking = fields.get("interrupts").is_some_and(|list| list.text() != "[]" && !list.is_null());
            let outcome = match error {
                Some(_) => Outcome::Failed,
                None if is_asking => Outcome::Interrupted,
                None => Outcome::Completed,
            };
            let depth = namespace.len();
            let ran_here = |inside: &Vec<String>| {
                inside.len() == depth + 1 && inside.starts_with(namespace) && {
                    let segment = &inside[depth];
                    segment == name || segment.split_once(':').is_some_and(|(_, task)| task == id)
                }
            };
            let mine: Vec<Vec<String>> = self.inside.keys().filter(|inside| ran_here(inside)).cloned().collect();
            for path in mine {
                self.leave(&path, outcome, error, batch);
            }
        }
        batch.stored("tasks", namespace, data.clone());
    }

    /// Everything that is open ends, then the run.
    fn end(&mut self, outcome: Outcome, error: Option<String>, batch: &mut Batch) {
        let why = if outcome == Outcome::Failed { "the run failed" } else { "the run was interrupted" };
        batch.told(self.speech.break_off(why));
        self.leave(&[], outcome, None, batch);
        let held: BTreeSet<Vec<String>> = self.held.keys().cloned().collect();
        batch.out.extend(held.iter().filter_map(|namespace| self.held.remove(namespace)));
        if outcome == Outcome::Interrupted {
            for (id, value) in std::mem::take(&mut self.questions) {
                let data = Json::from_fields([
                    ("interrupt_id", &Json::from(id.as_str())),
                    ("payload", &value),
                    // The Python client looks for it here.
                    ("value", &value),
                ]);
                batch.synthesized(self.run_id, &format!("input|{id}"), "input.requested", &[], data);
            }
        }
        let mut data = json!({"event": outcome.as_str(), "graph_name": self.graph});
        if outcome == Outcome::Failed {
            data["error"] = json!(error.or_else(|| self.error.take()).unwrap_or_default());
        }
        let kind = format!("lc|{}", outcome.as_str());
        batch.synthesized(self.run_id, &kind, "lifecycle", &[], Json::from(data));
    }
}

/// `mode|segment|..` as the mode and the path.
fn split(name: &str) -> (&str, Vec<String>) {
    let mut parts = name.split('|');
    (parts.next().unwrap_or_default(), parts.map(str::to_owned).collect())
}

/// What a node wrote: an object of a name and a payload is an event of that name.
fn custom(data: &Json) -> Json {
    let fields = data.fields().unwrap_or_default();
    let is_named = fields.len() == 2
        && fields.contains_key("payload")
        && fields.get("name").is_some_and(|name| name.as_str().is_some());
    if is_named { data.clone() } else { Json::from_fields([("payload", data)]) }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::model::EventId;

    struct Log {
        next: i64,
        run: RunId,
        renderer: Renderer,
        told: Vec<ProtocolEvent>,
    }

    impl Log {
        fn new() -> Log {
            Log {
                next: (1_795_219_642_473 << 20),
                run: Uuid::from_u128(7),
                renderer: Renderer::default(),
                told: vec![],
            }
        }

        fn add(&mut self, name: &str, data: serde_json::Value) -> &mut Log {
            self.next += 1;
            let id = EventId(self.next);
            let event = StoredEvent { id, run_id: self.run, name: name.to_owned(), data: Json::from(data) };
            self.told.extend(self.renderer.render(&event));
            self
        }

        fn lines(&self) -> Vec<String> {
            let line = |event: &ProtocolEvent| {
                let what = event.data.get("event").or_else(|| event.data.get("interrupt_id")).unwrap_or_default();
                let what = what.as_str().unwrap_or_default().to_owned();
                format!("{} {} {what}", event.method, event.namespace.join("/")).trim_end().to_owned()
            };
            self.told.iter().map(line).collect()
        }
    }

    fn began(protocol: bool) -> serde_json::Value {
        json!({"graph_id": "agent", "modes": ["values", "checkpoints"], "protocol": protocol})
    }

    #[test]
    fn a_run_is_told_from_running_to_its_terminal() {
        let mut log = Log::new();
        log.add(RUN_BEGAN, began(true)).add("metadata", json!({}));
        log.add("values", json!({"n": 1}));
        let checkpoint = json!({"config": {"configurable": {"checkpoint_id": "c1"}}, "parent_config": null,
                                "metadata": {"step": 0, "source": "loop"}});
        log.add("checkpoints", checkpoint.clone()).add("checkpoints", checkpoint);
        log.add("custom", json!("x")).add("values", json!({"n": 2}));
        log.add(RUN_ENDED, json!({"status": "success", "outcome": "completed"}));
        assert_eq!(
            log.lines(),
            ["lifecycle  running", "checkpoints", "values", "custom", "values", "lifecycle  completed"]
        );
        let ids: Vec<&str> = log.told.iter().map(|event| event.event_id.as_str()).collect();
        let run = Uuid::from_u128(7);
        assert_eq!(ids[0], format!("synth:{run}:lc||running"));
        assert_eq!(ids[1], format!("synth:{run}:checkpoint||c1"));
        assert_eq!(ids[2], "1795219642473-3");
        assert_eq!(ids[5], format!("synth:{run}:lc||completed"));
        assert!(log.told.windows(2).all(|pair| pair[0].seq < pair[1].seq));
        assert!(log.told.iter().all(|event| event.seq < 1 << 53));
        assert_eq!(log.told[1].data.text(), r#"{"id":"c1","step":0,"source":"loop"}"#);
    }

    #[test]
    fn a_branch_from_an_earlier_checkpoint_has_no_steps_until_it_is_ahead() {
        let mut log = Log::new();
        for (run, steps) in [(7, [0, 1, 2]), (8, [1, 2, 3])] {
            log.run = Uuid::from_u128(run);
            log.add(RUN_BEGAN, began(true));
            for step in steps {
                let id = json!({"configurable": {"checkpoint_id": format!("c{run}{step}")}});
                log.add("checkpoints", json!({"config": id, "metadata": {"step": step, "source": "loop"}}));
            }
            log.add(RUN_ENDED, json!({"status": "success", "outcome": "completed"}));
        }
        let checkpoints = log.told.iter().filter(|event| event.method == "checkpoints");
        let steps: Vec<Option<i64>> = checkpoints.map(|event| event.data.value()["step"].as_i64()).collect();
        assert_eq!(steps, [Some(0), Some(1), Some(2), None, None, Some(3)]);
    }

    #[test]
    fn graphs_inside_start_and_end_and_questions_come_last() {
        let mut log = Log::new();
        log.add(RUN_BEGAN, began(true));
        log.add(
            "tasks",
            json!({"id": "t1", "name": "sub", "triggers": [], "input": {"type": "tool_call", "id": "c9"}}),
        );
        log.add("values|sub:t1|in:t2", json!({}));
        log.add("updates|sub:t1", json!({"__interrupt__": [{"id": "q", "value": 1}]}));
        log.add("updates", json!({"__interrupt__": [{"id": "q", "value": 1}]}));
        log.add("values", json!({"n": 0, "__interrupt__": [{"id": "q", "value": 1}]}));
        log.add("tasks", json!({"id": "t1", "name": "sub", "error": null, "result": {}, "interrupts": [{"id": "q"}]}));
        log.add(RUN_ENDED, json!({"status": "success", "outcome": "interrupted"}));
        assert_eq!(
            log.lines(),
            [
                "lifecycle  running",
                "tasks",
                "lifecycle sub:t1 started",
                "lifecycle sub:t1/in:t2 started",
                "values",
                "values sub:t1/in:t2",
                "lifecycle sub:t1/in:t2 interrupted",
                "lifecycle sub:t1 interrupted",
                "tasks",
                "input.requested  q",
                "lifecycle  interrupted"
            ]
        );
        let started = &log.told[2];
        assert_eq!(
            *started.data.value(),
            json!({"event": "started", "namespace": ["sub:t1"], "graph_name": "sub", "trigger_call_id": "t1",
                   "cause": {"type": "toolCall", "tool_call_id": "c9"}})
        );
        assert_eq!(log.told[3].event_id, format!("synth:{}:lc|sub:t1\0in:t2|started", Uuid::from_u128(7)));
        let question = log.told.iter().find(|event| event.method == "input.requested").expect("a question");
        assert_eq!(question.data.text(), r#"{"interrupt_id":"q","payload":1,"value":1}"#);
        assert_eq!(log.told[4].data.text(), r#"{"n":0}"#);
    }

    #[test]
    fn runs_whose_end_is_missing_end_before_the_next_one_begins() {
        let mut log = Log::new();
        log.add(RUN_BEGAN, began(true)).add("values", json!({}));
        log.run = Uuid::from_u128(8);
        log.add(RUN_BEGAN, began(true)).add("error", json!({"error": "E", "message": "boom"}));
        assert_eq!(log.renderer.open_run(), Some(log.run));
        let end = log.renderer.end_open_run(Outcome::Failed, None, 1_795_219_642_999);
        log.told.extend(end);
        assert_eq!(
            log.lines(),
            ["lifecycle  running", "values", "lifecycle  interrupted", "lifecycle  running", "lifecycle  failed"]
        );
        assert_eq!(log.told[4].data.get("error").unwrap_or_default().as_str(), Some("boom"));
        assert_eq!(log.renderer.open_run(), None);
    }

    #[test]
    fn pieces_of_a_stored_event_have_suffixes() {
        let mut log = Log::new();
        log.add(RUN_BEGAN, began(true));
        let message = json!([{"type": "human", "id": "h", "content": "hi"}, {"langgraph_node": "a"}]);
        log.add("messages", message);
        let ids: Vec<&str> = log.told[1..].iter().map(|event| event.event_id.as_str()).collect();
        assert_eq!(ids[0], "1795219642473-2");
        assert_eq!(ids[1], "1795219642473-2.1");
        assert_eq!(ids.len(), 5);
        log.add("custom", json!({"name": "progress", "payload": 1}));
        assert_eq!(
            log.told.last().map(|event| event.data.text()).as_deref(),
            Some(r#"{"name":"progress","payload":1}"#)
        );
    }
}
