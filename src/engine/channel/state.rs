//! A channel at work: its value, and how each kind takes in the writes of a superstep.

use std::collections::BTreeSet;
use std::sync::Arc;

use imbl::Vector;

use super::{Change, ChannelKind, ReduceContext};
use crate::engine::EngineError;
use crate::engine::command::as_overwrite;
use crate::engine::spec::ChannelDef;
use crate::model::Json;

/// One write to a channel, with where it came from.
#[derive(Debug, Clone)]
pub struct Write<'a> {
    /// What is written.
    pub value: &'a Json,
    /// The task that writes it.
    pub task_id: &'a str,
    /// The position among the task's writes.
    pub index: usize,
}

/// A channel with its current content. Cheap to clone: values are shared.
#[derive(Debug, Clone)]
pub struct Channel {
    def: Arc<ChannelDef>,
    value: Option<Json>,
    /// Barriers: the names seen so far.
    seen: BTreeSet<String>,
    /// Deferred kinds: released by the end of a superstep.
    finished: bool,
    /// Lists: how many leading items are those of the last stored checkpoint.
    kept: usize,
}

impl Channel {
    /// An empty channel.
    pub fn new(def: &Arc<ChannelDef>) -> Channel {
        Channel { def: Arc::clone(def), value: None, seen: BTreeSet::new(), finished: false, kept: 0 }
    }

    /// A channel with the content a checkpoint holds ([`Channel::persisted`]); content of the wrong shape is refused.
    pub fn restore(def: &Arc<ChannelDef>, stored: Option<&Json>) -> Result<Channel, EngineError> {
        let mut channel = Channel::new(def);
        let Some(stored) = stored else { return Ok(channel) };
        let damaged = || EngineError::new("CorruptCheckpoint", format!("channel '{}' holds {stored}", def.name));
        match &def.kind {
            ChannelKind::AfterFinish => {
                let pair = stored.items().filter(|pair| pair.len() == 2).ok_or_else(damaged)?;
                channel.value = Some(pair[0].clone());
                channel.finished = pair[1].value() == true;
            }
            ChannelKind::Barrier { deferred, .. } => {
                let mut names = stored.clone();
                if *deferred {
                    let pair = stored.items().filter(|pair| pair.len() == 2).ok_or_else(damaged)?;
                    channel.finished = pair[1].value() == true;
                    names = pair[0].clone();
                }
                channel.seen = names.decode().map_err(|_| damaged())?;
            }
            ChannelKind::Reducer(_) | ChannelKind::DeltaAppend { .. } | ChannelKind::Topic { .. } => {
                // Held as a list from here on, so that appending shares what is there.
                channel.value = Some(match stored.items() {
                    Some(items) => {
                        channel.kept = items.len();
                        Json::list(items)
                    }
                    None => stored.clone(),
                });
            }
            _ => channel.value = Some(stored.clone()),
        }
        Ok(channel)
    }

    /// How it combines what is written to it.
    pub fn kind(&self) -> &ChannelKind {
        &self.def.kind
    }

    /// Its name: a key of the state, or one of the engine's own.
    pub fn name(&self) -> &str {
        &self.def.name
    }

    /// What readers see, if there is anything to see.
    pub fn get(&self) -> Option<Json> {
        match &self.def.kind {
            ChannelKind::Reducer(reducer) => self.value.clone().or_else(|| reducer.initial()),
            ChannelKind::DeltaAppend { .. } => Some(self.value.clone().unwrap_or_else(|| Json::list(Vector::new()))),
            ChannelKind::Topic { .. } => self.value.clone().filter(|list| list.items_len() > Some(0)),
            ChannelKind::AfterFinish => self.value.clone().filter(|_| self.finished),
            ChannelKind::Barrier { deferred, .. } => {
                (self.is_complete() && (self.finished || !deferred)).then(Json::null)
            }
            _ => self.value.clone(),
        }
    }

    /// Whether readers see anything, so that it can start nodes.
    pub fn is_available(&self) -> bool {
        match &self.def.kind {
            ChannelKind::Reducer(reducer) => self.value.is_some() || reducer.initial().is_some(),
            ChannelKind::DeltaAppend { .. } => true,
            ChannelKind::Topic { .. } => self.value.as_ref().is_some_and(|list| list.items_len() > Some(0)),
            ChannelKind::AfterFinish => self.value.is_some() && self.finished,
            ChannelKind::Barrier { deferred, .. } => self.is_complete() && (self.finished || !deferred),
            _ => self.value.is_some(),
        }
    }

