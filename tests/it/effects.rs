//! External calls across crashes, questions, retries and hand-overs, counted by the world outside.

use std::collections::{BTreeSet, HashMap};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::post as on_post;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use session_store::app::{Running, Server as App};
use session_store::config::{Config, DatabaseUrl};
use session_store::graph::{
    Any, Checkpointing, Context, EffectOptions, Graph, Node, NodeError, OnError, OnUnknown, RetryPolicy, START,
    StateGraph, Update, send,
};
use session_store::model::Json;
use session_store::update;
use tokio::sync::watch;

use crate::support::process::{Database, PATIENCE, Server, eventually, get, on_each_database, post, send as request};

// --- the world outside ------------------------------------------------------------------------------------------------

/// A service that counts the calls it gets, and can be told to let them wait.
#[derive(Clone)]
struct World {
    url: String,
    calls: Arc<Mutex<HashMap<String, Vec<String>>>>,
    /// Calls of these names are not answered.
    held: watch::Sender<BTreeSet<String>>,
}

impl World {
    async fn start() -> World {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let world = World { url, calls: Arc::default(), held: watch::Sender::default() };
        let routes = Router::new().route("/{name}", on_post(called)).with_state(world.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        world
    }

    fn hold(&self, name: &str) {
        self.held.send_modify(|held| held.extend([name.to_owned()]));
    }

    fn let_go(&self, name: &str) {
        self.held.send_modify(|held| held.retain(|held| held != name));
    }

    fn calls(&self, name: &str) -> Vec<String> {
        self.calls.lock().expect("not poisoned").get(name).cloned().unwrap_or_default()
    }

    fn count(&self, name: &str) -> usize {
        self.calls(name).len()
    }

    async fn reaches(&self, name: &str, count: usize) {
        let there = async || (self.count(name) >= count).then_some(());
        eventually(&format!("call {count} of {name}"), PATIENCE, there).await;
    }
}

async fn called(State(world): State<World>, Path(name): Path<String>, body: String) -> String {
    let count = {
        let mut calls = world.calls.lock().expect("not poisoned");
        let calls = calls.entry(name.clone()).or_default();
        calls.push(body);
        calls.len()
    };
    let mut held = world.held.subscribe();
    let open = held.wait_for(|held| !held.iter().any(|prefix| name.starts_with(prefix.as_str()))).await;
    open.map(|_| format!("{name} {count}")).unwrap_or_default()
}

async fn call(url: &str, name: &str, body: String) -> Result<String, NodeError> {
    Ok(reqwest::Client::new().post(format!("{url}/{name}")).body(body).send().await?.text().await?)
}

// --- a graph that pays ------------------------------------------------------------------------------------------------

#[derive(Serialize, Deserialize, JsonSchema)]
struct Order {
    /// Names its calls, so that several threads can be told apart.
    name: String,
    #[serde(default)]
    ask: bool,
    #[serde(default)]
    log: Vec<String>,
}

fn shop(world: &str) -> Graph {
    let world: Arc<str> = world.into();
    let (first, pay, last) = (Arc::clone(&world), Arc::clone(&world), world);
    StateGraph::<Order>::new("shop")
        .append("log")
        .node("first", move |order: Order, _ctx: Context| {
            let world = Arc::clone(&first);
            async move { note(call(&world, &format!("first-{}", order.name), String::new()).await?) }
        })
        .node("pay", move |order: Order, ctx: Context| {
            let world = Arc::clone(&pay);
            async move {
                let key = ctx.idempotency_key().await?;
                let on_unknown = if order.ask { OnUnknown::Ask } else { OnUnknown::Retry };
                let options = EffectOptions { on_unknown, ..EffectOptions::default() };
                let name = format!("charge-{}", order.name);
                let receipt: String =
                    ctx.effect_with(options, "charge", async || call(&world, &name, key.clone()).await).await?;
                ctx.usage("judge", 10, 1, None);
                call(&world, &format!("after-{}", order.name), key).await?;
                note(receipt)
            }
        })
        .node("last", move |order: Order, _ctx: Context| {
            let world = Arc::clone(&last);
            async move { note(call(&world, &format!("last-{}", order.name), String::new()).await?) }
        })
        .edge(START, "first")
        .edge("first", "pay")
        .edge("pay", "last")
        .build()
        .expect("builds")
}

/// The same as a node of another graph.
fn mall(world: &str) -> Graph {
    let graph = StateGraph::<Order>::new("mall").append("log").subgraph("shop", shop(world)).edge(START, "shop");
    graph.build().expect("builds")
}

/// Two nodes side by side, both of which cost something; one ends at once, the other one when the world lets it.
fn pair(world: &str) -> Graph {
    let world: Arc<str> = world.into();
    let node = |name: &'static str, tokens: u64| {
        let world = Arc::clone(&world);
        move |_: Order, ctx: Context| {
            let world = Arc::clone(&world);
            async move {
                ctx.usage("judge", tokens, 0, None);
                note(call(&world, name, String::new()).await?)
            }
        }
    };
    let graph =
        StateGraph::<Order>::new("pair").append("log").node("quick", node("quick", 1)).node("long", node("long", 10));
    graph.edge(START, "quick").edge(START, "long").build().expect("builds")
}

