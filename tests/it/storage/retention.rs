//! Expiry, pruning, and removing large threads in steps.

use super::*;

for_each_backend!(
    a_thread_expires_after_it_was_last_used,
    a_thread_in_use_does_not_expire,
    runs_that_make_a_thread_give_it_a_time_to_live,
    pruning_keeps_what_it_is_told_and_nothing_else,
    pruning_a_thread_in_use_changes_nothing,
    a_change_based_on_a_pruned_state_is_refused,
    a_large_thread_is_gone_at_once_and_removed_in_steps,
    the_name_of_a_large_deleted_thread_is_free_again,
    racers_on_the_name_of_a_deleted_thread_see_nothing_of_it,
    metadata_is_merged_into_the_head,
    sizes_tell_bytes_by_kind,
);

const PAST: Option<Ttl> = Some(Ttl { strategy: TtlStrategy::Delete, micros: 0 });

async fn expired(storage: &SharedStorage) -> Vec<String> {
    let found = storage.expired_threads(&Scope::Server, 10).await.unwrap();
    found.iter().map(|thread| thread.id.to_string()).collect()
}

async fn a_thread_expires_after_it_was_last_used(lab: Lab) {
    let storage = &lab.storage;
    let hour = Ttl::of_minutes(TtlStrategy::KeepLatest, 60.0);
    storage.create_thread(&TENANT, NewThread { ttl: Some(hour), ..thread("later") }).await.unwrap();
    storage.create_thread(&TENANT, thread("never")).await.unwrap();
    storage.create_thread(&OTHER, NewThread { ttl: PAST, ..thread("now") }).await.unwrap();
    assert!(storage.thread_ttl(&TENANT, &tid("never")).await.unwrap().is_none());
    assert!(storage.thread_ttl(&OTHER, &tid("later")).await.unwrap().is_none(), "another tenant's");
    let ttl = storage.thread_ttl(&TENANT, &tid("later")).await.unwrap().unwrap();
    let used = find_thread(storage, "later").await.unwrap().updated_at;
    assert_eq!(
        (ttl.strategy, ttl.minutes(), ttl.expires_at.0 - used.0),
        (TtlStrategy::KeepLatest, 60.0, 3_600_000_000)
    );
    assert_eq!(expired(storage).await, ["now"]);
    assert!(storage.expired_threads(&TENANT, 10).await.unwrap().is_empty());
    assert!(!storage.expire_thread(&TENANT, &tid("later")).await.unwrap());
    assert!(!storage.expire_thread(&TENANT, &tid("never")).await.unwrap());
    assert!(storage.expire_thread(&OTHER, &tid("now")).await.unwrap());
    assert!(!storage.expire_thread(&OTHER, &tid("now")).await.unwrap(), "once");
    let patch = ThreadPatch { ttl: PAST, ..ThreadPatch::default() };
    storage.update_thread(&TENANT, &tid("never"), patch).await.unwrap();
    assert_eq!(expired(storage).await, ["never"]);
    storage.copy_thread(&TENANT, &tid("later"), &tid("copy")).await.unwrap();
    assert!(storage.thread_ttl(&TENANT, &tid("copy")).await.unwrap().is_some(), "a copy is kept as long");
}

async fn a_thread_in_use_does_not_expire(lab: Lab) {
    let storage = &lab.storage;
    storage.create_thread(&TENANT, NewThread { ttl: PAST, ..thread("t") }).await.unwrap();
    let lease = start(storage, "t", 1).await.lease;
    assert!(expired(storage).await.is_empty());
    assert!(!storage.expire_thread(&TENANT, &tid("t")).await.unwrap());
    finish(storage, lease).await;
    assert_eq!(expired(storage).await, ["t"]);
    assert!(storage.expire_thread(&TENANT, &tid("t")).await.unwrap());
    assert!(find_thread(storage, "t").await.is_none());
}

async fn runs_that_make_a_thread_give_it_a_time_to_live(lab: Lab) {
    let storage = &lab.storage;
    let new = NewRun { thread_ttl: Some(Ttl::of_minutes(TtlStrategy::Delete, 1.5)), ..run("t", 1) };
    created(storage.create_run(&TENANT, new).await.unwrap());
    assert_eq!(storage.thread_ttl(&TENANT, &tid("t")).await.unwrap().unwrap().minutes(), 1.5);
    let again = NewRun { thread_ttl: PAST, ..run("t", 2) };
    created(storage.create_run(&TENANT, again).await.unwrap());
    assert_eq!(storage.thread_ttl(&TENANT, &tid("t")).await.unwrap().unwrap().minutes(), 1.5, "it was there");
}

