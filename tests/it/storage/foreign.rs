//! Checkpoints from elsewhere: rows that are put whole, once, or not at all.

use super::*;

for_each_backend!(
    a_batch_is_stored_and_read_back,
    repeating_a_batch_changes_nothing,
    what_does_not_fit_changes_nothing,
    threads_belong_to_one_side,
    racing_batches_of_one_thread_are_whole,
    batches_of_several_threads_stand_for_themselves,
    racing_batches_of_several_threads_are_whole,
    a_batch_alone_becomes_what_it_becomes_among_others,
    deletion_is_final,
    a_closed_thread_takes_no_checkpoint,
    pages_follow_each_other,
    runs_are_deleted_on_every_thread,
    pruning_keeps_what_is_named,
    pruning_stops_when_its_thread_goes_on,
    no_value_is_pruned_by_halves,
    a_thread_rests_at_what_its_latest_root_checkpoint_says,
    copies_are_whole_and_names_are_taken_once,
    other_tenants_see_nothing,
    damaged_rows_are_named,
);

fn row(checkpoint_id: &str, parent: Option<&str>) -> ForeignCheckpoint {
    ForeignCheckpoint {
        ns: String::new(),
        id: checkpoint_id.into(),
        parent: parent.map(str::to_owned),
        run_id: None,
        body: format!("body of {checkpoint_id}").into_bytes(),
        bytes: 7,
    }
}

fn writes(checkpoint_id: &str, task: &str, slot: &str, body: &str) -> ForeignWrites {
    ForeignWrites {
        ns: String::new(),
        checkpoint_id: checkpoint_id.into(),
        task_id: task.into(),
        slot: slot.into(),
        path: format!("path of {task}"),
        body: body.into(),
    }
}

fn raw(n: u8) -> ForeignPayload {
    ForeignPayload { hash: [n; 16], bytes: StoredBytes::Raw(vec![n; 3]) }
}

fn batch(name: &str, checkpoints: Vec<ForeignCheckpoint>) -> ForeignBatch {
    ForeignBatch {
        thread_id: tid(name),
        ttl: None,
        checkpoints,
        writes: Vec::new(),
        payloads: Vec::new(),
        parents: Vec::new(),
        latest: Vec::new(),
        references: Vec::new(),
        status: None,
    }
}

fn rests(status: ThreadStatus, on: &str) -> Option<ForeignStatus> {
    Some(ForeignStatus { status, on: on.into() })
}

async fn put(storage: &SharedStorage, batch: ForeignBatch) -> ForeignOutcome {
    storage.put_foreign(&TENANT, &batch).await.unwrap()
}

async fn stored(storage: &SharedStorage, batch: ForeignBatch) {
    assert_eq!(put(storage, batch).await, ForeignOutcome::Stored);
}

async fn load(storage: &SharedStorage, name: &str, checkpoint_id: Option<&str>) -> Option<StoredForeign> {
    storage.load_foreign(&TENANT, key(name), "", checkpoint_id).await.unwrap()
}

async fn all(storage: &SharedStorage, name: &str) -> Vec<String> {
    let rows = storage.list_foreign(&TENANT, key(name), &ForeignFilter::default(), 100).await.unwrap();
    rows.into_iter().map(|stored| format!("{}/{}", stored.row.ns, stored.row.id)).collect()
}

async fn a_batch_is_stored_and_read_back(lab: Lab) {
    let storage = &lab.storage;
    let parts = |n: u8, parts: Vec<PayloadHash>| ForeignPayload {
        hash: [n; 16],
        bytes: StoredBytes::Parts { head: b"head".to_vec(), parts, tail: "tail ".repeat(100).into_bytes() },
    };
    let (inner, list) = (parts(8, vec![[1; 16], [2; 16], [1; 16]]), parts(9, vec![[8; 16], [1; 16]]));
    let whole = ForeignBatch {
        ttl: Some(Ttl { strategy: TtlStrategy::Delete, micros: 60_000_000 }),
        writes: vec![writes("c2", "b", "ff", "first"), writes("c2", "a", "-3", "second")],
        payloads: vec![raw(1), raw(2), inner.clone(), list.clone()],
        status: rests(ThreadStatus::Interrupted, "c2"),
        ..batch("t", vec![row("c1", None), row("c2", Some("c1"))])
    };
    stored(storage, whole).await;
    let found = load(storage, "t", None).await.unwrap();
    assert_eq!(found.row, row("c2", Some("c1")));
    assert_eq!(found.writes, [writes("c2", "b", "ff", "first"), writes("c2", "a", "-3", "second")]);
    assert!(found.at.0 > 0);
    assert_eq!(load(storage, "t", Some("c1")).await.unwrap().row, row("c1", None));
    assert!(load(storage, "t", Some("c3")).await.is_none() && load(storage, "u", None).await.is_none());
    let mut payloads = storage.load_foreign_payloads(&TENANT, key("t"), &[[9; 16]]).await.unwrap();
    payloads.sort_by_key(|payload| payload.hash);
    assert_eq!(payloads, [raw(1), raw(2), inner, list], "with its parts, and theirs");
    assert!(storage.load_foreign_payloads(&TENANT, key("t"), &[[7; 16]]).await.is_err());
    let thread = find_thread(storage, "t").await.unwrap();
    assert_eq!((thread.status, thread.head), (ThreadStatus::Interrupted, None));
    assert!(storage.thread_ttl(&TENANT, &tid("t")).await.unwrap().is_some());
    assert!(storage.is_foreign(&TENANT, key("t")).await.unwrap());
    let sizes = storage.thread_sizes(&TENANT, &tid("t")).await.unwrap().unwrap();
    assert_eq!((sizes.checkpoints.count, sizes.task_writes.count, sizes.payloads.count), (2, 2, 4));
    assert_eq!((sizes.checkpoints.bytes, sizes.task_writes.bytes), (20, 11));
}

