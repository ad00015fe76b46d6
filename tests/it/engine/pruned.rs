//! Graphs made at random, on a server: a thread that was pruned goes on like its copy that was not.

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config as Cases, RngAlgorithm, RngSeed, TestRunner};
use serde_json::{Value, json};
use session_store::app::Server;
use session_store::config::{Config, DatabaseUrl};

use super::plan::{Plan, plans};
use crate::support::process::{get, on_each_database, post};

/// Graphs that wait for somebody at least once.
const GRAPHS: usize = 12;
/// More runs than any client of a plan needs.
const MAX_RUNS: usize = 40;

/// The same in every run.
fn waiting_plans() -> Vec<Plan> {
    let config = Cases { rng_algorithm: RngAlgorithm::ChaCha, rng_seed: RngSeed::Fixed(1), ..Cases::default() };
    let mut runner = TestRunner::new(config);
    let waiting = plans().prop_filter("waits", Plan::waits);
    (0..GRAPHS).map(|_| waiting.new_tree(&mut runner).expect("a plan").current()).collect()
}

/// One thread of a graph.
struct Thread {
    url: String,
    graph: String,
}

impl Thread {
    async fn run(&self, mut body: Value) -> Value {
        body["assistant_id"] = json!(self.graph);
        post(&format!("{}/runs/wait", self.url), body).await
    }

    async fn state(&self) -> Value {
        get(&format!("{}/state", self.url)).await
    }

    /// What a client sees and could know of both threads alike.
    async fn shown(&self) -> Value {
        let state = self.state().await;
        let tasks: Vec<Value> = state["tasks"].as_array().into_iter().flatten().map(task).collect();
        json!({
            "values": state["values"], "next": state["next"], "tasks": tasks, "checkpoint": state["checkpoint"]["checkpoint_id"],
        })
    }

    /// How a client goes on: with the answers that are asked for, or with nothing. `None`: there is nothing to go on with.
    async fn next_request(&self) -> Option<Value> {
        let state = self.state().await;
        let questions: Vec<&Value> = state["interrupts"].as_array().into_iter().flatten().collect();
        if !questions.is_empty() {
            let answer = |question: &&Value| (question["id"].as_str().expect("an id").to_owned(), json!("this"));
            let answers: serde_json::Map<String, Value> = questions.iter().map(answer).collect();
            return Some(json!({"command": {"resume": answers}}));
        }
        (state["next"] != json!([])).then(|| json!({"input": null}))
    }
}

fn task(task: &Value) -> Value {
    json!([task["id"], task["name"], task["error"], task["result"], task["interrupts"]])
}

/// What a run ends with, but for the ids of its questions: those of new tasks.
fn without_ids(mut end: Value) -> Value {
    for question in end["__interrupt__"].as_array_mut().into_iter().flatten() {
        question["id"].take();
    }
    end
}

/// Whether a run ended with a failure: nothing follows then.
fn has_failed(end: &Value) -> bool {
    end.get("__error__").is_some()
}

async fn goes_on_like_its_copy(base: &str, graph: &str, input: &Value) {
    let pruned = Thread { url: format!("{base}/threads/{graph}"), graph: graph.to_owned() };
    let first = pruned.run(json!({"input": input})).await;
    let copy = post(&format!("{}/copy", pruned.url), json!({})).await;
    let copy = Thread {
        url: format!("{base}/threads/{}", copy["thread_id"].as_str().expect("an id")),
        graph: graph.to_owned(),
    };
    let body = json!({"thread_ids": [graph], "strategy": "keep_latest"});
    assert_eq!(post(&format!("{base}/threads/prune"), body).await["pruned_count"], 1);
    let rows = get(&format!("{}/history", pruned.url)).await;
    assert_eq!(rows.as_array().map(Vec::len), Some(1), "{graph}: one state is left");
    assert_eq!(pruned.shown().await, copy.shown().await, "{graph}: after pruning");
    assert_eq!(pruned.next_request().await, copy.next_request().await, "{graph}: the same questions");
    let mut has_ended = has_failed(&first);
    for _ in 0..MAX_RUNS {
        let (request, other) = (pruned.next_request().await, copy.next_request().await);
        let (Some(request), Some(other)) = (&request, &other) else {
            assert_eq!(request, other, "{graph}");
            return;
        };
        if has_ended {
            return;
        }
        let ends = (pruned.run(request.clone()).await, copy.run(other.clone()).await);
        has_ended = has_failed(&ends.0);
        assert_eq!(without_ids(ends.0), without_ids(ends.1), "{graph}");
        let (mut left, mut right) = (pruned.shown().await, copy.shown().await);
        // New checkpoints have ids of their own, and so have the tasks that hang on them.
        for state in [&mut left, &mut right] {
            state["checkpoint"].take();
            state["tasks"].take();
        }
        assert_eq!(left, right, "{graph}");
    }
    panic!("{graph} does not end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pruned_thread_goes_on_like_its_copy() {
    let plans = waiting_plans();
    on_each_database("pruned", async |url| {
        let mut config = Config::defaults().expect("the defaults are readable");
        config.server.listen = "127.0.0.1:0".into();
        config.database.url = DatabaseUrl::new(&url);
        let graphs = plans.iter().enumerate().map(|(n, plan)| plan.named(&format!("random-{n}"))).collect();
        let running = Server::new(config, graphs).start().await.expect("the server starts");
        for (n, plan) in plans.iter().enumerate() {
            goes_on_like_its_copy(&running.url(), &format!("random-{n}"), plan.input().value()).await;
        }
        running.shutdown().await.expect("stops");
    })
    .await;
}
