//! Taking a thread along when its graph has changed: the author's migrations, and what this build cannot go on with.
//!
//! A checkpoint remembers the version and the topology of the graph that wrote it. When it is loaded to run or to be
//! edited and the version is an older one with a migration, the migrations are applied in a row, in memory, and the result
//! becomes the next checkpoint. Its pending tasks keep the ids they had ([`Origin`]).

#![deny(missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::channel::ChannelKind;
use super::command::Packet;
use super::execution::Loaded;
use super::ids::{TaskIds, task_ns};
use super::record::TaskRecord;
use super::spec::{GraphSpec, NodeLayout, branch_to};
use super::{EngineError, py};
use crate::model::checkpoint::Versions;
use crate::model::{CheckpointId, Fields, Json, Origin, TaskPath, WrittenBy, special};

/// The version of graphs that say none, and of checkpoints from before versions were remembered.
pub const FIRST_VERSION: &str = "1";

/// An author's function that changes a stored state.
pub type ApplyMigration = Arc<dyn Fn(&mut Migration) -> Result<(), EngineError> + Send + Sync>;

/// An author's migration and the version it starts from.
#[derive(Clone)]
pub struct MigrationFrom {
    /// The version.
    pub from: String,
    /// What leads from it to the next one.
    pub apply: ApplyMigration,
}

impl fmt::Debug for MigrationFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MigrationFrom").field("from", &self.from).finish_non_exhaustive()
    }
}

/// What a migration is handed: the stored state of a thread, and what the thread waits for.
///
/// Values are those of the state's keys as they are stored, private keys included; writes that finished tasks of an
/// unfinished superstep have left follow [`rename`](Migration::rename) and [`rename_node`](Migration::rename_node), and
/// nothing else. A migration must be a pure function of what it is handed: it may be applied several times to one
/// checkpoint, until the result is stored.
///
/// ```
/// use session_store::graph::{END, START, StateGraph, Update};
/// # use schemars::JsonSchema;
/// # use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize, JsonSchema)]
/// struct Article {
///     topic: String,
///     words: u32,
/// }
///
/// let graph = StateGraph::<Article>::new("article")
///     .version("2")
///     // In version 1 the topic was called subject, the node was called draft, and nobody counted words.
///     .migrate("1", |old| {
///         old.rename("subject", "topic");
///         old.set("words", 0)?;
///         old.rename_node("draft", "write");
///         Ok(())
///     })
///     .node("write", async |article: Article, _ctx| Ok(Update::new().set("words", article.topic.len())))
///     .edge(START, "write")
///     .edge("write", END)
///     .build();
/// # graph.expect("builds");
/// ```
#[derive(Debug)]
pub struct Migration {
    from: String,
    to: String,
    values: Fields,
    changed: BTreeSet<String>,
    pending: Vec<String>,
    sends: Vec<Packet>,
    keys: Vec<(String, String)>,
    nodes: Vec<(String, String)>,
    removed: BTreeSet<String>,
}

impl Migration {
    /// The version the state was written by, or that an earlier migration led to.
    pub fn from(&self) -> &str {
        &self.from
    }

    /// The version this migration leads to.
    pub fn to(&self) -> &str {
        &self.to
    }

