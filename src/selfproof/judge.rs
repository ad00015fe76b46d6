//! Compares what clients were told with what the database holds. Pure: what is there goes in, findings come out.

use std::collections::{BTreeMap, HashMap, HashSet};

use uuid::Uuid;

use super::story::{Story, TellTale, Turn};
use super::till::Call;

/// A checkpoint of the root graph as the history shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) step: i64,
    pub(super) id: String,
    pub(super) parent: Option<String>,
}

/// An external call as the thread's journal shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Journaled {
    pub(super) state: String,
    pub(super) attempt: u64,
    /// The receipt.
    pub(super) result: Option<String>,
}

/// What there is of a thread.
#[derive(Debug, Clone, Default)]
pub(super) struct Found {
    /// Ids and statuses of its runs.
    pub(super) runs: Vec<(Uuid, String)>,
    pub(super) trail: Vec<String>,
    /// Oldest first.
    pub(super) history: Vec<Step>,
    /// The stored events of the runs that were streamed.
    pub(super) events: BTreeMap<Uuid, Vec<TellTale>>,
    pub(super) item: Option<u64>,
    /// `name=receipt` of the state.
    pub(super) receipts: Vec<String>,
    pub(super) journal: Vec<Journaled>,
    /// What the world remembers of it, oldest first.
    pub(super) calls: Vec<Call>,
}

/// What is wrong, a line each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Findings {
    pub(super) lost: Vec<String>,
    pub(super) doubled: Vec<String>,
    pub(super) stuck: Vec<String>,
}

impl Findings {
    pub(super) fn add(&mut self, other: Findings) {
        self.lost.extend(other.lost);
        self.doubled.extend(other.doubled);
        self.stuck.extend(other.stuck);
    }
}

/// Judges one thread.
pub(super) fn judge(story: &Story, found: &Found) -> Findings {
    let mut findings = Findings::default();
    let thread = &story.thread;
    findings.lost.extend(story.complaints.iter().map(|complaint| format!("{thread}: {complaint}")));
    runs(story, found, &mut findings);
    for turn in &story.turns {
        if let Some(result) = &turn.result {
            compare(&format!("{thread}: the result of {}", shown(turn)), story, &turn.expected, result, &mut findings);
        }
        if let (Some(told), Some(run)) = (&turn.events, turn.run_id) {
            events(thread, run, told, found.events.get(&run).map_or(&[], Vec::as_slice), &mut findings);
        }
    }
    let accepted = story.turns.iter().rev().find(|turn| turn.run_id.is_some());
    if let Some(last) = accepted.filter(|turn| turn.status.is_some()) {
        compare(&format!("{thread}: the state"), story, &last.expected, &found.trail, &mut findings);
        if story.pays {
            effects(story, &last.expected, found, &mut findings);
        }
    }
    steps(thread, &found.history, &mut findings);
    if let Some((acknowledged, tried)) = story.item {
        match found.item {
            Some(number) if number >= acknowledged && number <= tried => {}
            None if acknowledged == 0 => {}
            other => findings.lost.push(format!("{thread}: item {acknowledged} was acknowledged, {other:?} is there")),
        }
    }
    findings
}

fn shown(turn: &Turn) -> String {
    turn.run_id.map_or_else(|| "a run".to_owned(), |id| format!("run {id}"))
}

/// Each accepted run is there once and has ended well; no other is.
fn runs(story: &Story, found: &Found, findings: &mut Findings) {
    let thread = &story.thread;
    let mut told = HashSet::new();
    for turn in &story.turns {
        let Some(id) = turn.run_id else { continue };
        if !told.insert(id) {
            findings.lost.push(format!("{thread}: {id} was given for two requests"));
        }
        match found.runs.iter().find(|(run, _)| *run == id) {
            None => findings.lost.push(format!("{thread}: accepted run {id} is not there")),
            Some((_, status)) if matches!(status.as_str(), "pending" | "running") => {
                findings.stuck.push(format!("{thread}: run {id} is {status}"));
            }
            Some((_, status)) if status != "success" => {
                findings.lost.push(format!("{thread}: run {id} ended as {status}"));
            }
            Some((_, status)) if turn.status.as_ref().is_some_and(|told| told != status) => {
                findings.lost.push(format!("{thread}: run {id} was told as {:?} and is {status}", turn.status));
            }
            Some(_) => {}
        }
    }
    // A request that was never answered may have had its effect.
    let open = story.turns.iter().filter(|turn| turn.run_id.is_none()).count();
    let unknown: Vec<&(Uuid, String)> = found.runs.iter().filter(|(run, _)| !told.contains(run)).collect();
    if unknown.len() > open {
        findings.doubled.push(format!("{thread}: runs nobody was told of: {unknown:?}"));
    }
    for (run, status) in unknown {
        if matches!(status.as_str(), "pending" | "running") {
            findings.stuck.push(format!("{thread}: run {run} is {status}"));
        }
    }
}

