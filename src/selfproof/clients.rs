//! The clients of the proof: each lives through one thread after another and writes down what it was told.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::sync::watch;
use uuid::Uuid;

use super::caller::{Answer, Ask, Caller, NoAnswer};
use super::graphs;
use super::story::{Stories, Story, TellTale, Turn, lock, receipts, trail};

/// How a client follows its run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// `/runs`, then `/join`.
    Background,
    /// `/runs/wait`.
    Wait,
    /// `/runs/stream`, continued elsewhere when it breaks.
    Stream,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Count,
    Fan,
    Ask,
    Pay,
    Items,
}

/// Lives until told to stop; finishes what it has begun. Returns how often it had to ask again.
pub(super) async fn live(name: String, mut caller: Caller, stories: Stories, stop: watch::Receiver<bool>) -> u64 {
    let mut number = 0;
    while !*stop.borrow() {
        number += 1;
        let kinds = [(5, Kind::Count), (2, Kind::Fan), (2, Kind::Ask), (2, Kind::Pay), (1, Kind::Items)];
        let kind = caller.dice.weighted(&kinds).unwrap_or(Kind::Count);
        let thread = format!("{name}-{number}");
        let (unordered, pays) = (kind == Kind::Fan, kind == Kind::Pay);
        let story = stories.begin(Story { thread: thread.clone(), unordered, pays, ..Story::default() });
        let mut life = Life { caller: &mut caller, stories: &stories, story: &story, thread };
        if let Err(error) = life.through(kind).await {
            lock(&story).complaints.push(error.to_string());
        }
    }
    caller.retries
}

struct Life<'a> {
    caller: &'a mut Caller,
    stories: &'a Stories,
    story: &'a Arc<Mutex<Story>>,
    thread: String,
}

