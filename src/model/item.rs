//! Items: the entries of the long-term, cross-thread memory.

use serde::Serialize;

use super::{Json, Timestamp};

/// One item (contract section 2).
#[derive(Debug, Clone, Serialize)]
pub struct Item {
    pub namespace: Vec<String>,
    pub key: String,
    pub value: Json,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}
