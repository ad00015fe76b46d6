//! The cache of node outputs.

use super::*;

for_each_backend!(
    outputs_come_back_byte_for_byte_until_they_are_replaced,
    entries_expire_by_the_databases_clock,
    a_sweep_keeps_the_newest_within_the_bound,
    a_sweep_takes_bounded_steps,
    tenants_do_not_share_outputs,
    a_graph_is_cleared_alone,
    damaged_outputs_name_their_place,
);

fn cache_key(n: usize) -> CacheKey {
    let mut key = [0xa5; 32];
    key[..8].copy_from_slice(&n.to_be_bytes());
    key
}

fn entry(n: usize, output: &str) -> NewCacheEntry {
    NewCacheEntry { key: cache_key(n), graph_id: "graph".into(), output: json(output), ttl: None }
}

async fn put(lab: &Lab, entries: Vec<NewCacheEntry>) {
    lab.storage.put_cached(&TENANT, entries).await.unwrap();
}

/// Which of the keys up to `below` are there.
async fn there(lab: &Lab, scope: &Scope, below: usize) -> Vec<usize> {
    let keys: Vec<CacheKey> = (0..below).map(cache_key).collect();
    let found = lab.storage.find_cached(scope, &keys).await.unwrap();
    (0..below).filter(|n| found.iter().any(|entry| entry.key == cache_key(*n))).collect()
}

async fn sweep_all(lab: &Lab, max_bytes: i64) {
    while lab.storage.sweep_cache(&Scope::Server, max_bytes).await.unwrap() {}
}

async fn outputs_come_back_byte_for_byte_until_they_are_replaced(lab: Lab) {
    let text = r#"{"z":1,"a":"\u0000","z":2,"n":123456789012345678901234567890,"e":1e2}"#;
    put(&lab, Vec::new()).await;
    put(&lab, vec![entry(1, "1"), entry(0, "0"), entry(1, text)]).await;
    let find = async |n: usize| lab.storage.find_cached(&TENANT, &[cache_key(n)]).await.unwrap().pop();
    let found = find(1).await.unwrap();
    assert_eq!((found.output.text(), found.time_left), (text.to_owned(), None), "the last of one call counts");
    put(&lab, vec![NewCacheEntry { ttl: Some(MINUTE), ..entry(1, "2") }]).await;
    let found = find(1).await.unwrap();
    assert_eq!(found.output, json("2"));
    assert!(found.time_left.is_some_and(|left| left <= MINUTE && left > Duration::ZERO), "{found:?}");
    assert!(find(2).await.is_none());
    assert!(lab.storage.find_cached(&TENANT, &[]).await.unwrap().is_empty());
    let many: Vec<NewCacheEntry> = (0..1_200).map(|n| entry(n, "[]")).collect();
    put(&lab, many).await;
    assert_eq!(there(&lab, &TENANT, 1_300).await.len(), 1_200, "more keys than one statement of SQLite may hold");
}

async fn entries_expire_by_the_databases_clock(lab: Lab) {
    let ttl = |ttl| NewCacheEntry { ttl: Some(ttl), ..entry(0, "1") };
    put(&lab, vec![ttl(Duration::ZERO)]).await;
    assert!(there(&lab, &TENANT, 1).await.is_empty());
    put(&lab, vec![ttl(Duration::from_millis(50))]).await;
    eventually("the entry expires", || async { there(&lab, &TENANT, 1).await.is_empty().then_some(()) }).await;
    put(&lab, vec![ttl(Duration::MAX)]).await;
    assert_eq!(there(&lab, &TENANT, 1).await, [0], "what is put anew has its own time");
    let gone = NewCacheEntry { ttl: Some(Duration::ZERO), ..entry(1, "1") };
    put(&lab, vec![gone, entry(2, "1")]).await;
    sweep_all(&lab, i64::MAX).await;
    assert_eq!(there(&lab, &TENANT, 3).await, [0, 2]);
}

async fn a_sweep_keeps_the_newest_within_the_bound(lab: Lab) {
    // One after the other, so that their ages differ; the first is renewed by being put again.
    for n in [0, 1, 2, 3, 0] {
        put(&lab, vec![entry(n, &format!("\"{}\"", "x".repeat(1_000)))]).await;
    }
    sweep_all(&lab, 10_000).await;
    assert_eq!(there(&lab, &TENANT, 4).await, [0, 1, 2, 3]);
    sweep_all(&lab, 2_500).await;
    assert_eq!(there(&lab, &TENANT, 4).await, [0, 3]);
    sweep_all(&lab, 0).await;
    assert!(there(&lab, &TENANT, 4).await.is_empty());
}

async fn a_sweep_takes_bounded_steps(lab: Lab) {
    let rows = STEP_ROWS as usize;
    put(&lab, (0..rows + 1).map(|n| entry(n, "1")).collect()).await;
    assert!(lab.storage.sweep_cache(&Scope::Server, 0).await.unwrap(), "there is more");
    assert_eq!(there(&lab, &TENANT, rows + 1).await.len(), 1);
    assert!(!lab.storage.sweep_cache(&Scope::Server, 0).await.unwrap());
    assert!(there(&lab, &TENANT, rows + 1).await.is_empty());
}

async fn tenants_do_not_share_outputs(lab: Lab) {
    put(&lab, vec![entry(0, "1")]).await;
    assert!(there(&lab, &OTHER, 1).await.is_empty());
    lab.storage.put_cached(&OTHER, vec![entry(0, "2")]).await.unwrap();
    let own = lab.storage.find_cached(&TENANT, &[cache_key(0)]).await.unwrap();
    assert_eq!(own[0].output, json("1"));
    assert!(!lab.storage.clear_cache(&OTHER, "graph").await.unwrap());
    assert!(!lab.storage.sweep_cache(&OTHER, 0).await.unwrap());
    assert_eq!((there(&lab, &TENANT, 1).await, there(&lab, &OTHER, 1).await), (vec![0], vec![]));
}

async fn a_graph_is_cleared_alone(lab: Lab) {
    let other = NewCacheEntry { graph_id: "other".into(), ..entry(1, "1") };
    put(&lab, vec![entry(0, "1"), other]).await;
    assert!(!lab.storage.clear_cache(&TENANT, "graph").await.unwrap());
    assert_eq!(there(&lab, &TENANT, 2).await, [1]);
}

async fn damaged_outputs_name_their_place(lab: Lab) {
    if lab.is_memory() {
        return;
    }
    put(&lab, vec![entry(0, "1")]).await;
    lab.tamper("UPDATE cache_entries SET codec = 99").await;
    let error = lab.storage.find_cached(&TENANT, &[cache_key(0)]).await.unwrap_err();
    assert!(matches!(error, StorageError::Corrupt { table: "cache_entries", column: "output", .. }), "{error}");
    put(&lab, vec![entry(0, "2")]).await;
    assert_eq!(there(&lab, &TENANT, 1).await, [0], "written over");
}
