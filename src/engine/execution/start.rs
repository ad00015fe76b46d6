//! How an execution begins: from nothing, from the latest checkpoint, or from one the caller named (sections 1.4, 4, 5.3,
//! 6.3).

use std::collections::BTreeMap;
use std::sync::Arc;

use super::delta::Deltas;
use super::{Effect, Execution, Loaded, NewId, Options, Shown, StrictResume};
use crate::engine::command::{CommandUpdate, Destination};
use crate::engine::error::UNKNOWN_INTERRUPT;
use crate::engine::record::TaskRecord;
use crate::engine::spec::{GraphSpec, branch_to};
use crate::engine::step::{
    Progress, TaskWrite, TaskWrites, Updated, channels_from, is_control, prepare_next_tasks, start_of,
};
use crate::engine::{Command, EngineError, ids, migrate};
use crate::model::{CheckpointSource, Fields, Json, STEP_OF_NOTHING, special};

/// Stands for "no checkpoint yet" where an id is needed.
pub(super) const NOTHING: &str = "";

/// What a run is given.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// Continue.
    Null,
    Value(Json),
    Command(Command),
}

impl Execution {
    /// Prepares the first superstep. `effects` gets what must be stored and told before it.
    ///
    /// # Errors
    /// The input does not fit the thread: nothing was changed, `effects` must be dropped.
    pub fn start(
        spec: &Arc<GraphSpec>,
        loaded: Option<Loaded>,
        input: Input,
        options: Options,
        new_id: NewId<'_>,
        effects: &mut Vec<Effect>,
    ) -> Result<Execution, EngineError> {
        if options.recursion_limit < 1 {
            return Err(EngineError::value("recursion_limit must be at least 1"));
        }
        let goes_on = !matches!(input, Input::Value(_)) || options.resuming == Some(true);
        let (mut execution, is_head) = Execution::load(spec, loaded, options, goes_on, new_id)?;
        let is_fresh = execution.progress.is_empty();
        let resuming = !is_fresh && execution.options.resuming.unwrap_or(!matches!(input, Input::Value(_)));
        // A migration is nobody's edit: what was a branch before it is one still.
        let is_branch = execution.is_branch();
        execution.put_migrated(new_id, effects);
        let input = match input {
            Input::Command(command) if is_fresh => execution.command_on_nothing(command)?,
            Input::Command(command) => {
                execution.accept_command(command, is_head, new_id, effects)?;
                Input::Null
            }
            other => other,
        };
        // A graph inside is given its input also when it goes on without it.
        if execution.options.addressed && resuming && (input == Input::Null || execution.is_nested()) {
            execution.replay(is_branch && is_head, new_id, effects)?;
        }
        if !resuming {
            // What is recorded on the checkpoint is dropped.
            execution.note_branch();
        }
        execution.apply_null_writes()?;
        if resuming {
            execution.pass_breakpoints();
            execution.emit_values(effects);
        } else {
            match input {
                Input::Value(value) => execution.accept_input(value, new_id, effects)?,
                _ if execution.options.resuming == Some(true) => {}
                _ => return Err(EngineError::new("EmptyInputError", "Received no input for __start__")),
            }
        }
        execution.resuming = resuming;
        Ok(execution)
    }

