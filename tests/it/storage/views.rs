//! The view of a thread: what its document shows when that is not its head.

use super::*;

for_each_backend!(
    the_end_of_a_run_sets_or_clears_the_view,
    a_step_in_mid_run_leaves_the_view_alone,
    a_state_change_sets_or_clears_the_view,
    a_run_taken_back_clears_the_view,
    a_quarantined_run_clears_the_view,
    a_copy_shows_no_values_until_something_runs_on_it,
    a_view_comes_back_byte_for_byte_from_everywhere,
);

const VIEW: &str = r#"{"values":{"a":1},"interrupts":{}}"#;

fn end_with(view: Option<&str>) -> Option<RunEnd> {
    let ended = end(RunStatus::Interrupted, ThreadStatus::Idle).unwrap();
    Some(RunEnd { view: view.map(json), ..ended })
}

async fn view_of(storage: &SharedStorage, name: &str) -> Option<String> {
    find_thread(storage, name).await.unwrap().view.map(|view| view.text())
}

/// Runs on the thread once, so that it shows the view.
async fn show(storage: &SharedStorage, name: &str, n: u128, view: Option<&str>) {
    let lease = start(storage, name, n).await.lease;
    let last = head_step(lease, &format!("c{n}"), end_with(view));
    assert_eq!(commit(storage, last).await, CommitOutcome::Committed);
    assert_eq!(view_of(storage, name).await.as_deref(), view);
}

