//! What `session-store doctor` looks at: the database as it is, compared with what this build and its settings need.
//! Nothing is changed.

use std::time::Duration;

use serde_json::Value;

use crate::clock::Clock;
use crate::model::{Scope, Timestamp};
use crate::storage::{Counts, Inspection, SharedStorage, StorageError, StuckReason, StuckRun};

/// Clocks that differ more are worth a warning, and worse.
const SKEW: Duration = Duration::from_secs(1);
const BAD_SKEW: Duration = Duration::from_secs(60);
/// The oldest Postgres that is supported.
const OLDEST_POSTGRES: u32 = 15;
/// Stuck runs that are named.
const NAMED: i64 = 20;

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Ok,
    /// It works, and somebody should know.
    Warn,
    /// Data is at risk, or runs do not move.
    Fail,
}

impl Verdict {
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "fail",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub check: &'static str,
    pub verdict: Verdict,
    /// What was found and, where it is not well, what to do.
    pub text: String,
}

/// What the settings of this process say, as far as checks compare them.
#[derive(Debug, Clone)]
pub struct Expectations {
    pub stuck_after: Duration,
    /// Connections of one process, with the one that listens.
    pub connections: u32,
    /// Webhooks are signed.
    pub signs_webhooks: bool,
    /// Requests need a key.
    pub has_key: bool,
}

/// Looks at everything and tells each finding as soon as there is one. An error: the database stopped answering.
pub async fn examine(
    storage: &SharedStorage,
    clock: &Clock,
    expected: &Expectations,
    tell: &mut (dyn FnMut(Finding) + Send),
) -> Result<(), StorageError> {
    let mut say = |check, verdict, text: String| tell(Finding { check, verdict, text });
    let place = storage.describe();
    let (verdict, durable) = match place.volatile {
        true => (Verdict::Warn, "; everything is lost when the process ends"),
        false => (Verdict::Ok, ""),
    };
    let before = clock.now();
    let found = storage.inspect().await?;
    let after = clock.now();
    say("database", verdict, format!("{} {}: {}{durable}", place.backend, place.location, found.server));
    if place.backend == "postgres" {
        let (verdict, text) = version(&found.server);
        say("version", verdict, text);
        say("vectors", Verdict::Ok, vectors(place.ranked_by.as_deref()));
    }
    let (verdict, text) = clocks(before, found.now, after);
    say("clocks", verdict, text);
    let (verdict, text) = migrations(&found);
    say("migrations", verdict, text);
    for (name, value) in &found.settings {
        let (verdict, text) = setting(name, value, expected);
        say("settings", verdict, text);
    }
    for (is_set, name, what) in [
        (expected.has_key, "auth.api_key", "whoever reaches the server may do everything"),
        (expected.signs_webhooks, "webhooks.secret", "receivers cannot tell who sent a webhook"),
    ] {
        match is_set {
            true => say("settings", Verdict::Ok, format!("{name} is set")),
            false => say("settings", Verdict::Warn, format!("{name} is not set: {what}")),
        }
    }
    let Some(counts) = found.counts else {
        say("runs", Verdict::Warn, "not looked at: the schema is not up to date".to_owned());
        return Ok(());
    };
    for (check, verdict, text) in rows(&counts) {
        say(check, verdict, text);
    }
    let stuck = storage.find_stuck(&Scope::Server, expected.stuck_after, NAMED).await?;
    if stuck.is_empty() {
        say("stuck runs", Verdict::Ok, format!("none for longer than {:?}", expected.stuck_after));
    }
    for run in &stuck {
        say("stuck runs", Verdict::Fail, stuck_text(run));
    }
    Ok(())
}

/// Who ranks items by their vectors. Either is well.
fn vectors(ranked_by: Option<&str>) -> String {
    match ranked_by {
        Some(extension) => format!("items are ranked by {extension}, in the database"),
        None => "items are ranked by the server, in its process: database.pgvector is off, or the extension is not \
                 installed in this database, or neither a server nor `migrate` was started since"
            .to_owned(),
    }
}

