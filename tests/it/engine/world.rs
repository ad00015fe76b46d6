//! Storage and a worker in a few lines: what was committed, in order, and runs that go on from any beginning of it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use session_store::engine::chunk::Wanted;
use session_store::engine::execution::{
    Draft, Effect, Execution, Finished, Input, Job, Loaded, Next, Options, StrictResume,
};
use session_store::engine::record::TaskRecord;
use session_store::engine::view::{state_at, values_at};
use session_store::engine::{Command, EngineError};
use session_store::graph::Graph;
use session_store::model::{CheckpointId, Fields, Interrupt, Json, Timestamp};

use super::plan::Plan;

/// A row, roughly.
#[derive(Debug, Clone)]
pub(crate) enum Entry {
    Checkpoint(Box<Draft>),
    Writes(CheckpointId, Arc<TaskRecord>),
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum End {
    Done,
    /// Questions; none at a breakpoint.
    Interrupted(Vec<Interrupt>),
    Failed(EngineError),
    OutOfSteps,
}

/// What a client sends.
#[derive(Debug, Clone)]
pub(crate) enum Request {
    Input(Json),
    Continue,
    /// By question.
    Answers(Fields),
}

/// Which of a superstep's tasks end first.
pub(crate) type Order<'a> = &'a dyn Fn(&mut Vec<Job>);

/// One thread of one graph.
pub(crate) struct World<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) graph: &'a Graph,
    pub(crate) log: Vec<Entry>,
    /// Everything told, for comparing one execution with another.
    pub(crate) told: Vec<String>,
    time: i64,
    task_ids: HashMap<Arc<str>, (CheckpointId, String)>,
}

impl<'a> World<'a> {
    pub(crate) fn new(plan: &'a Plan, graph: &'a Graph) -> World<'a> {
        World { plan, graph, log: Vec::new(), told: Vec::new(), time: 0, task_ids: HashMap::new() }
    }

    /// Forgets all but the first `entries` rows: a crash.
    pub(crate) fn crash(&mut self, entries: usize) {
        self.log.truncate(entries);
    }

    /// A stored checkpoint, written out and read again.
    fn load(&self, at: usize) -> Option<Loaded> {
        let Entry::Checkpoint(draft) = self.log.get(at)? else { return None };
        let again = |json: &Json| Json::trusted(json.text()).expect("what is written can be read");
        let mut checkpoint = draft.checkpoint();
        checkpoint.values.values_mut().for_each(|value| *value = again(value));
        let mut records: BTreeMap<(String, Arc<str>), TaskRecord> = BTreeMap::new();
        for entry in &self.log {
            if let Entry::Writes(id, record) = entry
                && *id == draft.id
            {
                let mut stored = TaskRecord::clone(record);
                stored.writes.iter_mut().for_each(|(_, value)| *value = again(value));
                records.insert((record.path.sort_key(), Arc::clone(&record.task_id)), stored);
            }
        }
        let is_later = |entry: &Entry| matches!(entry, Entry::Checkpoint(_));
        Some(Loaded {
            metadata: draft.metadata(),
            parent: draft.parent.clone(),
            checkpoint,
            records: records.into_values().collect(),
            is_head: !self.log[at + 1..].iter().any(is_later),
            next: draft.next.clone(),
        })
    }

    /// The newest checkpoint.
    pub(crate) fn head(&self) -> Option<Loaded> {
        let at = self.log.iter().rposition(|entry| matches!(entry, Entry::Checkpoint(_)))?;
        self.load(at)
    }

    /// What a client reads at the end: values, and the nodes that are left to run.
    pub(crate) fn state(&self) -> (BTreeMap<String, String>, Vec<String>) {
        let Some(loaded) = self.head() else { return Default::default() };
        let view = state_at(self.graph.spec(), &loaded, "", true).expect("the state can be read");
        let stored = view.values.iter().filter(|(key, _)| !self.plan.is_unstored(key));
        (stored.map(|(key, value)| (key.clone(), value.text())).collect(), view.next)
    }

    /// Reads every state there is, live and as it was.
    pub(crate) fn read_everything(&self) {
        for loaded in (0..self.log.len()).filter_map(|at| self.load(at)) {
            for live in [false, true] {
                let view = state_at(self.graph.spec(), &loaded, "", live).expect("every state can be read");
                let class = view.refused.map(|error| error.class);
                assert!(class.is_none() || class.as_deref() == Some("InvalidUpdateError"), "refused: {class:?}");
            }
            values_at(self.graph.spec(), &loaded).expect("every state can be read");
        }
    }

    /// Executes a run to its end. `spent`: an earlier attempt stored something, so the input is not given again.
    pub(crate) fn run(&mut self, request: &Request, first_run: bool, spent: bool, exit: bool, order: Order<'_>) -> End {
        let answers = match request {
            Request::Answers(answers) if spent => answers.clone(),
            _ => Fields::new(),
        };
        let input = match request {
            _ if spent => Input::Null,
            Request::Input(input) => Input::Value(input.clone()),
            Request::Continue => Input::Null,
            Request::Answers(answers) => {
                Input::Command(Command { resume: Some(Json::from(answers)), ..Command::default() })
            }
        };
        let loaded = self.head();
        let parent = loaded.as_ref().map(|loaded| loaded.checkpoint.id.clone());
        let mut held = Vec::new();
        let result = self.execute(input, loaded, options(answers, spent, exit), first_run, order, &mut held);
        if exit {
            self.store_last(held, parent);
        } else {
            self.log.extend(held);
        }
        result.unwrap_or_else(End::Failed)
    }

    /// Durability `exit`: the last checkpoint and what is recorded on it.
    fn store_last(&mut self, held: Vec<Entry>, mut at: Option<CheckpointId>) {
        let last = held.iter().rev().find_map(|entry| match entry {
            Entry::Checkpoint(draft) => Some(draft.clone()),
            Entry::Writes(..) => None,
        });
        if let Some(mut draft) = last {
            draft.parent = at.replace(draft.id.clone());
            self.log.push(Entry::Checkpoint(draft));
        }
        let on_last = |entry: &Entry| matches!(entry, Entry::Writes(id, _) if Some(id) == at.as_ref());
        self.log.extend(held.into_iter().filter(on_last));
    }

    fn execute(
        &mut self,
        input: Input,
        loaded: Option<Loaded>,
        options: Options,
        first_run: bool,
        order: Order<'_>,
        held: &mut Vec<Entry>,
    ) -> Result<End, EngineError> {
        let mut effects = Vec::new();
        let time = &mut self.time;
        let mut new_id = |_step: i64| {
            *time += 1;
            (format!("{:08x}-0000-6000-8000-000000000000", *time), Timestamp(*time))
        };
        let spec = self.graph.spec();
        let mut execution = Execution::start(spec, loaded, input, options, &mut new_id, &mut effects)?;
        loop {
            let next = execution.tick(&mut effects);
            take(&mut self.told, &mut effects, held);
            let mut jobs = match next {
                Next::Done => return Ok(End::Done),
                Next::Interrupted => return Ok(End::Interrupted(Vec::new())),
                Next::OutOfSteps => return Ok(End::OutOfSteps),
                Next::Run(jobs) => jobs,
            };
            check_ids(&mut self.task_ids, execution.checkpoint_id(), &jobs);
            order(&mut jobs);
            let (mut failure, mut questions, mut interrupted) = (None, Vec::new(), false);
            for job in &jobs {
                let end = self.plan.run(job, first_run);
                match execution.finish_task(job, end, &job.answers, &mut effects) {
                    Finished::Done => {}
                    Finished::Failed(error) => {
                        failure.get_or_insert(error);
                    }
                    Finished::Interrupted(list) => {
                        interrupted = true;
                        questions.extend(list);
                    }
                    other => panic!("no node of a plan does {other:?}"),
                }
            }
            take(&mut self.told, &mut effects, held);
            if let Some(error) = failure {
                return Ok(End::Failed(error));
            }
            if interrupted {
                questions.sort_by(|a: &Interrupt, b| a.id.cmp(&b.id));
                return Ok(End::Interrupted(questions));
            }
            let stopped = execution.after_tick(&mut new_id, &mut effects)?;
            take(&mut self.told, &mut effects, held);
            if stopped {
                return Ok(End::Interrupted(Vec::new()));
            }
        }
    }
}

