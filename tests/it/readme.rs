//! The README's commands are executed from the README's own text, and print what the README says.
//!
//! Fenced blocks marked `console` are a session: a line that starts with `$ ` is a command, the lines up to the next one
//! are what it prints. All blocks run in one bash, in order, so that variables set in one are there in the next. The
//! comment `<!-- the server restarts here -->` kills the server and starts it again on the same database. Before texts
//! are compared, UUIDs become `<uuid>`, other hexadecimal ids of 32 digits `<id>`, times `<time>`, and the sizes of
//! checkpoints `<bytes>`, on both sides. Of the address only the port is replaced.
//!
//! With `SESSION_STORE_README=write` the printed texts in the README are replaced by what the commands print now.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::json;
use session_store::config::{Config, DatabaseUrl};

use crate::support::process::{Server, available, post, root, sqlite_url};

#[path = "../../examples/custom_server.rs"]
#[expect(dead_code, reason = "its main is for the command line")]
mod program;

const ADDRESS: &str = "127.0.0.1:8123";
const RESTART: &str = "<!-- the server restarts here -->";
/// What the shell prints after each command: nothing a command would print.
const END: &str = "\u{1e}end of command\u{1e}";

/// A piece of the README.
enum Part {
    /// Kept as it is.
    Text(String),
    Restart(String),
    Command {
        command: String,
        expected: String,
        line: usize,
    },
}

fn parse(text: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut in_session = false;
    for (index, line) in text.split_inclusive('\n').enumerate() {
        if line.starts_with("```") {
            in_session = !in_session && line.trim() == "```console";
            parts.push(Part::Text(line.to_owned()));
        } else if line.trim() == RESTART {
            parts.push(Part::Restart(line.to_owned()));
        } else if let Some(command) = line.strip_prefix("$ ").filter(|_| in_session) {
            let command = command.trim_end().to_owned();
            parts.push(Part::Command { command, expected: String::new(), line: index + 1 });
        } else {
            match parts.last_mut() {
                Some(Part::Command { command, .. }) if in_session && command.ends_with('\\') => {
                    command.push('\n');
                    command.push_str(line.trim_end());
                }
                Some(Part::Command { expected, .. }) if in_session => expected.push_str(line),
                _ => parts.push(Part::Text(line.to_owned())),
            }
        }
    }
    parts
}