async fn repeating_a_batch_changes_nothing(lab: Lab) {
    let storage = &lab.storage;
    let first = ForeignBatch {
        writes: vec![writes("c1", "a", "ff", "kept"), writes("c1", "a", "-1", "replaced")],
        payloads: vec![raw(1), raw(1)],
        ..batch("t", vec![row("c1", None)])
    };
    stored(storage, first.clone()).await;
    let at = load(storage, "t", None).await.unwrap().at;
    let again = ForeignBatch {
        writes: vec![writes("c1", "a", "ff", "other"), writes("c1", "a", "-1", "1"), writes("c1", "a", "-1", "2")],
        payloads: vec![ForeignPayload { bytes: StoredBytes::Raw(b"other".to_vec()), ..raw(1) }],
        ..batch("t", vec![row("c1", None), row("c1", None)])
    };
    stored(storage, again).await;
    let found = load(storage, "t", None).await.unwrap();
    assert_eq!(found.at, at);
    assert_eq!(found.writes, [writes("c1", "a", "ff", "kept"), writes("c1", "a", "-1", "2")]);
    assert_eq!(storage.load_foreign_payloads(&TENANT, key("t"), &[[1; 16]]).await.unwrap(), [raw(1)]);
    let replaced = ForeignCheckpoint { body: b"new".to_vec(), ..row("c1", None) };
    stored(storage, batch("t", vec![replaced.clone()])).await;
    assert_eq!(load(storage, "t", None).await.unwrap().row, replaced);
}

async fn what_does_not_fit_changes_nothing(lab: Lab) {
    let storage = &lab.storage;
    let next = || ForeignBatch { payloads: vec![raw(5)], ..batch("t", vec![row("c2", Some("c1"))]) };
    let missing = ForeignBatch { writes: vec![writes("c1", "a", "ff", "x")], ..batch("t", Vec::new()) };
    assert_eq!(put(storage, missing).await, ForeignOutcome::ThreadMissing);
    let orphan = ForeignBatch { parents: vec![(String::new(), "c1".into())], ..next() };
    assert_eq!(put(storage, orphan.clone()).await, ForeignOutcome::ParentMissing(String::new(), "c1".into()));
    assert!(find_thread(storage, "t").await.is_none(), "not even the thread");
    stored(storage, batch("t", vec![row("c1", None)])).await;
    let unknown = ForeignBatch { references: vec![[7; 16]], ..next() };
    assert_eq!(put(storage, unknown).await, ForeignOutcome::PayloadsMissing(vec![[7; 16]]));
    let moved = ForeignBatch { latest: vec![(String::new(), None)], ..next() };
    assert_eq!(put(storage, moved).await, ForeignOutcome::LatestMoved(String::new(), Some("c1".into())));
    assert_eq!(all(storage, "t").await, ["/c1"]);
    assert!(storage.load_foreign_payloads(&TENANT, key("t"), &[[5; 16]]).await.is_err());
    let fits = ForeignBatch { latest: vec![(String::new(), Some("c1".into()))], ..orphan };
    stored(storage, fits).await;
    stored(storage, ForeignBatch { references: vec![[5; 16]], ..batch("t", vec![row("c3", None)]) }).await;
    assert_eq!(all(storage, "t").await, ["/c3", "/c2", "/c1"]);
}

