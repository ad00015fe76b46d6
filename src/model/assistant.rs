//! Assistants: a named, versioned configuration of a graph.

use serde::Serialize;
use uuid::Uuid;

use super::{Json, Timestamp};

/// An assistant as the contract shows it (section 2).
#[derive(Debug, Clone, Serialize)]
pub struct Assistant {
    pub assistant_id: Uuid,
    pub graph_id: String,
    pub config: Json,
    pub context: Json,
    pub metadata: Json,
    pub name: String,
    pub description: Option<String>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub version: i64,
}
