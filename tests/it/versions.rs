//! Graphs that change while threads wait: migrations, what cannot be resumed, and the check that finds it beforehand.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use session_store::app::{Running, Server};
use session_store::config::{Config, DatabaseUrl};
use session_store::graph::{Context, END, Graph, Node, NodeError, START, StateGraph, Update, reducers};
use session_store::model::Json;
use session_store::runtime::unresumable_threads;

use crate::support::process::{binary, on_each_database};

async fn serve(url: &str, graphs: Vec<Graph>) -> Running {
    let mut config = Config::defaults().expect("the defaults are readable");
    config.server.listen = "127.0.0.1:0".into();
    config.database.url = DatabaseUrl::new(url);
    Server::new(config, graphs).start().await.expect("the server starts")
}

async fn ask(running: &Running, method: &str, path: &str, body: Value) -> (u16, Value) {
    let client = reqwest::Client::new();
    let method = reqwest::Method::from_bytes(method.as_bytes()).expect("a method");
    let request = client.request(method, format!("{}{path}", running.url())).body(body.to_string());
    let response = request.send().await.expect("an answer");
    let status = response.status().as_u16();
    (status, response.json().await.expect("JSON"))
}

async fn get(running: &Running, path: &str) -> Value {
    let (status, body) = ask(running, "GET", path, json!(null)).await;
    assert_eq!(status, 200, "{path}: {body}");
    body
}

async fn run(running: &Running, thread: &str, body: Value) -> Value {
    let (status, answer) = ask(running, "POST", &format!("/threads/{thread}/runs/wait"), body).await;
    assert_eq!(status, 200, "{answer}");
    answer
}

#[derive(Deserialize, JsonSchema)]
struct Subject {
    subject: String,
}

#[derive(Deserialize, JsonSchema)]
struct Topic {
    topic: String,
}

async fn review(topic: String, context: Context) -> Result<Update, NodeError> {
    let first = context.interrupt("First?")?;
    let second = context.interrupt(format!("Publish {topic}?"))?;
    Ok(Update::new().set("verdict", format!("{}{}", first.text(), second.text())).set("notes", ["reviewed"]))
}

/// Drafts, asks twice beside a sibling that finishes, and publishes after both.
fn version_1() -> Graph {
    let counted = async |_: Subject, _: Context| Ok(Update::new().set("notes", ["checked"]));
    StateGraph::dynamic("article")
        .channel("subject", session_store::graph::ChannelKind::LastValue)
        .channel("verdict", session_store::graph::ChannelKind::LastValue)
        .reducer("notes", reducers::append())
        .node("draft", async |state: Subject, _| {
            Ok(Update::new().set("notes", ["drafted ".to_owned() + &state.subject]))
        })
        .node("ask", async |state: Subject, context| review(state.subject, context).await)
        .node("check", counted)
        .node("publish", async |(), _| Ok(Update::new().set("notes", ["published"])))
        .edge(START, "draft")
        .edge("draft", "ask")
        .edge("draft", "check")
        .join(["ask", "check"], "publish")
        .build()
        .expect("builds")
}

/// The subject is called topic, `ask` is called `review`, there is a `title`, and the join has gone to `print`.
fn renamed(version: &str) -> StateGraph {
    StateGraph::dynamic("article")
        .version(version)
        .channel("topic", session_store::graph::ChannelKind::LastValue)
        .channel("title", session_store::graph::ChannelKind::LastValue)
        .channel("verdict", session_store::graph::ChannelKind::LastValue)
        .reducer("notes", reducers::append())
        .node("draft", async |state: Topic, _| Ok(Update::new().set("notes", ["drafted ".to_owned() + &state.topic])))
        .node("review", async |state: Topic, context| review(state.topic, context).await)
        .node("check", async |_: Topic, _: Context| -> Result<Update, NodeError> {
            Err(NodeError::new("RuntimeError", "a finished sibling does not run again"))
        })
        .node("print", async |(), _| Ok(Update::new().set("notes", ["published"])))
        .edge(START, "draft")
        .edge("draft", "review")
        .edge("draft", "check")
        .join(["review", "check"], "print")
}