async fn threads_belong_to_one_side(lab: Lab) {
    let storage = &lab.storage;
    let lease = start(storage, "native", 1).await.lease;
    commit(storage, head_step(lease, "c1", end(RunStatus::Success, ThreadStatus::Idle))).await;
    assert_eq!(put(storage, batch("native", vec![row("x", None)])).await, ForeignOutcome::ThreadNative);
    assert!(!storage.is_foreign(&TENANT, key("native")).await.unwrap());
    // A thread on which nothing has run is free.
    storage.create_thread(&TENANT, thread("t")).await.unwrap();
    let only_writes = ForeignBatch { writes: vec![writes("c1", "a", "ff", "x")], ..batch("t", Vec::new()) };
    assert_eq!(put(storage, only_writes).await, ForeignOutcome::ThreadMissing);
    stored(storage, batch("t", vec![row("c1", None)])).await;
    assert!(storage.is_foreign(&TENANT, key("t")).await.unwrap());
    assert!(matches!(storage.create_run(&TENANT, run("t", 2)).await.unwrap(), RunCreated::ThreadForeign));
    let state = StateCommit {
        thread_id: tid("t"),
        expected_head: None,
        base: None,
        rows: StepRows { checkpoints: vec![checkpoint("c9", None)], head: Some("c9".into()), ..StepRows::default() },
        events: Vec::new(),
        thread_status: ThreadStatus::Idle,
        view: None,
        moves: None,
    };
    assert_eq!(storage.commit_state(&TENANT, state).await.unwrap(), StateOutcome::ThreadForeign);
    assert!(find_run(storage, "t", 2).await.is_none());
}

async fn racing_batches_of_one_thread_are_whole(lab: Lab) {
    let writers = (0..8).map(|writer| {
        let storage = lab.storage.clone();
        tokio::spawn(async move {
            let mut stored = Vec::new();
            for step in 0..6 {
                let name = format!("{step}-{writer}");
                let latest = storage.latest_foreign(&TENANT, key("t")).await.unwrap().pop().map(|(_, id)| id);
                let next = ForeignBatch {
                    latest: vec![(String::new(), latest.clone())],
                    parents: latest.iter().map(|id| (String::new(), id.clone())).collect(),
                    writes: vec![writes(&name, "a", "ff", &name)],
                    payloads: vec![raw(writer)],
                    ..batch("t", vec![row(&name, latest.as_deref())])
                };
                match storage.put_foreign(&TENANT, &next).await.unwrap() {
                    ForeignOutcome::Stored => stored.push(format!("/{name}")),
                    ForeignOutcome::LatestMoved(..) => {}
                    other => panic!("unexpected {other:?}"),
                }
            }
            stored
        })
    });
    let outcomes = futures_util::future::join_all(writers).await;
    let mut won: Vec<String> = outcomes.into_iter().flat_map(|stored| stored.unwrap()).collect();
    assert!(!won.is_empty());
    won.sort();
    won.reverse();
    assert_eq!(all(&lab.storage, "t").await, won);
    let rows = lab.storage.list_foreign(&TENANT, key("t"), &ForeignFilter::default(), 100).await.unwrap();
    assert!(rows.iter().all(|stored| stored.writes.len() == 1), "each with its writes");
}

async fn batches_of_several_threads_stand_for_themselves(lab: Lab) {
    let storage = &lab.storage;
    stored(storage, ForeignBatch { payloads: vec![raw(1)], ..batch("old", vec![row("c1", None)]) }).await;
    stored(storage, batch("closed", vec![row("c1", None)])).await;
    let close = Close { how: ClosedAs::Ended, actor: None, reason: None, ttl: None, cancels: true };
    storage.close_thread(&TENANT, &tid("closed"), &close).await.unwrap();
    stored(storage, batch("gone", vec![row("c1", None)])).await;
    storage.delete_thread(&TENANT, &tid("gone")).await.unwrap();
    storage.create_thread(&TENANT, thread("empty")).await.unwrap();
    let after = |name: &str, id: &str| ForeignBatch {
        parents: vec![(String::new(), id.into())],
        ..batch(name, vec![row("c2", Some(id))])
    };
    let batches = [
        batch("new", vec![row("c1", None)]),
        ForeignBatch {
            references: vec![[1; 16]],
            payloads: vec![raw(1), raw(2)],
            writes: vec![writes("c1", "b", "ff", "first"), writes("c1", "a", "-3", "second")],
            status: rests(ThreadStatus::Interrupted, "c2"),
            ..after("old", "c1")
        },
        // Needs the one before it.
        after("new", "c1"),
        after("orphan", "c1"),
        batch("closed", vec![row("c2", None)]),
        batch("gone", vec![row("c3", None)]),
        batch("empty", vec![row("c1", None)]),
        ForeignBatch { references: vec![[9; 16]], ..batch("lost", vec![row("c1", None)]) },
        batch("nothing", Vec::new()),
        ForeignBatch { latest: vec![(String::new(), None)], ..batch("first", vec![row("c1", None)]) },
        // Again, and otherwise.
        ForeignBatch { payloads: vec![raw(3)], ..batch("new", vec![row("c1", None)]) },
    ];
    let outcomes = storage.put_foreign_each(&TENANT, &batches).await;
    let outcomes: Vec<ForeignOutcome> = outcomes.into_iter().map(|outcome| outcome.unwrap()).collect();
    let expected = [
        ForeignOutcome::Stored,
        ForeignOutcome::Stored,
        ForeignOutcome::Stored,
        ForeignOutcome::ParentMissing(String::new(), "c1".into()),
        ForeignOutcome::ThreadClosed,
        ForeignOutcome::Stored,
        ForeignOutcome::Stored,
        ForeignOutcome::PayloadsMissing(vec![[9; 16]]),
        ForeignOutcome::ThreadMissing,
        ForeignOutcome::Stored,
        ForeignOutcome::Stored,
    ];
    assert_eq!(outcomes, expected);
    for (name, checkpoints) in [
        ("new", &["/c2", "/c1"][..]),
        ("old", &["/c2", "/c1"]),
        ("orphan", &[]),
        ("closed", &["/c1"]),
        ("gone", &["/c3"]),
        ("empty", &["/c1"]),
        ("lost", &[]),
        ("first", &["/c1"]),
    ] {
        assert_eq!(all(storage, name).await, checkpoints, "{name}");
    }
    let old = load(storage, "old", Some("c1")).await.unwrap();
    assert_eq!(old.writes, [writes("c1", "b", "ff", "first"), writes("c1", "a", "-3", "second")], "in their order");
    assert_eq!(find_thread(storage, "old").await.unwrap().status, ThreadStatus::Interrupted);
    assert_eq!(storage.load_foreign_payloads(&TENANT, key("old"), &[[1; 16], [2; 16]]).await.unwrap().len(), 2);
    assert!(find_thread(storage, "orphan").await.is_none() && find_thread(storage, "nothing").await.is_none());
}