    /// The keys that have a value, in no particular order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Json> {
        self.values.get(key)
    }

    /// Sets the value of a key, as it is stored: for a list all of the list, for a sum the sum.
    ///
    /// # Errors
    /// The value cannot be encoded as JSON.
    pub fn set(&mut self, key: impl Into<String>, value: impl Serialize) -> Result<(), EngineError> {
        let key = key.into();
        let value = Json::of(&value).map_err(|error| {
            EngineError::new("TypeError", format!("the value of `{key}` cannot be encoded: {error}"))
        })?;
        self.changed.insert(key.clone());
        self.values.insert(key, value);
        Ok(())
    }

    /// Takes a key's value away and returns it.
    pub fn remove(&mut self, key: &str) -> Option<Json> {
        self.changed.insert(key.to_owned());
        self.values.shift_remove(key)
    }

    /// Moves a value to another key. Nothing happens if there is none.
    pub fn rename(&mut self, from: &str, to: impl Into<String>) {
        let to = to.into();
        self.keys.push((from.to_owned(), to.clone()));
        if let Some(value) = self.values.shift_remove(from) {
            self.changed.insert(from.to_owned());
            self.changed.insert(to.clone());
            self.values.insert(to, value);
        }
    }

    /// The state as a type: what the state type was in that version, or a part of it.
    ///
    /// # Errors
    /// The stored state does not fit the type.
    pub fn state<T: DeserializeOwned>(&self) -> Result<T, EngineError> {
        Json::from(&self.values).decode().map_err(|error| {
            EngineError::new("ValidationError", format!("the stored state does not fit the type: {error}"))
        })
    }

    /// Sets every field of a value; keys that are no fields of it stay as they are.
    ///
    /// # Errors
    /// It cannot be encoded as JSON, or is no object.
    pub fn set_all(&mut self, state: &impl Serialize) -> Result<(), EngineError> {
        let fields = Json::of(state).ok().and_then(|state| state.fields());
        let fields = fields.ok_or_else(|| EngineError::new("TypeError", "a state must be an object"))?;
        for (key, value) in fields {
            if self.values.get(&key) != Some(&value) {
                self.set(key, value)?;
            }
        }
        Ok(())
    }

    /// The nodes that are to run next, Sends included; empty for a thread at rest.
    pub fn pending(&self) -> &[String] {
        &self.pending
    }

    /// The node has another name now. If it is pending, the task keeps its id, its questions and their answers, its
    /// recorded writes, and the checkpoints of the graph inside it. (A graph with checkpoints of its own keeps them under
    /// the node's name: it begins anew with the call after the pending one.)
    pub fn rename_node(&mut self, from: &str, to: impl Into<String>) {
        let to = to.into();
        self.pending.iter_mut().filter(|node| *node == from).for_each(|node| node.clone_from(&to));
        self.sends.iter_mut().filter(|send| send.node == from).for_each(|send| send.node.clone_from(&to));
        self.nodes.push((from.to_owned(), to));
    }

    /// The node is gone, and so is what it was to do: it is not run if it is pending, and joins with it are forgotten. If
    /// nothing else is pending the thread is at rest.
    pub fn remove_node(&mut self, node: &str) {
        self.pending.retain(|pending| pending != node);
        self.removed.insert(node.to_owned());
    }

    /// Replaces the arguments of the pending Sends to a node.
    ///
    /// # Errors
    /// The first error of `change`.
    pub fn map_sends(
        &mut self,
        node: &str,
        mut change: impl FnMut(&Json) -> Result<Json, EngineError>,
    ) -> Result<(), EngineError> {
        for send in self.sends.iter_mut().filter(|send| send.node == node) {
            send.arg = change(&send.arg)?;
        }
        Ok(())
    }
}

/// What migrations did to a loaded checkpoint.
#[derive(Debug)]
pub(super) struct Migrated {
    /// The version that wrote it.
    pub(super) from: String,
    /// Keys whose stored content is no longer theirs.
    pub(super) changed: BTreeSet<String>,
    /// What nodes were called when the checkpoint was written, by their name now.
    nodes: BTreeMap<String, String>,
}

