//! From checkpoints to rows and back: which values are stored inline, which once as payloads, and which as items of a
//! channel log (DESIGN section 6). Knows the layout of bodies; knows no SQL and no graph semantics.

use std::collections::{BTreeMap, HashMap, HashSet};

use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use imbl::Vector;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::engine::channel::Channel;
use crate::engine::execution::{COUNTERS, Draft, Loaded};
use crate::engine::record::TaskRecord;
use crate::model::checkpoint::{Checkpoint, Versions};
use crate::model::{
    CheckpointId, CheckpointMetadata, CheckpointSource, Fields, Json, Origin, RunId, Scope, TaskPath, ThreadKey,
    WrittenBy,
};
use crate::storage::{
    CheckpointFilter, CheckpointRow, LogRange, LogRow, Payload, PayloadHash, SharedStorage, Size, StepRows,
    StorageError, StoredCheckpoint, TaskWritesRow, Which,
};

#[cfg(test)]
mod tests;

/// Values up to this many bytes stand in the row itself.
const INLINE_BYTES: usize = 64;
/// A list scattered over more branches than this is written anew.
const MAX_SEGMENTS: usize = 16;
/// The layout of bodies written by this build.
const FORMAT: u32 = 1;

/// Where a value is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum ValueRef {
    #[serde(rename = "i")]
    Inline(Json),
    #[serde(rename = "p", with = "hash_text")]
    Payload(PayloadHash),
    /// Segments of branches: items up to `end` of each, beginning where the one before ended.
    #[serde(rename = "l")]
    Log(Vec<(i64, i64)>),
}

mod hash_text {
    use base64::Engine as _;
    use serde::de::Error as _;
    use serde::ser::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    use super::{BASE64, PayloadHash};

    pub(super) fn serialize<S: Serializer>(hash: &PayloadHash, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = [0; 22];
        let written = BASE64.encode_slice(hash, &mut text).map_err(S::Error::custom)?;
        serializer.serialize_str(std::str::from_utf8(&text[..written]).map_err(S::Error::custom)?)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PayloadHash, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = BASE64.decode(text).map_err(D::Error::custom)?;
        bytes.try_into().map_err(|_| D::Error::custom("a payload hash has 16 bytes"))
    }
}

#[derive(Deserialize)]
struct Body {
    v: u32,
    #[serde(rename = "t")]
    versions: Versions,
    #[serde(rename = "s")]
    seen: BTreeMap<String, Versions>,
    #[serde(rename = "u")]
    updated: Option<Vec<String>>,
    #[serde(rename = "c")]
    channels: BTreeMap<String, ValueRef>,
    #[serde(rename = "g", default, skip_serializing_if = "Option::is_none")]
    written_by: Option<WrittenBy>,
    #[serde(rename = "o", default, skip_serializing_if = "Option::is_none")]
    origin: Option<Origin>,
}

/// What the last stored checkpoint of a namespace refers to: the base of the next one's references.
#[derive(Debug, Clone, Default)]
pub struct Stored {
    channels: BTreeMap<String, StoredChannel>,
}

#[derive(Debug, Clone)]
struct StoredChannel {
    version: u64,
    reference: ValueRef,
    /// A list whose last branch was continued by another checkpoint: append to a new branch.
    is_frozen: bool,
}

impl Stored {
    /// Where its lists end: namespace, channel, branch and length.
    fn ends(&self, ns: &str) -> Vec<(String, String, i64, i64)> {
        let end = |(channel, stored): (&String, &StoredChannel)| match &stored.reference {
            ValueRef::Log(segments) => {
                segments.last().map(|(branch, end)| (ns.to_owned(), channel.clone(), *branch, *end))
            }
            _ => None,
        };
        self.channels.iter().filter_map(end).collect()
    }

    fn freeze(&mut self, channels: impl IntoIterator<Item = String>) {
        for channel in channels {
            if let Some(channel) = self.channels.get_mut(&channel) {
                channel.is_frozen = true;
            }
        }
    }

    /// Where a channel is stored that is a list in the channel log.
    pub(crate) fn log(&self, channel: &str) -> Option<&ValueRef> {
        let reference = &self.channels.get(channel)?.reference;
        matches!(reference, ValueRef::Log(_)).then_some(reference)
    }
}

