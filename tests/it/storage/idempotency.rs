//! Idempotency keys: in the transaction of whatever operation they stand for.

use std::sync::Arc;

use session_store::storage::idempotency::{Keyed, leads_to, part, under};

use super::*;

for_each_backend_and_pgbouncer!(
    a_key_is_committed_with_the_operation_or_not_at_all,
    a_used_key_undoes_the_operation,
    every_kind_of_write_takes_the_key,
    twenty_racers_with_one_key_have_one_effect,
    parts_of_a_request_have_keys_of_their_own,
    keys_expire_by_the_database_clock_and_are_purged,
);

fn key_of(name: &str) -> IdempotencyKey {
    IdempotencyKey { tenant: DEFAULT, operation: "POST /x".into(), key: name.into(), fingerprint: [7; 32] }
}

fn keyed(name: &str) -> Arc<Keyed> {
    Keyed::new(key_of(name))
}

async fn row(storage: &SharedStorage, name: &str) -> Option<KeyRow> {
    storage.find_key(&TENANT, "POST /x", name).await.unwrap()
}

async fn a_key_is_committed_with_the_operation_or_not_at_all(lab: Lab) {
    let storage = &lab.storage;
    let key = keyed("k");
    let before = storage.write_transactions();
    let work = async {
        leads_to(|| "/threads/t".into());
        storage.find_thread(&TENANT, &tid("t")).await.unwrap();
        storage.create_thread(&TENANT, thread("t")).await.unwrap()
    };
    assert!(matches!(under(key.clone(), work).await, ThreadCreated::New(_)));
    assert!(key.is_used());
    assert_eq!(storage.write_transactions() - before, 1, "one transaction holds both");
    let wanted = KeyRow { fingerprint: [7; 32], location: Some("/threads/t".into()), answer: None };
    assert_eq!(row(storage, "k").await, Some(wanted));
    assert_eq!(storage.find_key(&OTHER, "POST /x", "k").await.unwrap(), None);
    assert_eq!(storage.find_key(&TENANT, "POST /y", "k").await.unwrap(), None);

    // The run's id is taken: nothing is committed, the key neither.
    created(storage.create_run(&TENANT, run("t", 1)).await.unwrap());
    let refused = keyed("refused");
    let outcome = under(refused.clone(), storage.create_run(&TENANT, run("t", 1))).await.unwrap();
    assert!(matches!(outcome, RunCreated::RunExists));
    assert!(!refused.is_used());
    assert_eq!(row(storage, "refused").await, None);

    storage.answer_key(&TENANT, &key_of("k"), 200, b"{}".to_vec()).await.unwrap();
    let answered = row(storage, "k").await.unwrap();
    assert_eq!((answered.answer, answered.location.as_deref()), (Some((200, b"{}".to_vec())), Some("/threads/t")));
    storage.forget_key(&TENANT, "POST /x", "k").await.unwrap();
    assert_eq!(row(storage, "k").await, None);
}

async fn a_used_key_undoes_the_operation(lab: Lab) {
    let storage = &lab.storage;
    under(keyed("k"), storage.create_thread(&TENANT, thread("a"))).await.unwrap();
    let again = under(keyed("k"), storage.create_thread(&TENANT, thread("b"))).await;
    assert!(matches!(again, Err(StorageError::KeyUsed)), "{again:?}");
    assert!(find_thread(storage, "b").await.is_none());
    let run = under(keyed("k"), storage.create_run(&TENANT, run("c", 1))).await;
    assert!(matches!(run, Err(StorageError::KeyUsed)), "{run:?}");
    assert!(find_thread(storage, "c").await.is_none() && find_run(storage, "c", 1).await.is_none());
}

