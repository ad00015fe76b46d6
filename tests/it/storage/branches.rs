//! Branches: tips, names, and heads that are moved.

use super::*;

for_each_backend!(
    tips_are_leaves_names_and_the_head,
    a_name_stands_for_a_checkpoint,
    the_branch_a_thread_is_on_follows_its_head,
    a_move_is_refused_when_somebody_was_faster,
    one_of_many_movers_wins,
    a_rollback_goes_back_to_where_the_head_was_moved,
    names_go_with_their_checkpoints,
    names_and_moves_are_copied,
    inner_states_are_found_by_the_root_around_them,
    another_tenant_sees_no_branches,
);

/// A tree on the thread `t`: c1 - c2 - c3, and c4 after c1. The head is c4.
async fn tree(storage: &SharedStorage) {
    for (run, id, parent) in [(1, "c1", None), (2, "c2", Some("c1")), (3, "c3", Some("c2")), (4, "c4", Some("c1"))] {
        let lease = start(storage, "t", run).await.lease;
        let row = CheckpointRow { parent: parent.map(Into::into), ..checkpoint(id, Some(lease.run_id)) };
        let rows = StepRows { checkpoints: vec![row], head: Some(id.into()), ..StepRows::default() };
        commit(storage, step(lease, rows, end(RunStatus::Success, ThreadStatus::Interrupted))).await;
    }
}

fn moving(from: &str, to: &str, branch: Option<&str>) -> StateCommit {
    StateCommit {
        thread_id: tid("t"),
        expected_head: Some(from.into()),
        base: Some((String::new(), to.into())),
        rows: StepRows { head: Some(to.into()), ..StepRows::default() },
        events: Vec::new(),
        thread_status: ThreadStatus::Interrupted,
        view: None,
        moves: Some(HeadMove { branch: branch.map(Into::into) }),
    }
}

async fn go(storage: &SharedStorage, from: &str, to: &str, branch: Option<&str>) -> StateOutcome {
    storage.commit_state(&TENANT, moving(from, to, branch)).await.unwrap()
}

async fn name(storage: &SharedStorage, name: &str, at: Option<&str>) -> BranchPut {
    storage.put_branch(&TENANT, &tid("t"), name, at.map(str::to_owned).as_ref(), Some("ann")).await.unwrap()
}

/// As `name@checkpoint`, with a star for the branch the thread is on.
async fn names(storage: &SharedStorage, thread: &str) -> Vec<String> {
    let found = storage.list_branches(&TENANT, key(thread), None).await.unwrap();
    let told = found.iter().map(|branch| {
        let star = if branch.is_current { "*" } else { "" };
        format!("{}{star}@{}", branch.name, branch.checkpoint_id.as_deref().unwrap_or("-"))
    });
    told.collect()
}

/// As `c4 head leaf`, newest first.
async fn tips(storage: &SharedStorage) -> Vec<String> {
    let found = storage.list_tips(&TENANT, key("t"), None, 100).await.unwrap();
    let told = found.iter().map(|tip| {
        let (head, leaf) = (if tip.is_head { " head" } else { "" }, if tip.is_leaf { " leaf" } else { "" });
        format!("{}{head}{leaf}", tip.checkpoint_id)
    });
    told.collect()
}

async fn tips_are_leaves_names_and_the_head(lab: Lab) {
    let storage = &lab.storage;
    storage.create_thread(&TENANT, thread("t")).await.unwrap();
    assert!(tips(storage).await.is_empty());
    tree(storage).await;
    assert_eq!(tips(storage).await, ["c4 head leaf", "c3 leaf"]);
    name(storage, "middle", Some("c2")).await;
    assert_eq!(tips(storage).await, ["c4 head leaf", "c3 leaf", "c2"]);
    assert_eq!(go(storage, "c4", "c1", None).await, StateOutcome::Committed);
    assert_eq!(tips(storage).await, ["c4 leaf", "c3 leaf", "c2", "c1 head"]);
    let page = storage.list_tips(&TENANT, key("t"), Some(&"c4".to_owned()), 2).await.unwrap();
    let [c3, c2] = &page[..] else { panic!("{page:?}") };
    assert_eq!((c3.checkpoint_id.as_str(), c3.parent.as_deref()), ("c3", Some("c2")));
    assert_eq!((c2.checkpoint_id.as_str(), c2.next.as_slice()), ("c2", &["node".to_owned()][..]));
    let continued = async |id: &str| storage.is_continued(&TENANT, key("t"), &id.to_owned()).await.unwrap();
    assert!(continued("c1").await && continued("c2").await && !continued("c3").await && !continued("c9").await);
}