impl Migrated {
    /// Where the pending tasks were planned first; `before` if this is not the first migration they live through.
    pub(super) fn origin<'a>(
        &self,
        checkpoint_id: &CheckpointId,
        step: i64,
        before: Option<Origin>,
        records: impl Iterator<Item = &'a TaskRecord>,
    ) -> Origin {
        let (checkpoint_id, step, earlier, mut tasks) = match before {
            Some(origin) => (origin.checkpoint_id, origin.step, origin.nodes, origin.tasks),
            None => (checkpoint_id.clone(), step, BTreeMap::new(), BTreeMap::new()),
        };
        let mut nodes = self.nodes.clone();
        for name in nodes.values_mut() {
            if let Some(first) = earlier.get(name) {
                first.clone_into(name);
            }
        }
        for (now, first) in &earlier {
            if !self.nodes.values().any(|renamed| renamed == now) {
                nodes.entry(now.clone()).or_insert_with(|| first.clone());
            }
        }
        for record in records.filter(|record| *record.task_id != *special::NULL_TASK) {
            let path = match &record.path {
                TaskPath::Pull(node) => {
                    TaskPath::Pull(nodes.get(&**node).map_or_else(|| Arc::clone(node), |then| then.as_str().into()))
                }
                path => path.clone(),
            };
            tasks.insert(path.sort_key(), record.task_id.to_string());
        }
        Origin { checkpoint_id, step, nodes, tasks }
    }
}

/// Applies the migrations from the version that wrote the checkpoint to this build's, if there are any. On an error the
/// checkpoint must not be used further; nothing is stored.
pub(super) fn bring_up_to_date(spec: &GraphSpec, loaded: &mut Loaded) -> Result<Option<Migrated>, EngineError> {
    let written_by = loaded.checkpoint.written_by.clone();
    let is_current = |by: &WrittenBy| by.version == spec.version && by.topology == spec.topology;
    if written_by.as_ref().is_some_and(is_current) {
        return Ok(None);
    }
    let version = written_by.as_ref().map_or(FIRST_VERSION, |by| by.version.as_str()).to_owned();
    let first = spec.migrations.iter().position(|migration| migration.from == version);
    let steps = match first {
        Some(first) if version != spec.version => &spec.migrations[first..],
        _ => &[],
    };
    let mut all = Migrated { from: version, changed: BTreeSet::new(), nodes: BTreeMap::new() };
    for (index, step) in steps.iter().enumerate() {
        let to = steps.get(index + 1).map_or(&spec.version, |next| &next.from);
        migrate(step, to, loaded, &mut all).map_err(|error| {
            EngineError::new(
                "GraphVersionError",
                format!(
                    "the migration of graph '{}' from version {} to version {to} failed, and nothing was changed: {}: {}",
                    spec.name,
                    step.from,
                    error.class,
                    error.text()
                ),
            )
        })?;
    }
    fit_triggers(spec, written_by.as_ref(), &mut loaded.checkpoint.values);
    if steps.is_empty() {
        return Ok(None);
    }
    // Replaced values must not be taken for the stored ones of the same version.
    let next = loaded.checkpoint.versions.values().max().copied().unwrap_or(0) + 1;
    for key in all.changed.iter().filter(|key| loaded.checkpoint.values.contains_key(*key)) {
        loaded.checkpoint.versions.insert(key.clone(), next);
    }
    loaded.checkpoint.updated = None;
    Ok(Some(all))
}

