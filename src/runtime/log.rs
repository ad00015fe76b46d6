//! Events by reference (DESIGN section 6): what an event tells that is stored anyway, as a payload or in a channel log, is
//! cut out of it before it is stored, and put back when it is read. Byte for byte: a replay is what was sent live.
//!
//! A stored event that refers to something has a name that begins with `&`, and as data `{"d": template, "r": [..]}`:
//! the template has `0` in place of each value, and the references say where and what. Events that hold only small
//! values are stored as they are.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;

use super::persist::{Reader, Stored, ValueRef, Writer};
use crate::engine::execution::Draft;
use crate::model::event::RESUME_GAP;
use crate::model::{EventId, Json, RunId, Scope, ThreadKey};
use crate::storage::{SharedStorage, StorageError, StoredEvent};

/// Shorter values stay where they are: a reference is hardly shorter.
const MIN_BYTES: usize = 96;
/// Values that nothing else stores become payloads from this size on, so that telling them twice stores them once.
const MIN_PAYLOAD_BYTES: usize = 1024;
/// How deep events are looked into: `payload.values.<channel>` of a debug event.
const MAX_DEPTH: usize = 4;
/// Begins the names of events stored by reference.
const MARK: char = '&';

/// One value that was cut out: where in the template, whose graph's channel, and where it is stored.
#[derive(Debug, Serialize, Deserialize)]
struct Cut {
    at: usize,
    ns: String,
    channel: String,
    value: ValueRef,
}

/// The stored form of an event's data.
#[derive(Serialize, Deserialize)]
struct Template {
    #[serde(rename = "d")]
    data: Json,
    #[serde(rename = "r")]
    cuts: Vec<Cut>,
}

/// The lists of one graph as its last checkpoint stored them.
#[derive(Debug, Default, Clone)]
pub(crate) struct Known(BTreeMap<String, (Json, ValueRef)>);

impl Known {
    /// After the checkpoint was put, which `stored` refers to.
    pub(crate) fn of(draft: &Draft, stored: &Stored) -> Known {
        let lists = draft.written().filter_map(|(channel, _)| {
            let reference = stored.log(channel.name())?;
            Some((channel.name().to_owned(), (channel.persisted()?, reference.clone())))
        });
        Known(lists.collect())
    }

    /// Where the channel is stored, if it holds exactly this text.
    fn reference(&self, channel: &str, text: &str) -> Option<&ValueRef> {
        let (value, reference) = self.0.get(channel)?;
        (value.as_raw().get() == text).then_some(reference)
    }
}

/// Cuts out of an event what is stored elsewhere. `None` when there is nothing to cut.
pub(crate) fn cut(
    writer: &mut Writer,
    known: Option<&Known>,
    ns: &str,
    name: &str,
    data: &Json,
) -> Option<(String, Json)> {
    let text = data.as_raw().get();
    if text.len() < MIN_BYTES || !data.is_object() {
        return None;
    }
    let mut found = Vec::new();
    look(writer, known, text, text, 0, &mut found);
    if found.is_empty() {
        return None;
    }
    let mut template = String::new();
    let mut cuts = Vec::new();
    let mut copied = 0;
    for (start, end, channel, value) in found {
        template.push_str(&text[copied..start]);
        cuts.push(Cut { at: template.len(), ns: ns.to_owned(), channel, value });
        template.push('0');
        copied = end;
    }
    template.push_str(&text[copied..]);
    let template = Template { data: Json::trusted(template).ok()?, cuts };
    Some((format!("{MARK}{name}"), Json::of(&template).ok()?))
}

/// Finds values to cut in an object within `whole`, in order.
fn look(
    writer: &mut Writer,
    known: Option<&Known>,
    whole: &str,
    object: &str,
    depth: usize,
    found: &mut Vec<(usize, usize, String, ValueRef)>,
) {
    let Ok(members) = serde_json::from_str::<Members<'_>>(object) else { return };
    for (key, value) in members.0 {
        let text = value.get();
        if text.len() < MIN_BYTES {
            continue;
        }
        // The value is a piece of the whole text.
        let start = text.as_ptr() as usize - whole.as_ptr() as usize;
        let mut keep = |value: ValueRef| found.push((start, start + text.len(), key.to_string(), value));
        if let Some(reference) = known.and_then(|known| known.reference(&key, text)) {
            keep(reference.clone());
        } else if let Some(reference) = writer.known_payload(text) {
            keep(reference);
        } else if text.starts_with('{') && depth < MAX_DEPTH {
            look(writer, known, whole, text, depth + 1, found);
        } else if text.len() >= MIN_PAYLOAD_BYTES {
            keep(writer.put_payload(&Json::raw(value.to_owned())));
        }
    }
}

#[derive(Deserialize)]
struct Members<'a>(#[serde(borrow)] IndexMap<Cow<'a, str>, &'a RawValue>);

