//! What a killed process leaves to the next one, by durability (scenarios S80 to S83): what was visible, which nodes run
//! again, and what new input finds. The reference stops until somebody resumes; here the run goes on by itself.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use session_store::app::Server as App;
use session_store::config::{Config, DatabaseUrl, Role};
use session_store::graph::{Context, Graph, Packet, START, StateGraph, Update, goto, send};

use crate::support::process::{PATIENCE, Server, eventually, get, on_each_database, post};

const DIR: &str = "TAKEOVER_DIR";
const DATABASE: &str = "TAKEOVER_DATABASE";
const ROLE: &str = "TAKEOVER_ROLE";
/// Set: the slow node does not return.
const STUCK: &str = "TAKEOVER_STUCK";

/// first -> (ok, slow) -> end. Every call of a node is a line in a file, which no crash takes back.
fn graph() -> Graph {
    let node = |name: &'static str| {
        move |(), ctx: Context| async move {
            let calls = Path::new(&std::env::var(DIR).expect("a directory")).join("calls");
            let mut calls = OpenOptions::new().create(true).append(true).open(calls).expect("the file of calls");
            // In one write: formatting into the file is several, and those of other threads come between.
            calls.write_all(format!("{} {name}\n", ctx.info().thread_id).as_bytes()).expect("a line");
            if name == "slow" && std::env::var_os(STUCK).is_some() {
                std::future::pending::<()>().await;
            }
            Ok(Update::new().set("l", [name]))
        }
    };
    let graph = StateGraph::dynamic("crash")
        .append("l")
        .node("first", node("first"))
        .node("ok", node("ok"))
        .node("slow", node("slow"))
        .node("end", node("end"))
        .edge(START, "first")
        .edge("first", "ok")
        .edge("first", "slow")
        .join(["ok", "slow"], "end");
    graph.build().expect("builds")
}

/// (plan, slow), then two tasks that `plan` sends: one that ends, and one that never does, unless its limit ends it.
fn limited() -> Graph {
    let graph = StateGraph::dynamic("limited")
        .append("l")
        .node("plan", async |(), _: Context| {
            let endless = Packet::new("work", "endless").timeout(Duration::from_millis(100));
            Ok(goto(endless).goto(send("work", "quick")))
        })
        .node("slow", async |(), _: Context| {
            if std::env::var_os(STUCK).is_some() {
                std::future::pending::<()>().await;
            }
            Ok(())
        })
        .task("work", async |what: String, _: Context| {
            if what == "endless" {
                std::future::pending::<()>().await;
            }
            Ok(Update::new().set("l", [what]))
        })
        .edge(START, "plan")
        .edge(START, "slow");
    graph.build().expect("builds")
}

/// Not a test: the server process that the tests kill.
#[tokio::test]
#[ignore = "started by the tests of this file, as a process of its own"]
async fn the_process_that_is_killed() {
    let set = |name: &str| std::env::var(name).expect("set by the test");
    let mut config = Config::defaults().expect("the defaults are readable");
    config.server.listen = "127.0.0.1:0".into();
    config.database.url = DatabaseUrl::new(set(DATABASE));
    config.runtime.role = if set(ROLE) == "api" { Role::Api } else { Role::All };
    let running = App::new(config, vec![graph(), limited()]).start().await.expect("serves");
    println!("listening on {}", running.url());
    std::future::pending::<()>().await;
}

fn serve(dir: &Path, database: &str, role: &str, stuck: bool) -> Server {
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    command.args(["takeover::the_process_that_is_killed", "--exact", "--ignored", "--nocapture"]);
    command.env(DIR, dir).env(DATABASE, database).env(ROLE, role).env_remove("DATABASE_URL");
    if stuck {
        command.env(STUCK, "1");
    }
    Server::spawn(command)
}

fn calls(dir: &Path, thread: &str) -> Vec<String> {
    let text = std::fs::read_to_string(dir.join("calls")).unwrap_or_default();
    let mut calls: Vec<String> = text
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(of, _)| *of == thread)
        .map(|(_, node)| node.to_owned())
        .collect();
    calls.sort();
    calls
}

async fn start(server: &Server, thread: &str, input: &str, more: Value) -> String {
    let mut body = json!({"assistant_id": "crash", "input": {"l": [input]}});
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    let run = post(&format!("{}/threads/{thread}/runs", server.url), body).await;
    run["run_id"].as_str().expect("an id").to_owned()
}

async fn ends(server: &Server, thread: &str, run: &str) -> Value {
    let ended = async || {
        let run = get(&format!("{}/threads/{thread}/runs/{run}", server.url)).await;
        (!matches!(run["status"].as_str(), Some("pending" | "running"))).then_some(run)
    };
    eventually("the run ends", PATIENCE, ended).await.0
}