/// Writers with the same threads in any order: nobody waits for ever, and no batch is stored twice or in part.
async fn racing_batches_of_several_threads_are_whole(lab: Lab) {
    let writers = (0..6).map(|writer: usize| {
        let storage = lab.storage.clone();
        tokio::spawn(async move {
            for step in 0..5 {
                let mut batches: Vec<ForeignBatch> = (0..5)
                    .map(|thread| {
                        let id = format!("{step}-{writer}");
                        ForeignBatch {
                            writes: vec![writes(&id, "a", "ff", &id)],
                            payloads: vec![raw(step)],
                            ..batch(&format!("t{thread}"), vec![row(&id, None)])
                        }
                    })
                    .collect();
                batches.rotate_left((writer * 2 + usize::from(step)) % 5);
                for outcome in storage.put_foreign_each(&TENANT, &batches).await {
                    assert_eq!(outcome.unwrap(), ForeignOutcome::Stored);
                }
            }
        })
    });
    for outcome in futures_util::future::join_all(writers).await {
        outcome.unwrap();
    }
    for thread in 0..5 {
        let filter = ForeignFilter::default();
        let rows = lab.storage.list_foreign(&TENANT, key(&format!("t{thread}")), &filter, 100).await.unwrap();
        assert_eq!(rows.len(), 30);
        assert!(rows.iter().all(|stored| stored.writes.len() == 1), "each with its writes");
    }
}

/// A batch of any kind, the `step`th of its thread: what it refers to may be there or not, and it may be a repetition.
fn any_batch(name: &str, random: &mut impl FnMut(u32) -> u32, step: u32) -> ForeignBatch {
    let ns = |n: u32| if n == 0 { "child" } else { "" }.to_owned();
    let rows = (0..[0, 1, 1, 1, 2][random(5) as usize]).map(|_| {
        let (n, parent) = (random(step + 2), random(step + 2));
        ForeignCheckpoint {
            ns: ns(random(4)),
            parent: (random(3) > 0).then(|| format!("c{parent}")),
            run_id: (random(2) == 0).then(|| "run".to_owned()),
            ..row(&format!("c{n}"), None)
        }
    });
    let rows: Vec<ForeignCheckpoint> = rows.collect();
    let mut batch = batch(name, rows);
    if random(2) == 0 {
        let parents = batch.checkpoints.iter().filter_map(|row| Some((row.ns.clone(), row.parent.clone()?)));
        batch.parents = parents.collect();
    }
    for n in 0..random(3) {
        let (checkpoint, slot) = (random(step + 2), ["ff", "-1", "-3"][random(3) as usize]);
        let body = format!("{n} of {}", random(3));
        batch
            .writes
            .push(ForeignWrites { ns: ns(random(4)), ..writes(&format!("c{checkpoint}"), "task", slot, &body) });
    }
    batch.payloads = (0..random(3)).map(|_| raw(random(6) as u8)).collect();
    batch.references = (0..random(3) / 2).map(|_| [random(6) as u8; 16]).collect();
    let status = [None, Some(ThreadStatus::Idle), Some(ThreadStatus::Interrupted)][random(3) as usize];
    batch.status = status.map(|status| ForeignStatus { status, on: format!("c{}", random(step + 2)) });
    batch
}