fn migrate(step: &MigrationFrom, to: &str, loaded: &mut Loaded, all: &mut Migrated) -> Result<(), EngineError> {
    let checkpoint = &mut loaded.checkpoint;
    let (internal, values): (Fields, Fields) =
        std::mem::take(&mut checkpoint.values).into_iter().partition(|(key, _)| is_internal(key));
    let sends = internal.get(special::TASKS).and_then(Json::items).into_iter().flatten();
    let mut migration = Migration {
        from: step.from.clone(),
        to: to.to_owned(),
        values,
        changed: BTreeSet::new(),
        pending: loaded.next.clone(),
        sends: sends.filter_map(|send| Packet::from_json(&send)).collect(),
        keys: Vec::new(),
        nodes: Vec::new(),
        removed: BTreeSet::new(),
    };
    EngineError::guard(|| (step.apply)(&mut migration))?;
    let Migration { values, changed, pending, sends, keys, nodes, removed, .. } = migration;
    let nodes: BTreeMap<String, String> = composed(nodes);
    let keys: BTreeMap<String, String> = composed(keys);
    let rename = |channel: &str| keys.get(channel).cloned().unwrap_or_else(|| renamed_channel(channel, &nodes));

    checkpoint.values = values;
    for (channel, value) in internal.into_iter().filter(|(channel, _)| !is_of(channel, &removed)) {
        let value = match channel.as_str() {
            special::TASKS => sends.iter().map(Packet::to_json).collect(),
            _ if channel.starts_with("join:") => renamed_sources(&value, &nodes),
            _ => value,
        };
        checkpoint.values.insert(rename(&channel), value);
    }
    rename_keys(&mut checkpoint.versions, rename);
    let seen = std::mem::take(&mut checkpoint.versions_seen);
    for (node, mut versions) in seen {
        rename_keys(&mut versions, rename);
        checkpoint.versions_seen.insert(nodes.get(&node).cloned().unwrap_or(node), versions);
    }
    for record in &mut loaded.records {
        rename_record(record, &nodes, &removed, rename);
    }
    loaded.next = pending;
    all.changed = std::mem::take(&mut all.changed).into_iter().map(|key| rename(&key)).chain(changed).collect();
    let first_names = std::mem::take(&mut all.nodes);
    let later = |now: &String| nodes.get(now).unwrap_or(now).clone();
    all.nodes = first_names.iter().map(|(now, first)| (later(now), first.clone())).collect();
    for (before, now) in nodes.iter().filter(|(before, _)| !first_names.contains_key(*before)) {
        all.nodes.insert(now.clone(), before.clone());
    }
    Ok(())
}

/// Renames in a row, as one map.
fn composed(renames: Vec<(String, String)>) -> BTreeMap<String, String> {
    let mut map: BTreeMap<String, String> = BTreeMap::new();
    for (from, to) in renames {
        let mut is_new = true;
        for name in map.values_mut().filter(|name| **name == from) {
            name.clone_from(&to);
            is_new = false;
        }
        if is_new {
            map.insert(from, to);
        }
    }
    map
}

fn rename_keys(versions: &mut Versions, rename: impl Fn(&str) -> String) {
    *versions = std::mem::take(versions).into_iter().map(|(channel, version)| (rename(&channel), version)).collect();
}

fn rename_record(
    record: &mut TaskRecord,
    nodes: &BTreeMap<String, String>,
    removed: &BTreeSet<String>,
    rename: impl Fn(&str) -> String,
) {
    if let TaskPath::Pull(node) = &mut record.path
        && let Some(now) = nodes.get(&**node)
    {
        *node = now.as_str().into();
    }
    record.writes.retain(|(channel, _)| !is_of(channel, removed));
    for (channel, value) in &mut record.writes {
        if **channel == *special::TASKS
            && let Some(packet) = Packet::from_json(value)
            && let Some(now) = nodes.get(&packet.node)
        {
            *value = Packet { node: now.clone(), ..packet }.to_json();
        } else if channel.starts_with("join:")
            && let Some(now) = value.as_str().and_then(|node| nodes.get(node))
        {
            *value = Json::from(now.as_str());
        }
        *channel = rename(channel).into();
    }
}

/// The engine's own channels.
fn is_internal(channel: &str) -> bool {
    channel == special::START
        || channel == special::TASKS
        || channel.starts_with("branch:to:")
        || channel.starts_with("join:")
}

fn join_of(channel: &str) -> Option<(Vec<&str>, &str)> {
    let (sources, target) = channel.strip_prefix("join:")?.rsplit_once(':')?;
    Some((sources.split('+').collect(), target))
}

/// A trigger channel's name after nodes were renamed.
pub(super) fn renamed_channel(channel: &str, nodes: &BTreeMap<String, String>) -> String {
    let now = |node: &str| nodes.get(node).map_or_else(|| node.to_owned(), Clone::clone);
    if let Some(node) = channel.strip_prefix("branch:to:") {
        return branch_to(&now(node));
    }
    match join_of(channel) {
        Some((sources, target)) => {
            super::spec::join_channel(&sources.into_iter().map(now).collect::<Vec<_>>(), &now(target))
        }
        None => channel.to_owned(),
    }
}

