//! Claims and leases: order, delays, expiry, epochs, attempts.

use super::*;

for_each_backend_and_pgbouncer!(
    runs_are_claimed_oldest_first_one_per_thread,
    a_delayed_run_waits_and_blocks_nobody,
    an_expired_lease_is_taken_over,
    renewing_tells_who_lost,
    releasing_is_no_attempt,
    attempts_without_progress_end_in_quarantine,
    last_attempts_are_made_one_at_a_time,
    twenty_claimers_share_without_doubles,
);

async fn runs_are_claimed_oldest_first_one_per_thread(lab: Lab) {
    let storage = &lab.storage;
    assert!(claim_all(storage, MINUTE).await.is_empty());
    for (n, name) in [(1, "a"), (2, "b"), (3, "a"), (4, "c")] {
        created(storage.create_run(&TENANT, run(name, n)).await.unwrap());
    }
    let two = storage.claim_runs(&Scope::Server, &claim(MINUTE), 3, 2).await.unwrap();
    assert_eq!(ids(&two), [id(1), id(2)]);
    assert_eq!((two[0].lease.epoch, two[0].run.attempts, two[0].run.status), (1, 1, RunStatus::Running));
    assert_eq!((two[0].thread.id.as_str(), two[0].thread.status), ("a", ThreadStatus::Busy));
    assert_eq!(ids(&claim_all(storage, MINUTE).await), [id(4)], "run 3 waits for run 1");
    assert!(claim_all(storage, MINUTE).await.is_empty());
    finish(storage, two[0].lease).await;
    assert_eq!(ids(&claim_all(storage, MINUTE).await), [id(3)]);
}

async fn a_delayed_run_waits_and_blocks_nobody(lab: Lab) {
    let storage = &lab.storage;
    created(storage.create_run(&TENANT, NewRun { after: MINUTE, ..run("t", 1) }).await.unwrap());
    created(storage.create_run(&TENANT, run("t", 2)).await.unwrap());
    let claimed = claim_all(storage, MINUTE).await;
    assert_eq!(ids(&claimed), [id(2)]);
    finish(storage, claimed[0].lease).await;
    assert!(claim_all(storage, MINUTE).await.is_empty());
    assert_eq!(find_thread(storage, "t").await.unwrap().status, ThreadStatus::Busy, "it is waited for");
    let soon = NewRun { after: Duration::from_millis(50), ..run("u", 3) };
    created(storage.create_run(&TENANT, soon).await.unwrap());
    let claimed = eventually("the delayed run is due", || async {
        Some(claim_all(storage, MINUTE).await).filter(|claimed| !claimed.is_empty())
    })
    .await;
    assert_eq!(ids(&claimed), [id(3)]);
}

async fn an_expired_lease_is_taken_over(lab: Lab) {
    let storage = &lab.storage;
    let old = start_for(storage, "t", 1, Duration::ZERO).await;
    assert_eq!(commit(storage, head_step(old.lease, "c1", None)).await, CommitOutcome::Committed, "nobody took it yet");
    let new = claim_all(storage, MINUTE).await.remove(0);
    assert_eq!((new.run.run_id, new.lease.epoch), (id(1), 2));
    assert_eq!(
        (new.run.attempts, new.input_applied),
        (2, true),
        "the checkpoint made it attempt 1, the input is spent"
    );
    assert_eq!(new.thread.head.as_deref(), Some("c1"));
    assert!(claim_all(storage, MINUTE).await.is_empty());
    assert_eq!(commit(storage, head_step(old.lease, "c2", None)).await, CommitOutcome::LeaseLost);
    let late = storage.append_events(&TENANT, &old.lease, &[event(1, id(1))]).await.unwrap();
    assert_eq!(late, CommitOutcome::LeaseLost);
    let late = storage.rollback_run(&TENANT, &old.lease, ThreadStatus::Idle).await.unwrap();
    assert_eq!(late, CommitOutcome::LeaseLost);
    assert!(!storage.release_run(&TENANT, &old.lease).await.unwrap());
    assert_eq!(find_thread(storage, "t").await.unwrap().head.as_deref(), Some("c1"));
    assert_eq!(commit(storage, head_step(new.lease, "c2", None)).await, CommitOutcome::Committed);
}

