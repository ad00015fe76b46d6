//! What must be so after the storm, whatever happened in it.

use std::sync::Arc;

use super::clients::{Tellings, Told};
use super::replica::Replica;
use super::story::Progress;
use super::witness::{End, Seen};
use super::world::World;
use crate::model::event::is_record;
use crate::model::{CheckpointRef, EventId, Json, RunStatus, Scope, ThreadId};
use crate::runtime::shared::lock;

/// Reads the threads through a replica, and compares them with what was asked and told.
pub(super) async fn judge(world: &Arc<World>, replica: &Replica, threads: &[ThreadId], told: &Tellings) -> Vec<String> {
    let mut wrongs = Vec::new();
    for thread in threads {
        let key = thread.key(Scope::default().tenant());
        let head = lock(&world.database).thread(key).map(|thread| thread.head);
        let read = match head {
            // Nobody asked for anything.
            None => continue,
            Some(None) => Ok(Vec::new()),
            Some(Some(_)) => trail(replica, thread).await,
        };
        let trail = match read {
            Ok(trail) => trail,
            Err(wrong) => {
                wrongs.push(wrong);
                continue;
            }
        };
        let database = lock(&world.database);
        let runs = database.witness.of_thread(key);
        wrongs.extend(judge_trail(thread, &runs, &trail));
    }
    let told = lock(told).clone();
    wrongs.extend(told.iter().filter_map(|told| judge_telling(world, told)));
    wrongs.extend(lock(&world.database).witness.wrongs.iter().cloned());
    wrongs
}

async fn trail(replica: &Replica, thread: &ThreadId) -> Result<Vec<String>, String> {
    let (runtime, id) = (replica.runtime.clone(), thread.clone());
    let read = async move { runtime.thread_state(&Scope::default(), &id, &CheckpointRef::default(), false).await };
    let state = replica.process.spawn(read).await.map_err(|error| error.to_string())?;
    let state = state.map_err(|error| format!("{thread} cannot be read: {error}"))?;
    let state = Json::of(&state).map_err(|error| error.to_string())?;
    let trail = state.get("values").and_then(|values| values.get("trail"));
    trail.map_or(Ok(Vec::new()), |trail| trail.decode().map_err(|error| error.to_string()))
}

/// Each run left one piece of the trail, in the order of their creation, and as much as how it ended says.
fn judge_trail(thread: &ThreadId, runs: &[&Seen], trail: &[String]) -> Vec<String> {
    let mut wrongs = Vec::new();
    let mut left = trail;
    for seen in runs {
        let of_run =
            |entry: &String| entry.split_once('.').is_some_and(|(turn, _)| turn.parse() == Ok(seen.asked.turn));
        let count = left.iter().take_while(|entry| of_run(entry)).count();
        let (piece, rest) = left.split_at(count);
        left = rest;
        let Some(progress) = seen.asked.measure(piece) else {
            wrongs.push(format!("{thread}: r{} was to leave {:?}, and left {piece:?}", seen.number, seen.asked));
            continue;
        };
        if let Err(wrong) = judge_run(seen, progress) {
            wrongs.push(format!("{thread}: r{} {wrong}: {progress:?} of {:?}", seen.number, seen.asked));
        }
    }
    if !left.is_empty() {
        wrongs.push(format!("{thread}: doubled or out of order: {left:?} in {trail:?}"));
    }
    wrongs
}

fn judge_run(seen: &Seen, progress: Progress) -> Result<(), String> {
    let may_be_partial = matches!(seen.end, Some(End::As(RunStatus::Interrupted) | End::Quarantined));
    let is_fine = (may_be_partial || !progress.is_partial)
        && match seen.end {
            None => return Err("has not ended".to_owned()),
            Some(End::RolledBack) => progress.supersteps == 0 && !progress.is_partial,
            Some(End::As(RunStatus::Success)) => progress.is_complete,
            Some(End::As(RunStatus::Error)) => seen.asked.fail_at > 0,
            Some(End::As(RunStatus::Interrupted)) => seen.flagged.is_some(),
            Some(End::Quarantined) => true,
            Some(End::As(_)) => false,
        };
    if is_fine { Ok(()) } else { Err(format!("ended as {:?}", seen.end)) }
}

/// A run that was accepted is there, and what was heard of it is what its log says.
fn judge_telling(world: &World, told: &Told) -> Option<String> {
    let database = lock(&world.database);
    let Some(seen) = database.witness.runs.get(&told.run_id) else {
        return Some(format!("{} was accepted and is not there", told.run_id));
    };
    let heard = told.heard.as_ref().filter(|_| seen.end != Some(End::RolledBack))?;
    let log = database.events_of(told.thread, told.run_id);
    let log: Vec<EventId> = log.iter().filter(|event| !is_record(&event.name)).map(|event| event.id).collect();
    (*heard != log).then(|| format!("r{} told {heard:?}, and its log is {log:?}", seen.number))
}