fn note(text: String) -> Result<Update, NodeError> {
    Ok(update!(Order { log: vec![text] }))
}

/// Not a test: the server process that the tests kill.
#[tokio::test]
#[ignore = "started by the tests of this file, as a process of its own"]
async fn the_process_that_is_killed() {
    let (world, database) = (std::env::var("EFFECTS_WORLD").unwrap(), std::env::var("EFFECTS_DATABASE").unwrap());
    session_store::app::run_with(vec![shop(&world), mall(&world), pair(&world)], "127.0.0.1:0", &database)
        .await
        .expect("serves");
}

fn serve(world: &World, database: &str) -> Server {
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    command.args(["effects::the_process_that_is_killed", "--exact", "--ignored", "--nocapture"]);
    command.env("EFFECTS_WORLD", &world.url).env("EFFECTS_DATABASE", database).env_remove("DATABASE_URL");
    Server::spawn(command)
}

async fn order(server: &Server, graph: &str, name: &str, durability: &str, ask: bool) -> String {
    let body = json!({"assistant_id": graph, "input": {"name": name, "ask": ask}, "durability": durability});
    let run = post(&format!("{}/threads/{name}/runs", server.url), body).await;
    format!("/threads/{name}/runs/{}", run["run_id"].as_str().expect("an id"))
}

async fn ends(server: &Server, run: &str) -> Value {
    let ended = async || {
        let (status, run) = request(reqwest::Method::GET, &format!("{}{run}", server.url), None).await.ok()?;
        (status == 200 && !matches!(run["status"].as_str(), Some("pending" | "running"))).then_some(run)
    };
    eventually("the run ends", PATIENCE, ended).await.0
}

const MODES: [&str; 3] = ["sync", "async", "exit"];

