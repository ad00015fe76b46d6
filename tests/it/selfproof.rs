//! `selfproof` itself: its short form proves, what it is for is covered, and a proof that must fail does.

use std::path::Path;
use std::process::{Command, Output};

use sqlx::{Connection as _, PgConnection};

use crate::support::process::{Database, available, binary, provided, sqlite_url};

/// What the command said: exit code, last line of standard output, standard error.
struct Said {
    code: Option<i32>,
    line: String,
    log: String,
}

fn prove(change: impl FnOnce(&mut Command)) -> Said {
    let mut command = binary();
    command.arg("selfproof");
    change(&mut command);
    let Output { status, stdout, stderr } = command.output().expect("it runs");
    let line = String::from_utf8_lossy(&stdout).lines().last().unwrap_or_default().to_owned();
    Said { code: status.code(), line, log: String::from_utf8_lossy(&stderr).into_owned() }
}

impl Said {
    fn number(&self, name: &str) -> u64 {
        let pair = self.line.split(' ').find_map(|pair| pair.strip_prefix(&format!("{name}=")));
        let number = pair.and_then(|number| number.parse().ok());
        number.unwrap_or_else(|| panic!("no {name} in {:?}\n{}", self.line, self.log))
    }

    /// The proof held, and there was something to it.
    fn held(&self) {
        assert_eq!(self.code, Some(0), "{}\n{}", self.line, self.log);
        for name in ["lost", "doubled", "stuck"] {
            assert_eq!(self.number(name), 0, "{}\n{}", self.line, self.log);
        }
        assert!(self.number("runs") > 0 && self.number("crashes") > 0, "{}", self.line);
    }
}

/// How often a fault was made, by the beginning of its name.
fn faults(log: &str, prefix: &str) -> u64 {
    let line = log.lines().find_map(|line| line.strip_prefix("selfproof: faults: ")).unwrap_or_default();
    let counts = line.split(' ').filter(|pair| pair.starts_with(prefix)).filter_map(|pair| pair.split_once('='));
    counts.filter_map(|(_, count)| count.parse::<u64>().ok()).sum()
}

/// How many external calls there were to compare.
fn effects(log: &str) -> u64 {
    let line = log.lines().find_map(|line| line.strip_prefix("selfproof: effects: ")).unwrap_or_default();
    line.split(' ').next().and_then(|count| count.parse().ok()).unwrap_or(0)
}

#[test]
fn nothing_is_lost_doubled_or_stuck() {
    if !Path::new("/usr/lib/postgresql").exists() && !available("initdb") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let own = dir.path().join("postgres");
    let said = prove(|command| {
        command.args(["--seconds", "120", "--seed", "5", "--own-postgres"]).arg(&own);
    });
    eprintln!("{}{}", said.log, said.line);
    said.held();
    assert!(effects(&said.log) > 0, "external calls were made: {}", said.log);
    assert!(faults(&said.log, "kill.") > 0 && faults(&said.log, "postgres.") > 0, "{}", said.log);
    assert_eq!(std::fs::read_dir(&own).expect("the folder is left").count(), 0, "and nothing in it");
}

#[tokio::test]
async fn a_doubled_write_is_found_and_no_table_is_touched() {
    let Some(database) = Database::create("selfproof").await else { return };
    let mut conn = PgConnection::connect(&database.url).await.expect("connects");
    sqlx::query("CREATE TABLE threads (mine text)").execute(&mut conn).await.expect("created");
    let said = prove(|command| {
        command.args(["--seconds", "4", "--seed", "6", "--sabotage", "doubled", "--database-url", &database.url]);
    });
    assert_eq!(said.code, Some(1), "{}\n{}", said.line, said.log);
    assert!(said.number("doubled") > 0 && said.number("stuck") == 0, "{}\n{}", said.line, said.log);
    assert!(said.log.contains("the proof failed with seed 6"), "{}", said.log);
    let left: Vec<(String, String)> = sqlx::query_as(
        "SELECT schemaname::text, tablename::text FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')",
    )
    .fetch_all(&mut conn)
    .await
    .expect("read");
    assert_eq!(left, [("public".to_owned(), "threads".to_owned())], "the scratch schema is gone");
}

#[test]
fn a_file_is_proved_by_killing_its_process() {
    let dir = tempfile::tempdir().expect("a directory");
    let url = sqlite_url(&dir);
    let said = prove(|command| {
        command.args(["--seconds", "6", "--seed", "3", "--database-url", &url]);
    });
    said.held();
    assert!(said.log.contains("on SQLite"), "what is left out is said: {}", said.log);
    assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 0, "the file named is not made");
}

#[test]
fn a_lost_write_is_found() {
    let dir = tempfile::tempdir().expect("a directory");
    let url = sqlite_url(&dir);
    let said = prove(|command| {
        command.args(["--seconds", "2", "--seed", "4", "--sabotage", "lost", "--database-url", &url]);
    });
    assert_eq!(said.code, Some(1), "{}\n{}", said.line, said.log);
    assert!(said.number("lost") > 0, "{}\n{}", said.line, said.log);
}

#[test]
fn a_call_that_nobody_knows_of_is_found() {
    let dir = tempfile::tempdir().expect("a directory");
    let url = sqlite_url(&dir);
    let said = prove(|command| {
        command.args(["--seconds", "2", "--seed", "4", "--sabotage", "called", "--database-url", &url]);
    });
    assert_eq!(said.code, Some(1), "{}\n{}", said.line, said.log);
    assert!(said.number("doubled") > 0 && said.number("lost") == 0, "{}\n{}", said.line, said.log);
}

#[test]
fn a_proof_that_is_broken_off_leaves_nothing_running() {
    let Some(url) = provided("SESSION_STORE_TEST_POSTGRES") else { return };
    let mut command = binary();
    command.args(["selfproof", "--seconds", "600", "--seed", "8", "--database-url", &url]);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut proof = command.spawn().expect("it starts");
    let stderr = proof.stderr.take().expect("piped");
    // Told once all replicas serve.
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(stderr)).map_while(Result::ok);
    assert!(lines.any(|line| line.contains("replicas, ")), "it begins");
    let children = || children_of(proof.id());
    let begun = children();
    assert!(!begun.is_empty(), "it has processes of its own");
    let sent = Command::new("kill").args(["-INT", &proof.id().to_string()]).status().expect("kill runs");
    assert!(sent.success());
    let rest: Vec<String> = lines.collect();
    let status = proof.wait().expect("it ends");
    assert_eq!(status.code(), Some(1), "{rest:?}");
    assert!(rest.iter().any(|line| line.contains("SIGINT: broken off")), "{rest:?}");
    let alive = |pid: &u32| Path::new(&format!("/proc/{pid}")).exists();
    assert!(!begun.iter().any(alive), "no replica is left of {begun:?}");
}

/// The processes that a process has started.
fn children_of(pid: u32) -> Vec<u32> {
    let mut children = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let list = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        children.extend(list.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    children
}
