//! Crons: lists, changes, and ticks that become exactly one run.

use super::*;

for_each_backend!(
    crons_are_made_found_changed_and_deleted,
    crons_are_filtered_sorted_and_paged,
    only_what_is_due_is_due,
    a_tick_becomes_one_run_and_moves_the_date_in_one_operation,
    twenty_racers_fire_a_tick_once,
    a_tick_is_never_fired_again_even_if_the_date_moves_back,
    a_busy_thread_may_refuse_a_tick,
    the_crons_of_a_closed_thread_rest,
    crons_go_with_their_thread_and_their_assistant,
);

fn cron(n: u128) -> Cron {
    Cron {
        cron_id: id(n),
        assistant_id: id(900),
        thread_id: None,
        schedule: "*/5 * * * *".into(),
        timezone: Some("Europe/Berlin".into()),
        end_time: Some(Timestamp(9_000)),
        on_run_completed: Some(OnCompletion::Keep),
        enabled: true,
        metadata: json(r#"{"a":{"b":1},"nul":"x\u0000"}"#),
        payload: json(r#"{"schedule":"*/5 * * * *","x":1e2}"#),
        request: json(r#"{"kwargs":{}}"#),
        next_run_date: Some(Timestamp(1_000)),
        revision: 0,
        created_at: Timestamp(0),
        updated_at: Timestamp(0),
    }
}

async fn made(storage: &SharedStorage, cron: Cron) -> Cron {
    match storage.create_cron(&TENANT, cron).await.unwrap() {
        CronCreated::Created(cron) => cron,
        other => panic!("not created: {other:?}"),
    }
}

async fn found(storage: &SharedStorage, n: u128) -> Option<Cron> {
    storage.find_cron(&TENANT, id(n)).await.unwrap()
}

fn tick(cron: &Cron, at: i64, run: Option<NewRun>) -> CronTick {
    CronTick {
        cron_id: cron.cron_id,
        revision: cron.revision,
        tick: Timestamp(at),
        run,
        next: Some(Timestamp(at + 100)),
    }
}

async fn fire(storage: &SharedStorage, tick: CronTick) -> CronFired {
    storage.fire_cron(&TENANT, tick).await.unwrap()
}

async fn crons_are_made_found_changed_and_deleted(lab: Lab) {
    let storage = &lab.storage;
    let before = storage.database_time(&TENANT).await.unwrap();
    let new = made(storage, cron(1)).await;
    assert_eq!((new.revision, new.created_at), (1, new.updated_at));
    assert!(new.created_at >= before && new.created_at <= storage.database_time(&TENANT).await.unwrap());
    let read = found(storage, 1).await.unwrap();
    assert_eq!(read.metadata, cron(1).metadata);
    assert_eq!(read.payload.text(), cron(1).payload.text(), "byte for byte");
    assert_eq!((read.timezone, read.end_time), (cron(1).timezone, cron(1).end_time));
    assert_eq!((read.on_run_completed, read.next_run_date), (Some(OnCompletion::Keep), Some(Timestamp(1_000))));
    let gone = Cron { thread_id: Some(tid("nobody")), ..cron(2) };
    assert!(matches!(storage.create_cron(&TENANT, gone).await.unwrap(), CronCreated::ThreadMissing));

    let wanted = Cron { enabled: false, end_time: None, timezone: None, ..new.clone() };
    let CronReplaced::Replaced(changed) = storage.replace_cron(&TENANT, wanted.clone()).await.unwrap() else {
        panic!("not replaced")
    };
    assert_eq!((changed.enabled, changed.end_time, changed.timezone.clone(), changed.revision), (false, None, None, 2));
    assert!(changed.updated_at > changed.created_at);
    assert!(matches!(storage.replace_cron(&TENANT, wanted.clone()).await.unwrap(), CronReplaced::Moved));
    for missing in [Cron { cron_id: id(7), ..wanted }, Cron { revision: 2, ..changed }] {
        let scope = if missing.cron_id == id(7) { TENANT } else { OTHER };
        assert!(matches!(storage.replace_cron(&scope, missing).await.unwrap(), CronReplaced::Missing));
    }
    assert!(storage.find_cron(&OTHER, id(1)).await.unwrap().is_none());
    assert!(!storage.delete_cron(&OTHER, id(1)).await.unwrap());
    assert!(storage.delete_cron(&TENANT, id(1)).await.unwrap());
    assert!(!storage.delete_cron(&TENANT, id(1)).await.unwrap());
    assert!(found(storage, 1).await.is_none());
}

async fn crons_are_filtered_sorted_and_paged(lab: Lab) {
    let storage = &lab.storage;
    storage.create_thread(&TENANT, thread("t")).await.unwrap();
    made(storage, cron(1)).await;
    made(storage, Cron { thread_id: Some(tid("t")), next_run_date: None, ..cron(2) }).await;
    made(storage, Cron { assistant_id: id(901), enabled: false, metadata: json("{}"), ..cron(3) }).await;
    let all = Page { limit: 10, offset: 0 };
    let list = async |filter: CronFilter, sort, ascending, page| {
        let rows = storage.search_crons(&TENANT, &filter, sort, ascending, page).await.unwrap();
        let count = storage.count_crons(&TENANT, &filter).await.unwrap();
        (rows.iter().map(|cron| cron.cron_id.as_u128()).collect::<Vec<_>>(), count)
    };
    let any = CronFilter::default;
    assert_eq!(list(any(), CronSort::CreatedAt, false, all).await, (vec![3, 2, 1], 3));
    assert_eq!(list(any(), CronSort::CronId, true, Page { limit: 1, offset: 1 }).await, (vec![2], 3));
    assert_eq!(list(any(), CronSort::NextRunDate, true, all).await.0, [1, 3, 2], "no date sorts last");
    assert_eq!(list(any(), CronSort::NextRunDate, false, all).await.0, [3, 1, 2], "no date sorts last");
    let of = |filter| list(filter, CronSort::CronId, true, all);
    assert_eq!(of(CronFilter { assistant_id: Some(id(901)), ..any() }).await, (vec![3], 1));
    assert_eq!(of(CronFilter { thread_id: Some(tid("t")), ..any() }).await, (vec![2], 1));
    assert_eq!(of(CronFilter { enabled: Some(true), ..any() }).await, (vec![1, 2], 2));
    assert_eq!(of(CronFilter { metadata: Some(json(r#"{"a":{"b":1}}"#)), ..any() }).await, (vec![1, 2], 2));
    assert_eq!(storage.count_crons(&OTHER, &any()).await.unwrap(), 0);
}

async fn only_what_is_due_is_due(lab: Lab) {
    let storage = &lab.storage;
    let now = storage.database_time(&TENANT).await.unwrap();
    let later = Timestamp(now.0 + 3_600_000_000);
    assert_eq!(storage.due_crons(&Scope::Server, 10).await.unwrap().next, None);
    made(storage, Cron { next_run_date: Some(Timestamp(2_000)), ..cron(1) }).await;
    made(storage, Cron { next_run_date: Some(Timestamp(1_000)), ..cron(2) }).await;
    made(storage, Cron { next_run_date: Some(later), ..cron(3) }).await;
    made(storage, Cron { enabled: false, ..cron(4) }).await;
    made(storage, Cron { next_run_date: None, ..cron(5) }).await;
    let found = storage.due_crons(&Scope::Server, 10).await.unwrap();
    let ids = |found: &DueCrons| found.due.iter().map(|due| due.cron.cron_id.as_u128()).collect::<Vec<_>>();
    assert_eq!((ids(&found), found.next), (vec![2, 1], Some(later)));
    assert!(found.now >= now && found.due[0].tenant == DEFAULT);
    let first = storage.due_crons(&Scope::Server, 1).await.unwrap();
    assert_eq!((ids(&first), first.next), (vec![2], Some(Timestamp(2_000))), "the rest is due at once");
    assert!(storage.due_crons(&OTHER, 10).await.unwrap().due.is_empty());
}

async fn a_tick_becomes_one_run_and_moves_the_date_in_one_operation(lab: Lab) {
    let storage = &lab.storage;
    let new = made(storage, cron(1)).await;
    let mut notices = storage.notices();
    let fired = fire(storage, tick(&new, 1_000, Some(run("t", 50)))).await;
    let CronFired::Fired(outcome) = fired else { panic!("{fired:?}") };
    assert_eq!(created(outcome).0.status, RunStatus::Pending);
    let look = async { while notices.recv().await.unwrap() != Notice::RunPending {} };
    tokio::time::timeout(Duration::from_secs(10), look).await.expect("workers are told");
    let moved = found(storage, 1).await.unwrap();
    assert_eq!((moved.next_run_date, moved.revision), (Some(Timestamp(1_100)), 2));
    assert!(find_run(storage, "t", 50).await.is_some());
    // The decision was made from an older row.
    assert!(matches!(fire(storage, tick(&new, 1_100, Some(run("t", 51)))).await, CronFired::Stale));
    assert!(find_run(storage, "t", 51).await.is_none());
    // Left out: the date moves, nothing runs.
    assert!(matches!(fire(storage, tick(&moved, 1_100, None)).await, CronFired::Skipped));
    let moved = found(storage, 1).await.unwrap();
    assert_eq!(moved.next_run_date, Some(Timestamp(1_200)));
    // Whatever goes wrong undoes all of it: here the run's id is taken.
    assert!(storage.fire_cron(&TENANT, tick(&moved, 1_200, Some(run("t", 50)))).await.is_err());
    assert_eq!(found(storage, 1).await.unwrap().next_run_date, Some(Timestamp(1_200)));
    assert!(matches!(fire(storage, tick(&moved, 1_200, Some(run("t", 52)))).await, CronFired::Fired(_)));
    // Paused, or of another tenant.
    let moved = found(storage, 1).await.unwrap();
    let other = storage.fire_cron(&OTHER, tick(&moved, 1_300, Some(run("t", 53)))).await.unwrap();
    assert!(matches!(other, CronFired::Stale));
    let CronReplaced::Replaced(paused) = storage.replace_cron(&TENANT, Cron { enabled: false, ..moved }).await.unwrap()
    else {
        panic!("not replaced")
    };
    assert!(matches!(fire(storage, tick(&paused, 1_300, Some(run("t", 53)))).await, CronFired::Stale));
}

async fn twenty_racers_fire_a_tick_once(lab: Lab) {
    let storage = &lab.storage;
    let new = made(storage, cron(1)).await;
    let racers = (0..20_u128).map(|n| {
        let (storage, new) = (storage.clone(), new.clone());
        // Half of them saw the thread, half make their own.
        let name = if n % 2 == 0 { "shared".to_owned() } else { format!("own-{n}") };
        tokio::spawn(async move { fire(&storage, tick(&new, 1_000, Some(run(&name, 100 + n)))).await })
    });
    let outcomes = futures_util::future::join_all(racers).await;
    let fired = outcomes.into_iter().filter(|outcome| matches!(outcome, Ok(CronFired::Fired(_)))).count();
    assert_eq!(fired, 1);
    assert_eq!(storage.count_active(&TENANT).await.unwrap(), (1, 0), "one run");
}

async fn a_tick_is_never_fired_again_even_if_the_date_moves_back(lab: Lab) {
    let storage = &lab.storage;
    let new = made(storage, cron(1)).await;
    assert!(matches!(fire(storage, tick(&new, 1_000, Some(run("t", 50)))).await, CronFired::Fired(_)));
    let moved = found(storage, 1).await.unwrap();
    let back = Cron { next_run_date: Some(Timestamp(1_000)), ..moved };
    let CronReplaced::Replaced(back) = storage.replace_cron(&TENANT, back).await.unwrap() else { panic!("moved") };
    assert!(matches!(fire(storage, tick(&back, 1_000, Some(run("t", 51)))).await, CronFired::Skipped));
    assert!(find_run(storage, "t", 51).await.is_none());
    assert_eq!(found(storage, 1).await.unwrap().next_run_date, Some(Timestamp(1_100)));
}

async fn a_busy_thread_may_refuse_a_tick(lab: Lab) {
    let storage = &lab.storage;
    start(storage, "t", 1).await;
    let new = made(storage, Cron { thread_id: Some(tid("t")), ..cron(1) }).await;
    let reject = NewRun { multitask_strategy: MultitaskStrategy::Reject, ..run("t", 50) };
    let fired = fire(storage, tick(&new, 1_000, Some(reject))).await;
    assert!(matches!(fired, CronFired::Fired(RunCreated::ThreadBusy)), "{fired:?}");
    let moved = found(storage, 1).await.unwrap();
    assert_eq!(moved.next_run_date, Some(Timestamp(1_100)), "the tick is accounted for");
    let rollback = NewRun { multitask_strategy: MultitaskStrategy::Rollback, ..run("t", 51) };
    let fired = fire(storage, tick(&moved, 1_100, Some(rollback))).await;
    let CronFired::Fired(outcome) = fired else { panic!("{fired:?}") };
    assert_eq!(created(outcome).2.len(), 1, "the running one is asked to stop");
}

async fn the_crons_of_a_closed_thread_rest(lab: Lab) {
    let storage = &lab.storage;
    storage.create_thread(&TENANT, thread("t")).await.unwrap();
    let new = made(storage, Cron { thread_id: Some(tid("t")), ..cron(1) }).await;
    let close = Close { how: ClosedAs::Ended, actor: None, reason: Some("done".into()), ttl: None, cancels: true };
    storage.close_thread(&TENANT, &tid("t"), &close).await.unwrap();
    let more = Cron { thread_id: Some(tid("t")), ..cron(2) };
    let refused = storage.create_cron(&TENANT, more.clone()).await.unwrap();
    let CronCreated::ThreadClosed(closed) = refused else { panic!("{refused:?}") };
    assert_eq!((closed.how, closed.reason.as_deref()), (ClosedAs::Ended, Some("done")));
    assert!(found(storage, 2).await.is_none());
    // What was there before learns of it with its next tick.
    let fired = fire(storage, tick(&new, 1_000, Some(run("t", 50)))).await;
    assert!(matches!(fired, CronFired::Fired(RunCreated::ThreadClosed(_))), "{fired:?}");
    let rests = found(storage, 1).await.unwrap();
    assert_eq!((rests.enabled, rests.next_run_date), (false, Some(Timestamp(1_100))));
    assert!(storage.due_crons(&TENANT, 10).await.unwrap().due.is_empty());
    storage.reopen_thread(&TENANT, &tid("t")).await.unwrap();
    made(storage, more).await;
}

async fn crons_go_with_their_thread_and_their_assistant(lab: Lab) {
    let storage = &lab.storage;
    storage.create_thread(&TENANT, thread("t")).await.unwrap();
    made(storage, Cron { thread_id: Some(tid("t")), ..cron(1) }).await;
    let free = made(storage, cron(2)).await;
    storage.delete_thread(&TENANT, &tid("t")).await.unwrap();
    assert!(found(storage, 1).await.is_none() && found(storage, 2).await.is_some());
    let assistant = NewAssistant {
        created_at: None,
        assistant_id: id(901),
        graph_id: "graph".into(),
        name: "x".into(),
        description: None,
        config: Json::object(),
        context: Json::object(),
        metadata: Json::object(),
    };
    storage.create_assistant(&TENANT, assistant).await.unwrap();
    made(storage, Cron { assistant_id: id(901), ..cron(3) }).await;
    assert!(storage.delete_assistant(&TENANT, id(901)).await.unwrap());
    assert!(found(storage, 3).await.is_none() && found(storage, 2).await.is_some());
    // A thread that vanished in another way takes its cron along when the tick comes.
    let orphan = NewRun { create_thread: false, ..run("nobody", 50) };
    assert!(matches!(fire(storage, tick(&free, 1_000, Some(orphan))).await, CronFired::ThreadGone));
    assert!(found(storage, 2).await.is_none());
}