fn version_3() -> Graph {
    renamed("3")
        .migrate("1", |old| {
            old.rename("subject", "topic");
            old.rename_node("ask", "asked");
            Ok(())
        })
        .migrate("2", |old| {
            assert_eq!((old.from(), old.to()), ("2", "3"));
            let Topic { topic } = old.state()?;
            old.set("title", topic.to_uppercase())?;
            old.rename_node("asked", "review");
            old.rename_node("publish", "print");
            let mut notes: Vec<String> = old.get("notes").and_then(|notes| notes.decode().ok()).unwrap_or_default();
            notes[0].push('!');
            old.set("notes", notes).map_err(NodeError::from)
        })
        .build()
        .expect("builds")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_thread_is_migrated_and_keeps_its_questions_and_writes() {
    on_each_database("versions", async |url| {
        let old = serve(&url, vec![version_1()]).await;
        run(&old, "tea", json!({"input": {"subject": "tea"}})).await;
        run(&old, "tea", json!({"command": {"resume": "yes "}})).await;
        let before = get(&old, "/threads/tea/state").await;
        let question = before["interrupts"][0].clone();
        assert_eq!((&question["value"], &before["next"]), (&json!("Publish tea?"), &json!(["ask"])));
        old.shutdown().await.expect("stops");

        let new = serve(&url, vec![version_3()]).await;
        // Reading does not migrate: the thread waits for a node with its old name.
        let waiting = get(&new, "/threads/tea/state").await;
        assert!(waiting["next"].as_array().expect("a list").contains(&json!("ask")), "{waiting}");
        assert_eq!(waiting["checkpoint"], before["checkpoint"]);

        let id = question["id"].as_str().expect("an id");
        let end = run(&new, "tea", json!({"command": {"resume": {id: "now"}}})).await;
        assert_eq!(
            end,
            json!({"topic": "tea", "title": "TEA", "verdict": "\"yes \"\"now\"",
                   "notes": ["drafted tea!", "checked", "reviewed", "published"]})
        );

        let rows = get(&new, "/threads/tea/checkpoints").await;
        let told: Vec<(&Value, &Value, &Value)> = rows
            .as_array()
            .expect("rows")
            .iter()
            .map(|row| (&row["graph_version"], &row["source"], &row["next"]))
            .collect();
        let (one, three, run_by_loop) = (json!("1"), json!("3"), json!("loop"));
        assert_eq!(told[0], (&three, &run_by_loop, &json!([])));
        assert_eq!(told[1], (&three, &run_by_loop, &json!(["print"])));
        assert_eq!(told[2], (&three, &json!("update"), &json!(["review", "check"])));
        assert_eq!((told[3].0, told[3].2), (&one, &json!(["ask", "check"])));
        assert_ne!(rows[2]["topology"], rows[3]["topology"]);
        assert_eq!(rows[2]["topology"], version_3().topology());
        let history = get(&new, "/threads/tea/history").await;
        assert_eq!(history[2]["metadata"]["migrated_from"], "1");
        assert_eq!(history[1]["metadata"].get("migrated_from"), None);
        assert_eq!(history[2]["values"]["title"], "TEA");
        new.shutdown().await.expect("stops");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_migration_a_thread_is_refused_before_anything_runs_and_can_be_repaired() {
    on_each_database("versions", async |url| {
        let old = serve(&url, vec![version_1()]).await;
        for thread in ["stuck", "moved", "renewed"] {
            run(&old, thread, json!({"input": {"subject": thread}})).await;
        }
        old.shutdown().await.expect("stops");

        let graph = renamed("2").build().expect("builds");
        let (version_1, version_2) = (version_1().topology().to_owned(), graph.topology().to_owned());
        let new = serve(&url, vec![graph.clone()]).await;
        for body in [json!({"input": null}), json!({"command": {"resume": "yes"}})] {
            let answer = run(&new, "stuck", body).await;
            let error = &answer["__error__"];
            assert_eq!(error["error"], "GraphVersionError", "{answer}");
            let message = error["message"].as_str().expect("a message");
            for part in [
                "node 'ask'",
                "join 'ask+check -> publish'",
                &format!("version 2, topology {version_2}"),
                &format!("version 1 (topology {version_1})"),
                "StateGraph::migrate",
                "as_node",
            ] {
                assert!(message.contains(part), "{part}: {message}");
            }
        }
        let rows = get(&new, "/threads/stuck/checkpoints").await;
        assert_eq!(rows.as_array().map(Vec::len), Some(3), "nothing was written: {rows}");
        let state = get(&new, "/threads/stuck/state").await;
        assert_eq!(state["values"]["notes"], json!(["drafted stuck", "checked"]));
        assert!(state["next"].as_array().expect("a list").contains(&json!("ask")), "{state}");

        let mut found = Vec::new();
        let looked_at = unresumable_threads(new.storage(), &[graph], &mut |thread| found.push(thread)).await;
        assert_eq!(looked_at.expect("reads"), 3);
        assert_eq!(found.len(), 3);
        assert!(found.iter().all(|thread| thread.missing == ["ask"] && thread.graph_version.as_deref() == Some("1")));

        // Moved on as another node; or given new input.
        let edit = json!({"values": {"topic": "moved", "verdict": "fine"}, "as_node": "draft"});
        let (status, answer) = ask(&new, "POST", "/threads/moved/state", edit).await;
        assert_eq!(status, 200, "{answer}");
        assert_eq!(get(&new, "/threads/moved/state").await["next"], json!(["review", "check"]));
        let answer = run(&new, "renewed", json!({"input": {"topic": "renewed"}, "interrupt_after": ["draft"]})).await;
        assert_eq!(answer["notes"], json!(["drafted renewed", "drafted renewed"]));
        new.shutdown().await.expect("stops");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_fails_changes_nothing() {
    on_each_database("versions", async |url| {
        let old = serve(&url, vec![version_1()]).await;
        run(&old, "tea", json!({"input": {"subject": "tea"}})).await;
        let before = get(&old, "/threads/tea/history").await;
        old.shutdown().await.expect("stops");

        let failing = renamed("2").migrate("1", |_| Err(NodeError::new("ValueError", "no idea"))).build();
        let new = serve(&url, vec![failing.expect("builds")]).await;
        for body in [json!({"command": {"resume": "yes"}}), json!({"input": {"topic": "coffee"}})] {
            let answer = run(&new, "tea", body).await;
            assert_eq!(answer["__error__"]["error"], "GraphVersionError");
            let message = answer["__error__"]["message"].as_str().expect("a message");
            let words = "the migration of graph 'article' from version 1 to version 2 failed, and nothing was changed: \
                         ValueError: no idea";
            assert_eq!(message, words);
        }
        let (status, answer) = ask(&new, "POST", "/threads/tea/state", json!({"values": {}})).await;
        assert!(status == 400 && answer["detail"].as_str().is_some_and(|text| text.contains("no idea")), "{answer}");
        let ids = |history: &Value| -> Vec<Value> {
            let states = history.as_array().expect("states").iter();
            states.map(|state| state["checkpoint"]["checkpoint_id"].clone()).collect()
        };
        assert_eq!(ids(&get(&new, "/threads/tea/history").await), ids(&before));
        new.shutdown().await.expect("stops");
    })
    .await;
}

/// Asks in a graph inside a graph; `entries` counts how often the inner graph began.
fn nested(version: &str, node: &str, ask: &str, entries: &Arc<AtomicUsize>) -> StateGraph {
    let entries = Arc::clone(entries);
    let inner = StateGraph::dynamic("inner")
        .version(version)
        .append("trail")
        .node_with(
            "enter",
            Node::with(entries, async |entries: Arc<AtomicUsize>, (), _ctx: Context| {
                entries.fetch_add(1, Ordering::Relaxed);
                Ok(Update::new().set("trail", ["entered"]))
            }),
        )
        .node(ask, async |(), context: Context| {
            let answer: Json = context.interrupt("well?")?;
            Ok(Update::new().set("trail", [answer]))
        })
        .edge(START, "enter")
        .edge("enter", ask);
    let inner = match version {
        "2" => inner.migrate("1", |old| {
            old.rename_node("ask", "question");
            Ok(())
        }),
        _ => inner,
    };
    StateGraph::dynamic("outer")
        .version(version)
        .append("trail")
        .subgraph(node, inner.build().expect("builds"))
        .edge(START, node)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_graph_inside_goes_on_where_it_was_although_both_were_renamed() {
    on_each_database("versions", async |url| {
        let entries = Arc::new(AtomicUsize::new(0));
        let old = serve(&url, vec![nested("1", "child", "ask", &entries).build().expect("builds")]).await;
        for thread in ["deep", "deeper"] {
            run(&old, thread, json!({"input": {"trail": []}})).await;
        }
        old.shutdown().await.expect("stops");
        assert_eq!(entries.load(Ordering::Relaxed), 2);

        // Only the inner graph's node is gone, and it has no migration: told before anything runs.
        let stuck = nested("3", "child", "question", &entries).build().expect("builds");
        let new = serve(&url, vec![stuck]).await;
        let answer = run(&new, "deep", json!({"command": {"resume": "yes"}})).await;
        assert_eq!(answer["__error__"]["error"], "GraphVersionError", "{answer}");
        let message = answer["__error__"]["message"].as_str().expect("a message");
        assert!(message.contains("node 'ask', which graph 'inner'"), "{message}");
        new.shutdown().await.expect("stops");

        let graph = nested("2", "kid", "question", &entries).migrate("1", |old| {
            old.rename_node("child", "kid");
            Ok(())
        });
        let new = serve(&url, vec![graph.build().expect("builds")]).await;
        for thread in ["deep", "deeper"] {
            let answer = run(&new, thread, json!({"command": {"resume": "yes"}})).await;
            assert_eq!(answer["trail"], json!(["entered", "yes"]));
        }
        assert_eq!(entries.load(Ordering::Relaxed), 2, "the inner graph was not started again");
        new.shutdown().await.expect("stops");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_lists_what_this_build_could_not_resume() {
    on_each_database("versions", async |url| {
        let check = |more: &[&str]| {
            let mut command: Command = binary();
            command.args(["graphs", "--check", "--database-url", &url]).args(more);
            let output = command.output().expect("it runs");
            let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
            (output.status.code(), text(output.stdout), text(output.stderr))
        };
        let (code, out, err) = check(&[]);
        assert_eq!((code, out.trim_end()), (Some(0), "this build can resume all waiting threads: 0"), "{err}");

        // A graph with the name of one that the binary ships, and other nodes; and one that it does not ship.
        let other = |name: &str| {
            StateGraph::dynamic(name)
                .node("ponder", async |(), context: Context| context.interrupt("hm?").map(|_| ()))
                .edge(START, "ponder")
                .edge("ponder", END)
                .build()
                .expect("builds")
        };
        let old = serve(&url, vec![other("approval"), other("unknown")]).await;
        run(&old, "one", json!({"assistant_id": "approval", "input": {}})).await;
        run(&old, "two", json!({"assistant_id": "unknown", "input": {}})).await;
        old.shutdown().await.expect("stops");

        let (code, out, err) = check(&[]);
        assert_eq!(code, Some(1), "{out}{err}");
        assert!(err.contains("2 of 2 waiting threads could not be resumed by this build"), "{err}");
        let lines: Vec<&str> = out.lines().collect();
        assert_eq!(lines[0], "thread\tgraph\tversion\ttopology\tmissing\treason");
        let one = lines.iter().find(|line| line.starts_with("one\t")).expect("a line");
        let topology = other("approval").topology().to_owned();
        assert!(one.starts_with(&format!("one\tapproval\t1\t{topology}\tponder\tthe thread waits for")), "{one}");
        assert!(lines.iter().any(|line| line.ends_with("graph 'unknown' is not in this build")), "{out}");

        let (code, out, _) = check(&["--json"]);
        let objects: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!((code, objects.len()), (Some(1), 2));
        let one = objects.iter().find(|object| object["thread_id"] == "one").expect("an object");
        assert_eq!((&one["missing"], &one["graph_version"]), (&json!(["ponder"]), &json!("1")));
    })
    .await;
}

/// What the check finds: thread, missing nodes, reason.
async fn unresumable(running: &Running, graph: &Graph) -> Vec<(String, Vec<String>, String)> {
    let mut found = Vec::new();
    let mut note = |thread: session_store::runtime::Unresumable| {
        found.push((thread.thread_id.as_str().to_owned(), thread.missing, thread.reason));
    };
    unresumable_threads(running.storage(), std::slice::from_ref(graph), &mut note).await.expect("reads");
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn the_check_knows_migrations_and_looks_into_graphs_inside() {
    on_each_database("versions", async |url| {
        let old = serve(&url, vec![version_1()]).await;
        for thread in ["one", "two"] {
            run(&old, thread, json!({"input": {"subject": thread}})).await;
        }
        old.shutdown().await.expect("stops");
        let migrated = version_3();
        let new = serve(&url, vec![migrated.clone()]).await;
        assert_eq!(unresumable(&new, &migrated).await, [], "resumable thanks to its migrations");
        let fails_for_one = renamed("3")
            .migrate("1", |old| {
                let Subject { subject } = old.state()?;
                if subject == "one" {
                    return Err(NodeError::new("ValueError", "no idea"));
                }
                old.rename("subject", "topic");
                old.rename_node("ask", "review");
                old.rename_node("publish", "print");
                Ok(())
            })
            .build()
            .expect("builds");
        let found = unresumable(&new, &fails_for_one).await;
        let [(thread, _, reason)] = found.as_slice() else { panic!("one thread: {found:?}") };
        assert_eq!(thread, "one");
        assert!(reason.contains("no idea"), "{reason}");
        new.shutdown().await.expect("stops");
    })
    .await;
    on_each_database("versions", async |url| {
        let entries = Arc::new(AtomicUsize::new(0));
        let old = serve(&url, vec![nested("1", "child", "ask", &entries).build().expect("builds")]).await;
        run(&old, "deep", json!({"input": {"trail": []}})).await;
        // The outer nodes are there; the inner graph has lost one, or takes its threads along.
        let stuck = nested("3", "child", "question", &entries).build().expect("builds");
        let found = unresumable(&old, &stuck).await;
        let [(thread, missing, reason)] = found.as_slice() else { panic!("one thread: {found:?}") };
        assert_eq!((thread.as_str(), missing.as_slice()), ("deep", ["ask".to_owned()].as_slice()));
        assert!(reason.contains("inner"), "{reason}");
        let migrated = nested("2", "child", "question", &entries).build().expect("builds");
        assert_eq!(unresumable(&old, &migrated).await, []);
        old.shutdown().await.expect("stops");
    })
    .await;
}
