//! A fresh Postgres database per test, on the server that `SESSION_STORE_TEST_POSTGRES` names (a URL with the right to
//! create databases). Without the variable the Postgres half is skipped, visibly; in CI that is an error. The server of
//! `SESSION_STORE_TEST_PGVECTOR` has the extension pgvector to install.

use std::sync::atomic::{AtomicU32, Ordering};

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use crate::support::process::provided;

const VARIABLE: &str = "SESSION_STORE_TEST_POSTGRES";

/// A database that exists for one test.
#[derive(Debug)]
pub(crate) struct Database {
    server: String,
    name: String,
}

impl Database {
    /// Creates an empty database; `None` (with a line that says so) when there is no server.
    pub(crate) async fn create() -> Option<Database> {
        let Ok(server) = std::env::var(VARIABLE) else {
            println!("SKIPPED postgres ({VARIABLE} is not set)");
            return None;
        };
        Some(Database::create_on(server).await)
    }

    /// Creates an empty database on a server that has pgvector, not yet installed in the database.
    pub(crate) async fn create_beside_pgvector() -> Option<Database> {
        Some(Database::create_on(provided("SESSION_STORE_TEST_PGVECTOR")?).await)
    }

    /// Installs pgvector, in a schema that no search path names.
    pub(crate) async fn install_pgvector(&self) {
        let mut admin = PgConnection::connect(&self.url()).await.expect("the test server answers");
        let install = "CREATE SCHEMA IF NOT EXISTS \"Its own\"; CREATE EXTENSION vector SCHEMA \"Its own\"";
        sqlx::raw_sql(install).execute(&mut admin).await.expect("pgvector");
    }

    async fn create_on(server: String) -> Database {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let name = format!("it_{}_{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let mut admin = PgConnection::connect(&server).await.expect("the test server answers");
        // A crashed earlier run may have had the same process id.
        for statement in [format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"), format!("CREATE DATABASE {name}")] {
            sqlx::query(AssertSqlSafe(statement)).execute(&mut admin).await.expect("the right to create databases");
        }
        Database { server, name }
    }

    /// The URL of this database: the server's with another path.
    pub(crate) fn url(&self) -> String {
        let (base, query) = self.server.split_once('?').unwrap_or((&self.server, ""));
        let (scheme, rest) = base.split_once("://").expect("a URL");
        let authority = rest.split('/').next().unwrap_or(rest);
        let query = if query.is_empty() { String::new() } else { format!("?{query}") };
        format!("{scheme}://{authority}/{}{query}", self.name)
    }

    /// Removes it, whoever is still connected.
    pub(crate) async fn drop(self) {
        let mut admin = PgConnection::connect(&self.server).await.expect("the test server answers");
        let statement = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        sqlx::query(AssertSqlSafe(statement)).execute(&mut admin).await.expect("dropped");
    }
}

#[test]
fn postgres_is_covered_in_ci() {
    let set = |name: &str| std::env::var(name).is_ok_and(|value| !value.is_empty() && value != "0");
    let required = set("CI") || set("SESSION_STORE_TEST_ALL");
    assert!(
        !required || std::env::var(VARIABLE).is_ok(),
        "{VARIABLE} is not set: the Postgres half would be skipped; `.ci/test` starts a server and sets it"
    );
}
