//! Usage: added to the run and to its thread in the commit that reports it, once.

use super::*;

for_each_backend!(
    usage_is_summed_by_model_for_run_and_thread,
    a_repeated_commit_is_counted_once,
    a_stale_worker_counts_nothing,
    the_thread_keeps_what_its_runs_spent,
    sums_and_changes_of_metadata_do_not_disturb_each_other,
);

fn usage(input_tokens: i64, nanos: i64) -> ModelUsage {
    let output_tokens = 2 * input_tokens;
    ModelUsage { input_tokens, output_tokens, total_tokens: 3 * input_tokens, cost: Cost::from_nanos(nanos) }
}

fn spent(lease: Lease, seq: i64, models: &[(&str, i64)]) -> StepCommit {
    let row = |(model, n): &(&str, i64)| UsageRow { model: (*model).to_owned(), usage: usage(*n, 10 * n), seq };
    let rows = StepRows { usage: models.iter().map(row).collect(), ..StepRows::default() };
    StepCommit { input_applied: false, ..step(lease, rows, None) }
}

fn totals(models: &[(&str, i64)]) -> UsageTotals {
    let mut totals = UsageTotals::default();
    for (model, n) in models {
        totals.add(model, usage(*n, 10 * n));
    }
    totals
}

async fn of_thread(storage: &SharedStorage, name: &str) -> UsageTotals {
    find_thread(storage, name).await.unwrap().usage
}

async fn of_run(storage: &SharedStorage, name: &str, n: u128) -> UsageTotals {
    find_run(storage, name, n).await.unwrap().usage
}

async fn usage_is_summed_by_model_for_run_and_thread(lab: Lab) {
    let storage = &lab.storage;
    let first = start(storage, "t", 1).await.lease;
    assert_eq!(of_thread(storage, "t").await, UsageTotals::default());
    // Beside another thread's, in one batch.
    let other = start(storage, "u", 2).await.lease;
    let batch = [spent(first, 1, &[("a", 1), ("b ä\"", 2)]), spent(other, 1, &[("a", 100)])];
    let outcomes = storage.commit_steps(&Scope::Server, &batch).await.unwrap();
    assert_eq!(outcomes, [CommitOutcome::Committed; 2]);
    commit(storage, spent(first, 2, &[("a", 4)])).await;
    finish(storage, first).await;
    let second = start(storage, "t", 3).await.lease;
    let mut last = spent(second, 1, &[("a", 8)]);
    last.end = end(RunStatus::Success, ThreadStatus::Idle);
    commit(storage, last).await;
    assert_eq!(of_run(storage, "t", 1).await, totals(&[("a", 5), ("b ä\"", 2)]));
    assert_eq!(of_run(storage, "t", 3).await, totals(&[("a", 8)]));
    assert_eq!(of_thread(storage, "t").await, totals(&[("a", 13), ("b ä\"", 2)]));
    assert_eq!(of_thread(storage, "u").await, totals(&[("a", 100)]));
    let page = Page { limit: 9, offset: 0 };
    let runs = storage.list_runs(&TENANT, &tid("t"), &RunFilter::default(), page).await.unwrap().unwrap();
    assert_eq!(runs.iter().map(|run| run.usage.clone()).collect::<Vec<_>>()[0], totals(&[("a", 8)]));
    let filter = ThreadFilter::default();
    let threads = storage.search_threads(&TENANT, &filter, ThreadSort::ThreadId, true, page).await.unwrap();
    assert_eq!(threads.iter().map(|thread| thread.usage.clone()).collect::<Vec<_>>()[1], totals(&[("a", 100)]));
    assert_eq!(storage.locate_run(&TENANT, id(2)).await.unwrap().unwrap().usage, totals(&[("a", 100)]));
}

async fn a_repeated_commit_is_counted_once(lab: Lab) {
    let storage = &lab.storage;
    let lease = start(storage, "t", 1).await.lease;
    let once = spent(lease, 1, &[("a", 1), ("b", 1)]);
    for _ in 0..3 {
        assert_eq!(commit(storage, once.clone()).await, CommitOutcome::Committed);
    }
    assert_eq!(of_thread(storage, "t").await, totals(&[("a", 1), ("b", 1)]));
    commit(storage, spent(lease, 2, &[("b", 2)])).await;
    commit(storage, once).await;
    assert_eq!(of_run(storage, "t", 1).await, totals(&[("a", 1), ("b", 3)]));
    assert_eq!(of_thread(storage, "t").await, totals(&[("a", 1), ("b", 3)]));
}

async fn a_stale_worker_counts_nothing(lab: Lab) {
    let storage = &lab.storage;
    let lease = start(storage, "t", 1).await.lease;
    let stale = spent(Lease { epoch: lease.epoch + 1, ..lease }, 1, &[("a", 1)]);
    assert_eq!(commit(storage, stale).await, CommitOutcome::LeaseLost);
    assert!(of_thread(storage, "t").await.is_empty() && of_run(storage, "t", 1).await.is_empty());
}

async fn the_thread_keeps_what_its_runs_spent(lab: Lab) {
    let storage = &lab.storage;
    let first = start(storage, "t", 1).await.lease;
    commit(storage, spent(first, 1, &[("a", 1)])).await;
    let rolled_back = storage.rollback_run(&TENANT, &first, ThreadStatus::Idle).await.unwrap();
    assert_eq!(rolled_back, CommitOutcome::Committed);
    let second = start(storage, "t", 2).await.lease;
    commit(storage, spent(second, 1, &[("a", 2)])).await;
    finish(storage, second).await;
    assert_eq!(storage.delete_run(&TENANT, &tid("t"), id(2)).await.unwrap(), Some(true));
    assert_eq!(of_thread(storage, "t").await, totals(&[("a", 3)]), "the money is spent");
    let copy = storage.copy_thread(&TENANT, &tid("t"), &tid("copy")).await.unwrap().unwrap();
    assert!(copy.usage.is_empty(), "a copy has spent nothing");
    storage.delete_thread(&TENANT, &tid("t")).await.unwrap();
    storage.create_thread(&TENANT, thread("t")).await.unwrap();
    assert!(of_thread(storage, "t").await.is_empty());
}

async fn sums_and_changes_of_metadata_do_not_disturb_each_other(lab: Lab) {
    let storage = &lab.storage;
    let lease = start(storage, "t", 1).await.lease;
    let changing = {
        let storage = storage.clone();
        tokio::spawn(async move {
            for n in 0..50 {
                let metadata = Some(json(&format!(r#"{{"n":{n},"usage":"mine"}}"#)));
                let patch = ThreadPatch { metadata, ..ThreadPatch::default() };
                storage.update_thread(&TENANT, &tid("t"), patch).await.unwrap();
            }
        })
    };
    for seq in 1..=50 {
        assert_eq!(commit(storage, spent(lease, seq, &[("a", 1)])).await, CommitOutcome::Committed);
    }
    changing.await.unwrap();
    let thread = find_thread(storage, "t").await.unwrap();
    assert_eq!(thread.usage, totals(&[("a", 50)]));
    assert_eq!(thread.metadata.value()["n"], 49);
}