/// Every expected entry is there once, in order, and nothing else.
fn compare(what: &str, story: &Story, expected: &[String], there: &[String], findings: &mut Findings) {
    let before = findings.clone();
    let count = |list: &[String], entry: &String| list.iter().filter(|other| *other == entry).count();
    for entry in expected {
        match count(there, entry) {
            0 => findings.lost.push(format!("{what}: {entry} is missing")),
            1 => {}
            n => findings.doubled.push(format!("{what}: {entry} is there {n} times")),
        }
    }
    let unexpected: Vec<&String> = there.iter().filter(|entry| count(expected, entry) == 0).collect();
    if !unexpected.is_empty() {
        findings.doubled.push(format!("{what}: nobody wrote {unexpected:?}"));
    }
    if before == *findings && !story.unordered && expected != there {
        findings.doubled.push(format!("{what}: the order is {there:?}"));
    }
}

/// Supersteps are consecutive, each is the child of the one before, none is there twice.
fn steps(thread: &str, history: &[Step], findings: &mut Findings) {
    for pair in history.windows(2) {
        let (a, b) = (&pair[0], &pair[1]);
        if b.step == a.step {
            findings.doubled.push(format!("{thread}: superstep {} is there twice", a.step));
        } else if b.step != a.step + 1 {
            findings.lost.push(format!("{thread}: superstep {} comes after {}", b.step, a.step));
        } else if b.parent.as_ref() != Some(&a.id) {
            findings.lost.push(format!("{thread}: superstep {} is no child of {}", b.step, a.step));
        }
    }
}

/// What a client heard over all its connections is what the log holds, once and in order.
fn events(thread: &str, run: Uuid, told: &[TellTale], stored: &[TellTale], findings: &mut Findings) {
    let mut seen = HashSet::new();
    for event in told {
        if !seen.insert(&event.id) {
            findings.doubled.push(format!("{thread}: event {} of run {run} was sent twice", event.id));
        }
        match stored.iter().find(|other| other.id == event.id) {
            None => findings.lost.push(format!("{thread}: event {} of run {run} was told and is not there", event.id)),
            Some(other) if other != event => {
                findings
                    .lost
                    .push(format!("{thread}: event {} of run {run} was told as {event:?}, is {other:?}", event.id));
            }
            Some(_) => {}
        }
    }
    for event in stored.iter().filter(|event| !seen.contains(&event.id)) {
        findings.lost.push(format!("{thread}: event {} of run {run} was not told", event.id));
    }
    let order = |list: &[TellTale]| -> Vec<String> { list.iter().map(|event| event.id.clone()).collect() };
    if seen.len() == told.len() && told.len() == stored.len() && order(told) != order(stored) {
        findings.doubled.push(format!("{thread}: the events of run {run} were told in another order"));
    }
}

