//! Checkpoints, task writes, payloads, logs: what is read back is what was written.

use super::*;

for_each_backend!(
    checkpoints_are_found_by_head_id_and_age,
    a_history_is_filtered_and_paged,
    the_latest_run_wins_a_task,
    payloads_are_kept_once_and_byte_for_byte,
    a_log_is_read_by_ranges,
    branches_that_went_on_are_named,
    heads_of_many_threads_are_read_at_once,
    damaged_bytes_name_their_place,
);

fn in_ns(ns: &str, checkpoint_id: &str, metadata: &str) -> CheckpointRow {
    CheckpointRow { ns: ns.into(), metadata: json(metadata), ..checkpoint(checkpoint_id, None) }
}

/// Commits rows as a state change of a thread at rest.
async fn put(lab: &Lab, name: &str, rows: StepRows) {
    lab.storage.create_thread(&TENANT, thread(name)).await.unwrap();
    let expected_head = find_thread(&lab.storage, name).await.unwrap().head;
    let change = StateCommit {
        thread_id: tid(name),
        expected_head,
        base: None,
        rows,
        events: vec![],
        thread_status: ThreadStatus::Idle,
        view: None,
        moves: None,
    };
    assert_eq!(lab.storage.commit_state(&TENANT, change).await.unwrap(), StateOutcome::Committed);
}

