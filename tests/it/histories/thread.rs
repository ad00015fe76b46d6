//! What a thread may do, as the README promises it: one run at a time, in the order in which runs were accepted, with the
//! strategies and cancels of LangGraph.

use std::collections::{HashMap, HashSet};

use super::checker::{Model, Timed, Verdict, When, serial_order};

/// Supersteps of a run that nobody stops, each with an entry in the thread's trail.
pub(super) const STEPS: usize = 3;

/// How a run is asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    Interrupt,
    Rollback,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Strategy {
    Enqueue,
    Reject,
    Stops(Stop),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Op {
    /// A run was asked for and accepted: by its `created_at`, after at least so many others.
    Started { run: usize, strategy: Strategy, after: usize },
    /// It was refused: the thread was busy.
    Busy,
    /// Everything active was asked to stop.
    Cancelled(Stop),
    /// A run ended; its entries stand in the trail from `at`.
    Ended { run: usize, status: Status, at: usize, entries: usize },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Success,
    Interrupted,
    /// Rolled back.
    Gone,
}

impl Status {
    /// What it takes to end like this.
    fn needs(self) -> Option<Stop> {
        match self {
            Status::Success => None,
            Status::Interrupted => Some(Stop::Interrupt),
            Status::Gone => Some(Stop::Rollback),
        }
    }
}

/// What is known of a thread.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Thread {
    /// Accepted and not ended, the oldest first. True: it was asked to stop in the way in which it does. To the others
    /// stops make no difference, and states that differ by nothing else are the same.
    active: Vec<(usize, bool)>,
    started: usize,
    /// Entries that ended runs have left.
    trail: usize,
}

/// How a run will end.
struct End {
    status: Status,
    at: usize,
    entries: usize,
}

/// The model; it knows how each run will end, so as not to tell states apart that lead to the same, nor to try what leads
/// nowhere.
pub(super) struct Threads {
    ends: HashMap<usize, End>,
    /// The runs that want an idle thread, by what must have been accepted before them.
    rejecting: HashSet<usize>,
}

impl Threads {
    fn stop(&self, thread: &mut Thread, stop: Stop) {
        for (run, is_stopped) in &mut thread.active {
            *is_stopped |= self.needs(*run) == Some(stop);
        }
    }

    fn needs(&self, run: usize) -> Option<Stop> {
        self.ends.get(&run).and_then(|end| end.status.needs())
    }

    /// Whether somebody waits for those who are active to end: the one whose entries come next, or one who wants an idle
    /// thread.
    fn is_waited_for(&self, thread: &Thread) -> bool {
        let is_next = |run: &usize| self.ends.get(run).is_some_and(|end| end.entries > 0 && end.at == thread.trail);
        self.rejecting.contains(&thread.started) || thread.active.iter().any(|(run, _)| is_next(run))
    }

    /// Whether a stop is what the end of the oldest run, or of one whose end is due, lacks.
    fn is_of_use(&self, thread: &Thread, stop: Stop, due: &[&Op]) -> bool {
        let lacks = |(run, is_stopped): &(usize, bool)| !is_stopped && self.needs(*run) == Some(stop);
        let is_due =
            |(run, _): &(usize, bool)| due.iter().any(|op| matches!(op, Op::Ended { run: other, .. } if other == run));
        let mut active = thread.active.iter();
        let oldest = active.next().filter(|oldest| {
            lacks(oldest)
                && (is_due(oldest)
                    || self.is_waited_for(thread)
                    || self.ends.get(&oldest.0).is_some_and(|end| end.entries > 0))
        });
        oldest.is_some() || active.any(|one| lacks(one) && is_due(one))
    }
}

impl Model for Threads {
    type Op = Op;
    type State = Thread;

    fn step(&self, thread: &Thread, op: &Op) -> Option<Thread> {
        let mut after = thread.clone();
        match op {
            Op::Started { after: least, .. } if thread.started < *least => return None,
            Op::Started { run, strategy, .. } => {
                match strategy {
                    Strategy::Enqueue => {}
                    Strategy::Reject if !thread.active.is_empty() => return None,
                    Strategy::Reject => {}
                    Strategy::Stops(stop) => self.stop(&mut after, *stop),
                }
                after.active.push((*run, false));
                after.started += 1;
            }
            Op::Busy if thread.active.is_empty() => return None,
            Op::Busy => {}
            Op::Cancelled(stop) => self.stop(&mut after, *stop),
            Op::Ended { run, status, at, entries } => {
                let place = thread.active.iter().position(|(other, _)| other == run)?;
                let (_, is_stopped) = after.active.remove(place);
                let may = match status {
                    Status::Success => *entries == STEPS,
                    Status::Interrupted => is_stopped,
                    Status::Gone => is_stopped && *entries == 0,
                };
                // Only the oldest runs; one that is stopped before its turn leaves nothing.
                let is_next = *entries == 0 || (place == 0 && *at == thread.trail);
                if !may || !is_next {
                    return None;
                }
                after.trail += entries;
            }
        }
        Some(after)
    }