async fn renewing_tells_who_lost(lab: Lab) {
    let storage = &lab.storage;
    let held = start(storage, "a", 1).await.lease;
    let lost = start_for(storage, "b", 2, Duration::ZERO).await.lease;
    claim_all(storage, MINUTE).await;
    let ended = start(storage, "c", 3).await.lease;
    finish(storage, ended).await;
    let unknown = Lease { thread: key("x"), run_id: id(9), epoch: 1 };
    let states = storage.renew_leases(&Scope::Server, &[lost, held, ended, unknown], MINUTE).await.unwrap();
    let seen: Vec<_> = states.iter().map(|state| (state.lease, state.held)).collect();
    assert_eq!(seen, [(lost, false), (held, true), (ended, false), (unknown, false)]);
    assert!(storage.renew_leases(&Scope::Server, &[], MINUTE).await.unwrap().is_empty());
    // What is renewed is not claimable, what is renewed for no time is.
    assert!(claim_all(storage, MINUTE).await.is_empty());
    storage.renew_leases(&Scope::Server, &[held], Duration::ZERO).await.unwrap();
    assert_eq!(ids(&claim_all(storage, MINUTE).await), [id(1)]);
}

async fn releasing_is_no_attempt(lab: Lab) {
    let storage = &lab.storage;
    let mut lease = start(storage, "t", 1).await.lease;
    for round in 1..=5 {
        assert!(storage.release_run(&TENANT, &lease).await.unwrap());
        assert!(!storage.release_run(&TENANT, &lease).await.unwrap());
        assert_eq!(find_run(storage, "t", 1).await.unwrap().status, RunStatus::Pending);
        let again = claim_all(storage, MINUTE).await.remove(0);
        assert_eq!((again.lease.epoch, again.run.attempts), (round + 1, 1));
        lease = again.lease;
    }
}

async fn attempts_without_progress_end_in_quarantine(lab: Lab) {
    let storage = &lab.storage;
    created(storage.create_run(&TENANT, NewRun { temporary: true, ..run("temp", 9) }).await.unwrap());
    start_for(storage, "t", 1, Duration::ZERO).await;
    created(storage.create_run(&TENANT, run("t", 2)).await.unwrap());
    for attempt in 2..=3 {
        let mine = async || claim_all(storage, Duration::ZERO).await.into_iter().find(|c| c.run.run_id == id(1));
        // The last attempt of the other one may come first, alone.
        let mine = eventually("its turn", mine).await;
        assert_eq!(mine.run.attempts, attempt);
    }
    // Progress starts the count anew.
    let lease = Lease { thread: key("t"), run_id: id(1), epoch: 3 };
    assert_eq!(commit(storage, head_step(lease, "c1", None)).await, CommitOutcome::Committed);
    for attempt in 2..=3 {
        let claimed = claim_all(storage, Duration::ZERO).await;
        let mine = claimed.iter().find(|claimed| claimed.run.run_id == id(1)).unwrap();
        assert_eq!(mine.run.attempts, attempt);
    }
    let claimed = claim_all(storage, Duration::ZERO).await;
    assert!(claimed.iter().all(|claimed| claimed.run.run_id != id(1)), "not a fourth time");
    let run = find_run(storage, "t", 1).await.unwrap();
    assert_eq!((run.status, run.error.unwrap().error.as_str()), (RunStatus::Error, "RunQuarantined"));
    assert!(find_thread(storage, "temp").await.is_none(), "the temporary thread went with its run");
    // The thread is not stuck: the next one runs, and at rest it shows the error.
    let next = claim_all(storage, MINUTE).await;
    let next = if next.is_empty() { claimed } else { next };
    assert_eq!(ids(&next), [id(2)]);
    let target = CancelTarget::Runs { thread_id: tid("t"), run_ids: vec![id(2)] };
    let request = CancelRequest { action: CancelAction::Rollback, actor: None, reason: None };
    storage.cancel_runs(&TENANT, &target, &request).await.unwrap();
    storage.delete_run(&TENANT, &tid("t"), id(2)).await.unwrap();
    let ended = RunEnd {
        status: RunStatus::Error,
        error: Some(ErrorInfo { error: "Boom".into(), message: "nul \0 inside".into() }),
        thread_status: ThreadStatus::Error,
        view: None,
        webhook: None,
        announce: false,
    };
    assert_eq!(commit(storage, step(next[0].lease, StepRows::default(), Some(ended))).await, CommitOutcome::Committed);
    let thread = find_thread(storage, "t").await.unwrap();
    assert_eq!(thread.status, ThreadStatus::Error);
    assert_eq!(thread.error.unwrap().message, "nul \0 inside");
    assert_eq!(find_run(storage, "t", 2).await.unwrap().error.unwrap().error, "Boom");
}