async fn a_name_stands_for_a_checkpoint(lab: Lab) {
    let storage = &lab.storage;
    assert_eq!(name(storage, "x", None).await, BranchPut::ThreadMissing);
    assert_eq!(storage.delete_branch(&TENANT, &tid("t"), "x").await.unwrap(), None);
    storage.create_thread(&TENANT, thread("t")).await.unwrap();
    assert_eq!(name(storage, "x", None).await, BranchPut::CheckpointMissing);
    tree(storage).await;
    let BranchPut::Put(branch) = name(storage, "x", None).await else { panic!("not named") };
    assert_eq!((branch.checkpoint_id.as_deref(), branch.is_current), (Some("c4"), false));
    assert_eq!((branch.updated_by.as_deref(), branch.created_at), (Some("ann"), branch.updated_at));
    assert_eq!(name(storage, "x", Some("c9")).await, BranchPut::CheckpointMissing);
    let BranchPut::Put(again) = name(storage, "x", Some("c2")).await else { panic!("not named") };
    assert_eq!((again.checkpoint_id.as_deref(), again.created_at), (Some("c2"), branch.created_at));
    assert!(again.updated_at > branch.updated_at);
    name(storage, "a", Some("c1")).await;
    assert_eq!(names(storage, "t").await, ["a@c1", "x@c2"]);
    assert_eq!(storage.list_branches(&TENANT, key("t"), Some("x")).await.unwrap(), [again]);
    assert_eq!(storage.delete_branch(&TENANT, &tid("t"), "x").await.unwrap(), Some(true));
    assert_eq!(storage.delete_branch(&TENANT, &tid("t"), "x").await.unwrap(), Some(false));
    assert_eq!(names(storage, "t").await, ["a@c1"]);
    let close = Close { how: ClosedAs::Ended, actor: None, reason: None, ttl: None, cancels: true };
    storage.close_thread(&TENANT, &tid("t"), &close).await.unwrap();
    assert_eq!(name(storage, "x", None).await, BranchPut::ThreadClosed);
    assert_eq!(go(storage, "c4", "c1", None).await, StateOutcome::ThreadClosed);
}

async fn the_branch_a_thread_is_on_follows_its_head(lab: Lab) {
    let storage = &lab.storage;
    tree(storage).await;
    name(storage, "main", Some("c3")).await;
    name(storage, "try", None).await;
    assert_eq!(go(storage, "c4", "c3", Some("main")).await, StateOutcome::Committed);
    let thread = find_thread(storage, "t").await.unwrap();
    assert_eq!((thread.head.as_deref(), thread.newest().as_deref()), (Some("c3"), Some("c4")));
    assert!(thread.is_moved());
    assert_eq!(names(storage, "t").await, ["main*@c3", "try@c4"]);
    // A run goes on from there; the name follows, without a write of its own.
    let lease = start(storage, "t", 5).await.lease;
    commit(storage, head_step(lease, "c5", end(RunStatus::Success, ThreadStatus::Interrupted))).await;
    assert!(!find_thread(storage, "t").await.unwrap().is_moved());
    assert_eq!(names(storage, "t").await, ["main*@c5", "try@c4"]);
    assert_eq!(name(storage, "main", Some("c1")).await, BranchPut::IsCurrent);
    assert!(matches!(name(storage, "main", Some("c5")).await, BranchPut::Put(_)));
    // Left, it stays where it was.
    assert_eq!(go(storage, "c5", "c4", Some("try")).await, StateOutcome::Committed);
    assert_eq!(names(storage, "t").await, ["main@c5", "try*@c4"]);
    assert_eq!(go(storage, "c4", "c1", None).await, StateOutcome::Committed);
    assert_eq!(names(storage, "t").await, ["main@c5", "try@c4"]);
    assert_eq!(go(storage, "c1", "c5", Some("main")).await, StateOutcome::Committed);
    assert_eq!(storage.delete_branch(&TENANT, &tid("t"), "main").await.unwrap(), Some(true));
    name(storage, "main", Some("c1")).await;
    assert_eq!(names(storage, "t").await, ["main@c1", "try@c4"], "on none");
}

async fn a_move_is_refused_when_somebody_was_faster(lab: Lab) {
    let storage = &lab.storage;
    assert_eq!(go(storage, "c4", "c1", None).await, StateOutcome::ThreadMissing);
    tree(storage).await;
    name(storage, "x", Some("c2")).await;
    for (from, to, branch) in
        [("c3", "c1", None), ("c4", "c9", None), ("c4", "c1", Some("x")), ("c4", "c1", Some("nobody"))]
    {
        assert_eq!(go(storage, from, to, branch).await, StateOutcome::HeadMoved, "{from} {to} {branch:?}");
    }
    let thread = find_thread(storage, "t").await.unwrap();
    assert_eq!((thread.head.as_deref(), thread.moved), (Some("c4"), None));
    let lease = start(storage, "t", 5).await.lease;
    assert_eq!(go(storage, "c4", "c1", None).await, StateOutcome::ThreadBusy);
    finish(storage, lease).await;
    assert_eq!(go(storage, "c4", "c1", None).await, StateOutcome::Committed);
}

async fn one_of_many_movers_wins(lab: Lab) {
    tree(&lab.storage).await;
    let movers = (0..12).map(|n| {
        let storage = lab.storage.clone();
        let to = ["c1", "c2", "c3"][n % 3];
        tokio::spawn(async move { storage.commit_state(&TENANT, moving("c4", to, None)).await.unwrap() })
    });
    let outcomes = futures_util::future::join_all(movers).await;
    let won = outcomes.into_iter().filter(|outcome| *outcome.as_ref().unwrap() == StateOutcome::Committed).count();
    assert_eq!(won, 1);
}