    /// `goes_on`: what is pending will run, so this build must have it.
    pub(super) fn load(
        spec: &Arc<GraphSpec>,
        mut loaded: Option<Loaded>,
        options: Options,
        goes_on: bool,
        new_id: NewId<'_>,
    ) -> Result<(Execution, bool), EngineError> {
        let migrated = match &mut loaded {
            Some(loaded) => migrate::bring_up_to_date(spec, loaded)?,
            None => None,
        };
        if let Some(loaded) = loaded.as_ref().filter(|_| goes_on) {
            migrate::check_pending(spec, loaded)?;
        }
        let answers_by_id = options.answers_by_id.clone();
        let mut execution = Execution {
            spec: Arc::clone(spec),
            parents: Arc::new(options.parents.clone()),
            extra: Arc::new(options.extra.clone()),
            channels: Arc::new(channels_from(spec, &Fields::new())?),
            is_stored: false,
            progress: Arc::new(Progress::new(spec)),
            updated: None,
            checkpoint_id: NOTHING.to_owned(),
            parent: None,
            origin: None,
            migrated,
            last_values: None,
            shown: Shown::Nothing,
            shown_parents: Arc::default(),
            step: -1,
            stop: options.recursion_limit,
            records: BTreeMap::new(),
            tasks: Vec::new(),
            answers_by_id,
            answers_by_path: BTreeMap::new(),
            deltas: Deltas::default(),
            is_editing: false,
            is_replaying: false,
            is_copying: false,
            interrupted: false,
            resuming: false,
            routed: Vec::new(),
            options,
        };
        execution.load_deltas(loaded.as_ref().map(|loaded| &loaded.metadata), new_id);
        let Some(loaded) = loaded else { return Ok((execution, true)) };
        execution.channels = Arc::new(channels_from(spec, &loaded.checkpoint.values)?);
        execution.progress = Arc::new(Progress::of(spec, &loaded.checkpoint));
        execution.updated = loaded.checkpoint.updated.map(|names| Arc::new(Updated::load(spec, &names)));
        execution.checkpoint_id = loaded.checkpoint.id;
        execution.origin = loaded.checkpoint.origin;
        execution.parent = loaded.parent;
        execution.step = loaded.metadata.step + 1;
        execution.stop = execution.step + execution.options.recursion_limit + 1;
        execution.records =
            loaded.records.into_iter().map(|record| (Arc::clone(&record.task_id), Arc::new(record))).collect();
        execution.shown_parents = Arc::new(loaded.metadata.parents.clone());
        execution.shown = Shown::Loaded(loaded.metadata);
        Ok((execution, loaded.is_head))
    }

    /// A Command on a thread without checkpoints: its update is the input, its destinations start beside the entry
    /// nodes, and an answer has no question to go to. (The reference applies the update twice.)
    fn command_on_nothing(&mut self, command: Command) -> Result<Input, EngineError> {
        check_command(&command, &self.options)?;
        if let Some(resume) = &command.resume {
            self.check_strictly(resume_map(resume).as_ref(), &[], true)?;
        }
        let update = match command.update {
            Some(CommandUpdate::Fields(fields)) => Json::from(&fields),
            Some(CommandUpdate::Pairs(pairs)) => Json::from(&pairs.into_iter().collect::<Fields>()),
            Some(CommandUpdate::Other(value)) => {
                return Err(EngineError::invalid_update(format!("Expected dict, got {value}")));
            }
            None => Json::object(),
        };
        let mut null = TaskRecord::null();
        null.writes.extend(goto_writes(&command.goto));
        if !null.writes.is_empty() {
            self.records.insert(Arc::clone(&null.task_id), Arc::new(null));
        }
        Ok(Input::Value(update))
    }

    /// Turns a Command into writes of the null task on the loaded checkpoint.
    fn accept_command(
        &mut self,
        command: Command,
        is_head: bool,
        new_id: NewId<'_>,
        effects: &mut Vec<Effect>,
    ) -> Result<(), EngineError> {
        check_command(&command, &self.options)?;
        let by_id = command.resume.as_ref().and_then(resume_map);
        if let Some(resume) = &command.resume {
            self.check_resume(by_id.as_ref(), is_head)?;
            if self.options.addressed && !is_head && self.answers_answered(by_id.as_ref()) {
                self.branch_with_answers(resume, by_id, new_id, effects)?;
                return self.record_command(&command, None, effects);
            }
        }
        // An answer at the head is a plain resume; only null input at a named checkpoint is a replay.
        self.options.addressed = false;
        let plain = if by_id.is_some() { None } else { command.resume.clone() };
        self.answers_by_id.extend(by_id.unwrap_or_default());
        self.record_command(&command, plain, effects)
    }

    fn record_command(
        &mut self,
        command: &Command,
        plain: Option<Json>,
        effects: &mut Vec<Effect>,
    ) -> Result<(), EngineError> {
        let mut writes: Vec<TaskWrite> = goto_writes(&command.goto).collect();
        match &command.update {
            None => {}
            Some(CommandUpdate::Fields(fields)) => {
                writes.extend(fields.iter().map(|(key, value)| (key.as_str().into(), value.clone())));
            }
            Some(CommandUpdate::Pairs(pairs)) => {
                writes.extend(pairs.iter().map(|(key, value)| (key.as_str().into(), value.clone())));
            }
            Some(CommandUpdate::Other(value)) => {
                return Err(EngineError::invalid_update(format!("Expected dict, got {value}")));
            }
        }
        let replaces = self.null_resume().is_some();
        if writes.is_empty() && plain.is_none() && !replaces {
            return Ok(());
        }
        let mut null = self.records.remove(special::NULL_TASK).map_or_else(TaskRecord::null, Arc::unwrap_or_clone);
        // A plain answer that no question took is not for what a later Command starts; and answers by id replace one that
        // was refused.
        null.remove(special::RESUME);
        null.writes.extend(writes);
        if let Some(plain) = plain {
            null.writes.push((special::RESUME.into(), plain));
        }
        let null = Arc::new(null);
        effects.push(Effect::Writes { checkpoint_id: self.checkpoint_id.clone(), record: Arc::clone(&null) });
        self.records.insert(Arc::clone(&null.task_id), null);
        Ok(())
    }