#[tokio::test]
async fn a_recorded_call_survives_a_kill_in_every_durability_mode() {
    on_each_database("effects", async |url| {
        let world = World::start().await;
        world.hold("after-");
        let server = serve(&world, &url);
        let mut runs = Vec::new();
        for graph in ["shop", "mall"] {
            for mode in MODES {
                let name = format!("{graph}-{mode}");
                let run = order(&server, graph, &name, mode, false).await;
                runs.push((name, run));
            }
        }
        // The charge is recorded, and the node is still at work.
        for (name, _) in &runs {
            world.reaches(&format!("after-{name}"), 1).await;
        }
        server.kill();
        world.let_go("after-");
        let server = serve(&world, &url);
        for (name, run) in &runs {
            assert_eq!(ends(&server, run).await["status"], "success", "{name}");
            assert_eq!(world.count(&format!("charge-{name}")), 1, "{name}: not charged again");
            assert_eq!(world.count(&format!("after-{name}")), 2, "{name}: the node ran again");
            assert_eq!(world.count(&format!("first-{name}")), 1, "{name}: the checkpoint it hangs on was stored");
            let mut keys = world.calls(&format!("after-{name}"));
            keys.extend(world.calls(&format!("charge-{name}")));
            keys.dedup();
            assert_eq!(keys.len(), 1, "{name}: one idempotency key: {keys:?}");
            let state = get(&format!("{}/threads/{name}/state", server.url)).await;
            let log = json!([format!("first-{name} 1"), format!("charge-{name} 1"), format!("last-{name} 1")]);
            assert_eq!(state["values"]["log"], log, "{name}");
            let effects = get(&format!("{}/threads/{name}/effects?results=true", server.url)).await;
            assert_eq!(effects[0]["result"], format!("charge-{name} 1"));
            assert_eq!((&effects[0]["attempt"], &effects[0]["node"]), (&json!(1), &json!("pay")));
            // The first execution's report died with its process, before its task had ended.
            let thread = get(&format!("{}/threads/{name}", server.url)).await;
            assert_eq!(thread["metadata"]["usage"]["total_tokens"], 11, "{name}: {thread}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_call_that_was_never_recorded_is_made_again_or_asked_about() {
    on_each_database("effects", async |url| {
        let world = World::start().await;
        world.hold("charge-");
        let server = serve(&world, &url);
        let mut runs = Vec::new();
        for mode in MODES {
            for (kind, ask) in [("retry", false), ("ask", true)] {
                let name = format!("{mode}-{kind}");
                let run = order(&server, "shop", &name, mode, ask).await;
                runs.push((name, run, ask));
            }
        }
        for (name, ..) in &runs {
            world.reaches(&format!("charge-{name}"), 1).await;
            let effects = get(&format!("{}/threads/{name}/effects?state=started", server.url)).await;
            assert_eq!(
                (&effects[0]["key"], &effects[0]["attempt"]),
                (&json!("charge"), &json!(1)),
                "durable before the call"
            );
        }
        server.kill();
        world.let_go("charge-");
        let server = serve(&world, &url);
        for (name, run, ask) in &runs {
            assert_eq!(ends(&server, run).await["status"], "success", "{name}");
            let place = format!("{}/threads/{name}", server.url);
            if *ask {
                assert_eq!(world.count(&format!("charge-{name}")), 1, "{name}: nobody said so");
                let thread = get(&place).await;
                assert_eq!(thread["status"], "interrupted", "{thread}");
                let questions =
                    thread["interrupts"].as_object().expect("by task").values().next().expect("one").clone();
                assert_eq!(questions[0]["value"]["effect"], "charge", "{thread}");
                let effects = get(&format!("{place}/effects")).await;
                assert_eq!((&effects[0]["state"], &effects[0]["ended_at"]), (&json!("started"), &Value::Null));
                let answer = json!({"action": "result", "result": "a receipt that was found"});
                let body = json!({"assistant_id": "shop", "command": {"resume": answer}});
                let values = post(&format!("{place}/runs/wait"), body).await;
                assert_eq!(values["log"][1], "a receipt that was found", "{values}");
                assert_eq!(world.count(&format!("charge-{name}")), 1);
            } else {
                assert_eq!(world.count(&format!("charge-{name}")), 2, "{name}");
                let effects = get(&format!("{place}/effects")).await;
                assert_eq!((&effects[0]["state"], &effects[0]["attempt"]), (&json!("recorded"), &json!(2)));
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_hand_over_repeats_no_call() {
    let Some(database) = Database::create("effects").await else { return };
    let world = World::start().await;
    world.hold("charge-");
    let owner = serve(&world, &database.url);
    let run = order(&owner, "shop", "o", "async", false).await;
    world.reaches("charge-o", 1).await;
    let heir = serve(&world, &database.url);
    let (url, stopping) = (format!("{}/ok", owner.url), tokio::task::spawn_blocking(move || owner.terminate()));
    // Stopped listening: it waits for the superstep in progress, and starts none after that.
    let deaf = async || reqwest::get(&url).await.is_err().then_some(());
    eventually("the owner stops listening", PATIENCE, deaf).await;
    world.let_go("charge-");
    assert!(stopping.await.expect("joins").success());
    assert_eq!(ends(&heir, &run).await["status"], "success");
    for name in ["charge-o", "after-o", "last-o"] {
        assert_eq!(world.count(name), 1, "{name}");
    }
}

#[tokio::test]
async fn a_crash_counts_a_task_that_had_ended_once() {
    on_each_database("effects", async |url| {
        let world = World::start().await;
        world.hold("long");
        let server = serve(&world, &url);
        let body = json!({"assistant_id": "pair", "input": {"name": "p"}});
        let run = post(&format!("{}/threads/p/runs", server.url), body).await;
        let run = format!("/threads/p/runs/{}", run["run_id"].as_str().expect("an id"));
        // What it cost is committed together with what it did.
        let counted = async || {
            let thread = get(&format!("{}/threads/p", server.url)).await;
            (thread["metadata"]["usage"]["total_tokens"] == 1).then_some(())
        };
        eventually("the quick task is counted", PATIENCE, counted).await;
        world.reaches("long", 1).await;
        server.kill();
        world.let_go("long");
        let server = serve(&world, &url);
        let run = ends(&server, &run).await;
        assert_eq!((world.count("quick"), world.count("long")), (1, 2));
        assert_eq!(run["metadata"]["usage"]["total_tokens"], 11, "{run}");
        assert_eq!(get(&format!("{}/threads/p", server.url)).await["metadata"]["usage"]["total_tokens"], 11);
        let state = get(&format!("{}/threads/p/state", server.url)).await;
        assert_eq!(state["metadata"]["usage"]["models"]["judge"]["input_tokens"], 11, "both tasks, in the checkpoint");
    })
    .await;
}

// --- in one process ---------------------------------------------------------------------------------------------------

async fn start(graphs: Vec<Graph>) -> Running {
    let mut config = Config::defaults().expect("the defaults are readable");
    config.server.listen = "127.0.0.1:0".into();
    config.database.url = DatabaseUrl::new("memory");
    App::new(config, graphs).start().await.expect("the server starts")
}

#[tokio::test]
async fn an_effect_costs_two_commits() {
    let graph = |name: &'static str, effects: usize| {
        let graph = StateGraph::<Log>::new(name).append("log").node("work", move |_: Log, ctx: Context| async move {
            let mut log = Vec::new();
            for n in 0..effects {
                log.push(ctx.effect(&n.to_string(), async || Ok("done".to_owned())).await?);
            }
            Ok::<_, NodeError>(update!(Log { log }))
        });
        graph.edge(START, "work").build().expect("builds")
    };
    let mut config = Config::defaults().expect("the defaults are readable");
    config.server.listen = "127.0.0.1:0".into();
    config.database.url = DatabaseUrl::new("memory");
    // Nothing but the runs themselves shall write while it is counted.
    (config.runtime.poll_secs, config.runtime.lease_secs, config.runtime.renew_secs) = (3600.0, 600.0, 60.0);
    let graphs = vec![graph("none", 0), graph("two", 2)];
    let running = App::new(config, graphs).start().await.expect("the server starts");
    for durability in MODES {
        // On a busy machine a commit may become due before the next one comes to join it: the least of some runs counts.
        let cost = async |graph: &str| {
            let mut least = u64::MAX;
            for n in 0..5 {
                let before = running.storage().write_transactions();
                let body = json!({"assistant_id": graph, "input": {"log": []}, "durability": durability});
                post(&format!("{}/threads/{graph}-{durability}-{n}/runs/wait", running.url()), body).await;
                least = least.min(running.storage().write_transactions() - before);
            }
            least
        };
        let (none, two) = (cost("none").await, cost("two").await);
        assert!(two <= none + 4, "{durability}: {two} transactions with two effects, {none} without");
    }
    running.shutdown().await.expect("stops");
}

type Count = Arc<Mutex<usize>>;

#[derive(Serialize, Deserialize, JsonSchema)]
struct Log {
    log: Vec<String>,
}

/// Calls, asks, and says what it got.
async fn call_and_ask(ctx: &Context, calls: &Count) -> Result<Update, NodeError> {
    let n = ctx.effect("call", async || Ok(more(calls))).await?;
    let answer = ctx.interrupt("go on?")?;
    Ok(update!(Log { log: vec![format!("{n} {answer}")] }))
}

fn more(calls: &Count) -> usize {
    let mut calls = calls.lock().expect("not poisoned");
    *calls += 1;
    *calls
}

fn asking(name: &str, calls: &Count, checkpointing: Checkpointing) -> Graph {
    let calls = Arc::clone(calls);
    StateGraph::<Log>::new(name)
        .append("log")
        .checkpointing(checkpointing)
        .node("ask", move |_: Log, ctx: Context| {
            let calls = Arc::clone(&calls);
            async move { call_and_ask(&ctx, &calls).await }
        })
        .edge(START, "ask")
        .build()
        .expect("builds")
}

/// The asking node somewhere else than at the root.
fn wrapped(name: &str, calls: &Count) -> Graph {
    let root = StateGraph::<Log>::new(name).append("log");
    let child = |checkpointing| asking("child", calls, checkpointing);
    let counted = Arc::clone(calls);
    let ask = move |_: Log, ctx: Context| {
        let calls = Arc::clone(&counted);
        async move { call_and_ask(&ctx, &calls).await }
    };
    let root = match name {
        "root" => root.node("ask", ask).edge(START, "ask"),
        "sub" => root.subgraph("ask", child(Checkpointing::Inherit)).edge(START, "ask"),
        "own" => root.subgraph("ask", child(Checkpointing::Own)).edge(START, "ask"),
        "off" => root.subgraph("ask", child(Checkpointing::Off)).edge(START, "ask"),
        "called" => {
            let child = child(Checkpointing::Inherit);
            let called = child.clone();
            let node = Node::new(move |_: Log, ctx: Context| {
                let child = called.clone();
                async move {
                    let result = ctx.call(&child, Json::object()).await?;
                    Ok::<_, NodeError>(update!(Log { log: result.decode::<Log>()?.log }))
                }
            });
            root.node_with("ask", node.calls(&child)).edge(START, "ask")
        }
        "send" => root.task("ask", ask).branch(START, "fan_out", Any, |(): &()| vec![send("ask", json!({"log": []}))]),
        "handler" => {
            let failing = Node::new(async |_: Log, _: Context| Err::<(), _>(NodeError::new("ValueError", "f")));
            root.node_with("ask", failing.error_handler(ask)).edge(START, "ask")
        }
        other => panic!("no such kind: {other}"),
    };
    root.build().unwrap_or_else(|errors| panic!("{name}: {errors}"))
}

#[tokio::test]
async fn a_call_is_not_repeated_after_a_question_wherever_its_node_is() {
    const KINDS: [&str; 7] = ["root", "sub", "own", "off", "called", "send", "handler"];
    let calls: HashMap<&str, Count> = KINDS.into_iter().map(|kind| (kind, Count::default())).collect();
    let running = start(KINDS.into_iter().map(|kind| wrapped(kind, &calls[kind])).collect()).await;
    for kind in KINDS {
        for durability in MODES {
            let place = format!("{}/threads/{kind}-{durability}", running.url());
            let run = async |what: Value| {
                let mut body = json!({"assistant_id": kind, "durability": durability});
                body.as_object_mut().expect("an object").extend(what.as_object().expect("an object").clone());
                post(&format!("{place}/runs/wait"), body).await
            };
            *calls[kind].lock().expect("not poisoned") = 0;
            let asked = run(json!({"input": {"log": []}})).await;
            assert_eq!(asked["__interrupt__"][0]["value"], "go on?", "{kind}, {durability}: {asked}");
            let done = run(json!({"command": {"resume": "yes"}})).await;
            assert_eq!(done["log"], json!(["1 \"yes\""]), "{kind}, {durability}: {done}");
            assert_eq!(*calls[kind].lock().expect("not poisoned"), 1, "{kind}, {durability}");
            let effects = get(&format!("{place}/effects")).await;
            assert_eq!(effects.as_array().map(Vec::len), Some(1), "{kind}, {durability}: {effects}");
            assert_eq!((&effects[0]["state"], &effects[0]["asked"]), (&json!("recorded"), &json!(0)));
        }
    }
    // Another run of the same graph on the same thread is another task: it calls again.
    let body = json!({"assistant_id": "root", "input": {"log": []}});
    post(&format!("{}/threads/root-sync/runs/wait", running.url()), body).await;
    assert_eq!(*calls["root"].lock().expect("not poisoned"), 2);
    running.shutdown().await.expect("stops");
}

#[tokio::test]
async fn retries_keep_results_and_time_travel_calls_again() {
    let (calls, failures) = (Count::default(), Count::default());
    let (counted, failing) = (Arc::clone(&calls), Arc::clone(&failures));
    let policy = RetryPolicy { initial_interval: Duration::from_millis(1), jitter: false, ..RetryPolicy::default() };
    let node = Node::new(move |_: Log, ctx: Context| {
        let (calls, failures) = (Arc::clone(&counted), Arc::clone(&failing));
        async move {
            let n = ctx.effect("call", async || Ok(more(&calls))).await?;
            ctx.usage("judge", 5, 5, "0.25".parse().ok());
            if more(&failures) == 1 {
                return Err(NodeError::new("Flaky", "once"));
            }
            Ok(update!(Log { log: vec![n.to_string()] }))
        }
    });
    let graph = StateGraph::<Log>::new("flaky").append("log").node_with("call", node.retry(policy)).edge(START, "call");
    let running = start(vec![graph.build().expect("builds")]).await;
    let place = format!("{}/threads/flaky", running.url());
    let run = async |body: Value| post(&format!("{place}/runs/wait"), body).await;
    assert_eq!(run(json!({"assistant_id": "flaky", "input": {"log": []}})).await, json!({"log": ["1"]}));
    assert_eq!(*failures.lock().expect("not poisoned"), 2, "it was tried again");
    // Both attempts cost something.
    let usage = get(&place).await["metadata"]["usage"].clone();
    assert_eq!((&usage["cost"], &usage["models"]["judge"]["total_tokens"]), (&json!("0.5"), &json!(20)));
    let history = get(&format!("{place}/history")).await;
    let before = history.as_array().expect("a list").iter().find(|state| state["next"] == json!(["call"]));
    let at = before.expect("a checkpoint before the node")["checkpoint"]["checkpoint_id"].clone();
    let again = run(json!({"assistant_id": "flaky", "input": null, "checkpoint_id": at})).await;
    assert_eq!(again, json!({"log": ["2"]}), "a branch has tasks of its own");
    let effects = get(&format!("{place}/effects?limit=1")).await;
    assert_eq!(effects.as_array().map(Vec::len), Some(1), "{effects}");
    let (status, refused) = request(reqwest::Method::GET, &format!("{place}/effects?state=x"), None).await.expect("ok");
    assert_eq!(
        (status, refused["detail"].as_str().is_some_and(|text| text.contains("state"))),
        (422, true),
        "{refused}"
    );
    let missing = format!("{}/threads/nobody/effects", running.url());
    assert_eq!(request(reqwest::Method::GET, &missing, None).await.expect("answers").0, 404);
    running.shutdown().await.expect("stops");
}

/// Pays, asks, and pays again under a key of its own.
fn two_calls(keys: &Arc<Mutex<Vec<String>>>) -> Graph {
    let keys = Arc::clone(keys);
    let node = move |_: Log, ctx: Context| {
        let keys = Arc::clone(&keys);
        async move {
            for key in ["first", "second"] {
                if key == "second" {
                    ctx.interrupt("go on?")?;
                }
                let own = ctx.idempotency_key_of(key).await?;
                ctx.effect(key, async || {
                    keys.lock().expect("not poisoned").push(own);
                    Ok(())
                })
                .await?;
            }
            Ok::<_, NodeError>(update!(Log { log: vec!["done".to_owned()] }))
        }
    };
    StateGraph::<Log>::new("two").append("log").node("pay", node).edge(START, "pay").build().expect("builds")
}

#[tokio::test]
async fn a_copy_takes_results_along_and_has_keys_of_its_own() {
    let keys = Arc::default();
    let running = start(vec![two_calls(&keys)]).await;
    let threads = format!("{}/threads", running.url());
    let run = async |thread: &str, body: Value| {
        let mut whole = json!({"assistant_id": "two"});
        whole.as_object_mut().expect("an object").extend(body.as_object().expect("an object").clone());
        post(&format!("{threads}/{thread}/runs/wait"), whole).await
    };
    run("original", json!({"input": {"log": []}})).await;
    let copy = post(&format!("{threads}/original/copy"), json!({})).await;
    let copy = copy["thread_id"].as_str().expect("an id");
    for thread in ["original", copy] {
        let done = run(thread, json!({"command": {"resume": "yes"}})).await;
        assert_eq!(done["log"], json!(["done"]), "{done}");
    }
    let keys = keys.lock().expect("not poisoned").clone();
    assert_eq!(keys.len(), 3, "the first call was made once: {keys:?}");
    assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), 3, "two calls, and the second on two threads: {keys:?}");
    running.shutdown().await.expect("stops");
}

/// A call whose outcome is unknown, then a question.
fn unsure() -> Graph {
    let node = async |_: Log, ctx: Context| {
        let options = EffectOptions { on_unknown: OnUnknown::Ask, on_error: OnError::Unknown };
        let first = ctx.info().config.get("configurable").and_then(|fields| fields.get("fails")).is_some();
        let call = async || if first { Err(NodeError::new("Timeout", "no answer")) } else { Ok(1) };
        let made: i64 = ctx.effect_with(options, "call", call).await?;
        let answer = ctx.interrupt("go on?")?;
        Ok::<_, NodeError>(update!(Log { log: vec![format!("{made} {answer}")] }))
    };
    StateGraph::<Log>::new("unsure").append("log").node("call", node).edge(START, "call").build().expect("builds")
}

#[tokio::test]
async fn questions_about_calls_and_others_keep_their_own_answers() {
    let running = start(vec![unsure()]).await;
    let place = format!("{}/threads/u", running.url());
    let run = async |body: Value| {
        let mut whole = json!({"assistant_id": "unsure"});
        whole.as_object_mut().expect("an object").extend(body.as_object().expect("an object").clone());
        post(&format!("{place}/runs/wait"), whole).await
    };
    run(json!({"input": {"log": []}, "config": {"configurable": {"fails": true}}})).await;
    // The open call shows in its task.
    let state = get(&format!("{place}/state?include=effects&include=answers")).await;
    let shown = &state["tasks"][0]["effects"][0];
    assert_eq!((&shown["key"], &shown["state"], &shown["attempt"]), (&json!("call"), &json!("started"), &json!(1)));
    assert_eq!(state["tasks"][0]["questions"], json!([]), "{state}");
    let asked = run(json!({"input": null})).await;
    assert_eq!(asked["__interrupt__"][0]["value"]["effect"], "call", "{asked}");
    let asked = run(json!({"command": {"resume": "retry"}})).await;
    assert_eq!(asked["__interrupt__"][0]["value"], "go on?", "{asked}");
    let questions = async || {
        let found = get(&format!("{place}/interrupts?sort_order=asc")).await;
        let shown = |row: &Value| json!([row["status"], row["answer"]]);
        found.as_array().expect("a list").iter().map(shown).collect::<Vec<Value>>()
    };
    let first = json!(["answered", "retry"]);
    assert_eq!(questions().await, [first.clone(), json!(["pending", null])]);
    let done = run(json!({"command": {"resume": "yes"}})).await;
    assert_eq!(done["log"], json!(["1 \"yes\""]), "{done}");
    assert_eq!(questions().await, [first, json!(["answered", "yes"])]);
    let history = get(&format!("{place}/history?include=effects")).await;
    let tasks = history.as_array().expect("a list").iter().flat_map(|state| state["tasks"].as_array().cloned());
    let effects: Vec<Value> = tasks.flatten().flat_map(|task| task["effects"].as_array().cloned()).flatten().collect();
    assert_eq!(effects.iter().filter(|effect| effect["key"] == "call").count(), effects.len());
    assert_eq!((effects.len(), &effects[0]["state"], &effects[0]["asked"]), (1, &json!("recorded"), &json!(1)));
    let (status, refused) =
        request(reqwest::Method::GET, &format!("{place}/state?include=x"), None).await.expect("answers");
    assert_eq!((status, refused["detail"].as_str().is_some_and(|text| text.contains("effects"))), (422, true));
    running.shutdown().await.expect("stops");
}

/// Calls and asks twice; in version 2 the node has another name.
fn versioned(version: &str, calls: &Count) -> Graph {
    let calls = Arc::clone(calls);
    let ask = move |_: Log, ctx: Context| {
        let calls = Arc::clone(&calls);
        async move {
            let n = ctx.effect("call", async || Ok(more(&calls))).await?;
            let (first, second) = (ctx.interrupt("first?")?, ctx.interrupt("second?")?);
            Ok::<_, NodeError>(update!(Log { log: vec![format!("{n} {first} {second}")] }))
        }
    };
    let graph = StateGraph::<Log>::new("v").append("log").version(version);
    let graph = match version {
        "1" => graph.node("ask", ask).edge(START, "ask"),
        _ => graph.node("asks", ask).edge(START, "asks").migrate("1", |old| {
            old.rename_node("ask", "asks");
            Ok(())
        }),
    };
    graph.build().expect("builds")
}

#[tokio::test]
async fn a_migrated_task_knows_its_calls_even_when_its_origin_is_gone() {
    on_each_database("effects", async |url| {
        let calls = Count::default();
        let serve = async |version: &str| {
            let mut config = Config::defaults().expect("the defaults are readable");
            config.server.listen = "127.0.0.1:0".into();
            config.database.url = DatabaseUrl::new(&url);
            App::new(config, vec![versioned(version, &calls)]).start().await.expect("the server starts")
        };
        let running = serve("1").await;
        let started =
            post(&format!("{}/threads/t/runs", running.url()), json!({"assistant_id": "v", "input": {"log": []}}))
                .await;
        let first_run = started["run_id"].as_str().expect("an id").to_owned();
        get(&format!("{}/threads/t/runs/{first_run}/join", running.url())).await;
        let copy = post(&format!("{}/threads/t/copy", running.url()), json!({})).await;
        let copy = copy["thread_id"].as_str().expect("an id").to_owned();
        running.shutdown().await.expect("stops");
        assert_eq!(*calls.lock().expect("not poisoned"), 1);

        let running = serve("2").await;
        for thread in ["t", &copy] {
            let place = format!("{}/threads/{thread}", running.url());
            let resume = async |answer: &str| {
                let body = json!({"assistant_id": "v", "command": {"resume": answer}});
                post(&format!("{place}/runs/wait"), body).await
            };
            let asked = resume("a").await;
            assert_eq!(asked["__interrupt__"][0]["value"], "second?", "{asked}");
            // The checkpoint that the task was planned from goes: with the other states, or with the run that made it.
            if thread == "t" {
                let gone = request(reqwest::Method::DELETE, &format!("{place}/runs/{first_run}"), None).await;
                assert!(gone.expect("answers").0 < 300);
            } else {
                let body = json!({"thread_ids": [thread], "strategy": "keep_latest"});
                assert_eq!(post(&format!("{}/threads/prune", running.url()), body).await["pruned_count"], 1);
            }
            assert_eq!(get(&format!("{place}/history")).await.as_array().map(Vec::len), Some(1), "{thread}");
            let done = resume("b").await;
            assert_eq!(done["log"], json!(["1 \"a\" \"b\""]), "{thread}: {done}");
            assert_eq!(*calls.lock().expect("not poisoned"), 1, "{thread}");
        }
        running.shutdown().await.expect("stops");
    })
    .await;
}
