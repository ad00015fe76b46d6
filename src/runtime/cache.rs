//! Outputs of nodes with a cache policy (engine specification, section 9): found by the node's place and input, shared by
//! all threads of a tenant, kept in the database for all replicas with a bounded copy of recent ones in the process.
//!
//! The database decides what has expired; the copy only shortens the way for a while. Whatever goes wrong here is an output
//! that is not found: the node runs.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::Duration;

use indexmap::IndexMap;
use tokio::sync::{Mutex as AsyncMutex, Notify};
use tokio::time::Instant;

use super::Runtime;
use super::shared::lock;
use crate::engine::command::{Command, CommandUpdate, Destination, Output, Packet};
use crate::engine::step::TaskInput;
use crate::graph::node::{CachePolicy, NodeInput};
use crate::model::{Fields, Json, Scope};
use crate::storage::{CacheKey, NewCacheEntry, StorageError};

/// Larger outputs are not kept: reading them might cost more than the node does.
const MAX_OUTPUT: usize = 1 << 20;
/// The copy in the process; the oldest entry goes first.
const ENTRIES: usize = 10_000;
const BYTES: usize = 64 << 20;
/// How long the copy is used without asking the database, which others write and clear.
const TRUSTED: Duration = Duration::from_secs(60);
/// Entries and bytes on their way to the database; what comes while there is no room is not stored.
const WAITING_ENTRIES: usize = 1_000;
const WAITING_BYTES: usize = 8 << 20;

/// Where a node is.
pub(crate) struct Place<'a> {
    pub(crate) scope: Scope,
    pub(crate) graph: &'a str,
    /// Of the root graph and of the graph the node is in.
    pub(crate) versions: [&'a str; 2],
    /// Names of nodes, the outermost first.
    pub(crate) path: &'a str,
}

impl Place<'_> {
    /// What an output of a node here is found by; `None` when the author's function fails.
    pub(crate) fn key(&self, input: &TaskInput, policy: &CachePolicy) -> Option<CacheKey> {
        let mut hasher = blake3::Hasher::new();
        let mut add = |part: &[u8]| {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        };
        add(self.scope.tenant().as_bytes());
        for part in [self.graph, self.versions[0], self.versions[1], self.path] {
            add(part.as_bytes());
        }
        match &policy.key_func {
            None => {
                add(b"input");
                add(input.to_json().as_raw().get().as_bytes());
            }
            Some(key_func) => {
                let input = match input {
                    TaskInput::State(fields) => NodeInput::State(fields.clone()),
                    TaskInput::Arg(arg) => NodeInput::Arg(arg.clone()),
                };
                let Ok(key) = catch_unwind(AssertUnwindSafe(|| key_func(&input))) else {
                    tracing::warn!(graph = self.graph, node = self.path, "the key function of a cache policy panicked");
                    return None;
                };
                add(b"key");
                add(key.as_bytes());
            }
        }
        Some(*hasher.finalize().as_bytes())
    }
}

/// The copy in the process, and what is on its way to the database.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    copies: Mutex<Copies>,
    waiting: Mutex<Waiting>,
    /// Something is waiting.
    grown: Notify,
    /// Held while entries are written.
    writing: AsyncMutex<()>,
}

#[derive(Debug, Default)]
struct Copies {
    by_key: IndexMap<CacheKey, Held>,
    bytes: usize,
}

#[derive(Debug)]
struct Held {
    output: Output,
    graph: String,
    bytes: usize,
    until: Option<Instant>,
}

#[derive(Debug, Default)]
struct Waiting {
    entries: Vec<(Scope, NewCacheEntry)>,
    bytes: usize,
}

impl Copies {
    fn get(&self, key: &CacheKey, now: Instant) -> Option<Output> {
        let copy = self.by_key.get(key).filter(|copy| copy.until.is_none_or(|until| now < until))?;
        Some(copy.output.clone())
    }

    fn put(&mut self, key: CacheKey, copy: Held) {
        self.bytes += copy.bytes;
        if let Some(old) = self.by_key.insert(key, copy) {
            self.bytes -= old.bytes;
        }
        while self.by_key.len() > ENTRIES || self.bytes > BYTES {
            let Some((_, oldest)) = self.by_key.shift_remove_index(0) else { break };
            self.bytes -= oldest.bytes;
        }
    }

