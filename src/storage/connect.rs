//! From a database URL to a backend. The only file that names both.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::postgres::PostgresStorage;
use super::sqlite::SqliteStorage;
use super::{Result, SharedStorage, StorageError};

/// How to connect; the URL says where.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// Connections of the pool (on SQLite: readers, at most 8).
    pub max_connections: u32,
    /// A PgBouncer in transaction mode, with `max_prepared_statements = 0`, stands between: no statement cache, and no
    /// LISTEN, so notices of other replicas are found by looking only.
    pub pgbouncer: bool,
    /// The tables are distributed by thread (Postgres): no statement of a run touches two threads.
    pub distributed: bool,
    /// Where the extension pgvector is installed it ranks items by their vectors (Postgres, not distributed).
    pub pgvector: bool,
    /// A statement that takes longer is cancelled (Postgres).
    pub statement_timeout: Duration,
    /// How long to wait for a free connection.
    pub acquire_timeout: Duration,
    /// Flush every commit to the disk (SQLite): survives power loss, not only a crash.
    pub sqlite_synchronous_full: bool,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        ConnectOptions {
            max_connections: 16,
            pgbouncer: false,
            distributed: false,
            pgvector: true,
            statement_timeout: Duration::from_secs(30),
            acquire_timeout: Duration::from_secs(10),
            sqlite_synchronous_full: false,
        }
    }
}

/// Connects to the backend the URL names: `postgres://user@host/db`, `sqlite:///abs/path`, `sqlite://rel/path`,
/// `sqlite:path` or `memory`.
pub async fn connect(url: &str, options: &ConnectOptions) -> Result<SharedStorage> {
    match Target::parse(url)? {
        Target::Postgres => Ok(Arc::new(PostgresStorage::connect(url, options).await?)),
        Target::File(path) => Ok(Arc::new(SqliteStorage::open(Some(&path), options).await?)),
        Target::Memory => Ok(Arc::new(SqliteStorage::open(None, options).await?)),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Target {
    Postgres,
    File(PathBuf),
    Memory,
}

impl Target {
    fn parse(url: &str) -> Result<Target> {
        let refused = |text: String| Err(StorageError::Url(text));
        if url == "memory" {
            return Ok(Target::Memory);
        }
        let Some((scheme, rest)) = url.split_once(':') else {
            return refused("expected postgres://.., sqlite:.. or memory".into());
        };
        match scheme {
            "postgres" | "postgresql" => Ok(Target::Postgres),
            "sqlite" => {
                let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
                for pair in query.split('&').filter(|pair| !pair.is_empty()) {
                    match pair {
                        "mode=rwc" | "mode=rw" => {}
                        "mode=memory" => return Ok(Target::Memory),
                        other => return refused(format!("unknown parameter of a sqlite URL: {other}")),
                    }
                }
                let path = decode_percent(path.strip_prefix("//").unwrap_or(path));
                match path.as_str() {
                    "" => refused("a sqlite URL names a file: sqlite:///abs/path, sqlite:path".into()),
                    ":memory:" => Ok(Target::Memory),
                    file => Ok(Target::File(PathBuf::from(file))),
                }
            }
            // Only the scheme is repeated: the rest may hold a password.
            other => refused(format!("unknown scheme {other:?}: expected postgres, sqlite or memory")),
        }
    }
}

/// `%20` and the like in a path; anything that is no such escape stays.
fn decode_percent(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let escape = (bytes[at] == b'%')
            .then(|| text.get(at + 1..at + 3))
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        out.push(escape.unwrap_or(bytes[at]));
        at += if escape.is_some() { 3 } else { 1 };
    }
    String::from_utf8(out).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_their_backend() {
        let file = |path: &str| Target::File(PathBuf::from(path));
        for (url, target) in [
            ("memory", Target::Memory),
            ("sqlite::memory:", Target::Memory),
            ("sqlite:///abs/a%20b.db?mode=rwc", file("/abs/a b.db")),
            ("sqlite://rel/path.db", file("rel/path.db")),
            ("sqlite:path.db", file("path.db")),
            ("postgres://u@h/d", Target::Postgres),
            ("postgresql://u@h/d", Target::Postgres),
        ] {
            assert_eq!(Target::parse(url).expect(url), target, "{url}");
        }
        for url in ["", "mysql://u:secret@h/d", "sqlite:", "sqlite:x?mode=ro", "/a/b"] {
            let error = Target::parse(url).expect_err(url).to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