fn payload(n: u64) -> Payload {
    let mut hash = PayloadHash::default();
    hash[..8].copy_from_slice(&n.to_be_bytes());
    Payload { hash, value: json(&format!("\"value {n}\"")) }
}

/// Three states, the last of them the head.
async fn with_states(storage: &SharedStorage, ttl: Option<Ttl>) {
    storage.create_thread(&TENANT, NewThread { ttl, ..thread("t") }).await.unwrap();
    let lease = start(storage, "t", 1).await.lease;
    let rows = StepRows {
        checkpoints: ["c1", "c2", "c3"]
            .map(|id| CheckpointRow { parent: Some("c0".into()), ..checkpoint(id, Some(lease.run_id)) })
            .into(),
        task_writes: vec![
            task_writes("c1", "a", Some(lease.run_id), "[]"),
            task_writes("c3", "b", Some(lease.run_id), "[]"),
        ],
        payloads: vec![payload(1), payload(2)],
        log: vec![log(7, 0, "[0,1]", None), log(7, 2, "[2]", None), log(8, 0, "[9]", None)],
        interrupts: vec![interrupt("q", "c3", InterruptChange::Asked)],
        effects: ["c0", "c1", "c3"].map(|at| effect(at, "task", "k", "[1]")).into(),
        executions: Vec::new(),
        usage: Vec::new(),
        head: Some("c3".into()),
    };
    let ended = step(lease, rows, end(RunStatus::Success, ThreadStatus::Idle));
    assert_eq!(commit(storage, ended).await, CommitOutcome::Committed);
}

fn kept() -> Kept {
    Kept {
        head: Some("c3".into()),
        checkpoints: vec![(String::new(), "c3".into())],
        origins: vec![(String::new(), "c0".into())],
        payloads: vec![payload(2).hash],
        branches: vec![(String::new(), "messages".into(), 7, 2)],
    }
}

async fn pruning_keeps_what_it_is_told_and_nothing_else(lab: Lab) {
    let storage = &lab.storage;
    with_states(storage, Some(Ttl { strategy: TtlStrategy::KeepLatest, micros: 0 })).await;
    assert_eq!(expired(storage).await, ["t"]);
    let before = find_thread(storage, "t").await.unwrap();
    assert_eq!(storage.prune_thread(&OTHER, &tid("t"), &kept()).await.unwrap(), Pruned::Changed, "another tenant");
    assert_eq!(storage.prune_thread(&TENANT, &tid("t"), &kept()).await.unwrap(), Pruned::Done);
    let states = storage.list_checkpoints(&TENANT, key("t"), &CheckpointFilter::default(), 10).await.unwrap();
    assert_eq!(states.iter().map(|state| state.row.id.as_str()).collect::<Vec<_>>(), ["c3"]);
    assert_eq!((states[0].writes.len(), &states[0].row.parent), (1, &None));
    let sizes = storage.thread_sizes(&TENANT, &tid("t")).await.unwrap().unwrap();
    assert_eq!((sizes.checkpoints.count, sizes.task_writes.count, sizes.payloads.count), (1, 1, 1));
    assert_eq!(
        (sizes.effects.count, sizes.interrupts.count),
        (2, 1),
        "of what is kept, and of what that was migrated from"
    );
    assert_eq!(sizes.lists.iter().map(|list| list.1.count).collect::<Vec<_>>(), [1], "two items in one row are left");
    assert!(storage.load_payloads(&TENANT, key("t"), &[payload(2).hash]).await.is_ok());
    assert_eq!(find_thread(storage, "t").await.unwrap().updated_at, before.updated_at);
    assert!(expired(storage).await.is_empty(), "not due again before it is used");
    let lease = start(storage, "t", 2).await.lease;
    finish(storage, lease).await;
    assert_eq!(expired(storage).await, ["t"]);
}

async fn pruning_a_thread_in_use_changes_nothing(lab: Lab) {
    let storage = &lab.storage;
    with_states(storage, None).await;
    let other_head = Kept { head: Some("c2".into()), ..kept() };
    assert_eq!(storage.prune_thread(&TENANT, &tid("t"), &other_head).await.unwrap(), Pruned::Changed);
    created(storage.create_run(&TENANT, run("t", 2)).await.unwrap());
    assert_eq!(storage.prune_thread(&TENANT, &tid("t"), &kept()).await.unwrap(), Pruned::Changed);
    assert_eq!(storage.prune_thread(&TENANT, &tid("none"), &kept()).await.unwrap(), Pruned::Changed);
    let states = storage.list_checkpoints(&TENANT, key("t"), &CheckpointFilter::default(), 10).await.unwrap();
    assert_eq!(states.len(), 3);
}

