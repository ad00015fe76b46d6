//! A simulation by seeds: several replicas of the real runtime over a made-up database and a made-up time. Processes are
//! killed at any await, stopped past their leases and told to drain; calls are slow, hang, fail, or succeed without an
//! answer; notices get lost; clocks are up to an hour off. Whatever happens, each accepted run ends, each of its supersteps
//! is there once, nobody writes without a lease, and what clients were told is so.
//!
//! All is one thread with paused time: minutes of theirs take milliseconds of ours, and the same seed gives the same trace.
//! `SESSION_STORE_SIM_SEEDS=100000 cargo test --lib simulation` runs as many seeds, `SESSION_STORE_SIM_SEED=7` that one and
//! shows its trace if it fails.

mod clients;
mod database;
mod judge;
mod link;
pub(crate) mod process;
mod replica;
mod sabotage;
mod story;
mod witness;
mod world;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::shared::lock;
use crate::model::ThreadId;
use clients::Tellings;
use replica::{Kind, Replica};
use sabotage::Sabotage;
use story::Asked;
use witness::Counts;
use world::{Weather, World};

/// Seeds of a usual run of the tests.
const SEEDS: u64 = 2000;
/// Seeds within which a faulty database must be found out.
const SEEDS_TO_FIND: u64 = 200;
const LEASE: Duration = Duration::from_secs(4);
/// How long all may take to come to an end once nothing goes wrong any more, in simulated time.
const CALM: Duration = Duration::from_secs(300);

/// What goes wrong in one simulation. Each fault is there in some and not in others, so that none hides another.
#[derive(Debug)]
struct Plan {
    replicas: usize,
    threads: usize,
    storm: Duration,
    weather: Weather,
    kind: Kind,
    has_kills: bool,
    has_stops: bool,
    has_drains: bool,
    has_cancels: bool,
}

impl Plan {
    fn roll(world: &World) -> Plan {
        let often = |most: u64| if world.one_in(3) { 0 } else { world.roll(most) };
        Plan {
            replicas: 2 + world.roll(2) as usize,
            threads: 1 + world.roll(3) as usize,
            storm: Duration::from_secs(3 + world.roll(8)),
            weather: Weather {
                slow: often(150),
                hanging: often(15),
                refused: often(120),
                unanswered: often(120),
                unheard: often(500),
            },
            kind: Kind {
                concurrency: 1 + world.roll(4) as usize,
                max_attempts: if world.one_in(3) { 3 + world.roll(3) as i32 } else { 1000 },
                are_skewed: !world.one_in(3),
            },
            has_kills: !world.one_in(3),
            has_stops: !world.one_in(3),
            has_drains: !world.one_in(3),
            has_cancels: !world.one_in(3),
        }
    }
}

/// A place for a replica: when one is gone, the next comes.
struct Slot {
    number: usize,
    generation: u64,
    replica: Replica,
}

impl Slot {
    fn renew(&mut self, world: &Arc<World>, kind: Kind) -> Replica {
        self.generation += 1;
        std::mem::replace(&mut self.replica, Replica::start(world, kind, self.number, self.generation))
    }
}

/// What became of a simulation.
struct Outcome {
    wrongs: Vec<String>,
    counts: Counts,
    /// Of the trace.
    hash: u64,
    lines: Vec<String>,
}