/// Collects rows.
#[derive(Debug)]
pub struct Writer {
    pub(crate) rows: StepRows,
    run_id: Option<RunId>,
    known: HashSet<PayloadHash>,
}

impl Writer {
    pub fn new(run_id: Option<RunId>) -> Writer {
        Writer { rows: StepRows::default(), run_id, known: HashSet::new() }
    }

    /// Takes the rows collected so far.
    pub fn take(&mut self) -> StepRows {
        std::mem::take(&mut self.rows)
    }

    /// Refers to a payload that this run has stored already.
    pub(crate) fn known_payload(&self, text: &str) -> Option<ValueRef> {
        let hash = hash_of(text);
        self.known.contains(&hash).then_some(ValueRef::Payload(hash))
    }

    /// Stores valid JSON text as a payload.
    pub(crate) fn put_payload(&mut self, value: &Json) -> ValueRef {
        self.put_value(value, &mut 0)
    }

    fn put_value(&mut self, value: &Json, bytes: &mut i64) -> ValueRef {
        let text = value.as_raw().get();
        if text.len() <= INLINE_BYTES {
            return ValueRef::Inline(value.clone());
        }
        let hash = hash_of(text);
        if self.known.insert(hash) {
            *bytes += text.len() as i64;
            self.rows.payloads.push(Payload { hash, value: value.clone() });
        }
        ValueRef::Payload(hash)
    }

    /// Adds a checkpoint. `base` is what the last stored checkpoint of the namespace refers to, and becomes this one's.
    pub fn put_checkpoint(&mut self, draft: &Draft, base: &mut Stored) {
        let mut bytes = 0;
        let mut before = std::mem::take(&mut base.channels);
        for (channel, version) in draft.written() {
            let name = channel.name();
            let reference = match before.remove(name) {
                Some(kept) if kept.version == version => Some(kept),
                old => {
                    let (old, is_frozen) = old.map_or((None, false), |old| (Some(old.reference), old.is_frozen));
                    self.put_channel(draft, channel, version, old, is_frozen, &mut bytes)
                }
            };
            if let Some(reference) = reference {
                base.channels.insert(name.to_owned(), reference);
            }
        }
        let body = body_of(draft, base);
        let metadata = metadata_of(draft);
        bytes += (body.as_raw().get().len() + metadata.as_raw().get().len()) as i64;
        self.rows.checkpoints.push(CheckpointRow {
            ns: draft.ns.clone(),
            id: draft.id.clone(),
            parent: draft.parent.clone(),
            run_id: self.run_id,
            step: draft.step,
            source: draft.source,
            at: draft.at,
            metadata,
            next: draft.next.clone(),
            body,
            bytes,
        });
        if draft.ns.is_empty() {
            self.rows.head = Some(draft.id.clone());
        }
    }

    /// Refers to a channel's content, of which `old` refers to what it was; `None` when there is nothing to keep.
    fn put_channel(
        &mut self,
        draft: &Draft,
        channel: &Channel,
        version: u64,
        old: Option<ValueRef>,
        is_frozen: bool,
        bytes: &mut i64,
    ) -> Option<StoredChannel> {
        let stored = |reference| Some(StoredChannel { version, reference, is_frozen: false });
        let value = channel.persisted()?;
        let items = if channel.is_list() { value.items() } else { None };
        let Some(items) = items.filter(|items| !items.is_empty()) else { return stored(self.put_value(&value, bytes)) };
        let kept = channel.kept().min(items.len()) as i64;
        // Cut inside what the branch holds: its later items belong to other checkpoints, so the rest starts a branch.
        let was_cut = matches!(&old, Some(ValueRef::Log(s)) if s.last().is_some_and(|(_, end)| *end > kept));
        let mut segments = match old {
            Some(ValueRef::Log(segments)) if kept > 0 => truncated(&segments, kept),
            _ if is_short(&items) => return stored(ValueRef::Inline(value)),
            _ => Vec::new(),
        };
        if segments.len() >= MAX_SEGMENTS {
            segments.clear();
        }
        let start = segments.last().map_or(0, |(_, end)| *end);
        let end = items.len() as i64;
        let is_frozen = is_frozen || was_cut;
        if start == end {
            return Some(StoredChannel { version, reference: ValueRef::Log(segments), is_frozen });
        }
        match segments.last_mut() {
            Some(last) if !is_frozen => last.1 = end,
            _ => segments.push((branch_of(&draft.id, channel.name()), end)),
        }
        let branch = segments.last().map_or(0, |(branch, _)| *branch);
        let tail = Json::list(items.skip(start as usize));
        *bytes += tail.as_raw().get().len() as i64;
        self.rows.log.push(LogRow {
            ns: draft.ns.clone(),
            channel: channel.name().to_owned(),
            branch,
            start,
            count: end - start,
            run_id: self.run_id,
            items: tail,
        });
        stored(ValueRef::Log(segments))
    }

