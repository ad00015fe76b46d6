//! What happened, in the order of the database's clock, written down beside the database's own rows: the rules of
//! `storage::runs` are checked against this, whatever the database believes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::story::Asked;
use crate::model::{CancelAction, CheckpointId, EventId, Json, Run, RunId, RunStatus, ThreadKey};
use crate::storage::{Claim, Lease, StepCommit};

/// A commit that is on its way when a run is cancelled may still end it, but not after this, in microseconds.
const CANCEL_TAKES: i64 = 40_000_000;

#[derive(Debug, Default)]
pub(super) struct Witness {
    /// The database's time.
    pub(super) now: i64,
    pub(super) runs: BTreeMap<RunId, Seen>,
    threads: BTreeMap<ThreadKey, SeenThread>,
    /// What must not have happened.
    pub(super) wrongs: Vec<String>,
    pub(super) counts: Counts,
}

/// What a simulation went through, to see that it goes through anything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) runs: u64,
    pub(super) claims: u64,
    pub(super) takeovers: u64,
    pub(super) commits: u64,
    /// Writes without the lease.
    pub(super) refused: u64,
    /// Checkpoints that were written again, since their writer did not know that they were there.
    pub(super) repeated: u64,
    pub(super) cancels: u64,
    pub(super) rollbacks: u64,
    pub(super) handovers: u64,
    pub(super) quarantines: u64,
    pub(super) kills: u64,
    pub(super) stops: u64,
    pub(super) lost_answers: u64,
}

impl Counts {
    fn each(&mut self) -> [&mut u64; 13] {
        [
            &mut self.runs,
            &mut self.claims,
            &mut self.takeovers,
            &mut self.commits,
            &mut self.refused,
            &mut self.repeated,
            &mut self.cancels,
            &mut self.rollbacks,
            &mut self.handovers,
            &mut self.quarantines,
            &mut self.kills,
            &mut self.stops,
            &mut self.lost_answers,
        ]
    }

    pub(super) fn add(&mut self, mut other: Counts) {
        for (sum, more) in self.each().into_iter().zip(other.each()) {
            *sum += *more;
        }
    }

    /// Everything happened at least once.
    pub(super) fn has_all(mut self) -> bool {
        self.each().into_iter().all(|count| *count > 0)
    }
}

/// A run, as it was seen.
#[derive(Debug)]
pub(super) struct Seen {
    /// In the order of creation: its name in traces.
    pub(super) number: u64,
    pub(super) run_id: RunId,
    pub(super) thread: ThreadKey,
    /// What it was asked to do.
    pub(super) asked: Asked,
    /// The epoch of the last claim.
    epoch: i64,
    is_held: bool,
    lease_until: i64,
    /// When a cancel reached it first, and the strongest action.
    pub(super) flagged: Option<(i64, CancelAction)>,
    /// The last claim came after the flag.
    is_claimed_flagged: bool,
    /// Claims since the last superstep was committed.
    fruitless: u32,
    pub(super) end: Option<End>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    As(RunStatus),
    Quarantined,
    RolledBack,
}

#[derive(Debug, Default)]
struct SeenThread {
    head: Option<CheckpointId>,
    checkpoints: BTreeMap<CheckpointId, (RunId, Option<CheckpointId>)>,
    last_event: i64,
    events: BTreeMap<EventId, (RunId, String, Json)>,
}

impl Witness {
    fn wrong(&mut self, what: String) {
        self.wrongs.push(format!("at {} us: {what}", self.now));
    }

    pub(super) fn name(&self, run: RunId) -> String {
        self.runs.get(&run).map_or_else(|| "r?".to_owned(), |seen| format!("r{}", seen.number))
    }

    pub(super) fn created(&mut self, run: &Run) -> String {
        let number = self.counts.runs + 1;
        self.counts.runs = number;
        let asked: Asked = run.kwargs.get("input").and_then(|input| input.decode().ok()).unwrap_or_default();
        let note = format!(" r{number} is turn {}", asked.turn);
        let seen = Seen {
            number,
            run_id: run.run_id,
            thread: run.thread_key,
            asked,
            epoch: 0,
            is_held: false,
            lease_until: 0,
            flagged: None,
            is_claimed_flagged: false,
            fruitless: 0,
            end: None,
        };
        self.runs.insert(run.run_id, seen);
        note
    }