/// A trigger channel of one of these nodes, or a join with one.
fn is_of(channel: &str, nodes: &BTreeSet<String>) -> bool {
    let is_one = |node: &str| nodes.contains(node);
    channel.strip_prefix("branch:to:").is_some_and(is_one)
        || join_of(channel).is_some_and(|(sources, target)| is_one(target) || sources.into_iter().any(is_one))
}

/// What a barrier holds, its nodes renamed: `[names..]`, or `[[names..], released]` of a deferred one.
fn renamed_sources(value: &Json, nodes: &BTreeMap<String, String>) -> Json {
    let renamed = |item: &Json| match item.as_str() {
        Some(node) => nodes.get(node).map_or_else(|| item.clone(), |now| Json::from(now.as_str())),
        None if item.is_array() => renamed_sources(item, nodes),
        None => item.clone(),
    };
    value.items().map_or_else(|| value.clone(), |items| items.iter().map(renamed).collect())
}

/// The id and namespace of a triggered node's task on a migrated checkpoint.
pub(super) fn pull_id(origin: &Origin, ids: &mut TaskIds, ns: &str, node: &NodeLayout) -> (Arc<str>, Arc<str>) {
    let then = origin.nodes.get(&*node.name).map_or(&*node.name, String::as_str);
    known(origin, ns, then, &TaskPath::Pull(then.into())).unwrap_or_else(|| {
        let mut triggers: Vec<String> =
            node.trigger_names.iter().map(|trigger| renamed_channel(trigger, &origin.nodes)).collect();
        triggers.sort();
        ids.pull(then, &format!("{then}{}{}", special::PULL, triggers.concat()))
    })
}

/// The id and namespace of a Send's task on a migrated checkpoint.
pub(super) fn push_id(origin: &Origin, ids: &mut TaskIds, ns: &str, node: &str, index: usize) -> (Arc<str>, Arc<str>) {
    let then = origin.nodes.get(node).map_or(node, String::as_str);
    known(origin, ns, then, &TaskPath::Push(index)).unwrap_or_else(|| ids.push(then, index))
}

/// The id and namespace of the task that handles a failed one on a migrated checkpoint.
pub(super) fn handler_id(
    origin: &Origin,
    ids: &mut TaskIds,
    ns: &str,
    handler: &str,
    path: &TaskPath,
    failed: &str,
) -> (Arc<str>, Arc<str>) {
    known(origin, ns, handler, path).unwrap_or_else(|| ids.handler(handler, failed))
}

fn known(origin: &Origin, ns: &str, node: &str, path: &TaskPath) -> Option<(Arc<str>, Arc<str>)> {
    let id = origin.tasks.get(&path.sort_key())?;
    Some((id.as_str().into(), task_ns(ns, node, id).into()))
}

/// Gives trigger channels that another build has stored the shape that this one's have: deferred ones also say whether
/// they were released.
pub(super) fn fit_triggers(spec: &GraphSpec, written_by: Option<&WrittenBy>, values: &mut Fields) {
    if written_by.is_some_and(|by| by.topology == spec.topology) {
        return;
    }
    for (channel, value) in values.iter_mut() {
        let pair = value.items().filter(|pair| pair.len() == 2 && matches!(pair[1].text().as_str(), "true" | "false"));
        match (spec.channels.get(channel), pair) {
            (Some(ChannelKind::AfterFinish), None) => {
                *value = [value.clone(), Json::from(true)].into_iter().collect();
            }
            (Some(ChannelKind::Ephemeral { .. }), Some(pair)) if channel.starts_with("branch:to:") => {
                *value = pair[0].clone();
            }
            (Some(ChannelKind::Barrier { deferred: true, .. }), None) => {
                *value = [value.clone(), Json::from(false)].into_iter().collect();
            }
            (Some(ChannelKind::Barrier { deferred: false, .. }), Some(pair)) => *value = pair[0].clone(),
            _ => {}
        }
    }
}

/// The nodes a checkpoint waits for that this build does not have.
pub fn gone(spec: &GraphSpec, loaded: &Loaded) -> Vec<String> {
    let mut gone: Vec<String> = Vec::new();
    for node in loaded.next.iter().filter(|node| spec.node(node).is_none()) {
        if !gone.contains(node) {
            gone.push(node.clone());
        }
    }
    gone
}

