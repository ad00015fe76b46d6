//! Sessions: closing and opening threads.

use super::*;

for_each_backend!(
    a_closed_thread_takes_no_run_and_no_change,
    closing_stops_what_is_active,
    archived_threads_are_listed_when_asked_for,
    closing_begins_the_time_to_live,
    questions_of_a_closed_thread_are_not_pending,
    no_run_is_left_on_a_thread_that_racers_close,
    another_tenant_closes_nothing,
    a_session_is_read_with_what_is_tied_to_it,
    a_run_is_explained_by_its_queue,
);

fn ending() -> Close {
    let (actor, reason) = (Some("ann".into()), Some("done\0".into()));
    Close { how: ClosedAs::Ended, actor, reason, ttl: None, cancels: true }
}

fn archiving() -> Close {
    Close { how: ClosedAs::Archived, ..ending() }
}

async fn close(storage: &SharedStorage, name: &str, close: Close) -> (Thread, Vec<Cancelled>) {
    match storage.close_thread(&TENANT, &tid(name), &close).await.unwrap() {
        CloseOutcome::Closed { thread, cancelled } => (*thread, cancelled),
        other => panic!("not closed: {other:?}"),
    }
}

async fn a_closed_thread_takes_no_run_and_no_change(lab: Lab) {
    let storage = &lab.storage;
    assert!(matches!(storage.close_thread(&TENANT, &tid("t"), &ending()).await.unwrap(), CloseOutcome::Missing));
    let lease = start(storage, "t", 1).await.lease;
    commit(storage, head_step(lease, "c1", end(RunStatus::Success, ThreadStatus::Idle))).await;
    let before = find_thread(storage, "t").await.unwrap();
    assert_eq!(before.closed, None);
    let (thread, cancelled) = close(storage, "t", ending()).await;
    let closed = thread.closed.clone().unwrap();
    assert_eq!(
        (closed.how, closed.by.as_deref(), closed.reason.as_deref()),
        (ClosedAs::Ended, Some("ann"), Some("done\0"))
    );
    assert!(closed.at == thread.updated_at && thread.updated_at > before.updated_at && cancelled.is_empty());
    let strategies = [
        MultitaskStrategy::Enqueue,
        MultitaskStrategy::Reject,
        MultitaskStrategy::Interrupt,
        MultitaskStrategy::Rollback,
    ];
    for strategy in strategies {
        let new = NewRun { multitask_strategy: strategy, ..claimed_run("t", 2, MINUTE) };
        let RunCreated::ThreadClosed(told) = storage.create_run(&TENANT, new).await.unwrap() else {
            panic!("accepted: {strategy:?}")
        };
        assert_eq!(told, closed);
    }
    let change = StateCommit {
        thread_id: tid("t"),
        expected_head: Some("c1".into()),
        base: None,
        rows: StepRows { head: Some("c1".into()), ..StepRows::default() },
        events: Vec::new(),
        thread_status: ThreadStatus::Idle,
        view: None,
        moves: None,
    };
    assert_eq!(storage.commit_state(&TENANT, change.clone()).await.unwrap(), StateOutcome::ThreadClosed);
    assert_eq!(storage.update_head_metadata(&TENANT, &tid("t"), &json(r#"{"a":1}"#)).await.unwrap(), None);
    // Again is the same; archiving is more; ending what is archived is less.
    assert_eq!(close(storage, "t", Close { actor: None, ..ending() }).await.0.closed, Some(closed.clone()));
    assert_eq!(close(storage, "t", archiving()).await.0.closed.unwrap().how, ClosedAs::Archived);
    let CloseOutcome::Archived(told) = storage.close_thread(&TENANT, &tid("t"), &ending()).await.unwrap() else {
        panic!("ended")
    };
    assert_eq!(told.how, ClosedAs::Archived);
    // A copy is open, and so is the thread after it was opened.
    assert_eq!(storage.copy_thread(&TENANT, &tid("t"), &tid("copy")).await.unwrap().unwrap().closed, None);
    assert_eq!(storage.reopen_thread(&TENANT, &tid("t")).await.unwrap().unwrap().closed, None);
    assert_eq!(storage.reopen_thread(&TENANT, &tid("t")).await.unwrap().unwrap().closed, None);
    assert!(storage.reopen_thread(&TENANT, &tid("nobody")).await.unwrap().is_none());
    assert_eq!(storage.commit_state(&TENANT, change).await.unwrap(), StateOutcome::Committed);
    assert!(created(storage.create_run(&TENANT, claimed_run("t", 2, MINUTE)).await.unwrap()).1.is_some());
}

async fn closing_stops_what_is_active(lab: Lab) {
    let storage = &lab.storage;
    let lease = start(storage, "t", 1).await.lease;
    created(storage.create_run(&TENANT, run("t", 2)).await.unwrap());
    let gently = Close { cancels: false, ..ending() };
    assert!(matches!(storage.close_thread(&TENANT, &tid("t"), &gently).await.unwrap(), CloseOutcome::Busy));
    assert_eq!(find_thread(storage, "t").await.unwrap().closed, None);
    let (thread, mut cancelled) = close(storage, "t", Close { reason: None, ..ending() }).await;
    cancelled.sort_by_key(|run| run.run_id);
    let told: Vec<_> = cancelled.iter().map(|run| (run.run_id, run.running)).collect();
    assert_eq!((told, thread.status), (vec![(id(1), true), (id(2), false)], ThreadStatus::Busy));
    assert_eq!(find_run(storage, "t", 2).await.unwrap().status, RunStatus::Interrupted);
    let renewed = storage.renew_leases(&Scope::Server, &[lease], MINUTE).await.unwrap();
    let request = renewed[0].cancel.clone().unwrap();
    assert_eq!((request.actor.as_deref(), request.reason.as_deref()), (Some("ann"), Some("the thread was ended")));
    // The run that is still running commits what it has, and ends.
    commit(storage, head_step(lease, "c1", end(RunStatus::Interrupted, ThreadStatus::Interrupted))).await;
    let thread = find_thread(storage, "t").await.unwrap();
    assert_eq!((thread.head.as_deref(), thread.status), (Some("c1"), ThreadStatus::Interrupted));
    assert!(thread.closed.is_some());
}

async fn archived_threads_are_listed_when_asked_for(lab: Lab) {
    let storage = &lab.storage;
    for name in ["archived", "ended", "open"] {
        storage.create_thread(&TENANT, thread(name)).await.unwrap();
    }
    close(storage, "ended", ending()).await;
    close(storage, "archived", archiving()).await;
    for (closed, expected) in [
        (ClosedFilter::NotArchived, &["ended", "open"][..]),
        (ClosedFilter::Open, &["open"]),
        (ClosedFilter::Ended, &["ended"]),
        (ClosedFilter::Archived, &["archived"]),
        (ClosedFilter::Any, &["archived", "ended", "open"]),
    ] {
        for metadata in [None, Some(Json::object())] {
            let filter = ThreadFilter { closed, metadata, ..ThreadFilter::default() };
            let found = storage.search_threads(&TENANT, &filter, ThreadSort::ThreadId, true, Page::default()).await;
            let names: Vec<String> = found.unwrap().iter().map(|thread| thread.id.to_string()).collect();
            assert_eq!(names, expected, "{closed:?}");
            assert_eq!(storage.count_threads(&TENANT, &filter).await.unwrap(), expected.len() as i64, "{closed:?}");
        }
    }
}

async fn closing_begins_the_time_to_live(lab: Lab) {
    let storage = &lab.storage;
    storage.create_thread(&TENANT, thread("t")).await.unwrap();
    let hour = Ttl::of_minutes(TtlStrategy::Delete, 60.0);
    let (thread, _) = close(storage, "t", Close { ttl: Some(hour), ..ending() }).await;
    let ttl = storage.thread_ttl(&TENANT, &tid("t")).await.unwrap().unwrap();
    assert_eq!(ttl.expires_at.0 - thread.closed.unwrap().at.0, hour.micros);
    let none = Ttl { micros: 0, ..hour };
    close(storage, "t", Close { ttl: Some(none), ..archiving() }).await;
    assert!(storage.expire_thread(&TENANT, &tid("t")).await.unwrap(), "closed threads expire, too");
}

async fn questions_of_a_closed_thread_are_not_pending(lab: Lab) {
    let storage = &lab.storage;
    let lease = start(storage, "t", 1).await.lease;
    let mut asked = head_step(lease, "c1", end(RunStatus::Success, ThreadStatus::Interrupted));
    asked.rows.interrupts.push(interrupt("i1", "c1", InterruptChange::Asked));
    commit(storage, asked).await;
    let with = async |status| {
        let filter = InterruptFilter { status: Some(status), ..InterruptFilter::default() };
        storage.list_interrupts(&TENANT, &filter, true, None, 10).await.unwrap()
    };
    assert_eq!(with(InterruptStatus::Pending).await.len(), 1);
    close(storage, "t", ending()).await;
    assert!(with(InterruptStatus::Pending).await.is_empty());
    assert_eq!(with(InterruptStatus::Dropped).await[0].1.status, InterruptStatus::Dropped);
    storage.reopen_thread(&TENANT, &tid("t")).await.unwrap();
    assert_eq!(with(InterruptStatus::Pending).await[0].1.status, InterruptStatus::Pending);
}

async fn no_run_is_left_on_a_thread_that_racers_close(lab: Lab) {
    for round in 0..5_u128 {
        let name = format!("t{round}");
        if round % 2 == 0 {
            lab.storage.create_thread(&TENANT, thread(&name)).await.unwrap();
        }
        let runs = (1..=12).map(|n| {
            let (storage, new) = (lab.storage.clone(), claimed_run(&name, round * 100 + n, MINUTE));
            tokio::spawn(async move { storage.create_run(&TENANT, new).await.unwrap() })
        });
        let runs: Vec<_> = runs.collect();
        let (storage, thread) = (lab.storage.clone(), tid(&name));
        let close = tokio::spawn(async move { storage.close_thread(&TENANT, &thread, &ending()).await.unwrap() });
        let outcomes = futures_util::future::join_all(runs).await;
        let is_closed = !matches!(close.await.unwrap(), CloseOutcome::Missing);
        let mut accepted = Vec::new();
        for outcome in outcomes {
            match outcome.unwrap() {
                RunCreated::Created { run, .. } => accepted.push(run.run_id),
                RunCreated::ThreadClosed(_) => assert!(is_closed),
                other => panic!("{other:?}"),
            }
        }
        if !is_closed {
            continue;
        }
        // What was accepted came before, so it was cancelled: no run is waiting, and one that runs was told.
        for run_id in accepted {
            let run = lab.storage.find_run(&TENANT, &tid(&name), run_id).await.unwrap().unwrap();
            assert_ne!(run.status, RunStatus::Pending);
            if run.status == RunStatus::Running {
                let lease = Lease { thread: key(&name), run_id, epoch: 1 };
                let renewed = lab.storage.renew_leases(&Scope::Server, &[lease], MINUTE).await.unwrap();
                assert!(renewed[0].cancel.is_some(), "a run was left");
            }
        }
    }
}

async fn another_tenant_closes_nothing(lab: Lab) {
    let storage = &lab.storage;
    storage.create_thread(&TENANT, thread("t")).await.unwrap();
    assert!(matches!(storage.close_thread(&OTHER, &tid("t"), &ending()).await.unwrap(), CloseOutcome::Missing));
    close(storage, "t", ending()).await;
    assert!(storage.reopen_thread(&OTHER, &tid("t")).await.unwrap().is_none());
    assert!(find_thread(storage, "t").await.unwrap().closed.is_some());
}

async fn a_session_is_read_with_what_is_tied_to_it(lab: Lab) {
    let storage = &lab.storage;
    assert!(storage.find_session(&TENANT, &tid("t")).await.unwrap().is_none());
    let hour = Ttl::of_minutes(TtlStrategy::KeepLatest, 60.0);
    storage.create_thread(&TENANT, NewThread { ttl: Some(hour), ..thread("t") }).await.unwrap();
    let empty = storage.find_session(&TENANT, &tid("t")).await.unwrap().unwrap();
    assert_eq!((empty.counts, empty.active.len(), empty.branch), (SessionCounts::default(), 0, None));
    assert_eq!(empty.ttl.map(|ttl| ttl.ttl_micros), Some(hour.micros));
    let lease = start(storage, "t", 1).await.lease;
    let mut asked = head_step(lease, "c1", None);
    asked.rows.interrupts.push(interrupt("i1", "c1", InterruptChange::Asked));
    asked.events.push(event(7, id(1)));
    commit(storage, asked).await;
    created(storage.create_run(&TENANT, run("t", 2)).await.unwrap());
    storage.put_branch(&TENANT, &tid("t"), "main", None, None).await.unwrap();
    let session = storage.find_session(&TENANT, &tid("t")).await.unwrap().unwrap();
    let counts = SessionCounts {
        checkpoints: 1,
        bytes: 10,
        runs: 2,
        active_runs: 2,
        interrupts: 1,
        events: 1,
        branches: 1,
        crons: 0,
    };
    assert_eq!((session.counts, session.thread.head.as_deref()), (counts, Some("c1")));
    let [first, second] = &session.active[..] else { panic!("{:?}", session.active) };
    assert_eq!((first.run.run_id, first.worker.as_deref(), first.claims), (id(1), Some("worker-1"), 1));
    assert!(first.started_at.is_some() && first.lease_until.is_some_and(|until| until > session.now));
    assert_eq!((second.run.run_id, second.started_at, second.lease_until), (id(2), None, None));
    assert!(storage.find_session(&OTHER, &tid("t")).await.unwrap().is_none());
}

async fn a_run_is_explained_by_its_queue(lab: Lab) {
    let storage = &lab.storage;
    assert!(storage.explain_run(&TENANT, id(1)).await.unwrap().is_none());
    let lease = start(storage, "t", 1).await.lease;
    for n in [2, 3] {
        created(storage.create_run(&TENANT, run("t", n)).await.unwrap());
    }
    let explain = async |n| storage.explain_run(&TENANT, id(n)).await.unwrap().unwrap();
    assert_eq!((explain(1).await.behind, explain(1).await.ahead), (None, 0));
    assert_eq!((explain(2).await.behind, explain(2).await.ahead), (Some((id(1), RunStatus::Running)), 1));
    assert_eq!((explain(3).await.behind, explain(3).await.ahead), (Some((id(1), RunStatus::Running)), 2));
    finish(storage, lease).await;
    assert_eq!(explain(3).await.behind, Some((id(2), RunStatus::Pending)));
    assert_eq!(explain(2).await.detail.started_at, None);
    let claimed = claim_all(storage, MINUTE).await;
    assert_eq!(ids(&claimed), [id(2)]);
    let second = explain(2).await;
    let started = second.detail.started_at.unwrap();
    assert_eq!((second.detail.claims, second.behind), (1, None));
    assert!(second.detail.run_at <= started && started <= second.now);
    // Handed back and taken again, it began when it began.
    assert!(storage.release_run(&Scope::Server, &claimed[0].lease).await.unwrap());
    assert_eq!(ids(&claim_all(storage, MINUTE).await), [id(2)]);
    let again = explain(2).await.detail;
    assert_eq!((again.started_at, again.claims), (Some(started), 2));
    assert!(storage.explain_run(&OTHER, id(2)).await.unwrap().is_none());
}