async fn a_change_based_on_a_pruned_state_is_refused(lab: Lab) {
    let storage = &lab.storage;
    with_states(storage, None).await;
    assert_eq!(storage.prune_thread(&TENANT, &tid("t"), &kept()).await.unwrap(), Pruned::Done);
    let change = |base: &str| StateCommit {
        thread_id: tid("t"),
        expected_head: Some("c3".into()),
        base: Some((String::new(), base.into())),
        rows: StepRows { checkpoints: vec![checkpoint("c4", None)], head: Some("c4".into()), ..StepRows::default() },
        events: vec![],
        thread_status: ThreadStatus::Idle,
        view: None,
        moves: None,
    };
    assert_eq!(storage.commit_state(&TENANT, change("c1")).await.unwrap(), StateOutcome::HeadMoved);
    assert_eq!(storage.commit_state(&TENANT, change("c3")).await.unwrap(), StateOutcome::Committed);
}

/// A thread with more rows than one step removes, and a run that is executing on it.
async fn large(storage: &SharedStorage) -> Lease {
    let lease = start(storage, "large", 1).await.lease;
    let rows = StepRows {
        checkpoints: vec![checkpoint("c1", Some(lease.run_id))],
        payloads: (0..=(STEP_ROWS as u64 * 2)).map(payload).collect(),
        head: Some("c1".into()),
        ..StepRows::default()
    };
    assert_eq!(commit(storage, step(lease, rows, None)).await, CommitOutcome::Committed);
    lease
}

async fn left(storage: &SharedStorage) -> usize {
    let hashes: Vec<PayloadHash> = (0..=(STEP_ROWS as u64 * 2)).map(|n| payload(n).hash).collect();
    storage.payload_sizes(&TENANT, key("large"), &hashes).await.unwrap().len()
}

async fn a_large_thread_is_gone_at_once_and_removed_in_steps(lab: Lab) {
    let storage = &lab.storage;
    let lease = large(storage).await;
    assert_eq!(storage.delete_thread(&TENANT, &tid("large")).await.unwrap(), Some(vec![id(1)]));
    assert!(find_thread(storage, "large").await.is_none());
    assert!(find_run(storage, "large", 1).await.is_none());
    assert!(storage.locate_run(&TENANT, id(1)).await.unwrap().is_none());
    assert_eq!(storage.delete_thread(&TENANT, &tid("large")).await.unwrap(), None);
    // What its worker still writes comes too late.
    assert_eq!(commit(storage, head_step(lease, "c2", None)).await, CommitOutcome::LeaseLost);
    let late = storage.append_events(&TENANT, &lease, &[event(1, id(1))]).await.unwrap();
    assert_eq!(late, CommitOutcome::LeaseLost);
    assert!(claim_all(storage, MINUTE).await.is_empty());
    let first = left(storage).await;
    assert_eq!(first, STEP_ROWS as usize + 1);
    assert!(!storage.reclaim(&OTHER).await.unwrap());
    assert!(storage.reclaim(&Scope::Server).await.unwrap());
    assert_eq!(left(storage).await, 1);
    while storage.reclaim(&Scope::Server).await.unwrap() {}
    assert_eq!(left(storage).await, 0);
}

async fn the_name_of_a_large_deleted_thread_is_free_again(lab: Lab) {
    let storage = &lab.storage;
    for by_run in [true, false] {
        large(storage).await;
        storage.delete_thread(&TENANT, &tid("large")).await.unwrap();
        assert!(left(storage).await > 0);
        if by_run {
            created(storage.create_run(&TENANT, run("large", 2)).await.unwrap());
        } else {
            let made = storage.create_thread(&TENANT, thread("large")).await.unwrap();
            assert!(matches!(made, ThreadCreated::New(_)));
        }
        assert_eq!(left(storage).await, 0, "by_run: {by_run}");
        assert!(find_thread(storage, "large").await.unwrap().head.is_none());
        assert!(!storage.reclaim(&Scope::Server).await.unwrap(), "nothing of the new one is removed");
        storage.delete_thread(&TENANT, &tid("large")).await.unwrap();
    }
}