    pub(super) fn claimed(&mut self, lease: &Lease, claim: &Claim) -> String {
        self.counts.claims += 1;
        let now = self.now;
        let others: Vec<u64> = self
            .runs
            .values()
            .filter(|other| other.thread == lease.thread && other.run_id != lease.run_id && other.is_held)
            .map(|other| other.number)
            .collect();
        let name = self.name(lease.run_id);
        if !others.is_empty() {
            self.wrong(format!("{name} was claimed while {others:?} of its thread run"));
        }
        let Some(seen) = self.runs.get_mut(&lease.run_id) else { return String::new() };
        let (was_held, was_until, had_ended) = (seen.is_held, seen.lease_until, seen.end.is_some());
        let is_newer = lease.epoch > seen.epoch;
        seen.epoch = lease.epoch;
        seen.is_held = true;
        seen.lease_until = now + i64::try_from(claim.lease.as_micros()).unwrap_or(i64::MAX / 4);
        seen.is_claimed_flagged = seen.flagged.is_some();
        seen.fruitless += 1;
        self.counts.takeovers += u64::from(was_held);
        if was_held && was_until > now {
            self.wrong(format!("{name} was taken from its owner {} us before its lease ran out", was_until - now));
        }
        if had_ended || !is_newer {
            self.wrong(format!("{name} was claimed with epoch {}, ended: {had_ended}", lease.epoch));
        }
        format!(" {name} epoch {} by {}", lease.epoch, claim.worker)
    }

    pub(super) fn renewed(&mut self, lease: &Lease, held: bool) -> String {
        let name = self.name(lease.run_id);
        let now = self.now;
        if let Some(seen) = self.runs.get_mut(&lease.run_id).filter(|_| held) {
            // As long as a lease is.
            seen.lease_until = seen.lease_until.max(now + 4_000_000);
        }
        format!(" {name} epoch {}{}", lease.epoch, if held { "" } else { " is lost" })
    }

    pub(super) fn released(&mut self, lease: &Lease) -> String {
        self.counts.handovers += 1;
        self.writes(lease, "hands over");
        let name = self.name(lease.run_id);
        if let Some(seen) = self.runs.get_mut(&lease.run_id) {
            seen.is_held = false;
            seen.fruitless = seen.fruitless.saturating_sub(1);
        }
        format!(" {name} epoch {}", lease.epoch)
    }

    pub(super) fn refused(&mut self, lease: &Lease) -> String {
        self.counts.refused += 1;
        format!(" {} epoch {}: the lease is gone", self.name(lease.run_id), lease.epoch)
    }

    /// Whoever writes must be the last who claimed.
    fn writes(&mut self, lease: &Lease, what: &str) {
        let name = self.name(lease.run_id);
        let Some(seen) = self.runs.get(&lease.run_id) else { return };
        let (epoch, is_held, end) = (seen.epoch, seen.is_held, seen.end);
        if epoch != lease.epoch || !is_held || end.is_some() {
            let state = format!("{epoch}, held: {is_held}, end: {end:?}");
            self.wrong(format!("{name} {what} under the stale epoch {} of {state}", lease.epoch));
        }
    }

