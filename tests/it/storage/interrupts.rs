//! Interrupts: written with the commits of runs, once each; pending as long as the thread's head says so.

use super::*;

for_each_backend!(
    a_question_is_kept_with_its_answer_and_who_gave_it,
    a_repeated_commit_neither_asks_nor_answers_twice,
    a_question_is_pending_while_its_checkpoint_is_the_head,
    asking_again_opens_what_was_closed,
    a_question_asked_again_on_a_new_head_waits_there,
    what_a_run_said_is_taken_back_with_it,
    without_the_lease_nothing_is_asked_or_answered,
    questions_go_with_their_thread,
    lists_are_filtered_and_paged,
    another_tenant_sees_no_questions,
);

use InterruptChange::{Answered, Asked, Withdrawn};
use InterruptStatus::{Dropped, Pending};

async fn all(storage: &SharedStorage, filter: InterruptFilter) -> Vec<InterruptRecord> {
    let found = storage.list_interrupts(&TENANT, &filter, true, None, 100).await.unwrap();
    found.into_iter().map(|(_, record)| record).collect()
}

async fn status(storage: &SharedStorage, interrupt_id: &str) -> InterruptStatus {
    let filter = InterruptFilter { ids: Some(vec![interrupt_id.into()]), ..InterruptFilter::default() };
    let found = all(storage, filter.clone()).await;
    let [record] = found.as_slice() else { panic!("not one {interrupt_id}: {found:?}") };
    // The condition of lists says the same as the row.
    for wanted in [InterruptStatus::Answered, Dropped, Pending] {
        let matching = all(storage, InterruptFilter { status: Some(wanted), ..filter.clone() }).await;
        assert_eq!(matching.len(), usize::from(wanted == record.status), "{wanted:?} {record:?}");
    }
    record.status
}

/// Commits a step that moves the head, if it names a checkpoint, and says these things.
async fn say(storage: &SharedStorage, lease: Lease, head: Option<&str>, says: Vec<InterruptRow>, ends: bool) {
    let mut rows = StepRows { interrupts: says, ..StepRows::default() };
    if let Some(head) = head {
        rows.checkpoints = vec![checkpoint(head, Some(lease.run_id))];
        rows.head = Some(head.into());
    }
    let last = if ends { end(RunStatus::Success, ThreadStatus::Interrupted) } else { None };
    assert_eq!(commit(storage, step(lease, rows, last)).await, CommitOutcome::Committed);
}

/// A thread that waits for the answer to `question`, asked by run `n` at `checkpoint`.
async fn ask(storage: &SharedStorage, name: &str, n: u128, checkpoint: &str, question: &str) {
    let lease = start(storage, name, n).await.lease;
    say(storage, lease, Some(checkpoint), vec![interrupt(question, checkpoint, Asked)], true).await;
}

