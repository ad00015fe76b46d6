//! Where LangGraph errs, and what is done here instead: a test for each row of the README's "Differences from LangGraph"
//! that is about the engine.

use serde_json::{Value, json};
use session_store::app::{Running, Server};
use session_store::config::{Config, DatabaseUrl};
use session_store::graph::{END, Graph, START, StateGraph};
use session_store::model::Json;

use crate::fixtures::script;
use crate::support::process::{get, post, send};

async fn serve(graph: Graph) -> Running {
    let mut config = Config::defaults().expect("the defaults are readable");
    config.server.listen = "127.0.0.1:0".into();
    config.database.url = DatabaseUrl::new("memory");
    Server::new(config, vec![graph]).start().await.expect("the server starts")
}

/// A server for one scripted graph, and a thread on it.
struct Thread {
    url: String,
    server: Running,
}

impl Thread {
    async fn of(mut graph: Value) -> Thread {
        graph["id"] = json!("graph");
        let document = serde_json::from_value(graph).expect("a graph document");
        Thread::with(script::graph(&document).expect("a graph")).await
    }

    async fn with(graph: Graph) -> Thread {
        let server = serve(graph).await;
        let thread = post(&format!("{}/threads", server.url()), json!({})).await;
        let url = format!("{}/threads/{}", server.url(), thread["thread_id"].as_str().expect("an id"));
        Thread { url, server }
    }

    /// What a run ends with.
    async fn run(&self, body: Value) -> Value {
        let mut body = body;
        body["assistant_id"] = json!("graph");
        post(&format!("{}/runs/wait", self.url), body).await
    }

    async fn state(&self) -> Value {
        get(&format!("{}/state", self.url)).await
    }

    async fn history(&self) -> Vec<Value> {
        get(&format!("{}/history", self.url)).await.as_array().cloned().expect("a list")
    }

    async fn end(self) {
        self.server.shutdown().await.expect("stops");
    }
}

/// Nodes that append their names to `l`, one after the other.
fn chain(names: &[&str]) -> Value {
    let node = |name: &&str| json!({"name": name, "ops": [{"op": "write", "values": {"l": [name]}}]});
    let steps = std::iter::once(&"__start__").chain(names).zip(names);
    json!({
        "state": {"l": {"kind": "append"}},
        "nodes": names.iter().map(node).collect::<Vec<_>>(),
        "edges": steps.map(|(from, to)| json!([from, to])).collect::<Vec<_>>(),
    })
}

/// A node that asks, as often as there are questions, and appends the answers.
fn asking(questions: &[&str]) -> Value {
    let ask = questions.iter().map(|question| json!({"op": "interrupt", "value": question}));
    let answers: Vec<Value> = (0..questions.len()).map(|n| json!({"$answer": n})).collect();
    json!({
        "state": {"l": {"kind": "append"}},
        "nodes": [{"name": "ask", "ops": ask.chain([json!({"op": "write", "values": {"l": answers}})]).collect::<Vec<_>>()}],
        "edges": [["__start__", "ask"], ["ask", "__end__"]],
    })
}

#[tokio::test]
async fn an_empty_command_is_a_clear_error() {
    let thread = Thread::of(chain(&["a"])).await;
    assert_eq!(thread.run(json!({"input": {"l": []}})).await, json!({"l": ["a"]}));
    let body = json!({"assistant_id": "graph", "command": {}});
    let url = format!("{}/runs/wait", thread.url);
    let (status, answer) = send(reqwest::Method::POST, &url, Some(body)).await.expect("an answer");
    let told = answer.to_string();
    assert!(told.contains("empty Command"), "{status} {told}");
    assert_eq!(thread.state().await["values"], json!({"l": ["a"]}), "nothing ran");
    thread.end().await;
}