/// Lives through a seed.
async fn live(seed: u64, sabotage: Sabotage, keep_trace: bool) -> Outcome {
    let world = World::new(seed, Instant::now(), sabotage);
    if keep_trace {
        world.keep_trace();
    }
    let plan = Plan::roll(&world);
    world.tell("-", &format!("{plan:?}"));
    world.set_weather(plan.weather);
    let start = |number| Slot { number, generation: 0, replica: Replica::start(&world, plan.kind, number, 0) };
    let mut slots: Vec<Slot> = (0..plan.replicas).map(start).collect();
    let name = |number| ThreadId::parse(&format!("sim-{number}")).expect("a name");
    let threads: Vec<ThreadId> = (0..plan.threads).map(name).collect();
    let told = Tellings::default();
    let mut turn = 0;
    while world.began().elapsed() < plan.storm {
        let slot = &mut slots[world.roll(plan.replicas as u64) as usize];
        match world.roll(12) {
            0..=4 => {
                turn += 1;
                let thread = &threads[world.roll(plan.threads as u64) as usize];
                let asked = Asked::roll(&world, turn, plan.kind.max_attempts < 1000);
                world.tell(&slot.replica.name, &format!("is asked for {asked:?} on {thread}"));
                clients::submit(&world, &slot.replica, story::request(&world, thread, &asked), &told);
            }
            5..=6 if plan.has_kills => {
                world.tell(&slot.replica.name, "is killed");
                lock(&world.database).witness.counts.kills += 1;
                slot.replica.process.kill();
            }
            7..=8 if plan.has_stops => stop(&world, &slot.replica),
            9 if plan.has_drains => slot.renew(&world, plan.kind).drain(&world),
            10 if plan.has_cancels => {
                let told = lock(&told);
                let some = told.len().checked_sub(1 + world.roll(3) as usize).and_then(|index| told.get(index));
                if let Some(some) = some {
                    clients::cancel(&world, &slot.replica, some);
                }
            }
            _ => {}
        }
        tokio::time::sleep(Duration::from_millis(world.roll(800))).await;
        replace_the_dead(&world, &plan, &mut slots);
    }
    world.set_weather(Weather::default());
    world.tell("-", "the storm is over");
    let mut wrongs = Vec::new();
    if come_to_an_end(&world, &plan, &mut slots).await {
        let judge = Replica::start(&world, plan.kind, plan.replicas, 0);
        let count = lock(&told).len();
        for index in 0..count {
            clients::listen_on(&judge, &told, index).await;
        }
        wrongs = judge::judge(&world, &judge, &threads, &told).await;
    } else {
        wrongs.extend(stuck(&world));
        wrongs.extend(lock(&world.database).witness.wrongs.iter().cloned());
    }
    let counts = lock(&world.database).witness.counts;
    Outcome { wrongs, counts, hash: world.hash(), lines: world.lines() }
}

/// As by SIGSTOP, for up to two leases.
fn stop(world: &Arc<World>, replica: &Replica) {
    let millis = world.roll(9000);
    world.tell(&replica.name, &format!("is stopped for {millis} ms"));
    lock(&world.database).witness.counts.stops += 1;
    replica.process.stop();
    let (world, replica) = (Arc::clone(world), replica.clone());
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(millis)).await;
        world.tell(&replica.name, "goes on");
        replica.process.go_on();
    });
}

fn replace_the_dead(world: &Arc<World>, plan: &Plan, slots: &mut [Slot]) {
    for slot in slots.iter_mut().filter(|slot| slot.replica.process.is_dead()) {
        slot.renew(world, plan.kind);
    }
}

/// Waits until nothing is under way and no run is active. What was set aside, though nothing is wrong with it, is released, once. False: runs are
/// stuck.
async fn come_to_an_end(world: &Arc<World>, plan: &Plan, slots: &mut [Slot]) -> bool {
    let began = Instant::now();
    let mut has_released = false;
    while began.elapsed() < CALM {
        tokio::time::sleep(Duration::from_millis(500)).await;
        replace_the_dead(world, plan, slots);
        if world.has_asked() || !lock(&world.database).is_idle() {
            continue;
        }
        if std::mem::replace(&mut has_released, true) {
            return true;
        }
        let aside = lock(&world.database).quarantined();
        for run in aside {
            let is_fine = lock(&world.database).witness.runs.get(&run).is_some_and(|seen| seen.asked.kill_at == 0);
            if is_fine {
                world.operate("-", "release from quarantine", |database| database.release_from_quarantine(run));
            }
        }
    }
    false
}

fn stuck(world: &World) -> Vec<String> {
    let database = lock(&world.database);
    let witness = &database.witness;
    let runs = witness.threads().into_iter().flat_map(|thread| witness.of_thread(thread));
    runs.filter(|seen| seen.end.is_none())
        .map(|seen| {
            let run = database.run(seen.thread, seen.run_id);
            let status = run.map(|run| (run.status, run.attempts));
            format!("stuck: r{} {:?}, {status:?}", seen.number, seen.asked)
        })
        .collect()
}