/// External calls: what the state and the journal say of each is what the world remembers, and what was told.
fn effects(story: &Story, expected: &[String], found: &Found, findings: &mut Findings) {
    let thread = &story.thread;
    let mut names_of: HashMap<&str, HashSet<&str>> = HashMap::new();
    for call in &found.calls {
        names_of.entry(&call.key).or_default().insert(&call.name);
        if !expected.contains(&call.name) {
            findings.doubled.push(format!("{thread}: nobody asked for the call {}", call.name));
        }
    }
    for (key, names) in names_of.iter().filter(|(_, names)| names.len() > 1) {
        findings
            .lost
            .push(format!("{thread}: the calls {names:?} have one key, {key}: only one of them would be made"));
    }
    for name in expected {
        let of_name = |entry: &&String| entry.split_once('=').is_some_and(|(other, _)| other == name);
        let receipts: Vec<&str> =
            found.receipts.iter().filter(of_name).filter_map(|entry| Some(entry.split_once('=')?.1)).collect();
        let calls: Vec<&Call> = found.calls.iter().filter(|call| call.name == *name).collect();
        let keys: HashSet<&str> = calls.iter().map(|call| call.key.as_str()).collect();
        if keys.len() > 1 {
            findings.doubled.push(format!("{thread}: the call {name} was made under {} keys", keys.len()));
        }
        match receipts[..] {
            [] => findings.lost.push(format!("{thread}: no receipt for {name}")),
            [receipt] => {
                if !calls.iter().any(|call| call.receipt == receipt) {
                    findings.lost.push(format!("{thread}: nobody gave the receipt {receipt} for {name}"));
                }
                let mut journaled = found.journal.iter().filter(|entry| entry.result.as_deref() == Some(receipt));
                match (journaled.next(), journaled.next()) {
                    (Some(entry), None) if entry.state == "recorded" => {
                        if calls.len() as u64 > entry.attempt {
                            let (made, known) = (calls.len(), entry.attempt);
                            findings
                                .doubled
                                .push(format!("{thread}: {name} was called {made} times, attempted {known}"));
                        }
                    }
                    (None, _) => findings.lost.push(format!("{thread}: the receipt for {name} is not in the journal")),
                    other => findings.doubled.push(format!("{thread}: the journal says of {name} {other:?}")),
                }
            }
            _ => findings.doubled.push(format!("{thread}: {} receipts for {name}", receipts.len())),
        }
    }
    for entry in found.journal.iter().filter(|entry| entry.state != "recorded") {
        findings.lost.push(format!("{thread}: what became of a call is not known: {entry:?}"));
    }
    for turn in &story.turns {
        if turn.receipts.as_ref().is_some_and(|told| !found.receipts.starts_with(told)) {
            findings.lost.push(format!("{thread}: {} was told receipts that are not there", shown(turn)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|word| (*word).to_owned()).collect()
    }

    fn event(id: &str) -> TellTale {
        TellTale { id: id.to_owned(), name: "values".to_owned(), data: "{}".to_owned() }
    }

    /// A story that went well, and what is there of it.
    fn well() -> (Story, Found) {
        let run = Uuid::from_u128(1);
        let expected = words(&["1.1", "1.2"]);
        let turn = Turn {
            run_id: Some(run),
            status: Some("success".to_owned()),
            result: Some(expected.clone()),
            events: Some(vec![event("5-0"), event("5-1")]),
            expected: expected.clone(),
            receipts: None,
        };
        let step = |step: i64, id: &str, parent: Option<&str>| Step {
            step,
            id: id.to_owned(),
            parent: parent.map(str::to_owned),
        };
        let found = Found {
            runs: vec![(run, "success".to_owned())],
            trail: expected,
            history: vec![step(-1, "a", None), step(0, "b", Some("a")), step(1, "c", Some("b"))],
            events: [(run, vec![event("5-0"), event("5-1")])].into(),
            item: Some(4),
            ..Found::default()
        };
        let story = Story { thread: "t".to_owned(), turns: vec![turn], item: Some((3, 4)), ..Story::default() };
        (story, found)
    }

    /// What is found after a change: (lost, doubled, stuck).
    fn after(change: impl FnOnce(&mut Story, &mut Found)) -> (usize, usize, usize) {
        let (mut story, mut found) = well();
        change(&mut story, &mut found);
        let findings = judge(&story, &found);
        (findings.lost.len(), findings.doubled.len(), findings.stuck.len())
    }

    #[test]
    fn what_is_as_it_was_told_is_clean() {
        assert_eq!(after(|_, _| {}), (0, 0, 0));
    }

    #[test]
    fn what_was_lost_is_found() {
        assert_eq!(after(|_, found| found.runs.clear()), (1, 0, 0));
        assert_eq!(after(|_, found| found.runs[0].1 = "error".to_owned()), (1, 0, 0));
        assert_eq!(after(|_, found| drop(found.trail.pop())), (1, 0, 0));
        assert_eq!(after(|_, found| drop(found.history.remove(1))), (1, 0, 0));
        assert_eq!(after(|_, found| found.history[2].parent = Some("a".to_owned())), (1, 0, 0));
        assert_eq!(after(|_, found| found.events.clear()), (2, 0, 0));
        assert_eq!(after(|story, _| story.turns[0].events = Some(vec![event("5-1")])), (1, 0, 0));
        assert_eq!(after(|_, found| found.item = Some(2)), (1, 0, 0));
        assert_eq!(after(|story, _| story.complaints.push("404".to_owned())), (1, 0, 0));
    }

    #[test]
    fn what_was_doubled_is_found() {
        assert_eq!(after(|_, found| found.runs.push((Uuid::from_u128(2), "success".to_owned()))), (0, 1, 0));
        assert_eq!(after(|_, found| found.trail.push("1.2".to_owned())), (0, 1, 0));
        assert_eq!(after(|_, found| found.trail.push("9.9".to_owned())), (0, 1, 0));
        assert_eq!(after(|_, found| found.trail.reverse()), (0, 1, 0));
        assert_eq!(after(|_, found| found.history[2].step = 0), (0, 1, 0));
        assert_eq!(
            after(|story, _| story.turns[0].events.iter_mut().for_each(|all| all.push(event("5-1")))),
            (0, 1, 0)
        );
    }

    /// The same with an external call behind each entry; the second was made twice, since the first attempt was cut off.
    fn after_paying(change: impl FnOnce(&mut Story, &mut Found)) -> (usize, usize, usize) {
        let call = |name: &str, key: &str, receipt: &str| Call {
            thread: "t".to_owned(),
            name: name.to_owned(),
            key: key.to_owned(),
            receipt: receipt.to_owned(),
        };
        let journaled = |receipt: &str, attempt| Journaled {
            state: "recorded".to_owned(),
            attempt,
            result: Some(receipt.to_owned()),
        };
        after(|story, found| {
            story.pays = true;
            found.receipts = words(&["1.1=a", "1.2=c"]);
            found.journal = vec![journaled("a", 1), journaled("c", 2)];
            found.calls = vec![call("1.1", "x", "a"), call("1.2", "y", "b"), call("1.2", "y", "c")];
            story.turns[0].receipts = Some(found.receipts.clone());
            change(story, found);
        })
    }

    #[test]
    fn external_calls_are_compared_with_what_the_world_remembers() {
        assert_eq!(after_paying(|_, _| {}), (0, 0, 0));
        assert_eq!(after_paying(|_, found| found.calls[1].key = "z".to_owned()), (0, 1, 0), "another key");
        assert_eq!(after_paying(|_, found| found.calls[0].key = "y".to_owned()), (1, 0, 0), "one key for two");
        assert_eq!(after_paying(|_, found| found.journal[1].attempt = 1), (0, 1, 0), "called more often than known");
        assert_eq!(after_paying(|_, found| drop(found.calls.remove(0))), (1, 0, 0), "never called");
        assert_eq!(after_paying(|_, found| drop(found.calls.pop())), (1, 0, 0), "told of another call");
        assert_eq!(after_paying(|_, found| drop(found.journal.pop())), (1, 0, 0), "forgotten");
        assert_eq!(after_paying(|_, found| found.journal.push(found.journal[0].clone())), (0, 1, 0));
        assert_eq!(after_paying(|_, found| found.receipts.push("1.2=b".to_owned())), (0, 1, 0));
        assert_eq!(after_paying(|_, found| drop(found.receipts.remove(0))), (2, 0, 0), "it was told, too");
        assert_eq!(after_paying(|_, found| found.calls[0].name = "9.9".to_owned()), (1, 1, 0), "nobody asked");
        let open = |_: &mut Story, found: &mut Found| {
            found.journal.push(Journaled { state: "started".to_owned(), attempt: 1, result: None });
        };
        assert_eq!(after_paying(open), (1, 0, 0));
    }

    #[test]
    fn what_is_stuck_is_found() {
        assert_eq!(after(|_, found| found.runs[0].1 = "running".to_owned()), (0, 0, 1));
        assert_eq!(after(|_, found| found.runs.push((Uuid::from_u128(2), "pending".to_owned()))), (0, 1, 1));
    }

    #[test]
    fn a_request_that_was_never_answered_may_have_had_its_effect() {
        let open = |story: &mut Story, found: &mut Found| {
            story.turns.push(Turn::default());
            found.runs.push((Uuid::from_u128(2), "success".to_owned()));
        };
        assert_eq!(after(open), (0, 0, 0));
    }
}