#[tokio::test]
async fn a_command_on_a_fresh_thread_applies_once() {
    let thread = Thread::of(chain(&["a", "b"])).await;
    let values = thread.run(json!({"command": {"goto": ["b"], "update": {"l": ["update"]}}})).await;
    let list = values["l"].as_array().expect("a list");
    assert_eq!(list.iter().filter(|item| **item == "update").count(), 1, "{values}");
    assert_eq!(list.iter().filter(|item| **item == "a").count(), 1, "the entry node runs beside the destination");
    thread.end().await;
}

#[tokio::test]
async fn a_plain_answer_answers_one_question() {
    let thread = Thread::of(asking(&["first", "second"])).await;
    let asked = |values: Value| values["__interrupt__"][0]["value"].clone();
    assert_eq!(asked(thread.run(json!({"input": {}})).await), "first");
    assert_eq!(asked(thread.run(json!({"command": {"resume": "one"}})).await), "second");
    assert_eq!(asked(thread.run(json!({"input": null})).await), "second", "nobody has answered it");
    assert_eq!(thread.run(json!({"command": {"resume": "two"}})).await, json!({"l": ["one", "two"]}));
    thread.end().await;
}

#[tokio::test]
async fn a_router_that_fails_is_asked_again() {
    let mut graph = chain(&["a", "b"]);
    graph["edges"] = json!([["__start__", "a"]]);
    let fails_once = json!({"raise": {"error": "ValueError", "message": "no way", "n": 1}});
    graph["routers"] = json!([{"from": "a", "name": "route", "rules": [fails_once, {"to": ["b"]}]}]);
    let thread = Thread::of(graph).await;
    let failed = thread.run(json!({"input": {}})).await;
    assert_eq!(failed["__error__"], json!({"error": "ValueError", "message": "no way"}));
    let state = thread.state().await;
    assert_eq!(state["tasks"][0]["error"], "ValueError('no way')", "{state}");
    assert_eq!(thread.run(json!({"input": null})).await, json!({"l": ["a", "b"]}));
    thread.end().await;
}

#[tokio::test]
async fn an_error_handler_that_runs_again_is_given_the_same_failure() {
    let message = "it's \"so\"\n\\";
    let told = json!([{"$var": "error_node"}, {"$var": "error_class"}, {"$var": "error_message"}]);
    let mut graph = chain(&["a"]);
    graph["nodes"][0]["ops"] = json!([{"op": "fail", "error": "RuntimeError", "message": message}]);
    graph["nodes"][0]["error_handler"] = json!({"ops": [
        {"op": "fail_first", "n": 1, "error": "ValueError", "message": "not yet"},
        {"op": "write", "values": {"l": told}},
    ]});
    let thread = Thread::of(graph).await;
    let failed = thread.run(json!({"input": {}})).await;
    assert_eq!(failed["__error__"], json!({"error": "ValueError", "message": "not yet"}));
    assert_eq!(thread.run(json!({"input": null})).await, json!({"l": ["a", "RuntimeError", message]}));
    thread.end().await;
}

#[tokio::test]
async fn a_router_without_a_decision_fails_with_or_without_a_map() {
    let mut graph = chain(&["a", "b"]);
    graph["edges"] = json!([["__start__", "a"]]);
    for map in [json!(null), json!({"k": "b"})] {
        graph["routers"] = json!([{"from": "a", "name": "route", "rules": [{"to": null}], "path_map": map}]);
        let thread = Thread::of(graph.clone()).await;
        let failed = thread.run(json!({"input": {}})).await;
        let message = "Branch did not return a valid destination";
        assert_eq!(failed["__error__"], json!({"error": "ValueError", "message": message}));
        thread.end().await;
    }
}

#[tokio::test]
async fn an_answer_to_an_answered_question_starts_a_branch() {
    let thread = Thread::of(asking(&["which?"])).await;
    thread.run(json!({"input": {}})).await;
    assert_eq!(thread.run(json!({"command": {"resume": "this"}})).await, json!({"l": ["this"]}));
    let rows = thread.history().await;
    let old = rows.iter().find(|row| row["next"] == json!(["ask"])).expect("the row that asks");
    let at =
        json!({"command": {"resume": "that"}, "checkpoint": {"checkpoint_id": old["checkpoint"]["checkpoint_id"]}});
    assert_eq!(thread.run(at).await, json!({"l": ["that"]}));
    assert_eq!(thread.state().await["values"], json!({"l": ["that"]}), "the branch is the thread's latest");
    let ends = thread.history().await.into_iter().filter(|row| row["next"] == json!([]));
    let ends: Vec<Value> = ends.map(|row| row["values"]["l"].clone()).collect();
    assert_eq!(ends, [json!(["that"]), json!(["this"])], "the old branch is still there");
    thread.end().await;
}

