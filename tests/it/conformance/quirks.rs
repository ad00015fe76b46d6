//! Where LangGraph errs, and what is done here instead: a test for each row of the README's "Differences from LangGraph"
//! that is about the engine.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use session_store::app::{Running, Server};
use session_store::config::{Config, DatabaseUrl};
use session_store::graph::{
    CachePolicy, ChannelKind, Checkpointing, Context, END, Graph, Json, Message, Node, NodeError, RouterContext, START,
    StateGraph, Update, Usage, send,
};

use crate::fixtures::script;
use crate::support::process::{get, post, send as request};

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
    let (status, answer) = request(reqwest::Method::POST, &url, Some(body)).await.expect("an answer");
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
        let write = json!({"op": "write", "values": {"a": name, "l": [name], name: name}});
        let clash = json!({"op": "if", "cond": {"eq": [{"$state": "a"}, "clash"]}, "then": [write], "else": []});
        json!({"name": name, "ops": [clash]})
    };
    let last = json!({"kind": "last"});
    let graph = json!({
        "state": {"a": last, "l": {"kind": "append"}, "p": last, "q": last},
        "nodes": [writer("p"), writer("q")],
        "edges": [["__start__", "p"], ["__start__", "q"]],
    });
    let thread = Thread::of(graph).await;
    let failed = thread.run(json!({"input": {"a": "clash"}})).await;
    assert_eq!(failed["__error__"]["error"], "InvalidUpdateError");
    let told = failed["__error__"]["message"].as_str().expect("a message");
    assert!(told.contains("At key 'a': Can receive only one value per step"), "{told}");
    assert_eq!(get(&thread.url).await["status"], "error");
    let live = thread.state().await;
    let values = json!({"a": "clash", "l": ["p", "q"], "p": "p", "q": "q"});
    assert_eq!(live["values"], values, "all but the key they contradict each other about, as it was");
    assert_eq!(live["next"], json!([]), "both have finished");
    assert_eq!(live["tasks"][1]["result"], json!({"a": "q", "l": ["q"], "q": "q"}), "{live}");
    assert_eq!(thread.history().await.len(), 2, "the input, and the superstep that could not be applied");
    assert_eq!(thread.run(json!({"input": null})).await["__error__"], failed["__error__"], "nothing has changed");
    // New input works, and so does a repair by hand.
    assert_eq!(thread.run(json!({"input": {"a": "peace"}})).await, json!({"a": "peace", "l": []}));
    thread.run(json!({"input": {"a": "clash"}})).await;
    post(&format!("{}/state", thread.url), json!({"values": {"a": "repaired"}, "as_node": "p"})).await;
    assert_eq!(thread.state().await["values"], json!({"a": "repaired", "l": []}));
    assert_eq!(thread.run(json!({"input": null})).await, json!({"a": "repaired", "l": []}));
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

/// Nodes `x` and `y` leave their names, after a cached `a` whose router does what the run's config says.
fn cached(executions: &Arc<AtomicUsize>) -> Graph {
    let executions = Arc::clone(executions);
    let a = Node::new(move |(), _: Context| {
        executions.fetch_add(1, Ordering::SeqCst);
        std::future::ready(Ok(Update::new().set("l", ["a"])))
    });
    StateGraph::dynamic("graph")
        .append("l")
        .node_with("a", a.cache(CachePolicy::default()))
        .node("x", async |(), _| Ok(Update::new().set("l", ["x"])))
        .node("y", async |(), _| Ok(Update::new().set("l", ["y"])))
        .edge(START, "a")
        .branch_with("a", "as_told", ["x", "y"], |_: &(), ctx: &RouterContext| {
            let to = ctx.config.get("configurable").and_then(|configurable| configurable.get("to"));
            if to.as_ref().and_then(Json::as_str) == Some("x") { "x" } else { "y" }
        })
        .build()
        .expect("builds")
}

#[tokio::test]
async fn the_routers_of_a_cached_output_are_asked_again() {
    let executions = Arc::new(AtomicUsize::new(0));
    let thread = Thread::with(cached(&executions)).await;
    let to = |to: &str| json!({"input": {}, "config": {"configurable": {"to": to}}});
    assert_eq!(thread.run(to("x")).await, json!({"l": ["a", "x"]}));
    assert_eq!(thread.run(to("y")).await, json!({"l": ["a", "x", "a", "y"]}));
    assert_eq!(executions.load(Ordering::SeqCst), 1, "its output was cached");
    thread.end().await;
}