    /// Turns the content into what views fold writes into that are not applied yet.
    pub fn preview(&mut self) {
        if let ChannelKind::Reducer(reducer) = &self.def.kind {
            self.value = self.value.take().map(|value| reducer.preview(value));
        }
    }

    /// Such a write, as views fold it in.
    pub fn preview_write(&self, value: &Json) -> Json {
        match &self.def.kind {
            ChannelKind::Reducer(reducer) => reducer.preview(value.clone()),
            _ => value.clone(),
        }
    }

    /// What a checkpoint keeps of it.
    pub fn persisted(&self) -> Option<Json> {
        let pair = |value: Json| [value, Json::from(self.finished)].into_iter().collect::<Json>();
        match &self.def.kind {
            ChannelKind::Untracked { .. } => None,
            ChannelKind::AfterFinish => self.value.clone().map(pair),
            ChannelKind::Barrier { deferred, .. } => {
                let names: Json = self.seen.iter().map(|name| Json::from(name.as_str())).collect();
                Some(if *deferred { pair(names) } else { names })
            }
            ChannelKind::Topic { .. } => Some(self.value.clone().unwrap_or_else(|| Json::list(Vector::new()))),
            ChannelKind::Reducer(_) | ChannelKind::DeltaAppend { .. } => self.get(),
            _ => self.value.clone(),
        }
    }

    /// For a list held by a reducer: how many leading items are those of the last stored checkpoint.
    pub fn kept(&self) -> usize {
        self.kept
    }

    /// Whether it is a list that reducers extend.
    pub fn is_list(&self) -> bool {
        matches!(
            self.def.kind,
            ChannelKind::Reducer(_) | ChannelKind::DeltaAppend { .. } | ChannelKind::Topic { accumulate: true }
        )
    }

    /// The content is stored now: from here on, what is appended is new.
    pub fn mark_stored(&mut self) {
        if self.is_list() {
            self.kept = self.value.as_ref().and_then(Json::items_len).unwrap_or(0);
        }
    }

    /// The content is not what any stored checkpoint holds.
    pub fn mark_replaced(&mut self) {
        self.kept = 0;
    }

    fn is_complete(&self) -> bool {
        matches!(&self.def.kind, ChannelKind::Barrier { names, .. } if names.iter().all(|name| self.seen.contains(name)))
    }

