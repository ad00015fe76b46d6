//! What all processes of a simulation share: the database, the weather on the way to it, the dice, and the trace.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::broadcast;
use tokio::time::Instant;

use super::database::Database;
use super::sabotage::Sabotage;
use crate::clock::{Clock, Dice};
use crate::runtime::shared::lock;
use crate::storage::Notice;

/// Lines of a trace that are kept for whoever reads why a seed failed.
const KEPT: usize = 400;

#[derive(Debug)]
pub(super) struct World {
    began: Instant,
    /// The database's.
    clock: Clock,
    dice: Mutex<Dice>,
    pub(super) database: Mutex<Database>,
    weather: Mutex<Weather>,
    /// Where notices go.
    lines: Mutex<Vec<broadcast::Sender<Notice>>>,
    trace: Mutex<Trace>,
    /// What processes were asked for and have not done: they are stopped, or a call of theirs hangs.
    under_way: Arc<AtomicU64>,
}

/// A request that may still have an effect.
pub(super) struct UnderWay(Arc<AtomicU64>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What may happen to a call, in thousandths of all.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Weather {
    /// It takes up to half a second.
    pub(super) slow: u64,
    /// It takes seconds: longer than a lease, perhaps.
    pub(super) hanging: u64,
    /// It fails before it is done.
    pub(super) refused: u64,
    /// It is done, and its caller is told that it failed.
    pub(super) unanswered: u64,
    /// A notice does not arrive.
    pub(super) unheard: u64,
}

/// What becomes of one call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fate {
    pub(super) there: Duration,
    pub(super) back: Duration,
    pub(super) is_refused: bool,
    pub(super) is_unanswered: bool,
}

#[derive(Debug)]
struct Trace {
    hash: blake3::Hasher,
    lines: VecDeque<String>,
    is_kept: bool,
}

impl World {
    pub(super) fn new(seed: u64, began: Instant, sabotage: Sabotage) -> Arc<World> {
        let mut dice = Dice::new(seed);
        // Neighbouring seeds have nothing in common.
        let clock = Clock::simulated(began, 0, Dice::new(dice.next()));
        let database = Database::new(sabotage);
        let trace = Trace { hash: blake3::Hasher::new(), lines: VecDeque::new(), is_kept: false };
        Arc::new(World {
            began,
            clock,
            dice: Mutex::new(dice),
            database: Mutex::new(database),
            weather: Mutex::default(),
            lines: Mutex::default(),
            trace: Mutex::new(trace),
            under_way: Arc::default(),
        })
    }

    /// A request begins; it is under way until what is returned is dropped, as it is when its process dies.
    pub(super) fn asks(&self) -> UnderWay {
        self.under_way.fetch_add(1, Ordering::Relaxed);
        UnderWay(Arc::clone(&self.under_way))
    }

    pub(super) fn has_asked(&self) -> bool {
        self.under_way.load(Ordering::Relaxed) > 0
    }

    /// A number below `bound`.
    pub(super) fn roll(&self, bound: u64) -> u64 {
        lock(&self.dice).next() % bound.max(1)
    }

    pub(super) fn one_in(&self, many: u64) -> bool {
        self.roll(many) == 0
    }

    pub(super) fn dice(&self) -> Dice {
        Dice::new(lock(&self.dice).next())
    }

    pub(super) fn began(&self) -> Instant {
        self.began
    }

    pub(super) fn set_weather(&self, weather: Weather) {
        *lock(&self.weather) = weather;
    }

    pub(super) fn fate(&self) -> Fate {
        let weather = *lock(&self.weather);
        let way = || {
            let kind = self.roll(1000);
            let millis = if kind < weather.hanging {
                2000 + self.roll(9000)
            } else if kind < weather.hanging + weather.slow {
                20 + self.roll(480)
            } else {
                self.roll(3)
            };
            Duration::from_millis(millis)
        };
        let (there, back) = (way(), way());
        let is_refused = self.roll(1000) < weather.refused;
        let is_unanswered = self.roll(1000) < weather.unanswered;
        Fate { there, back, is_refused, is_unanswered }
    }

    /// Does an operation on the database at this moment, for a process.
    pub(super) fn operate<T>(&self, process: &str, what: &str, work: impl FnOnce(&mut Database) -> T) -> T {
        let (done, notices, note) = {
            let mut database = lock(&self.database);
            database.begin(self.clock.now().0);
            let done = work(&mut database);
            (done, std::mem::take(&mut database.notices), std::mem::take(&mut database.note))
        };
        self.tell(process, &format!("{what}{note}"));
        notices.into_iter().for_each(|notice| self.notify(notice));
        done
    }

    /// Sends a notice to every process; some do not get it.
    fn notify(&self, notice: Notice) {
        let unheard = lock(&self.weather).unheard;
        for line in &*lock(&self.lines) {
            if self.roll(1000) >= unheard {
                // Nobody may listen.
                let _unheard = line.send(notice);
            }
        }
    }

    pub(super) fn add_line(&self, line: broadcast::Sender<Notice>) {
        lock(&self.lines).push(line);
    }

    /// Writes a line of the trace.
    pub(super) fn tell(&self, who: &str, what: &str) {
        let line = format!("{:>7} ms  {who:<4} {what}", self.began.elapsed().as_millis());
        let mut trace = lock(&self.trace);
        trace.hash.update(line.as_bytes());
        if trace.is_kept {
            if trace.lines.len() == KEPT {
                trace.lines.pop_front();
            }
            trace.lines.push_back(line);
        }
    }

    pub(super) fn keep_trace(&self) {
        lock(&self.trace).is_kept = true;
    }

    /// The hash of all that happened.
    pub(super) fn hash(&self) -> u64 {
        let hash = *lock(&self.trace).hash.finalize().as_bytes();
        hash.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// The last lines of the trace.
    pub(super) fn lines(&self) -> Vec<String> {
        lock(&self.trace).lines.iter().cloned().collect()
    }
}
