//! Looking after a deployment: what is stuck, what was set aside, and what the database says of itself.

use super::*;

for_each_backend!(
    a_run_without_lease_timer_or_waiter_is_stuck,
    a_run_whose_thread_is_gone_is_stuck,
    quarantined_runs_are_listed_with_their_reason_and_released,
    a_quarantined_run_is_not_released_once_its_thread_went_on,
    the_webhook_of_a_released_run_is_told_again,
    an_inspection_counts_and_changes_nothing,
    a_newer_build_that_only_adds_is_no_obstacle,
);

const AT_ONCE: Duration = Duration::ZERO;

async fn stuck(storage: &SharedStorage, grace: Duration) -> Vec<(Uuid, StuckReason)> {
    let found = storage.find_stuck(&Scope::Server, grace, 100).await.unwrap();
    found.iter().map(|run| (run.run_id, run.reason)).collect()
}

async fn a_run_without_lease_timer_or_waiter_is_stuck(lab: Lab) {
    let storage = &lab.storage;
    // A live lease, and a run that waits for it; a timer.
    let lease = start(storage, "leased", 1).await.lease;
    created(storage.create_run(&TENANT, run("leased", 2)).await.unwrap());
    created(storage.create_run(&TENANT, NewRun { after: MINUTE, ..run("timer", 3) }).await.unwrap());
    assert_eq!(stuck(storage, AT_ONCE).await, []);
    // Due, first of its thread, and nobody takes it; another one waits behind it.
    created(storage.create_run(&TENANT, run("queued", 4)).await.unwrap());
    created(storage.create_run(&TENANT, run("queued", 5)).await.unwrap());
    assert_eq!(stuck(storage, MINUTE).await, [], "not yet");
    let found = eventually("it is stuck", async || Some(stuck(storage, AT_ONCE).await).filter(|f| !f.is_empty())).await;
    assert_eq!(found, [(id(4), StuckReason::NotClaimed)]);
    // A lease that ran out.
    start_for(storage, "lost", 6, Duration::ZERO).await;
    let both = [(id(4), StuckReason::NotClaimed), (id(6), StuckReason::LeaseRanOut)];
    let found = eventually("both", async || Some(stuck(storage, AT_ONCE).await).filter(|f| f.len() == 2)).await;
    assert_eq!(found, both);
    assert_eq!(stuck(storage, MINUTE).await, []);
    // The end of the run before it makes the next one due only now.
    finish(storage, lease).await;
    assert!(stuck(storage, Duration::from_secs(30)).await.is_empty());
    let mine = storage.find_stuck(&TENANT, AT_ONCE, 1).await.unwrap();
    assert_eq!((mine.len(), mine[0].thread_id.as_ref().unwrap().as_str()), (1, "queued"), "the longest first");
    assert_eq!(storage.find_stuck(&OTHER, AT_ONCE, 100).await.unwrap(), []);
    // Claimed, they are not stuck any more.
    claim_all(storage, MINUTE).await;
    assert_eq!(stuck(storage, AT_ONCE).await, []);
}

async fn a_run_whose_thread_is_gone_is_stuck(lab: Lab) {
    if lab.is_memory() {
        // Nobody else can reach it.
        return;
    }
    created(lab.storage.create_run(&TENANT, NewRun { after: AT_ONCE, ..run("t", 1) }).await.unwrap());
    lab.tamper("DELETE FROM threads").await;
    let found = eventually("found", async || Some(stuck(&lab.storage, AT_ONCE).await).filter(|f| !f.is_empty())).await;
    assert_eq!(found, [(id(1), StuckReason::NoThread)]);
    assert_eq!(lab.storage.inspect().await.unwrap().counts.unwrap().orphans, 1);
}

/// A run that was attempted so often that it is set aside.
async fn set_aside(storage: &SharedStorage, new: NewRun) {
    let (name, run_id) = (new.thread_id.clone(), new.run_id);
    created(storage.create_run(&TENANT, new).await.unwrap());
    for _ in 0..4 {
        claim_all(storage, Duration::ZERO).await;
    }
    let run = storage.find_run(&TENANT, &name, run_id).await.unwrap().unwrap();
    assert_eq!(run.error.unwrap().error, "RunQuarantined");
}

async fn quarantined(storage: &SharedStorage) -> Vec<QuarantinedRun> {
    storage.list_quarantined(&TENANT, Page { limit: 10, offset: 0 }).await.unwrap()
}

