//! The schema's history: which migrations exist and which of them a database still needs. Each backend runs them under
//! its own lock.

use super::{Result, StorageError};

/// One migration, embedded in the binary.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Migration {
    pub(crate) version: i64,
    pub(crate) name: &'static str,
    pub(crate) sql: &'static str,
}

impl Migration {
    /// What identifies the text, so that an edited migration is noticed.
    pub(crate) fn checksum(&self) -> String {
        blake3::hash(self.sql.as_bytes()).to_hex().to_string()
    }
}

/// The migrations that are missing, given the (version, checksum) of those applied.
pub(crate) fn missing(all: &'static [Migration], applied: &[(i64, String)]) -> Result<Vec<&'static Migration>> {
    for (version, checksum) in applied {
        match all.iter().find(|migration| migration.version == *version) {
            None => {
                return Err(StorageError::Schema(format!(
                    "the database has migration {version}, which this build does not know: it belongs to a newer build"
                )));
            }
            Some(known) if known.checksum() != *checksum => {
                return Err(StorageError::Schema(format!(
                    "migration {version} ({}) was applied with another text than this build has",
                    known.name
                )));
            }
            Some(_) => {}
        }
    }
    Ok(all.iter().filter(|migration| applied.iter().all(|(version, _)| *version != migration.version)).collect())
}
