//! What builders make of their declarations, and what they refuse.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use super::*;
use crate::engine::{Destination, NodeSpec, Output, RouterContext};
use crate::graph::testing::Probe;
use crate::graph::{Any, CachePolicy, END, NodeInput, RetryPolicy, START, Update, goto, send};
use crate::update;

#[derive(Serialize, Deserialize, JsonSchema)]
struct State {
    n: i64,
    l: Vec<String>,
    left: u64,
}

fn base() -> StateGraph<State> {
    StateGraph::<State>::new("g").append("l").managed("left", Managed::RemainingSteps)
}

fn nothing() -> Node {
    Node::new(async |(), _ctx| Ok(()))
}

fn node<'a>(graph: &'a Graph, name: &str) -> &'a NodeSpec {
    graph.spec().node(name).expect("a node")
}

#[test]
fn fields_become_channels_and_input_and_output() {
    let graph = base().node_with("a", nothing()).edge(START, "a").build().expect("builds");
    let spec = graph.spec();
    let channels: Vec<(&str, String)> = spec.channels.iter().map(|(k, v)| (k.as_str(), format!("{v:?}"))).collect();
    let expected = [
        ("n", "LastValue"),
        ("l", "Reducer"),
        ("__start__", "Ephemeral"),
        ("__pregel_tasks", "Topic"),
        ("branch:to:a", "Ephemeral"),
    ];
    assert_eq!(channels, expected.map(|(key, kind)| (key, kind.to_owned())));
    assert_eq!(spec.managed["left"], Managed::RemainingSteps);
    for keys in [&spec.input, &spec.output, &spec.stream] {
        assert_eq!(keys, &["n", "l"]);
    }
    assert_eq!(spec.version, "1");
    let properties = graph.schemas().state["properties"].as_object().expect("an object").clone();
    assert_eq!(properties.keys().collect::<Vec<_>>(), ["n", "l"]);
}

#[test]
fn nodes_read_what_their_input_type_names() {
    #[derive(Deserialize, JsonSchema)]
    #[expect(dead_code, reason = "only its shape matters")]
    struct Less {
        left: u64,
        secret: Option<i64>,
    }
    let graph = base()
        .private("secret", ChannelKind::LastValue)
        .node("all", async |_: State, _ctx| Ok(()))
        .node("some", async |_: Less, _ctx| Ok(()))
        .node("none", async |(), _ctx| Ok(()))
        .node("raw", async |_: Json, _ctx| Ok(()))
        .edge(START, "all")
        .build()
        .expect("builds");
    assert_eq!(node(&graph, "all").input, ["n", "l", "left"]);
    assert_eq!(node(&graph, "some").input, ["left", "secret"]);
    assert!(node(&graph, "none").input.is_empty());
    assert_eq!(node(&graph, "raw").input, ["n", "l", "left"]);
    assert_eq!(graph.spec().stream, ["n", "l", "secret"]);
    assert_eq!(graph.spec().output, ["n", "l"]);
}

#[test]
fn edges_joins_and_routers_become_writers_and_triggers() {
    let graph = base()
        .node_with("p", nothing())
        .node_with("q", nothing())
        .node_with("j", nothing().defer())
        .edge(START, "p")
        .edge(START, "q")
        .edge("p", "q")
        .edge("p", "q")
        .edge("p", END)
        .join(["p", "q"], "j")
        .join(["p", "q"], END)
        .branch("q", "more", Any, |(): &()| Vec::<String>::new())
        .build()
        .expect("builds");
    assert_eq!(node(&graph, START).writers.edges, ["p", "q"]);
    assert_eq!(node(&graph, "p").writers.edges, ["q"]);
    assert_eq!(node(&graph, "p").writers.joins, ["join:p+q:j"]);
    assert_eq!(node(&graph, "j").triggers, ["branch:to:j", "join:p+q:j"]);
    assert!(
        matches!(&graph.spec().channels["join:p+q:j"], ChannelKind::Barrier { names, deferred: true } if names == &["p", "q"])
    );
    assert!(matches!(graph.spec().channels["branch:to:j"], ChannelKind::AfterFinish));
    assert_eq!(graph.spec().trigger_to_nodes["join:p+q:j"], ["j"]);
    assert_eq!(node(&graph, "q").writers.branches[0].targets, None);
}

