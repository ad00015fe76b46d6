//! Items: the long-term memory.

use super::*;

for_each_backend!(
    an_item_is_replaced_and_keeps_its_age,
    values_round_trip_byte_for_byte,
    items_expire_and_reads_refresh_them,
    conditions_filter_by_value,
    prefixes_are_whole_labels,
    namespaces_are_listed_cut_and_paged,
    tenants_do_not_share_items,
    expired_items_are_swept_in_steps,
);

fn labels(namespace: &[&str]) -> Vec<String> {
    namespace.iter().map(|label| (*label).to_owned()).collect()
}

fn item(namespace: &[&str], key: &str, value: &str) -> NewItem {
    NewItem { namespace: labels(namespace), key: key.into(), value: json(value), ..NewItem::default() }
}

/// Rows of a table, whoever they belong to.
pub(super) async fn rows(lab: &Lab, table: &str) -> i64 {
    let count = AssertSqlSafe(format!("SELECT COUNT(*) FROM {table}"));
    if lab.is_postgres() {
        let mut conn = sqlx::PgConnection::connect(&lab.url).await.unwrap();
        sqlx::query_scalar(count).fetch_one(&mut conn).await.unwrap()
    } else {
        let mut conn = sqlx::SqliteConnection::connect(&lab.url).await.unwrap();
        sqlx::query_scalar(count).fetch_one(&mut conn).await.unwrap()
    }
}

async fn keys(lab: &Lab, prefix: &[&str], conditions: Vec<(Vec<String>, ItemMatch)>) -> Vec<String> {
    let filter = ItemFilter { prefix: labels(prefix), conditions, near: None };
    let page = Page { limit: 100, offset: 0 };
    let found = lab.storage.search_items(&TENANT, &filter, page, false).await.unwrap();
    let mut keys: Vec<String> = found.into_iter().map(|found| found.item.key).collect();
    keys.sort();
    keys
}