    /// Adds (or replaces) the writes of a task on a checkpoint.
    pub fn put_record(&mut self, ns: &str, checkpoint_id: &str, record: &TaskRecord) {
        let mut bytes = 0;
        let writes: Vec<(&str, ValueRef)> =
            record.writes.iter().map(|(channel, value)| (&**channel, self.put_value(value, &mut bytes))).collect();
        let row = TaskWritesRow {
            ns: ns.to_owned(),
            checkpoint_id: checkpoint_id.to_owned(),
            task_id: record.task_id.to_string(),
            run_id: self.run_id,
            path: record.path.sort_key(),
            body: Json::of(&writes).unwrap_or_default(),
        };
        let same = |other: &TaskWritesRow| {
            other.task_id == row.task_id && other.checkpoint_id == row.checkpoint_id && other.ns == row.ns
        };
        self.rows.task_writes.retain(|other| !same(other));
        self.rows.task_writes.push(row);
    }
}

fn hash_of(text: &str) -> PayloadHash {
    let mut hash = PayloadHash::default();
    hash.copy_from_slice(&blake3::hash(text.as_bytes()).as_bytes()[..16]);
    hash
}

/// The body of a checkpoint whose channels are stored as `stored` says.
fn body_of(draft: &Draft, stored: &Stored) -> Json {
    #[derive(Serialize)]
    struct Written<'a> {
        v: u32,
        t: Pairs<&'a str, u64>,
        s: Pairs<&'a str, Pairs<&'a str, u64>>,
        u: Option<Vec<&'a str>>,
        c: Pairs<&'a str, &'a ValueRef>,
        g: WrittenBy,
        #[serde(skip_serializing_if = "Option::is_none")]
        o: Option<&'a Origin>,
    }
    let mut seen: Vec<(&str, Pairs<&str, u64>)> = Vec::new();
    for (node, channel, version) in draft.progress.seen(&draft.spec) {
        match seen.last_mut() {
            Some((last, versions)) if *last == node => versions.0.push((channel, version)),
            _ => seen.push((node, Pairs(vec![(channel, version)]))),
        }
    }
    let body = Written {
        v: FORMAT,
        t: Pairs(draft.progress.versions(&draft.spec).collect()),
        s: Pairs(seen),
        u: draft.updated.as_ref().map(|updated| updated.names(&draft.spec)),
        c: Pairs(stored.channels.iter().map(|(name, stored)| (name.as_str(), &stored.reference)).collect()),
        g: draft.written_by(),
        o: draft.origin.as_ref(),
    };
    Json::of(&body).unwrap_or_default()
}

/// Written as an object.
struct Pairs<K, V>(Vec<(K, V)>);

impl<K: Serialize, V: Serialize> Serialize for Pairs<K, V> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

/// [`crate::engine::execution::metadata_json`] of a draft, without the copies.
fn metadata_of(draft: &Draft) -> Json {
    const OWN: [&str; 3] = ["source", "step", "parents"];
    let (source, step) = (Json::from(draft.source.as_str()), Json::from(draft.step));
    let parents = Json::of(&*draft.parents).unwrap_or_default();
    let extra = draft.extra.iter().map(|(key, value)| (key.as_str(), value));
    let counters = draft.counters.iter().map(|counters| (COUNTERS, counters));
    let rest = OWN.into_iter().zip([&source, &step, &parents]);
    Json::from_fields(extra.filter(|(key, _)| !OWN.contains(key) && *key != COUNTERS).chain(counters).chain(rest))
}

