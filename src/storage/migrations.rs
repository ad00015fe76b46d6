//! The schema's history: which migrations exist and which of them a database still needs. Each backend runs them under
//! its own lock.

use super::{AppliedMigration, Result, StorageError};

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

/// The migration that made `schema_migrations` say whether a migration only adds.
pub(crate) const SAYS_WHAT_EXPANDS: i64 = 16;

/// Names of the migrations that are missing.
pub(crate) fn names_missing(all: &[Migration], applied: &[AppliedMigration]) -> Vec<String> {
    let is_applied = |version: i64| applied.iter().any(|migration| migration.version == version);
    all.iter().filter(|migration| !is_applied(migration.version)).map(|migration| migration.name.to_owned()).collect()
}

/// The migrations that are missing, given the (version, checksum, expands) of those applied. One that this build does not
/// know is a newer build's: if it only adds (`expands`), this build goes on working beside it, as in a rolling deployment.
pub(crate) fn missing(all: &'static [Migration], applied: &[(i64, String, bool)]) -> Result<Vec<&'static Migration>> {
    for (version, checksum, expands) in applied {
        match all.iter().find(|migration| migration.version == *version) {
            None if *expands => {
                tracing::warn!(version, "the database has a migration of a newer build; it only adds to the schema");
            }
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
    Ok(all.iter().filter(|migration| applied.iter().all(|(version, _, _)| *version != migration.version)).collect())
}
