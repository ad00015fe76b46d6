//! Webhooks: due by whatever ends the run, attempted by one at a time, dead and redriven.

use super::*;

for_each_backend!(
    the_end_of_a_run_makes_its_webhook_due_in_the_same_commit,
    a_stale_end_tells_nobody,
    every_other_end_tells_it_too,
    the_end_of_a_temporary_thread_leaves_what_is_told,
    an_attempt_is_made_by_one_and_again_after_its_lease,
    failures_wait_and_dead_ones_are_listed_redriven_and_deleted,
    twenty_claimers_share_webhooks_without_doubles,
    what_nobody_ended_is_swept,
);

fn hooked(name: &str, n: u128) -> NewRun {
    NewRun { webhook: Some("https://example.com/\0hook".into()), ..run(name, n) }
}

async fn started(storage: &SharedStorage, name: &str, n: u128) -> ClaimedRun {
    let new = NewRun { claim: Some(claim(MINUTE)), ..hooked(name, n) };
    *created(storage.create_run(&TENANT, new).await.unwrap()).1.expect("claimed")
}

fn told(lease: Lease, values: Option<&str>) -> StepCommit {
    let webhook = Some(WebhookEnd { values: values.map(json), started_at: Timestamp(5) });
    let ended = RunEnd { webhook, ..end(RunStatus::Success, ThreadStatus::Idle).unwrap() };
    step(lease, StepRows::default(), Some(ended))
}

async fn due(storage: &SharedStorage) -> Vec<DueWebhook> {
    let mut due = storage.claim_webhooks(&Scope::Server, 100, MINUTE).await.unwrap().due;
    due.sort_by_key(|due| due.attempt.run_id);
    due
}

async fn settle(storage: &SharedStorage, attempt: Attempt, outcome: AttemptOutcome) -> bool {
    storage.settle_webhook(&Scope::Server, attempt, outcome).await.unwrap()
}

async fn listed(storage: &SharedStorage, state: WebhookState) -> Vec<Webhook> {
    storage.list_webhooks(&TENANT, state, Page::default()).await.unwrap()
}