async fn the_end_of_a_run_sets_or_clears_the_view(lab: Lab) {
    let storage = &lab.storage;
    storage.create_thread(&TENANT, thread("t")).await.unwrap();
    assert_eq!(view_of(storage, "t").await, None);
    show(storage, "t", 1, Some(VIEW)).await;
    show(storage, "t", 2, Some(r#"{"values":null,"interrupts":{}}"#)).await;
    show(storage, "t", 3, None).await;
    // Each member of a batch has its own; who lost the lease has none.
    let mut batch = Vec::new();
    for (n, view) in [(11, Some("[1]")), (12, None), (13, Some("[3]")), (14, Some("[4]"))] {
        let lease = start(storage, &format!("t{n}"), n).await.lease;
        let lease = Lease { epoch: if n == 13 { 7 } else { lease.epoch }, ..lease };
        batch.push(step(lease, StepRows::default(), end_with(view)));
    }
    storage.commit_steps(&Scope::Server, &batch).await.unwrap();
    let mut shown = Vec::new();
    for n in 11..=14 {
        shown.push(view_of(storage, &format!("t{n}")).await);
    }
    assert_eq!(shown, [Some("[1]".to_owned()), None, None, Some("[4]".to_owned())]);
}

async fn a_step_in_mid_run_leaves_the_view_alone(lab: Lab) {
    let storage = &lab.storage;
    show(storage, "t", 1, Some(VIEW)).await;
    let lease = start(storage, "t", 2).await.lease;
    let mut mid = head_step(lease, "c2", None);
    mid.events = vec![event(1, id(2))];
    assert_eq!(commit(storage, mid).await, CommitOutcome::Committed);
    assert_eq!(storage.append_events(&TENANT, &lease, &[event(2, id(2))]).await.unwrap(), CommitOutcome::Committed);
    assert!(storage.release_run(&TENANT, &lease).await.unwrap());
    // Beside one that ends.
    let lease = claim_all(storage, MINUTE).await.remove(0).lease;
    let other = start(storage, "u", 3).await.lease;
    let batch = [head_step(lease, "c3", None), head_step(other, "c3", end_with(Some("[1]")))];
    assert_eq!(storage.commit_steps(&TENANT, &batch).await.unwrap(), [CommitOutcome::Committed; 2]);
    assert_eq!(view_of(storage, "t").await.as_deref(), Some(VIEW));
    assert_eq!(find_thread(storage, "t").await.unwrap().head.as_deref(), Some("c3"));
    let target = CancelTarget::Runs { thread_id: tid("t"), run_ids: vec![id(2)] };
    let request = CancelRequest { action: CancelAction::Interrupt, actor: None, reason: None };
    storage.cancel_runs(&TENANT, &target, &request).await.unwrap();
    assert_eq!(view_of(storage, "t").await.as_deref(), Some(VIEW));
    finish(storage, lease).await;
    assert_eq!(view_of(storage, "t").await, None);
}

async fn a_state_change_sets_or_clears_the_view(lab: Lab) {
    let storage = &lab.storage;
    show(storage, "t", 1, None).await;
    let put = async |from: &str, to: &str, view: Option<&str>| {
        let rows = StepRows { checkpoints: vec![checkpoint(to, None)], head: Some(to.into()), ..StepRows::default() };
        let expected_head = Some(from.to_owned());
        let thread_status = ThreadStatus::Idle;
        let change = StateCommit {
            thread_id: tid("t"),
            expected_head,
            base: None,
            rows,
            events: vec![],
            thread_status,
            view: view.map(json),
            moves: None,
        };
        storage.commit_state(&TENANT, change).await.unwrap()
    };
    assert_eq!(put("c1", "c2", Some(VIEW)).await, StateOutcome::Committed);
    assert_eq!(view_of(storage, "t").await.as_deref(), Some(VIEW));
    assert_eq!(put("c1", "c3", None).await, StateOutcome::HeadMoved);
    assert_eq!(view_of(storage, "t").await.as_deref(), Some(VIEW), "nothing happened");
    assert_eq!(put("c2", "c3", None).await, StateOutcome::Committed);
    assert_eq!(view_of(storage, "t").await, None);
}

async fn a_run_taken_back_clears_the_view(lab: Lab) {
    let storage = &lab.storage;
    // Whether or not the run wrote a checkpoint.
    for (name, n, writes) in [("t", 1, true), ("u", 10, false)] {
        show(storage, name, n, Some(VIEW)).await;
        let lease = start(storage, name, n + 1).await.lease;
        if writes {
            commit(storage, head_step(lease, "c9", None)).await;
        }
        let outcome = storage.rollback_run(&TENANT, &lease, ThreadStatus::Idle).await.unwrap();
        assert_eq!(outcome, CommitOutcome::Committed);
        assert_eq!(view_of(storage, name).await, None);
        show(storage, name, n + 2, Some(VIEW)).await;
        let outcome = storage.rollback_run(&TENANT, &lease, ThreadStatus::Idle).await.unwrap();
        assert_eq!((outcome, view_of(storage, name).await.as_deref()), (CommitOutcome::LeaseLost, Some(VIEW)));
    }
    for run_id in [id(3), id(1)] {
        assert_eq!(storage.delete_run(&TENANT, &tid("t"), run_id).await.unwrap(), Some(true));
        assert_eq!(view_of(storage, "t").await, None);
        show(storage, "t", run_id.as_u128() + 20, Some(VIEW)).await;
    }
    assert_eq!(storage.delete_run(&TENANT, &tid("t"), id(99)).await.unwrap(), None);
    let lease = start(storage, "t", 40).await.lease;
    assert_eq!(storage.delete_run(&TENANT, &tid("t"), lease.run_id).await.unwrap(), Some(false));
    assert_eq!(view_of(storage, "t").await.as_deref(), Some(VIEW), "nothing happened");
}

async fn a_quarantined_run_clears_the_view(lab: Lab) {
    let storage = &lab.storage;
    show(storage, "t", 1, Some(VIEW)).await;
    start_for(storage, "t", 2, Duration::ZERO).await;
    for _ in 0..3 {
        assert_eq!(view_of(storage, "t").await.as_deref(), Some(VIEW));
        claim_all(storage, Duration::ZERO).await;
    }
    let thread = find_thread(storage, "t").await.unwrap();
    assert_eq!((thread.status, thread.view), (ThreadStatus::Error, None));
}

async fn a_copy_shows_no_values_until_something_runs_on_it(lab: Lab) {
    let storage = &lab.storage;
    let boom = Some(ErrorInfo { error: "Boom".into(), message: "it broke".into() });
    let lease = start(storage, "from", 1).await.lease;
    let ended = RunEnd {
        error: boom.clone(),
        thread_status: ThreadStatus::Error,
        view: Some(json(VIEW)),
        ..end(RunStatus::Error, ThreadStatus::Error).unwrap()
    };
    assert_eq!(commit(storage, head_step(lease, "c1", Some(ended))).await, CommitOutcome::Committed);
    let copy = storage.copy_thread(&TENANT, &tid("from"), &tid("to")).await.unwrap().unwrap();
    let found = find_thread(storage, "to").await.unwrap();
    for copy in [copy, found] {
        assert_eq!((copy.head.as_deref(), copy.status, copy.error), (Some("c1"), ThreadStatus::Idle, None));
        assert_eq!(copy.view.unwrap().text(), r#"{"values":null,"interrupts":{}}"#);
    }
    let from = find_thread(storage, "from").await.unwrap();
    assert_eq!((from.status, from.error, from.view.unwrap().text().as_str()), (ThreadStatus::Error, boom, VIEW));
    // A thread on which nothing ever ran gives the same.
    storage.create_thread(&TENANT, thread("empty")).await.unwrap();
    let copy = storage.copy_thread(&TENANT, &tid("empty"), &tid("empty2")).await.unwrap().unwrap();
    assert_eq!((copy.head, copy.view.is_some()), (None, true));
    show(storage, "to", 2, None).await;
}

async fn a_view_comes_back_byte_for_byte_from_everywhere(lab: Lab) {
    let storage = &lab.storage;
    let odd = "{\"z\":1,\"a\":[1.0,1e30,123456789012345678901234567890],\"z\":\"\\u0000\\ud83d\\ude00 \u{e000}\",\"s\":\" \"}";
    show(storage, "t", 1, Some(odd)).await;
    let text = |thread: &Thread| thread.view.as_ref().unwrap().text();
    let all = ThreadFilter::default();
    let found = storage.search_threads(&TENANT, &all, ThreadSort::ThreadId, true, Page::default()).await.unwrap();
    assert_eq!(text(&found[0]), odd);
    let patched = storage.update_thread(&TENANT, &tid("t"), ThreadPatch::default()).await.unwrap().unwrap();
    assert_eq!(text(&patched), odd);
    let ThreadCreated::Existing(kept) = storage.create_thread(&TENANT, thread("t")).await.unwrap() else {
        panic!("new")
    };
    assert_eq!(text(&kept), odd);
    // Claimed with the insert, on a thread that may be made and on one that must be there; and from the queue.
    assert_eq!(text(&start_for(storage, "t", 2, Duration::ZERO).await.thread), odd);
    let claimed = claim_all(storage, MINUTE).await.remove(0);
    assert_eq!(text(&claimed.thread), odd);
    let last = step(claimed.lease, StepRows::default(), end_with(Some(odd)));
    assert_eq!(commit(storage, last).await, CommitOutcome::Committed);
    let new = NewRun { create_thread: false, ..claimed_run("t", 3, MINUTE) };
    assert_eq!(text(&created(storage.create_run(&TENANT, new).await.unwrap()).1.unwrap().thread), odd);
}
