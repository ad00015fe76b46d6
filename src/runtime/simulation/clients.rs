//! Clients: they are on other machines, ask any replica, and lose patience. What they were told must be so.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::timeout;

use super::replica::Replica;
use super::world::World;
use crate::model::event::RESUME_GAP;
use crate::model::{CancelAction, EventId, RunId, Scope, ThreadId, ThreadKey};
use crate::runtime::shared::lock;
use crate::runtime::{EventStream, RunRequest};
use crate::storage::CancelRequest;

/// How long a client waits for an answer, or for the next event.
const PATIENCE: Duration = Duration::from_secs(6);

/// What one client knows of a run that was accepted.
#[derive(Debug, Clone)]
pub(super) struct Told {
    pub(super) run_id: RunId,
    pub(super) thread: ThreadKey,
    pub(super) thread_id: ThreadId,
    /// Its events are kept: what was heard of them, by id.
    pub(super) heard: Option<Vec<EventId>>,
}

pub(super) type Tellings = Arc<Mutex<Vec<Told>>>;

/// Asks a replica for a run, and follows it in one way or another.
pub(super) fn submit(world: &Arc<World>, replica: &Replica, request: RunRequest, told: &Tellings) {
    let (world, process, runtime, told) =
        (Arc::clone(world), replica.process.clone(), replica.runtime.clone(), Arc::clone(told));
    let way = world.roll(4);
    tokio::spawn(async move {
        let scope = Scope::default();
        let is_resumable = request.kwargs.resumable;
        let asked = {
            let (runtime, under_way) = (runtime.clone(), world.asks());
            process.spawn(async move {
                let _until_done = under_way;
                runtime.submit(&scope, request).await
            })
        };
        let Ok(Ok(Ok(mut submitted))) = timeout(PATIENCE, asked).await else { return };
        let (run_id, thread) = (submitted.run.run_id, submitted.run.thread_key);
        let index = {
            let mut told = lock(&told);
            let thread_id = submitted.run.thread_id.clone();
            told.push(Told { run_id, thread, thread_id, heard: is_resumable.then(Vec::new) });
            told.len() - 1
        };
        match (way, submitted.events.take()) {
            (0..=1, _) => {}
            (2, Some(events)) if is_resumable => {
                listen(events, &told, index).await;
            }
            (_, events) => {
                submitted.events = events;
                let waited = process.spawn(async move { runtime.wait(&scope, submitted).await });
                if let Ok(Ok(Ok(_))) = timeout(PATIENCE, waited).await {
                    let mut database = lock(&world.database);
                    let seen = database.witness.runs.get(&run_id).and_then(|seen| seen.end);
                    if seen.is_none() {
                        let name = database.witness.name(run_id);
                        database.witness.wrongs.push(format!("{name} was said to have ended"));
                    }
                }
            }
        }
    });
}

/// Notes what a stream tells, until it ends, or nothing comes for too long. False: it may go on elsewhere.
async fn listen(mut events: EventStream, told: &Tellings, index: usize) -> bool {
    loop {
        match timeout(PATIENCE, events.next()).await {
            Ok(Some(event)) if event.name == RESUME_GAP => {}
            Ok(Some(event)) => {
                if let (Some(id), Some(heard)) = (event.id, &mut lock(told)[index].heard) {
                    heard.push(id);
                }
            }
            Ok(None) => return true,
            Err(_) => return false,
        }
    }
}

/// Goes on listening where somebody left off.
pub(super) async fn listen_on(replica: &Replica, told: &Tellings, index: usize) {
    let known = lock(told)[index].clone();
    let Some(heard) = known.heard else { return };
    let after = heard.last().copied().unwrap_or(EventId(0));
    let runtime = replica.runtime.clone();
    let joined = replica.process.spawn(async move {
        runtime.join_stream(&Scope::default(), &known.thread_id, known.run_id, Some(after), false).await
    });
    if let Ok(Ok(Ok(events))) = timeout(PATIENCE, joined).await {
        listen(events, told, index).await;
    }
}

/// Asks a replica to cancel a run.
pub(super) fn cancel(world: &World, replica: &Replica, told: &Told) {
    let action = if world.one_in(3) { CancelAction::Rollback } else { CancelAction::Interrupt };
    let (runtime, run_id, thread, wait) =
        (replica.runtime.clone(), told.run_id, told.thread_id.clone(), world.one_in(2));
    let under_way = world.asks();
    replica.process.spawn(async move {
        let _until_done = under_way;
        let request = CancelRequest { action, actor: None, reason: None };
        // Of a run that has ended nothing is left to cancel.
        let _cancelled = runtime.cancel(&Scope::default(), &thread, run_id, &request, wait).await;
    });
}