fn take(told: &mut Vec<String>, effects: &mut Vec<Effect>, held: &mut Vec<Entry>) {
    for effect in effects.drain(..) {
        match effect {
            Effect::Chunk(chunk) => told.push(format!("{chunk:?}")),
            Effect::Checkpoint(draft) => held.push(Entry::Checkpoint(draft)),
            Effect::Writes { checkpoint_id, record } => held.push(Entry::Writes(checkpoint_id, record)),
        }
    }
}

/// An id names one task, for ever; and the order of application leaves nothing open.
fn check_ids(known: &mut HashMap<Arc<str>, (CheckpointId, String)>, checkpoint_id: &str, jobs: &[Job]) {
    let mut keys = HashSet::new();
    for job in jobs {
        let place = (checkpoint_id.to_owned(), job.task.path.sort_key());
        assert!(keys.insert(place.1.clone()), "two tasks of a superstep sort the same: {}", place.1);
        let named = known.entry(Arc::clone(&job.task.id)).or_insert_with(|| place.clone());
        assert_eq!(*named, place, "one id for two tasks");
    }
}

fn options(answers_by_id: Fields, exact_answers: bool, exit: bool) -> Options {
    Options {
        thread_id: "thread".to_owned(),
        ns: String::new(),
        parents: BTreeMap::new(),
        extra: Fields::from([("run_id".to_owned(), Json::from("run"))]),
        task_metadata: Json::object(),
        recursion_limit: 12,
        interrupt_before: None,
        interrupt_after: None,
        strict_resume: StrictResume::Off,
        router_context: Arc::default(),
        resuming: None,
        addressed: false,
        answers_by_id,
        exact_answers,
        exit,
        has_storage: true,
        wanted: Wanted { values: true, updates: true, tasks: true, checkpoints: true, routers: false },
    }
}