    /// Takes in the writes of a superstep, in order; none is a superstep that did not write it. True when it changed.
    pub fn update(&mut self, writes: &[Write<'_>]) -> Result<bool, EngineError> {
        let def = Arc::clone(&self.def);
        match &def.kind {
            ChannelKind::LastValue => match writes {
                [] => Ok(false),
                [write] => self.set(write.value),
                _ => Err(EngineError::invalid_update(format!(
                    "At key '{}': Can receive only one value per step. Use an Annotated key to handle multiple values.",
                    self.def.name
                ))),
            },
            ChannelKind::Any => self.set_or_clear(writes),
            ChannelKind::Ephemeral { guard } => {
                self.check_guard("EphemeralValue", *guard, writes)?;
                self.set_or_clear(writes)
            }
            ChannelKind::Untracked { guard } => {
                self.check_guard("UntrackedValue", *guard, writes)?;
                writes.last().map_or(Ok(false), |write| self.set(write.value))
            }
            ChannelKind::AfterFinish => match writes.last() {
                None => Ok(false),
                Some(write) => {
                    self.finished = false;
                    self.set(write.value)
                }
            },
            ChannelKind::Topic { accumulate } => Ok(self.update_topic(*accumulate, writes)),
            ChannelKind::Barrier { names, .. } => self.update_barrier(names, writes),
            ChannelKind::Reducer(reducer) => self
                .fold(writes, |current, write, context| EngineError::guard(|| reducer.reduce(current, write, context))),
            ChannelKind::DeltaAppend { .. } => {
                if self.value.is_none() && !writes.is_empty() {
                    self.value = Some(Json::list(Vector::new()));
                }
                self.fold(writes, |_, write, _| match write.items() {
                    Some(items) => Ok(Change::Append(items.into_iter().collect())),
                    None => Err(EngineError::new("TypeError", format!("expected a list of items, got {write}"))),
                })
            }
        }
    }

    fn set(&mut self, value: &Json) -> Result<bool, EngineError> {
        self.value = Some(value.clone());
        Ok(true)
    }

    fn set_or_clear(&mut self, writes: &[Write<'_>]) -> Result<bool, EngineError> {
        match writes.last() {
            Some(write) => self.set(write.value),
            None => Ok(self.value.take().is_some()),
        }
    }

    fn check_guard(&self, class: &str, guard: bool, writes: &[Write<'_>]) -> Result<(), EngineError> {
        if guard && writes.len() > 1 {
            return Err(EngineError::invalid_update(format!(
                "At key '{}': {class}(guard=True) can receive only one value per step. Use guard=False if you want to \
                 store any one of multiple values.",
                self.def.name
            )));
        }
        Ok(())
    }

    fn update_topic(&mut self, accumulate: bool, writes: &[Write<'_>]) -> bool {
        let mut list = self.value.take().and_then(|list| list.items()).unwrap_or_default();
        let had = !accumulate && !list.is_empty();
        if !accumulate {
            list = Vector::new();
        }
        for write in writes {
            match write.value.items() {
                Some(items) => list.append(items),
                None => list.push_back(write.value.clone()),
            }
        }
        self.value = Some(Json::list(list));
        had || !writes.is_empty()
    }

    fn update_barrier(&mut self, names: &[String], writes: &[Write<'_>]) -> Result<bool, EngineError> {
        let mut changed = false;
        for write in writes {
            let name = write.value.as_str().unwrap_or_default();
            if !names.iter().any(|known| known == name) {
                return Err(EngineError::invalid_update(format!(
                    "At key '{}': Value {} not in {names:?}",
                    self.def.name, write.value
                )));
            }
            changed |= self.seen.insert(name.to_owned());
        }
        Ok(changed)
    }

    /// Folds writes; one Overwrite among them replaces the content and discards all other writes (section 2.1).
    fn fold(
        &mut self,
        writes: &[Write<'_>],
        reduce: impl Fn(Option<&Json>, &Json, ReduceContext<'_>) -> Result<Change, EngineError>,
    ) -> Result<bool, EngineError> {
        if writes.is_empty() {
            return Ok(false);
        }
        let mut overwrites = writes.iter().filter_map(|write| as_overwrite(write.value));
        if let Some(value) = overwrites.next() {
            if overwrites.next().is_some() {
                return Err(EngineError::invalid_update("Can receive only one Overwrite value per super-step."));
            }
            self.apply(Change::Replace(value));
            return Ok(true);
        }
        for write in writes {
            let current = self.get();
            if current.is_none() {
                self.apply(Change::Replace(write.value.clone()));
                continue;
            }
            let context = ReduceContext { task_id: write.task_id, index: write.index };
            let change = reduce(current.as_ref(), write.value, context)?;
            self.apply(change);
        }
        Ok(true)
    }

    fn apply(&mut self, change: Change) {
        let current = || self.get().and_then(|value| value.items()).unwrap_or_default();
        self.value = Some(match change {
            Change::Append(items) => {
                let mut list = current();
                list.extend(items);
                Json::list(list)
            }
            Change::Edit { from, tail } => {
                let mut list = current();
                list.truncate(from.min(list.len()));
                self.kept = self.kept.min(list.len());
                list.extend(tail);
                Json::list(list)
            }
            Change::Replace(value) => match value.items() {
                // What a list begins with as before is stored already, whether or not its reducer says so.
                Some(new) => {
                    let mut list = current();
                    let same = |(old, new): &(&Json, &Json)| old.as_raw().get() == new.as_raw().get();
                    let same = list.iter().zip(&new).take_while(same).count();
                    list.truncate(same);
                    self.kept = self.kept.min(same);
                    list.append(new.skip(same));
                    Json::list(list)
                }
                None => {
                    self.kept = 0;
                    value
                }
            },
        });
    }

    /// Its node has read it. Barriers and deferred triggers reset; true when that changed anything.
    pub fn consume(&mut self) -> bool {
        match &self.def.kind {
            ChannelKind::AfterFinish if self.finished => {
                self.finished = false;
                self.value = None;
                true
            }
            ChannelKind::Barrier { deferred, .. } if self.is_complete() && (self.finished || !deferred) => {
                self.finished = false;
                self.seen.clear();
                true
            }
            _ => false,
        }
    }

    /// Nothing else is triggered: releases deferred triggers; true when that changed anything.
    pub fn finish(&mut self) -> bool {
        let ready = match &self.def.kind {
            ChannelKind::AfterFinish => self.value.is_some(),
            ChannelKind::Barrier { deferred: true, .. } => self.is_complete(),
            _ => false,
        };
        let changed = ready && !self.finished;
        self.finished |= ready;
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel(kind: ChannelKind) -> Channel {
        Channel::new(&Arc::new(ChannelDef::new("k", kind)))
    }

    fn write(channel: &mut Channel, values: &[Json]) -> Result<bool, EngineError> {
        let writes: Vec<Write<'_>> =
            values.iter().enumerate().map(|(index, value)| Write { value, task_id: "t", index }).collect();
        channel.update(&writes)
    }

    #[test]
    fn last_value_takes_one_write_and_keeps_it() {
        let mut channel = channel(ChannelKind::LastValue);
        assert!(write(&mut channel, &[Json::from(1)]).expect("one write"));
        assert!(!write(&mut channel, &[]).expect("no write"));
        assert_eq!(channel.get(), Some(Json::from(1)));
        let error = write(&mut channel, &[Json::from(1), Json::from(2)]).expect_err("two writes");
        assert!(error.message.starts_with("At key 'k': Can receive only one value per step."));
    }

    #[test]
    fn ephemeral_is_cleared_by_a_step_without_writes() {
        let mut channel = channel(ChannelKind::Ephemeral { guard: true });
        write(&mut channel, &[Json::null()]).expect("one write");
        assert!(channel.is_available());
        assert!(write(&mut channel, &[]).expect("cleared"));
        assert!(!channel.is_available());
        assert_eq!(channel.persisted(), None);
    }

    #[test]
    fn a_deferred_barrier_waits_for_all_and_for_the_end() {
        let kind = ChannelKind::Barrier { names: vec!["p".into(), "q".into()], deferred: true };
        let mut channel = channel(kind);
        write(&mut channel, &[Json::from("p")]).expect("known");
        assert!(!channel.finish());
        let mut channel = Channel::restore(&channel.def, channel.persisted().as_ref()).expect("restores");
        write(&mut channel, &[Json::from("q")]).expect("known");
        assert!(!channel.is_available());
        assert!(channel.finish());
        assert!(channel.is_available());
        assert!(channel.consume());
        assert!(!channel.is_available());
        assert!(write(&mut channel, &[Json::from("x")]).is_err());
    }

    #[test]
    fn topics_flatten_and_forget() {
        let mut channel = channel(ChannelKind::Topic { accumulate: false });
        write(&mut channel, &[Json::from("a"), Json::parse(r#"["b","c"]"#).expect("json")]).expect("ok");
        assert_eq!(channel.get().map(|v| v.text()), Some(r#"["a","b","c"]"#.to_owned()));
        assert!(write(&mut channel, &[]).expect("cleared"));
        assert_eq!(channel.get(), None);
        assert_eq!(channel.persisted().map(|v| v.text()), Some("[]".to_owned()));
    }

    #[test]
    fn an_appended_list_knows_what_is_stored_already() {
        let mut channel = channel(ChannelKind::DeltaAppend { snapshot_frequency: 100 });
        write(&mut channel, &[Json::parse("[1,2]").expect("json")]).expect("ok");
        assert_eq!(channel.kept(), 0);
        channel.mark_stored();
        write(&mut channel, &[Json::parse("[3]").expect("json")]).expect("ok");
        assert_eq!(channel.kept(), 2);
        let over = Json::parse(r#"{"__overwrite__":[9]}"#).expect("json");
        write(&mut channel, &[Json::parse("[4]").expect("json"), over]).expect("ok");
        assert_eq!((channel.kept(), channel.get().map(|v| v.text())), (0, Some("[9]".to_owned())));
    }
}
