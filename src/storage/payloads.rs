//! What both backends do with payloads once they are read: decode, and insist that none is missing.

use std::collections::HashMap;

use super::encoding::{self, Place};
use super::{Payload, PayloadHash, Result};
use crate::model::ThreadKey;

fn name(thread: ThreadKey, hash: PayloadHash) -> String {
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}/{hex}", thread.0)
}

/// Reads one payload row.
pub(crate) fn read(thread: ThreadKey, hash: PayloadHash, codec: i16, value: Vec<u8>) -> Result<Payload> {
    let name = name(thread, hash);
    let value = encoding::json(codec, value, Place { table: "payloads", column: "value", id: &name })?;
    Ok(Payload { hash, value })
}

/// All wanted payloads, or an error that names the first one missing.
pub(crate) fn complete(
    thread: ThreadKey,
    wanted: &[PayloadHash],
    found: HashMap<PayloadHash, Payload>,
) -> Result<Vec<Payload>> {
    if let Some(lost) = wanted.iter().find(|hash| !found.contains_key(*hash)) {
        let name = name(thread, *lost);
        return Err(Place { table: "payloads", column: "hash", id: &name }.corrupt("the row is missing"));
    }
    Ok(found.into_values().collect())
}
