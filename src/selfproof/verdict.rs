//! After the storm: waits for what is under way, reads what there is from a fresh process, and has it judged.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::watch;
use uuid::Uuid;

use super::caller::{Ask, Caller, NoAnswer};
use super::dice::Dice;
use super::fleet::Fleet;
use super::judge::{Findings, Found, Journaled, Step, judge};
use super::story::{Stories, Story, receipts, trail};
use super::till::{self, Call};

/// Threads read side by side.
const READERS: usize = 8;
/// The longest list that is asked for.
const PAGE: usize = 1000;
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Damage done on purpose, so that it is known that damage is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Sabotage {
    /// What a step appended to the state is there twice.
    Doubled,
    /// A thread is gone that clients were told of.
    Lost,
    /// An external call was made once more than anybody knows.
    Called,
}

/// Waits until no thread is busy any more. An error: the servers did not even say.
pub(super) async fn drain(
    fleet: &Fleet,
    until: Instant,
    limit: watch::Receiver<Option<Instant>>,
    dice: Dice,
) -> anyhow::Result<()> {
    let mut caller = Caller::new(fleet.clone(), dice, limit).context("an HTTP client")?;
    let body = json!({"status": "busy", "limit": 1});
    loop {
        let busy = caller.json(Ask::post("/threads/search", &body)).await;
        let busy = busy.map_err(|error| anyhow::anyhow!("{error}"))?;
        if busy.body.as_array().is_some_and(Vec::is_empty) || Instant::now() > until {
            // What is busy still is found, run by run.
            return Ok(());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Reads all threads of the stories and judges them.
pub(super) async fn of(
    fleet: &Fleet,
    stories: &Stories,
    till: &Path,
    sabotage: Option<Sabotage>,
    seed: u64,
) -> anyhow::Result<Findings> {
    let stories = stories.read();
    // The reader never gives up by itself: it is asked for by nobody but us.
    let (_never, limit) = watch::channel(None);
    if let Some(sabotage) = sabotage {
        let mut caller = Caller::new(fleet.clone(), Dice::of(seed, "sabotage", 0), limit.clone())?;
        damage(&mut caller, &stories, till, sabotage).await.map_err(|error| anyhow::anyhow!("{error}"))?;
    }
    let calls = std::sync::Arc::new(till::read(till)?);
    let mut reading = tokio::task::JoinSet::new();
    let share = stories.len().div_ceil(READERS).max(1);
    for (number, part) in stories.chunks(share).enumerate() {
        let mut caller = Caller::new(fleet.clone(), Dice::of(seed, "judge", number), limit.clone())?;
        let (part, calls) = (part.to_vec(), std::sync::Arc::clone(&calls));
        reading.spawn(async move {
            let mut findings = Findings::default();
            for story in &part {
                match find(&mut caller, story).await {
                    Ok(mut found) => {
                        found.calls = calls.iter().filter(|call| call.thread == story.thread).cloned().collect();
                        findings.add(judge(story, &found));
                    }
                    Err(error) => findings.lost.push(format!("{}: {error}", story.thread)),
                }
            }
            findings
        });
    }
    let mut findings = Findings::default();
    while let Some(part) = reading.join_next().await {
        findings.add(part.context("reading what there is")?);
    }
    Ok(findings)
}

async fn damage(caller: &mut Caller, stories: &[Story], till: &Path, sabotage: Sabotage) -> Result<(), NoAnswer> {
    // Of a counter, whose first entry is this.
    let first = "1.1".to_owned();
    let is_counter = |story: &&Story| {
        !story.unordered
            && story.pays == (sabotage == Sabotage::Called)
            && story.turns.iter().any(|turn| turn.status.is_some() && turn.expected.first() == Some(&first))
    };
    let story = stories.iter().find(is_counter);
    let Some(story) = story else { return Err(NoAnswer::Refused("nothing to damage".to_owned())) };
    let thread = format!("/threads/{}", story.thread);
    match sabotage {
        Sabotage::Doubled => {
            let path = format!("{thread}/state");
            let body = json!({"values": {"trail": [first]}, "as_node": "step"});
            caller.json(Ask::post(&path, &body)).await.map(drop)
        }
        Sabotage::Called => {
            let there = till::read(till).map_err(|error| NoAnswer::Refused(format!("{error:#}")))?;
            let call = there.into_iter().find(|call| call.thread == story.thread);
            let call = call.ok_or_else(|| NoAnswer::Refused("no call to repeat".to_owned()))?;
            let again = Call { receipt: format!("{}-again", call.receipt), ..call };
            // As often as no number of attempts accounts for.
            (0..20).try_for_each(|_| till::add(till, &again)).map_err(|error| NoAnswer::Refused(format!("{error:#}")))
        }
        Sabotage::Lost => caller.json(Ask { method: Method::DELETE, ..Ask::get(&thread) }).await.map(drop),
    }
}

/// What there is of one story's thread.
async fn find(caller: &mut Caller, story: &Story) -> Result<Found, NoAnswer> {
    let mut found = Found::default();
    if story.item.is_some() {
        found.item = item(caller, &story.thread).await?;
        return Ok(found);
    }
    let base = format!("/threads/{}", story.thread);
    if story.turns.iter().all(|turn| turn.run_id.is_none()) {
        // Nothing was promised: the thread may not exist.
        return Ok(found);
    }
    let path = format!("{base}/runs?limit={PAGE}");
    let runs = caller.json(Ask::get(&path)).await?.body;
    for run in runs.as_array().into_iter().flatten() {
        let id = run["run_id"].as_str().and_then(|id| Uuid::try_parse(id).ok()).unwrap_or_default();
        found.runs.push((id, run["status"].as_str().unwrap_or_default().to_owned()));
    }
    let path = format!("{base}/state");
    let state = caller.json(Ask::get(&path)).await?.body;
    found.trail = trail(&state["values"]).unwrap_or_default();
    if story.pays {
        found.receipts = receipts(&state["values"]).unwrap_or_default();
        let path = format!("{base}/effects?results=true&limit={PAGE}");
        let journal = caller.json(Ask::get(&path)).await?.body;
        found.journal = journal.as_array().into_iter().flatten().map(journaled).collect();
    }
    let path = format!("{base}/history?limit={PAGE}");
    let history = caller.json(Ask::get(&path)).await?.body;
    found.history = history.as_array().into_iter().flatten().map(step).collect();
    found.history.reverse();
    for turn in &story.turns {
        let (Some(run), Some(_)) = (turn.run_id, &turn.events) else { continue };
        let path = format!("{base}/runs/{run}/stream");
        let mut events = Vec::new();
        let all = Ask { after: Some("-1"), ..Ask::get(&path) };
        caller.stream(all, |_| {}, |event| events.push(event)).await?;
        events.retain(|event| !event.id.is_empty());
        found.events.insert(run, events);
    }
    Ok(found)
}

async fn item(caller: &mut Caller, key: &str) -> Result<Option<u64>, NoAnswer> {
    let path = format!("/store/items?namespace=proof&key={key}");
    match caller.json(Ask::get(&path)).await {
        Ok(answer) => Ok(answer.body["value"]["number"].as_u64()),
        Err(NoAnswer::Refused(text)) if text.contains("404") => Ok(None),
        Err(error) => Err(error),
    }
}

fn journaled(effect: &Value) -> Journaled {
    Journaled {
        state: effect["state"].as_str().unwrap_or_default().to_owned(),
        attempt: effect["attempt"].as_u64().unwrap_or_default(),
        result: effect["result"].as_str().map(str::to_owned),
    }
}

fn step(state: &Value) -> Step {
    let id = |cursor: &Value| cursor["checkpoint_id"].as_str().map(str::to_owned);
    Step {
        step: state["metadata"]["step"].as_i64().unwrap_or(i64::MIN),
        id: id(&state["checkpoint"]).unwrap_or_default(),
        parent: id(&state["parent_checkpoint"]),
    }
}