/// Lives through a seed in a time of its own.
fn simulate(seed: u64, sabotage: Sabotage, keep_trace: bool) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(live(seed, sabotage, keep_trace))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::ops::Range;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// Seeds that may go wrong before nobody looks for more.
    const ENOUGH: usize = 5;

    fn number(name: &str) -> Option<u64> {
        std::env::var(name).ok().map(|text| text.parse().expect("a number"))
    }

    /// A seed that went wrong, lived through again for its trace, and how to do that by hand.
    fn report(seed: u64, wrongs: &[String]) -> String {
        let again = simulate(seed, Sabotage::None, true);
        format!(
            "seed {seed}:\n{}\n\n... {}\n\nagain: SESSION_STORE_SIM_SEED={seed} cargo test --lib simulation",
            wrongs.join("\n"),
            again.lines.join("\n")
        )
    }

    /// What became of many seeds.
    #[derive(Default)]
    struct Sum {
        counts: Counts,
        /// Of all traces: the same seeds give the same.
        digest: u64,
        /// What went wrong, by seed.
        wrongs: BTreeMap<u64, Vec<String>>,
    }

    /// Lives through seeds on all processors, until enough have gone wrong.
    fn simulate_all(seeds: Range<u64>) -> Sum {
        let next = AtomicU64::new(seeds.start);
        let sum: Mutex<Sum> = Mutex::default();
        let threads = std::thread::available_parallelism().map_or(2, usize::from);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while lock(&sum).wrongs.len() < ENOUGH {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if !seeds.contains(&seed) {
                            return;
                        }
                        let outcome = simulate(seed, Sabotage::None, false);
                        let mut sum = lock(&sum);
                        sum.counts.add(outcome.counts);
                        sum.digest = sum.digest.wrapping_add(outcome.hash);
                        if !outcome.wrongs.is_empty() {
                            sum.wrongs.insert(seed, outcome.wrongs);
                        }
                    }
                });
            }
        });
        sum.into_inner().expect("nobody panicked")
    }

    #[test]
    fn accepted_runs_end_and_each_superstep_is_there_once() {
        let seeds = match number("SESSION_STORE_SIM_SEED") {
            Some(seed) => seed..seed + 1,
            None => 0..number("SESSION_STORE_SIM_SEEDS").unwrap_or(SEEDS),
        };
        let began = std::time::Instant::now();
        let Sum { counts, digest, wrongs } = simulate_all(seeds.clone());
        let wrong = wrongs.len();
        println!("seeds={seeds:?} wrong={wrong} digest={digest:016x} in {:.1?}: {counts:?}", began.elapsed());
        if let Some((seed, first)) = wrongs.first_key_value() {
            panic!("{wrongs:#?}\n{}", report(*seed, first));
        }
        if seeds.end - seeds.start >= SEEDS {
            assert!(counts.has_all(), "the simulation does not go through what it is there for: {counts:?}");
        }
    }

    /// A process that slept beyond its leases claimed its own runs again, and forgot to renew what it had claimed when the
    /// executions from before its sleep ended (12528). A run was stopped between two siblings (8697).
    #[test]
    fn what_went_wrong_once_does_not_again() {
        for seed in [8697, 12_528] {
            let outcome = simulate(seed, Sabotage::None, false);
            assert!(outcome.wrongs.is_empty(), "{}", report(seed, &outcome.wrongs));
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_trace() {
        for seed in 0..40 {
            let (first, second) = (simulate(seed, Sabotage::None, true), simulate(seed, Sabotage::None, true));
            if first.hash != second.hash {
                let differ = first.lines.iter().zip(&second.lines).find(|(one, other)| one != other);
                panic!("seed {seed}: {differ:?}");
            }
        }
    }

    #[test]
    fn faults_of_the_database_are_found_out() {
        for sabotage in Sabotage::ALL {
            let found = (0..SEEDS_TO_FIND).find(|seed| !simulate(*seed, sabotage, false).wrongs.is_empty());
            assert!(found.is_some(), "{sabotage:?} is not seen in {SEEDS_TO_FIND} seeds");
            println!("{sabotage:?}: found out by seed {found:?}");
        }
    }
}
