//! What supersteps cost without database, HTTP and node code: planning and applying them in the pure engine, and turning
//! them into the rows that a commit hands to storage. `cargo bench --bench engine`; see `benches/README.md`.

use std::collections::BTreeMap;
use std::sync::Arc;

use divan::Bencher;
use divan::counter::ItemsCount;
use session_store::engine::Output;
use session_store::engine::chunk::Wanted;
use session_store::engine::execution::{Effect, Execution, Input, Next, Options, StrictResume, TaskEnd};
use session_store::graph::{ChannelKind, Context, Graph, START, StateGraph};
use session_store::model::{CheckpointId, Fields, Json, Timestamp};
use session_store::runtime::persist::{Stored, Writer};

/// Supersteps per sample.
const STEPS: usize = 100;

fn main() {
    divan::main();
    println!("bytes of rows per superstep");
    for case in [ten_nodes(), chain(), small_key(1_000), small_key(1_000_000), growing_list(10), growing_list(10_000)] {
        let mut run = begin(&case, true);
        let before = run.bytes;
        run = drive(run, &case);
        println!("{:>10}  {}", (run.bytes - before) / STEPS, case.name);
    }
}

/// A graph, what it starts with, and what nodes write under the key of their name, one task after the other.
struct Case {
    name: String,
    graph: Graph,
    input: Fields,
    outputs: Vec<Json>,
}

/// Texts of 100 bytes, all different: none is stored already.
fn texts() -> Vec<Json> {
    (0..10 * STEPS).map(|index| Json::from(format!("{index:098}"))).collect()
}

/// Ten nodes in every superstep, each writing 100 bytes under a key of its own: a state of 1 KB that changes entirely.
fn ten_nodes() -> Case {
    let names: Vec<String> = (0..10).map(|index| format!("node_{index}")).collect();
    let input = names.iter().zip(texts()).map(|(name, text)| (name.clone(), text)).collect();
    let graph = graph(&names, |name| name.to_owned());
    Case { name: "ten nodes, 1 KB".to_owned(), graph, input, outputs: texts() }
}

/// Ten nodes, one after the other.
fn chain() -> Case {
    let names: Vec<String> = (0..10).map(|index| format!("node_{index}")).collect();
    let input = names.iter().zip(texts()).map(|(name, text)| (name.clone(), text)).collect();
    let next = |name: &str| format!("node_{}", (name.bytes().last().unwrap_or_default() - b'0' + 1) % 10);
    Case { name: "a chain of ten nodes, 1 KB".to_owned(), graph: graph(&names, next), input, outputs: texts() }
}

/// One node that changes one small key while the rest of the state, of this many bytes, stays: what a superstep costs
/// must not depend on the rest.
fn small_key(rest: usize) -> Case {
    let input = [("rest".to_owned(), Json::from("x".repeat(rest - 2))), ("small".to_owned(), Json::from(0_i64))].into();
    let graph = graph(&["small".to_owned()], |name| name.to_owned());
    Case { name: format!("a small key beside {rest} bytes"), graph, input, outputs: vec![Json::from(1_i64)] }
}

/// One node that appends one item to a list of this many: appending costs what is appended.
fn growing_list(items: usize) -> Case {
    let list = (0..items).map(|index| Json::from(format!("item number {index}"))).collect();
    let outputs = vec![[Json::from("one more item")].into_iter().collect()];
    let graph = graph(&["list".to_owned()], |name| name.to_owned());
    Case { name: format!("one item onto a list of {items}"), graph, input: [("list".to_owned(), list)].into(), outputs }
}

/// Supersteps in the engine alone.
#[divan::bench_group]
mod engine {
    use super::*;

    #[divan::bench]
    fn ten_nodes_over_1_kb(bencher: Bencher<'_, '_>) {
        measure(bencher, &ten_nodes(), false);
    }

    #[divan::bench]
    fn chain_over_1_kb(bencher: Bencher<'_, '_>) {
        measure(bencher, &chain(), false);
    }

    #[divan::bench(args = [1_000, 1_000_000])]
    fn changing_a_small_key(bencher: Bencher<'_, '_>, rest: usize) {
        measure(bencher, &small_key(rest), false);
    }

    #[divan::bench(args = [10, 10_000])]
    fn appending_to_a_list(bencher: Bencher<'_, '_>, items: usize) {
        measure(bencher, &growing_list(items), false);
    }
}

/// The same, and the rows of every superstep.
#[divan::bench_group]
mod with_rows {
    use super::*;

    #[divan::bench]
    fn ten_nodes_over_1_kb(bencher: Bencher<'_, '_>) {
        measure(bencher, &ten_nodes(), true);
    }

    #[divan::bench]
    fn chain_over_1_kb(bencher: Bencher<'_, '_>) {
        measure(bencher, &chain(), true);
    }

    #[divan::bench(args = [1_000, 1_000_000])]
    fn changing_a_small_key(bencher: Bencher<'_, '_>, rest: usize) {
        measure(bencher, &small_key(rest), true);
    }

