//! Assistants and their versions.

use super::*;

for_each_backend!(
    versions_count_up_and_any_of_them_may_be_current,
    ids_are_taken_once_per_tenant,
    a_base_becomes_the_first_version,
    lists_are_filtered_sorted_and_paged,
    another_tenant_sees_nothing,
    deleting_takes_the_versions_too,
    runs_are_refused_when_their_assistant_changed,
    runs_of_an_assistant_are_cancelled_together,
    concurrent_changes_are_versions_of_their_own,
);

fn new(n: u128) -> NewAssistant {
    NewAssistant {
        created_at: None,
        assistant_id: id(n),
        graph_id: "graph".into(),
        name: format!("Name {n}"),
        description: None,
        config: json(r#"{"tags":["t"],"configurable":{"a":"x\u0000y"}}"#),
        context: json(r#"{"a":"x\u0000y"}"#),
        metadata: json(r#"{"kind":"test","nested":{"a":[1,2]},"nul":"\u0000"}"#),
    }
}

fn named(name: &str) -> AssistantPatch {
    AssistantPatch { name: Some(name.into()), ..AssistantPatch::default() }
}

async fn make(storage: &SharedStorage, n: u128) -> Assistant {
    match storage.create_assistant(&TENANT, new(n)).await.unwrap() {
        AssistantCreated::New(assistant) => assistant,
        AssistantCreated::Existing(found) => panic!("is there: {found:?}"),
    }
}

async fn find(storage: &SharedStorage, n: u128) -> Option<Assistant> {
    storage.find_assistants(&TENANT, &[id(n)]).await.unwrap().pop()
}

const ALL: Page = Page { limit: 100, offset: 0 };

async fn versions_count_up_and_any_of_them_may_be_current(lab: Lab) {
    let storage = &lab.storage;
    let first = make(storage, 1).await;
    assert_eq!((first.version, first.config.text()), (1, new(1).config.text()));
    assert_eq!(first.metadata.value(), new(1).metadata.value());
    let patch = AssistantPatch { metadata: Some(json(r#"{"more":1}"#)), ..named("two") };
    let second = storage.update_assistant(&TENANT, id(1), patch, None).await.unwrap().unwrap();
    assert_eq!((second.version, second.name.as_str()), (2, "two"));
    assert_eq!(second.metadata.get("kind"), new(1).metadata.get("kind"));
    assert_eq!(second.created_at, first.created_at);
    assert!(second.updated_at > first.updated_at);
    let back = storage.set_assistant_version(&TENANT, id(1), 1).await.unwrap().unwrap();
    assert_eq!((back.version, back.name.as_str(), back.created_at), (1, "Name 1", first.created_at));
    assert!(back.updated_at > second.updated_at);
    assert!(storage.set_assistant_version(&TENANT, id(1), 9).await.unwrap().is_none());
    let third = storage.update_assistant(&TENANT, id(1), named("three"), None).await.unwrap().unwrap();
    assert_eq!(third.version, 3, "counted from the greatest, not from the current one");
    assert!(third.metadata.get("more").is_none(), "made from the current one");
    assert_eq!(find(storage, 1).await.unwrap().name, "three");
    let versions = async |metadata: Option<Json>, page| {
        let found = storage.list_assistant_versions(&TENANT, id(1), metadata.as_ref(), page).await.unwrap();
        found.iter().map(|version| version.version).collect::<Vec<_>>()
    };
    assert_eq!(versions(None, ALL).await, [3, 2, 1]);
    assert_eq!(versions(None, Page { limit: 1, offset: 1 }).await, [2]);
    assert_eq!(versions(Some(json(r#"{"more":1}"#)), ALL).await, [2]);
    assert!(storage.update_assistant(&TENANT, id(9), named("x"), None).await.unwrap().is_none());
}

async fn ids_are_taken_once_per_tenant(lab: Lab) {
    let storage = &lab.storage;
    make(storage, 1).await;
    let again = NewAssistant { name: "other".into(), ..new(1) };
    let again = storage.create_assistant(&TENANT, again).await.unwrap();
    assert!(matches!(again, AssistantCreated::Existing(found) if found.name == "Name 1"));
    assert!(matches!(storage.create_assistant(&OTHER, new(1)).await.unwrap(), AssistantCreated::New(_)));
}

async fn a_base_becomes_the_first_version(lab: Lab) {
    let storage = &lab.storage;
    let changed = storage.update_assistant(&TENANT, id(1), named("changed"), Some(new(1))).await.unwrap().unwrap();
    assert_eq!((changed.version, changed.name.as_str()), (2, "changed"));
    let versions = storage.list_assistant_versions(&TENANT, id(1), None, ALL).await.unwrap();
    assert_eq!(versions.iter().map(|v| v.name.as_str()).collect::<Vec<_>>(), ["changed", "Name 1"]);
    let again = storage.update_assistant(&TENANT, id(1), named("again"), Some(new(1))).await.unwrap().unwrap();
    assert_eq!(again.version, 3);
    // It was there before it had a row, though never in the future.
    let old = NewAssistant { created_at: Some(Timestamp(1)), ..new(2) };
    let old = storage.update_assistant(&TENANT, id(2), named("old"), Some(old)).await.unwrap().unwrap();
    assert_eq!(old.created_at, Timestamp(1));
    assert!(old.updated_at > old.created_at);
    let future = NewAssistant { created_at: Some(Timestamp(i64::MAX)), ..new(3) };
    let future = storage.update_assistant(&TENANT, id(3), named("future"), Some(future)).await.unwrap().unwrap();
    assert!(future.created_at < future.updated_at, "{future:?}");
}

async fn lists_are_filtered_sorted_and_paged(lab: Lab) {
    let storage = &lab.storage;
    for n in 1..=3 {
        make(storage, n).await;
    }
    let patch = AssistantPatch {
        graph_id: Some("other".into()),
        metadata: Some(json(r#"{"kind":"special"}"#)),
        ..named("ÄRGER zwei")
    };
    storage.update_assistant(&TENANT, id(2), patch, None).await.unwrap();
    let search = async |filter: AssistantFilter, sort, ascending, page| {
        let found = storage.search_assistants(&TENANT, &filter, sort, ascending, page).await.unwrap();
        assert!(storage.count_assistants(&TENANT, &filter).await.unwrap() >= found.len() as i64);
        found.iter().map(|assistant| assistant.assistant_id.as_u128()).collect::<Vec<_>>()
    };
    let all = AssistantFilter::default;
    assert_eq!(search(all(), AssistantSort::CreatedAt, false, ALL).await, [3, 2, 1]);
    assert_eq!(search(all(), AssistantSort::UpdatedAt, false, ALL).await, [2, 3, 1]);
    assert_eq!(search(all(), AssistantSort::AssistantId, true, ALL).await, [1, 2, 3]);
    assert_eq!(search(all(), AssistantSort::Name, true, ALL).await, [1, 3, 2]);
    assert_eq!(search(all(), AssistantSort::GraphId, true, ALL).await, [1, 3, 2]);
    assert_eq!(search(all(), AssistantSort::AssistantId, true, Page { limit: 1, offset: 1 }).await, [2]);
    let filters = [
        AssistantFilter { graph_id: Some("other".into()), ..all() },
        AssistantFilter { name: Some("ärger".into()), ..all() },
        AssistantFilter { metadata: Some(json(r#"{"kind":"special","nested":{"a":[2]}}"#)), ..all() },
    ];
    for filter in filters {
        assert_eq!(storage.count_assistants(&TENANT, &filter).await.unwrap(), 1, "{filter:?}");
        assert_eq!(search(filter, AssistantSort::CreatedAt, true, ALL).await, [2]);
    }
    let nul = AssistantFilter { metadata: Some(json(r#"{"nul":"\u0000"}"#)), ..all() };
    assert_eq!(search(nul, AssistantSort::AssistantId, true, Page { limit: 5, offset: 1 }).await, [2, 3]);
}

async fn another_tenant_sees_nothing(lab: Lab) {
    let storage = &lab.storage;
    make(storage, 1).await;
    assert!(storage.find_assistants(&OTHER, &[id(1)]).await.unwrap().is_empty());
    assert_eq!(storage.count_assistants(&OTHER, &AssistantFilter::default()).await.unwrap(), 0);
    assert!(storage.update_assistant(&OTHER, id(1), named("x"), None).await.unwrap().is_none());
    assert!(storage.set_assistant_version(&OTHER, id(1), 1).await.unwrap().is_none());
    assert!(storage.list_assistant_versions(&OTHER, id(1), None, ALL).await.unwrap().is_empty());
    assert!(!storage.delete_assistant(&OTHER, id(1)).await.unwrap());
    assert!(find(storage, 1).await.is_some());
}

async fn deleting_takes_the_versions_too(lab: Lab) {
    let storage = &lab.storage;
    make(storage, 1).await;
    storage.update_assistant(&TENANT, id(1), named("two"), None).await.unwrap();
    assert!(storage.delete_assistant(&TENANT, id(1)).await.unwrap());
    assert!(!storage.delete_assistant(&TENANT, id(1)).await.unwrap());
    assert!(storage.list_assistant_versions(&TENANT, id(1), None, ALL).await.unwrap().is_empty());
    make(storage, 1).await;
    let versions = storage.list_assistant_versions(&TENANT, id(1), None, ALL).await.unwrap();
    assert_eq!(versions.len(), 1, "a new one with the same id starts anew");
}

async fn runs_are_refused_when_their_assistant_changed(lab: Lab) {
    let storage = &lab.storage;
    let assistant = make(storage, 900).await;
    let as_of = |at| NewRun { assistant_as_of: at, ..run("t", 1) };
    let stale = storage.create_run(&TENANT, as_of(None)).await.unwrap();
    assert!(matches!(stale, RunCreated::AssistantChanged), "somebody made it");
    storage.update_assistant(&TENANT, id(900), named("two"), None).await.unwrap();
    let stale = storage.create_run(&TENANT, as_of(Some(assistant.updated_at))).await.unwrap();
    assert!(matches!(stale, RunCreated::AssistantChanged), "somebody changed it");
    assert!(find_thread(storage, "t").await.is_none(), "nothing was inserted");
    let current = find(storage, 900).await.unwrap();
    created(storage.create_run(&TENANT, as_of(Some(current.updated_at))).await.unwrap());
    storage.delete_assistant(&TENANT, id(900)).await.unwrap();
    let gone = NewRun { assistant_as_of: Some(current.updated_at), ..run("t", 2) };
    assert!(matches!(storage.create_run(&TENANT, gone).await.unwrap(), RunCreated::AssistantChanged));
    created(storage.create_run(&OTHER, NewRun { run_id: id(3), ..run("t", 3) }).await.unwrap());
}

async fn runs_of_an_assistant_are_cancelled_together(lab: Lab) {
    let storage = &lab.storage;
    let running = start(storage, "a", 1).await.lease;
    created(storage.create_run(&TENANT, run("b", 2)).await.unwrap());
    let another = NewRun { assistant_id: id(901), ..run("b", 3) };
    created(storage.create_run(&TENANT, another).await.unwrap());
    let request = CancelRequest { action: CancelAction::Interrupt, actor: None, reason: None };
    let target = CancelTarget::Assistant(id(900));
    assert!(storage.cancel_runs(&OTHER, &target, &request).await.unwrap().is_empty());
    let mut cancelled = storage.cancel_runs(&TENANT, &target, &request).await.unwrap();
    cancelled.sort_by_key(|run| run.run_id);
    assert_eq!(
        cancelled.iter().map(|run| (run.run_id, run.running)).collect::<Vec<_>>(),
        [(id(1), true), (id(2), false)]
    );
    assert!(storage.renew_leases(&Scope::Server, &[running], MINUTE).await.unwrap()[0].cancel.is_some());
    assert_eq!(find_run(storage, "b", 3).await.unwrap().status, RunStatus::Pending);
}

async fn concurrent_changes_are_versions_of_their_own(lab: Lab) {
    let racers = (0..8).map(|n| {
        let storage = lab.storage.clone();
        tokio::spawn(async move {
            let patch = named(&format!("racer {n}"));
            storage.update_assistant(&TENANT, id(1), patch, Some(new(1))).await.unwrap().unwrap().version
        })
    });
    let mut versions: Vec<i64> =
        futures_util::future::join_all(racers).await.into_iter().map(|outcome| outcome.unwrap()).collect();
    versions.sort_unstable();
    assert_eq!(versions, (2..=9).collect::<Vec<i64>>());
    assert_eq!(find(&lab.storage, 1).await.unwrap().version, 9);
}
