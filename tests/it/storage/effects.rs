//! Effects: written under the lease, once recorded never changed; they stay as long as the checkpoint they hang on.

use super::*;

for_each_backend!(
    a_recorded_effect_never_changes,
    a_stale_worker_records_nothing,
    one_batch_holds_members_with_and_without_extras,
    effects_are_listed_in_pages,
    effects_go_with_their_checkpoint,
    a_copy_takes_effects_along,
);

fn place(checkpoint_id: &str, task_id: &str) -> EffectPlace {
    EffectPlace { ns: String::new(), checkpoint_id: checkpoint_id.into(), task_id: task_id.into(), node: "node".into() }
}

fn started(at: &EffectPlace, key: &str, attempt: i32) -> EffectRow {
    let entry =
        EffectEntry { key: key.into(), state: EffectState::Started, attempt, asked: 0, result: None, error: None };
    EffectRow { place: at.clone(), entry }
}

fn recorded(at: &EffectPlace, key: &str, attempt: i32, result: &str) -> EffectRow {
    let mut row = effect(&at.checkpoint_id, &at.task_id, key, result);
    row.entry.attempt = attempt;
    row
}

fn with(lease: Lease, effects: Vec<EffectRow>) -> StepCommit {
    let rows = StepRows { effects, ..StepRows::default() };
    StepCommit { input_applied: false, ..step(lease, rows, None) }
}

async fn known(storage: &SharedStorage, name: &str, at: &EffectPlace) -> Vec<EffectEntry> {
    let mut found = storage.task_effects(&TENANT, key(name), at).await.unwrap();
    found.sort_by(|a, b| a.key.cmp(&b.key));
    found
}

async fn all(storage: &SharedStorage, name: &str, filter: EffectFilter) -> Vec<Effect> {
    let page = Page { limit: 100, offset: 0 };
    storage.list_effects(&TENANT, key(name), &EffectFilter { results: true, ..filter }, page).await.unwrap()
}

