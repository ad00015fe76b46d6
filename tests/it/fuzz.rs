//! A fuzzer that reads `/openapi.json` (schemathesis) against the server: whatever the document allows, and some of what it
//! does not, is answered as the document says, and never with 500.

use std::path::Path;
use std::process::Command;

use crate::support::process::{Server, provided};

/// What is looked at in every answer.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance";
/// Answers that last until something happens.
const LASTING: &str = "stream|join|wait";

#[test]
fn whatever_the_document_allows_is_answered_as_it_says() {
    let Some(python) = provided("SESSION_STORE_TEST_PYTHON") else { return };
    let fuzzer = Path::new(&python).with_file_name("schemathesis");
    let server = Server::start("memory");
    let dir = tempfile::tempdir().expect("a directory");
    let done = Command::new(fuzzer)
        .args(["run", &format!("{}/openapi.json", server.url), "--no-color", "--warnings", "off"])
        // The same requests each time, few of each operation, and what fails is not reduced to its least form.
        .args(["--seed", "1", "--generation-deterministic", "--no-shrink"])
        .args(["--phases", "examples,fuzzing", "--max-examples", "3", "--continue-on-failure"])
        .args(["--checks", CHECKS, "--exclude-path-regex", LASTING])
        // A busy machine is slow, and that is no failure.
        .args(["--request-timeout", "60", "--suppress-health-check", "all"])
        .current_dir(dir.path())
        .output()
        .expect("schemathesis runs");
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{out}\n{err}");
    let tested = out.lines().find_map(|line| line.trim().strip_prefix("Tested: "));
    let tested: usize = tested.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("{out}"));
    assert!(tested >= 90, "only {tested} operations were tested:\n{out}");
}