/// Whether a list stands in the row itself; of a long one only the beginning is looked at.
fn is_short(items: &Vector<Json>) -> bool {
    let mut bytes = 1 + items.len();
    items.iter().all(|item| {
        bytes += item.as_raw().get().len();
        bytes <= INLINE_BYTES
    })
}

fn branch_of(checkpoint_id: &str, channel: &str) -> i64 {
    xxh3_64(format!("{checkpoint_id}/{channel}").as_bytes()).cast_signed()
}

/// The segments that hold the first `kept` items.
fn truncated(segments: &[(i64, i64)], kept: i64) -> Vec<(i64, i64)> {
    let mut out = Vec::new();
    let mut start = 0;
    for (branch, end) in segments {
        if start >= kept {
            break;
        }
        out.push((*branch, (*end).min(kept)));
        start = *end;
    }
    out
}

fn corrupt(table: &'static str, column: &'static str, id: &str, reason: impl ToString) -> StorageError {
    StorageError::Corrupt { table, column, id: id.to_owned(), reason: reason.to_string() }
}

/// Which checkpoints to read.
enum Rows<'a> {
    One(&'a str, &'a Which),
    List(&'a CheckpointFilter, i64),
}

/// Reads checkpoints with everything they refer to.
pub(crate) struct Reader<'a> {
    pub(crate) storage: &'a SharedStorage,
    pub(crate) scope: &'a Scope,
    pub(crate) thread: ThreadKey,
}

