//! The execution log: written with the supersteps under the lease, read in pages, gone with the run.

use super::*;

for_each_backend!(
    executions_are_written_once_and_under_the_lease,
    the_log_is_filtered_and_paged,
    the_log_goes_with_its_run_and_its_thread,
    the_log_outlives_its_checkpoints_and_is_not_copied,
);

fn execution(started_at: i64, node: &str) -> TaskExecution {
    TaskExecution {
        started_at: Timestamp(started_at),
        ended_at: Timestamp(started_at + 5),
        ns: String::new(),
        checkpoint_id: "c0".into(),
        task_id: format!("task-{started_at}"),
        node: node.into(),
        step: 1,
        attempt: 1,
        outcome: TaskOutcome::Success,
        detail: TaskDetail::default(),
    }
}

fn with(lease: Lease, executions: Vec<TaskExecution>) -> StepCommit {
    let rows = StepRows { executions, ..StepRows::default() };
    StepCommit { input_applied: false, ..step(lease, rows, None) }
}

async fn all(storage: &SharedStorage, name: &str) -> Vec<LoggedTask> {
    storage.list_executions(&TENANT, key(name), &ExecutionFilter::default(), None, 100).await.unwrap()
}

async fn executions_are_written_once_and_under_the_lease(lab: Lab) {
    let storage = &lab.storage;
    let lease = start(storage, "t", 1).await.lease;
    let other = start(storage, "u", 2).await.lease;
    let mut usage = UsageTotals::default();
    usage.add("m", ModelUsage { total_tokens: 7, cost: Cost::from_nanos(1), ..ModelUsage::default() });
    let row = TaskExecution {
        ns: "a:1|b".into(),
        node: "no\0de".into(),
        step: -1,
        attempt: 3,
        outcome: TaskOutcome::Error,
        detail: TaskDetail {
            from: vec!["__start__".into()],
            next: vec!["b".into(), "c".into()],
            written: vec!["k\0".into()],
            error: Some(ErrorInfo { error: "Down".into(), message: "is \0 down".into() }),
            usage,
        },
        ..execution(10, "")
    };
    // With a checkpoint, a question, a call and a cost: all of a superstep at once.
    let mut whole = head_step(lease, "c1", None);
    whole.rows.interrupts = vec![interrupt("q", "c1", InterruptChange::Asked)];
    whole.rows.effects = vec![effect("c1", "task", "k", "1")];
    whole.rows.usage = vec![UsageRow { model: "m".into(), usage: ModelUsage::default(), seq: 1 }];
    whole.rows.executions = vec![row.clone(), execution(11, "b")];
    let stale = with(Lease { epoch: other.epoch + 1, ..other }, vec![execution(1, "late")]);
    for _ in 0..2 {
        // Repeated: the same rows.
        let outcomes = storage.commit_steps(&Scope::Server, &[whole.clone(), stale.clone()]).await.unwrap();
        assert_eq!(outcomes, [CommitOutcome::Committed, CommitOutcome::LeaseLost]);
    }
    let found = all(storage, "t").await;
    let expected = |execution| LoggedTask { run_id: id(1), actor: Some("tester".into()), execution };
    assert_eq!(found, [expected(execution(11, "b")), expected(row)]);
    assert!(all(storage, "u").await.is_empty());
    assert!(storage.list_executions(&OTHER, key("t"), &ExecutionFilter::default(), None, 9).await.unwrap().is_empty());
}