async fn a_batch_alone_becomes_what_it_becomes_among_others(lab: Lab) {
    let storage = &lab.storage;
    let (mut stored, mut refused) = (0, 0);
    for seed in 0..25_u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut random = move |below: u32| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u32 % below
        };
        let (alone, among) = (format!("alone{seed}"), format!("among{seed}"));
        for step in 0..12 {
            let one = any_batch(&alone, &mut random, step);
            let other = batch(&format!("other{seed}-{step}"), vec![row("c1", None)]);
            let outcome = put(storage, one.clone()).await;
            let batches = [other, ForeignBatch { thread_id: tid(&among), ..one.clone() }];
            let outcomes = storage.put_foreign_each(&TENANT, &batches).await;
            let [filler, same] = <[_; 2]>::try_from(outcomes).unwrap();
            assert_eq!(filler.unwrap(), ForeignOutcome::Stored);
            assert_eq!(same.unwrap(), outcome, "seed {seed}, step {step}: {one:?}");
            *if outcome == ForeignOutcome::Stored { &mut stored } else { &mut refused } += 1;
        }
        let whole = async |name: &str| {
            let rows = storage.list_foreign(&TENANT, key(name), &ForeignFilter::default(), 100).await.unwrap();
            let rows: Vec<_> = rows.into_iter().map(|stored| (stored.row, stored.writes)).collect();
            let thread = find_thread(storage, name).await.map(|thread| thread.status);
            let mut payloads = Vec::new();
            for n in 0..6 {
                payloads.push(storage.load_foreign_payloads(&TENANT, key(name), &[[n; 16]]).await.is_ok());
            }
            (rows, thread, payloads)
        };
        assert_eq!(whole(&alone).await, whole(&among).await, "seed {seed}");
    }
    assert!(stored > 50 && refused > 50, "{stored} stored, {refused} refused");
}

async fn deletion_is_final(lab: Lab) {
    let storage = &lab.storage;
    // More than goes at once.
    let rows = (0..STEP_ROWS + 10).map(|n| row(&format!("c{n:05}"), None)).chain([row("c1", None)]).collect();
    stored(storage, ForeignBatch { payloads: vec![raw(1)], ..batch("t", rows) }).await;
    assert!(storage.delete_thread(&TENANT, &tid("t")).await.unwrap().is_some());
    assert!(load(storage, "t", None).await.is_none() && all(storage, "t").await.is_empty());
    assert!(storage.latest_foreign(&TENANT, key("t")).await.unwrap().is_empty());
    let late = ForeignBatch { writes: vec![writes("c1", "a", "ff", "x")], ..batch("t", Vec::new()) };
    assert_eq!(put(storage, late).await, ForeignOutcome::ThreadMissing);
    let late = ForeignBatch { parents: vec![(String::new(), "c1".into())], ..batch("t", vec![row("c2", Some("c1"))]) };
    assert_eq!(put(storage, late).await, ForeignOutcome::ParentMissing(String::new(), "c1".into()));
    let late = ForeignBatch { references: vec![[1; 16]], ..batch("t", vec![row("c2", None)]) };
    assert_eq!(put(storage, late).await, ForeignOutcome::PayloadsMissing(vec![[1; 16]]));
    assert!(find_thread(storage, "t").await.is_none());
    // A new beginning has nothing of the old one.
    stored(storage, batch("t", vec![row("c3", None)])).await;
    assert_eq!(all(storage, "t").await, ["/c3"]);
}

async fn a_closed_thread_takes_no_checkpoint(lab: Lab) {
    let storage = &lab.storage;
    stored(storage, batch("t", vec![row("c1", None)])).await;
    let close = Close { how: ClosedAs::Ended, actor: None, reason: None, ttl: None, cancels: true };
    assert!(matches!(storage.close_thread(&TENANT, &tid("t"), &close).await.unwrap(), CloseOutcome::Closed { .. }));
    assert_eq!(put(storage, batch("t", vec![row("c2", None)])).await, ForeignOutcome::ThreadClosed);
    assert_eq!(all(storage, "t").await, ["/c1"]);
    storage.reopen_thread(&TENANT, &tid("t")).await.unwrap();
    stored(storage, batch("t", vec![row("c2", None)])).await;
}

async fn pages_follow_each_other(lab: Lab) {
    let storage = &lab.storage;
    let inner = |id: &str| ForeignCheckpoint { ns: "inner".into(), ..row(id, None) };
    stored(storage, batch("t", vec![row("c1", None), row("c2", None), inner("c1"), inner("c3")])).await;
    assert_eq!(all(storage, "t").await, ["/c2", "/c1", "inner/c3", "inner/c1"]);
    let list = async |filter: ForeignFilter, limit| -> Vec<String> {
        let rows = storage.list_foreign(&TENANT, key("t"), &filter, limit).await.unwrap();
        rows.into_iter().map(|stored| format!("{}/{}", stored.row.ns, stored.row.id)).collect()
    };
    let after = ForeignFilter { after: Some((String::new(), "c2".into())), ..ForeignFilter::default() };
    assert_eq!(list(after, 2).await, ["/c1", "inner/c3"]);
    let before = ForeignFilter { before: Some("c2".into()), ..ForeignFilter::default() };
    assert_eq!(list(before, 9).await, ["/c1", "inner/c1"]);
    let one = ForeignFilter { ns: Some("inner".into()), id: Some("c3".into()), ..ForeignFilter::default() };
    assert_eq!(list(one, 9).await, ["inner/c3"]);
    let latest = storage.latest_foreign(&TENANT, key("t")).await.unwrap();
    assert_eq!(latest, [(String::new(), "c2".to_owned()), ("inner".to_owned(), "c3".to_owned())]);
}