/// What a server says of itself: its answer to `GET /ready`, head and body.
pub fn readiness(answer: Option<&str>) -> Finding {
    let of = |verdict, text: String| Finding { check: "server", verdict, text };
    let Some(answer) = answer else { return of(Verdict::Ok, "none answers at server.listen".to_owned()) };
    let status = answer.lines().next().and_then(|line| line.split(' ').nth(1)).unwrap_or_default();
    let body = answer.split_once("\r\n\r\n").and_then(|(_, body)| serde_json::from_str::<Value>(body).ok());
    let sick = body.as_ref().and_then(|body| body["sick"].as_array()).into_iter().flatten();
    let sick: Vec<&str> = sick.filter_map(Value::as_str).collect();
    match (status, &sick[..]) {
        ("200", []) => of(Verdict::Ok, "it is ready".to_owned()),
        ("200", sick) => of(Verdict::Warn, sick.join("; ")),
        (status, sick) => of(Verdict::Fail, format!("it is not ready ({status}): {}", sick.join("; "))),
    }
}

fn version(server: &str) -> (Verdict, String) {
    let number = server.split_whitespace().find_map(|word| word.split('.').next()?.parse::<u32>().ok());
    match number {
        Some(number) if number < OLDEST_POSTGRES => {
            (Verdict::Fail, format!("Postgres {number} is too old: {OLDEST_POSTGRES} or later is needed"))
        }
        Some(number) => (Verdict::Ok, format!("Postgres {number}; session-store {}", env!("CARGO_PKG_VERSION"))),
        None => (Verdict::Warn, format!("the version of the database is not clear: {server}")),
    }
}

/// The database's clock was read between two looks at this machine's.
fn clocks(before: Timestamp, database: Timestamp, after: Timestamp) -> (Verdict, String) {
    let off = match () {
        () if database.0 < before.0 => before.0 - database.0,
        () if database.0 > after.0 => database.0 - after.0,
        () => 0,
    };
    let skew = Duration::from_micros(u64::try_from(off).unwrap_or(0));
    let text = format!("this machine's clock and the database's differ by {skew:?}");
    match skew {
        skew if skew >= BAD_SKEW => {
            (Verdict::Fail, format!("{text}: set one of them; leases follow the database, shown times do not"))
        }
        skew if skew >= SKEW => (Verdict::Warn, format!("{text}: synchronise them")),
        _ => (Verdict::Ok, text),
    }
}

fn migrations(found: &Inspection) -> (Verdict, String) {
    if !found.missing.is_empty() {
        return (Verdict::Fail, format!("missing: {}; run `session-store migrate`", found.missing.join(", ")));
    }
    let strange: Vec<&str> =
        found.applied.iter().filter(|m| !m.is_known && !m.expands).map(|m| m.name.as_str()).collect();
    if !strange.is_empty() {
        return (Verdict::Fail, format!("not of this build: {}; use the build they belong to", strange.join(", ")));
    }
    let newer: Vec<&str> = found.applied.iter().filter(|m| !m.is_known).map(|m| m.name.as_str()).collect();
    if !newer.is_empty() {
        return (Verdict::Warn, format!("of a newer build, and only adding: {}", newer.join(", ")));
    }
    (Verdict::Ok, format!("{} applied, none missing", found.applied.len()))
}

fn setting(name: &str, value: &str, expected: &Expectations) -> (Verdict, String) {
    let text = format!("{name} = {value}");
    let risk = match (name, value) {
        ("fsync", "off") => Some((Verdict::Fail, "a crash of the machine can destroy the database")),
        ("synchronous_commit", "off") => Some((Verdict::Fail, "what was acknowledged can be lost in a crash")),
        ("full_page_writes", "off") => Some((Verdict::Warn, "a crash of the machine can destroy pages")),
        ("synchronous", "off") => Some((Verdict::Fail, "a crash of the machine can destroy the database")),
        ("synchronous", "normal") => Some((Verdict::Ok, "survives every crash of the process, not power loss")),
        ("quick_check", damage) if damage != "ok" => Some((Verdict::Fail, "the file is damaged: restore a backup")),
        ("max_connections", limit) if limit.parse().is_ok_and(|limit: u32| limit < expected.connections) => {
            Some((Verdict::Warn, "fewer than one process may want: lower database.max_connections"))
        }
        _ => None,
    };
    match risk {
        Some((verdict, what)) => (verdict, format!("{text}: {what}")),
        None => (Verdict::Ok, text),
    }
}

