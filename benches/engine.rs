//! The pure engine: what planning and applying supersteps costs without storage, HTTP or node code.
//! `cargo bench --bench engine`; see `benches/README.md`.

use std::collections::BTreeMap;

use divan::Bencher;
use divan::counter::ItemsCount;
use session_store::engine::Output;
use session_store::engine::chunk::Wanted;
use session_store::engine::execution::{Effect, Execution, Input, Next, Options, TaskEnd};
use session_store::graph::{BuildErrors, ChannelKind, Context, Graph, START, StateGraph};
use session_store::model::{CheckpointId, Fields, Json, Timestamp};

/// Supersteps per sample.
const STEPS: usize = 100;

fn main() {
    divan::main();
}

/// Ten nodes in every superstep, each writing 100 bytes under a key of its own: a state of 1 KB that changes entirely.
#[divan::bench]
fn superstep_of_ten_nodes_over_1_kb(bencher: Bencher<'_, '_>) {
    let names: Vec<String> = (0..10).map(|index| format!("node_{index}")).collect();
    let graph = looping(&names).expect("the graph builds");
    let text = Json::from("x".repeat(98));
    let input = names.iter().map(|name| (name.clone(), text.clone())).collect();
    measure(bencher, &graph, &input, |_| text.clone());
}

/// One node that changes one small key while the rest of the state, of this many bytes, stays: the time per superstep
/// must not depend on the rest.
#[divan::bench(args = [1_000, 100_000, 1_000_000])]
fn superstep_changing_a_small_key(bencher: Bencher<'_, '_>, rest: usize) {
    let graph = looping(&["small".to_owned()]).expect("the graph builds");
    let input = [("rest".to_owned(), Json::from("x".repeat(rest - 2))), ("small".to_owned(), Json::from(0_i64))].into();
    measure(bencher, &graph, &input, |_| Json::from(1_i64));
}

/// One node that appends one item to a list of this many: appending costs what is appended.
#[divan::bench(args = [10, 10_000])]
fn superstep_appending_to_a_list(bencher: Bencher<'_, '_>, items: usize) {
    let graph = looping(&["list".to_owned()]).expect("the graph builds");
    let list = (0..items).map(|index| Json::from(format!("item number {index}"))).collect();
    let item: Json = [Json::from("one more item")].into_iter().collect();
    measure(bencher, &graph, &[("list".to_owned(), list)].into(), |_| item.clone());
}

fn measure(bencher: Bencher<'_, '_>, graph: &Graph, input: &Fields, output: impl Fn(&str) -> Json) {
    let bencher = bencher.counter(ItemsCount::new(STEPS)).with_inputs(|| begin(graph, input));
    bencher.bench_local_values(|run| drive(run, &output));
}

/// Nodes that all start at once and then follow themselves for ever; each has a key of its name.
fn looping(names: &[String]) -> Result<Graph, BuildErrors> {
    let mut graph = StateGraph::dynamic("bench").channel("rest", ChannelKind::LastValue);
    for name in names {
        graph = if name == "list" { graph.append(name) } else { graph.channel(name, ChannelKind::LastValue) };
        graph = graph.node(name, async |(): (), _ctx: Context| Ok(())).edge(START, name).edge(name, name);
    }
    graph.build()
}

/// A run under way: its input is applied.
struct Run {
    execution: Execution,
    time: i64,
}

fn begin(graph: &Graph, input: &Fields) -> Run {
    let mut effects = Vec::new();
    let input = Input::Value(Json::from(input));
    let started = Execution::start(graph.spec(), None, input, options(), &mut |_| (id(0), Timestamp(0)), &mut effects);
    let mut run = Run { execution: started.expect("the run starts"), time: 0 };
    // The first superstep is the start node's.
    superstep(&mut run, &mut |_| unreachable!("the start node is hidden"));
    run
}

/// Drives [`STEPS`] supersteps as a runtime would, with outputs made up on the spot.
fn drive(mut run: Run, mut output: impl FnMut(&str) -> Json) -> Run {
    for _ in 0..STEPS {
        superstep(&mut run, &mut output);
    }
    run
}

fn superstep(run: &mut Run, output: &mut dyn FnMut(&str) -> Json) {
    let (execution, time) = (&mut run.execution, &mut run.time);
    let mut effects: Vec<Effect> = Vec::new();
    let Next::Run(jobs) = execution.tick(&mut effects) else { panic!("the loop has no end") };
    for job in jobs {
        let written = match job.task.is_hidden() {
            true => Execution::start_output(&job.task),
            false => Output::Update(Fields::from([(job.task.name.to_string(), output(&job.task.name))])),
        };
        execution.finish_task(&job, TaskEnd::Output(written), &[], &mut effects);
    }
    let mut new_id = |_step: i64| {
        *time += 1;
        (id(*time), Timestamp(*time))
    };
    execution.after_tick(&mut new_id, &mut effects).expect("the superstep applies");
    divan::black_box(effects);
}

fn id(time: i64) -> CheckpointId {
    format!("{time:032}")
}

fn options() -> Options {
    Options {
        thread_id: "bench".to_owned(),
        ns: String::new(),
        parents: BTreeMap::new(),
        extra: Fields::new(),
        task_metadata: Json::object(),
        recursion_limit: 1_000_000,
        interrupt_before: None,
        interrupt_after: None,
        strict_resume: false,
        resuming: None,
        addressed: false,
        answers_by_id: Fields::new(),
        exact_answers: false,
        exit: false,
        has_storage: true,
        wanted: Wanted::default(),
    }
}