async fn an_item_is_replaced_and_keeps_its_age(lab: Lab) {
    let storage = &lab.storage;
    storage.put_item(&TENANT, item(&["a", "b"], "k", r#"{"v":1}"#)).await.unwrap();
    let first = storage.get_item(&TENANT, &labels(&["a", "b"]), "k", false).await.unwrap().unwrap();
    storage.put_item(&TENANT, item(&["a", "b"], "k", r#"{"v":2}"#)).await.unwrap();
    let second = storage.get_item(&TENANT, &labels(&["a", "b"]), "k", false).await.unwrap().unwrap();
    assert_eq!((second.created_at, second.value), (first.created_at, json(r#"{"v":2}"#)));
    assert!(second.updated_at > first.updated_at);
    assert_eq!((second.namespace, second.key.as_str()), (labels(&["a", "b"]), "k"));
    storage.delete_item(&TENANT, &labels(&["a", "b"]), "k").await.unwrap();
    storage.delete_item(&TENANT, &labels(&["a", "b"]), "k").await.unwrap();
    assert!(storage.get_item(&TENANT, &labels(&["a", "b"]), "k", false).await.unwrap().is_none());
}

async fn values_round_trip_byte_for_byte(lab: Lab) {
    let text = r#"{"z":1,"a":"\u0000","z":2,"n":123456789012345678901234567890,"e":1e2}"#;
    lab.storage.put_item(&TENANT, item(&["n\0ul", "\u{e000}"], "k\0", text)).await.unwrap();
    let found = lab.storage.get_item(&TENANT, &labels(&["n\0ul", "\u{e000}"]), "k\0", false).await.unwrap().unwrap();
    assert_eq!(found.value.text(), text);
    assert_eq!((found.namespace, found.key.as_str()), (labels(&["n\0ul", "\u{e000}"]), "k\0"));
}

async fn items_expire_and_reads_refresh_them(lab: Lab) {
    let storage = &lab.storage;
    let at = labels(&["n"]);
    let gone = NewItem { ttl_minutes: Some(0.0), ..item(&["n"], "gone", "{}") };
    storage.put_item(&TENANT, gone).await.unwrap();
    assert!(storage.get_item(&TENANT, &at, "gone", true).await.unwrap().is_none(), "a refresh does not revive");
    assert!(keys(&lab, &["n"], vec![]).await.is_empty());
    let spaces = storage.list_namespaces(&TENANT, &NamespaceFilter::default(), Page::default()).await.unwrap();
    assert!(spaces.is_empty());
    // 300 ms to live: read with refresh it outlives that, left alone it goes.
    let short = NewItem { ttl_minutes: Some(0.3 / 60.0), ..item(&["n"], "short", "{}") };
    storage.put_item(&TENANT, short).await.unwrap();
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(600) {
        let found = storage.get_item(&TENANT, &at, "short", true).await.unwrap();
        assert!(found.is_some(), "refreshed all the time");
    }
    let filter = ItemFilter::default();
    assert_eq!(storage.search_items(&TENANT, &filter, Page::default(), true).await.unwrap().len(), 1);
    eventually("the item expires", || async {
        storage.get_item(&TENANT, &at, "short", false).await.unwrap().is_none().then_some(())
    })
    .await;
    storage.put_item(&TENANT, item(&["n"], "kept", "{}")).await.unwrap();
    assert!(storage.get_item(&TENANT, &at, "kept", true).await.unwrap().is_some());
}

async fn conditions_filter_by_value(lab: Lab) {
    for (key, value) in [("a", r#"{"n":1,"s":"x"}"#), ("b", r#"{"n":2.5,"s":"y","o":{"p":1}}"#), ("c", r#"{"s":"z"}"#)]
    {
        lab.storage.put_item(&TENANT, item(&["n"], key, value)).await.unwrap();
    }
    let n = |condition: ItemMatch| vec![(labels(&["n"]), condition)];
    assert_eq!(keys(&lab, &[], n(ItemMatch::Eq(json("1.0")))).await, ["a"]);
    assert_eq!(keys(&lab, &[], n(ItemMatch::Ne(json("1")))).await, ["b", "c"]);
    assert_eq!(keys(&lab, &[], n(ItemMatch::Gt(json("1")))).await, ["b"]);
    assert_eq!(keys(&lab, &[], n(ItemMatch::Gte(json("1")))).await, ["a", "b"]);
    assert_eq!(keys(&lab, &[], n(ItemMatch::Lt(json("2")))).await, ["a"]);
    assert_eq!(keys(&lab, &[], n(ItemMatch::Lte(json("2.5")))).await, ["a", "b"]);
    let both = vec![
        (labels(&["s"]), ItemMatch::Gt(json("\"x\""))),
        (labels(&["o"]), ItemMatch::Eq(json(r#"{"p":1}"#))),
        (labels(&["o", "p"]), ItemMatch::Lt(json("2"))),
    ];
    assert_eq!(keys(&lab, &[], both).await, ["b"]);
    assert_eq!(keys(&lab, &[], vec![(labels(&["o", "p"]), ItemMatch::Ne(json("1")))]).await, ["a", "c"]);
    assert!(keys(&lab, &[], vec![(labels(&["s", "p"]), ItemMatch::Eq(json("1")))]).await.is_empty());
    let filter = ItemFilter { conditions: n(ItemMatch::Ne(json("7"))), ..ItemFilter::default() };
    let page = Page { limit: 1, offset: 1 };
    let found = lab.storage.search_items(&TENANT, &filter, page, false).await.unwrap();
    assert_eq!(
        found.iter().map(|found| found.item.key.as_str()).collect::<Vec<_>>(),
        ["b"],
        "most recently updated first"
    );
    let filter = ItemFilter::default();
    let found = lab.storage.search_items(&TENANT, &filter, page, false).await.unwrap();
    assert_eq!(found[0].item.key, "b");
}

async fn prefixes_are_whole_labels(lab: Lab) {
    for (n, namespace) in
        [&["a"][..], &["a", "b"], &["ab"], &["a-b"], &["a/"], &["a%"], &["A"], &["a", "b", "c"]].into_iter().enumerate()
    {
        lab.storage.put_item(&TENANT, item(namespace, &n.to_string(), "{}")).await.unwrap();
    }
    assert_eq!(keys(&lab, &["a"], vec![]).await, ["0", "1", "7"]);
    assert_eq!(keys(&lab, &["a", "b"], vec![]).await, ["1", "7"]);
    assert_eq!(keys(&lab, &["a%"], vec![]).await, ["5"]);
    assert_eq!(keys(&lab, &[], vec![]).await.len(), 8);
}

async fn namespaces_are_listed_cut_and_paged(lab: Lab) {
    for namespace in [&["a", "b", "z"][..], &["a", "c", "z"], &["a", "c", "y"], &["a-b", "z"], &["b"]] {
        lab.storage.put_item(&TENANT, item(namespace, "k", "{}")).await.unwrap();
    }
    let list = async |filter: NamespaceFilter, limit, offset| {
        let found = lab.storage.list_namespaces(&TENANT, &filter, Page { limit, offset }).await.unwrap();
        found.into_iter().map(|labels| labels.join(".")).collect::<Vec<_>>()
    };
    let all = NamespaceFilter::default();
    assert_eq!(list(all.clone(), 10, 0).await, ["a.b.z", "a.c.y", "a.c.z", "a-b.z", "b"]);
    assert_eq!(list(all.clone(), 2, 1).await, ["a.c.y", "a.c.z"]);
    let below = NamespaceFilter { prefix: labels(&["a"]), ..all.clone() };
    assert_eq!(list(below.clone(), 10, 0).await, ["a.b.z", "a.c.y", "a.c.z"]);
    assert_eq!(list(NamespaceFilter { max_depth: Some(2), ..below }, 10, 0).await, ["a.b", "a.c"]);
    let ending = |suffix: &[&str]| NamespaceFilter { suffix: labels(suffix), ..NamespaceFilter::default() };
    assert_eq!(list(ending(&["z"]), 10, 0).await, ["a.b.z", "a.c.z", "a-b.z"]);
    // `*` stands for any one label.
    let starting = |prefix: &[&str]| NamespaceFilter { prefix: labels(prefix), ..NamespaceFilter::default() };
    assert_eq!(list(starting(&["*", "c"]), 10, 0).await, ["a.c.y", "a.c.z"]);
    assert_eq!(list(starting(&["a", "*", "z"]), 10, 0).await, ["a.b.z", "a.c.z"]);
    assert_eq!(list(ending(&["c", "*"]), 10, 0).await, ["a.c.y", "a.c.z"]);
    assert_eq!(list(ending(&["*", "*", "*", "*"]), 10, 0).await, Vec::<String>::new());
    assert_eq!(list(NamespaceFilter { suffix: labels(&["y"]), ..starting(&["a"]) }, 10, 0).await, ["a.c.y"]);
}

async fn tenants_do_not_share_items(lab: Lab) {
    lab.storage.put_item(&TENANT, item(&["n"], "k", "{}")).await.unwrap();
    let storage = &lab.storage;
    assert!(storage.get_item(&OTHER, &labels(&["n"]), "k", true).await.unwrap().is_none());
    assert!(storage.search_items(&OTHER, &ItemFilter::default(), Page::default(), true).await.unwrap().is_empty());
    let spaces = storage.list_namespaces(&OTHER, &NamespaceFilter::default(), Page::default()).await.unwrap();
    assert!(spaces.is_empty());
    storage.delete_item(&OTHER, &labels(&["n"]), "k").await.unwrap();
    assert!(storage.get_item(&TENANT, &labels(&["n"]), "k", false).await.unwrap().is_some());
}

async fn expired_items_are_swept_in_steps(lab: Lab) {
    let storage = &lab.storage;
    let over = |namespace: &[&str], key: &str| NewItem { ttl_minutes: Some(0.0), ..item(namespace, key, "{}") };
    storage.put_item(&TENANT, over(&["n"], "gone")).await.unwrap();
    storage.put_item(&OTHER, over(&["n"], "theirs")).await.unwrap();
    storage.put_item(&TENANT, NewItem { ttl_minutes: Some(60.0), ..item(&["n"], "later", "{}") }).await.unwrap();
    storage.put_item(&TENANT, item(&["n"], "kept", "{}")).await.unwrap();
    assert!(!storage.sweep_items(&TENANT).await.unwrap(), "fewer than a step");
    if !lab.is_memory() {
        let left = rows(&lab, "items").await;
        assert_eq!(left, 3, "those of one tenant");
    }
    assert!(!storage.sweep_items(&Scope::Server).await.unwrap());
    if !lab.is_memory() {
        assert_eq!(rows(&lab, "items").await, 2);
    }
    assert_eq!(keys(&lab, &["n"], vec![]).await, ["kept", "later"]);
    let before = storage.write_transactions();
    assert!(!storage.sweep_items(&Scope::Server).await.unwrap());
    assert_eq!(storage.write_transactions(), before, "nothing to do costs no write");
}