async fn runs_are_deleted_on_every_thread(lab: Lab) {
    let storage = &lab.storage;
    let of = |id: &str, run: &str| ForeignCheckpoint { run_id: Some(run.into()), ..row(id, None) };
    for name in ["t", "u"] {
        let writes = vec![writes("c1", "a", "ff", "x"), writes("c2", "a", "ff", "y")];
        stored(storage, ForeignBatch { writes, ..batch(name, vec![of("c1", "r1"), of("c2", "r2")]) }).await;
    }
    let (count, mut threads) = storage.delete_foreign_runs(&TENANT, &["r1".into(), "r9".into()], 10).await.unwrap();
    threads.sort();
    assert_eq!((count, threads), (2, vec![tid("t"), tid("u")]));
    assert_eq!(all(storage, "t").await, ["/c2"]);
    let sizes = storage.thread_sizes(&TENANT, &tid("u")).await.unwrap().unwrap();
    assert_eq!(sizes.task_writes.count, 1, "with the writes on them");
    assert_eq!(storage.delete_foreign_runs(&OTHER, &["r2".into()], 10).await.unwrap().0, 0);
    assert_eq!(storage.delete_foreign_runs(&TENANT, &["r2".into()], 1).await.unwrap().0, 1, "a bounded step");
}

/// The latest checkpoint alone, and these payloads.
async fn kept_of(storage: &SharedStorage, name: &str, latest: &str, payloads: Vec<PayloadHash>) -> ForeignKept {
    let found = load(storage, name, Some(latest)).await.unwrap();
    ForeignKept {
        latest: vec![(String::new(), latest.into())],
        checkpoints: Some(vec![(String::new(), latest.into())]),
        payloads,
        prints: [found.print()].into(),
    }
}

async fn pruning_keeps_what_is_named(lab: Lab) {
    let storage = &lab.storage;
    let whole = ForeignBatch {
        writes: vec![writes("c1", "a", "ff", "x"), writes("c2", "a", "ff", "y")],
        payloads: vec![raw(1), raw(2)],
        ..batch("t", vec![row("c1", None), row("c2", Some("c1"))])
    };
    stored(storage, whole).await;
    let kept = kept_of(storage, "t", "c2", vec![[2; 16]]).await;
    let stale = ForeignKept { latest: vec![(String::new(), "c1".into())], ..kept.clone() };
    assert_eq!(storage.prune_foreign(&TENANT, &tid("t"), &stale).await.unwrap(), Pruned::Changed);
    assert_eq!(storage.prune_foreign(&TENANT, &tid("t"), &kept).await.unwrap(), Pruned::Done);
    let found = load(storage, "t", None).await.unwrap();
    assert_eq!((found.row.parent.clone(), found.writes.len()), (None, 1));
    assert_eq!(all(storage, "t").await, ["/c2"]);
    assert!(storage.load_foreign_payloads(&TENANT, key("t"), &[[1; 16]]).await.is_err());
    assert_eq!(storage.load_foreign_payloads(&TENANT, key("t"), &[[2; 16]]).await.unwrap(), [raw(2)]);
    let nothing = ForeignKept::default();
    storage.create_thread(&TENANT, thread("empty")).await.unwrap();
    for other in ["nowhere", "empty"] {
        assert_eq!(storage.prune_foreign(&TENANT, &tid(other), &nothing).await.unwrap(), Pruned::Changed);
    }
}