async fn last_attempts_are_made_one_at_a_time(lab: Lab) {
    let storage = &lab.storage;
    for (name, n) in [("a", 1), ("b", 2), ("c", 3), ("e", 5), ("f", 6)] {
        created(storage.create_run(&TENANT, run(name, n)).await.unwrap());
    }
    for _ in 0..2 {
        assert_eq!(claim_all(storage, Duration::ZERO).await.len(), 5);
    }
    // One of them may be what killed the process twice.
    let first = claim_all(storage, MINUTE).await;
    assert_eq!(ids(&first), [id(1)]);
    assert!(claim_all(storage, MINUTE).await.is_empty());
    assert_eq!(storage.find_stuck(&Scope::Server, Duration::ZERO, 10).await.unwrap(), [], "they wait for it");
    created(storage.create_run(&TENANT, run("d", 4)).await.unwrap());
    let one = storage.claim_runs(&Scope::Server, &claim(MINUTE), 3, 1).await.unwrap();
    assert_eq!(ids(&one), [id(4)], "others do not wait");
    // Another process dies for itself; and what is only to be told that it was cancelled kills nobody.
    let elsewhere = Claim { worker: "worker-2".into(), lease: MINUTE };
    let second = storage.claim_runs(&Scope::Server, &elsewhere, 3, 100).await.unwrap();
    assert_eq!(ids(&second), [id(2)]);
    let target = CancelTarget::Runs { thread_id: tid("f"), run_ids: vec![id(6)] };
    let request = CancelRequest { action: CancelAction::Interrupt, actor: None, reason: None };
    storage.cancel_runs(&TENANT, &target, &request).await.unwrap();
    assert_eq!(ids(&claim_all(storage, MINUTE).await), [id(6)]);
    // Progress tells that it is not this one; so does its end.
    assert_eq!(commit(storage, head_step(first[0].lease, "c1", None)).await, CommitOutcome::Committed);
    let third = claim_all(storage, MINUTE).await;
    assert_eq!(ids(&third), [id(3)]);
    finish(storage, third[0].lease).await;
    assert_eq!(ids(&claim_all(storage, MINUTE).await), [id(5)]);
}

async fn twenty_claimers_share_without_doubles(lab: Lab) {
    for n in 0..40 {
        created(lab.storage.create_run(&TENANT, run(&format!("t{}", n % 10), 100 + n)).await.unwrap());
    }
    let mut done = Vec::new();
    while done.len() < 40 {
        let claimers = (0..20).map(|_| {
            let storage = lab.storage.clone();
            tokio::spawn(async move { storage.claim_runs(&Scope::Server, &claim(MINUTE), 3, 3).await.unwrap() })
        });
        let claimed: Vec<ClaimedRun> =
            futures_util::future::join_all(claimers).await.into_iter().flat_map(|claimed| claimed.unwrap()).collect();
        let mut threads: Vec<_> = claimed.iter().map(|claimed| claimed.thread.key).collect();
        threads.sort();
        threads.dedup();
        assert_eq!(threads.len(), claimed.len(), "one run per thread");
        let (_, running) = lab.storage.count_active(&TENANT).await.unwrap();
        assert_eq!(running as usize, claimed.len());
        let ends: Vec<StepCommit> = claimed
            .iter()
            .map(|claimed| step(claimed.lease, StepRows::default(), end(RunStatus::Success, ThreadStatus::Idle)))
            .collect();
        let outcomes = lab.storage.commit_steps(&Scope::Server, &ends).await.unwrap();
        assert!(outcomes.iter().all(|outcome| *outcome == CommitOutcome::Committed));
        done.extend(ids(&claimed));
    }
    done.sort();
    done.dedup();
    assert_eq!(done.len(), 40);
}