    pub(super) fn commits(&mut self, step: &StepCommit) -> String {
        self.counts.commits += 1;
        let lease = &step.lease;
        self.writes(lease, "commits");
        let name = self.name(lease.run_id);
        let mut note = format!(" {name} epoch {}", lease.epoch);
        let mut wrongs = Vec::new();
        let thread = self.threads.entry(lease.thread).or_default();
        let mut is_progress = false;
        for row in step.rows.checkpoints.iter().filter(|row| row.ns.is_empty()) {
            let _written = write!(note, " step {}", row.step);
            if let Some(known) = thread.checkpoints.get(&row.id) {
                self.counts.repeated += 1;
                if *known != (lease.run_id, row.parent.clone()) {
                    wrongs.push(format!("{name} writes another checkpoint {}", row.id));
                }
                continue;
            }
            is_progress = true;
            if row.parent != thread.head {
                wrongs.push(format!("{name} step {} does not follow on the head: doubled or lost", row.step));
            }
            if thread.checkpoints.last_key_value().is_some_and(|(newest, _)| row.id <= *newest) {
                wrongs.push(format!("{name} step {} is not the newest", row.step));
            }
            thread.checkpoints.insert(row.id.clone(), (lease.run_id, row.parent.clone()));
            thread.head = Some(row.id.clone());
        }
        if step.rows.head.is_some() && step.rows.head != thread.head {
            wrongs.push(format!("{name} moves the head elsewhere"));
        }
        for event in &step.events {
            let content = (event.run_id, event.name.clone(), event.data.clone());
            match thread.events.get(&event.id) {
                Some(known) if *known == content => {}
                Some(_) => wrongs.push(format!("{name} tells something else as event {}", event.id)),
                None if event.id.0 <= thread.last_event => {
                    wrongs.push(format!("{name} tells event {} late", event.id));
                }
                None => {
                    thread.last_event = event.id.0;
                    thread.events.insert(event.id, content);
                }
            }
        }
        if !step.events.is_empty() {
            let _written = write!(note, " {} events", step.events.len());
        }
        let now = self.now;
        if let Some(seen) = self.runs.get_mut(&lease.run_id) {
            if is_progress {
                seen.fruitless = 1;
            }
            if let Some(end) = &step.end {
                let _written = write!(note, " ends: {}", end.status.as_str());
                seen.end = Some(End::As(end.status));
                seen.is_held = false;
                let is_late = seen.flagged.is_some_and(|(at, _)| seen.is_claimed_flagged || now - at > CANCEL_TAKES);
                if is_late && end.status == RunStatus::Success {
                    wrongs.push(format!("{name} ends as if it had not been cancelled"));
                }
                if seen.flagged.is_none() && end.status == RunStatus::Interrupted {
                    wrongs.push(format!("{name} ends as cancelled, which nobody asked for"));
                }
            }
        }
        wrongs.into_iter().for_each(|wrong| self.wrong(wrong));
        note
    }

    pub(super) fn cancelled(&mut self, run: RunId, action: CancelAction, running: bool) -> String {
        self.counts.cancels += 1;
        let (name, now) = (self.name(run), self.now);
        if let Some(seen) = self.runs.get_mut(&run) {
            let (at, old) = seen.flagged.unwrap_or((now, action));
            seen.flagged = Some((at, if old == CancelAction::Rollback { old } else { action }));
            if !running && action == CancelAction::Interrupt {
                seen.end = Some(End::As(RunStatus::Interrupted));
            }
        }
        format!(" {name} {}", action.as_str())
    }

    pub(super) fn rolls_back(&mut self, run: RunId, lease: Option<&Lease>) -> String {
        self.counts.rollbacks += 1;
        if let Some(lease) = lease {
            self.writes(lease, "rolls back");
        }
        let name = self.name(run);
        let Some(seen) = self.runs.get_mut(&run) else { return String::new() };
        let is_asked = seen.flagged.is_some_and(|(_, action)| action == CancelAction::Rollback);
        seen.end = Some(End::RolledBack);
        seen.is_held = false;
        let thread = self.threads.entry(seen.thread).or_default();
        thread.checkpoints.retain(|_, (of, _)| *of != run);
        thread.events.retain(|_, (of, _, _)| *of != run);
        if thread.head.as_ref().is_some_and(|head| !thread.checkpoints.contains_key(head)) {
            thread.head = thread.checkpoints.last_key_value().map(|(id, _)| id.clone());
        }
        if !is_asked {
            self.wrong(format!("{name} was rolled back, which nobody asked for"));
        }
        format!(" {name} is rolled back")
    }

    pub(super) fn quarantined(&mut self, run: RunId) -> String {
        self.counts.quarantines += 1;
        let name = self.name(run);
        let Some(seen) = self.runs.get_mut(&run) else { return String::new() };
        seen.end = Some(End::Quarantined);
        seen.is_held = false;
        let fruitless = seen.fruitless;
        if fruitless < 3 {
            self.wrong(format!("{name} was set aside after {fruitless} attempts without progress"));
        }
        format!(" {name} is set aside")
    }

    pub(super) fn released_from_quarantine(&mut self, run: RunId) -> String {
        let name = self.name(run);
        if let Some(seen) = self.runs.get_mut(&run) {
            seen.end = None;
            seen.fruitless = 0;
        }
        format!(" {name}")
    }

    /// Threads on which runs were created.
    pub(super) fn threads(&self) -> BTreeSet<ThreadKey> {
        self.runs.values().map(|seen| seen.thread).collect()
    }

    /// The runs of a thread, in the order of their creation.
    pub(super) fn of_thread(&self, thread: ThreadKey) -> Vec<&Seen> {
        let mut runs: Vec<&Seen> = self.runs.values().filter(|seen| seen.thread == thread).collect();
        runs.sort_by_key(|seen| seen.number);
        runs
    }
}
