//! The background of a process: claims runs, keeps their leases, and passes on cancel requests. Recovery is part of the
//! claim query: a run without a live lease is claimable, whoever had it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::FutureExt;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;
use tracing::field::Empty;
use tracing::{Instrument as _, Span};

use super::shared::lock;
use super::tasks;
use super::{Inner, Runtime};
use crate::model::{RunId, Scope};
use crate::spans;
use crate::storage::{CancelRequest, Claim, ClaimedRun, Lease, Notice};

/// A run that this process executes.
#[derive(Debug, Clone)]
pub(crate) struct Active {
    pub(crate) lease: Lease,
    /// Stops the run's nodes.
    pub(crate) stop: CancellationToken,
    /// Why it was stopped, if it was.
    pub(crate) reason: Arc<std::sync::Mutex<Option<StopReason>>>,
    /// Asks the run to hand itself over after its superstep.
    pub(crate) drain: CancellationToken,
    /// Cancelled when nothing of this execution happens here any more.
    ended: CancellationToken,
}

/// Why a run was stopped from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StopReason {
    Cancel(CancelRequest),
    /// Another worker may have it, or it was deleted.
    LeaseLost,
    Timeout,
}

impl Active {
    /// Stops the run for the first reason given.
    pub(crate) fn stop(&self, reason: StopReason) {
        let mut slot = lock(&self.reason);
        if slot.is_none() {
            *slot = Some(reason);
        }
        drop(slot);
        self.stop.cancel();
    }
}

impl Inner {
    pub(crate) fn is_executing(&self, run_id: RunId) -> bool {
        lock(&self.active).contains_key(&run_id)
    }

    /// How many more runs may be executed here; none while nothing can run.
    pub(crate) fn free_slots(&self) -> usize {
        if self.nodes.are_blocked() {
            return 0;
        }
        let active = lock(&self.active).len();
        // One goes on at least: what is occupied need not come back without it.
        let places = if self.settings.memory.is_short() { 1 } else { self.settings.concurrency };
        places.saturating_sub(active)
    }

    pub(crate) fn claim(&self) -> Claim {
        Claim { worker: self.settings.worker.clone(), lease: self.settings.lease }
    }
}

impl Runtime {
    /// Starts the background loops. Call once, inside the runtime that serves HTTP.
    pub fn start(&self) {
        self.start_executing();
        if self.inner.settings.claims {
            tasks::spawn(self.clone().cron_loop());
            tasks::spawn(self.clone().sweep_loop());
            tasks::spawn(self.clone().webhook_loop());
            tasks::spawn(self.clone().upkeep_loop());
            tasks::spawn(self.clone().vectors_loop());
        }
        tasks::spawn(self.clone().cache_loop());
    }

    /// Starts the loops that runs need to get on.
    pub(super) fn start_executing(&self) {
        if self.inner.settings.claims {
            tasks::spawn(self.clone().claim_loop());
        }
        tasks::spawn(self.clone().watch_loop());
        tasks::spawn(self.clone().lease_loop());
        tasks::spawn(self.clone().notice_loop());
    }

    /// Stops claiming, lets the running supersteps finish and commit, and hands the runs over. Returns when none is left
    /// here; dropped before that (a node takes too long), the runs lose their leases by time.
    pub async fn drain(&self) {
        self.inner.draining.cancel();
        let _stop_loops = self.inner.stopped.clone().drop_guard();
        for run in lock(&self.inner.active).values() {
            run.drain.cancel();
        }
        loop {
            let notified = self.inner.idle.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if lock(&self.inner.active).is_empty() {
                break;
            }
            notified.await;
        }
        self.write_cache().await;
    }

    /// Takes runs from the queue while there is room. It looks when storage says that a run may be claimable, when a run
    /// ends here while others may be waiting for its place, and at every poll; not after every run, since most leave
    /// nothing behind.
    async fn claim_loop(self) {
        loop {
            if self.inner.draining.is_cancelled() {
                return;
            }
            // Said before the places are counted: a run that ends in between wakes this loop.
            self.inner.at_limit.store(true, Ordering::SeqCst);
            let free = self.inner.free_slots();
            let mut claimed = 0;
            if free > 0 {
                self.inner.at_limit.store(false, Ordering::SeqCst);
                let limit = i64::try_from(free).unwrap_or(i64::MAX);
                let max = self.inner.settings.max_attempts;
                match self.storage().claim_runs(&Scope::Server, &self.inner.claim(), max, limit).await {
                    Ok(runs) => {
                        claimed = runs.len();
                        for run in runs {
                            self.execute(run, true);
                        }
                    }
                    Err(error) => tracing::warn!(%error, "could not look for runs"),
                }
            }
            if claimed > 0 && claimed == free {
                continue;
            }
            tokio::select! {
                biased;
                () = self.inner.draining.cancelled() => return,
                () = self.inner.wake.notified() => {}
                () = tokio::time::sleep(self.inner.settings.poll_every) => {}
            }
        }
    }

