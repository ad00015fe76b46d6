//! Ids: how threads, runs, checkpoints and assistants are named, and the keys derived from the names.

#![deny(missing_docs)]

use std::fmt;

use serde::{Serialize, Serializer};
use uuid::Uuid;

/// A run's id: a UUID, version 7 when the server makes it.
pub type RunId = Uuid;

/// A checkpoint's id: UUID version 6 text when the server makes it, so that ids sort by age as strings. Ids from
/// importers and remote checkpointers are kept as they came.
pub type CheckpointId = String;

/// Why a string is not an id. The text names the rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct IdError(pub String);

/// The public name of a thread: 1-255 characters from `[A-Za-z0-9._:~@-]`. UUIDs are the common case.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ThreadId(String);

impl ThreadId {
    /// Checks the rule of DESIGN section 5. UUID spellings are folded to the hyphenated lower-case form.
    pub fn parse(text: &str) -> Result<ThreadId, IdError> {
        if let Ok(uuid) = Uuid::try_parse(text) {
            return Ok(ThreadId(uuid.hyphenated().to_string()));
        }
        let legal = |c: char| c.is_ascii_alphanumeric() || "._:~@-".contains(c);
        if text.is_empty() || text.len() > 255 || !text.chars().all(legal) {
            return Err(IdError(
                "Invalid thread ID: must be a UUID or a name of 1-255 characters from A-Z a-z 0-9 . _ : ~ @ -".into(),
            ));
        }
        Ok(ThreadId(text.to_owned()))
    }

    /// A thread named by a UUID the server made.
    pub fn from_uuid(uuid: Uuid) -> ThreadId {
        ThreadId(uuid.hyphenated().to_string())
    }

    /// True when the name is a UUID: then a run does not create the thread unless it asks to (`if_not_exists`).
    pub fn is_uuid(&self) -> bool {
        Uuid::try_parse(&self.0).is_ok()
    }

    /// The name as clients write it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The key all rows of the thread start with: uuid5(tenant, name).
    pub fn key(&self, tenant: Uuid) -> ThreadKey {
        ThreadKey(Uuid::new_v5(&tenant, self.0.as_bytes()))
    }
}

impl fmt::Display for ThreadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for ThreadId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// The 16-byte key of a thread inside the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ThreadKey(pub Uuid);

/// The id of the assistant that every graph has: uuid5 in the contract's namespace (section 1.1).
pub fn system_assistant_id(graph_id: &str) -> Uuid {
    const NAMESPACE: Uuid = Uuid::from_u128(0x6ba7b821_9dad_11d1_80b4_00c04fd430c8);
    Uuid::new_v5(&NAMESPACE, graph_id.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_assistant_ids_are_those_of_the_reference() {
        assert_eq!(system_assistant_id("agent").to_string(), "fe096781-5601-53d2-b2f6-0d3403f7e9ca");
    }

    #[test]
    fn thread_names_follow_the_rule() {
        for good in ["user-42", "order-123", "a.b_c:d~e@f", "0190b5a0-0000-7000-8000-000000000000"] {
            assert!(ThreadId::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "a b", "a/b", "ä", "x\0", &"x".repeat(256)] {
            assert!(ThreadId::parse(bad).is_err(), "{bad}");
        }
        let upper = ThreadId::parse("0190B5A0-0000-7000-8000-00000000000A").expect("a UUID");
        assert_eq!(upper.as_str(), "0190b5a0-0000-7000-8000-00000000000a");
    }

    #[test]
    fn tenants_do_not_share_keys() {
        let name = ThreadId::parse("user-42").expect("a name");
        assert_ne!(name.key(Uuid::nil()), name.key(Uuid::max()));
    }
}