#[tokio::test]
async fn a_first_overwrite_stores_its_value() {
    let graph = StateGraph::dynamic("graph")
        .reducer("n", |_: Json, new: Json| new)
        .node("go", async |_: Json, _| Ok(Json::from(json!({}))))
        .edge(START, "go")
        .edge("go", END)
        .build()
        .expect("builds");
    let thread = Thread::with(graph).await;
    assert_eq!(thread.run(json!({"input": {"n": {"__overwrite__": ["new"]}}})).await, json!({"n": ["new"]}));
    assert_eq!(thread.state().await["values"], json!({"n": ["new"]}));
    thread.end().await;
}

#[tokio::test]
async fn two_writes_to_a_last_value_key_fail_their_run_only() {
    // `p` and `q` contradict each other in the first run, and agree to write nothing afterwards.
    let writer = |name: &str| {
        let write = json!({"op": "write", "values": {"a": name}});
        let clash = json!({"op": "if", "cond": {"eq": [{"$state": "a"}, "clash"]}, "then": [write], "else": []});
        json!({"name": name, "ops": [clash]})
    };
    let graph = json!({
        "state": {"a": {"kind": "last"}},
        "nodes": [writer("p"), writer("q")],
        "edges": [["__start__", "p"], ["__start__", "q"]],
    });
    let thread = Thread::of(graph).await;
    let failed = thread.run(json!({"input": {"a": "clash"}})).await;
    assert_eq!(failed["__error__"]["error"], "InvalidUpdateError");
    let told = failed["__error__"]["message"].as_str().expect("a message");
    assert!(told.contains("At key 'a': Can receive only one value per step"), "{told}");
    assert_eq!(get(&thread.url).await["status"], "error");
    assert_eq!(thread.state().await["values"], json!({"a": "clash"}), "the state of the superstep's start");
    assert_eq!(thread.history().await.len(), 2, "the input, and the superstep that could not be applied");
    // New input works, and so does a repair by hand.
    assert_eq!(thread.run(json!({"input": {"a": "peace"}})).await, json!({"a": "peace"}));
    thread.run(json!({"input": {"a": "clash"}})).await;
    post(&format!("{}/state", thread.url), json!({"values": {"a": "repaired"}, "as_node": "p"})).await;
    assert_eq!(thread.state().await["values"], json!({"a": "repaired"}));
    assert_eq!(thread.run(json!({"input": null})).await, json!({"a": "repaired"}));
    thread.end().await;
}

#[tokio::test]
async fn an_answer_on_a_fresh_thread_answers_nothing() {
    let thread = Thread::of(asking(&["which?"])).await;
    let asked = thread.run(json!({"command": {"resume": "early"}})).await;
    assert_eq!(asked["__interrupt__"][0]["value"], "which?", "nobody had asked before");
    assert_eq!(thread.run(json!({"command": {"resume": "in time"}})).await, json!({"l": ["in time"]}));
    thread.end().await;
}

#[tokio::test]
async fn a_command_for_a_parent_that_is_not_there_is_a_clear_error() {
    let mut graph = chain(&["a"]);
    graph["nodes"][0]["ops"] = json!([{"op": "command", "graph": "__parent__", "goto": ["b"]}]);
    let thread = Thread::of(graph).await;
    let failed = thread.run(json!({"input": {}})).await;
    assert_eq!(failed["__error__"]["error"], "ParentCommand", "{failed}");
    assert_eq!(thread.state().await["next"], json!(["a"]));
    thread.end().await;
}