async fn every_kind_of_write_takes_the_key(lab: Lab) {
    let storage = &lab.storage;
    storage.create_thread(&TENANT, thread("t")).await.unwrap();
    let start = start(storage, "u", 1).await;
    let used = async |name: &str, work: std::pin::Pin<Box<dyn Future<Output = ()> + Send + '_>>| {
        let key = keyed(name);
        under(key.clone(), work).await;
        assert!(key.is_used() && row(storage, name).await.is_some(), "{name}");
    };
    used("copy", Box::pin(async { drop(storage.copy_thread(&TENANT, &tid("t"), &tid("v")).await.unwrap()) })).await;
    used(
        "state",
        Box::pin(async {
            let change = StateCommit {
                thread_id: tid("t"),
                base: None,
                expected_head: None,
                rows: StepRows::default(),
                events: Vec::new(),
                thread_status: ThreadStatus::Idle,
                view: None,
                moves: None,
            };
            assert_eq!(storage.commit_state(&TENANT, change).await.unwrap(), StateOutcome::Committed);
        }),
    )
    .await;
    used(
        "cancel",
        Box::pin(async {
            let target = CancelTarget::Runs { thread_id: tid("u"), run_ids: vec![start.run.run_id] };
            let request = CancelRequest { action: CancelAction::Interrupt, actor: None, reason: None };
            assert_eq!(storage.cancel_runs(&TENANT, &target, &request).await.unwrap().len(), 1);
        }),
    )
    .await;
    used("run", Box::pin(async { drop(storage.create_run(&TENANT, run("w", 2)).await.unwrap()) })).await;
}

async fn twenty_racers_with_one_key_have_one_effect(lab: Lab) {
    let storage = &lab.storage;
    let racers = (0..20_u128).map(|n| {
        let storage = storage.clone();
        tokio::spawn(async move {
            let work = async {
                leads_to(|| format!("/threads/t/runs/{}", id(n + 1)));
                storage.create_run(&TENANT, claimed_run("t", n + 1, MINUTE)).await
            };
            under(keyed("k"), work).await
        })
    });
    let outcomes: Vec<_> = futures_util::future::join_all(racers).await.into_iter().map(|done| done.unwrap()).collect();
    let created: Vec<Uuid> = outcomes
        .iter()
        .filter_map(|outcome| match outcome {
            Ok(RunCreated::Created { run, .. }) => Some(run.run_id),
            Err(StorageError::KeyUsed) => None,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(created.len(), 1);
    let location = row(storage, "k").await.unwrap().location;
    assert_eq!(location, Some(format!("/threads/t/runs/{}", created[0])), "the key leads to the run there is");
    assert_eq!(storage.count_active(&TENANT).await.unwrap(), (0, 1));
}

async fn parts_of_a_request_have_keys_of_their_own(lab: Lab) {
    let storage = &lab.storage;
    let whole = keyed("k");
    let work = async {
        for n in 1..=3 {
            part(n, storage.create_run(&TENANT, run("t", n as u128))).await.unwrap();
        }
    };
    under(whole.clone(), work).await;
    assert!(whole.is_used());
    assert_eq!(row(storage, "k").await, None, "only the parts have rows");
    let again = under(keyed("k"), part(2, storage.create_run(&TENANT, run("t", 9)))).await;
    assert!(matches!(again, Err(StorageError::KeyUsed)));
    storage.answer_key(&TENANT, &key_of("k"), 200, b"[]".to_vec()).await.unwrap();
    assert_eq!(row(storage, "k").await.unwrap().answer, Some((200, b"[]".to_vec())));
}

async fn keys_expire_by_the_database_clock_and_are_purged(lab: Lab) {
    let storage = &lab.storage;
    under(keyed("k"), storage.create_thread(&TENANT, thread("a"))).await.unwrap();
    assert_eq!(storage.purge_keys(&Scope::Server, 10).await.unwrap(), 0, "a day has not passed");
    if lab.is_memory() {
        return;
    }
    lab.tamper("UPDATE idempotency_keys SET expires_at = 1").await;
    assert_eq!(row(storage, "k").await, None);
    under(keyed("k"), storage.create_thread(&TENANT, thread("b"))).await.unwrap();
    assert!(find_thread(storage, "b").await.is_some() && row(storage, "k").await.is_some(), "it may be used anew");
    lab.tamper("UPDATE idempotency_keys SET expires_at = 1").await;
    assert_eq!(storage.purge_keys(&Scope::Server, 10).await.unwrap(), 1);
    assert_eq!(storage.purge_keys(&Scope::Server, 10).await.unwrap(), 0);
}