    /// Executes a claimed run in the background. During a drain it is handed over after its first superstep. `announce`: others than this process may wait for its end.
    pub(crate) fn execute(&self, claimed: ClaimedRun, announce: bool) {
        let active = Active {
            lease: claimed.lease,
            stop: CancellationToken::new(),
            reason: Arc::default(),
            drain: CancellationToken::new(),
            ended: CancellationToken::new(),
        };
        if let Some(request) = claimed.cancel.clone() {
            active.stop(StopReason::Cancel(request));
        }
        if self.inner.draining.is_cancelled() {
            active.drain.cancel();
        }
        let (run_id, epoch, ended) = (claimed.run.run_id, claimed.lease.epoch, active.ended.clone());
        // This process slept beyond its lease, and was the first to claim the run again when it woke up.
        let before = lock(&self.inner.active).insert(run_id, active.clone());
        if let Some(before) = &before {
            before.stop(StopReason::LeaseLost);
        }
        let runtime = self.clone();
        let span = span_of(&claimed);
        let executing = async move {
            // They have one channel to those who listen, and it ends with the first of them.
            if let Some(before) = before {
                before.ended.cancelled().await;
            }
            // A panic here is a bug of the server, not of a node: the run is left to its lease, and its attempts count.
            let executed =
                std::panic::AssertUnwindSafe(runtime.execute_run(claimed, active, announce)).catch_unwind().await;
            if executed.is_err() {
                tracing::error!(run.id = %run_id, "executing a run panicked; its lease will run out");
                runtime.inner.hub.end(run_id);
            }
            {
                let mut active = lock(&runtime.inner.active);
                if active.get(&run_id).is_some_and(|latest| latest.lease.epoch == epoch) {
                    active.remove(&run_id);
                }
            }
            ended.cancel();
            runtime.inner.idle.notify_waiters();
            if runtime.inner.at_limit.swap(false, Ordering::SeqCst) {
                runtime.inner.wake.notify_one();
            }
        };
        tasks::spawn(executing.instrument(span));
    }

    /// Renews the leases of all runs here, in one statement. Nodes cannot block it: they run on threads of their own.
    async fn lease_loop(self) {
        let every = self.inner.settings.renew_every;
        let mut renewed = self.clock().instant();
        loop {
            tokio::select! {
                biased;
                () = self.inner.stopped.cancelled() => return,
                () = tokio::time::sleep(every) => {}
            }
            let active: Vec<Active> = lock(&self.inner.active).values().cloned().collect();
            // A renewal that hangs must not keep the run from being stopped when its lease is over.
            let left = self.inner.settings.lease.saturating_sub(renewed.elapsed()).max(every);
            let is_renewed = active.is_empty() || tokio::time::timeout(left, self.renew(&active)).await == Ok(true);
            if is_renewed {
                renewed = self.clock().instant();
            } else if renewed.elapsed() >= self.inner.settings.lease {
                // Nothing was renewed for a whole lease: others may have taken over. Stop before they are disturbed.
                for run in &active {
                    run.stop(StopReason::LeaseLost);
                }
            }
        }
    }

    async fn renew(&self, active: &[Active]) -> bool {
        let leases: Vec<Lease> = active.iter().map(|run| run.lease).collect();
        let states = self.storage().renew_leases(&Scope::Server, &leases, self.inner.settings.lease).await;
        let states = match states {
            Ok(states) => states,
            Err(error) => {
                tracing::warn!(%error, "could not renew leases");
                return false;
            }
        };
        for (run, state) in active.iter().zip(states) {
            if !state.held {
                // It may just have ended here: then there is nothing to stop.
                run.stop(StopReason::LeaseLost);
            } else if let Some(request) = state.cancel {
                run.stop(StopReason::Cancel(request));
            }
        }
        true
    }

    async fn notice_loop(self) {
        let mut notices = self.storage().notices();
        loop {
            let notice = tokio::select! {
                biased;
                () = self.inner.stopped.cancelled() => return,
                notice = notices.recv() => notice,
            };
            match notice {
                Ok(Notice::RunPending) => self.inner.wake.notify_one(),
                Ok(Notice::CancelRequested(run_id)) => {
                    let active = lock(&self.inner.active).get(&run_id).cloned();
                    if let Some(active) = active {
                        // Beside the loop: a slow database must not hold up the next notice.
                        let runtime = self.clone();
                        tasks::spawn(async move { runtime.renew(&[active]).await });
                    }
                }
                // What waited behind it on its thread is announced by itself.
                Ok(Notice::RunEnded(run_id)) => {
                    if !self.inner.is_executing(run_id) {
                        self.inner.hub.end(run_id);
                    }
                }
                Ok(Notice::Events(_)) => {}
                Ok(Notice::RunWanted(run_id)) => self.inner.hub.want(run_id),
                Ok(Notice::Missed) | Err(RecvError::Lagged(_)) => {
                    self.inner.wake.notify_one();
                    let active: Vec<Active> = lock(&self.inner.active).values().cloned().collect();
                    self.renew(&active).await;
                }
                Err(RecvError::Closed) => return,
            }
        }
    }
}

/// The span of an attempt at a run, which follows the request that asked for it.
fn span_of(claimed: &ClaimedRun) -> Span {
    let run = &claimed.run;
    let span = tracing::debug_span!(
        parent: None,
        "run",
        run.id = %run.run_id,
        thread.id = %run.thread_id,
        graph.id = run.graph_id,
        attempt = run.attempts,
        status = Empty,
    );
    if !span.is_disabled() {
        let configurable = run.kwargs.get("config").and_then(|config| config.get("configurable"));
        let asked = configurable.and_then(|configurable| configurable.get(spans::TRACEPARENT));
        if let Some(traceparent) = asked.as_ref().and_then(|asked| asked.as_str()) {
            spans::continue_from(&span, traceparent, None);
        }
    }
    span
}