impl Life<'_> {
    async fn through(&mut self, kind: Kind) -> Result<(), NoAnswer> {
        if kind == Kind::Items {
            return self.items().await;
        }
        let mut trail = Vec::new();
        for turn in 1..=1 + self.caller.dice.below(3) {
            let to = 2 + self.caller.dice.below(10);
            let pause_ms = if self.caller.dice.percent(50) { self.caller.dice.below(40) } else { 0 };
            let input = json!({"turn": turn, "n": 0, "to": to, "pause_ms": pause_ms});
            match kind {
                Kind::Count | Kind::Pay => {
                    trail.extend((1..=to).map(|n| format!("{turn}.{n}")));
                    let graph = if kind == Kind::Pay { graphs::PAY } else { graphs::COUNT };
                    self.run(graph, json!({"input": input}), &trail).await?;
                }
                Kind::Fan => {
                    trail.extend((0..to).map(|i| format!("{turn}.{i}")));
                    trail.push(format!("{turn}.joined"));
                    self.run(graphs::FAN, json!({"input": input}), &trail).await?;
                }
                Kind::Ask | Kind::Items => {
                    trail.push(format!("{turn}.asked"));
                    self.run(graphs::ASK, json!({"input": input}), &trail).await?;
                    let answer = self.caller.dice.below(1_000_000).to_string();
                    trail.push(format!("{turn}.answer={answer}"));
                    trail.push(format!("{turn}.told"));
                    self.run(graphs::ASK, json!({"command": {"resume": answer}}), &trail).await?;
                }
            }
        }
        Ok(())
    }

    /// One run: accepted once, followed to its end.
    async fn run(&mut self, graph: &str, mut body: Value, expected: &[String]) -> Result<(), NoAnswer> {
        let ways = [(2, Way::Background), (2, Way::Wait), (3, Way::Stream)];
        let way = self.caller.dice.weighted(&ways).unwrap_or(Way::Wait);
        body["assistant_id"] = json!(graph);
        body["durability"] = json!(if self.caller.dice.percent(30) { "sync" } else { "async" });
        let index = {
            let mut story = lock(self.story);
            story.turns.push(Turn { expected: expected.to_vec(), ..Turn::default() });
            story.turns.len() - 1
        };
        let key = format!("{}-{index}", self.thread);
        let base = format!("/threads/{}/runs", self.thread);
        let run_id = match way {
            Way::Background => {
                let Answer { body, .. } = self.caller.json(Ask::post(&base, &body).once(&key)).await?;
                body["run_id"].as_str().and_then(|id| Uuid::try_parse(id).ok())
            }
            Way::Wait => {
                let path = format!("{base}/wait");
                let answer = self.caller.json(Ask::post(&path, &body).once(&key)).await?;
                self.told(index, &answer.body);
                answer.run_id
            }
            Way::Stream => {
                body["stream_mode"] = json!(["values", "custom"]);
                body["stream_resumable"] = json!(true);
                Some(self.stream(index, &base, &body, &key).await?)
            }
        };
        let Some(run_id) = run_id else {
            return Err(NoAnswer::Refused(format!("{base}: accepted without a run id")));
        };
        self.accepted(index, run_id);
        let status = self.ended(&base, run_id).await?;
        lock(self.story).turns[index].status = Some(status);
        let path = format!("{base}/{run_id}/join");
        let answer = self.caller.json(Ask::get(&path)).await?;
        self.told(index, &answer.body);
        Ok(())
    }

    /// A result, if this is one.
    fn told(&self, index: usize, body: &Value) {
        let Some(result) = trail(body) else { return };
        let turn = &mut lock(self.story).turns[index];
        (turn.result, turn.receipts) = (Some(result), receipts(body));
    }

    fn accepted(&self, index: usize, run_id: Uuid) {
        self.stories.accepted(run_id);
        lock(self.story).turns[index].run_id = Some(run_id);
    }

    /// Waits for the end of a run; its status.
    async fn ended(&mut self, base: &str, run_id: Uuid) -> Result<String, NoAnswer> {
        let (run, join) = (format!("{base}/{run_id}"), format!("{base}/{run_id}/join"));
        loop {
            let Answer { body, .. } = self.caller.json(Ask::get(&run)).await?;
            let status = body["status"].as_str().unwrap_or_default().to_owned();
            if !matches!(status.as_str(), "pending" | "running") {
                return Ok(status);
            }
            if self.caller.is_out_of_time() {
                return Err(NoAnswer::OutOfTime(run));
            }
            // What it says is asked for again when the run has ended.
            self.caller.json(Ask::get(&join)).await?;
        }
    }

    /// Starts a run and reads its events over as many connections as it takes.
    async fn stream(&mut self, index: usize, base: &str, body: &Value, key: &str) -> Result<Uuid, NoAnswer> {
        let path = format!("{base}/stream");
        let mut known = None;
        let mut events: Vec<TellTale> = Vec::new();
        let mut is_over = false;
        let mut quiet_looks = 0;
        loop {
            let again = known.map(|run: Uuid| format!("{base}/{run}/stream"));
            let after = events.last().map_or_else(|| "-1".to_owned(), |event| event.id.clone());
            let ask = match &again {
                Some(again) => Ask { after: Some(&after), ..Ask::get(again) },
                None => Ask::post(&path, body).once(key),
            };
            let (mut run, before) = (known, events.len());
            let opened = |id: Option<Uuid>| run = run.or(id);
            let heard = |event: TellTale| {
                // An error of the stream itself is not part of the run's log.
                if !event.id.is_empty() {
                    events.push(event);
                }
            };
            let has_ended = self.caller.stream(ask, opened, heard).await?;
            known = run;
            let Some(run) = known else {
                return Err(NoAnswer::Refused(format!("{path}: a stream that does not say of which run")));
            };
            self.accepted(index, run);
            // A stream also ends when its server is told to stop, and breaks when it dies. So all is told when the run is over
            // and two looks, each to its end, brought nothing.
            let is_quiet = is_over && has_ended && events.len() == before;
            quiet_looks = if is_quiet { quiet_looks + 1 } else { 0 };
            if quiet_looks == 2 {
                lock(self.story).turns[index].events = Some(events);
                return Ok(run);
            }
            let look = format!("{base}/{run}");
            let Answer { body: shown, .. } = self.caller.json(Ask::get(&look)).await?;
            is_over = !matches!(shown["status"].as_str(), Some("pending" | "running"));
            if self.caller.is_out_of_time() {
                return Err(NoAnswer::OutOfTime(path));
            }
        }
    }

    /// Writes growing numbers to one item: the last acknowledged one, or a later one tried, must be there.
    async fn items(&mut self) -> Result<(), NoAnswer> {
        for number in 1..=1 + self.caller.dice.below(6) {
            {
                let mut story = lock(self.story);
                let acknowledged = story.item.map_or(0, |(acknowledged, _)| acknowledged);
                story.item = Some((acknowledged, number));
            }
            let body = json!({"namespace": ["proof"], "key": self.thread, "value": {"number": number}});
            let ask = Ask { method: reqwest::Method::PUT, ..Ask::post("/store/items", &body) };
            self.caller.json(ask).await?;
            lock(self.story).item = Some((number, number));
        }
        Ok(())
    }
}