/// Ids and times differ from run to run, sizes from build to build.
fn normalise(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text.trim_end();
    while let Some(first) = rest.chars().next() {
        let token = |legal: fn(char) -> bool| rest.split(|c| !legal(c)).next().unwrap_or_default();
        if let Some(size) = rest.strip_prefix(r#""bytes": "#) {
            out.push_str(r#""bytes": <bytes>"#);
            rest = size.trim_start_matches(|c: char| c.is_ascii_digit());
            continue;
        }
        let inside_a_word = out.chars().next_back().is_some_and(|c| c.is_ascii_alphanumeric());
        let hex = token(|c| c.is_ascii_hexdigit() || c == '-');
        let time = token(|c| c.is_ascii_digit() || "-:.+TZ".contains(c));
        let (shown, length) = if inside_a_word {
            (first.to_string(), first.len_utf8())
        } else if hex.len() == 36 && uuid::Uuid::try_parse(hex).is_ok() {
            ("<uuid>".to_owned(), hex.len())
        } else if hex.len() == 32 && !hex.contains('-') {
            ("<id>".to_owned(), hex.len())
        } else if time.len() >= 20 && time.chars().nth(4) == Some('-') && time.chars().nth(10) == Some('T') {
            ("<time>".to_owned(), time.len())
        } else {
            (first.to_string(), first.len_utf8())
        };
        out.push_str(&shown);
        rest = &rest[length..];
    }
    out
}

/// One bash that stays.
struct Shell {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Shell {
    fn start() -> Shell {
        let mut command = Command::new("bash");
        command.arg("--norc").current_dir(root()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().expect("bash runs");
        let input = child.stdin.take().expect("stdin is piped");
        let output = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let mut shell = Shell { child, input, output };
        shell.run("exec 2>&1");
        shell
    }

    fn run(&mut self, command: &str) -> String {
        // A newline of its own, so that the mark starts a line whatever the command printed.
        writeln!(self.input, "{command}\necho; echo '{END}'").expect("bash reads");
        self.input.flush().expect("bash reads");
        let mut printed = String::new();
        loop {
            let mut line = String::new();
            let read = self.output.read_line(&mut line).expect("bash answers");
            assert!(read > 0, "bash ended during: {command}");
            if line.trim_end() == END {
                return printed.trim_end().to_owned();
            }
            printed.push_str(&line);
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // Fails when it has ended by itself: nothing is left to do then.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_readme_prints_what_it_says() {
    for tool in ["bash", "curl", "python3"] {
        if !available(tool) {
            return;
        }
    }
    let path = root().join("README.md");
    let text = std::fs::read_to_string(&path).expect("readable");
    let write = std::env::var("SESSION_STORE_README").is_ok_and(|mode| mode == "write");
    let dir = tempfile::tempdir().expect("a directory");
    let database = sqlite_url(&dir);
    let mut server = Server::start(&database);
    let mut shell = Shell::start();
    let (mut renewed, mut commands, mut wrong) = (String::new(), 0, Vec::new());
    for part in parse(&text) {
        match part {
            Part::Text(text) => renewed.push_str(&text),
            Part::Restart(text) => {
                renewed.push_str(&text);
                server.kill();
                server = Server::start(&database);
            }
            Part::Command { command, expected, line } => {
                commands += 1;
                let here = format!("127.0.0.1:{}", server.port());
                let printed = shell.run(&command.replace(ADDRESS, &here)).replace(&here, ADDRESS);
                if normalise(&printed) != normalise(&expected) {
                    wrong.push(format!("README.md:{line}: $ {command}\nsays:\n{expected}\nprinted:\n{printed}\n"));
                }
                let blank = if expected.ends_with("\n\n") { "\n" } else { "" };
                let end = if printed.is_empty() { "" } else { "\n" };
                renewed.push_str(&format!("$ {command}\n{printed}{end}{blank}"));
            }
        }
    }
    assert!(commands >= 10, "the README's walk-through is gone");
    if write {
        std::fs::write(&path, renewed).expect("written");
        return;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn the_program_in_the_readme_is_whole_and_runs() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).expect("readable");
    for program in ["examples/custom_server.rs", "examples/order.rs", "examples/letters.rs"] {
        let example = read(program);
        let code = &example[example.find("use ").expect("imports")..];
        // The second time what is around the graph goes without saying.
        let part = match program {
            "examples/order.rs" => {
                &code[code.find("async fn charge").expect("the node")
                    ..code.find("async fn pay").expect("what it calls") - 1]
            }
            "examples/letters.rs" => {
                &code[code.find("fn graph").expect("the graph")..code.find("fn main").expect("its main") - 1]
            }
            _ => code,
        };
        let shown = read("README.md").contains(&format!("```rust\n{part}```\n"));
        assert!(shown, "the README shows something else than {program}:\n{part}");
    }

    let mut config = Config::defaults().expect("the defaults are readable");
    config.server.listen = "127.0.0.1:0".into();
    config.database.url = DatabaseUrl::new("memory");
    let server = session_store::app::Server::new(config, vec![program::graph().expect("builds")]);
    let running = server.start().await.expect("the server starts");
    let values = post(&format!("{}/runs/wait", running.url()), json!({"input": {"counter": 0}})).await;
    assert_eq!(values, json!({"counter": 3}));
    running.shutdown().await.expect("stops");
}

#[test]
fn ids_and_times_are_the_only_differences() {
    let one = r#"{"id":"1f1e0000-0000-6000-8000-00000000000a","at":"2026-11-20T10:00:00.000001+00:00","n":3}"#;
    assert_eq!(normalise(one), r#"{"id":"<uuid>","at":"<time>","n":3}"#);
    assert_eq!(normalise("0123456789abcdef0123456789abcdef x"), "<id> x");
    assert_eq!(normalise(r#""bytes": 401,"#), r#""bytes": <bytes>,"#);
    assert_ne!(normalise(r#"{"n":3}"#), normalise(r#"{"n":4}"#));
}

#[test]
fn a_session_is_read_as_commands_and_what_they_print() {
    let parts = parse("a\n```console\n$ one \\\n  two\nout\n\n$ three\n```\n```sh\n$ not run\n```\n");
    let commands: Vec<(String, String)> = parts
        .into_iter()
        .filter_map(|part| match part {
            Part::Command { command, expected, .. } => Some((command, expected)),
            _ => None,
        })
        .collect();
    assert_eq!(commands, [("one \\\n  two".into(), "out\n\n".into()), ("three".into(), String::new())]);
}