/// What this build does not have of what a checkpoint goes on with: nodes that are pending, or that finished siblings have
/// started; joins that nodes have reported to, which would never fire.
fn missing(spec: &GraphSpec, loaded: &Loaded) -> (Vec<String>, Vec<String>) {
    let has_reports =
        |value: &Json| value.items().is_some_and(|items| items.iter().any(|item| item.as_str().is_some()));
    let is_waiting =
        |value: &Json| has_reports(value) || value.items().is_some_and(|pair| pair.len() == 2 && has_reports(&pair[0]));
    let stored =
        loaded.checkpoint.values.iter().filter(|(_, value)| is_waiting(value)).map(|(channel, _)| channel.as_str());
    let tasks = loaded.records.iter().filter(|record| *record.task_id != *special::NULL_TASK);
    let written = tasks.flat_map(|record| record.writes.iter().map(|(channel, _)| &**channel));
    let mut nodes = gone(spec, loaded);
    let mut joins = Vec::new();
    for channel in stored.chain(written).filter(|channel| !spec.channels.contains_key(*channel)) {
        if let Some(node) = channel.strip_prefix("branch:to:") {
            nodes.push(node.to_owned());
        } else if let Some((sources, target)) = join_of(channel) {
            joins.push(format!("{} -> {target}", sources.join("+")));
        }
    }
    let mut seen = BTreeSet::new();
    nodes.retain(|node| seen.insert(node.clone()));
    joins.retain(|join| seen.insert(join.clone()));
    (nodes, joins)
}

/// Brings a checkpoint up to date for looking at it, without storing anything.
///
/// # Errors
/// A migration failed, or the checkpoint waits for something that this build does not have: the words that a run would
/// fail with.
pub fn try_to_go_on(spec: &GraphSpec, loaded: &mut Loaded) -> Result<(), EngineError> {
    if let Some(migrated) = bring_up_to_date(spec, loaded)? {
        let (at, before) = (&loaded.checkpoint.id, loaded.checkpoint.origin.take());
        let origin = migrated.origin(at, loaded.metadata.step + 1, before, loaded.records.iter());
        loaded.checkpoint.origin = Some(origin);
    }
    check_pending(spec, loaded)
}

/// Refuses to go on from a checkpoint that waits for nodes or joins this build does not have.
pub(super) fn check_pending(spec: &GraphSpec, loaded: &Loaded) -> Result<(), EngineError> {
    let written_by = loaded.checkpoint.written_by.as_ref();
    if written_by.is_some_and(|by| by.topology == spec.topology) {
        return Ok(());
    }
    let (nodes, joins) = missing(spec, loaded);
    if nodes.is_empty() && joins.is_empty() {
        return Ok(());
    }
    let quoted = |names: &[String]| names.iter().map(|name| py::repr_str(name)).collect::<Vec<_>>().join(", ");
    let waits_for = match (nodes.is_empty(), joins.is_empty()) {
        (false, true) => format!("node {}", quoted(&nodes)),
        (true, _) => format!("join {}", quoted(&joins)),
        (false, false) => format!("node {} and join {}", quoted(&nodes), quoted(&joins)),
    };
    let (version, topology) = match written_by {
        Some(by) => (by.version.as_str(), by.topology.as_str()),
        None => (FIRST_VERSION, "unknown"),
    };
    Err(EngineError::new(
        "GraphVersionError",
        format!(
            "the thread waits for {waits_for}, which graph '{name}' of this build (version {now}, topology {hash}) does \
             not have; its checkpoint {id} was written by version {version} (topology {topology}). Nothing was run. \
             Declare a migration from version {version} with StateGraph::migrate, or move the thread on with \
             update_state and as_node, or give it new input.",
            name = spec.name,
            now = spec.version,
            hash = spec.topology,
            id = loaded.checkpoint.id,
        ),
    ))
}
