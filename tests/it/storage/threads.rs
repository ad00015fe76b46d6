//! Threads: create, find, patch, delete, copy, search.

use super::*;

for_each_backend!(
    a_thread_is_created_once,
    a_patch_merges_metadata_shallowly,
    search_filters_sorts_and_pages,
    containment_is_that_of_jsonb,
    metadata_with_nul_round_trips_and_is_found,
    another_tenant_sees_nothing,
    deleting_is_final,
    a_copy_has_the_state_but_not_the_runs,
    twenty_racers_create_one_thread,
    what_waits_is_found_page_by_page,
);

async fn a_thread_is_created_once(lab: Lab) {
    let storage = &lab.storage;
    let new = NewThread {
        graph_id: Some("graph".into()),
        metadata: json(r#"{"b":1,"a":[1,2]}"#),
        config: json(r#"{"z":1,  "z":2, "n":123456789012345678901234567890}"#),
        ..thread("user-42")
    };
    let config = new.config.text();
    let ThreadCreated::New(made) = storage.create_thread(&TENANT, new).await.unwrap() else { panic!("taken") };
    assert_eq!(made.config.text(), config, "byte for byte");
    assert_eq!((made.key, made.status, made.graph_id.as_deref()), (key("user-42"), ThreadStatus::Idle, Some("graph")));
    assert_eq!((made.head.as_deref(), made.last_event), (None, 0));
    assert!(made.created_at.0 > 1_600_000_000_000_000, "{:?}", made.created_at);
    let again = NewThread { metadata: json(r#"{"other":true}"#), ..thread("user-42") };
    let ThreadCreated::Existing(kept) = storage.create_thread(&TENANT, again).await.unwrap() else { panic!("new") };
    assert_eq!(kept.metadata, json(r#"{"a":[1,2],"b":1}"#));
    assert_eq!(find_thread(storage, "user-42").await.unwrap().created_at, made.created_at);
    assert!(find_thread(storage, "nobody").await.is_none());
}

async fn a_patch_merges_metadata_shallowly(lab: Lab) {
    let storage = &lab.storage;
    let new = NewThread { metadata: json(r#"{"keep":{"x":1},"change":{"x":1}}"#), ..thread("t") };
    storage.create_thread(&TENANT, new).await.unwrap();
    let before = find_thread(storage, "t").await.unwrap();
    let patch = ThreadPatch {
        metadata: Some(json(r#"{"change":{"y":2},"add":null}"#)),
        graph_id: Some("g2".into()),
        ttl: None,
    };
    let after = storage.update_thread(&TENANT, &tid("t"), patch).await.unwrap().unwrap();
    assert_eq!(after.metadata, json(r#"{"keep":{"x":1},"change":{"y":2},"add":null}"#));
    assert_eq!(after.graph_id.as_deref(), Some("g2"));
    assert!(after.updated_at > before.updated_at);
    let untouched = storage.update_thread(&TENANT, &tid("t"), ThreadPatch::default()).await.unwrap().unwrap();
    assert_eq!((untouched.metadata, untouched.graph_id), (after.metadata, after.graph_id));
    assert!(storage.update_thread(&TENANT, &tid("nobody"), ThreadPatch::default()).await.unwrap().is_none());
}

fn names(threads: &[Thread]) -> Vec<&str> {
    threads.iter().map(|thread| thread.id.as_str()).collect()
}

async fn search_filters_sorts_and_pages(lab: Lab) {
    let storage = &lab.storage;
    for (name, tag) in [("a", "x"), ("b", "y"), ("c", "x"), ("d", "x")] {
        let metadata = json(&format!(r#"{{"tag":"{tag}"}}"#));
        storage.create_thread(&TENANT, NewThread { metadata, ..thread(name) }).await.unwrap();
    }
    let busy = storage.create_run(&TENANT, run("c", 1)).await.unwrap();
    assert!(matches!(busy, RunCreated::Created { .. }));
    let page = |limit, offset| Page { limit, offset };
    let search = async |filter: ThreadFilter, sort, ascending, page| {
        storage.search_threads(&TENANT, &filter, sort, ascending, page).await.unwrap()
    };
    let all = ThreadFilter::default();
    assert_eq!(names(&search(all.clone(), ThreadSort::ThreadId, true, page(10, 0)).await), ["a", "b", "c", "d"]);
    assert_eq!(names(&search(all.clone(), ThreadSort::ThreadId, false, page(2, 1)).await), ["c", "b"]);
    assert_eq!(names(&search(all.clone(), ThreadSort::CreatedAt, true, page(10, 0)).await), ["a", "b", "c", "d"]);
    assert_eq!(names(&search(all.clone(), ThreadSort::UpdatedAt, false, page(1, 0)).await), ["c"]);
    assert_eq!(names(&search(all.clone(), ThreadSort::StateUpdatedAt, true, page(1, 0)).await), ["a"]);
    assert_eq!(names(&search(all.clone(), ThreadSort::Status, true, page(10, 0)).await), ["c", "a", "b", "d"]);
    let tagged = ThreadFilter { metadata: Some(json(r#"{"tag":"x"}"#)), ..all.clone() };
    assert_eq!(names(&search(tagged.clone(), ThreadSort::ThreadId, true, page(2, 1)).await), ["c", "d"]);
    assert_eq!(storage.count_threads(&TENANT, &tagged).await.unwrap(), 3);
    let busy = ThreadFilter { status: Some(ThreadStatus::Busy), ..tagged.clone() };
    assert_eq!(names(&search(busy.clone(), ThreadSort::ThreadId, true, page(10, 0)).await), ["c"]);
    assert_eq!(storage.count_threads(&TENANT, &busy).await.unwrap(), 1);
    let idle = ThreadFilter { status: Some(ThreadStatus::Idle), ..all.clone() };
    assert_eq!(names(&search(idle.clone(), ThreadSort::ThreadId, true, page(10, 0)).await), ["a", "b", "d"]);
    let named = ThreadFilter { ids: Some(vec![tid("b"), tid("c"), tid("zz")]), ..all.clone() };
    assert_eq!(names(&search(named.clone(), ThreadSort::ThreadId, true, page(10, 0)).await), ["b", "c"]);
    assert_eq!(storage.count_threads(&TENANT, &named).await.unwrap(), 2);
    let none = ThreadFilter { ids: Some(vec![]), ..all };
    assert_eq!(storage.count_threads(&TENANT, &none).await.unwrap(), 0);
}

async fn containment_is_that_of_jsonb(lab: Lab) {
    let storage = &lab.storage;
    let metadata = json(r#"{"n":100,"s":"x","o":{"a":[1,{"b":2}],"c":null},"l":["p","q"]}"#);
    storage.create_thread(&TENANT, NewThread { metadata, ..thread("t") }).await.unwrap();
    for (part, expected) in [
        ("{}", 1),
        (r#"{"n":1e2}"#, 1),
        (r#"{"n":"100"}"#, 0),
        (r#"{"o":{"a":[{"b":2}]}}"#, 1),
        (r#"{"o":{"c":null}}"#, 1),
        (r#"{"o":{"d":null}}"#, 0),
        (r#"{"l":["q"]}"#, 1),
        (r#"{"l":"q"}"#, 0),
        (r#"{"l":["q","q","p"]}"#, 1),
        (r#"{"o":{}}"#, 1),
        (r#"{"o":[]}"#, 0),
    ] {
        let filter = ThreadFilter { metadata: Some(json(part)), ..ThreadFilter::default() };
        assert_eq!(storage.count_threads(&TENANT, &filter).await.unwrap(), expected, "{part}");
    }
}

async fn metadata_with_nul_round_trips_and_is_found(lab: Lab) {
    let storage = &lab.storage;
    let metadata = json(r#"{"a":"x\u0000y","b":"\\u0000","c":"\ue000","big":123456789012345678901234567890}"#);
    storage.create_thread(&TENANT, NewThread { metadata: metadata.clone(), ..thread("t") }).await.unwrap();
    let found = find_thread(storage, "t").await.unwrap();
    assert_eq!(found.metadata, metadata);
    assert!(found.metadata.text().contains("123456789012345678901234567890"), "{}", found.metadata);
    let filter = ThreadFilter { metadata: Some(json(r#"{"a":"x\u0000y"}"#)), ..ThreadFilter::default() };
    assert_eq!(storage.count_threads(&TENANT, &filter).await.unwrap(), 1);
    let patch = ThreadPatch { metadata: Some(json(r#"{"d":"\u0000"}"#)), graph_id: None, ttl: None };
    let patched = storage.update_thread(&TENANT, &tid("t"), patch).await.unwrap().unwrap();
    assert_eq!(patched.metadata.get("d").unwrap().as_str(), Some("\0"));
    let with_nul = NewRun { metadata: json(r#"{"r":"\u0000"}"#), actor: Some("a\0b".into()), ..run("t", 1) };
    let (made, ..) = created(storage.create_run(&TENANT, with_nul).await.unwrap());
    assert_eq!(made.metadata.get("r").unwrap().as_str(), Some("\0"));
    assert_eq!(made.metadata.get("a").unwrap().as_str(), Some("x\0y"), "the thread's metadata is below the run's");
}

async fn another_tenant_sees_nothing(lab: Lab) {
    let storage = &lab.storage;
    let mine = start(storage, "t", 1).await;
    let rows = StepRows {
        checkpoints: vec![checkpoint("c1", Some(id(1)))],
        payloads: vec![Payload { hash: [1; 16], value: json("1") }],
        log: vec![log(0, 0, "[1]", None)],
        head: Some("c1".into()),
        ..StepRows::default()
    };
    let mine_step = StepCommit { events: vec![event(1, id(1))], ..step(mine.lease, rows, None) };
    assert_eq!(commit(storage, mine_step).await, CommitOutcome::Committed);

    assert!(storage.find_thread(&OTHER, &tid("t")).await.unwrap().is_none());
    let all = ThreadFilter::default();
    assert_eq!(storage.count_threads(&OTHER, &all).await.unwrap(), 0);
    assert!(
        storage.search_threads(&OTHER, &all, ThreadSort::ThreadId, true, Page::default()).await.unwrap().is_empty()
    );
    assert!(storage.update_thread(&OTHER, &tid("t"), ThreadPatch::default()).await.unwrap().is_none());
    assert!(storage.delete_thread(&OTHER, &tid("t")).await.unwrap().is_none());
    assert!(storage.copy_thread(&OTHER, &tid("t"), &tid("u")).await.unwrap().is_none());
    assert!(storage.find_run(&OTHER, &tid("t"), id(1)).await.unwrap().is_none());
    assert!(storage.locate_run(&OTHER, id(1)).await.unwrap().is_none());
    assert!(storage.list_runs(&OTHER, &tid("t"), &RunFilter::default(), Page::default()).await.unwrap().is_none());
    assert_eq!(storage.delete_run(&OTHER, &tid("t"), id(1)).await.unwrap(), None);
    // With the thread's very key and lease in hand it makes no difference.
    assert!(storage.load_checkpoint(&OTHER, key("t"), "", &Which::Latest).await.unwrap().is_none());
    assert!(storage.list_checkpoints(&OTHER, key("t"), &CheckpointFilter::default(), 9).await.unwrap().is_empty());
    assert!(storage.load_heads(&OTHER, &[key("t")]).await.unwrap().is_empty());
    assert!(storage.load_payloads(&OTHER, key("t"), &[[1; 16]]).await.is_err());
    let range = LogRange { ns: String::new(), channel: "messages".into(), branch: 0, start: 0, end: 9 };
    assert!(storage.load_log(&OTHER, key("t"), &[range]).await.unwrap().is_empty());
    assert!(storage.read_events(&OTHER, key("t"), None, EventId(0), 9).await.unwrap().is_empty());
    let stolen = storage.commit_steps(&OTHER, &[head_step(mine.lease, "c2", None)]).await.unwrap();
    assert_eq!(stolen, [CommitOutcome::LeaseLost]);
    assert!(!storage.renew_leases(&OTHER, &[mine.lease], MINUTE).await.unwrap()[0].held);
    assert!(!storage.release_run(&OTHER, &mine.lease).await.unwrap());
    let request = CancelRequest { action: CancelAction::Interrupt, actor: None, reason: None };
    let running = CancelTarget::Status(vec![RunStatus::Pending, RunStatus::Running]);
    assert!(storage.cancel_runs(&OTHER, &running, &request).await.unwrap().is_empty());
    assert_eq!(storage.count_active(&OTHER).await.unwrap(), (0, 0));
    assert!(storage.claim_runs(&OTHER, &claim(MINUTE), 3, 9).await.unwrap().is_empty());
    // The same name is another thread there.
    let theirs = created(storage.create_run(&OTHER, run("t", 2)).await.unwrap()).0;
    assert_ne!(theirs.thread_key, key("t"));
    assert_eq!(storage.count_active(&Scope::Server).await.unwrap(), (1, 1));
    assert_eq!(storage.locate_run(&Scope::Server, id(2)).await.unwrap().unwrap().run_id, id(2));
}

async fn deleting_is_final(lab: Lab) {
    let storage = &lab.storage;
    let running = start(storage, "t", 1).await;
    storage.create_run(&TENANT, run("t", 2)).await.unwrap();
    assert_eq!(commit(storage, head_step(running.lease, "c1", None)).await, CommitOutcome::Committed);
    let active = storage.delete_thread(&TENANT, &tid("t")).await.unwrap().unwrap();
    assert_eq!(active, [id(1), id(2)]);
    assert!(storage.delete_thread(&TENANT, &tid("t")).await.unwrap().is_none());
    assert_eq!(commit(storage, head_step(running.lease, "c2", None)).await, CommitOutcome::LeaseLost);
    let late = storage.append_events(&TENANT, &running.lease, &[event(1, id(1))]).await.unwrap();
    assert_eq!(late, CommitOutcome::LeaseLost);
    let late = storage.rollback_run(&TENANT, &running.lease, ThreadStatus::Idle).await.unwrap();
    assert_eq!(late, CommitOutcome::LeaseLost);
    assert!(find_thread(storage, "t").await.is_none());
    assert!(storage.locate_run(&TENANT, id(1)).await.unwrap().is_none());
    assert!(storage.load_checkpoint(&TENANT, key("t"), "", &Which::Id("c1".into())).await.unwrap().is_none());
    // A new thread of that name starts empty, and its first lease is not the old one.
    let again = start(storage, "t", 3).await;
    assert_eq!(commit(storage, head_step(running.lease, "c2", None)).await, CommitOutcome::LeaseLost);
    assert_eq!(again.thread.head, None);
}

async fn a_copy_has_the_state_but_not_the_runs(lab: Lab) {
    let storage = &lab.storage;
    let running = start(storage, "from", 1).await;
    let rows = StepRows {
        checkpoints: vec![checkpoint("c1", Some(id(1)))],
        task_writes: vec![task_writes("c1", "task", Some(id(1)), "[1]")],
        payloads: vec![Payload { hash: [7; 16], value: json("\"seven\"") }],
        log: vec![log(0, 0, "[1,2]", Some(id(1)))],
        interrupts: vec![interrupt("q1", "c1", InterruptChange::Asked)],
        head: Some("c1".into()),
        ..StepRows::default()
    };
    let ended = end(RunStatus::Success, ThreadStatus::Interrupted);
    let all = StepCommit { events: vec![event(5, id(1))], ..step(running.lease, rows, ended) };
    assert_eq!(commit(storage, all).await, CommitOutcome::Committed);
    let copy = storage.copy_thread(&TENANT, &tid("from"), &tid("to")).await.unwrap().unwrap();
    assert_eq!((copy.head.as_deref(), copy.status, copy.last_event), (Some("c1"), ThreadStatus::Idle, 0));
    storage.delete_thread(&TENANT, &tid("from")).await.unwrap().unwrap();
    let questions = storage.list_interrupts(&TENANT, &InterruptFilter::default(), true, None, 9).await.unwrap();
    let [(_, question)] = questions.as_slice() else { panic!("not one question: {questions:?}") };
    assert_eq!((&question.thread_id, question.status), (&tid("to"), InterruptStatus::Pending));
    let head = storage.load_checkpoint(&TENANT, key("to"), "", &Which::Latest).await.unwrap().unwrap();
    assert_eq!((head.row.id.as_str(), head.writes.len()), ("c1", 1));
    assert_eq!(storage.load_payloads(&TENANT, key("to"), &[[7; 16]]).await.unwrap()[0].value.text(), "\"seven\"");
    let range = LogRange { ns: String::new(), channel: "messages".into(), branch: 0, start: 0, end: 2 };
    assert_eq!(storage.load_log(&TENANT, key("to"), &[range]).await.unwrap()[0].items.text(), "[1,2]");
    assert!(storage.read_events(&TENANT, key("to"), None, EventId(0), 9).await.unwrap().is_empty());
    let runs = storage.list_runs(&TENANT, &tid("to"), &RunFilter::default(), Page::default()).await.unwrap();
    assert!(runs.unwrap().is_empty());
    assert!(storage.copy_thread(&TENANT, &tid("from"), &tid("other")).await.unwrap().is_none());
    assert!(storage.copy_thread(&TENANT, &tid("to"), &tid("to")).await.is_err(), "the new id is taken");
}

async fn twenty_racers_create_one_thread(lab: Lab) {
    let racers = (0..20).map(|_| {
        let storage = lab.storage.clone();
        tokio::spawn(async move { storage.create_thread(&TENANT, thread("t")).await.unwrap() })
    });
    let outcomes = futures_util::future::join_all(racers).await;
    let new = outcomes.into_iter().filter(|outcome| matches!(outcome, Ok(ThreadCreated::New(_)))).count();
    assert_eq!(new, 1);
}

async fn what_waits_is_found_page_by_page(lab: Lab) {
    let storage = &lab.storage;
    storage.create_thread(&TENANT, thread("new")).await.unwrap();
    let rest = start(storage, "rest", 1).await.lease;
    let done = StepRows {
        checkpoints: vec![CheckpointRow { next: Vec::new(), ..checkpoint("c1", Some(id(1))) }],
        head: Some("c1".into()),
        ..StepRows::default()
    };
    commit(storage, step(rest, done, end(RunStatus::Success, ThreadStatus::Idle))).await;
    // Nodes are left at its head; the same of another tenant; a run is queued; another one, of another graph, too.
    let asked = start(storage, "asked", 2).await.lease;
    commit(storage, head_step(asked, "c1", end(RunStatus::Success, ThreadStatus::Interrupted))).await;
    let theirs = storage.create_run(&OTHER, claimed_run("theirs", 3, MINUTE)).await.unwrap();
    let RunCreated::Created { claimed: Some(theirs), .. } = theirs else { panic!("not claimed") };
    let theirs = head_step(theirs.lease, "c1", end(RunStatus::Success, ThreadStatus::Interrupted));
    storage.commit_steps(&OTHER, &[theirs]).await.unwrap();
    storage.create_run(&TENANT, run("queued", 4)).await.unwrap();
    storage.create_run(&TENANT, NewRun { graph_id: "another".into(), ..run("queued", 5) }).await.unwrap();

    let (mut after, mut found) = (None, Vec::new());
    loop {
        let page = storage.waiting_threads(&Scope::Server, after, 2).await.unwrap();
        assert!(page.len() <= 2);
        let Some(last) = page.last() else { break };
        after = Some(last.thread.key);
        found.extend(page);
    }
    let mut names: Vec<(&str, Vec<&str>)> = found
        .iter()
        .map(|waiting| (waiting.thread.id.as_str(), waiting.run_graphs.iter().map(String::as_str).collect()))
        .collect();
    names.sort();
    assert_eq!(names, [("asked", vec![]), ("queued", vec!["another", "graph"]), ("theirs", vec![])]);
    assert_eq!(storage.waiting_threads(&OTHER, None, 9).await.unwrap().len(), 1);
}