    #[divan::bench(args = [10, 10_000])]
    fn appending_to_a_list(bencher: Bencher<'_, '_>, items: usize) {
        measure(bencher, &growing_list(items), true);
    }
}

fn measure(bencher: Bencher<'_, '_>, case: &Case, with_rows: bool) {
    let bencher = bencher.counter(ItemsCount::new(STEPS)).with_inputs(|| begin(case, with_rows));
    bencher.bench_local_values(|run| drive(run, case));
}

/// Nodes with a key of their name each that run for ever: the first of a chain, or all at once.
fn graph(names: &[String], next: impl Fn(&str) -> String) -> Graph {
    let mut graph = StateGraph::dynamic("bench").channel("rest", ChannelKind::LastValue);
    for name in names {
        graph = if name == "list" { graph.append(name) } else { graph.channel(name, ChannelKind::LastValue) };
        graph = graph.node(name, async |(): (), _ctx: Context| Ok(())).edge(name, next(name));
        if next(name) == *name || *name == names[0] {
            graph = graph.edge(START, name);
        }
    }
    graph.build().expect("the graph builds")
}

/// A run under way: its input is applied.
struct Run {
    execution: Execution,
    time: i64,
    /// What turns its effects into rows, if they are measured.
    writer: Option<(Writer, Stored)>,
    bytes: usize,
    tasks: usize,
}

fn begin(case: &Case, with_rows: bool) -> Run {
    let mut effects = Vec::new();
    let (spec, input) = (case.graph.spec(), Input::Value(Json::from(&case.input)));
    let started = Execution::start(spec, None, input, options(), &mut |_| (id(0), Timestamp(0)), &mut effects);
    let writer = with_rows.then(|| (Writer::new(None), Stored::default()));
    let mut run = Run { execution: started.expect("the run starts"), time: 0, writer, bytes: 0, tasks: 0 };
    run.take(&mut effects);
    // The first superstep is the start node's.
    run.superstep(&case.outputs);
    run
}

/// Drives [`STEPS`] supersteps as a runtime would, with outputs made up on the spot.
fn drive(mut run: Run, case: &Case) -> Run {
    for _ in 0..STEPS {
        run.superstep(&case.outputs);
    }
    run
}

impl Run {
    fn superstep(&mut self, outputs: &[Json]) {
        let mut effects: Vec<Effect> = Vec::new();
        let Next::Run(jobs) = self.execution.tick(&mut effects) else { panic!("the loop has no end") };
        for job in jobs {
            self.tasks += 1;
            let output = &outputs[self.tasks % outputs.len()];
            let written = match job.task.is_hidden() {
                true => Execution::start_output(&job.task),
                false => Output::Update(Fields::from([(job.task.name.to_string(), output.clone())])),
            };
            self.execution.finish_task(&job, TaskEnd::Output(written), &[], &mut effects);
        }
        let time = &mut self.time;
        let mut new_id = |_step: i64| {
            *time += 1;
            (id(*time), Timestamp(*time))
        };
        self.execution.after_tick(&mut new_id, &mut effects).expect("the superstep applies");
        self.take(&mut effects);
    }

    fn take(&mut self, effects: &mut Vec<Effect>) {
        let Some((writer, stored)) = &mut self.writer else {
            divan::black_box(effects);
            return;
        };
        for effect in effects.drain(..) {
            match effect {
                Effect::Checkpoint(draft) => writer.put_checkpoint(&draft, stored),
                Effect::Writes { checkpoint_id, record } => writer.put_record("", &checkpoint_id, &record),
                Effect::Chunk(_) => {}
            }
        }
        let rows = divan::black_box(writer.take());
        let text = |json: &Json| json.as_raw().get().len();
        self.bytes += rows.checkpoints.iter().map(|row| text(&row.body) + text(&row.metadata)).sum::<usize>()
            + rows.task_writes.iter().map(|row| text(&row.body)).sum::<usize>()
            + rows.payloads.iter().map(|payload| text(&payload.value)).sum::<usize>()
            + rows.log.iter().map(|row| text(&row.items)).sum::<usize>();
    }
}

fn id(time: i64) -> CheckpointId {
    format!("{time:032}")
}

fn options() -> Options {
    Options {
        thread_id: "bench".to_owned(),
        ns: String::new(),
        parents: BTreeMap::new(),
        // What a server adds to the metadata of every checkpoint.
        extra: ["thread_id", "run_id", "assistant_id"].map(|key| (key.to_owned(), Json::from(id(1)))).into(),
        task_metadata: Json::object(),
        recursion_limit: 1_000_000,
        interrupt_before: None,
        interrupt_after: None,
        strict_resume: StrictResume::Off,
        router_context: Arc::default(),
        resuming: None,
        addressed: false,
        answers_by_id: Fields::new(),
        exact_answers: false,
        exit: false,
        has_storage: true,
        wanted: Wanted::default(),
    }
}