/// What was decided to be kept is looked at again before anything goes.
async fn pruning_stops_when_its_thread_goes_on(lab: Lab) {
    let storage = &lab.storage;
    let prune = async |kept: &ForeignKept| storage.prune_foreign(&TENANT, &tid("t"), kept).await.unwrap();
    let first = ForeignBatch { payloads: vec![raw(1)], ..batch("t", vec![row("c1", None), row("c2", Some("c1"))]) };
    stored(storage, first).await;
    let kept = kept_of(storage, "t", "c2", Vec::new()).await;
    let everything = ForeignKept {
        checkpoints: None,
        prints: [
            load(storage, "t", Some("c1")).await.unwrap().print(),
            load(storage, "t", None).await.unwrap().print(),
        ]
        .into(),
        ..kept.clone()
    };
    // A task writes on what is kept.
    let writing = ForeignBatch {
        writes: vec![writes("c2", "a", "ff", "refers to 2")],
        payloads: vec![raw(2)],
        ..batch("t", Vec::new())
    };
    stored(storage, writing).await;
    assert_eq!((prune(&kept).await, prune(&everything).await), (Pruned::Changed, Pruned::Changed));
    // The checkpoint is put again, otherwise.
    let kept = kept_of(storage, "t", "c2", vec![[2; 16]]).await;
    let other = ForeignCheckpoint { body: b"refers to 1".to_vec(), ..row("c2", Some("c1")) };
    stored(storage, batch("t", vec![other])).await;
    assert_eq!(prune(&kept).await, Pruned::Changed);
    // A task wrote on a checkpoint that has yet to come; or that never came, when there is a later one.
    let early = ForeignBatch { writes: vec![writes("c3", "a", "ff", "early")], ..batch("t", Vec::new()) };
    stored(storage, early).await;
    let kept = kept_of(storage, "t", "c2", vec![[1; 16], [2; 16]]).await;
    assert_eq!(prune(&kept).await, Pruned::Changed);
    stored(storage, batch("t", vec![row("c4", None)])).await;
    let kept = kept_of(storage, "t", "c4", Vec::new()).await;
    assert_eq!(prune(&kept).await, Pruned::Done);
    assert_eq!(all(storage, "t").await, ["/c4"]);
    let sizes = storage.thread_sizes(&TENANT, &tid("t")).await.unwrap().unwrap();
    assert_eq!((sizes.task_writes.count, sizes.payloads.count), (0, 0));
    // Of a thread that keeps all its checkpoints only what nothing refers to goes.
    let more = ForeignBatch { payloads: vec![raw(3), raw(4)], ..batch("t", vec![row("c5", Some("c4"))]) };
    stored(storage, more).await;
    let everything = ForeignKept {
        latest: vec![(String::new(), "c5".into())],
        checkpoints: None,
        payloads: vec![[3; 16]],
        prints: [
            load(storage, "t", Some("c4")).await.unwrap().print(),
            load(storage, "t", None).await.unwrap().print(),
        ]
        .into(),
    };
    assert_eq!(prune(&everything).await, Pruned::Done);
    assert_eq!(all(storage, "t").await, ["/c5", "/c4"]);
    assert!(storage.load_foreign_payloads(&TENANT, key("t"), &[[3; 16]]).await.is_ok());
    assert!(storage.load_foreign_payloads(&TENANT, key("t"), &[[4; 16]]).await.is_err());
}

/// Between the steps of pruning, too, what a thread has of a value is all of it.
async fn no_value_is_pruned_by_halves(lab: Lab) {
    let storage = &lab.storage;
    let hash = |n: u32| -> PayloadHash { u128::from(n).to_be_bytes() };
    let pieces: Vec<PayloadHash> = (0..2_500).map(hash).collect();
    let mut payloads: Vec<ForeignPayload> =
        pieces.iter().map(|hash| ForeignPayload { hash: *hash, bytes: StoredBytes::Raw(hash.to_vec()) }).collect();
    // The names of values sort after those of their pieces, and of another before.
    for (name, parts) in [([0xff; 16], &pieces[..1_500]), ([0xfe; 16], &pieces[1_000..])] {
        let bytes = StoredBytes::Parts { head: Vec::new(), parts: parts.to_vec(), tail: Vec::new() };
        payloads.push(ForeignPayload { hash: name, bytes });
    }
    let of_values = ForeignPayload {
        hash: [0; 16],
        bytes: StoredBytes::Parts { head: Vec::new(), parts: vec![[0xff; 16], [0xfe; 16]], tail: Vec::new() },
    };
    payloads.retain(|payload| payload.hash != [0; 16]);
    payloads.push(of_values);
    stored(storage, ForeignBatch { payloads, ..batch("t", vec![row("c1", None), row("c2", None)]) }).await;
    let kept = kept_of(storage, "t", "c2", Vec::new()).await;
    let mut steps = 0;
    loop {
        let outcome = storage.prune_foreign(&TENANT, &tid("t"), &kept).await.unwrap();
        for name in [[0; 16], [0xff; 16], [0xfe; 16]] {
            let refers = ForeignBatch { references: vec![name], ..batch("t", Vec::new()) };
            assert_eq!(put(storage, refers).await, ForeignOutcome::PayloadsMissing(vec![name]));
        }
        steps += 1;
        if outcome == Pruned::Done {
            break;
        }
        assert_eq!(outcome, Pruned::More);
    }
    assert_eq!(steps, 2);
}

