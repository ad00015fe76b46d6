//! Compares what clients were told with what the database holds. Pure: what is there goes in, findings come out.

use std::collections::{BTreeMap, HashSet};

use uuid::Uuid;

use super::story::{Story, TellTale, Turn};

/// A checkpoint of the root graph as the history shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) step: i64,
    pub(super) id: String,
    pub(super) parent: Option<String>,
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
