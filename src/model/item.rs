//! Items: the entries of the long-term, cross-thread memory.

#![deny(missing_docs)]

use serde::Serialize;

use super::{Json, Timestamp};

/// One item (contract section 2).
#[derive(Debug, Clone, Serialize)]
pub struct Item {
    /// Where it is kept: a path, the prefixes of which can be searched.
    pub namespace: Vec<String>,
    /// Its name there.
    pub key: String,
    /// What it holds: an object.
    pub value: Json,
    /// When the key was first written.
    pub created_at: Timestamp,
    /// When it was last written.
    pub updated_at: Timestamp,
}

/// An item that a search found.
#[derive(Debug, Clone)]
pub struct FoundItem {
    /// What was found.
    pub item: Item,
    /// How near it is to the query, from -1 to 1: the cosine of the angle between the vectors. `None` without a query, and
    /// for items that no vector was made of.
    pub score: Option<f64>,
}

/// What of an item is embedded, so that searches find it by meaning.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Indexing {
    /// What the server's settings say.
    #[default]
    Default,
    /// Nothing.
    Never,
    /// The texts at these paths of the value, each by itself: `title`, `notes[*].text`, `$` for the whole value.
    Paths(Vec<String>),
}