    fn forget(&mut self, graph: &str) {
        self.by_key.retain(|_, copy| copy.graph != graph);
        self.bytes = self.by_key.values().map(|copy| copy.bytes).sum();
    }
}

/// When a copy is no longer used: never later than its entry, and after a while if others may have changed that.
fn until(now: Instant, time_left: Option<Duration>, is_stored: bool) -> Option<Instant> {
    let time_left = if is_stored { Some(time_left.map_or(TRUSTED, |left| left.min(TRUSTED))) } else { time_left };
    time_left.and_then(|left| now.checked_add(left))
}

impl Runtime {
    /// The outputs that are there. At most one read, for those of which there is no copy; none unless `is_stored`.
    pub(crate) async fn find_cached(
        &self,
        scope: &Scope,
        keys: Vec<CacheKey>,
        is_stored: bool,
    ) -> HashMap<CacheKey, Output> {
        let now = self.clock().instant();
        let mut found = HashMap::new();
        let mut missing = Vec::new();
        {
            let copies = lock(&self.inner.cache.copies);
            for key in keys {
                match copies.get(&key, now) {
                    Some(output) => {
                        found.insert(key, output);
                    }
                    None => missing.push(key),
                }
            }
        }
        if missing.is_empty() || !is_stored || self.inner.settings.cache_bytes == 0 {
            return found;
        }
        let entries = match self.storage().find_cached(scope, &missing).await {
            Ok(entries) => entries,
            Err(error) => {
                tracing::warn!(%error, "the cache of node outputs could not be read: nodes run");
                return found;
            }
        };
        let mut copies = lock(&self.inner.cache.copies);
        for entry in entries {
            let Some((graph, output)) = decode(&entry.output) else { continue };
            let bytes = entry.output.as_raw().get().len();
            let copy = Held { output: output.clone(), graph, bytes, until: until(now, entry.time_left, true) };
            copies.put(entry.key, copy);
            found.insert(entry.key, output);
        }
        found
    }

    /// Keeps an output: here at once, and in the database soon unless it must stay in the process.
    pub(crate) fn keep_cached(
        &self,
        scope: Scope,
        graph: &str,
        key: CacheKey,
        output: Output,
        ttl: Option<Duration>,
        is_stored: bool,
    ) {
        let text = encode(graph, &output);
        let bytes = text.as_raw().get().len();
        if bytes > MAX_OUTPUT {
            tracing::debug!(graph, bytes, "an output is too large for the cache");
            return;
        }
        let is_stored = is_stored && self.inner.settings.cache_bytes > 0;
        let until = until(self.clock().instant(), ttl, is_stored);
        lock(&self.inner.cache.copies).put(key, Held { output, graph: graph.to_owned(), bytes, until });
        if !is_stored {
            return;
        }
        let mut waiting = lock(&self.inner.cache.waiting);
        if waiting.entries.len() >= WAITING_ENTRIES || waiting.bytes + bytes > WAITING_BYTES {
            return;
        }
        waiting.bytes += bytes;
        let entry = NewCacheEntry { key, graph_id: graph.to_owned(), output: text, ttl };
        waiting.entries.push((scope, entry));
        drop(waiting);
        self.inner.cache.grown.notify_one();
    }

    /// Forgets the outputs of a graph's nodes. Other processes use their copies for up to a minute more. Dropped halfway,
    /// some are left.
    ///
    /// # Errors
    /// The database fails.
    pub async fn clear_cache(&self, scope: &Scope, graph: &str) -> Result<(), StorageError> {
        // What is on its way must not come after.
        self.write_cache().await;
        while self.storage().clear_cache(scope, graph).await? {}
        lock(&self.inner.cache.copies).forget(graph);
        Ok(())
    }

    /// Writes what is waiting, as it comes.
    pub(crate) async fn cache_loop(self) {
        loop {
            tokio::select! {
                () = self.inner.cache.grown.notified() => self.write_cache().await,
                () = self.inner.stopped.cancelled() => return,
            }
        }
    }

