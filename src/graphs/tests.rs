//! What the shipped graphs' nodes and routers do, without a server around them.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::*;
use crate::engine::chunk::Wanted;
use crate::engine::execution::{Execution, Finished, Input, Next, Options, StrictResume, TaskEnd};
use crate::engine::step::TaskInput;
use crate::engine::{EngineError, RouterContext};
use crate::graph::testing::Probe;
use crate::graph::{Destination, END, NodeError, NodeInput, Output, START, StateGraph};
use crate::model::{Fields, Json, Timestamp};
use crate::update;

fn fields(state: Value) -> Fields {
    Json::from(state).fields().expect("an object")
}

async fn run(probe: &Probe, graph: &Graph, node: &str, state: Value) -> Result<Value, NodeError> {
    match probe.run(graph, node, NodeInput::State(fields(state).into())).await? {
        Output::Update(update) => Ok(Json::from(&update).value().clone()),
        Output::Nothing => Ok(Value::Null),
        other => panic!("unexpected {other:?}"),
    }
}

fn route(graph: &Graph, node: &str, state: Value) -> Vec<Destination> {
    let branch = &graph.spec().node(node).expect("a node").writers.branches[0];
    (branch.route)(&fields(state), &RouterContext::default()).expect("a decision").expect("destinations")
}

#[test]
fn all_of_them_build_and_have_different_names() {
    let graphs: Vec<Graph> = all().into_iter().map(|graph| graph.expect("builds")).collect();
    let names: Vec<&str> = graphs.iter().map(Graph::name).collect();
    assert_eq!(names, ["counter", "count", "greeter", "chat", "approval", "fanout", "slow"]);
    assert!(graphs.iter().all(|graph| graph.description().is_some()));
}

#[tokio::test]
async fn counter_counts_and_says_so() {
    let (graph, probe) = (counter::graph().expect("builds"), Probe::new());
    for n in 0..3 {
        let update = run(&probe, &graph, "increment", json!({"counter": n})).await.expect("counts");
        assert_eq!(update, json!({"counter": n + 1}));
    }
    assert_eq!(
        probe.custom(),
        ["Current counter: 0", "Current counter: 1", "Current counter: 2", "Stopping condition reached"]
    );
    assert_eq!(route(&graph, "increment", json!({"counter": 2})), [Destination::from("increment")]);
    assert_eq!(route(&graph, "increment", json!({"counter": 3})), [Destination::from("__end__")]);
}

#[tokio::test]
async fn a_state_that_does_not_fit_is_said_so() {
    let graph = counter::graph().expect("builds");
    let Err(NodeError::Failed(error)) = run(&Probe::new(), &graph, "increment", json!({})).await else {
        panic!("fails")
    };
    assert_eq!(error.class, "ValidationError");
    assert_eq!(error.message, "the input of node `increment` does not fit its type: missing field `counter`");
}

#[tokio::test]
async fn greeter_keeps_what_was_said() {
    let (graph, probe) = (greeter::graph().expect("builds"), Probe::new());
    let first = run(&probe, &graph, "chat", json!({})).await.expect("greets");
    let second = run(&probe, &graph, "chat", first).await.expect("greets");
    assert_eq!(second, json!({"messages": ["Hello from the agent", "Hello from the agent"]}));
}

#[tokio::test]
async fn chat_answers_without_reading() {
    let graph = chat::graph().expect("builds");
    assert_eq!(graph.spec().nodes["answer"].input, Vec::<String>::new());
    let update = run(&Probe::new(), &graph, "answer", json!({})).await.expect("answers");
    assert_eq!(update["messages"][0]["content"].as_str().map(str::len), Some(81));
}

#[tokio::test]
async fn fanout_sends_twenty_tasks() {
    let graph = fanout::graph().expect("builds");
    let sends = route(&graph, "__start__", json!({"items": []}));
    assert_eq!(sends.len(), 20);
    let Destination::Send(send) = &sends[7] else { panic!("a Send") };
    let output = Probe::new().run(&graph, &send.node, NodeInput::Arg(send.arg.clone())).await.expect("works");
    assert_eq!(output, Output::Update(fields(json!({"items": [7]}))));
}

#[tokio::test]
async fn approval_asks_once_and_understands_the_answer() {
    let graph = approval::graph().expect("builds");
    let state = json!({"topic": "tea", "draft": "Tea.", "approved": null, "published": null});
    let waiting = run(&Probe::new(), &graph, "approve", state.clone()).await;
    assert!(matches!(waiting, Err(NodeError::Interrupted)));

    for (answer, approved) in [
        (json!(true), true),
        (json!("Yes"), true),
        (json!("later"), false),
        (json!({"approved": true}), true),
        (json!(null), false),
    ] {
        let probe = Probe::new().answering(answer);
        let update = run(&probe, &graph, "approve", state.clone()).await.expect("decides");
        assert_eq!(update, json!({"approved": approved, "draft": "Tea."}));
        assert_eq!(probe.questions()[0]["draft"], "Tea.");
    }
    let probe = Probe::new().answering(json!({"approved": true, "draft": "Green tea."}));
    assert_eq!(run(&probe, &graph, "approve", state).await.expect("decides")["draft"], "Green tea.");
}