async fn state(server: &Server, thread: &str) -> Value {
    get(&format!("{}/threads/{thread}/state", server.url)).await
}

#[tokio::test]
async fn a_killed_superstep_goes_on_where_its_durability_left_it() {
    on_each_database("takeover", async |url| {
        let dir = tempfile::tempdir().expect("a directory");
        let stuck = serve(dir.path(), &url, "all", true);
        let mut runs = Vec::new();
        for (thread, durability) in [("sync", "sync"), ("async", "async"), ("exit", "exit"), ("new", "sync")] {
            runs.push((thread, start(&stuck, thread, "in", json!({"durability": durability})).await));
        }
        for (thread, _) in &runs {
            let at_work = async || (calls(dir.path(), thread) == ["first", "ok", "slow"]).then_some(());
            eventually("the slow node is at work", PATIENCE, at_work).await;
        }
        // What `ok` wrote is stored before its sibling ends.
        for thread in ["sync", "async", "new"] {
            let stored = async || {
                let state = state(&stuck, thread).await;
                (state["tasks"][0]["result"] == json!({"l": ["ok"]})).then_some(())
            };
            eventually("the finished sibling is stored", PATIENCE, stored).await;
        }
        stuck.kill();

        // A process that executes nothing shows what the killed one left.
        let reader = serve(dir.path(), &url, "api", false);
        for thread in ["sync", "async"] {
            let left = state(&reader, thread).await;
            assert_eq!(left["values"], json!({"l": ["in", "first", "ok"]}), "{thread}: {left}");
            assert_eq!(left["next"], json!(["slow"]), "{thread}: {left}");
            assert_eq!(left["tasks"][0]["result"], json!({"l": ["ok"]}), "{thread}: {left}");
        }
        let left = state(&reader, "exit").await;
        assert_eq!((&left["values"], &left["next"]), (&json!({}), &json!([])), "nothing of it was stored: {left}");
        let next = start(&reader, "new", "in2", json!({"multitask_strategy": "interrupt"})).await;
        reader.kill();

        let heir = serve(dir.path(), &url, "all", false);
        for (thread, run) in &runs[..3] {
            let ended = ends(&heir, thread, run).await;
            assert_eq!(ended["status"], "success", "{thread}: {ended}");
            assert_eq!(
                state(&heir, thread).await["values"],
                json!({"l": ["in", "first", "ok", "slow", "end"]}),
                "{thread}"
            );
        }
        for thread in ["sync", "async"] {
            assert_eq!(
                calls(dir.path(), thread),
                ["end", "first", "ok", "slow", "slow"],
                "only what had not ended runs again"
            );
        }
        let all_again = ["end", "first", "first", "ok", "ok", "slow", "slow"];
        assert_eq!(calls(dir.path(), "exit"), all_again, "with exit the run starts over, from its input");
        // New input after the crash: the superstep that was under way is given up, what was before it stays.
        assert_eq!(ends(&heir, "new", &runs[3].1).await["status"], "interrupted");
        assert_eq!(ends(&heir, "new", &next).await["status"], "success");
        let values = state(&heir, "new").await["values"].clone();
        assert_eq!(values, json!({"l": ["in", "first", "in2", "first", "ok", "slow", "end"]}));
    })
    .await;
}

#[tokio::test]
async fn the_limit_of_a_send_holds_after_a_kill_and_after_a_resume() {
    on_each_database("takeover", async |url| {
        let dir = tempfile::tempdir().expect("a directory");
        let stuck = serve(dir.path(), &url, "all", true);
        let run = start(&stuck, "t", "in", json!({"assistant_id": "limited"})).await;
        let sent = async || {
            let state = state(&stuck, "t").await;
            let plan = state["tasks"].as_array()?.iter().find(|task| task["name"] == "plan")?.clone();
            (!plan["result"].is_null()).then_some(())
        };
        eventually("what was sent is stored", PATIENCE, sent).await;
        stuck.kill();

        let heir = serve(dir.path(), &url, "all", false);
        assert_eq!(ends(&heir, "t", &run).await["status"], "error");
        let resumed = start(&heir, "t", "", json!({"assistant_id": "limited", "input": null})).await;
        assert_eq!(ends(&heir, "t", &resumed).await["status"], "error");
        let left = state(&heir, "t").await;
        assert_eq!(left["values"], json!({"l": ["in", "quick"]}), "{left}");
        assert_eq!(left["next"], json!(["work"]), "{left}");
        let error = left["tasks"].as_array().and_then(|tasks| tasks.iter().find_map(|task| task["error"].as_str()));
        let limit = "Node 'work' exceeded its run timeout of 0.100s";
        assert!(error.is_some_and(|error| error.contains("NodeTimeoutError") && error.contains(limit)), "{left}");
    })
    .await;
}