async fn checkpoints_are_found_by_head_id_and_age(lab: Lab) {
    let full = CheckpointRow {
        parent: Some("0".into()),
        run_id: Some(id(5)),
        step: -1,
        source: CheckpointSource::Fork,
        at: Timestamp(123),
        next: vec!["a".into(), "b".into()],
        body: json(r#"{"z":1,"a":"\u0000"}"#),
        bytes: 77,
        ..in_ns("", "2", r#"{"source":"fork","step":-1,"nul":"\u0000"}"#)
    };
    let rows = StepRows {
        checkpoints: vec![
            in_ns("", "1", "{}"),
            full.clone(),
            in_ns("", "3", "{}"),
            in_ns("sub", "4", "{}"),
            in_ns("sub", "5", "{}"),
        ],
        head: Some("2".into()),
        ..StepRows::default()
    };
    put(&lab, "t", rows).await;
    let load = async |ns: &str, which: Which| {
        lab.storage.load_checkpoint(&TENANT, key("t"), ns, &which).await.unwrap().map(|found| found.row)
    };
    let head = load("", Which::Latest).await.unwrap();
    assert_eq!(head.metadata, full.metadata);
    // Metadata is equal by value; a backend may order its members.
    let head = CheckpointRow { metadata: full.metadata.clone(), ..head };
    assert_eq!(format!("{head:?}"), format!("{full:?}"), "the head column decides, not the greatest id");
    assert_eq!(load("", Which::Id("3".into())).await.unwrap().id, "3");
    assert_eq!(load("", Which::Before("3".into())).await.unwrap().id, "2");
    assert_eq!(load("sub", Which::Latest).await.unwrap().id, "5");
    assert!(load("", Which::Before("1".into())).await.is_none());
    assert!(load("", Which::Id("9".into())).await.is_none());
    assert!(load("none", Which::Latest).await.is_none());
    assert!(lab.storage.load_checkpoint(&TENANT, key("x"), "", &Which::Latest).await.unwrap().is_none());
    assert_eq!(lab.storage.list_namespaces_of(&TENANT, &tid("t")).await.unwrap(), ["", "sub"]);
    assert!(lab.storage.list_namespaces_of(&TENANT, &tid("x")).await.unwrap().is_empty());
}

async fn a_history_is_filtered_and_paged(lab: Lab) {
    let rows = StepRows {
        checkpoints: vec![
            in_ns("", "1", r#"{"step":1,"o":{"a":1}}"#),
            in_ns("", "2", r#"{"step":2,"o":{"a":1,"b":2}}"#),
            in_ns("", "3", r#"{"step":2}"#),
            in_ns("sub", "4", r#"{"step":2}"#),
        ],
        task_writes: vec![task_writes("2", "task", None, "[]")],
        head: Some("3".into()),
        ..StepRows::default()
    };
    put(&lab, "t", rows).await;
    let list = async |filter: CheckpointFilter, limit| {
        let found = lab.storage.list_checkpoints(&TENANT, key("t"), &filter, limit).await.unwrap();
        found.into_iter().map(|found| found.row.id).collect::<Vec<_>>()
    };
    let all = CheckpointFilter::default();
    assert_eq!(list(all.clone(), 10).await, ["3", "2", "1"]);
    assert_eq!(list(all.clone(), 2).await, ["3", "2"]);
    assert_eq!(list(CheckpointFilter { before: Some("3".into()), ..all.clone() }, 10).await, ["2", "1"]);
    assert_eq!(list(CheckpointFilter { id: Some("2".into()), ..all.clone() }, 10).await, ["2"]);
    assert_eq!(list(CheckpointFilter { ns: "sub".into(), ..all.clone() }, 10).await, ["4"]);
    let with = |text: &str| CheckpointFilter { metadata: Some(json(text)), ..CheckpointFilter::default() };
    assert_eq!(list(with(r#"{"step":2}"#), 10).await, ["3", "2"]);
    assert_eq!(list(with(r#"{"step":2}"#), 1).await, ["3"]);
    assert_eq!(list(with(r#"{"o":{"a":1}}"#), 10).await, ["1"], "equality, not containment");
    assert!(list(with(r#"{"none":1}"#), 10).await.is_empty());
    let found = lab.storage.list_checkpoints(&TENANT, key("t"), &all, 10).await.unwrap();
    assert_eq!(found.iter().map(|found| found.writes.len()).collect::<Vec<_>>(), [0, 1, 0]);
}

async fn the_latest_run_wins_a_task(lab: Lab) {
    let storage = &lab.storage;
    let first = start(storage, "t", 9).await;
    let rows = StepRows {
        task_writes: vec![
            task_writes("c1", "b", Some(id(9)), "[\"first\"]"),
            task_writes("c1", "a", Some(id(9)), "[\"draft\"]"),
            task_writes("c1", "a", Some(id(9)), "[\"kept\"]"),
        ],
        ..head_step(first.lease, "c1", None).rows
    };
    assert_eq!(commit(storage, step(first.lease, rows, None)).await, CommitOutcome::Committed);
    let again =
        StepRows { task_writes: vec![task_writes("c1", "b", Some(id(9)), "[\"again\"]")], ..StepRows::default() };
    let ended = end(RunStatus::Interrupted, ThreadStatus::Interrupted);
    assert_eq!(commit(storage, step(first.lease, again, ended)).await, CommitOutcome::Committed);
    let bodies = async || {
        let found = storage.load_checkpoint(&TENANT, key("t"), "", &Which::Latest).await.unwrap().unwrap();
        found.writes.iter().map(|row| (row.task_id.clone(), row.body.text(), row.run_id)).collect::<Vec<_>>()
    };
    let row = |task: &str, text: &str, run: Option<u128>| (task.to_owned(), format!("[\"{text}\"]"), run.map(id));
    assert_eq!(bodies().await, [row("a", "kept", Some(9)), row("b", "again", Some(9))]);
    // A later run with a smaller id.
    let second = start(storage, "t", 8).await;
    let rows =
        StepRows { task_writes: vec![task_writes("c1", "b", Some(id(8)), "[\"second\"]")], ..StepRows::default() };
    assert_eq!(commit(storage, step(second.lease, rows, None)).await, CommitOutcome::Committed);
    assert_eq!(bodies().await, [row("a", "kept", Some(9)), row("b", "second", Some(8))]);
    storage.rollback_run(&TENANT, &second.lease, ThreadStatus::Interrupted).await.unwrap();
    assert_eq!(bodies().await, [row("a", "kept", Some(9)), row("b", "again", Some(9))]);
    let outside = StepRows { task_writes: vec![task_writes("c1", "a", None, "[\"outside\"]")], ..StepRows::default() };
    put(&lab, "t", outside).await;
    assert_eq!(bodies().await, [row("a", "outside", None), row("b", "again", Some(9))]);
}

async fn payloads_are_kept_once_and_byte_for_byte(lab: Lab) {
    let texts = [
        r#"{"z":1,"a":2,"z":3}"#,
        r#""\u0000 \ud83d\ude00 é""#,
        "123456789012345678901234567890",
        "1.10e+05",
        "null",
        "[]",
    ];
    let payloads: Vec<Payload> =
        (0_u8..).zip(texts).map(|(n, text)| Payload { hash: [n; 16], value: json(text) }).collect();
    put(&lab, "t", StepRows { payloads: payloads.clone(), ..StepRows::default() }).await;
    let doubled = Payload { hash: [0; 16], value: json("\"another\"") };
    put(&lab, "t", StepRows { payloads: vec![doubled.clone(), doubled], ..StepRows::default() }).await;
    let hashes: Vec<PayloadHash> = payloads.iter().map(|payload| payload.hash).collect();
    let mut found = lab.storage.load_payloads(&TENANT, key("t"), &hashes).await.unwrap();
    found.sort_by_key(|payload| payload.hash);
    assert_eq!(found.iter().map(|payload| payload.value.text()).collect::<Vec<_>>(), texts, "the first one stays");
    assert!(lab.storage.load_payloads(&TENANT, key("t"), &[]).await.unwrap().is_empty());
    let error = lab.storage.load_payloads(&TENANT, key("t"), &[[1; 16], [99; 16]]).await.unwrap_err();
    assert!(matches!(&error, StorageError::Corrupt { table: "payloads", id, .. } if id.contains("636363")), "{error}");
    // Another thread has its own.
    assert!(lab.storage.load_payloads(&TENANT, key("u"), &[[1; 16]]).await.is_err());
}

async fn a_log_is_read_by_ranges(lab: Lab) {
    let rows = StepRows {
        log: vec![
            log(0, 0, "[0,1]", None),
            log(0, 2, "[2]", None),
            log(0, 3, r#"[{"z":1,"a":"\u0000"},4,5]"#, None),
            log(1, 2, "[\"fork\"]", None),
            LogRow { channel: "other".into(), ..log(0, 0, "[9]", None) },
            LogRow { ns: "sub".into(), ..log(0, 0, "[8]", None) },
        ],
        ..StepRows::default()
    };
    put(&lab, "t", rows).await;
    let range = |branch, start, end| LogRange { ns: String::new(), channel: "messages".into(), branch, start, end };
    let load = async |ranges: &[LogRange]| {
        let found = lab.storage.load_log(&TENANT, key("t"), ranges).await.unwrap();
        found.into_iter().map(|row| (row.branch, row.start, row.items.text())).collect::<Vec<_>>()
    };
    let (a, b, c) =
        ((0, 0, "[0,1]".to_owned()), (0, 2, "[2]".to_owned()), (0, 3, r#"[{"z":1,"a":"\u0000"},4,5]"#.to_owned()));
    assert_eq!(load(&[range(0, 0, 6)]).await, [a.clone(), b.clone(), c.clone()]);
    assert_eq!(load(&[range(0, 1, 3)]).await, [a.clone(), b.clone()]);
    assert_eq!(load(&[range(0, 4, 5)]).await, std::slice::from_ref(&c));
    assert_eq!(load(&[range(1, 2, 3), range(0, 0, 2)]).await, [(1, 2, "[\"fork\"]".to_owned()), a]);
    assert!(load(&[range(0, 6, 9), range(7, 0, 9)]).await.is_empty());
    assert!(load(&[]).await.is_empty());
}

async fn branches_that_went_on_are_named(lab: Lab) {
    let rows = StepRows { log: vec![log(0, 0, "[0,1]", None), log(1, 2, "[2]", None)], ..StepRows::default() };
    put(&lab, "t", rows).await;
    let end = |branch, length| (String::new(), "messages".to_owned(), branch, length);
    let ends = [end(1, 2), end(0, 2), end(0, 1), end(1, 3), end(5, 0)];
    let continued = lab.storage.continued_branches(&TENANT, key("t"), &ends).await.unwrap();
    let named = |branch| (String::new(), "messages".to_owned(), branch);
    assert_eq!(continued, [named(1), named(0)]);
    assert!(lab.storage.continued_branches(&TENANT, key("t"), &[]).await.unwrap().is_empty());
}

async fn heads_of_many_threads_are_read_at_once(lab: Lab) {
    for name in ["a", "b"] {
        let rows = StepRows {
            checkpoints: vec![in_ns("", &format!("{name}1"), "{}"), in_ns("", &format!("{name}2"), "{}")],
            task_writes: vec![task_writes(&format!("{name}2"), "task", None, "[]")],
            head: Some(format!("{name}2")),
            ..StepRows::default()
        };
        put(&lab, name, rows).await;
    }
    lab.storage.create_thread(&TENANT, thread("empty")).await.unwrap();
    let keys = [key("b"), key("empty"), key("a"), key("nobody")];
    let heads = lab.storage.load_heads(&TENANT, &keys).await.unwrap();
    let seen: Vec<_> = heads.iter().map(|(key, head)| (*key, head.row.id.as_str(), head.writes.len())).collect();
    assert_eq!(seen, [(key("b"), "b2", 1), (key("a"), "a2", 1)]);
    assert!(lab.storage.load_heads(&TENANT, &[]).await.unwrap().is_empty());
}

async fn damaged_bytes_name_their_place(lab: Lab) {
    if lab.is_memory() {
        return;
    }
    let storage = &lab.storage;
    let running = start(storage, "t", 1).await;
    let rows = StepRows {
        checkpoints: vec![checkpoint("c1", Some(id(1)))],
        task_writes: vec![task_writes("c1", "task", Some(id(1)), "[]")],
        payloads: vec![Payload { hash: [1; 16], value: json("1") }],
        log: vec![log(0, 0, "[1]", None)],
        interrupts: vec![interrupt("q1", "c1", InterruptChange::Asked)],
        head: Some("c1".into()),
        ..StepRows::default()
    };
    let all = StepCommit { events: vec![event(1, id(1))], ..step(running.lease, rows, None) };
    assert_eq!(commit(storage, all).await, CommitOutcome::Committed);
    let item = NewItem { namespace: vec!["n".into()], key: "k".into(), value: json("{}"), ..NewItem::default() };
    storage.put_item(&TENANT, item).await.unwrap();

    let bytes = |hex: &str| if lab.is_postgres() { format!("'\\x{hex}'::bytea") } else { format!("x'{hex}'") };
    let damages = [
        ("codec = 7".to_owned(), "codec 7"),
        (format!("codec = 0, COLUMN = {}", bytes("7b22")), ""),
        (format!("codec = 0, COLUMN = {}", bytes("ff")), "utf-8"),
    ];
    for (table, column) in [
        ("threads", "config"),
        ("threads", "view"),
        ("runs", "kwargs"),
        ("task_writes", "body"),
        ("checkpoints", "body"),
        ("payloads", "value"),
        ("channel_log", "items"),
        ("events", "data"),
        ("items", "value"),
    ] {
        for (damage, why) in &damages {
            lab.tamper(&format!("UPDATE {table} SET {}", damage.replace("COLUMN", column))).await;
            let range = LogRange { ns: String::new(), channel: "messages".into(), branch: 0, start: 0, end: 1 };
            let error = match table {
                "threads" => storage.find_thread(&TENANT, &tid("t")).await.err(),
                "runs" => storage.find_run(&TENANT, &tid("t"), id(1)).await.err(),
                "payloads" => storage.load_payloads(&TENANT, key("t"), &[[1; 16]]).await.err(),
                "channel_log" => storage.load_log(&TENANT, key("t"), &[range]).await.err(),
                "events" => storage.read_events(&TENANT, key("t"), None, EventId(0), 9).await.err(),
                "items" => storage.get_item(&TENANT, &["n".into()], "k", false).await.err(),
                _ => storage.load_checkpoint(&TENANT, key("t"), "", &Which::Latest).await.err(),
            };
            let error = error.unwrap_or_else(|| panic!("{table} reads damage: {damage}"));
            let StorageError::Corrupt { table: named, column: at, id, reason } = &error else { panic!("{error}") };
            assert_eq!(*named, table, "{error}");
            // An unknown codec is found at the first byte column of the row.
            assert!(*at == column || matches!(*at, "next_nodes" | "config"), "{error}");
            assert!(table != "threads" || (*id == key("t").0.to_string() && (*at == column || damage == "codec = 7")));
            assert!(!id.is_empty() && reason.contains(why), "{error}");
        }
        if matches!(table, "threads" | "task_writes") {
            lab.tamper(&format!("UPDATE {table} SET codec = 0, {column} = {}", bytes("5b5d"))).await;
        }
    }
}
