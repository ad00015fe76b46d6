//! Runs: insert, strategies, cancel, rollback, find, list, delete.

use super::*;

for_each_backend_and_pgbouncer!(
    a_run_is_inserted_and_found,
    a_run_needs_its_thread_unless_it_may_make_it,
    a_run_id_is_taken_once,
    a_run_is_claimed_at_once_only_if_the_thread_is_free,
    reject_admits_exactly_one_of_twenty,
    twenty_racers_never_run_two_at_a_time,
    interrupt_ends_the_pending_and_flags_the_running,
    rollback_deletes_the_pending_and_flags_the_running,
    cancelling_is_repeatable_and_rollback_wins,
    cancelling_by_status_reaches_every_thread,
    rolling_back_restores_the_head,
    runs_are_listed_newest_first,
    deleting_an_ended_run_takes_its_checkpoints,
    deleting_a_run_leaves_what_later_checkpoints_refer_to,
    active_runs_are_counted,
    notices_tell_what_happened,
);

async fn a_run_is_inserted_and_found(lab: Lab) {
    let storage = &lab.storage;
    let threadless = NewThread { metadata: json(r#"{"user":"u","x":1}"#), ..thread("t") };
    storage.create_thread(&TENANT, threadless).await.unwrap();
    let before = find_thread(storage, "t").await.unwrap();
    let new = NewRun {
        metadata: json(r#"{"x":2}"#),
        kwargs: json(r#"{"z":1,"a":"\u0000","n":123456789012345678901234567890}"#),
        thread_metadata: json(r#"{"graph_id":"graph"}"#),
        ..run("t", 1)
    };
    let kwargs = new.kwargs.text();
    let (made, claimed, cancelled) = created(storage.create_run(&TENANT, new).await.unwrap());
    assert!(claimed.is_none() && cancelled.is_empty());
    assert_eq!((made.status, made.attempts, made.run_id), (RunStatus::Pending, 0, id(1)));
    assert_eq!((made.thread_key, made.thread_id.as_str()), (key("t"), "t"));
    assert_eq!((made.assistant_id, made.graph_id.as_str()), (id(900), "graph"));
    assert_eq!(made.kwargs.text(), kwargs, "byte for byte");
    assert_eq!(made.metadata, json(r#"{"user":"u","x":2}"#));
    let found = find_run(storage, "t", 1).await.unwrap();
    assert_eq!(format!("{found:?}"), format!("{made:?}"));
    let located = storage.locate_run(&TENANT, id(1)).await.unwrap().unwrap();
    assert_eq!(format!("{located:?}"), format!("{made:?}"));
    assert!(find_run(storage, "t", 2).await.is_none());
    assert!(find_run(storage, "other", 1).await.is_none());
    assert!(storage.locate_run(&TENANT, id(2)).await.unwrap().is_none());
    let after = find_thread(storage, "t").await.unwrap();
    assert_eq!((after.status, after.graph_id.as_deref()), (ThreadStatus::Busy, Some("graph")));
    assert_eq!(after.metadata, json(r#"{"user":"u","x":1,"graph_id":"graph"}"#));
    assert!(after.updated_at > before.updated_at);
    let later = NewRun { after: Duration::from_secs(3600), ..run("t", 2) };
    let (later, ..) = created(storage.create_run(&TENANT, later).await.unwrap());
    assert!(later.created_at.0 - made.created_at.0 >= 3_600_000_000, "created_at includes the delay");
}

async fn a_run_needs_its_thread_unless_it_may_make_it(lab: Lab) {
    let storage = &lab.storage;
    let strict = NewRun { create_thread: false, ..run("t", 1) };
    assert!(matches!(storage.create_run(&TENANT, strict.clone()).await.unwrap(), RunCreated::ThreadMissing));
    assert!(find_thread(storage, "t").await.is_none());
    created(storage.create_run(&TENANT, run("t", 1)).await.unwrap());
    assert!(find_thread(storage, "t").await.is_some());
    let strict = NewRun { run_id: id(2), ..strict };
    created(storage.create_run(&TENANT, strict).await.unwrap());
}

async fn a_run_id_is_taken_once(lab: Lab) {
    let storage = &lab.storage;
    created(storage.create_run(&TENANT, run("t", 1)).await.unwrap());
    for strategy in [MultitaskStrategy::Enqueue, MultitaskStrategy::Interrupt, MultitaskStrategy::Rollback] {
        for name in ["t", "other"] {
            let again = NewRun { multitask_strategy: strategy, ..run(name, 1) };
            assert!(matches!(storage.create_run(&TENANT, again).await.unwrap(), RunCreated::RunExists), "{strategy:?}");
        }
    }
    assert!(find_thread(storage, "other").await.is_none(), "nothing was inserted");
    assert_eq!(find_run(storage, "t", 1).await.unwrap().status, RunStatus::Pending, "nothing was cancelled");
}

async fn a_run_is_claimed_at_once_only_if_the_thread_is_free(lab: Lab) {
    let storage = &lab.storage;
    let first = start(storage, "t", 1).await;
    assert_eq!((first.lease.epoch, first.run.status, first.run.attempts), (1, RunStatus::Running, 1));
    assert_eq!((first.thread.status, first.tenant, first.input_applied), (ThreadStatus::Busy, DEFAULT, false));
    let (second, claimed, _) = created(storage.create_run(&TENANT, claimed_run("t", 2, MINUTE)).await.unwrap());
    assert!(claimed.is_none() && second.status == RunStatus::Pending);
    finish(storage, first.lease).await;
    let (_, claimed, _) = created(storage.create_run(&TENANT, claimed_run("t", 3, MINUTE)).await.unwrap());
    assert!(claimed.is_none(), "a pending run is before it");
    let delayed = NewRun { after: MINUTE, ..claimed_run("u", 4, MINUTE) };
    let (_, claimed, _) = created(storage.create_run(&TENANT, delayed).await.unwrap());
    assert!(claimed.is_none(), "it is not due");
}

async fn race(lab: &Lab, strategy: MultitaskStrategy) -> Vec<RunCreated> {
    let racers = (1..=20).map(|n| {
        let storage = lab.storage.clone();
        let new = NewRun { multitask_strategy: strategy, ..claimed_run("t", n, MINUTE) };
        tokio::spawn(async move { storage.create_run(&TENANT, new).await.unwrap() })
    });
    futures_util::future::join_all(racers).await.into_iter().map(|outcome| outcome.unwrap()).collect()
}

async fn running(lab: &Lab) -> usize {
    let filter = RunFilter { status: Some(RunStatus::Running) };
    let page = Page { limit: 100, offset: 0 };
    lab.storage.list_runs(&TENANT, &tid("t"), &filter, page).await.unwrap().unwrap().len()
}

async fn reject_admits_exactly_one_of_twenty(lab: Lab) {
    for existing in [false, true] {
        if existing {
            lab.storage.delete_thread(&TENANT, &tid("t")).await.unwrap();
            lab.storage.create_thread(&TENANT, thread("t")).await.unwrap();
        }
        let outcomes = race(&lab, MultitaskStrategy::Reject).await;
        let admitted = outcomes.iter().filter(|outcome| matches!(outcome, RunCreated::Created { .. })).count();
        let busy = outcomes.iter().filter(|outcome| matches!(outcome, RunCreated::ThreadBusy)).count();
        assert_eq!((admitted, busy), (1, 19));
        let runs = lab.storage.list_runs(&TENANT, &tid("t"), &RunFilter::default(), Page::default()).await.unwrap();
        assert_eq!(runs.unwrap().len(), 1, "nothing of the others was inserted");
    }
}

async fn twenty_racers_never_run_two_at_a_time(lab: Lab) {
    for strategy in [MultitaskStrategy::Enqueue, MultitaskStrategy::Interrupt, MultitaskStrategy::Rollback] {
        lab.storage.delete_thread(&TENANT, &tid("t")).await.unwrap();
        let outcomes = race(&lab, strategy).await;
        let mut claimed = 0;
        for outcome in outcomes {
            claimed += usize::from(created(outcome).1.is_some());
        }
        assert_eq!((claimed, running(&lab).await), (1, 1), "{strategy:?}");
        let expected = if strategy == MultitaskStrategy::Enqueue { 19 } else { 1 };
        let (pending, _) = lab.storage.count_active(&TENANT).await.unwrap();
        assert!(pending <= expected, "{strategy:?}: {pending} are pending");
    }
}

async fn interrupt_ends_the_pending_and_flags_the_running(lab: Lab) {
    let storage = &lab.storage;
    let first = start(storage, "t", 1).await;
    created(storage.create_run(&TENANT, run("t", 2)).await.unwrap());
    let new = NewRun { multitask_strategy: MultitaskStrategy::Interrupt, ..claimed_run("t", 3, MINUTE) };
    let (made, claimed, cancelled) = created(storage.create_run(&TENANT, new).await.unwrap());
    assert!(claimed.is_none() && made.status == RunStatus::Pending);
    let expected = [
        Cancelled { run_id: id(1), thread: key("t"), running: true },
        Cancelled { run_id: id(2), thread: key("t"), running: false },
    ];
    assert_eq!(cancelled, expected);
    assert_eq!(find_run(storage, "t", 2).await.unwrap().status, RunStatus::Interrupted);
    let state = &storage.renew_leases(&TENANT, &[first.lease], MINUTE).await.unwrap()[0];
    let request = state.cancel.as_ref().unwrap();
    assert!(state.held && request.action == CancelAction::Interrupt);
    assert_eq!(request.actor.as_deref(), Some("tester"));
    assert!(request.reason.as_ref().unwrap().contains(&id(3).to_string()), "{request:?}");
    finish(storage, first.lease).await;
    assert_eq!(ids(&claim_all(storage, MINUTE).await), [id(3)], "the new run goes next");
    // With only pending runs in its way the new one starts at once.
    created(storage.create_run(&TENANT, run("u", 4)).await.unwrap());
    let new = NewRun { multitask_strategy: MultitaskStrategy::Interrupt, ..claimed_run("u", 5, MINUTE) };
    let (_, claimed, cancelled) = created(storage.create_run(&TENANT, new).await.unwrap());
    assert!(claimed.is_some() && cancelled.len() == 1);
}

async fn rollback_deletes_the_pending_and_flags_the_running(lab: Lab) {
    let storage = &lab.storage;
    let first = start(storage, "t", 1).await;
    created(storage.create_run(&TENANT, run("t", 2)).await.unwrap());
    let new = NewRun { multitask_strategy: MultitaskStrategy::Rollback, ..claimed_run("t", 3, MINUTE) };
    let (_, claimed, mut cancelled) = created(storage.create_run(&TENANT, new).await.unwrap());
    cancelled.sort_by_key(|cancelled| cancelled.run_id);
    assert!(claimed.is_none());
    assert_eq!(cancelled.iter().map(|c| (c.run_id, c.running)).collect::<Vec<_>>(), [(id(1), true), (id(2), false)]);
    assert!(find_run(storage, "t", 2).await.is_none());
    assert!(storage.locate_run(&TENANT, id(2)).await.unwrap().is_none());
    let state = &storage.renew_leases(&TENANT, &[first.lease], MINUTE).await.unwrap()[0];
    assert_eq!(state.cancel.as_ref().unwrap().action, CancelAction::Rollback);
    // A pending run that had made progress before it was handed back takes that with it.
    let outcome = storage.rollback_run(&TENANT, &first.lease, ThreadStatus::Idle).await.unwrap();
    assert_eq!(outcome, CommitOutcome::Committed);
    let third = claim_all(storage, MINUTE).await.remove(0);
    assert_eq!(commit(storage, head_step(third.lease, "c1", None)).await, CommitOutcome::Committed);
    assert!(storage.release_run(&TENANT, &third.lease).await.unwrap());
    let new = NewRun { multitask_strategy: MultitaskStrategy::Rollback, ..claimed_run("t", 4, MINUTE) };
    let (_, claimed, _) = created(storage.create_run(&TENANT, new).await.unwrap());
    assert_eq!(claimed.unwrap().thread.head, None);
}

fn cancel(action: CancelAction, reason: &str) -> CancelRequest {
    CancelRequest { action, actor: Some("someone".into()), reason: Some(reason.into()) }
}

async fn cancelling_is_repeatable_and_rollback_wins(lab: Lab) {
    let storage = &lab.storage;
    let running = start(storage, "t", 1).await;
    created(storage.create_run(&TENANT, run("t", 2)).await.unwrap());
    let target = CancelTarget::Runs { thread_id: tid("t"), run_ids: vec![id(1), id(2), id(77)] };
    let first = cancel(CancelAction::Interrupt, "first");
    let mut cancelled = storage.cancel_runs(&TENANT, &target, &first).await.unwrap();
    cancelled.sort_by_key(|cancelled| cancelled.run_id);
    assert_eq!(cancelled.iter().map(|c| (c.run_id, c.running)).collect::<Vec<_>>(), [(id(1), true), (id(2), false)]);
    assert_eq!(find_run(storage, "t", 2).await.unwrap().status, RunStatus::Interrupted);
    let flag = async || storage.renew_leases(&TENANT, &[running.lease], MINUTE).await.unwrap().remove(0).cancel;
    assert_eq!(flag().await, Some(first.clone()));
    let again = storage.cancel_runs(&TENANT, &target, &cancel(CancelAction::Interrupt, "second")).await.unwrap();
    assert_eq!(again.len(), 1, "the ended one is left out");
    assert_eq!(flag().await, Some(first), "the first reason stays");
    let rollback = cancel(CancelAction::Rollback, "third");
    storage.cancel_runs(&TENANT, &target, &rollback).await.unwrap();
    assert_eq!(flag().await, Some(rollback.clone()));
    storage.cancel_runs(&TENANT, &target, &cancel(CancelAction::Interrupt, "fourth")).await.unwrap();
    assert_eq!(flag().await, Some(rollback.clone()), "rollback wins");
    // The flag is durable: whoever takes the run over sees it.
    storage.renew_leases(&TENANT, &[running.lease], Duration::ZERO).await.unwrap();
    let taken = claim_all(storage, MINUTE).await.remove(0);
    assert_eq!((taken.run.run_id, taken.cancel), (id(1), Some(rollback.clone())));
    finish(storage, taken.lease).await;
    assert!(storage.cancel_runs(&TENANT, &target, &rollback).await.unwrap().is_empty());
    // A pending run cancelled by rollback is gone, a temporary one takes its thread along.
    created(storage.create_run(&TENANT, run("t", 3)).await.unwrap());
    created(storage.create_run(&TENANT, NewRun { temporary: true, ..run("temp", 4) }).await.unwrap());
    for (name, n) in [("t", 3), ("temp", 4)] {
        let target = CancelTarget::Runs { thread_id: tid(name), run_ids: vec![id(n)] };
        assert_eq!(storage.cancel_runs(&TENANT, &target, &rollback).await.unwrap().len(), 1);
        assert!(find_run(storage, name, n).await.is_none());
    }
    assert!(find_thread(storage, "t").await.is_some() && find_thread(storage, "temp").await.is_none());
}

async fn cancelling_by_status_reaches_every_thread(lab: Lab) {
    let storage = &lab.storage;
    for (n, name) in (1..).zip(["a", "b", "c"]) {
        start(storage, name, n).await;
        created(storage.create_run(&TENANT, run(name, n + 10)).await.unwrap());
    }
    created(storage.create_run(&OTHER, run("a", 20)).await.unwrap());
    let request = cancel(CancelAction::Interrupt, "all");
    let pending = CancelTarget::Status(vec![RunStatus::Pending]);
    let mut cancelled = storage.cancel_runs(&TENANT, &pending, &request).await.unwrap();
    cancelled.sort_by_key(|cancelled| cancelled.run_id);
    assert_eq!(cancelled.iter().map(|c| c.run_id).collect::<Vec<_>>(), [id(11), id(12), id(13)]);
    let running = CancelTarget::Status(vec![RunStatus::Running]);
    let cancelled = storage.cancel_runs(&TENANT, &running, &request).await.unwrap();
    assert!(cancelled.len() == 3 && cancelled.iter().all(|cancelled| cancelled.running));
    assert_eq!(storage.count_active(&OTHER).await.unwrap(), (1, 0));
}

async fn rolling_back_restores_the_head(lab: Lab) {
    let storage = &lab.storage;
    let first = start(storage, "t", 1).await;
    let ended = end(RunStatus::Success, ThreadStatus::Idle);
    assert_eq!(commit(storage, head_step(first.lease, "c1", ended)).await, CommitOutcome::Committed);
    let second = start(storage, "t", 2).await;
    let rows = StepRows {
        checkpoints: vec![
            checkpoint("c2", Some(id(2))),
            checkpoint("c3", Some(id(2))),
            CheckpointRow { ns: "sub".into(), ..checkpoint("c4", Some(id(2))) },
        ],
        task_writes: vec![task_writes("c1", "task", Some(id(2)), "[]"), task_writes("c2", "task", Some(id(2)), "[]")],
        log: vec![log(0, 0, "[1]", Some(id(2)))],
        head: Some("c3".into()),
        ..StepRows::default()
    };
    let all = StepCommit { events: vec![event(1, id(2))], ..step(second.lease, rows, None) };
    assert_eq!(commit(storage, all).await, CommitOutcome::Committed);
    let outcome = storage.rollback_run(&TENANT, &second.lease, ThreadStatus::Interrupted).await.unwrap();
    assert_eq!(outcome, CommitOutcome::Committed);
    let after = find_thread(storage, "t").await.unwrap();
    assert_eq!((after.head.as_deref(), after.status), (Some("c1"), ThreadStatus::Interrupted));
    assert!(find_run(storage, "t", 2).await.is_none());
    let history = storage.list_checkpoints(&TENANT, key("t"), &CheckpointFilter::default(), 9).await.unwrap();
    assert_eq!(history.iter().map(|c| (c.row.id.as_str(), c.writes.len())).collect::<Vec<_>>(), [("c1", 0)]);
    assert_eq!(storage.list_namespaces_of(&TENANT, &tid("t")).await.unwrap(), [""]);
    assert!(storage.read_events(&TENANT, key("t"), None, EventId(0), 9).await.unwrap().is_empty());
    let ends = [(String::new(), "messages".to_owned(), 0, 0)];
    assert!(storage.continued_branches(&TENANT, key("t"), &ends).await.unwrap().is_empty());
    let twice = storage.rollback_run(&TENANT, &second.lease, ThreadStatus::Idle).await.unwrap();
    assert_eq!(twice, CommitOutcome::LeaseLost);
    // The very first run of a thread leaves nothing; a temporary thread goes altogether.
    let only = start(storage, "u", 3).await;
    commit(storage, head_step(only.lease, "c1", None)).await;
    storage.rollback_run(&TENANT, &only.lease, ThreadStatus::Idle).await.unwrap();
    assert_eq!(find_thread(storage, "u").await.unwrap().head, None);
    let new = NewRun { temporary: true, ..claimed_run("temp", 4, MINUTE) };
    let lease = created(storage.create_run(&TENANT, new).await.unwrap()).1.unwrap().lease;
    storage.rollback_run(&TENANT, &lease, ThreadStatus::Idle).await.unwrap();
    assert!(find_thread(storage, "temp").await.is_none());
}

async fn runs_are_listed_newest_first(lab: Lab) {
    let storage = &lab.storage;
    for n in 1..=4 {
        created(storage.create_run(&TENANT, run("t", n)).await.unwrap());
    }
    let target = CancelTarget::Runs { thread_id: tid("t"), run_ids: vec![id(2)] };
    storage.cancel_runs(&TENANT, &target, &cancel(CancelAction::Interrupt, "x")).await.unwrap();
    let list = async |name: &str, status, limit, offset| {
        let page = Page { limit, offset };
        let found = storage.list_runs(&TENANT, &tid(name), &RunFilter { status }, page).await.unwrap();
        found.map(|runs| runs.into_iter().map(|run| run.run_id.as_u128()).collect::<Vec<_>>())
    };
    assert_eq!(list("t", None, 10, 0).await, Some(vec![4, 3, 2, 1]));
    assert_eq!(list("t", None, 2, 1).await, Some(vec![3, 2]));
    assert_eq!(list("t", Some(RunStatus::Pending), 10, 0).await, Some(vec![4, 3, 1]));
    assert_eq!(list("t", Some(RunStatus::Error), 10, 0).await, Some(vec![]));
    assert_eq!(list("nobody", None, 10, 0).await, None);
}

async fn deleting_an_ended_run_takes_its_checkpoints(lab: Lab) {
    let storage = &lab.storage;
    for (n, checkpoint_id) in [(1, "c1"), (2, "c2")] {
        let lease = start(storage, "t", n).await.lease;
        assert_eq!(storage.delete_run(&TENANT, &tid("t"), id(n)).await.unwrap(), Some(false));
        let ended = end(RunStatus::Success, ThreadStatus::Idle);
        assert_eq!(commit(storage, head_step(lease, checkpoint_id, ended)).await, CommitOutcome::Committed);
    }
    assert_eq!(storage.delete_run(&TENANT, &tid("t"), id(2)).await.unwrap(), Some(true));
    assert_eq!(find_thread(storage, "t").await.unwrap().head.as_deref(), Some("c1"));
    assert_eq!(storage.delete_run(&TENANT, &tid("t"), id(2)).await.unwrap(), None);
    assert_eq!(storage.delete_run(&TENANT, &tid("nobody"), id(1)).await.unwrap(), None);
    created(storage.create_run(&TENANT, run("t", 3)).await.unwrap());
    assert_eq!(storage.delete_run(&TENANT, &tid("t"), id(3)).await.unwrap(), Some(false), "pending is active");
}

/// Lists grow from run to run: the items of an earlier one are part of the states after it.
async fn deleting_a_run_leaves_what_later_checkpoints_refer_to(lab: Lab) {
    let storage = &lab.storage;
    for (n, checkpoint_id, from) in [(1, "c1", 0), (2, "c2", 1)] {
        let lease = start(storage, "t", n).await.lease;
        let mut last = head_step(lease, checkpoint_id, end(RunStatus::Success, ThreadStatus::Idle));
        last.rows.log = vec![log(0, from, "[7]", Some(id(n)))];
        assert_eq!(commit(storage, last).await, CommitOutcome::Committed);
    }
    let items = async || {
        let range = LogRange { ns: String::new(), channel: "messages".into(), branch: 0, start: 0, end: 2 };
        storage
            .load_log(&TENANT, key("t"), &[range])
            .await
            .unwrap()
            .into_iter()
            .map(|row| row.start)
            .collect::<Vec<_>>()
    };
    assert_eq!(storage.delete_run(&TENANT, &tid("t"), id(1)).await.unwrap(), Some(true));
    assert_eq!(items().await, [0, 1], "the second run's state holds the first one's item");
    assert_eq!(storage.delete_run(&TENANT, &tid("t"), id(2)).await.unwrap(), Some(true));
    assert_eq!(items().await, [0], "nothing is left that refers to what the second run wrote");
}

async fn active_runs_are_counted(lab: Lab) {
    let storage = &lab.storage;
    start(storage, "a", 1).await;
    created(storage.create_run(&TENANT, run("a", 2)).await.unwrap());
    created(storage.create_run(&TENANT, NewRun { after: MINUTE, ..run("b", 3) }).await.unwrap());
    assert_eq!(storage.count_active(&TENANT).await.unwrap(), (1, 1), "what is not due does not count");
}

async fn notices_tell_what_happened(lab: Lab) {
    let storage = &lab.storage;
    let mut notices = storage.notices();
    let mut expect = async |wanted: Notice| {
        let look = async { while notices.recv().await.unwrap() != wanted {} };
        tokio::time::timeout(Duration::from_secs(10), look).await.unwrap_or_else(|_| panic!("no {wanted:?}"));
    };
    let running = start(storage, "t", 1).await;
    created(storage.create_run(&TENANT, run("t", 2)).await.unwrap());
    expect(Notice::RunPending).await;
    let target = CancelTarget::Runs { thread_id: tid("t"), run_ids: vec![id(1)] };
    storage.cancel_runs(&TENANT, &target, &cancel(CancelAction::Interrupt, "x")).await.unwrap();
    expect(Notice::CancelRequested(id(1))).await;
    storage.append_events(&TENANT, &running.lease, &[event(1, id(1))]).await.unwrap();
    expect(Notice::Events(key("t"))).await;
    finish(storage, running.lease).await;
    expect(Notice::RunEnded(id(1))).await;
    expect(Notice::RunPending).await;
    storage.delete_thread(&TENANT, &tid("t")).await.unwrap();
    expect(Notice::RunEnded(id(2))).await;
    if lab.is_postgres() {
        // Another replica hears it, too.
        let replica = connect(&lab.url, &options()).await.unwrap();
        let mut heard = replica.notices();
        created(storage.create_run(&TENANT, run("u", 3)).await.unwrap());
        let look = async { while heard.recv().await.unwrap() != Notice::RunPending {} };
        tokio::time::timeout(Duration::from_secs(10), look).await.expect("heard by the replica");
        let lease = claim_all(&replica, MINUTE).await.remove(0).lease;
        finish(storage, lease).await;
        let look = async { while heard.recv().await.unwrap() != Notice::RunEnded(id(3)) {} };
        tokio::time::timeout(Duration::from_secs(10), look).await.expect("heard by the replica");
        replica.close().await;
    }
}