async fn the_log_is_filtered_and_paged(lab: Lab) {
    let storage = &lab.storage;
    let lease = start(storage, "t", 1).await.lease;
    // More than one statement of SQLite takes.
    let rows = (0..40).map(|n| TaskExecution {
        step: n / 2,
        ns: if n % 4 == 3 { "sub:1".into() } else { String::new() },
        outcome: if n % 10 == 9 { TaskOutcome::Error } else { TaskOutcome::Success },
        ..execution(100 + n, if n % 2 == 0 { "even" } else { "odd" })
    });
    commit(storage, with(lease, rows.collect())).await;
    finish(storage, lease).await;
    // Another run that started something at the same time.
    let second = start(storage, "t", 2).await.lease;
    commit(storage, with(second, vec![execution(120, "odd")])).await;
    let list = async |filter: &ExecutionFilter, after, limit| {
        let found = storage.list_executions(&TENANT, key("t"), filter, after, limit).await.unwrap();
        found.iter().map(|it| (it.execution.started_at.0 - 100, it.run_id)).collect::<Vec<_>>()
    };
    let any = ExecutionFilter::default;
    let mut pages = Vec::new();
    let mut after = None;
    loop {
        let page = list(&any(), after, 7).await;
        let Some((at, run_id)) = page.last() else { break };
        after = Some(ExecutionCursor { started_at: Timestamp(at + 100), run_id: *run_id });
        pages.extend(page);
    }
    let mut expected: Vec<_> = (0..40).map(|n| (n, id(1))).chain([(20, id(2))]).collect();
    expected.sort_by(|a, b| b.cmp(a));
    assert_eq!(pages, expected, "every row once, the latest first");
    let steps = ExecutionFilter { min_step: Some(3), max_step: Some(4), ..any() };
    assert_eq!(list(&steps, None, 9).await, [(9, id(1)), (8, id(1)), (7, id(1)), (6, id(1))]);
    let failed = ExecutionFilter { outcome: Some(TaskOutcome::Error), ..any() };
    assert_eq!(list(&failed, None, 2).await, [(39, id(1)), (29, id(1))]);
    let inner = ExecutionFilter { ns: Some("sub:1".into()), ..any() };
    assert_eq!(list(&inner, None, 2).await, [(39, id(1)), (35, id(1))]);
    let root = ExecutionFilter { ns: Some(String::new()), node: Some("odd".into()), ..any() };
    assert_eq!(list(&root, None, 2).await, [(37, id(1)), (33, id(1))]);
    let of_run = ExecutionFilter { run_id: Some(id(2)), ..any() };
    assert_eq!(list(&of_run, None, 9).await, [(20, id(2))]);
    let none = ExecutionFilter { run_id: Some(id(2)), node: Some("even".into()), ..any() };
    assert!(list(&none, None, 9).await.is_empty());
}

async fn the_log_goes_with_its_run_and_its_thread(lab: Lab) {
    let storage = &lab.storage;
    for n in 1..=3 {
        let lease = start(storage, "t", n).await.lease;
        commit(storage, with(lease, vec![execution(n as i64, "node")])).await;
        if n == 3 {
            // Rolled back.
            storage.rollback_run(&Scope::Server, &lease, ThreadStatus::Idle).await.unwrap();
        } else {
            finish(storage, lease).await;
        }
    }
    let runs = async || all(storage, "t").await.iter().map(|it| it.run_id).collect::<Vec<_>>();
    assert_eq!(runs().await, [id(2), id(1)]);
    assert_eq!(storage.delete_run(&TENANT, &tid("t"), id(1)).await.unwrap(), Some(true));
    assert_eq!(runs().await, [id(2)]);
    storage.delete_thread(&TENANT, &tid("t")).await.unwrap();
    while storage.reclaim(&Scope::Server).await.unwrap() {}
    assert!(runs().await.is_empty());
    let new_run = NewRun { temporary: true, ..claimed_run("temp", 4, MINUTE) };
    let lease = created(storage.create_run(&TENANT, new_run).await.unwrap()).1.unwrap().lease;
    commit(storage, with(lease, vec![execution(1, "node")])).await;
    let last = with(lease, vec![execution(2, "node")]);
    commit(storage, StepCommit { end: end(RunStatus::Success, ThreadStatus::Idle), ..last }).await;
    assert!(all(storage, "temp").await.is_empty());
}

async fn the_log_outlives_its_checkpoints_and_is_not_copied(lab: Lab) {
    let storage = &lab.storage;
    let lease = start(storage, "t", 1).await.lease;
    let mut first = head_step(lease, "c1", None);
    first.rows.executions = vec![execution(1, "node")];
    commit(storage, first).await;
    let mut last = head_step(lease, "c2", end(RunStatus::Success, ThreadStatus::Idle));
    last.rows.executions = vec![execution(2, "node")];
    commit(storage, last).await;
    let sizes = storage.thread_sizes(&TENANT, &tid("t")).await.unwrap().unwrap();
    assert_eq!((sizes.executions.count, sizes.executions.bytes), (2, 4));
    storage.copy_thread(&TENANT, &tid("t"), &tid("copy")).await.unwrap().unwrap();
    assert!(all(storage, "copy").await.is_empty());
    let kept = Kept { head: Some("c2".into()), checkpoints: vec![(String::new(), "c2".into())], ..Kept::default() };
    while storage.prune_thread(&TENANT, &tid("t"), &kept).await.unwrap() == Pruned::More {}
    let filter = CheckpointFilter::default();
    assert_eq!(storage.list_checkpoints(&TENANT, key("t"), &filter, 9).await.unwrap().len(), 1);
    assert_eq!(all(storage, "t").await.len(), 2);
}