impl Reader<'_> {
    /// Reads one checkpoint; `None` when there is none.
    pub(crate) async fn load(&self, ns: &str, which: &Which) -> Result<Option<(Loaded, Stored)>, StorageError> {
        Ok(self.read(&Rows::One(ns, which)).await?.pop())
    }

    /// Reads a list of checkpoints.
    pub(crate) async fn list(
        &self,
        filter: &CheckpointFilter,
        limit: i64,
    ) -> Result<Vec<(Loaded, Stored)>, StorageError> {
        self.read(&Rows::List(filter, limit)).await
    }

    /// Resolves a head that was read with others. When something it refers to is missing it is read again: its thread may
    /// have been pruned or deleted between the reads.
    pub(crate) async fn head(&self, row: StoredCheckpoint) -> Result<Option<Loaded>, StorageError> {
        let found = match self.resolve(vec![row]).await {
            Err(StorageError::Corrupt { .. }) => self.load("", &Which::Latest).await?,
            resolved => resolved?.pop(),
        };
        Ok(found.map(|(loaded, _)| loaded))
    }

    /// Reads rows and what they refer to. When something they refer to is missing, the rows are read again: it is damage
    /// only if they are still there, since a thread may be pruned between the reads.
    async fn read(&self, what: &Rows<'_>) -> Result<Vec<(Loaded, Stored)>, StorageError> {
        let mut found = self.rows(what).await?;
        loop {
            let ids: Vec<CheckpointId> = found.iter().map(|stored| stored.row.id.clone()).collect();
            match self.resolve(found).await {
                Err(error @ StorageError::Corrupt { .. }) => {
                    found = self.rows(what).await?;
                    if found.iter().map(|stored| &stored.row.id).eq(&ids) {
                        return Err(error);
                    }
                }
                resolved => return resolved,
            }
        }
    }

    async fn rows(&self, what: &Rows<'_>) -> Result<Vec<StoredCheckpoint>, StorageError> {
        match what {
            Rows::One(ns, which) => {
                Ok(self.storage.load_checkpoint(self.scope, self.thread, ns, which).await?.into_iter().collect())
            }
            Rows::List(filter, limit) => self.storage.list_checkpoints(self.scope, self.thread, filter, *limit).await,
        }
    }

    /// Finds out which lists of a checkpoint must not be appended to in place, because another branch did.
    pub(crate) async fn freeze(&self, ns: &str, stored: &mut Stored) -> Result<(), StorageError> {
        let ends = stored.ends(ns);
        if !ends.is_empty() {
            let continued = self.storage.continued_branches(self.scope, self.thread, &ends).await?;
            stored.freeze(continued.into_iter().map(|(_, channel, _)| channel));
        }
        Ok(())
    }

    /// Resolves rows: two more reads at most, however many rows.
    async fn resolve(&self, rows: Vec<StoredCheckpoint>) -> Result<Vec<(Loaded, Stored)>, StorageError> {
        let mut wanted = Wanted::of(rows)?;
        let values = self.fetch(std::mem::take(&mut wanted.hashes), std::mem::take(&mut wanted.ranges)).await?;
        wanted.assemble(&values)
    }

    /// Reads values by their references: namespace, channel, where. Those that are gone, because a run was deleted or the
    /// thread pruned, are missing from the answer.
    pub(crate) async fn values(&self, wanted: &[(&str, &str, &ValueRef)]) -> Result<Found, StorageError> {
        let (mut hashes, mut ranges) = (HashSet::new(), Vec::new());
        for (ns, channel, reference) in wanted {
            collect(reference, ns, channel, &mut hashes, &mut ranges);
        }
        match self.fetch(hashes.clone(), ranges.clone()).await {
            Ok(values) => return Ok(Found(values)),
            Err(error) if is_missing(&error) => {}
            Err(error) => return Err(error),
        }
        let mut values = self.fetch(HashSet::new(), ranges).await?;
        for hash in hashes {
            match self.fetch(HashSet::from([hash]), Vec::new()).await {
                Ok(found) => values.payloads.extend(found.payloads),
                Err(error) if is_missing(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Found(values))
    }

    async fn fetch(&self, hashes: HashSet<PayloadHash>, mut ranges: Vec<LogRange>) -> Result<Values, StorageError> {
        let mut values = Values::default();
        if !hashes.is_empty() {
            let hashes: Vec<PayloadHash> = hashes.into_iter().collect();
            let payloads = self.storage.load_payloads(self.scope, self.thread, &hashes).await?;
            values.payloads = payloads.into_iter().map(|payload| (payload.hash, payload.value)).collect();
        }
        if !ranges.is_empty() {
            ranges.sort_by(|a, b| {
                (&a.ns, &a.channel, a.branch, a.start, a.end).cmp(&(&b.ns, &b.channel, b.branch, b.start, b.end))
            });
            ranges.dedup();
            for row in self.storage.load_log(self.scope, self.thread, &ranges).await? {
                values.add_log(row)?;
            }
        }
        Ok(values)
    }
}

/// A payload that is not there: no harm where it may have been deleted.
fn is_missing(error: &StorageError) -> bool {
    matches!(error, StorageError::Corrupt { table: "payloads", column: "hash", .. })
}

/// Rows that were read, and what they refer to.
struct Wanted {
    parsed: Vec<(CheckpointRow, Body, Vec<StoredRecord>)>,
    hashes: HashSet<PayloadHash>,
    ranges: Vec<LogRange>,
}

impl Wanted {
    fn of(rows: Vec<StoredCheckpoint>) -> Result<Wanted, StorageError> {
        let mut parsed = Vec::with_capacity(rows.len());
        let (mut hashes, mut ranges) = (HashSet::new(), Vec::new());
        for stored in rows {
            let row = stored.row;
            let body: Body = row.body.decode().map_err(|error| corrupt("checkpoints", "body", &row.id, error))?;
            if body.v != FORMAT {
                return Err(corrupt("checkpoints", "body", &row.id, format!("format {}", body.v)));
            }
            for (channel, reference) in &body.channels {
                collect(reference, &row.ns, channel, &mut hashes, &mut ranges);
            }
            let mut records = Vec::new();
            for writes in stored.writes {
                let refs: Vec<(String, ValueRef)> =
                    writes.body.decode().map_err(|error| corrupt("task_writes", "body", &writes.task_id, error))?;
                for (channel, reference) in &refs {
                    collect(reference, &row.ns, channel, &mut hashes, &mut ranges);
                }
                records.push((writes.task_id, writes.path, refs));
            }
            parsed.push((row, body, records));
        }
        Ok(Wanted { parsed, hashes, ranges })
    }

    fn assemble(self, values: &Values) -> Result<Vec<(Loaded, Stored)>, StorageError> {
        self.parsed.into_iter().map(|(row, body, records)| values.assemble(row, body, records)).collect()
    }
}

/// What stored checkpoints, and the writes on them, refer to.
#[derive(Debug, Default)]
pub(crate) struct References {
    /// With a channel that holds it.
    pub(crate) payloads: HashMap<PayloadHash, String>,
    /// Values that stand in the rows of checkpoints themselves, by channel.
    pub(crate) inline: BTreeMap<String, Size>,
    pub(crate) ranges: Vec<LogRange>,
    /// Namespace and id of the checkpoints that tasks were planned from before a migration.
    pub(crate) origins: Vec<(String, CheckpointId)>,
}

/// Reads references without what they refer to.
pub(crate) fn references(rows: &[StoredCheckpoint]) -> Result<References, StorageError> {
    let mut found = References::default();
    let (mut origins, mut inline) = (Vec::new(), BTreeMap::<String, Size>::new());
    let mut add = |reference: &ValueRef, ns: &str, channel: &str| {
        let mut hashes = HashSet::new();
        collect(reference, ns, channel, &mut hashes, &mut found.ranges);
        for hash in hashes {
            found.payloads.entry(hash).or_insert_with(|| channel.to_owned());
        }
    };
    for stored in rows {
        let row = &stored.row;
        let body: Body = row.body.decode().map_err(|error| corrupt("checkpoints", "body", &row.id, error))?;
        if body.v != FORMAT {
            return Err(corrupt("checkpoints", "body", &row.id, format!("format {}", body.v)));
        }
        origins.extend(body.origin.as_ref().map(|origin| (row.ns.clone(), origin.checkpoint_id.clone())));
        for (channel, reference) in &body.channels {
            add(reference, &row.ns, channel);
            if let ValueRef::Inline(value) = reference {
                let size = inline.entry(channel.clone()).or_default();
                *size = Size { count: size.count + 1, bytes: size.bytes + value.as_raw().get().len() as i64 };
            }
        }
        for writes in &stored.writes {
            let refs: Vec<(String, ValueRef)> =
                writes.body.decode().map_err(|error| corrupt("task_writes", "body", &writes.task_id, error))?;
            for (channel, reference) in &refs {
                add(reference, &row.ns, channel);
            }
        }
    }
    (found.origins, found.inline) = (origins, inline);
    Ok(found)
}

fn collect(
    reference: &ValueRef,
    ns: &str,
    channel: &str,
    hashes: &mut HashSet<PayloadHash>,
    ranges: &mut Vec<LogRange>,
) {
    match reference {
        ValueRef::Inline(_) => {}
        ValueRef::Payload(hash) => {
            hashes.insert(*hash);
        }
        ValueRef::Log(segments) => {
            let mut start = 0;
            for (branch, end) in segments {
                let (ns, channel) = (ns.to_owned(), channel.to_owned());
                ranges.push(LogRange { ns, channel, branch: *branch, start, end: *end });
                start = *end;
            }
        }
    }
}

/// The writes of one task as stored: its id, its path, and references by channel.
type StoredRecord = (String, String, Vec<(String, ValueRef)>);

/// Log rows of one branch, by the position they start at.
type BranchRows = BTreeMap<i64, Vector<Json>>;

/// Values that were read by [`Reader::values`].
pub(crate) struct Found(Values);

impl Found {
    pub(crate) fn get(&self, ns: &str, channel: &str, reference: &ValueRef) -> Option<Json> {
        self.0.value(reference, ns, channel, "").ok()
    }
}

#[derive(Default)]
struct Values {
    payloads: HashMap<PayloadHash, Json>,
    log: HashMap<(String, String, i64), BranchRows>,
}

impl Values {
    fn add_log(&mut self, row: LogRow) -> Result<(), StorageError> {
        let items = row.items.items().filter(|items| items.len() as i64 == row.count);
        let items =
            items.ok_or_else(|| corrupt("channel_log", "items", &row.channel, "not a list of the stated length"))?;
        self.log.entry((row.ns, row.channel, row.branch)).or_default().insert(row.start, items);
        Ok(())
    }

    fn assemble(
        &self,
        row: CheckpointRow,
        body: Body,
        records: Vec<StoredRecord>,
    ) -> Result<(Loaded, Stored), StorageError> {
        let mut values = Fields::new();
        for (channel, reference) in &body.channels {
            values.insert(channel.clone(), self.value(reference, &row.ns, channel, &row.id)?);
        }
        let metadata = read_metadata(&row)?;
        let records = records
            .into_iter()
            .map(|(task_id, path, refs)| {
                let path = TaskPath::parse(&path)
                    .ok_or_else(|| corrupt("task_writes", "path", &task_id, format!("unknown path {path:?}")))?;
                let mut record = TaskRecord::new(task_id.as_str(), path);
                for (channel, reference) in refs {
                    let value = self.value(&reference, &row.ns, &channel, &task_id)?;
                    record.writes.push((channel.into(), value));
                }
                Ok(record)
            })
            .collect::<Result<_, StorageError>>()?;
        let checkpoint = Checkpoint {
            id: row.id,
            at: row.at,
            values,
            versions: body.versions.clone(),
            versions_seen: body.seen,
            updated: body.updated,
            written_by: body.written_by,
            origin: body.origin,
        };
        let version_of = |channel: &String| body.versions.get(channel).copied().unwrap_or(0);
        let channels = body.channels.into_iter().map(|(name, reference)| {
            let version = version_of(&name);
            (name, StoredChannel { version, reference, is_frozen: false })
        });
        let stored = Stored { channels: channels.collect() };
        Ok((Loaded { checkpoint, metadata, parent: row.parent, records, is_head: true, next: row.next }, stored))
    }

    fn value(&self, reference: &ValueRef, ns: &str, channel: &str, id: &str) -> Result<Json, StorageError> {
        match reference {
            ValueRef::Inline(value) => Ok(value.clone()),
            ValueRef::Payload(hash) => {
                self.payloads.get(hash).cloned().ok_or_else(|| {
                    corrupt("payloads", "hash", id, format!("payload of channel '{channel}' is missing"))
                })
            }
            ValueRef::Log(segments) => {
                let mut list = Vector::new();
                for (branch, end) in segments {
                    let rows = self.log.get(&(ns.to_owned(), channel.to_owned(), *branch));
                    for (start, items) in rows.into_iter().flatten() {
                        let (have, end) = (list.len() as i64, *end);
                        if *start <= have && have < end {
                            let from = (have - start) as usize;
                            let upto = ((end - start) as usize).min(items.len());
                            if from < upto {
                                list.append(items.clone().slice(from..upto));
                            }
                        }
                    }
                    if list.len() as i64 != *end {
                        let reason = format!("{} of {end} items of channel '{channel}' found", list.len());
                        return Err(corrupt("channel_log", "items", id, reason));
                    }
                }
                Ok(Json::list(list))
            }
        }
    }
}

/// Which graph wrote a checkpoint; `None` if it was written before that was remembered.
pub(crate) fn written_by(row: &CheckpointRow) -> Result<Option<WrittenBy>, StorageError> {
    #[derive(Deserialize)]
    struct Part {
        #[serde(rename = "g", default)]
        written_by: Option<WrittenBy>,
    }
    let part: Part = row.body.decode().map_err(|error| corrupt("checkpoints", "body", &row.id, error))?;
    Ok(part.written_by)
}

/// Where the tasks pending on a checkpoint were planned first, if a migrated graph brought them along.
pub(crate) fn origin(row: &CheckpointRow) -> Result<Option<Origin>, StorageError> {
    #[derive(Deserialize)]
    struct Part {
        #[serde(rename = "o", default)]
        origin: Option<Origin>,
    }
    let part: Part = row.body.decode().map_err(|error| corrupt("checkpoints", "body", &row.id, error))?;
    Ok(part.origin)
}

fn read_metadata(row: &CheckpointRow) -> Result<CheckpointMetadata, StorageError> {
    let mut extra =
        row.metadata.fields().ok_or_else(|| corrupt("checkpoints", "metadata", &row.id, "not an object"))?;
    extra.shift_remove("source");
    extra.shift_remove("step");
    let parents = extra.shift_remove("parents").and_then(|parents| parents.decode().ok()).unwrap_or_default();
    let source: CheckpointSource = row.source;
    Ok(CheckpointMetadata { source, step: row.step, parents, extra })
}