    /// Questions of tasks that still have to run.
    fn pending_questions(&self) -> Vec<String> {
        self.records
            .values()
            .filter(|record| !record.is_finished())
            .flat_map(|record| record.interrupts())
            .map(|interrupt| interrupt.id)
            .collect()
    }

    fn check_resume(&self, by_id: Option<&Fields>, is_head: bool) -> Result<(), EngineError> {
        let pending = self.pending_questions();
        self.check_strictly(by_id, &pending, is_head)?;
        if by_id.is_none() && pending.len() > 1 {
            return Err(EngineError::new(
                "RuntimeError",
                "When there are multiple pending interrupts, you must specify the interrupt id when resuming. Docs: \
                 https://docs.langchain.com/oss/python/langgraph/interrupts#handling-multiple-interrupts.",
            ));
        }
        Ok(())
    }

    /// Strict resume: answers that no pending question waits for are refused.
    fn check_strictly(&self, by_id: Option<&Fields>, pending: &[String], is_head: bool) -> Result<(), EngineError> {
        let refuses_all = match self.options.strict_resume {
            StrictResume::Off => return Ok(()),
            _ if self.is_nested() => return Ok(()),
            StrictResume::Ids if self.options.addressed && !is_head => return Ok(()),
            strict => strict == StrictResume::All,
        };
        let unknown: Vec<&String> =
            by_id.into_iter().flat_map(Fields::keys).filter(|id| !pending.contains(id)).collect();
        let (reason, why) = match by_id {
            Some(map) if map.is_empty() => ("empty_map", "the map of answers is empty"),
            Some(_) if !unknown.is_empty() => ("not_pending", "no pending interrupt has these ids"),
            None if pending.len() > 1 => ("ambiguous", "several interrupts are pending: answer them by id"),
            None if pending.is_empty() && refuses_all => ("not_pending", "no interrupt is pending"),
            _ => return Ok(()),
        };
        let (ids, pending) = (Json::of(&unknown).unwrap_or_default(), Json::of(pending).unwrap_or_default());
        let message = format!("cannot resume ({reason}): {why}; interrupt_ids: {ids}; pending_ids: {pending}");
        Err(EngineError::new(UNKNOWN_INTERRUPT, message))
    }

    /// Whether the answers go to questions that have been answered before.
    fn answers_answered(&self, by_id: Option<&Fields>) -> bool {
        self.records.values().filter(|record| record.is_finished()).any(|record| match by_id {
            Some(map) => record.interrupts().iter().any(|interrupt| map.contains_key(&interrupt.id)),
            None => record.get(special::INTERRUPT).is_some() && self.pending_questions().is_empty(),
        })
    }

    /// An old, answered question gets another answer: a fork in which the tasks that had asked run again with it. (The
    /// reference ignores the new answer.)
    fn branch_with_answers(
        &mut self,
        resume: &Json,
        by_id: Option<Fields>,
        new_id: NewId<'_>,
        effects: &mut Vec<Effect>,
    ) -> Result<(), EngineError> {
        let mut carried: BTreeMap<String, Vec<Json>> = BTreeMap::new();
        for record in self.records.values() {
            for interrupt in record.interrupts() {
                let answer = match &by_id {
                    Some(map) => map.get(&interrupt.id).cloned(),
                    None => Some(resume.clone()),
                };
                if let Some(answer) = answer {
                    let mut answers = record.answers();
                    answers.pop();
                    answers.push(answer);
                    carried.insert(record.path.sort_key(), answers);
                }
            }
        }
        self.fork(new_id, effects)?;
        self.answers_by_path = carried;
        self.options.addressed = false;
        Ok(())
    }

    /// Null input at a checkpoint the caller named: everything from there runs again, on a branch of its own, unless the
    /// checkpoint is itself an edit or a fork that nothing followed (section 6.3).
    fn replay(&mut self, is_new_branch: bool, new_id: NewId<'_>, effects: &mut Vec<Effect>) -> Result<(), EngineError> {
        if is_new_branch {
            for record in self.records.values_mut() {
                Arc::make_mut(record).remove(special::RESUME);
            }
            self.is_replaying = true;
            return Ok(());
        }
        self.fork(new_id, effects)
    }