fn rows(counts: &Counts) -> [(&'static str, Verdict, String); 5] {
    let warn = |is_so: bool| if is_so { Verdict::Warn } else { Verdict::Ok };
    let hint = |is_so: bool, text: &'static str| if is_so { text } else { "" };
    let Counts { pending, running, expired_leases, quarantined, dead_webhooks, orphans, dead_threads } = *counts;
    [
        (
            "runs",
            Verdict::Ok,
            format!("{pending} due, {running} running; {dead_threads} deleted threads being removed"),
        ),
        (
            "leases",
            warn(expired_leases > 0),
            format!(
                "{expired_leases} of {running} have run out{}",
                hint(expired_leases > 0, ": a live worker takes those runs over within seconds")
            ),
        ),
        (
            "quarantine",
            warn(quarantined > 0),
            format!(
                "{quarantined} runs are set aside{}",
                hint(quarantined > 0, ": `session-store quarantine` lists and releases them")
            ),
        ),
        ("orphans", warn(orphans > 0), format!("{orphans} rows whose run or thread is gone")),
        (
            "webhooks",
            warn(dead_webhooks > 0),
            format!(
                "{dead_webhooks} were given up{}",
                hint(dead_webhooks > 0, ": GET /webhooks lists them, POST /webhooks/redrive tries them again")
            ),
        ),
    ]
}

fn stuck_text(run: &StuckRun) -> String {
    let thread = run.thread_id.as_ref().map_or_else(|| run.thread.0.to_string(), ToString::to_string);
    let what = match run.reason {
        StuckReason::LeaseRanOut => "its lease ran out and nobody took it over: does any worker run?",
        StuckReason::NotClaimed => "it is due and nobody claimed it: does any worker run, with a free place?",
        StuckReason::NoThread => "its thread is gone: delete its row",
    };
    format!("run {} of thread {thread}, for {:?}, {} attempts: {what}", run.run_id, run.since, run.attempts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::AppliedMigration;

    #[test]
    fn settings_that_risk_data_are_told() {
        let expected =
            Expectations { stuck_after: Duration::from_secs(1), connections: 11, signs_webhooks: true, has_key: true };
        for (name, value, verdict) in [
            ("fsync", "off", Verdict::Fail),
            ("fsync", "on", Verdict::Ok),
            ("synchronous_commit", "off", Verdict::Fail),
            ("full_page_writes", "off", Verdict::Warn),
            ("synchronous", "normal", Verdict::Ok),
            ("quick_check", "row 3 missing from index", Verdict::Fail),
            ("max_connections", "10", Verdict::Warn),
            ("max_connections", "11", Verdict::Ok),
        ] {
            assert_eq!(setting(name, value, &expected).0, verdict, "{name} = {value}");
        }
    }

    #[test]
    fn a_server_that_is_not_well_is_told() {
        let verdict = |answer: &str| readiness(Some(answer)).verdict;
        assert_eq!(readiness(None).verdict, Verdict::Ok);
        assert_eq!(verdict("HTTP/1.1 200 OK\r\n\r\n{\"ok\":true}"), Verdict::Ok);
        assert_eq!(verdict("HTTP/1.1 200 OK\r\n\r\n{\"ok\":true,\"sick\":[\"nodes: blocked\"]}"), Verdict::Warn);
        assert_eq!(verdict("HTTP/1.1 503 Busy\r\n\r\n{\"sick\":[\"database: away\"]}"), Verdict::Fail);
        assert_eq!(verdict("something else"), Verdict::Fail);
    }

    #[test]
    fn versions_clocks_and_migrations_are_judged() {
        assert_eq!(version("PostgreSQL 14.9 on x86_64").0, Verdict::Fail);
        assert_eq!(version("PostgreSQL 15.6 (Debian 15.6-0+deb12u1)").0, Verdict::Ok);
        assert_eq!(version("SomethingElse").0, Verdict::Warn);
        let at = |seconds: i64| Timestamp(seconds * 1_000_000);
        assert_eq!(clocks(at(10), at(10), at(10)).0, Verdict::Ok);
        assert_eq!(clocks(at(10), at(13), at(11)).0, Verdict::Warn);
        assert_eq!(clocks(at(3600), at(0), at(3600)).0, Verdict::Fail);
        let applied = |is_known, expands| AppliedMigration { version: 1, name: "0001".into(), is_known, expands };
        let of = |migration: AppliedMigration| Inspection { applied: vec![migration], ..Inspection::default() };
        assert_eq!(migrations(&of(applied(true, false))).0, Verdict::Ok);
        assert_eq!(migrations(&of(applied(false, true))).0, Verdict::Warn);
        assert_eq!(migrations(&of(applied(false, false))).0, Verdict::Fail);
        let missing = Inspection { missing: vec!["0001".into()], ..Inspection::default() };
        assert_eq!(migrations(&missing).0, Verdict::Fail);
    }
}
