//! Commits: atomic, fenced, in batches; events; state changes from outside.

use super::*;

for_each_backend_and_pgbouncer!(
    a_step_commits_everything_at_once,
    a_stale_member_fails_alone,
    a_repeated_commit_changes_nothing,
    one_thread_twice_in_a_batch_is_applied_in_order,
    the_end_of_a_run_sets_what_the_thread_rests_at,
    a_temporary_thread_goes_with_its_run,
    events_grow_and_are_paged,
    a_state_change_needs_rest_and_the_expected_head,
    concurrent_commits_and_inserts_do_not_deadlock,
);

async fn a_step_commits_everything_at_once(lab: Lab) {
    let storage = &lab.storage;
    let mine = start(storage, "t", 1).await;
    let before = find_thread(storage, "t").await.unwrap();
    let rows = StepRows {
        checkpoints: vec![checkpoint("c1", Some(id(1))), checkpoint("c2", Some(id(1)))],
        task_writes: vec![task_writes("c2", "task", Some(id(1)), "[1]")],
        payloads: vec![Payload { hash: [1; 16], value: json("1") }],
        log: vec![log(0, 0, "[1]", Some(id(1)))],
        interrupts: vec![interrupt("q1", "c2", InterruptChange::Asked)],
        head: Some("c2".into()),
        ..StepRows::default()
    };
    let all = StepCommit { events: vec![event(3, id(1)), event(4, id(1))], ..step(mine.lease, rows, None) };
    assert_eq!(commit(storage, all).await, CommitOutcome::Committed);
    let thread = find_thread(storage, "t").await.unwrap();
    assert_eq!((thread.head.as_deref(), thread.last_event), (Some("c2"), 4));
    assert!(thread.state_updated_at > before.state_updated_at && thread.updated_at > before.updated_at);
    let head = storage.load_checkpoint(&TENANT, key("t"), "", &Which::Latest).await.unwrap().unwrap();
    assert_eq!((head.row.id.as_str(), head.writes.len(), head.row.run_id), ("c2", 1, Some(id(1))));
    assert_eq!(storage.read_events(&TENANT, key("t"), None, EventId(0), 9).await.unwrap().len(), 2);
    let asked = storage.list_interrupts(&TENANT, &InterruptFilter::default(), true, None, 9).await.unwrap();
    assert_eq!((asked.len(), asked[0].1.status), (1, InterruptStatus::Pending));
    assert!(storage.commit_steps(&TENANT, &[]).await.unwrap().is_empty());
    // Task writes alone are no progress and move no times.
    let flush = StepRows { task_writes: vec![task_writes("c2", "b", Some(id(1)), "[]")], ..StepRows::default() };
    let flush = StepCommit { input_applied: false, ..step(mine.lease, flush, None) };
    assert_eq!(commit(storage, flush).await, CommitOutcome::Committed);
    assert_eq!(find_thread(storage, "t").await.unwrap().updated_at, thread.updated_at);
}

async fn a_stale_member_fails_alone(lab: Lab) {
    let storage = &lab.storage;
    let good = start(storage, "good", 1).await.lease;
    let stale = start(storage, "stale", 2).await.lease;
    let other = start(storage, "other", 3).await.lease;
    let wrong = Lease { epoch: stale.epoch + 1, ..stale };
    let missing = Lease { thread: key("nobody"), run_id: id(9), epoch: 1 };
    let mut batch: Vec<StepCommit> =
        [good, wrong, other, missing].into_iter().map(|lease| head_step(lease, "c1", None)).collect();
    batch[1].events = vec![event(1, id(2))];
    batch[1].rows.payloads = vec![Payload { hash: [1; 16], value: json("1") }];
    batch[1].rows.log = vec![log(0, 0, "[1]", None)];
    let outcomes = storage.commit_steps(&Scope::Server, &batch).await.unwrap();
    use CommitOutcome::{Committed, LeaseLost};
    assert_eq!(outcomes, [Committed, LeaseLost, Committed, LeaseLost]);
    assert_eq!(find_thread(storage, "good").await.unwrap().head.as_deref(), Some("c1"));
    assert_eq!(find_thread(storage, "other").await.unwrap().head.as_deref(), Some("c1"));
    let untouched = find_thread(storage, "stale").await.unwrap();
    assert_eq!((untouched.head, untouched.last_event), (None, 0));
    assert!(storage.load_checkpoint(&TENANT, key("stale"), "", &Which::Id("c1".into())).await.unwrap().is_none());
    assert!(storage.load_payloads(&TENANT, key("stale"), &[[1; 16]]).await.is_err());
    assert!(storage.read_events(&TENANT, key("stale"), None, EventId(0), 9).await.unwrap().is_empty());
}