    /// Stands on an edit or a fork.
    fn is_branch(&self) -> bool {
        let source = match &self.shown {
            Shown::Loaded(metadata) => Some(metadata.source),
            Shown::Made { source, .. } => Some(*source),
            Shown::Nothing => None,
        };
        matches!(source, Some(CheckpointSource::Update | CheckpointSource::Fork))
    }

    fn fork(&mut self, new_id: NewId<'_>, effects: &mut Vec<Effect>) -> Result<(), EngineError> {
        if let Some(null) = self.records.get_mut(special::NULL_TASK) {
            Arc::make_mut(null).remove(special::RESUME);
        }
        self.apply_null_writes()?;
        self.pass_breakpoints();
        self.note_branch();
        self.records.clear();
        self.put_checkpoint(CheckpointSource::Fork, new_id, effects);
        Ok(())
    }

    /// Applies what a Command wrote; its answer is left for the questions.
    pub(super) fn apply_null_writes(&mut self) -> Result<(), EngineError> {
        let Some(null) = self.records.get(special::NULL_TASK) else { return Ok(()) };
        if null.writes.iter().all(|(channel, _)| is_control(channel)) {
            return Ok(());
        }
        let null = Arc::clone(null);
        let updated = self.apply(&[TaskWrites::from_outside(&null.writes)])?;
        if let Some(known) = &mut self.updated {
            Arc::make_mut(known).merge(&updated);
        }
        Ok(())
    }

    /// A new input: what was pending is dropped, the input becomes a checkpoint of its own.
    fn accept_input(&mut self, input: Json, new_id: NewId<'_>, effects: &mut Vec<Effect>) -> Result<(), EngineError> {
        let dropped = prepare_next_tasks(&self.spec, &self.channels, &self.progress, None, self.at());
        let mut tasks: Vec<TaskWrites<'_>> = dropped.iter().map(|task| TaskWrites::of(task, &[])).collect();
        let is_fresh = self.checkpoint_id == NOTHING;
        let writes = [(special::START.into(), input)];
        // On an empty thread nothing was pending: what a Command started there must not be dropped.
        if is_fresh {
            tasks.clear();
        }
        tasks.push(TaskWrites::from_outside(&writes));
        let mut updated = self.apply(&tasks)?;
        if is_fresh && let Some(null) = self.records.get(special::NULL_TASK) {
            updated.extend(null.writes.iter().filter_map(|(channel, _)| self.spec.channels.get_index_of(&**channel)));
        }
        self.updated = Some(Arc::new(updated));
        self.records.clear();
        self.put_checkpoint(CheckpointSource::Input, new_id, effects);
        Ok(())
    }
}

fn check_command(command: &Command, options: &Options) -> Result<(), EngineError> {
    if command.parent {
        return Err(EngineError::invalid_update("There is no parent graph"));
    }
    if command.is_empty() {
        return Err(EngineError::new("EmptyInputError", "Received empty Command input"));
    }
    if command.resume.is_some() && !options.has_storage {
        return Err(EngineError::new("RuntimeError", "Cannot use Command(resume=...) without checkpointer"));
    }
    Ok(())
}

/// The map form of an answer: an object whose keys are all interrupt ids; `{}` counts.
fn resume_map(resume: &Json) -> Option<Fields> {
    resume.fields().filter(|fields| fields.keys().all(|key| ids::is_interrupt_id(key)))
}

fn goto_writes(goto: &[Destination]) -> impl Iterator<Item = TaskWrite> {
    goto.iter().map(|destination| match destination {
        Destination::Node(name) => (branch_to(name).into(), Json::from(special::START)),
        send @ Destination::Send(_) => start_of(send),
    })
}

/// The stored metadata as clients see it.
pub fn metadata_json(metadata: &crate::model::CheckpointMetadata) -> Json {
    let mut fields = metadata.extra.clone();
    if metadata.step == STEP_OF_NOTHING {
        fields.insert("step".to_owned(), Json::from(metadata.step));
        return Json::from(&fields);
    }
    fields.insert("source".to_owned(), Json::from(metadata.source.as_str()));
    fields.insert("step".to_owned(), Json::from(metadata.step));
    fields.insert("parents".to_owned(), Json::of(&metadata.parents).unwrap_or_default());
    Json::from(&fields)
}