    fn when(&self, thread: &Thread, op: &Op, is_due: bool, due: &[&Op]) -> When {
        match op {
            // It leaves everything as it is.
            Op::Busy => When::AtOnce,
            // The later the more it stops: it can wait until it is due, or until one of those is to end.
            Op::Cancelled(stop) if is_due || self.is_of_use(thread, *stop, due) => When::FirstOf(*stop as u8),
            Op::Cancelled(_) => When::Later,
            // What leaves nothing is in nobody's way but of those behind it, and of who wants an idle thread: these wait for
            // the oldest first, and need not be told apart by who of the others has ended already.
            Op::Ended { run, entries: 0, .. } => {
                let is_oldest = thread.active.first().is_some_and(|(oldest, _)| oldest == run);
                if is_due || (is_oldest && self.is_waited_for(thread)) { When::Possibly } else { When::Later }
            }
            Op::Started { .. } | Op::Ended { .. } => When::Possibly,
        }
    }
}

/// A serial order of what clients of one thread were told, and how many states it took.
pub(super) fn judge(history: &[Timed<Op>]) -> (Verdict, usize) {
    let (mut ends, mut rejecting) = (HashMap::new(), HashSet::new());
    for timed in history {
        match timed.op {
            Op::Ended { run, status, at, entries } => drop(ends.insert(run, End { status, at, entries })),
            Op::Started { strategy: Strategy::Reject, after, .. } => drop(rejecting.insert(after)),
            _ => {}
        }
    }
    serial_order(&Threads { ends, rejecting }, history, Thread::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    type Entry = (Op, u64, u64);

    fn is_legal(history: &[Entry]) -> bool {
        let history: Vec<Timed<Op>> =
            history.iter().map(|(op, begin, end)| Timed { op: op.clone(), begin: *begin, end: *end }).collect();
        matches!(judge(&history).0, Verdict::Serial(_))
    }

    /// Runs are numbered in the order of their `created_at`.
    fn start(run: usize, strategy: Strategy, begin: u64, end: u64) -> Entry {
        (Op::Started { run, strategy, after: run }, begin, end)
    }

    fn ended(run: usize, status: Status, at: usize, entries: usize, end: u64) -> Entry {
        (Op::Ended { run, status, at, entries }, 0, end)
    }

    fn success(run: usize, at: usize, end: u64) -> Entry {
        ended(run, Status::Success, at, STEPS, end)
    }

    const ENQUEUE: Strategy = Strategy::Enqueue;
    const REJECT: Strategy = Strategy::Reject;
    const INTERRUPT: Strategy = Strategy::Stops(Stop::Interrupt);
    const ROLLBACK: Strategy = Strategy::Stops(Stop::Rollback);

    #[test]
    fn runs_take_turns_in_the_order_of_their_acceptance() {
        let both = [start(0, ENQUEUE, 1, 2), start(1, ENQUEUE, 3, 4)];
        let and = |rest: &[Entry]| is_legal(&[&both[..], rest].concat());
        assert!(and(&[success(0, 0, 9), success(1, STEPS, 9)]));
        assert!(!and(&[success(0, STEPS, 9), success(1, 0, 9)]), "the later one ran first");
        assert!(!and(&[success(0, 0, 9), success(1, 0, 9)]), "both at once");
        assert!(!and(&[success(0, 0, 9), success(1, STEPS + 1, 9)]), "something between them that nobody wrote");
        assert!(!and(&[success(0, 0, 9), ended(1, Status::Success, STEPS, STEPS - 1, 9)]), "a lost step");
        assert!(!and(&[success(0, 0, 9), ended(1, Status::Success, STEPS, STEPS + 1, 9)]), "a doubled step");
        assert!(!and(&[success(0, 0, 9), success(1, STEPS, 9), success(1, STEPS * 2, 9)]), "it ran twice");
        // Asked for side by side: `created_at` says which was first.
        let race = [start(0, ENQUEUE, 1, 5), start(1, ENQUEUE, 1, 5)];
        assert!(is_legal(&[&race[..], &[success(0, 0, 9), success(1, STEPS, 9)]].concat()));
        assert!(!is_legal(&[&race[..], &[success(1, 0, 9), success(0, STEPS, 9)]].concat()), "not as it says");
        let torn = [start(1, ENQUEUE, 1, 2), start(0, ENQUEUE, 3, 4)];
        assert!(!is_legal(&[&torn[..], &[success(0, 0, 9), success(1, STEPS, 9)]].concat()), "it lies about the order");
    }

    #[test]
    fn only_a_busy_thread_refuses_and_only_an_idle_one_accepts() {
        let busy = |begin, end| (Op::Busy, begin, end);
        assert!(!is_legal(&[busy(1, 2)]), "refused by a thread without runs");
        assert!(!is_legal(&[start(0, ENQUEUE, 1, 2), success(0, 0, 5), busy(6, 7)]), "refused by an idle thread");
        assert!(is_legal(&[start(0, ENQUEUE, 1, 2), success(0, 0, 8), busy(6, 7)]));
        assert!(is_legal(&[
            start(0, ENQUEUE, 1, 2),
            busy(3, 4),
            start(1, REJECT, 3, 4),
            success(0, 0, 9),
            success(1, STEPS, 9)
        ]));
        assert!(
            !is_legal(&[
                start(0, ENQUEUE, 1, 2),
                start(1, REJECT, 3, 4),
                busy(5, 6),
                success(1, 0, 7),
                success(0, STEPS, 9)
            ]),
            "accepted beside an active one"
        );
        let (a, b) = (start(0, REJECT, 1, 5), start(1, REJECT, 1, 5));
        assert!(!is_legal(&[a, b, (Op::Ended { run: 0, status: Status::Success, at: 0, entries: STEPS }, 6, 9)]));
    }

    #[test]
    fn only_who_was_active_is_stopped_and_only_as_it_was_asked() {
        let gone = |run, end| ended(run, Status::Gone, 0, 0, end);
        let cancel = |stop, begin, end| (Op::Cancelled(stop), begin, end);
        assert!(is_legal(&[start(0, ENQUEUE, 1, 2), start(1, ROLLBACK, 3, 4), gone(0, 9), success(1, 0, 9)]));
        assert!(!is_legal(&[start(0, ENQUEUE, 1, 2), gone(0, 9), start(1, ROLLBACK, 10, 11), success(1, 0, 12)]));
        assert!(!is_legal(&[start(0, ENQUEUE, 1, 2), start(1, INTERRUPT, 3, 4), gone(0, 9), success(1, 0, 9)]));
        assert!(!is_legal(&[start(0, ROLLBACK, 1, 2), gone(0, 9)]), "it stopped itself");
        assert!(!is_legal(&[start(0, ROLLBACK, 1, 2), start(1, ENQUEUE, 3, 4), success(0, 0, 9), gone(1, 9)]));
        let interrupted = |at, entries| ended(0, Status::Interrupted, at, entries, 9);
        assert!(is_legal(&[start(0, ENQUEUE, 1, 2), cancel(Stop::Interrupt, 3, 4), interrupted(0, 2)]));
        assert!(!is_legal(&[start(0, ENQUEUE, 1, 2), interrupted(0, 1)]), "nobody stopped it");
        assert!(!is_legal(&[start(0, ENQUEUE, 1, 2), cancel(Stop::Rollback, 3, 4), interrupted(0, 1)]));
        assert!(
            !is_legal(&[cancel(Stop::Interrupt, 1, 2), start(0, ENQUEUE, 3, 4), interrupted(0, 1)]),
            "before it was"
        );
        assert!(!is_legal(&[start(0, ENQUEUE, 1, 2), interrupted(0, 1), cancel(Stop::Interrupt, 10, 11)]), "after");
        let left = ended(0, Status::Gone, 0, 1, 9);
        assert!(!is_legal(&[start(0, ENQUEUE, 1, 2), cancel(Stop::Rollback, 3, 4), left]), "not all was taken back");
        // One cancel stops all who are active when it happens, and nobody else.
        let (a, b) = (start(0, ENQUEUE, 1, 2), start(1, ENQUEUE, 5, 6));
        assert!(is_legal(&[a.clone(), b.clone(), cancel(Stop::Rollback, 3, 7), gone(0, 9), gone(1, 9)]));
        assert!(!is_legal(&[a.clone(), b.clone(), cancel(Stop::Rollback, 3, 4), gone(0, 9), gone(1, 9)]));
        assert!(!is_legal(&[a, b, cancel(Stop::Rollback, 3, 7), gone(0, 4), gone(1, 9)]), "one cancel is no two");
    }

    /// What would take all subsets to try: many that were stopped before their turn, and cancels beside each other.
    #[test]
    fn histories_without_an_order_are_decided_too() {
        let mut history: Vec<Entry> = Vec::new();
        for run in 0..60 {
            let end = 90 + run as u64;
            history.push(start(run, ENQUEUE, 1, 50));
            history.push(ended(run, Status::Interrupted, 0, 0, end));
        }
        history.extend((0..20).map(|_| (Op::Cancelled(Stop::Interrupt), 10, 60)));
        assert!(is_legal(&history));
        history.push((Op::Busy, 200, 201));
        assert!(!is_legal(&history), "busy when all had ended");
    }
}