async fn a_rollback_goes_back_to_where_the_head_was_moved(lab: Lab) {
    let storage = &lab.storage;
    tree(storage).await;
    assert_eq!(go(storage, "c4", "c2", None).await, StateOutcome::Committed);
    for (run, id) in [(5, "c5"), (6, "c6")] {
        let lease = start(storage, "t", run).await.lease;
        commit(storage, head_step(lease, id, None)).await;
        if run == 6 {
            storage.rollback_run(&TENANT, &lease, ThreadStatus::Idle).await.unwrap();
        } else {
            finish(storage, lease).await;
        }
    }
    assert_eq!(find_thread(storage, "t").await.unwrap().head.as_deref(), Some("c5"), "the run before it");
    assert_eq!(storage.delete_run(&TENANT, &tid("t"), id(5)).await.unwrap(), Some(true));
    assert_eq!(find_thread(storage, "t").await.unwrap().head.as_deref(), Some("c2"), "where the head was moved");
    assert_eq!(storage.delete_run(&TENANT, &tid("t"), id(2)).await.unwrap(), Some(true));
    assert_eq!(find_thread(storage, "t").await.unwrap().head.as_deref(), Some("c4"), "what is left");
}

async fn names_go_with_their_checkpoints(lab: Lab) {
    let storage = &lab.storage;
    tree(storage).await;
    for (branch, at) in [("one", "c1"), ("three", "c3"), ("four", "c4")] {
        name(storage, branch, Some(at)).await;
    }
    assert_eq!(storage.delete_run(&TENANT, &tid("t"), id(3)).await.unwrap(), Some(true));
    assert_eq!(names(storage, "t").await, ["four@c4", "one@c1"]);
    let kept = Kept { head: Some("c4".into()), checkpoints: vec![(String::new(), "c4".into())], ..Kept::default() };
    assert_eq!(storage.prune_thread(&TENANT, &tid("t"), &kept).await.unwrap(), Pruned::Done);
    assert_eq!(names(storage, "t").await, ["four@c4"]);
    storage.delete_thread(&TENANT, &tid("t")).await.unwrap();
    tree(storage).await;
    assert!(names(storage, "t").await.is_empty(), "nothing of the deleted thread is left");
}

async fn names_and_moves_are_copied(lab: Lab) {
    let storage = &lab.storage;
    tree(storage).await;
    name(storage, "main", Some("c3")).await;
    name(storage, "one", Some("c1")).await;
    assert_eq!(go(storage, "c4", "c3", Some("main")).await, StateOutcome::Committed);
    let copy = storage.copy_thread(&TENANT, &tid("t"), &tid("copy")).await.unwrap().unwrap();
    assert_eq!((copy.head.as_deref(), copy.is_moved()), (Some("c3"), true));
    assert_eq!(names(storage, "copy").await, ["main*@c3", "one@c1"]);
    storage.delete_branch(&TENANT, &tid("copy"), "one").await.unwrap();
    assert_eq!(names(storage, "t").await, ["main*@c3", "one@c1"]);
}

async fn inner_states_are_found_by_the_root_around_them(lab: Lab) {
    let storage = &lab.storage;
    tree(storage).await;
    let lease = start(storage, "t", 5).await.lease;
    let inner = |id: &str, root: &str| CheckpointRow {
        ns: "sub".into(),
        metadata: json(&format!(r#"{{"source":"loop","step":1,"parents":{{"":"{root}","x":"y"}}}}"#)),
        ..checkpoint(id, Some(lease.run_id))
    };
    let checkpoints = vec![inner("c11", "c1"), inner("c12", "c1"), inner("c21", "c2")];
    commit(storage, step(lease, StepRows { checkpoints, ..StepRows::default() }, None)).await;
    let find = async |which: Which| {
        let found = storage.load_checkpoint(&TENANT, key("t"), "sub", &which).await.unwrap();
        found.map(|found| found.row.id)
    };
    assert_eq!(find(Which::During("c1".into())).await.as_deref(), Some("c12"));
    assert_eq!(find(Which::During("c2".into())).await.as_deref(), Some("c21"));
    assert_eq!(find(Which::During("y".into())).await, None);
    assert_eq!(find(Which::Latest).await.as_deref(), Some("c21"));
}

async fn another_tenant_sees_no_branches(lab: Lab) {
    let storage = &lab.storage;
    tree(storage).await;
    name(storage, "x", None).await;
    assert!(storage.list_branches(&OTHER, key("t"), None).await.unwrap().is_empty());
    assert!(storage.list_tips(&OTHER, key("t"), None, 10).await.unwrap().is_empty());
    assert!(!storage.is_continued(&OTHER, key("t"), &"c1".to_owned()).await.unwrap());
    assert_eq!(storage.put_branch(&OTHER, &tid("t"), "x", None, None).await.unwrap(), BranchPut::ThreadMissing);
    assert_eq!(storage.delete_branch(&OTHER, &tid("t"), "x").await.unwrap(), None);
}
