//! The reducers that come with the engine: lists, sums, messages, and an author's own function.

mod sum;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use imbl::Vector;
use serde::Serialize;
use serde::de::DeserializeOwned;
use xxhash_rust::xxh3::xxh3_128;

use super::{Change, Reduce, ReduceContext};
use crate::engine::EngineError;
use crate::engine::message::{self, REMOVE_ALL};
use crate::model::Json;

/// Lists: each write is a list whose items are added at the end.
pub fn append() -> Append {
    Append
}

/// Numbers: each write is added to the sum.
pub fn add() -> Add {
    Add
}

/// Messages, kept apart by their ids: a known id replaces, a new one is added, a remove message removes.
pub fn messages() -> Messages {
    Messages
}

/// An author's function with a value to begin with.
pub fn fold<T, F>(initial: T, function: F) -> Fold<T, F>
where
    T: Serialize + DeserializeOwned + Send + Sync,
    F: Fn(T, T) -> T + Send + Sync,
{
    Fold { initial: Some(initial), function }
}

/// An author's function without a value to begin with: the first write is stored as it is.
pub fn combine<T, F>(function: F) -> Fold<T, F>
where
    T: Serialize + DeserializeOwned + Send + Sync,
    F: Fn(T, T) -> T + Send + Sync,
{
    Fold { initial: None, function }
}

/// See [`append`].
#[derive(Debug, Clone, Copy)]
pub struct Append;

impl Reduce for Append {
    fn name(&self) -> &'static str {
        "append"
    }

    fn initial(&self) -> Option<Json> {
        Some(Json::list(Vector::new()))
    }

    fn reduce(&self, current: Option<&Json>, write: &Json, _: ReduceContext<'_>) -> Result<Change, EngineError> {
        if let Some(current) = current.filter(|current| !current.is_array()) {
            let (left, right) = (type_name(current), type_name(write));
            return Err(type_error(format!("unsupported operand type(s) for +: '{left}' and '{right}'")));
        }
        match write.items() {
            Some(items) => Ok(Change::Append(items.into_iter().collect())),
            None => Err(type_error(format!("can only concatenate list (not \"{}\") to list", type_name(write)))),
        }
    }
}

/// See [`add`].
#[derive(Debug, Clone, Copy)]
pub struct Add;

impl Reduce for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn initial(&self) -> Option<Json> {
        Some(Json::from(0))
    }

    fn reduce(&self, current: Option<&Json>, write: &Json, _: ReduceContext<'_>) -> Result<Change, EngineError> {
        let zero = Json::from(0);
        sum::sum(current.unwrap_or(&zero), write).map(Change::Replace)
    }
}

/// See [`messages`].
#[derive(Debug, Clone, Copy)]
pub struct Messages;

impl Reduce for Messages {
    fn name(&self) -> &'static str {
        "messages"
    }

    fn initial(&self) -> Option<Json> {
        Some(Json::list(Vector::new()))
    }

    fn reduce(&self, current: Option<&Json>, write: &Json, context: ReduceContext<'_>) -> Result<Change, EngineError> {
        if write.is_null() {
            return Err(EngineError::value(
                "Must specify non-null arguments for both 'left' and 'right'. Only received: 'left'.",
            ));
        }
        let (left, recast) = kept(current, context)?;
        let mut right = message::coerce(write, |position| derived_id(context, "", position))?;
        // Ids derived from this write cannot be in the list yet, so that the list need not be looked through.
        let is_new = |(n, message): (usize, &Json)| message::message_id(message) == Some(&derived_id(context, "", n));
        if !recast && right.iter().enumerate().all(is_new) {
            return Ok(Change::Append(right));
        }
        let cleared = right.iter().rposition(|message| is_removal_of(message, REMOVE_ALL));
        let change = match cleared {
            // What came before the last marker is gone; what follows starts a list of its own.
            Some(marker) => {
                let tail = merge(Vector::new(), right.split_off(marker + 1))?;
                Change::Edit { from: 0, tail: tail.list.into_iter().collect() }
            }
            None => {
                let before = left.len();
                let merged = merge(left, right)?;
                let from = if recast { 0 } else { merged.unchanged };
                if from == before {
                    Change::Append(merged.list.skip(before).into_iter().collect())
                } else {
                    Change::Edit { from, tail: merged.list.skip(from).into_iter().collect() }
                }
            }
        };
        Ok(change)
    }

    fn identify(&self, write: &Json, context: ReduceContext<'_>) -> Option<Json> {
        message::identify(write, |position| derived_id(context, "", position))
    }

    fn preview(&self, value: Json) -> Json {
        match value.items() {
            Some(messages) => messages.iter().map(message::preview).collect(),
            None => message::preview(&value),
        }
    }
}

/// The current list, and whether it had to be brought to the complete form: after an Overwrite it holds whatever was
/// written. A list this reducer made is complete throughout, so its ends tell.
fn kept(current: Option<&Json>, context: ReduceContext<'_>) -> Result<(Vector<Json>, bool), EngineError> {
    let Some(current) = current.filter(|current| !current.is_null()) else { return Ok((Vector::new(), false)) };
    let complete =
        |item: Option<&Json>| item.is_none_or(|item| message::is_message(item) && message::message_id(item).is_some());
    match current.items() {
        Some(items) if complete(items.front()) && complete(items.back()) => Ok((items, false)),
        _ => Ok((message::coerce(current, |position| derived_id(context, "left", position))?.into(), true)),
    }
}