async fn a_repeated_commit_changes_nothing(lab: Lab) {
    let storage = &lab.storage;
    let lease = start(storage, "t", 1).await.lease;
    let mut again = head_step(lease, "c1", None);
    again.rows.checkpoints.push(CheckpointRow { ns: "sub".into(), ..checkpoint("c1", Some(id(1))) });
    again.rows.log = vec![log(0, 0, "[1]", Some(id(1))), log(0, 1, "[2,3]", Some(id(1)))];
    again.rows.task_writes = vec![task_writes("c1", "task", Some(id(1)), "[1]")];
    again.rows.payloads = vec![Payload { hash: [1; 16], value: json("1") }];
    again.events = vec![event(1, id(1)), event(2, id(1))];
    let stored = async || {
        let thread = find_thread(storage, "t").await.unwrap();
        let history = storage.list_checkpoints(&TENANT, key("t"), &CheckpointFilter::default(), 9).await.unwrap();
        let namespaces = storage.list_namespaces_of(&TENANT, &tid("t")).await.unwrap();
        let range = LogRange { ns: String::new(), channel: "messages".into(), branch: 0, start: 0, end: 9 };
        let log = storage.load_log(&TENANT, key("t"), &[range]).await.unwrap();
        let payloads = storage.load_payloads(&TENANT, key("t"), &[[1; 16]]).await.unwrap();
        let events = storage.read_events(&TENANT, key("t"), None, EventId(0), 9).await.unwrap();
        format!("{:?}", (thread.head, thread.last_event, thread.status, history, namespaces, log, payloads, events))
    };
    assert_eq!(commit(storage, again.clone()).await, CommitOutcome::Committed);
    let before = stored().await;
    assert_eq!(commit(storage, again.clone()).await, CommitOutcome::Committed);
    assert_eq!(stored().await, before);
    // Twice in one batch, and beside somebody else's.
    let other = head_step(start(storage, "u", 2).await.lease, "c1", None);
    let batch = [again.clone(), other.clone(), again.clone(), other];
    let outcomes = storage.commit_steps(&Scope::Server, &batch).await.unwrap();
    assert_eq!(outcomes, [CommitOutcome::Committed; 4]);
    assert_eq!(stored().await, before);
    // What is stored stays; only the writes of a task are replaced.
    let mut changed = again.clone();
    changed.rows.checkpoints[0].body = json("7");
    changed.rows.log[0].items = json("[7]");
    changed.rows.payloads[0].value = json("7");
    changed.events[0].data = json("7");
    // Within one commit, too, the first counts.
    changed.rows.checkpoints.push(CheckpointRow { body: json("8"), ..checkpoint("c9", Some(id(1))) });
    changed.rows.checkpoints.push(CheckpointRow { body: json("9"), ..checkpoint("c9", Some(id(1))) });
    changed.rows.log.extend([log(9, 0, "[8]", None), log(9, 0, "[9]", None)]);
    assert_eq!(commit(storage, changed.clone()).await, CommitOutcome::Committed);
    let twin = storage.load_checkpoint(&TENANT, key("t"), "", &Which::Id("c9".into())).await.unwrap().unwrap();
    assert_eq!(twin.row.body.text(), "8");
    let range = LogRange { ns: String::new(), channel: "messages".into(), branch: 9, start: 0, end: 1 };
    assert_eq!(storage.load_log(&TENANT, key("t"), &[range]).await.unwrap()[0].items.text(), "[8]");
    let head = storage.load_checkpoint(&TENANT, key("t"), "", &Which::Latest).await.unwrap().unwrap();
    assert_eq!((head.row.body.text().as_str(), head.writes[0].body.text().as_str()), (r#"{"v":1}"#, "[1]"));
    changed.rows.task_writes[0].body = json("[2]");
    assert_eq!(commit(storage, changed).await, CommitOutcome::Committed);
    let head = storage.load_checkpoint(&TENANT, key("t"), "", &Which::Latest).await.unwrap().unwrap();
    assert_eq!((head.writes.len(), head.writes[0].body.text().as_str()), (1, "[2]"));
    let range = LogRange { ns: String::new(), channel: "messages".into(), branch: 0, start: 0, end: 9 };
    assert_eq!(storage.load_log(&TENANT, key("t"), &[range]).await.unwrap()[0].items.text(), "[1]");
    assert_eq!(storage.load_payloads(&TENANT, key("t"), &[[1; 16]]).await.unwrap()[0].value.text(), "1");
    let events = storage.read_events(&TENANT, key("t"), None, EventId(0), 9).await.unwrap();
    assert_eq!(events.iter().map(|event| event.data.text()).collect::<Vec<_>>(), ["[1]", "[2]"]);
}

async fn one_thread_twice_in_a_batch_is_applied_in_order(lab: Lab) {
    let storage = &lab.storage;
    let lease = start(storage, "t", 1).await.lease;
    let batch = [
        head_step(lease, "c1", None),
        head_step(lease, "c2", end(RunStatus::Success, ThreadStatus::Idle)),
        head_step(lease, "c3", None),
    ];
    let outcomes = storage.commit_steps(&TENANT, &batch).await.unwrap();
    assert_eq!(outcomes, [CommitOutcome::Committed, CommitOutcome::Committed, CommitOutcome::LeaseLost]);
    assert_eq!(find_thread(storage, "t").await.unwrap().head.as_deref(), Some("c2"));
}

async fn the_end_of_a_run_sets_what_the_thread_rests_at(lab: Lab) {
    let storage = &lab.storage;
    let boom = Some(ErrorInfo { error: "Boom".into(), message: "it broke".into() });
    for (n, (status, rest, error)) in (1..).zip([
        (RunStatus::Error, ThreadStatus::Error, boom.clone()),
        (RunStatus::Success, ThreadStatus::Interrupted, None),
        (RunStatus::Timeout, ThreadStatus::Error, boom),
        (RunStatus::Interrupted, ThreadStatus::Idle, None),
    ]) {
        let lease = start(storage, "t", n).await.lease;
        let ended =
            RunEnd { status, error: error.clone(), thread_status: rest, view: None, webhook: None, announce: true };
        let last = step(lease, StepRows::default(), Some(ended));
        assert_eq!(commit(storage, last.clone()).await, CommitOutcome::Committed);
        assert_eq!(commit(storage, last).await, CommitOutcome::LeaseLost, "it ended");
        let thread = find_thread(storage, "t").await.unwrap();
        assert_eq!((thread.status, thread.error), (rest, error.clone()));
        let run = find_run(storage, "t", n).await.unwrap();
        assert_eq!((run.status, run.error), (status, error));
    }
}

async fn a_temporary_thread_goes_with_its_run(lab: Lab) {
    let storage = &lab.storage;
    let new = NewRun { temporary: true, ..claimed_run("temp", 1, MINUTE) };
    let lease = created(storage.create_run(&TENANT, new).await.unwrap()).1.unwrap().lease;
    assert_eq!(commit(storage, head_step(lease, "c1", None)).await, CommitOutcome::Committed);
    let last = head_step(lease, "c2", end(RunStatus::Success, ThreadStatus::Idle));
    assert_eq!(commit(storage, last).await, CommitOutcome::Committed);
    assert!(find_thread(storage, "temp").await.is_none());
    assert!(storage.locate_run(&TENANT, id(1)).await.unwrap().is_none());
    for checkpoint_id in ["c1", "c2"] {
        let which = Which::Id(checkpoint_id.into());
        assert!(storage.load_checkpoint(&TENANT, key("temp"), "", &which).await.unwrap().is_none());
    }
}

async fn events_grow_and_are_paged(lab: Lab) {
    let storage = &lab.storage;
    let first = start(storage, "t", 1).await.lease;
    let appended = storage.append_events(&TENANT, &first, &[event(10, id(1)), event(11, id(1))]).await.unwrap();
    assert_eq!(appended, CommitOutcome::Committed);
    finish(storage, first).await;
    let second = start(storage, "t", 2).await;
    assert_eq!(second.thread.last_event, 11, "the next run goes on from there");
    storage.append_events(&TENANT, &second.lease, &[event(12, id(2)), event(13, id(2))]).await.unwrap();
    let read = async |run_id, after, limit| {
        let found = storage.read_events(&TENANT, key("t"), run_id, EventId(after), limit).await.unwrap();
        found.into_iter().map(|event| event.id.0).collect::<Vec<_>>()
    };
    assert_eq!(read(None, 0, 100).await, [10, 11, 12, 13]);
    assert_eq!(read(None, 11, 100).await, [12, 13]);
    assert_eq!(read(None, 0, 3).await, [10, 11, 12]);
    assert_eq!(read(Some(id(2)), 0, 100).await, [12, 13]);
    let odd = StoredEvent { name: "na\0me|x".into(), data: json(r#"{"z":1,"a":"\u0000"}"#), ..event(14, id(2)) };
    storage.append_events(&TENANT, &second.lease, &[odd]).await.unwrap();
    let found = storage.read_events(&TENANT, key("t"), None, EventId(13), 1).await.unwrap();
    assert_eq!((found[0].name.as_str(), found[0].data.text().as_str()), ("na\0me|x", r#"{"z":1,"a":"\u0000"}"#));
    assert_eq!(storage.append_events(&TENANT, &second.lease, &[]).await.unwrap(), CommitOutcome::Committed);
}

async fn a_state_change_needs_rest_and_the_expected_head(lab: Lab) {
    let storage = &lab.storage;
    let change = |head: Option<&str>, new: &str| StateCommit {
        thread_id: tid("t"),
        base: None,
        expected_head: head.map(str::to_owned),
        rows: StepRows { checkpoints: vec![checkpoint(new, None)], head: Some(new.into()), ..StepRows::default() },
        events: vec![event(i64::from(new == "c2") + 40, Uuid::nil())],
        thread_status: ThreadStatus::Interrupted,
        view: None,
        moves: None,
    };
    let put = async |change| storage.commit_state(&TENANT, change).await.unwrap();
    assert_eq!(put(change(None, "c1")).await, StateOutcome::ThreadMissing);
    let running = start(storage, "t", 1).await.lease;
    assert_eq!(put(change(None, "c1")).await, StateOutcome::ThreadBusy);
    finish(storage, running).await;
    assert_eq!(put(change(Some("c0"), "c1")).await, StateOutcome::HeadMoved);
    assert_eq!(put(change(None, "c1")).await, StateOutcome::Committed);
    assert_eq!(put(change(None, "c2")).await, StateOutcome::HeadMoved);
    assert_eq!(put(change(Some("c1"), "c2")).await, StateOutcome::Committed);
    // What is told of it is stored with it, and only with it.
    let key = tid("t").key(TENANT.tenant());
    let told = storage.read_events(&TENANT, key, None, EventId(30), 10).await.unwrap();
    assert_eq!(told.iter().map(|event| event.id.0).collect::<Vec<_>>(), [40, 41]);
    assert_eq!(storage.find_thread(&TENANT, &tid("t")).await.unwrap().unwrap().last_event, 41);
    let thread = find_thread(storage, "t").await.unwrap();
    assert_eq!((thread.head.as_deref(), thread.status), (Some("c2"), ThreadStatus::Interrupted));
    let racers = (0..10).map(|n| {
        let (storage, change) = (storage.clone(), change(Some("c2"), &format!("d{n}")));
        tokio::spawn(async move { storage.commit_state(&TENANT, change).await.unwrap() })
    });
    let outcomes: Vec<_> =
        futures_util::future::join_all(racers).await.into_iter().map(|outcome| outcome.unwrap()).collect();
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == StateOutcome::Committed).count(), 1, "{outcomes:?}");
}

async fn concurrent_commits_and_inserts_do_not_deadlock(lab: Lab) {
    let mut leases = Vec::new();
    for n in 0..6 {
        leases.push(start(&lab.storage, &format!("t{n}"), 100 + n).await.lease);
    }
    let mut tasks = Vec::new();
    for task in 0..6_usize {
        let (storage, leases) = (lab.storage.clone(), leases.clone());
        tasks.push(tokio::spawn(async move {
            for round in 0..8 {
                // Each task goes over the threads in another order.
                let mut mine = leases.clone();
                mine.rotate_left((task * 5 + round) % 6);
                match task % 3 {
                    0 => {
                        let batch: Vec<_> =
                            mine.iter().map(|lease| head_step(*lease, &format!("c{task}{round}"), None)).collect();
                        storage.commit_steps(&Scope::Server, &batch).await.unwrap();
                    }
                    1 => drop(storage.renew_leases(&Scope::Server, &mine, MINUTE).await.unwrap()),
                    _ => {
                        for (n, lease) in mine.iter().enumerate() {
                            let number = 1000 + (task * 1000 + round * 10 + n) as u128;
                            let name = leases.iter().position(|known| known == lease).unwrap();
                            let strategy = MultitaskStrategy::Interrupt;
                            let new = NewRun { multitask_strategy: strategy, ..run(&format!("t{name}"), number) };
                            created(storage.create_run(&TENANT, new).await.unwrap());
                        }
                    }
                }
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let states = lab.storage.renew_leases(&Scope::Server, &leases, MINUTE).await.unwrap();
    assert!(states.iter().all(|state| state.held && state.cancel.is_some()));
}