#[tokio::test]
async fn a_refused_superstep_with_exit_leaves_nothing() {
    let clash = |name: &str| json!({"name": name, "ops": [{"op": "write", "values": {"l": [name], "z": name}}]});
    let graph = json!({
        "state": {"l": {"kind": "append"}, "z": {"kind": "last"}},
        "nodes": [{"name": "a", "ops": [{"op": "write", "values": {"l": ["a"]}}]}, clash("p"), clash("q")],
        "edges": [["__start__", "a"], ["a", "p"], ["a", "q"]],
    });
    let thread = Thread::of(graph).await;
    let failed = thread.run(json!({"input": {}, "durability": "exit"})).await;
    assert_eq!(failed["__error__"]["error"], "InvalidUpdateError", "{failed}");
    let rows = thread.history().await;
    let kept: Vec<(&Value, &Value)> = rows.iter().map(|row| (&row["values"], &row["next"])).collect();
    assert_eq!(kept, [(&json!({"l": ["a"]}), &json!(["p", "q"]))], "the superstep's start, and no half of it");
    thread.end().await;
}

/// `say` says a message that cost something, beside `ask`, which asks.
fn saying() -> Graph {
    StateGraph::dynamic("graph")
        .messages("messages")
        .node("ask", async |(), ctx: Context| ctx.interrupt("well?").map(|_| ()))
        .node("say", async |(), _| {
            let message = Message::ai("said").with_id("m").with_usage(Usage::new(3, 4));
            Ok(Update::new().set("messages", [message]))
        })
        .edge(START, "ask")
        .edge(START, "say")
        .build()
        .expect("builds")
}

#[tokio::test]
async fn usage_is_in_its_place_before_its_message_is_applied() {
    let thread = Thread::with(saying()).await;
    thread.run(json!({"input": {}})).await;
    let state = thread.state().await;
    assert_eq!(state["next"], json!(["ask"]), "{state}");
    let message = &state["values"]["messages"][0];
    let usage = &message["usage_metadata"];
    assert_eq!((&usage["input_tokens"], &usage["output_tokens"]), (&json!(3), &json!(4)), "{message}");
    assert_eq!(&message["additional_kwargs"]["usage_metadata"], usage, "and where the reference moves it to");
    thread.end().await;
}

/// A node that calls a graph whose node asks twice.
fn calling() -> Graph {
    let inner = StateGraph::dynamic("inner")
        .append("l")
        .node("ask", async |(), ctx: Context| {
            let answers = [ctx.interrupt("first")?, ctx.interrupt("second")?];
            Ok(Update::new().set("l", answers))
        })
        .edge(START, "ask")
        .build()
        .expect("builds");
    let called = inner.clone();
    let call = Node::new(move |(), ctx: Context| {
        let inner = called.clone();
        async move {
            let said = ctx.call(&inner, Json::object()).await?;
            Ok::<_, NodeError>(Update::new().set("l", said.get("l")))
        }
    });
    let graph = StateGraph::dynamic("graph").append("l").node_with("call", call.calls(&inner)).edge(START, "call");
    graph.build().expect("builds")
}

#[tokio::test]
async fn a_plain_answer_answers_one_question_in_a_called_graph_too() {
    let thread = Thread::with(calling()).await;
    let asked = |values: Value| values["__interrupt__"][0]["value"].clone();
    assert_eq!(asked(thread.run(json!({"input": {}})).await), "first");
    assert_eq!(asked(thread.run(json!({"command": {"resume": "one"}})).await), "second");
    assert_eq!(asked(thread.run(json!({"input": null})).await), "second", "nobody has answered it");
    assert_eq!(thread.run(json!({"command": {"resume": "two"}})).await, json!({"l": ["one", "two"]}));
    thread.end().await;
}

