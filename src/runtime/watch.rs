//! The detector: looks from time to time for runs that should be moving and are not, and says so. A run that was
//! accepted is executed under a live lease, or waits for a timer, for another run of its thread or for a free place;
//! anything else is a fault of the deployment or of this program. It looks after the threads of nodes, too.

use std::time::Duration;

use super::shared::lock;
use super::{Runtime, RuntimeError};
use crate::model::Scope;
use crate::storage::{StuckReason, StuckRun};

/// The most runs that are told at once: the first ones say what is wrong.
const MOST: i64 = 100;
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);

/// What the detector knows.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// Seen stuck once: after an outage of the database, others may be about to take them.
    suspects: Vec<StuckRun>,
    /// Seen stuck by two looks in a row.
    stuck: Vec<StuckRun>,
}

impl Runtime {
    pub(super) async fn watch_loop(self) {
        let pause = (self.inner.settings.stuck_after / 3).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        loop {
            tokio::select! {
                biased;
                () = self.inner.draining.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            self.look_at_node_threads();
            if let Err(error) = self.look_for_stuck_runs().await {
                tracing::warn!(%error, "could not look for stuck runs");
            }
        }
    }

    /// Runs that nothing had moved for `stuck_after` when the detector looked twice: the longest first, 100 at most.
    pub fn stuck_runs(&self) -> Vec<StuckRun> {
        lock(&self.inner.watch).stuck.clone()
    }

    /// Whether nodes that block instead of awaiting hold every thread there is for nodes: then this process takes no more
    /// runs, so that others execute what is queued.
    pub fn are_nodes_blocked(&self) -> bool {
        self.inner.nodes.are_blocked()
    }

    fn look_at_node_threads(&self) {
        let nodes = &self.inner.nodes;
        if !nodes.look(self.clock().instant(), self.inner.settings.stuck_after) {
            return;
        }
        if nodes.are_blocked() {
            tracing::error!(
                "every thread for nodes is blocked by a node that does not await: no more runs are taken here, and those \
                 that have not begun are handed over"
            );
        } else {
            tracing::info!("threads for nodes are free again");
            self.inner.wake.notify_one();
        }
    }

    async fn look_for_stuck_runs(&self) -> Result<(), RuntimeError> {
        let grace = self.inner.settings.stuck_after;
        let mut found = self.storage().find_stuck(&Scope::Server, grace, MOST).await?;
        if found.iter().any(|run| run.reason != StuckReason::NoThread) {
            // Busy, not stuck: they wait for a place.
            let waits = self.what_waits_for_a_place().await?;
            found.retain(|run| !waits.contains(&run.reason));
        }
        let mut watch = lock(&self.inner.watch);
        let is_among = |list: &[StuckRun], run: &StuckRun| {
            list.iter().any(|known| known.run_id == run.run_id && known.attempts == run.attempts)
        };
        let stuck: Vec<StuckRun> = found.iter().filter(|run| is_among(&watch.suspects, run)).cloned().collect();
        for run in stuck.iter().filter(|run| !is_among(&watch.stuck, run)) {
            let reason = run.reason.as_str();
            tracing::error!(run.id = %run.run_id, thread.key = %run.thread.0, reason, since = ?run.since,
                attempts = run.attempts, worker = run.worker, "a run is stuck");
        }
        if stuck.is_empty() && !watch.stuck.is_empty() {
            tracing::info!("no run is stuck any more");
        }
        watch.suspects = found;
        watch.stuck = stuck;
        Ok(())
    }

    /// What nobody needs to have taken, for want of a place: in this process, if it executes runs; otherwise in those that
    /// do, which shows by runs that are executed.
    async fn what_waits_for_a_place(&self) -> Result<&'static [StuckReason], RuntimeError> {
        if self.inner.settings.claims {
            let is_full = self.inner.free_slots() == 0 && !self.are_nodes_blocked();
            return Ok(if is_full { &[StuckReason::NotClaimed, StuckReason::LeaseRanOut] } else { &[] });
        }
        let (_, running) = self.storage().count_active(&Scope::Server).await?;
        Ok(if running > 0 { &[StuckReason::NotClaimed] } else { &[] })
    }
}