    /// Writes what is waiting; when this returns nothing that was waiting before is still under way. What cannot be written
    /// is dropped.
    pub(crate) async fn write_cache(&self) {
        let _writing = self.inner.cache.writing.lock().await;
        let mut waiting = std::mem::take(&mut *lock(&self.inner.cache.waiting)).entries;
        while let Some((scope, _)) = waiting.first() {
            let scope = *scope;
            let (own, others): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|(other, _)| *other == scope);
            waiting = others;
            let entries = own.into_iter().map(|(_, entry)| entry).collect();
            if let Err(error) = self.storage().put_cached(&scope, entries).await {
                tracing::warn!(%error, "outputs of nodes could not be kept in the database");
            }
        }
    }
}

/// An output with the graph it is of, as it is stored: `[graph, kind, content]`.
fn encode(graph: &str, output: &Output) -> Json {
    [Json::from(graph)].into_iter().chain(parts(output)).collect()
}

fn parts(output: &Output) -> [Json; 2] {
    let (kind, content) = match output {
        Output::Nothing => ("nothing", Json::default()),
        Output::Update(fields) => ("update", Json::from(fields)),
        Output::Command(command) => ("command", command_to_json(command)),
        Output::Many(outputs) => ("many", outputs.iter().map(|output| parts(output).into_iter().collect()).collect()),
        Output::Other(value) => ("other", value.clone()),
    };
    [Json::from(kind), content]
}

fn decode(json: &Json) -> Option<(String, Output)> {
    let items = json.items()?;
    let graph = items.get(0)?.as_str()?.to_owned();
    Some((graph, output_from(items.get(1)?, items.get(2)?)?))
}

fn output_from(kind: &Json, content: &Json) -> Option<Output> {
    Some(match kind.as_str()? {
        "nothing" => Output::Nothing,
        "update" => Output::Update(content.fields()?),
        "command" => Output::Command(command_from_json(content)?),
        "many" => {
            let one = |pair: &Json| {
                let pair = pair.items()?;
                output_from(pair.get(0)?, pair.get(1)?)
            };
            Output::Many(content.items()?.iter().map(one).collect::<Option<_>>()?)
        }
        "other" => Output::Other(content.clone()),
        _ => return None,
    })
}

/// Not what clients send: a pair list is told from other values, and an absent member from a null one.
fn command_to_json(command: &Command) -> Json {
    let mut fields = Fields::new();
    match &command.update {
        None => {}
        Some(CommandUpdate::Fields(update)) => {
            fields.insert("fields".into(), Json::from(update));
        }
        Some(CommandUpdate::Pairs(pairs)) => {
            let pair = |(key, value): &(String, Json)| [Json::from(key.as_str()), value.clone()].into_iter().collect();
            fields.insert("pairs".into(), pairs.iter().map(pair).collect());
        }
        Some(CommandUpdate::Other(value)) => {
            fields.insert("other".into(), value.clone());
        }
    }
    let goto = command.goto.iter().map(|destination| match destination {
        Destination::Node(node) => Json::from(node.as_str()),
        Destination::Send(packet) => packet.to_json(),
    });
    fields.insert("goto".into(), goto.collect());
    fields.insert("parent".into(), Json::from(command.parent));
    if let Some(resume) = &command.resume {
        fields.insert("resume".into(), resume.clone());
    }
    Json::from(&fields)
}