struct Merged {
    list: Vector<Json>,
    /// How many items at the front are the ones that were there before.
    unchanged: usize,
}

fn merge(mut list: Vector<Json>, right: Vec<Json>) -> Result<Merged, EngineError> {
    let mut unchanged = list.len();
    let mut places = places(&list, &right);
    // Removed, unless a later message of the same id takes the old place again.
    let mut removed: HashMap<String, usize> = HashMap::new();
    for message in right {
        let id = message::message_id(&message).unwrap_or_default().to_owned();
        match (places.get(&id).copied(), message::is_remove(&message)) {
            (Some(place), true) => {
                removed.insert(id, place);
            }
            (Some(place), false) => {
                removed.remove(&id);
                unchanged = unchanged.min(place);
                list.set(place, message);
            }
            (None, true) => {
                return Err(EngineError::value(format!(
                    "Attempting to delete a message with an ID that doesn't exist ('{id}')"
                )));
            }
            (None, false) => {
                places.insert(id, list.len());
                list.push_back(message);
            }
        }
    }
    // The reference removes every message of a removed id, also where the list holds it twice.
    if !removed.is_empty() {
        let first = list.iter().position(|message| is_one_of(message, &removed)).unwrap_or(list.len());
        unchanged = unchanged.min(first);
        list.retain(|message| !is_one_of(message, &removed));
    }
    Ok(Merged { unchanged: unchanged.min(list.len()), list })
}

/// Where the ids that `right` mentions stand in `list`; of a repeated id the last place counts.
fn places(list: &Vector<Json>, right: &[Json]) -> HashMap<String, usize> {
    let wanted: Vec<&str> = right.iter().filter_map(message::message_id).collect();
    let mut places = HashMap::new();
    for (place, message) in list.iter().enumerate() {
        if let Some(id) = message::scan_id(message).filter(|id| wanted.contains(&id.as_ref())) {
            places.insert(id.into_owned(), place);
        }
    }
    places
}

fn is_one_of(message: &Json, removed: &HashMap<String, usize>) -> bool {
    message::scan_id(message).is_some_and(|id| removed.contains_key(id.as_ref()))
}

fn is_removal_of(message: &Json, id: &str) -> bool {
    message::is_remove(message) && message::message_id(message) == Some(id)
}

/// Ids are derived, not drawn: a write that is applied again gives the same messages.
fn derived_id(context: ReduceContext<'_>, side: &str, position: usize) -> String {
    let seed = format!("{}|{}|{side}{position}", context.task_id, context.index);
    uuid::Uuid::from_u128(xxh3_128(seed.as_bytes())).to_string()
}

/// See [`fold`] and [`combine`].
pub struct Fold<T, F> {
    initial: Option<T>,
    function: F,
}

impl<T, F> fmt::Debug for Fold<T, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fold").finish_non_exhaustive()
    }
}

impl<T, F> Reduce for Fold<T, F>
where
    T: Serialize + DeserializeOwned + Send + Sync,
    F: Fn(T, T) -> T + Send + Sync,
{
    fn initial(&self) -> Option<Json> {
        self.initial.as_ref().and_then(|initial| Json::of(initial).ok())
    }

    fn reduce(&self, current: Option<&Json>, write: &Json, _: ReduceContext<'_>) -> Result<Change, EngineError> {
        let Some(current) = current else { return Ok(Change::Replace(write.clone())) };
        let decode = |json: &Json| json.decode::<T>().map_err(|error| type_error(error.0));
        let value = (self.function)(decode(current)?, decode(write)?);
        Json::of(&value).map(Change::Replace).map_err(|error| EngineError::value(error.0))
    }
}

/// A plain function of two values; the first write is stored as it is.
impl<F> Reduce for F
where
    F: Fn(Json, Json) -> Json + Send + Sync,
{
    fn initial(&self) -> Option<Json> {
        None
    }

    fn reduce(&self, current: Option<&Json>, write: &Json, _: ReduceContext<'_>) -> Result<Change, EngineError> {
        Ok(Change::Replace(match current {
            Some(current) => self(current.clone(), write.clone()),
            None => write.clone(),
        }))
    }
}

impl Reduce for Arc<dyn Reduce> {
    fn initial(&self) -> Option<Json> {
        self.as_ref().initial()
    }

    fn reduce(&self, current: Option<&Json>, write: &Json, context: ReduceContext<'_>) -> Result<Change, EngineError> {
        self.as_ref().reduce(current, write, context)
    }

    fn identify(&self, write: &Json, context: ReduceContext<'_>) -> Option<Json> {
        self.as_ref().identify(write, context)
    }

    fn preview(&self, value: Json) -> Json {
        self.as_ref().preview(value)
    }
}

fn type_error(message: String) -> EngineError {
    EngineError::new("TypeError", message)
}

/// Python's name of a value's type, as its error messages say it.
fn type_name(json: &Json) -> &'static str {
    match json.as_raw().get().as_bytes().first() {
        Some(b'n') | None => "NoneType",
        Some(b't' | b'f') => "bool",
        Some(b'"') => "str",
        Some(b'[') => "list",
        Some(b'{') => "dict",
        Some(_) if sum::is_integer(json) => "int",
        Some(_) => "float",
    }
}