async fn a_thread_rests_at_what_its_latest_root_checkpoint_says(lab: Lab) {
    let storage = &lab.storage;
    use ThreadStatus::{Error, Idle, Interrupted};
    let writes_on = |name: &str, on: &str, slot: &str, status| ForeignBatch {
        writes: vec![writes(on, "a", slot, slot)],
        status: rests(status, on),
        ..batch(name, Vec::new())
    };
    let puts = |name: &str, id: &str| ForeignBatch { status: rests(Idle, id), ..batch(name, vec![row(id, None)]) };
    for (name, is_alone) in [("alone", true), ("among", false)] {
        let steps = [
            (puts(name, "c1"), Idle),
            (writes_on(name, "c1", INTERRUPT_SLOT, Interrupted), Interrupted),
            // Resumed; then the writes on the next come before it.
            (puts(name, "c2"), Idle),
            (writes_on(name, "c3", INTERRUPT_SLOT, Interrupted), Interrupted),
            (puts(name, "c3"), Interrupted),
            // Late ones change nothing.
            (puts(name, "c4"), Idle),
            (writes_on(name, "c3", ERROR_SLOT, Error), Idle),
            (writes_on(name, "c5", ERROR_SLOT, Error), Error),
            (ForeignBatch { status: None, ..puts(name, "c4a") }, Error),
            (puts(name, "c5"), Error),
            // Put again, it is looked at by itself.
            (puts(name, "c5"), Error),
            (puts(name, "c6"), Idle),
        ];
        for (step, (one, expected)) in steps.into_iter().enumerate() {
            if is_alone {
                stored(storage, one).await;
            } else {
                let other = batch(&format!("other{step}"), vec![row("c1", None)]);
                for outcome in storage.put_foreign_each(&TENANT, &[other, one]).await {
                    assert_eq!(outcome.unwrap(), ForeignOutcome::Stored);
                }
            }
            let status = find_thread(storage, name).await.unwrap().status;
            assert_eq!(status, expected, "{name}, step {step}");
        }
    }
}

async fn copies_are_whole_and_names_are_taken_once(lab: Lab) {
    let storage = &lab.storage;
    let whole = ForeignBatch {
        writes: vec![writes("c1", "a", "ff", "x")],
        payloads: vec![raw(1)],
        ..batch("t", vec![row("c1", None)])
    };
    stored(storage, whole).await;
    let copy = async |from: &str, to: &str| storage.copy_foreign(&TENANT, &tid(from), &tid(to)).await.unwrap();
    assert_eq!(copy("t", "u").await, ForeignCopied::Copied);
    assert_eq!(copy("t", "u").await, ForeignCopied::Taken);
    assert_eq!(copy("nowhere", "v").await, ForeignCopied::Missing);
    storage.create_thread(&TENANT, thread("empty")).await.unwrap();
    assert_eq!(copy("empty", "v").await, ForeignCopied::Missing);
    storage.delete_thread(&TENANT, &tid("t")).await.unwrap();
    let (copied, payloads) = (load(storage, "u", None).await.unwrap(), &[[1; 16]]);
    assert_eq!((copied.row, copied.writes), (row("c1", None), vec![writes("c1", "a", "ff", "x")]));
    assert_eq!(storage.load_foreign_payloads(&TENANT, key("u"), payloads).await.unwrap(), [raw(1)]);
    assert!(storage.is_foreign(&TENANT, key("u")).await.unwrap());
}

async fn other_tenants_see_nothing(lab: Lab) {
    let storage = &lab.storage;
    stored(storage, ForeignBatch { payloads: vec![raw(1)], ..batch("t", vec![row("c1", None)]) }).await;
    assert!(storage.load_foreign(&OTHER, key("t"), "", None).await.unwrap().is_none());
    assert!(storage.list_foreign(&OTHER, key("t"), &ForeignFilter::default(), 9).await.unwrap().is_empty());
    assert!(storage.latest_foreign(&OTHER, key("t")).await.unwrap().is_empty());
    assert!(storage.load_foreign_payloads(&OTHER, key("t"), &[[1; 16]]).await.is_err());
    assert!(!storage.is_foreign(&OTHER, key("t")).await.unwrap());
    assert_eq!(storage.copy_foreign(&OTHER, &tid("t"), &tid("u")).await.unwrap(), ForeignCopied::Missing);
    // A thread of the same name is another one.
    assert_eq!(storage.put_foreign(&OTHER, &batch("t", vec![row("x", None)])).await.unwrap(), ForeignOutcome::Stored);
    assert_eq!(all(storage, "t").await, ["/c1"]);
}

async fn damaged_rows_are_named(lab: Lab) {
    if lab.is_memory() {
        return;
    }
    let storage = &lab.storage;
    stored(storage, ForeignBatch { payloads: vec![raw(1)], ..batch("t", vec![row("c1", None)]) }).await;
    lab.tamper("UPDATE foreign_checkpoints SET codec = 9; UPDATE payloads SET codec = 9").await;
    for error in [
        storage.load_foreign(&TENANT, key("t"), "", None).await.unwrap_err(),
        storage.load_foreign_payloads(&TENANT, key("t"), &[[1; 16]]).await.unwrap_err(),
    ] {
        assert!(matches!(error, StorageError::Corrupt { .. }) && error.to_string().contains("codec 9"), "{error}");
    }
}