async fn the_end_of_a_run_makes_its_webhook_due_in_the_same_commit(lab: Lab) {
    let storage = &lab.storage;
    let lease = started(storage, "t", 1).await.lease;
    started(storage, "u", 2).await;
    start(storage, "v", 3).await;
    assert!(due(storage).await.is_empty(), "nothing has ended");
    assert_eq!(listed(storage, WebhookState::Waiting).await.len(), 2);
    assert_eq!(commit(storage, told(lease, Some(r#"{"v":1e2}"#))).await, CommitOutcome::Committed);
    let due = due(storage).await;
    assert_eq!(due.len(), 1);
    let hook = &due[0];
    assert_eq!((hook.attempt.run_id, hook.attempt.number), (id(1), 1));
    assert_eq!((hook.url.as_str(), hook.status.as_str()), ("https://example.com/\0hook", "success"));
    assert_eq!((hook.thread_id.as_str(), hook.assistant_id), ("t", id(900)));
    assert_eq!(hook.values.as_ref().unwrap().text(), r#"{"v":1e2}"#, "byte for byte");
    assert_eq!((hook.kwargs.text(), hook.error.is_none()), (r#"{"input":{"a":1}}"#.to_owned(), true));
    assert_eq!((hook.started_at, hook.multitask_strategy.as_str()), (Some(Timestamp(5)), "enqueue"));
    assert!(hook.ended_at >= hook.created_at);
    // The run and its thread may go now.
    storage.delete_thread(&TENANT, &tid("t")).await.unwrap();
    storage.delete_thread(&TENANT, &tid("u")).await.unwrap();
    assert_eq!(listed(storage, WebhookState::Due).await.len(), 1);
    assert!(listed(storage, WebhookState::Waiting).await.is_empty(), "a deleted run tells nobody");
    assert!(storage.list_webhooks(&OTHER, WebhookState::Due, Page::default()).await.unwrap().is_empty());
    assert!(settle(storage, hook.attempt, AttemptOutcome::Delivered).await);
    assert!(listed(storage, WebhookState::Due).await.is_empty());
}

async fn a_stale_end_tells_nobody(lab: Lab) {
    let storage = &lab.storage;
    let lease = started(storage, "t", 1).await.lease;
    let other = started(storage, "u", 2).await.lease;
    let stale = told(Lease { epoch: 9, ..lease }, None);
    let outcomes = storage.commit_steps(&TENANT, &[stale, told(other, None)]).await.unwrap();
    assert_eq!(outcomes, [CommitOutcome::LeaseLost, CommitOutcome::Committed]);
    let due = due(storage).await;
    assert_eq!(due.iter().map(|due| due.attempt.run_id).collect::<Vec<_>>(), [id(2)]);
    assert_eq!(due[0].values, None);
}

async fn every_other_end_tells_it_too(lab: Lab) {
    let storage = &lab.storage;
    // Cancelled while pending, in both ways.
    start(storage, "a", 100).await;
    for (n, action) in [(1, CancelAction::Interrupt), (2, CancelAction::Rollback)] {
        created(storage.create_run(&TENANT, hooked("a", n)).await.unwrap());
        let target = CancelTarget::Runs { thread_id: tid("a"), run_ids: vec![id(n)] };
        let request = CancelRequest { action, actor: None, reason: None };
        storage.cancel_runs(&TENANT, &target, &request).await.unwrap();
    }
    // Superseded while pending, in both ways.
    for (n, strategy) in [(3, MultitaskStrategy::Interrupt), (4, MultitaskStrategy::Rollback)] {
        created(storage.create_run(&TENANT, hooked("a", n)).await.unwrap());
        let next = NewRun { multitask_strategy: strategy, ..run("a", 100 + n) };
        created(storage.create_run(&TENANT, next).await.unwrap());
    }
    // Taken back by its worker, and set aside after too many attempts.
    let lease = started(storage, "b", 5).await.lease;
    storage.rollback_run(&TENANT, &lease, ThreadStatus::Idle).await.unwrap();
    created(storage.create_run(&TENANT, hooked("c", 6)).await.unwrap());
    for _ in 0..3 {
        storage.claim_runs(&Scope::Server, &claim(Duration::ZERO), 3, 100).await.unwrap();
    }
    eventually("the run is set aside", || async {
        storage.claim_runs(&Scope::Server, &claim(Duration::ZERO), 3, 100).await.unwrap();
        find_run(storage, "c", 6).await.filter(|run| run.status == RunStatus::Error)
    })
    .await;
    let due = due(storage).await;
    let ends: Vec<_> = due.iter().map(|due| (due.attempt.run_id.as_u128(), due.status.as_str())).collect();
    assert_eq!(
        ends,
        [(1, "interrupted"), (2, "rollback"), (3, "interrupted"), (4, "rollback"), (5, "rollback"), (6, "error")]
    );
    assert_eq!(due[5].error.as_ref().unwrap().error, "RunQuarantined");
    assert!(due.iter().all(|due| due.values.is_none()));
    let started: Vec<bool> = due.iter().map(|due| due.started_at.is_some()).collect();
    assert_eq!(started, [false, false, false, false, true, true], "those that a worker had begun");
}

async fn the_end_of_a_temporary_thread_leaves_what_is_told(lab: Lab) {
    let storage = &lab.storage;
    let new = NewRun { temporary: true, claim: Some(claim(MINUTE)), ..hooked("t", 1) };
    let lease = created(storage.create_run(&TENANT, new).await.unwrap()).1.expect("claimed").lease;
    assert_eq!(commit(storage, told(lease, Some("[1]"))).await, CommitOutcome::Committed);
    assert!(find_thread(storage, "t").await.is_none());
    assert_eq!(due(storage).await[0].values.as_ref().unwrap().text(), "[1]");
}

async fn an_attempt_is_made_by_one_and_again_after_its_lease(lab: Lab) {
    let storage = &lab.storage;
    let lease = started(storage, "t", 1).await.lease;
    commit(storage, told(lease, None)).await;
    let first = storage.claim_webhooks(&Scope::Server, 1, Duration::ZERO).await.unwrap().due.remove(0);
    let again = eventually("the lease is over", || async { due(storage).await.pop() }).await;
    assert_eq!((first.attempt.number, again.attempt.number), (1, 2));
    let claimed = storage.claim_webhooks(&Scope::Server, 1, MINUTE).await.unwrap();
    assert!(claimed.due.is_empty() && claimed.next.is_some_and(|next| next <= MINUTE && next > MINUTE / 2));
    assert!(!settle(storage, first.attempt, AttemptOutcome::Delivered).await, "somebody else has it");
    assert!(!storage.settle_webhook(&OTHER, again.attempt, AttemptOutcome::Delivered).await.unwrap());
    assert!(settle(storage, again.attempt, AttemptOutcome::Delivered).await);
    assert_eq!(storage.claim_webhooks(&Scope::Server, 1, MINUTE).await.unwrap().next, None);
}

async fn failures_wait_and_dead_ones_are_listed_redriven_and_deleted(lab: Lab) {
    let storage = &lab.storage;
    for (name, n) in [("t", 1), ("u", 2)] {
        let lease = started(storage, name, n).await.lease;
        commit(storage, told(lease, None)).await;
    }
    let both = due(storage).await;
    let retry = AttemptOutcome::Retry { after: Duration::ZERO, error: "busy \0".into() };
    assert!(settle(storage, both[0].attempt, retry).await);
    assert!(settle(storage, both[1].attempt, AttemptOutcome::Dead { error: "gone".into() }).await);
    let again = eventually("it is due again", || async { due(storage).await.pop() }).await;
    assert_eq!((again.attempt.run_id, again.attempt.number), (id(1), 2));
    let waiting = &listed(storage, WebhookState::Due).await[0];
    assert_eq!((waiting.last_error.as_deref(), waiting.attempts), (Some("busy \0"), 2));
    assert!(settle(storage, again.attempt, AttemptOutcome::Dead { error: "gone".into() }).await);
    assert_eq!(listed(storage, WebhookState::Dead).await.len(), 2);
    assert!(due(storage).await.is_empty());
    assert_eq!(storage.redrive_webhooks(&OTHER, None).await.unwrap(), 0);
    assert_eq!(storage.redrive_webhooks(&TENANT, Some(&[id(2), id(7)])).await.unwrap(), 1);
    let redriven = due(storage).await;
    assert_eq!((redriven.len(), redriven[0].attempt.run_id, redriven[0].attempt.number), (1, id(2), 1));
    assert_eq!(storage.redrive_webhooks(&TENANT, None).await.unwrap(), 1);
    for hook in due(storage).await.into_iter().chain(redriven) {
        settle(storage, hook.attempt, AttemptOutcome::Dead { error: "gone".into() }).await;
    }
    assert_eq!(storage.sweep_webhooks(&Scope::Server, MINUTE).await.unwrap(), 0);
    assert_eq!(listed(storage, WebhookState::Dead).await.len(), 2);
    eventually("the dead are deleted", || async {
        storage.sweep_webhooks(&Scope::Server, Duration::ZERO).await.unwrap();
        listed(storage, WebhookState::Dead).await.is_empty().then_some(())
    })
    .await;
}

async fn twenty_claimers_share_webhooks_without_doubles(lab: Lab) {
    let storage = &lab.storage;
    for n in 0..30_u128 {
        let lease = started(storage, &format!("t{n}"), n + 1).await.lease;
        commit(storage, told(lease, None)).await;
    }
    let claimers = (0..20).map(|_| {
        let storage = storage.clone();
        tokio::spawn(async move { storage.claim_webhooks(&Scope::Server, 5, MINUTE).await.unwrap().due })
    });
    let claimed = futures_util::future::join_all(claimers).await;
    let mut all: Vec<Uuid> = claimed.into_iter().flat_map(|due| due.unwrap()).map(|due| due.attempt.run_id).collect();
    all.extend(due(storage).await.iter().map(|due| due.attempt.run_id));
    all.sort();
    assert_eq!(all, (1..=30).map(id).collect::<Vec<_>>());
}

async fn what_nobody_ended_is_swept(lab: Lab) {
    let storage = &lab.storage;
    let lease = started(storage, "t", 1).await.lease;
    started(storage, "u", 2).await;
    // An end that says nothing of the webhook, as of an older release.
    finish(storage, lease).await;
    assert!(due(storage).await.is_empty());
    assert_eq!(storage.sweep_webhooks(&Scope::Server, MINUTE).await.unwrap(), 1);
    let due = due(storage).await;
    assert_eq!((due.len(), due[0].attempt.run_id, due[0].status.as_str()), (1, id(1), "success"));
    assert_eq!(listed(storage, WebhookState::Waiting).await.len(), 1, "an active run's waits on");
}
