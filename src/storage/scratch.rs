//! Places of their own to try things out in: a schema in a Postgres database, or a SQLite file. Nothing that is there
//! already is touched, and they are removed afterwards. Used by the proof, never by a server.

use super::Result;
use super::postgres::scratch as postgres;

/// What a statement on the wire does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Statement {
    /// Takes runs from the queue or from a dead worker.
    Claim,
    /// Commits supersteps.
    Commit,
    /// Inserts a run.
    Create,
    /// Renews leases.
    Renew,
    OtherWrite,
    Read,
}

impl Statement {
    /// What this build's Postgres backend means by a text.
    pub fn of(sql: &str) -> Statement {
        postgres::statement(sql)
    }

    /// It changes rows.
    pub fn writes(self) -> bool {
        self != Statement::Read
    }
}

/// A schema of a Postgres database that exists until [`Schema::drop`].
#[derive(Debug, Clone)]
pub struct Schema {
    server: String,
    name: String,
}

impl Schema {
    /// Makes the schema `name` (lower-case letters, digits, `_`); an error if there is one of that name.
    pub async fn create(server: &str, name: &str) -> Result<Schema> {
        postgres::create_schema(server, name).await?;
        Ok(Schema { server: server.to_owned(), name: name.to_owned() })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The part of a URL's query that makes a connection see this schema and no other.
    pub fn parameter(&self) -> (&'static str, &str) {
        ("options[search_path]", &self.name)
    }

    /// Removes it with everything in it.
    pub async fn drop(self) -> Result<()> {
        postgres::drop_schema(&self.server, &self.name).await
    }
}

/// Ends up to `limit` connections of servers to the database, also of those that are not the caller's: for a database
/// that nobody else uses. Returns how many.
pub async fn terminate_backends(url: &str, limit: i64) -> Result<u64> {
    postgres::terminate_backends(url, limit).await
}

/// Connections that nobody else can have meanwhile.
#[derive(Debug)]
pub struct Occupied(#[expect(dead_code, reason = "held until dropped")] postgres::Held);

/// Takes all connections the database has left, at most `limit`, until the value is dropped.
pub async fn occupy_connections(url: &str, limit: usize) -> Result<Occupied> {
    Ok(Occupied(postgres::hold_connections(url, limit).await?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_told_apart() {
        assert_eq!(Statement::of("SELECT 1"), Statement::Read);
        assert_eq!(Statement::of("WITH mine AS MATERIALIZED (SELECT 1) UPDATE runs r SET a = 1"), Statement::Renew);
        assert_eq!(Statement::of("DELETE FROM x"), Statement::OtherWrite);
        assert!(!Statement::Read.writes() && Statement::Claim.writes());
    }
}