async fn racers_on_the_name_of_a_deleted_thread_see_nothing_of_it(lab: Lab) {
    let storage = &lab.storage;
    for round in 0..5 {
        large(storage).await;
        let racers = (0..6_u128).map(|n| {
            let storage = storage.clone();
            tokio::spawn(async move {
                if n == 0 {
                    storage.delete_thread(&TENANT, &tid("large")).await.unwrap();
                } else {
                    created(storage.create_run(&TENANT, run("large", 100 + round * 10 + n)).await.unwrap());
                }
            })
        });
        for outcome in futures_util::future::join_all(racers).await {
            outcome.unwrap();
        }
        if let Some(found) = find_thread(storage, "large").await {
            // Made anew after the deletion: all of the old one is gone.
            assert_eq!(found.head, None, "round {round}");
            assert_eq!(left(storage).await, 0, "round {round}");
        }
        storage.delete_thread(&TENANT, &tid("large")).await.unwrap();
        while storage.reclaim(&Scope::Server).await.unwrap() {}
    }
}

async fn metadata_is_merged_into_the_head(lab: Lab) {
    let storage = &lab.storage;
    let more = json(r#"{"note":"x\u0000y"}"#);
    assert_eq!(storage.update_head_metadata(&TENANT, &tid("t"), &more).await.unwrap(), None);
    storage.create_thread(&TENANT, thread("empty")).await.unwrap();
    assert_eq!(storage.update_head_metadata(&TENANT, &tid("empty"), &more).await.unwrap(), Some(None));
    with_states(storage, None).await;
    assert_eq!(storage.update_head_metadata(&OTHER, &tid("t"), &more).await.unwrap(), None);
    assert_eq!(storage.update_head_metadata(&TENANT, &tid("t"), &more).await.unwrap(), Some(Some("c3".into())));
    let head = storage.load_checkpoint(&TENANT, key("t"), "", &Which::Latest).await.unwrap().unwrap();
    assert_eq!(head.row.metadata.get("note"), more.get("note"));
    assert_eq!(head.row.metadata.get("step").and_then(|step| step.as_i64()), Some(1));
    let other = storage.load_checkpoint(&TENANT, key("t"), "", &Which::Id("c2".into())).await.unwrap().unwrap();
    assert!(other.row.metadata.get("note").is_none());
}

async fn sizes_tell_bytes_by_kind(lab: Lab) {
    let storage = &lab.storage;
    assert!(storage.thread_sizes(&TENANT, &tid("t")).await.unwrap().is_none());
    with_states(storage, None).await;
    assert!(storage.thread_sizes(&OTHER, &tid("t")).await.unwrap().is_none());
    let sizes = storage.thread_sizes(&TENANT, &tid("t")).await.unwrap().unwrap();
    assert_eq!(sizes.payloads, Size { count: 2, bytes: 18 });
    assert_eq!(sizes.lists, [("messages".to_owned(), Size { count: 3, bytes: 11 })]);
    assert_eq!(sizes.task_writes, Size { count: 2, bytes: 4 });
    assert_eq!((sizes.checkpoints.count, sizes.events.count, sizes.runs.count), (3, 0, 1));
    assert!(sizes.checkpoints.bytes > 0 && sizes.runs.bytes > 0);
    assert_eq!(sizes.interrupts, Size { count: 1, bytes: 27 });
    assert_eq!(sizes.effects, Size { count: 3, bytes: 9 });
    let found = storage.payload_sizes(&TENANT, key("t"), &[payload(1).hash, payload(9).hash]).await.unwrap();
    assert_eq!(found, [(payload(1).hash, 9)]);
}

/// Every table with a thread's key is in the list that deletions follow.
#[test]
fn no_table_of_a_thread_is_forgotten() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
    let list = read("src/storage/retention.rs");
    let hot = read("src/storage/postgres/runs/commit.rs");
    let mut found = 0;
    for entry in std::fs::read_dir(root.join("migrations/postgres")).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        for table in text.split("CREATE TABLE ").skip(1) {
            let name = table.split_whitespace().next().unwrap();
            let columns = table.split(");").next().unwrap();
            // Those of a cron go with the thread itself, at once; a webhook that is due outlives it on purpose.
            let is_thread = ["threads", "dead_threads", "run_lookup", "crons", "webhooks"].contains(&name);
            if is_thread || !columns.lines().any(|line| line.trim_start().starts_with("thread_key ")) {
                continue;
            }
            assert!(list.contains(&format!("(\"{name}\", ")), "{name} is not in THREAD_TABLES");
            // Temporary threads belong to runs of this server: nothing from elsewhere is on them.
            let is_foreign = name.starts_with("foreign_");
            assert!(
                is_foreign || hot.contains(&format!("DELETE FROM {name} ")),
                "{name} is not removed with temporary threads"
            );
            found += 1;
        }
    }
    assert!(found >= 6);
}
