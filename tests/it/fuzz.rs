//! A fuzzer that reads `/openapi.json` (schemathesis) against the server: whatever the document allows, and some of what it
//! does not, is answered as the document says, and never with 500.

use std::path::Path;
use std::process::Command;

use crate::support::process::{Database, Server, provided, sqlite_url};

/// What is looked at in every answer.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance";
/// Streams of threads, which do not end.
const ENDLESS: &str = "stream/events|thread_id}/stream$";
/// Those, and what takes the body of a run a second time: there are many members in it.
const ALIKE: &str = "stream/events|thread_id}/stream$|runs/(stream|wait|batch)$|^/runs(/crons)?$";

/// A few requests to each operation, right and wrong, made up by chance: the same ones each time.
const BY_CHANCE: [&str; 4] = ["--phases", "examples,fuzzing", "--max-examples", "2"];
/// Each member, each parameter and each limit by itself, as the document allows it. What it forbids is tried without a
/// network by `http::tests::described`.
const ONE_BY_ONE: [&str; 4] = ["--phases", "coverage", "--mode", "positive"];

fn fuzz(server: &Server, how: &[&str], without: &str, least: usize) {
    let Some(python) = provided("SESSION_STORE_TEST_PYTHON") else { return };
    let fuzzer = Path::new(&python).with_file_name("schemathesis");
    let dir = tempfile::tempdir().expect("a directory");
    let done = Command::new(fuzzer)
        .args(["run", &format!("{}/openapi.json", server.url), "--no-color", "--warnings", "off"])
        // What fails is not reduced to its least form.
        .args(["--seed", "1", "--generation-deterministic", "--no-shrink", "--continue-on-failure"])
        .args(how)
        .args(["--checks", CHECKS, "--exclude-path-regex", without])
        // A busy machine is slow, and that is no failure.
        .args(["--request-timeout", "60", "--suppress-health-check", "all"])
        .current_dir(dir.path())
        .output()
        .expect("schemathesis runs");
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{out}\n{err}");
    let tested = out.lines().find_map(|line| line.trim().strip_prefix("Tested: "));
    let tested: usize = tested.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("{out}"));
    assert!(tested >= least, "only {tested} operations were tested:\n{out}");
}

#[test]
fn whatever_the_document_allows_is_answered_as_it_says_on_sqlite() {
    let dir = tempfile::tempdir().expect("a directory");
    fuzz(&Server::start(&sqlite_url(&dir)), &BY_CHANCE, ENDLESS, 100);
}

#[tokio::test]
async fn whatever_the_document_allows_is_answered_as_it_says_on_postgres() {
    let Some(database) = Database::create("fuzz").await else { return };
    fuzz(&Server::start(&database.url), &BY_CHANCE, ENDLESS, 100);
}

#[test]
fn every_member_and_parameter_is_taken_by_itself() {
    let dir = tempfile::tempdir().expect("a directory");
    fuzz(&Server::start(&sqlite_url(&dir)), &ONE_BY_ONE, ALIKE, 90);
}