fn command_from_json(json: &Json) -> Option<Command> {
    let mut fields = json.fields()?;
    let update = if let Some(update) = fields.shift_remove("fields") {
        Some(CommandUpdate::Fields(update.fields()?))
    } else if let Some(pairs) = fields.shift_remove("pairs") {
        let pair = |pair: &Json| {
            let pair = pair.items()?;
            Some((pair.get(0)?.as_str()?.to_owned(), pair.get(1)?.clone()))
        };
        Some(CommandUpdate::Pairs(pairs.items()?.iter().map(pair).collect::<Option<_>>()?))
    } else {
        fields.shift_remove("other").map(CommandUpdate::Other)
    };
    let destination = |json: &Json| match json.as_str() {
        Some(node) => Some(Destination::Node(node.to_owned())),
        None => Packet::from_json(json).map(Destination::Send),
    };
    Some(Command {
        update,
        goto: fields.shift_remove("goto")?.items()?.iter().map(destination).collect::<Option<_>>()?,
        parent: fields.shift_remove("parent")? == Json::from(true),
        resume: fields.shift_remove("resume"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Json {
        Json::parse(text).expect("JSON")
    }

    #[test]
    fn every_output_comes_back() {
        let fields = json(r#"{"b":1e2,"a":[null,"x"]}"#).fields().expect("an object");
        let limited = Packet::new("m", json(r#"{"k":[1]}"#)).timeout(Duration::from_secs(2));
        let goto = vec![Destination::Node("n".into()), Destination::send("m", json("1")), limited.into()];
        let command = |update| Output::Command(Command { update, goto: goto.clone(), parent: true, resume: None });
        let outputs = [
            Output::Nothing,
            Output::Update(fields.clone()),
            Output::Other(json("7")),
            command(None),
            command(Some(CommandUpdate::Fields(fields.clone()))),
            command(Some(CommandUpdate::Pairs(vec![("k".into(), json("1")), ("k".into(), json("2"))]))),
            command(Some(CommandUpdate::Other(json("[3]")))),
            Output::Command(Command { resume: Some(Json::default()), ..Command::default() }),
            Output::Many(vec![Output::Nothing, Output::Many(vec![Output::Update(fields)])]),
        ];
        for output in outputs {
            let stored = Json::trusted(encode("g", &output).text()).expect("JSON");
            assert_eq!(decode(&stored), Some(("g".to_owned(), output)), "{stored:?}");
        }
        assert_eq!(decode(&json(r#"["g","later kind",1]"#)), None, "of a newer build: the node runs");
    }

    #[test]
    fn keys_differ_by_all_they_are_made_of() {
        let tenant = |n: u128| Scope::Tenant(uuid::Uuid::from_u128(n));
        let input = TaskInput::Arg(json("1"));
        let key = |scope, graph, versions, path| {
            Place { scope, graph, versions, path }.key(&input, &CachePolicy::default()).expect("a key")
        };
        let keys = [
            key(tenant(1), "g", ["1", "1"], "n"),
            key(tenant(2), "g", ["1", "1"], "n"),
            key(tenant(1), "h", ["1", "1"], "n"),
            key(tenant(1), "g", ["2", "1"], "n"),
            key(tenant(1), "g", ["1", "2"], "n"),
            key(tenant(1), "g", ["1", "1"], "m"),
        ];
        let distinct: std::collections::HashSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
        let place = Place { scope: tenant(1), graph: "g", versions: ["1", "1"], path: "n" };
        let by = |policy: CachePolicy, input: &str| place.key(&TaskInput::Arg(json(input)), &policy);
        assert_ne!(by(CachePolicy::default(), "1"), by(CachePolicy::default(), "2"));
        let same = || CachePolicy::default().key(|_| "1".to_owned());
        assert_eq!(by(same(), "1"), by(same(), "2"));
        assert_ne!(by(same(), "1"), by(CachePolicy::default(), "1"), "a key is no input");
        assert_eq!(by(CachePolicy::default().key(|_| panic!("author")), "1"), None);
    }

    #[test]
    fn the_copy_is_bounded_by_count_and_bytes() {
        let mut copies = Copies::default();
        let key = |n: usize| *blake3::hash(&n.to_le_bytes()).as_bytes();
        let copy = |bytes| Held { output: Output::Nothing, graph: "g".into(), bytes, until: None };
        for n in 0..ENTRIES + 5 {
            copies.put(key(n), copy(1));
        }
        assert_eq!((copies.by_key.len(), copies.bytes), (ENTRIES, ENTRIES));
        copies.put(key(ENTRIES), copy(3));
        assert_eq!(copies.bytes, ENTRIES + 2, "replaced, not added");
        copies.put(key(ENTRIES + 9), copy(BYTES));
        assert_eq!((copies.by_key.len(), copies.bytes), (1, BYTES));
        copies.forget("g");
        assert_eq!((copies.by_key.len(), copies.bytes), (0, 0));
    }
}