async fn a_recorded_effect_never_changes(lab: Lab) {
    let storage = &lab.storage;
    let lease = start(storage, "t", 1).await.lease;
    let at = place("c1", "task");
    assert!(known(storage, "t", &at).await.is_empty());
    assert_eq!(commit(storage, with(lease, vec![started(&at, "k", 1)])).await, CommitOutcome::Committed);
    let first = all(storage, "t", EffectFilter::default()).await.remove(0);
    assert_eq!((first.entry.state, first.ended_at, first.run_id), (EffectState::Started, None, id(1)));
    // The call failed, and was made again: one row, the last word.
    let mut failed = started(&at, "k", 1);
    failed.entry.state = EffectState::Failed;
    failed.entry.error = Some(ErrorInfo { error: "Down".into(), message: "is \0 down".into() });
    commit(storage, with(lease, vec![failed.clone()])).await;
    assert_eq!(known(storage, "t", &at).await, [failed.entry]);
    let again = EffectRow { entry: EffectEntry { asked: 2, ..started(&at, "k", 2).entry }, place: at.clone() };
    commit(storage, with(lease, vec![again.clone()])).await;
    assert_eq!(known(storage, "t", &at).await, [again.entry]);
    let second = all(storage, "t", EffectFilter::default()).await.remove(0);
    assert!(second.started_at > first.started_at && second.ended_at.is_none());
    // Several words on one call in one commit: the last counts.
    let row = recorded(&at, "k", 2, r#"{"z":1,"a":"\u0000"}"#);
    let both = with(lease, vec![started(&at, "k", 2), row.clone(), recorded(&at, "other", 1, "null")]);
    assert_eq!(commit(storage, both.clone()).await, CommitOutcome::Committed);
    let before = all(storage, "t", EffectFilter::default()).await;
    assert_eq!(before.len(), 2);
    let done = before.iter().find(|effect| effect.entry.key == "k").unwrap();
    assert_eq!((&done.entry, &done.place), (&row.entry, &at));
    assert_eq!(done.bytes, 20, "byte for byte");
    assert!(done.ended_at >= Some(done.started_at));
    // Repeated, or contradicted: nothing changes.
    commit(storage, both).await;
    commit(storage, with(lease, vec![started(&at, "k", 3)])).await;
    commit(storage, with(lease, vec![recorded(&at, "k", 3, "7")])).await;
    assert_eq!(all(storage, "t", EffectFilter::default()).await, before);
    // Effects are no progress, and move nothing else.
    assert_eq!(find_thread(storage, "t").await.unwrap().head, None);
    assert!(storage.task_effects(&OTHER, key("t"), &at).await.unwrap().is_empty());
}

async fn a_stale_worker_records_nothing(lab: Lab) {
    let storage = &lab.storage;
    let lease = start(storage, "t", 1).await.lease;
    let other = start(storage, "u", 2).await.lease;
    let at = place("c1", "task");
    let stale = with(Lease { epoch: lease.epoch + 1, ..lease }, vec![recorded(&at, "k", 1, "1")]);
    let batch = [stale, with(other, vec![recorded(&at, "k", 1, "2")])];
    let outcomes = storage.commit_steps(&Scope::Server, &batch).await.unwrap();
    assert_eq!(outcomes, [CommitOutcome::LeaseLost, CommitOutcome::Committed]);
    assert!(known(storage, "t", &at).await.is_empty());
    assert_eq!(known(storage, "u", &at).await[0].result, Some(json("2")));
}

/// A question, a call with what it cost, and nothing but a checkpoint, each of another thread: one statement on Postgres.
async fn one_batch_holds_members_with_and_without_extras(lab: Lab) {
    let storage = &lab.storage;
    let leases = [start(storage, "asks", 1).await.lease, start(storage, "calls", 2).await.lease];
    let [asks, calls] = leases;
    let (plain, both) = (start(storage, "plain", 3).await.lease, start(storage, "both", 4).await.lease);
    let (question, at) = (interrupt("q", "c1", InterruptChange::Asked), place("c1", "task"));
    let spent = |seq| UsageRow { model: "m".into(), usage: ModelUsage { total_tokens: 7, ..Default::default() }, seq };
    let mut asked = head_step(asks, "c1", end(RunStatus::Interrupted, ThreadStatus::Interrupted));
    asked.rows.interrupts = vec![question.clone()];
    let mut called = with(calls, vec![started(&at, "k", 1), recorded(&at, "k", 1, "1")]);
    called.rows.usage = vec![spent(1)];
    let mut all_of_it = head_step(both, "c1", None);
    all_of_it.rows.interrupts = vec![question];
    all_of_it.rows.effects = vec![recorded(&at, "k", 1, "2")];
    all_of_it.rows.usage = vec![spent(1)];
    let batch = [asked, called, head_step(plain, "c1", end(RunStatus::Success, ThreadStatus::Idle)), all_of_it];
    for _ in 0..2 {
        // Repeated: the ended runs have lost their leases, the others change nothing.
        storage.commit_steps(&Scope::Server, &batch).await.unwrap();
    }
    for (name, questions, result, tokens) in
        [("asks", 1, None, 0), ("calls", 0, Some("1"), 7), ("plain", 0, None, 0), ("both", 1, Some("2"), 7)]
    {
        let filter = InterruptFilter { thread: Some(tid(name)), ..InterruptFilter::default() };
        let found = storage.list_interrupts(&TENANT, &filter, true, None, 9).await.unwrap();
        assert_eq!(found.len(), questions, "{name}");
        let results: Vec<_> = known(storage, name, &at).await.into_iter().map(|entry| entry.result).collect();
        assert_eq!(results, result.map(|text| Some(json(text))).into_iter().collect::<Vec<_>>(), "{name}");
        let usage = find_thread(storage, name).await.unwrap().usage;
        assert_eq!(usage.0.values().map(|usage| usage.total_tokens).sum::<i64>(), tokens, "{name}");
        let head = find_thread(storage, name).await.unwrap().head;
        assert_eq!(head.is_some(), name != "calls", "{name}");
    }
}

async fn effects_are_listed_in_pages(lab: Lab) {
    let storage = &lab.storage;
    let lease = start(storage, "t", 1).await.lease;
    for n in 0..5 {
        let at = place("c1", &format!("task-{}", n % 2));
        let row = if n == 3 { started(&at, "3", 1) } else { recorded(&at, &n.to_string(), 1, "[1]") };
        commit(storage, with(lease, vec![row])).await;
    }
    let list = async |filter: EffectFilter, limit, offset| {
        let page = Page { limit, offset };
        let found = storage.list_effects(&TENANT, key("t"), &filter, page).await.unwrap();
        found.into_iter().map(|effect| effect.entry.key).collect::<Vec<_>>()
    };
    let any = EffectFilter::default();
    assert_eq!(list(any.clone(), 10, 0).await, ["4", "3", "2", "1", "0"]);
    assert_eq!(list(any.clone(), 2, 1).await, ["3", "2"]);
    assert_eq!(list(EffectFilter { state: Some(EffectState::Started), ..any.clone() }, 10, 0).await, ["3"]);
    assert_eq!(
        list(EffectFilter { tasks: Some(vec!["task-1".into(), "\"".into()]), ..any.clone() }, 10, 0).await,
        ["3", "1"]
    );
    let short = storage.list_effects(&TENANT, key("t"), &any, Page { limit: 1, offset: 0 }).await.unwrap();
    assert_eq!((short[0].bytes, short[0].entry.result.clone()), (3, None), "results are left out");
    assert!(storage.list_effects(&OTHER, key("t"), &any, Page { limit: 9, offset: 0 }).await.unwrap().is_empty());
    finish(storage, lease).await;
    storage.delete_thread(&TENANT, &tid("t")).await.unwrap();
    assert!(list(any, 10, 0).await.is_empty());
}

async fn effects_go_with_their_checkpoint(lab: Lab) {
    let storage = &lab.storage;
    let first = start(storage, "t", 1).await.lease;
    commit(storage, head_step(first, "c1", end(RunStatus::Success, ThreadStatus::Interrupted))).await;
    let second = start(storage, "t", 2).await.lease;
    let (old, new) = (place("c1", "task"), place("c2", "task"));
    commit(storage, with(second, vec![recorded(&old, "k", 1, "1")])).await;
    let mut ended = head_step(second, "c2", end(RunStatus::Success, ThreadStatus::Idle));
    ended.rows.effects = vec![recorded(&new, "k", 1, "2")];
    commit(storage, ended).await;
    assert_eq!(all(storage, "t", EffectFilter::default()).await.len(), 2);
    assert_eq!(storage.delete_run(&TENANT, &tid("t"), id(2)).await.unwrap(), Some(true));
    assert!(known(storage, "t", &new).await.is_empty());
    assert_eq!(known(storage, "t", &old).await.len(), 1, "it happened, and its task may run again");
    let new_run = NewRun { temporary: true, ..claimed_run("temp", 3, MINUTE) };
    let lease = created(storage.create_run(&TENANT, new_run).await.unwrap()).1.unwrap().lease;
    commit(storage, with(lease, vec![recorded(&old, "k", 1, "1")])).await;
    let last = StepCommit { end: end(RunStatus::Success, ThreadStatus::Idle), ..with(lease, Vec::new()) };
    commit(storage, last).await;
    assert!(known(storage, "temp", &old).await.is_empty());
}

async fn a_copy_takes_effects_along(lab: Lab) {
    let storage = &lab.storage;
    let lease = start(storage, "t", 1).await.lease;
    let at = place("c1", "task");
    let mut ended = head_step(lease, "c1", end(RunStatus::Success, ThreadStatus::Interrupted));
    ended.rows.effects = vec![recorded(&at, "k", 1, "1")];
    commit(storage, ended).await;
    storage.copy_thread(&TENANT, &tid("t"), &tid("copy")).await.unwrap().unwrap();
    assert_eq!(known(storage, "copy", &at).await, known(storage, "t", &at).await);
}
