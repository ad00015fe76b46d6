//! Checkpoint cursors as clients send them: `{thread_id?, checkpoint_ns?, checkpoint_id?, checkpoint_map?}`, the same
//! inside `{"configurable": ..}`, or a bare id.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::error::{ApiError, ApiResult};
use super::object::{Object, check_text};
use crate::model::{CheckpointRef, Json};

/// The most namespaces a cursor may name.
const MAX_NAMESPACES: usize = 100;

/// Takes a cursor from a body. `None` when the member is absent.
pub(crate) fn take(body: &mut Object, key: &str) -> ApiResult<Option<CheckpointRef>> {
    let Some(mut cursor) = body.nested(key)? else { return Ok(None) };
    if let Some(inner) = cursor.nested("configurable")? {
        cursor = inner;
    }
    let ns = cursor.string("checkpoint_ns")?.unwrap_or_default();
    let id = cursor.string("checkpoint_id")?.filter(|id| !id.is_empty()).map(|id| usual_spelling(&id));
    let map = map(&mut cursor)?;
    Ok(Some(CheckpointRef { ns, id, map }))
}

/// Like [`take`], and a text is the id of a checkpoint.
pub(crate) fn take_or_id(body: &mut Object, key: &str) -> ApiResult<Option<CheckpointRef>> {
    match body.json(key) {
        Some(value) if value.as_str().is_some() => {
            let id = value.as_str().unwrap_or_default();
            check_text(key, id)?;
            Ok(Some(CheckpointRef { id: Some(usual_spelling(id)), ..CheckpointRef::default() }))
        }
        Some(value) => {
            let mut again = Object::body(&Json::from_fields([(key, &value)]))?;
            take(&mut again, key)
        }
        None => Ok(None),
    }
}

fn map(cursor: &mut Object) -> ApiResult<BTreeMap<String, String>> {
    let Some(map) = cursor.object("checkpoint_map")? else { return Ok(BTreeMap::new()) };
    let fields = map.fields().unwrap_or_default();
    if fields.len() > MAX_NAMESPACES {
        return Err(ApiError::invalid(format!("checkpoint_map: at most {MAX_NAMESPACES} members")));
    }
    fields
        .into_iter()
        .map(|(ns, id)| match id.as_str() {
            Some(id) => {
                check_text("checkpoint_map", &ns)?;
                check_text("checkpoint_map", id)?;
                Ok((ns, usual_spelling(id)))
            }
            None => Err(ApiError::invalid("checkpoint_map: expected an object of strings")),
        })
        .collect()
}

/// UUIDs in their hyphenated lower-case form; other ids as they are.
fn usual_spelling(id: &str) -> String {
    Uuid::try_parse(id).map_or_else(|_| id.to_owned(), |id| id.hyphenated().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "1f1e0000-0000-6000-8000-000000000000";

    fn read(text: &str) -> ApiResult<Option<CheckpointRef>> {
        take_or_id(&mut Object::body(&Json::parse(text).expect("JSON")).expect("an object"), "before")
    }

    #[test]
    fn all_forms_name_the_same_checkpoint() {
        for text in [
            format!(r#"{{"before":"{ID}"}}"#),
            format!(r#"{{"before":"{}"}}"#, ID.to_uppercase()),
            format!(
                r#"{{"before":{{"thread_id":"t","checkpoint_ns":"","checkpoint_id":"{ID}","checkpoint_map":null}}}}"#
            ),
            format!(r#"{{"before":{{"configurable":{{"checkpoint_id":"{ID}"}}}}}}"#),
        ] {
            let at = read(&text).expect("valid").expect("present");
            assert_eq!((at.ns.as_str(), at.id.as_deref()), ("", Some(ID)), "{text}");
        }
    }

    #[test]
    fn only_a_thread_means_the_latest_and_wrong_types_are_refused() {
        let at = read(r#"{"before":{"thread_id":"t"}}"#).expect("valid").expect("present");
        assert_eq!(at, CheckpointRef::default());
        assert!(read(r#"{"before":null}"#).expect("valid").is_none());
        for bad in [r#"{"before":1}"#, r#"{"before":{"checkpoint_id":1}}"#, r#"{"before":{"checkpoint_map":{"a":1}}}"#]
        {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