#[tokio::test]
async fn approval_does_not_ask_for_a_decision_it_has() {
    let graph = approval::graph().expect("builds");
    let (probe, decided) = (Probe::new(), json!({"draft": "Tea.", "approved": true}));
    assert_eq!(run(&probe, &graph, "approve", decided.clone()).await.expect("decides"), json!({}));
    assert!(probe.questions().is_empty());
    assert_eq!(route(&graph, "approve", decided), [Destination::from("yes")]);
    assert_eq!(graph.spec().nodes["approve"].writers.branches[0].path_map.as_ref().expect("a map")["yes"], "publish");
}

#[tokio::test]
async fn slow_takes_its_time() {
    let (graph, probe) = (slow::graph().expect("builds"), Probe::new());
    let started = std::time::Instant::now();
    let update = run(&probe, &graph, "work", json!({"n": 4, "sleep_ms": 5})).await.expect("works");
    assert!(started.elapsed().as_millis() >= 5);
    assert_eq!(update, json!({"n": 5}));
    assert_eq!(probe.custom()[1], json!({"done": 5, "of": 5}));
}

/// Runs a graph from its start to its end, tasks one after the other, with nothing stored.
async fn invoke(graph: &Graph, probe: &Probe, input: Value) -> Result<Value, EngineError> {
    let options = Options {
        thread_id: "t".to_owned(),
        ns: String::new(),
        parents: BTreeMap::new(),
        extra: Fields::new(),
        task_metadata: Json::object(),
        recursion_limit: 100,
        interrupt_before: None,
        interrupt_after: None,
        strict_resume: StrictResume::All,
        router_context: Arc::default(),
        exact_answers: false,
        resuming: None,
        addressed: false,
        answers_by_id: Fields::new(),
        exit: false,
        has_storage: true,
        wanted: Wanted::default(),
    };
    let mut ids = 0;
    let mut new_id = |_: i64| {
        ids += 1;
        (Uuid::from_u128(ids).to_string(), Timestamp::default())
    };
    let (input, mut effects) = (Input::Value(Json::from(input)), Vec::new());
    let mut execution = Execution::start(graph.spec(), None, input, options, &mut new_id, &mut effects)?;
    while let Next::Run(jobs) = execution.tick(&mut effects) {
        for job in jobs {
            let input = match &job.task.input {
                TaskInput::State(state) => NodeInput::State(state.clone()),
                TaskInput::Arg(arg) => NodeInput::Arg(arg.clone()),
            };
            let output = match graph.inner.bodies.get(&*job.task.name) {
                Some(body) => body.run(input, probe.context(&job.task.name)).await,
                None => Ok(Execution::start_output(&job.task)),
            };
            let end = match output {
                Ok(output) => TaskEnd::Output(output),
                Err(NodeError::Failed(error)) => TaskEnd::Failed(error),
                Err(other) => panic!("{other:?}"),
            };
            match execution.finish_task(&job, end, &[], &mut effects) {
                Finished::Done => {}
                Finished::Failed(error) => return Err(error),
                other => panic!("{other:?}"),
            }
        }
        execution.after_tick(&mut new_id, &mut effects)?;
    }
    Ok(Json::from(&execution.output()).value().clone())
}

#[tokio::test]
async fn each_graph_ends_as_it_says() {
    let end = async |graph: Result<Graph, BuildErrors>, input| {
        invoke(&graph.expect("builds"), &Probe::new().answering("yes"), input).await.expect("ends")
    };
    assert_eq!(end(counter::graph(), json!({"counter": 0})).await, json!({"counter": 3}));
    assert_eq!(end(count::graph(), json!({"count": 0})).await, json!({"count": 5}));
    assert_eq!(end(greeter::graph(), json!({})).await, json!({"messages": ["Hello from the agent"]}));
    assert_eq!(end(fanout::graph(), json!({})).await, json!({"items": (0..20).collect::<Vec<_>>()}));
    assert_eq!(end(slow::graph(), json!({"steps": 3, "sleep_ms": 1})).await["n"], 3);
    let approved = end(approval::graph(), json!({"topic": "tea"})).await;
    assert_eq!(approved["published"], "Everything worth knowing about tea.");
    let chat = end(chat::graph(), json!({"messages": "hi"})).await;
    assert_eq!((&chat["messages"][0]["type"], &chat["messages"][1]["type"]), (&json!("human"), &json!("ai")));
}

#[tokio::test]
async fn a_router_may_read_what_its_node_does_not() {
    #[derive(Serialize, Deserialize, JsonSchema)]
    struct State {
        n: i64,
        seen: Vec<String>,
    }
    let graph = StateGraph::<State>::new("g")
        .append("seen")
        .node("a", async |(), _ctx| Ok(update!(State { seen: vec!["a".to_owned()] })))
        .node("b", async |(), _ctx| Ok(update!(State { seen: overwrite(vec!["b".to_owned()]) })))
        .edge(START, "a")
        .branch("a", "over", ["b", END], |state: &State| if state.n > 1 && state.seen.len() == 1 { "b" } else { END })
        .build()
        .expect("builds");
    let end = async |n| invoke(&graph, &Probe::new(), json!({"n": n})).await.expect("ends");
    assert_eq!(end(1).await, json!({"n": 1, "seen": ["a"]}));
    assert_eq!(end(2).await, json!({"n": 2, "seen": ["b"]}));
}