#[test]
fn routers_decode_the_state_and_say_where() {
    #[derive(Deserialize, JsonSchema)]
    struct N {
        n: i64,
    }
    let graph = base()
        .node_with("a", nothing())
        .edge(START, "a")
        .branch("a", "typed", ["a", END], |state: &N| if state.n > 0 { END } else { "a" })
        .branch("a", "sends", ["a"], |state: &N| vec![Destination::from("a"), send("a", state.n)])
        .branch("a", "fails", Any, |_: &N| Err::<&str, _>(NodeError::new("ValueError", "boom")))
        .branch("a", "undecided", Any, |_: &N| None::<&str>)
        .branch_with("a", "knowing", Any, |_: &Json, ctx: &RouterContext| {
            let plan = ctx.context.get("plan").and_then(|plan| plan.as_str().map(str::to_owned));
            format!("{} {}", ctx.thread_id, plan.unwrap_or_default())
        })
        .build()
        .expect("builds");
    assert_eq!(node(&graph, "a").input, ["n"]);
    let state: Fields = [("n".to_owned(), Json::from(1))].into();
    let answer = |n: usize| (node(&graph, "a").writers.branches[n].route)(&state, &RouterContext::default());
    assert_eq!(answer(0), Ok(Some(vec![Destination::from(END)])));
    assert_eq!(answer(1), Ok(Some(vec![Destination::from("a"), Destination::send("a", Json::from(1))])));
    assert_eq!(answer(2), Err(EngineError::value("boom")));
    assert_eq!(answer(3), Ok(None));
    let context = Json::parse(r#"{"plan":"free"}"#).expect("JSON");
    let known = RouterContext { thread_id: "t".to_owned(), context, ..RouterContext::default() };
    let answer = (node(&graph, "a").writers.branches[4].route)(&state, &known);
    assert_eq!(answer, Ok(Some(vec![Destination::from("t free")])));
    let error =
        (node(&graph, "a").writers.branches[0].route)(&Fields::new(), &RouterContext::default()).expect_err("fails");
    assert!(error.message.contains("router `typed`") && error.message.contains("`n`"), "{error}");
}

#[test]
fn error_handlers_are_nodes_without_triggers() {
    let graph = base()
        .node_with("a", Node::new(async |_: State, _ctx| Ok(())).error_handler(async |(), _ctx| Ok(goto("b"))))
        .node_with("b", nothing())
        .node_defaults(NodeDefaults::new().error_handler(async |(), _ctx| Ok(())).timeout(Duration::from_secs(1)))
        .edge(START, "a")
        .build()
        .expect("builds");
    assert_eq!(node(&graph, "a").error_handler.as_deref(), Some("__error_handler__a"));
    assert_eq!(node(&graph, "b").error_handler.as_deref(), Some("__default_error_handler__"));
    for handler in ["__error_handler__a", "__default_error_handler__"] {
        assert!(node(&graph, handler).is_handler && node(&graph, handler).triggers.is_empty());
        assert!(graph.inner.bodies.contains_key(handler));
    }
    assert_eq!(node(&graph, "__error_handler__a").input, ["n", "l", "left"]);
    assert_eq!(graph.inner.policies["b"].timeout.run_timeout, Some(Duration::from_secs(1)));
}

#[test]
fn a_nodes_own_policies_come_before_the_defaults() {
    let (long, short) = (Duration::from_secs(9), Duration::from_secs(1));
    let retry = RetryPolicy { max_attempts: 7, ..RetryPolicy::default() };
    let graph = base()
        .node_with("a", nothing().timeout(long).idle_timeout(short).retry(retry).cache(CachePolicy::default()))
        .node_defaults(NodeDefaults::new().timeout(short).retry(RetryPolicy::default()))
        .edge(START, "a")
        .build()
        .expect("builds");
    let policies = &graph.inner.policies["a"];
    assert_eq!((policies.timeout.run_timeout, policies.timeout.idle_timeout), (Some(long), Some(short)));
    assert_eq!((policies.retry.len(), policies.retry[0].max_attempts), (1, 7));
    assert!(policies.cache.is_some());
}

#[test]
fn subgraphs_and_called_graphs_are_children() {
    let child = base().node_with("a", nothing()).edge(START, "a").checkpointing(Checkpointing::Own).build();
    let child = child.expect("builds");
    let graph = base()
        .subgraph("sub", child.clone())
        .node_with("calls", nothing().calls(&child))
        .edge(START, "sub")
        .build()
        .expect("builds");
    assert!(node(&graph, "sub").is_subgraph && node(&graph, "calls").is_subgraph);
    assert_eq!(node(&graph, "sub").input, ["n", "l", "left"]);
    assert_eq!(graph.child("sub").map(Graph::checkpointing), Some(Checkpointing::Own));
    assert!(graph.child("calls").is_some() && graph.child("nobody").is_none());
}

#[test]
fn input_and_output_can_be_narrowed() {
    #[derive(JsonSchema)]
    #[expect(dead_code, reason = "only its shape matters")]
    struct Ask {
        n: i64,
        extra: String,
    }
    let graph = base().input::<Ask>().output_keys(["l"]).node_with("a", nothing()).edge(START, "a").build();
    let graph = graph.expect("builds");
    assert_eq!(graph.spec().input, ["n", "extra"]);
    assert_eq!(graph.spec().output, ["l"]);
    assert_eq!(graph.spec().stream, ["n", "l", "extra"]);
    assert_eq!(graph.schemas().input["title"], "Ask");
    assert_eq!(graph.schemas().output["properties"].as_object().map(|keys| keys.len()), Some(1));
}

#[test]
fn breakpoints_name_nodes_or_all() {
    let graph = base().node_with("a", nothing()).edge(START, "a").interrupt_before(["a"]).interrupt_after(["*"]);
    let graph = graph.build().expect("builds");
    assert_eq!(graph.spec().interrupt_before, Breakpoints::Nodes(vec!["a".to_owned()]));
    assert_eq!(graph.spec().interrupt_after, Breakpoints::All);
}

#[test]
fn dynamic_graphs_declare_their_keys() {
    let graph = StateGraph::dynamic("d")
        .channel("a", ChannelKind::LastValue)
        .sum("sum")
        .private("p", ChannelKind::Topic { accumulate: true })
        .managed("last", Managed::IsLastStep)
        .node_with("x", Node::new(async |_: Json, _ctx| Ok(())).input_keys(["a", "p"]))
        .node_with("y", Node::new(async |_: Json, _ctx| Ok(())))
        .edge(START, "x")
        .build()
        .expect("builds");
    assert_eq!(node(&graph, "x").input, ["a", "p"]);
    assert_eq!(node(&graph, "y").input, ["a", "sum", "last"]);
    assert_eq!(graph.schemas().state["properties"], json!({"a": {"title": "a"}, "sum": {"title": "sum"}}));
}

#[tokio::test]
async fn closures_can_capture_in_three_ways() {
    let step = Box::new(2);
    let (block, captured) = (step.clone(), step.clone());
    let graph = base()
        .node("block", move |state: State, _ctx| {
            let step = block.clone();
            async move { Ok(update!(State { n: state.n + *step })) }
        })
        .node_with(
            "resource",
            Node::with(step, async |step: Box<i64>, state: State, _ctx| {
                tokio::task::yield_now().await;
                Ok(update!(State { n: state.n + *step }))
            }),
        )
        .node("copied", move |state: State, _ctx| {
            let n = state.n + *captured;
            async move { Ok(Update::new().set("n", n)) }
        })
        .edge(START, "block")
        .build()
        .expect("builds");
    for name in ["block", "resource", "copied"] {
        let state = json!({"n": 1, "l": [], "left": 1});
        let input = NodeInput::State(Json::from(state).fields().expect("an object").into());
        let output = Probe::new().run(&graph, name, input).await.expect("runs");
        assert_eq!(output, Output::Update([("n".to_owned(), Json::from(3))].into()));
    }
}

#[test]
fn all_errors_are_reported_at_once() {
    let errors = base()
        .append("m")
        .private("n", ChannelKind::LastValue)
        .node_with("a", nothing())
        .node_with("a", nothing())
        .node_with("x|y", nothing())
        .node_with("x:y", nothing())
        .node_with("__start__", nothing())
        .node_with("", nothing())
        .node_with("reads", nothing().input_keys(["who"]))
        .edge("a", "nowhere")
        .edge("nobody", "a")
        .edge(END, "a")
        .edge("a", START)
        .join(["a", "nobody"], "a")
        .branch("a", "r", ["nowhere"], |(): &()| END)
        .branch("a", "r", Any, |(): &()| END)
        .interrupt_before(["nobody"])
        .build()
        .expect_err("refuses");
    let text = errors.to_string();
    assert_eq!(
        text,
        "graph `g` cannot be built:\n\
         - reducer: `m` is not a key of the state, which has `n`, `l`, `left`\n\
         - state key `n` is declared twice\n\
         - node `reads` reads: `who` is not a key of the state, which has `n`, `l`, `left`\n\
         - Node `a` already present.\n\
         - node `x|y`: '|' is a reserved character and is not allowed in the node names.\n\
         - node `x:y`: ':' is a reserved character and is not allowed in the node names.\n\
         - Node `__start__` is reserved.\n\
         - a node needs a name\n\
         - edge `a` -> `nowhere`: Found edge ending at unknown node `nowhere`\n\
         - edge `nobody` -> `a`: Found edge starting at unknown node 'nobody'\n\
         - edge `__end__` -> `a`: END cannot be a start node\n\
         - edge `a` -> `__start__`: START cannot be an end node\n\
         - join `a+nobody` -> `a`: Found edge starting at unknown node 'nobody'\n\
         - Graph must have an entrypoint: add at least one edge from START to another node\n\
         - router `r`: At 'a' node, 'r' branch found unknown target 'nowhere'\n\
         - Branch with name `r` already exists for node `a`\n\
         - interrupt_before: Interrupt node `nobody` not found"
    );
}

#[test]
fn a_state_without_named_fields_is_refused() {
    let errors = StateGraph::<Vec<i64>>::new("g").node_with("a", nothing()).edge(START, "a").build();
    let errors = errors.expect_err("refuses").errors;
    assert!(matches!(&errors[..], [BuildError::NotAnObject { role: "state", .. }]));
}