/// Two nodes that ask at once; each leaves its name with the answer.
fn two_that_ask() -> Value {
    let ask = |name: &str| {
        let said = json!([{"$concat": [name, ": ", {"$answer": 0}]}]);
        json!({"name": name, "ops": [{"op": "interrupt", "value": name}, {"op": "write", "values": {"l": said}}]})
    };
    json!({
        "state": {"l": {"kind": "append"}},
        "nodes": [ask("ask"), ask("other")],
        "edges": [["__start__", "ask"], ["__start__", "other"]],
    })
}

#[tokio::test]
async fn what_a_replay_of_the_latest_fork_asks_again_is_answered_anew() {
    let thread = Thread::of(two_that_ask()).await;
    thread.run(json!({"input": {}})).await;
    // A replay of the head: a fork that asks both again.
    let head = async || thread.state().await["checkpoint"]["checkpoint_id"].clone();
    let replay = async || {
        let at = head().await;
        thread.run(json!({"input": null, "checkpoint": {"checkpoint_id": at}})).await
    };
    let before = head().await;
    replay().await;
    let fork = head().await;
    assert_ne!(fork, before);
    let questions = async || {
        let state = thread.state().await;
        let found = state["interrupts"].as_array().cloned().unwrap_or_default();
        found.iter().map(|question| (question["value"].clone(), question["id"].clone())).collect::<Vec<_>>()
    };
    let id_of = |asked: &[(Value, Value)], name: &str| {
        asked.iter().find(|(value, _)| value == name).map(|(_, id)| id.as_str().expect("an id").to_owned())
    };
    let asked = questions().await;
    let ask = id_of(&asked, "ask").expect("it asks");
    thread.run(json!({"command": {"resume": {ask: "old"}}})).await;
    let state = thread.state().await;
    assert_eq!((&state["values"]["l"], &state["next"]), (&json!(["ask: old"]), &json!(["other"])), "{state}");
    // The fork is still the latest checkpoint: its replay makes no other, and asks what was answered again.
    replay().await;
    assert_eq!(head().await, fork);
    let asked = questions().await;
    let (ask, other) = (id_of(&asked, "ask").expect("asked again"), id_of(&asked, "other").expect("still asked"));
    let values = thread.run(json!({"command": {"resume": {ask: "new", other: "too"}}})).await;
    assert_eq!(values, json!({"l": ["ask: new", "other: too"]}), "the new answer counts");
    thread.end().await;
}

/// Two tasks of a graph that remembers its calls, in one memory.
fn shared_memory() -> Graph {
    let inner = StateGraph::dynamic("inner")
        .checkpointing(Checkpointing::Own)
        .channel("what", ChannelKind::LastValue)
        .append("seen")
        .append("l")
        .node("note", async |state: Noted, _| {
            let line = format!("{} after {}", state.what, state.seen.join("+"));
            Ok(Update::new().set("seen", [state.what]).set("l", [line]))
        })
        .edge(START, "note")
        .build()
        .expect("builds");
    StateGraph::dynamic("graph")
        .append("l")
        .subgraph("sub", inner)
        .node("end", async |(), _| Ok(()))
        .branch(START, "sends", ["sub"], |_: &()| {
            vec![send("sub", json!({"what": "one"})), send("sub", json!({"what": "two"}))]
        })
        .edge("sub", "end")
        .build()
        .expect("builds")
}

#[derive(serde::Deserialize, schemars::JsonSchema)]
struct Noted {
    what: String,
    #[serde(default)]
    seen: Vec<String>,
}

#[tokio::test]
async fn tasks_that_share_a_memory_begin_alike_in_a_replay_too() {
    for durability in ["sync", "async"] {
        let thread = Thread::with(shared_memory()).await;
        thread.run(json!({"input": {}, "durability": durability})).await;
        let said = thread.run(json!({"input": {}, "durability": durability})).await;
        let lines: Vec<&str> = said["l"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        // What was there before the superstep: neither sees what the other one does.
        assert!(lines.contains(&"one after two") && lines.contains(&"two after two"), "{durability}: {said}");
        let rows = thread.history().await;
        let before = rows.iter().find(|row| row["next"] == json!(["sub", "sub"])).expect("the row before the tasks");
        let at = json!({"checkpoint_id": before["checkpoint"]["checkpoint_id"]});
        let again = thread.run(json!({"input": null, "durability": durability, "checkpoint": at})).await;
        assert_eq!(again, said, "{durability}");
        thread.end().await;
    }
}