/// Puts back what was cut out of stored events. In place of events whose values are gone, because the thread was pruned or
/// the run that wrote them deleted, stands one that says so ([`RESUME_GAP`]).
pub(crate) async fn restore(
    storage: &SharedStorage,
    scope: &Scope,
    thread: ThreadKey,
    events: Vec<StoredEvent>,
) -> Result<Vec<StoredEvent>, StorageError> {
    if events.iter().all(|event| !event.name.starts_with(MARK)) {
        return Ok(events);
    }
    let mut templates: HashMap<i64, Template> = HashMap::new();
    for event in events.iter().filter(|event| event.name.starts_with(MARK)) {
        let template: Template = event.data.decode().map_err(|error| corrupt(event.id, error.0))?;
        templates.insert(event.id.0, template);
    }
    let reader = Reader { storage, scope, thread };
    let cuts = templates.values().flat_map(|template| &template.cuts);
    let wanted: Vec<_> = cuts.map(|cut| (cut.ns.as_str(), cut.channel.as_str(), &cut.value)).collect();
    let values = reader.values(&wanted).await?;
    let mut out: Vec<StoredEvent> = Vec::with_capacity(events.len());
    let mut gap: Option<Gap> = None;
    for mut event in events {
        let Some(template) = templates.remove(&event.id.0) else {
            gap = None;
            out.push(event);
            continue;
        };
        let found = template.cuts.iter().map(|cut| values.get(&cut.ns, &cut.channel, &cut.value));
        let Some(found) = found.collect::<Option<Vec<Json>>>() else {
            let next = Gap::after(gap.take(), &event);
            if next.events > 1 {
                out.pop();
            }
            out.push(next.told(event.id));
            gap = Some(next);
            continue;
        };
        gap = None;
        event.name.remove(0);
        event.data =
            fill(&template, &found).ok_or_else(|| corrupt(event.id, "the template does not fit".to_owned()))?;
        out.push(event);
    }
    Ok(out)
}

/// Events of one run that follow each other and cannot be told any more.
struct Gap {
    run_id: RunId,
    from: EventId,
    events: u64,
}

impl Gap {
    fn after(gap: Option<Gap>, lost: &StoredEvent) -> Gap {
        match gap {
            Some(gap) if gap.run_id == lost.run_id => Gap { events: gap.events + 1, ..gap },
            _ => Gap { run_id: lost.run_id, from: lost.id, events: 1 },
        }
    }

    /// The event that stands for them: resuming after it goes on behind the gap.
    fn told(&self, to: EventId) -> StoredEvent {
        let data = json!({
            "from": self.from.to_string(),
            "to": to.to_string(),
            "events": self.events,
            "reason": "what these events told is gone: the thread was pruned, or the run that wrote it was deleted",
        });
        StoredEvent { id: to, run_id: self.run_id, name: RESUME_GAP.to_owned(), data: Json::from(data) }
    }
}

fn corrupt(id: EventId, reason: String) -> StorageError {
    StorageError::Corrupt { table: "events", column: "data", id: id.to_string(), reason }
}

fn fill(template: &Template, values: &[Json]) -> Option<Json> {
    let text = template.data.as_raw().get();
    let mut out = String::with_capacity(text.len());
    let mut copied = 0;
    for (cut, value) in template.cuts.iter().zip(values) {
        out.push_str(text.get(copied..cut.at)?);
        value.write(&mut out);
        copied = cut.at + 1;
    }
    out.push_str(text.get(copied..)?);
    Json::trusted(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Json {
        Json::parse(text).expect("JSON")
    }

    #[test]
    fn what_is_cut_out_is_put_back_byte_for_byte() {
        let blob = format!("\"{}\"", "x".repeat(2000));
        let list = format!("[{}]", vec!["{\"a\" : 1}"; 50].join(","));
        let known = Known(BTreeMap::from([("list".to_owned(), (json(&list), ValueRef::Log(vec![(7, 50)])))]));
        let text = format!(r#"{{"n":1e2,"payload": {{"list":{list}, "blob" :{blob}}},"small":"y"}}"#);
        let mut writer = Writer::new(None);
        let (name, stored) = cut(&mut writer, Some(&known), "sub", "values|sub", &json(&text)).expect("cut");
        assert_eq!(name, "&values|sub");
        assert!(stored.text().len() < 300, "{stored}");
        let template: Template = stored.decode().expect("a template");
        assert_eq!(template.data.text(), r#"{"n":1e2,"payload": {"list":0, "blob" :0},"small":"y"}"#);
        assert_eq!(template.cuts[0].value, ValueRef::Log(vec![(7, 50)]));
        assert!(matches!(template.cuts[1].value, ValueRef::Payload(_)));
        assert_eq!(fill(&template, &[json(&list), json(&blob)]).expect("fits").text(), text);
        // The blob is a payload now, and stored once.
        let rows = writer.take();
        assert_eq!(rows.payloads.len(), 1);
        assert!(cut(&mut writer, Some(&known), "sub", "values", &json(&text)).is_some());
        assert!(writer.take().payloads.is_empty());
    }

    #[test]
    fn a_channel_that_holds_something_else_is_not_referred_to() {
        let list = format!("[{}]", vec!["1"; 100].join(","));
        let known = Known(BTreeMap::from([("list".to_owned(), (json("[2]"), ValueRef::Log(vec![(7, 1)])))]));
        let data = json(&format!(r#"{{"list":{list}}}"#));
        assert!(cut(&mut Writer::new(None), Some(&known), "", "values", &data).is_none());
        assert!(cut(&mut Writer::new(None), None, "", "values", &json("[1]")).is_none());
    }
}