async fn quarantined_runs_are_listed_with_their_reason_and_released(lab: Lab) {
    let storage = &lab.storage;
    set_aside(storage, run("t", 1)).await;
    set_aside(storage, run("u", 2)).await;
    let listed = quarantined(storage).await;
    assert_eq!(listed.iter().map(|run| run.run_id).collect::<Vec<_>>(), [id(1), id(2)]);
    let (first, error) = (&listed[0], listed[0].error.as_ref().unwrap());
    assert_eq!((first.thread_id.as_str(), first.attempts, first.worker.as_deref()), ("t", 3, Some("worker-1")));
    assert!(error.message.contains("3 times") && error.message.contains("worker-1"), "{error:?}");
    let second = storage.list_quarantined(&TENANT, Page { limit: 1, offset: 1 }).await.unwrap();
    assert_eq!(second[0].run_id, id(2));
    assert!(storage.list_quarantined(&OTHER, Page { limit: 10, offset: 0 }).await.unwrap().is_empty());
    assert_eq!(storage.inspect().await.unwrap().counts.unwrap().quarantined, 2);

    let mut notices = storage.notices();
    for (scope, run_id) in [(OTHER, id(1)), (TENANT, id(77))] {
        let refused = storage.release_run_from_quarantine(&scope, run_id).await.unwrap();
        assert_eq!(refused, Release::NotQuarantined);
    }
    assert_eq!(storage.release_run_from_quarantine(&TENANT, id(1)).await.unwrap(), Release::Released);
    assert_eq!(storage.release_run_from_quarantine(&TENANT, id(1)).await.unwrap(), Release::NotQuarantined);
    loop {
        if notices.recv().await.unwrap() == Notice::RunPending {
            break;
        }
    }
    assert_eq!(quarantined(storage).await.len(), 1);
    let thread = find_thread(storage, "t").await.unwrap();
    assert_eq!((thread.status, thread.error), (ThreadStatus::Busy, None));
    // As if it had never been attempted.
    let claimed = claim_all(storage, MINUTE).await;
    assert_eq!((ids(&claimed), claimed[0].run.attempts, claimed[0].run.error.clone()), (vec![id(1)], 1, None));
    finish(storage, claimed[0].lease).await;
    assert_eq!(find_run(storage, "t", 1).await.unwrap().status, RunStatus::Success);
}

async fn a_quarantined_run_is_not_released_once_its_thread_went_on(lab: Lab) {
    let storage = &lab.storage;
    set_aside(storage, run("t", 1)).await;
    created(storage.create_run(&TENANT, run("t", 2)).await.unwrap());
    let later = claim_all(storage, MINUTE).await;
    assert_eq!(storage.release_run_from_quarantine(&TENANT, id(1)).await.unwrap(), Release::Superseded);
    finish(storage, later[0].lease).await;
    assert_eq!(storage.release_run_from_quarantine(&TENANT, id(1)).await.unwrap(), Release::Superseded);
    assert_eq!(quarantined(storage).await.len(), 1);
}

async fn the_webhook_of_a_released_run_is_told_again(lab: Lab) {
    let storage = &lab.storage;
    let url = "https://example.com/hook";
    let kwargs = json(&format!(r#"{{"webhook":"{url}"}}"#));
    set_aside(storage, NewRun { webhook: Some(url.into()), kwargs, ..run("t", 1) }).await;
    let told = storage.claim_webhooks(&Scope::Server, 10, MINUTE).await.unwrap().due;
    assert_eq!(told[0].status, "error");
    assert!(storage.settle_webhook(&Scope::Server, told[0].attempt, AttemptOutcome::Delivered).await.unwrap());
    storage.release_run_from_quarantine(&TENANT, id(1)).await.unwrap();
    let lease = claim_all(storage, MINUTE).await[0].lease;
    let webhook = Some(WebhookEnd { values: None, started_at: Timestamp(1) });
    let ended = end(RunStatus::Success, ThreadStatus::Idle).map(|end| RunEnd { webhook, ..end });
    commit(storage, step(lease, StepRows::default(), ended)).await;
    let told = storage.claim_webhooks(&Scope::Server, 10, MINUTE).await.unwrap().due;
    assert_eq!((told.len(), told[0].status.as_str()), (1, "success"));
}

async fn an_inspection_counts_and_changes_nothing(lab: Lab) {
    let storage = &lab.storage;
    start(storage, "t", 1).await;
    start_for(storage, "u", 2, Duration::ZERO).await;
    created(storage.create_run(&TENANT, run("v", 3)).await.unwrap());
    created(storage.create_run(&TENANT, NewRun { after: MINUTE, ..run("w", 4) }).await.unwrap());
    let before = storage.write_transactions();
    let found = storage.inspect().await.unwrap();
    let counts = Counts { pending: 1, running: 2, expired_leases: 1, ..Counts::default() };
    assert_eq!(found.counts, Some(counts));
    assert!(found.missing.is_empty() && found.applied.iter().all(|m| m.is_known && m.expands), "{found:?}");
    assert!(found.server.contains(if lab.is_postgres() { "PostgreSQL" } else { "SQLite" }), "{}", found.server);
    assert!(found.settings.len() >= 3 && found.now.0 > 0);
    assert_eq!(storage.write_transactions(), before);

    if let Some(database) = lab.is_postgres().then_some(Database::create().await).flatten() {
        let empty = connect(&database.url(), &options()).await.unwrap();
        let found = empty.inspect().await.unwrap();
        assert!(found.applied.is_empty() && found.counts.is_none() && found.missing.len() >= 8, "{found:?}");
        empty.close().await;
        database.drop().await;
    }
}

async fn a_newer_build_that_only_adds_is_no_obstacle(lab: Lab) {
    if lab.is_memory() {
        return;
    }
    let newer =
        "INSERT INTO schema_migrations (version, name, checksum, applied_at, expands) VALUES (9999, 'x', 'x', 0, ";
    lab.tamper(&format!("{newer}{})", if lab.is_postgres() { "TRUE" } else { "1" })).await;
    assert_eq!(lab.storage.migrate().await.unwrap(), 0);
    let found = lab.storage.inspect().await.unwrap();
    assert!(found.applied.iter().any(|m| m.version == 9999 && !m.is_known && m.expands));
    assert!(found.counts.is_some(), "nothing of this build is missing");
}