async fn a_question_is_kept_with_its_answer_and_who_gave_it(lab: Lab) {
    let storage = &lab.storage;
    let mine = start(storage, "t", 1).await;
    assert_eq!(mine.run.actor.as_deref(), Some("tester"));
    let asked = InterruptRow { ns: "sub:x".into(), checkpoint_id: "inner".into(), ..interrupt("q1", "c1", Asked) };
    say(storage, mine.lease, Some("c1"), vec![asked.clone()], true).await;
    let open = all(storage, InterruptFilter::default()).await.remove(0);
    assert_eq!((open.status, open.answer.is_some(), open.answered_at), (Pending, false, None));
    assert_eq!((open.thread_id.as_str(), open.run_id, open.node.as_str()), ("t", id(1), "approve"));
    assert_eq!((open.checkpoint_ns.as_str(), open.checkpoint_id.as_str()), ("sub:x", "inner"));
    assert_eq!((open.root_checkpoint_id.as_str(), open.task_id.as_str()), ("c1", "task"));
    assert_eq!((open.graph_id.as_str(), open.assistant_id, open.checked), ("graph", id(900), true));
    assert_eq!(
        (open.value.text(), open.response_schema.unwrap().text()),
        (json(r#"{"ok?":1}"#).text(), r#"{"type":"boolean"}"#.into())
    );

    let actor = Some("Zoë \u{e000}0".to_owned());
    let (run, claimed, _) = created(
        storage.create_run(&TENANT, NewRun { actor: actor.clone(), ..claimed_run("t", 2, MINUTE) }).await.unwrap(),
    );
    let answered = InterruptRow { change: Answered(json(r#"{"a": "\u0000"}"#)), ..asked };
    say(storage, claimed.unwrap().lease, Some("c2"), vec![answered], true).await;
    let closed = all(storage, InterruptFilter::default()).await.remove(0);
    assert_eq!(
        (closed.status, closed.answered_by, closed.answered_run_id),
        (InterruptStatus::Answered, actor.clone(), Some(id(2)))
    );
    assert_eq!(
        (closed.answer.unwrap().text(), closed.answered_at),
        (r#"{"a": "\u0000"}"#.to_owned(), Some(run.created_at))
    );
    assert_eq!((closed.asked_at, closed.run_id), (open.asked_at, id(1)));
    assert_eq!(find_run(storage, "t", 2).await.unwrap().actor, actor);
    let listed = storage.list_runs(&TENANT, &tid("t"), &RunFilter::default(), Page::default()).await.unwrap().unwrap();
    assert_eq!(listed[0].actor, actor);
}

async fn a_repeated_commit_neither_asks_nor_answers_twice(lab: Lab) {
    let storage = &lab.storage;
    let first = start(storage, "t", 1).await.lease;
    for _ in 0..2 {
        // In one commit, the last word counts.
        let twice = vec![interrupt("q2", "c1", Asked), interrupt("q1", "c1", Asked), interrupt("q2", "c1", Withdrawn)];
        say(storage, first, Some("c1"), twice, false).await;
    }
    let asked = all(storage, InterruptFilter::default()).await;
    assert_eq!(asked.len(), 2);
    assert_eq!((status(storage, "q1").await, status(storage, "q2").await), (Pending, Dropped));
    finish(storage, first).await;
    let second = start(storage, "t", 2).await.lease;
    for answer in ["1", "2"] {
        say(storage, second, None, vec![interrupt("q1", "c1", Answered(json(answer)))], false).await;
    }
    // A task around the one that took the answer only sees that the question is gone.
    say(storage, second, None, vec![interrupt("q1", "c1", Withdrawn)], false).await;
    let filter = InterruptFilter { ids: Some(vec!["q1".into()]), ..InterruptFilter::default() };
    let answered = all(storage, filter).await.remove(0);
    assert_eq!((answered.status, answered.answer.unwrap().text()), (InterruptStatus::Answered, "1".to_owned()));
}

async fn a_question_is_pending_while_its_checkpoint_is_the_head(lab: Lab) {
    let storage = &lab.storage;
    ask(storage, "t", 1, "c1", "q1").await;
    assert_eq!(status(storage, "q1").await, Pending);
    // An edit takes the thread elsewhere.
    let rows = StepRows { checkpoints: vec![checkpoint("c2", None)], head: Some("c2".into()), ..StepRows::default() };
    let change = StateCommit {
        thread_id: tid("t"),
        expected_head: Some("c1".into()),
        base: None,
        events: Vec::new(),
        rows,
        thread_status: ThreadStatus::Interrupted,
        view: None,
        moves: None,
    };
    assert_eq!(storage.commit_state(&TENANT, change).await.unwrap(), StateOutcome::Committed);
    assert_eq!(status(storage, "q1").await, Dropped);
    // So does new input; taken back, the thread waits for the answer again.
    ask(storage, "u", 2, "c1", "q2").await;
    let lease = start(storage, "u", 3).await.lease;
    say(storage, lease, Some("c2"), vec![interrupt("q3", "c2", Asked)], false).await;
    assert_eq!((status(storage, "q2").await, status(storage, "q3").await), (Dropped, Pending));
    storage.rollback_run(&TENANT, &lease, ThreadStatus::Interrupted).await.unwrap();
    assert_eq!(status(storage, "q2").await, Pending);
    let gone = InterruptFilter { ids: Some(vec!["q3".into()]), ..InterruptFilter::default() };
    assert!(all(storage, gone).await.is_empty());
}

async fn asking_again_opens_what_was_closed(lab: Lab) {
    let storage = &lab.storage;
    ask(storage, "t", 1, "c1", "q1").await;
    let asked_at = all(storage, InterruptFilter::default()).await[0].asked_at;
    let lease = start(storage, "t", 2).await.lease;
    for change in [Answered(json("true")), Withdrawn] {
        say(storage, lease, None, vec![interrupt("q1", "c1", change)], false).await;
        assert_ne!(status(storage, "q1").await, Pending);
        say(storage, lease, None, vec![interrupt("q1", "c1", Asked)], false).await;
        assert_eq!(status(storage, "q1").await, Pending);
    }
    let again = all(storage, InterruptFilter::default()).await.remove(0);
    assert_eq!((again.asked_at, again.run_id, again.answered_by), (asked_at, id(1), None));
}

/// A migrated graph goes on from a checkpoint of its own, and its tasks keep their ids.
async fn a_question_asked_again_on_a_new_head_waits_there(lab: Lab) {
    let storage = &lab.storage;
    ask(storage, "t", 1, "c1", "q1").await;
    let lease = start(storage, "t", 2).await.lease;
    let again = InterruptRow { node: "renamed".into(), ..interrupt("q1", "c2", Asked) };
    say(storage, lease, Some("c2"), vec![again], true).await;
    assert_eq!(status(storage, "q1").await, Pending);
    let [record] = all(storage, InterruptFilter::default()).await.try_into().expect("one question");
    assert_eq!((record.root_checkpoint_id.as_str(), record.node.as_str(), record.run_id), ("c2", "renamed", id(1)));
}

async fn what_a_run_said_is_taken_back_with_it(lab: Lab) {
    let storage = &lab.storage;
    let lease = start(storage, "t", 1).await.lease;
    say(storage, lease, Some("c1"), vec![interrupt("q1", "c1", Asked), interrupt("q2", "c1", Asked)], true).await;
    let second = start(storage, "t", 2).await.lease;
    let says = vec![
        interrupt("q1", "c1", Answered(json("1"))),
        interrupt("q2", "c1", Withdrawn),
        interrupt("q3", "c1", Asked),
    ];
    say(storage, second, None, says, true).await;
    assert_eq!((status(storage, "q1").await, status(storage, "q2").await), (InterruptStatus::Answered, Dropped));
    assert_eq!(storage.delete_run(&TENANT, &tid("t"), id(2)).await.unwrap(), Some(true));
    assert_eq!((status(storage, "q1").await, status(storage, "q2").await), (Pending, Pending));
    assert_eq!(all(storage, InterruptFilter::default()).await.len(), 2);
    assert_eq!(storage.delete_run(&TENANT, &tid("t"), id(1)).await.unwrap(), Some(true));
    assert!(all(storage, InterruptFilter::default()).await.is_empty());
}

async fn without_the_lease_nothing_is_asked_or_answered(lab: Lab) {
    let storage = &lab.storage;
    ask(storage, "t", 1, "c1", "q1").await;
    let lease = start(storage, "t", 2).await.lease;
    let stale = Lease { epoch: lease.epoch + 1, ..lease };
    let says = vec![interrupt("q1", "c1", Answered(json("1"))), interrupt("q2", "c1", Asked)];
    let rows = StepRows { interrupts: says.clone(), ..StepRows::default() };
    // Beside a member that holds its lease.
    let good = start(storage, "good", 3).await.lease;
    let fine = StepRows { interrupts: vec![interrupt("q1", "c9", Asked)], ..StepRows::default() };
    let batch = [step(stale, rows, None), step(good, fine, None)];
    let outcomes = storage.commit_steps(&Scope::Server, &batch).await.unwrap();
    assert_eq!(outcomes, [CommitOutcome::LeaseLost, CommitOutcome::Committed]);
    let mine = InterruptFilter { thread: Some(tid("t")), ..InterruptFilter::default() };
    let left = all(storage, mine).await;
    assert_eq!((left.len(), left[0].status), (1, Pending));
}

async fn questions_go_with_their_thread(lab: Lab) {
    let storage = &lab.storage;
    ask(storage, "t", 1, "c1", "q1").await;
    storage.delete_thread(&TENANT, &tid("t")).await.unwrap().unwrap();
    assert!(all(storage, InterruptFilter::default()).await.is_empty());
    let temporary = NewRun { temporary: true, ..claimed_run("temporary", 2, MINUTE) };
    let (_, claimed, _) = created(storage.create_run(&TENANT, temporary).await.unwrap());
    let lease = claimed.unwrap().lease;
    say(storage, lease, Some("c1"), vec![interrupt("q1", "c1", Asked)], false).await;
    assert_eq!(status(storage, "q1").await, Pending);
    say(storage, lease, None, vec![interrupt("q2", "c1", Asked)], true).await;
    assert!(all(storage, InterruptFilter::default()).await.is_empty());
}

async fn lists_are_filtered_and_paged(lab: Lab) {
    let storage = &lab.storage;
    for (n, name) in [(1, "a"), (2, "b"), (3, "c")] {
        let new = NewThread { metadata: json(&format!(r#"{{"team":"{name}"}}"#)), ..thread(name) };
        storage.create_thread(&TENANT, new).await.unwrap();
        let lease = start(storage, name, n).await.lease;
        let own = InterruptRow { node: name.into(), ..interrupt(&format!("q-{name}"), "c1", Asked) };
        // The same id on every thread, as after a copy.
        say(storage, lease, Some("c1"), vec![own, interrupt("q", "c1", Asked)], true).await;
    }
    for ascending in [true, false] {
        let mut seen = Vec::new();
        let mut after: Option<InterruptCursor> = None;
        loop {
            let filter = InterruptFilter::default();
            let page = storage.list_interrupts(&TENANT, &filter, ascending, after.as_ref(), 4).await.unwrap();
            let Some((thread, last)) = page.last() else { break };
            after = Some(InterruptCursor { asked_at: last.asked_at, id: last.interrupt_id.clone(), thread: *thread });
            seen.extend(page.into_iter().map(|(thread, record)| (record.asked_at, record.interrupt_id, thread.0)));
        }
        let mut want = seen.clone();
        want.sort();
        want.dedup();
        if !ascending {
            want.reverse();
        }
        assert_eq!((seen.len(), &seen), (6, &want));
    }
    let mut lists = Vec::new();
    let of = async |filter: InterruptFilter| -> Vec<String> {
        all(storage, filter)
            .await
            .into_iter()
            .map(|record| format!("{}/{}", record.thread_id, record.interrupt_id))
            .collect()
    };
    let any = InterruptFilter::default;
    let first = all(storage, any()).await[0].asked_at;
    lists.push((of(InterruptFilter { thread: Some(tid("b")), ..any() }).await, vec!["b/q", "b/q-b"]));
    lists.push((of(InterruptFilter { node: Some("c".into()), ..any() }).await, vec!["c/q-c"]));
    lists.push((of(InterruptFilter { ids: Some(vec!["q-a".into(), "x".into()]), ..any() }).await, vec!["a/q-a"]));
    lists.push((of(InterruptFilter { ids: Some(Vec::new()), ..any() }).await, vec![]));
    let team = Some(json(r#"{"team":"c"}"#));
    lists.push((of(InterruptFilter { thread_metadata: team, ..any() }).await, vec!["c/q", "c/q-c"]));
    lists.push((of(InterruptFilter { asked_before: Some(first), ..any() }).await, vec![]));
    let later = Some(Timestamp(first.0 + 1));
    lists.push((of(InterruptFilter { asked_before: later, ..any() }).await, vec!["a/q", "a/q-a"]));
    lists.push((of(InterruptFilter { asked_after: later, node: Some("a".into()), ..any() }).await, vec![]));
    lists.push((of(InterruptFilter { graph_id: Some("other".into()), ..any() }).await, vec![]));
    lists.push((of(InterruptFilter { assistant_id: Some(id(901)), ..any() }).await, vec![]));
    let at = Some(vec!["c1".to_owned()]);
    lists.push((of(InterruptFilter { checkpoints: at, thread: Some(tid("a")), ..any() }).await, vec!["a/q", "a/q-a"]));
    lists.push((of(InterruptFilter { checkpoints: Some(vec!["c2".into()]), ..any() }).await, vec![]));
    for (index, (got, want)) in lists.into_iter().enumerate() {
        assert_eq!(got, want, "list {index}");
    }
}

async fn another_tenant_sees_no_questions(lab: Lab) {
    let storage = &lab.storage;
    ask(storage, "t", 1, "c1", "q1").await;
    let seen = storage.list_interrupts(&OTHER, &InterruptFilter::default(), true, None, 9).await.unwrap();
    assert!(seen.is_empty());
    let named = InterruptFilter { thread: Some(tid("t")), ..InterruptFilter::default() };
    assert!(storage.list_interrupts(&OTHER, &named, true, None, 9).await.unwrap().is_empty());
    assert_eq!(storage.list_interrupts(&Scope::Server, &named, true, None, 9).await.unwrap().len(), 1);
}
