//! The properties themselves.

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, RngSeed, TestRunner};
use session_store::engine::execution::Job;
use session_store::model::{Fields, Json};

use super::plan::{Plan, plans};
use super::world::{End, Entry, Request, World};

/// More runs than any client of a plan needs.
const MAX_RUNS: usize = 40;

/// The same cases in every run, unless the environment says otherwise.
fn check<S: Strategy>(strategy: S, cases: u32, test: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let mut config = Config { rng_algorithm: RngAlgorithm::ChaCha, failure_persistence: None, ..Config::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = cases;
    }
    if std::env::var_os("PROPTEST_RNG_SEED").is_none() {
        config.rng_seed = RngSeed::Fixed(1);
    }
    let seed = config.rng_seed;
    if let Err(error) = TestRunner::new(config).run(&strategy, test) {
        panic!("seed {seed:?}: {error}");
    }
}

fn as_planned(_: &mut Vec<Job>) {}

/// Another order for every number.
fn shuffled(seed: u64) -> impl Fn(&mut Vec<Job>) {
    move |jobs| {
        let mut state = seed;
        for at in (1..jobs.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            jobs.swap(at, (state >> 33) as usize % (at + 1));
        }
    }
}

/// What a client sends after a run ended so; `None`: it has what it wanted, or gives up.
fn next_request(end: &End, first_run: bool) -> Option<Request> {
    match end {
        End::Done | End::OutOfSteps => None,
        End::Failed(error) => (first_run && error.class == "ValueError").then_some(Request::Continue),
        End::Interrupted(list) if list.is_empty() => Some(Request::Continue),
        End::Interrupted(list) => {
            let answer = |id: &String| (id.clone(), Json::from("this"));
            Some(Request::Answers(list.iter().map(|interrupt| answer(&interrupt.id)).collect::<Fields>()))
        }
    }
}

/// What a client sees in the end.
#[derive(Debug, PartialEq)]
struct Outcome {
    end: String,
    state: (std::collections::BTreeMap<String, String>, Vec<String>),
}

fn outcome(world: &World<'_>, end: &End) -> Outcome {
    let end = match end {
        // Which of several failures comes first is up to the clock.
        End::Failed(error) => format!("Failed({})", error.class),
        End::Interrupted(list) => format!("Interrupted({})", list.len()),
        other => format!("{other:?}"),
    };
    Outcome { end, state: world.state() }
}

/// A client that runs a graph to its end, whatever it asks. Before each run's end is told, `crashes` may take back some
/// of what the run stored; another worker goes on.
fn client(world: &mut World<'_>, exit: bool, order: &dyn Fn(&mut Vec<Job>), crashes: &[(usize, usize)]) -> Outcome {
    let mut request = Request::Input(world.plan.input());
    for run in 0..MAX_RUNS {
        let (first_run, before) = (run == 0, world.log.len());
        let mut end = world.run(&request, first_run, false, exit, order);
        for (_, point) in crashes.iter().filter(|(in_run, _)| *in_run == run) {
            let stored = world.log.len() - before;
            // `exit` stores nothing or everything.
            let kept = if exit { 0 } else { point % (stored + 1) };
            world.crash(before + kept);
            end = world.run(&request, first_run, kept > 0, exit, order);
        }
        match next_request(&end, first_run) {
            Some(next) => request = next,
            None => return outcome(world, &end),
        }
    }
    panic!("the client never got to an end");
}

fn drafts(world: &World<'_>) -> Vec<String> {
    let draft = |entry: &Entry| match entry {
        Entry::Checkpoint(draft) => {
            let (checkpoint, metadata) = (draft.checkpoint(), draft.metadata());
            Some(format!("{checkpoint:?} {metadata:?} {:?} {:?}", draft.parent, draft.next))
        }
        Entry::Writes(..) => None,
    };
    world.log.iter().filter_map(draft).collect()
}

fn records(world: &World<'_>) -> Vec<String> {
    let record = |entry: &Entry| match entry {
        Entry::Writes(id, record) => Some(format!("{id} {record:?}")),
        Entry::Checkpoint(_) => None,
    };
    let mut records: Vec<String> = world.log.iter().filter_map(record).collect();
    records.sort();
    records
}

/// Whatever order the tasks of a superstep end in, what is recorded and the checkpoint that follows are the same.
#[test]
fn siblings_commute() {
    check((plans(), any::<u64>()), 80, |(plan, seed)| {
        let graph = plan.graph();
        let (mut one, mut other) = (World::new(&plan, &graph), World::new(&plan, &graph));
        let a = client(&mut one, false, &as_planned, &[]);
        let b = client(&mut other, false, &shuffled(seed), &[]);
        prop_assert_eq!(a, b);
        prop_assert_eq!(drafts(&one), drafts(&other));
        prop_assert_eq!(records(&one), records(&other));
        Ok(())
    });
}

/// The same inputs and ids give the same rows and the same events, in the same order.
#[test]
fn an_execution_can_be_repeated() {
    check(plans(), 50, |plan| {
        let graph = plan.graph();
        let rows = |world: &World<'_>| format!("{:?}", world.log.iter().map(shown).collect::<Vec<_>>());
        let (mut one, mut other) = (World::new(&plan, &graph), World::new(&plan, &graph));
        prop_assert_eq!(client(&mut one, false, &as_planned, &[]), client(&mut other, false, &as_planned, &[]));
        prop_assert_eq!(rows(&one), rows(&other));
        prop_assert_eq!(&one.told, &other.told);
        Ok(())
    });
}

fn shown(entry: &Entry) -> String {
    match entry {
        Entry::Checkpoint(draft) => format!("{:?}", draft.checkpoint()),
        Entry::Writes(id, record) => format!("{id} {record:?}"),
    }
}

/// Any beginning of what a run stores, and a worker that goes on from there: the end is the one without a crash. With
/// durability `sync` and `async` what survives is some beginning of the commits, with `exit` nothing or everything.
#[test]
fn a_crash_anywhere_changes_nothing() {
    let crash = (0..4_usize, 0..64_usize);
    let crashes = prop::collection::vec(crash, 1..4);
    check((plans(), crashes, any::<bool>()), 150, |(plan, crashes, exit): (Plan, _, bool)| {
        let graph = plan.graph();
        let (mut calm, mut crashed) = (World::new(&plan, &graph), World::new(&plan, &graph));
        let expected = client(&mut calm, exit, &as_planned, &[]);
        let got = client(&mut crashed, exit, &as_planned, &crashes);
        prop_assert_eq!(got, expected);
        Ok(())
    });
}

/// When states are stored makes no difference to what they are.
#[test]
fn durability_changes_nothing_but_what_is_stored() {
    check(plans(), 60, |plan| {
        let graph = plan.graph();
        let (mut sync, mut exit) = (World::new(&plan, &graph), World::new(&plan, &graph));
        let expected = client(&mut sync, false, &as_planned, &[]);
        prop_assert_eq!(client(&mut exit, true, &as_planned, &[]), expected);
        Ok(())
    });
}

/// Whatever rows are there, every state can be read.
#[test]
fn every_state_can_be_read_at_any_time() {
    check((plans(), 0..4_usize, any::<usize>()), 40, |(plan, run, point)| {
        let graph = plan.graph();
        let mut world = World::new(&plan, &graph);
        client(&mut world, false, &as_planned, &[(run, point)]);
        for rows in (0..=world.log.len()).rev() {
            world.crash(rows);
            world.read_everything();
        }
        Ok(())
    });
}
