//! The command line as people meet it: what it prints, on which stream, and with which exit code.

use std::net::TcpListener;
use std::process::{Command, Output};

use crate::support::process::{binary, sqlite_url};

fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().expect("it runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (status.code(), text(stdout), text(stderr))
}

/// Exit code 1, nothing on stdout, and exactly one line that says why.
fn refused(command: &mut Command) -> String {
    let (code, out, err) = run(command);
    assert_eq!((code, out.as_str()), (Some(1), ""), "{err}");
    let reasons: Vec<&str> = err.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(reasons.len(), 1, "{err}");
    reasons[0].to_owned()
}

#[test]
fn check_config_prints_what_is_in_force_without_secrets() {
    let mut command = binary();
    command.args(["check-config", "--listen", "127.0.0.1:9"]);
    command.env("DATABASE_URL", "postgres://me:hush@db/app").env("SESSION_STORE__AUTH__API_KEY", "hush");
    let (code, out, err) = run(&mut command);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("[server]\nlisten = \"127.0.0.1:9\"\n"), "{out}");
    assert!(out.contains("url = \"postgres://me:[redacted]@db/app\"") && !out.contains("hush"), "{out}");
    out.parse::<toml::Table>().expect("it is TOML");
}

#[test]
fn check_config_fails_with_all_reasons() {
    let mut command = binary();
    command.arg("check-config").env("SESSION_STORE__SERVER__LISTEN", "0.0.0.0:1");
    command.env("SESSION_STORE__RUNTIME__MAX_ATTEMPTS", "0");
    let (code, _, err) = run(&mut command);
    assert_eq!(code, Some(1));
    assert!(err.contains("error: server.listen = 0.0.0.0:1: "), "{err}");
    assert!(err.contains("error: runtime.max_attempts = 0: must be at least 1"), "{err}");
}

#[test]
fn an_open_address_without_a_key_is_refused_with_a_way_out() {
    let reason = refused(binary().args(["--listen", "0.0.0.0:0", "--database-url", "memory"]));
    assert!(reason.contains("auth.api_key") && reason.contains("--insecure"), "{reason}");
}

#[test]
fn an_unknown_variable_is_refused_by_name() {
    let reason = refused(binary().arg("serve").env("SESSION_STORE__SERVER__PROT", "1"));
    assert!(reason.contains("SESSION_STORE__SERVER__PROT: no such setting as server.prot"), "{reason}");
}

#[test]
fn a_port_in_use_is_one_clear_line() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("an address").to_string();
    let reason = refused(binary().args(["serve", "--listen", &address, "--database-url", "memory"]));
    assert!(reason.contains(&address) && reason.contains("in use"), "{reason}");
}

#[test]
fn a_database_that_cannot_be_opened_is_one_clear_line() {
    let dir = tempfile::tempdir().expect("a directory");
    // A file where a directory would have to be: nobody can write there, not even root.
    let file = dir.path().join("file");
    std::fs::write(&file, "").expect("written");
    let below = format!("sqlite://{}/sub/x.db", file.display());
    for url in [below.as_str(), "mysql://me:hush@db/app", "postgres://me:hush@127.0.0.1:1/app"] {
        let reason = refused(binary().args(["serve", "--listen", "127.0.0.1:0", "--database-url", url]));
        assert!(reason.contains("opening the database") && !reason.contains("hush"), "{reason}");
    }
}

#[test]
fn migrating_twice_changes_nothing_the_second_time() {
    let dir = tempfile::tempdir().expect("a directory");
    let url = sqlite_url(&dir);
    let (code, out, err) = run(binary().args(["migrate", "--database-url", &url]));
    assert!(code == Some(0) && out.contains("applied"), "{out}{err}");
    let (code, out, err) = run(binary().args(["--database-url", &url, "migrate"]));
    assert!(code == Some(0) && out.trim_end().ends_with("is up to date"), "{out}{err}");
}

#[test]
fn graphs_are_listed_and_drawn() {
    let (code, out, err) = run(binary().arg("graphs"));
    assert_eq!(code, Some(0), "{err}");
    for name in ["counter", "count", "greeter", "chat", "approval", "fanout", "slow"] {
        assert!(out.lines().any(|line| line.split(' ').next() == Some(name)), "{name}: {out}");
    }
    let (code, out, err) = run(binary().args(["graphs", "--mermaid", "counter"]));
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("graph TD") && out.contains("increment"), "{out}");
    let reason = refused(binary().args(["graphs", "--mermaid", "cuonter"]));
    assert!(reason.contains("no graph is named cuonter; there are counter, count"), "{reason}");
}

#[test]
fn a_doctor_says_how_a_deployment_is() {
    let dir = tempfile::tempdir().expect("a directory");
    let url = sqlite_url(&dir);
    let doctor = |flags: &[&str]| {
        let mut command = binary();
        // Nobody listens there.
        command.env("SESSION_STORE__SERVER__LISTEN", "127.0.0.1:1");
        run(command.args(["--database-url", &url, "doctor"]).args(flags))
    };
    // Nothing there yet: said, and not made.
    let (code, out, err) = doctor(&[]);
    assert_eq!(code, Some(1), "{out}");
    assert!(out.lines().any(|line| line.starts_with("fail  migrations: missing: 0001_init")), "{out}");
    assert!(err.contains("error: 1 of "), "{err}");
    assert_eq!(run(binary().args(["--database-url", &url, "migrate"])).0, Some(0));
    let (code, out, err) = doctor(&[]);
    assert_eq!(code, Some(0), "{out}{err}");
    for check in [
        "server",
        "database",
        "clocks",
        "migrations",
        "settings",
        "runs",
        "leases",
        "quarantine",
        "orphans",
        "stuck runs",
    ] {
        assert!(out.lines().any(|line| line[6..].starts_with(&format!("{check}: "))), "no {check}: {out}");
    }
    assert!(out.lines().any(|line| line.starts_with("warn  settings: webhooks.secret is not set")), "{out}");
    let (code, out, _) = doctor(&["--json"]);
    assert_eq!(code, Some(0));
    for line in out.lines() {
        let finding: serde_json::Value = serde_json::from_str(line).expect("JSON");
        assert!(["ok", "warn"].contains(&finding["verdict"].as_str().expect("a verdict")), "{finding}");
    }
    let (code, out, _) = run(binary().args(["--database-url", "postgres://u:hush@127.0.0.1:1/d", "doctor"]));
    assert_eq!(code, Some(1));
    assert!(out.starts_with("fail  database: ") && !out.contains("hush"), "{out}");
}

#[test]
fn quarantine_lists_and_refuses_what_is_not_in_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let url = sqlite_url(&dir);
    let (code, out, err) = run(binary().args(["--database-url", &url, "quarantine"]));
    assert_eq!((code, out.as_str()), (Some(0), ""), "{err}");
    let unknown = "01a21913-68b6-73b3-a441-912b8003bf29";
    let (code, out, err) = run(binary().args(["--database-url", &url, "quarantine", "--release", unknown]));
    assert_eq!(code, Some(1), "{out}");
    assert!(out.contains("not released") && err.contains("1 of 1"), "{out}{err}");
}
