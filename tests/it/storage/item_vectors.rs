//! Items found by their vectors.

use super::items::rows;
use super::*;

for_each_backend_and_pgvector!(
    the_nearest_come_first_with_their_scores,
    a_query_goes_with_prefix_and_conditions,
    pages_of_the_nearest_do_not_overlap,
    an_item_is_as_near_as_its_nearest_vector,
    vectors_are_replaced_and_removed_with_their_item,
    items_without_a_vector_fill_the_page,
    vectors_of_other_models_and_sizes_do_not_count,
    expired_items_are_not_found_by_vector,
    tenants_do_not_share_vectors,
    racing_writers_leave_the_vectors_of_one_of_them,
    items_are_embedded_again_unless_they_changed,
    damaged_vectors_name_their_place,
);

const MODEL: &str = "test:1";

fn labels(namespace: &[&str]) -> Vec<String> {
    namespace.iter().map(|label| (*label).to_owned()).collect()
}

/// A vector of length 1 in the plane, so many degrees from the first axis.
fn at(degrees: f32) -> Vec<f32> {
    vec![degrees.to_radians().cos(), degrees.to_radians().sin()]
}

fn embedded(vectors: &[(&str, f32)]) -> Option<Embedded> {
    let vectors = vectors.iter().map(|(path, degrees)| ItemVector { path: (*path).to_owned(), vector: at(*degrees) });
    Some(Embedded { model: MODEL.to_owned(), vectors: vectors.collect() })
}

fn item(namespace: &[&str], key: &str, value: &str, vectors: &[(&str, f32)]) -> NewItem {
    let (namespace, embedded) = (labels(namespace), embedded(vectors));
    NewItem { namespace, key: key.into(), value: json(value), embedded, ..NewItem::default() }
}

/// What is near to the first axis.
fn near() -> ItemFilter {
    ItemFilter { near: Some(Near { model: MODEL.to_owned(), vector: at(0.0) }), ..ItemFilter::default() }
}

/// Keys with their scores in hundredths; `None` is -100.
async fn found_by(storage: &SharedStorage, scope: &Scope, filter: &ItemFilter, page: Page) -> Vec<(String, i64)> {
    let found = storage.search_items(scope, filter, page, false).await.unwrap();
    let hundredths = |score: Option<f64>| score.map_or(-100, |score| (score * 100.0).round() as i64);
    found.into_iter().map(|found| (found.item.key, hundredths(found.score))).collect()
}

async fn found(lab: &Lab, filter: &ItemFilter) -> Vec<(String, i64)> {
    found_by(&lab.storage, &TENANT, filter, Page { limit: 10, offset: 0 }).await
}

fn pairs(expected: &[(&str, i64)]) -> Vec<(String, i64)> {
    expected.iter().map(|(key, score)| ((*key).to_owned(), *score)).collect()
}

async fn put(lab: &Lab, items: impl IntoIterator<Item = NewItem>) {
    for item in items {
        lab.storage.put_item(&TENANT, item).await.unwrap();
    }
}

async fn the_nearest_come_first_with_their_scores(lab: Lab) {
    let of = |key: &str, degrees: f32| item(&["n"], key, "{}", &[("$", degrees)]);
    put(&lab, [of("right", 90.0), of("same", 0.0), of("opposite", 180.0), of("half", 60.0)]).await;
    // Equally near: the later one first.
    put(&lab, [of("half, later", -60.0)]).await;
    let expected = pairs(&[("same", 100), ("half, later", 50), ("half", 50), ("right", 0), ("opposite", -100)]);
    assert_eq!(found(&lab, &near()).await, expected);
    let none = ItemFilter { near: Some(Near { model: MODEL.into(), vector: vec![0.0, 0.0] }), ..ItemFilter::default() };
    assert_eq!(found(&lab, &none).await.len(), 5, "a query without direction is as near to all");
}

async fn a_query_goes_with_prefix_and_conditions(lab: Lab) {
    put(
        &lab,
        [
            item(&["a", "x"], "1", r#"{"n":1}"#, &[("$", 0.0)]),
            item(&["a", "y"], "2", r#"{"n":2}"#, &[("$", 60.0)]),
            item(&["ab"], "3", r#"{"n":2}"#, &[("$", 0.0)]),
            item(&["a", "x"], "4", r#"{"n":2}"#, &[("$", 90.0)]),
        ],
    )
    .await;
    let below = ItemFilter { prefix: labels(&["a"]), ..near() };
    assert_eq!(found(&lab, &below).await, pairs(&[("1", 100), ("2", 50), ("4", 0)]));
    let two = ItemFilter { conditions: vec![(labels(&["n"]), ItemMatch::Gt(json("1")))], ..below };
    assert_eq!(found(&lab, &two).await, pairs(&[("2", 50), ("4", 0)]));
    assert_eq!(found_by(&lab.storage, &TENANT, &two, Page { limit: 1, offset: 1 }).await, pairs(&[("4", 0)]));
    let nothing = ItemFilter { prefix: labels(&["b"]), ..near() };
    assert!(found(&lab, &nothing).await.is_empty());
}

async fn pages_of_the_nearest_do_not_overlap(lab: Lab) {
    for n in 0..25 {
        put(&lab, [item(&["n"], &format!("{n:02}"), "{}", &[("$", (n * 7 % 25) as f32)])]).await;
    }
    let all = found_by(&lab.storage, &TENANT, &near(), Page { limit: 100, offset: 0 }).await;
    let mut paged = Vec::new();
    for offset in (0..30).step_by(4) {
        let page = found_by(&lab.storage, &TENANT, &near(), Page { limit: 4, offset }).await;
        assert_eq!(page.len(), usize::try_from((25 - offset).clamp(0, 4)).unwrap());
        paged.extend(page);
    }
    assert_eq!((all.len(), &paged), (25, &all));
    assert!(all.is_sorted_by(|a, b| a.1 >= b.1), "{all:?}");
}

async fn an_item_is_as_near_as_its_nearest_vector(lab: Lab) {
    put(
        &lab,
        [
            item(&["n"], "two", "{}", &[("far", 180.0), ("near", 60.0)]),
            item(&["n"], "one", "{}", &[("$", 90.0)]),
            item(&["n"], "three", "{}", &[("a", 90.0), ("b", 0.0), ("c", 60.0)]),
        ],
    )
    .await;
    assert_eq!(found(&lab, &near()).await, pairs(&[("three", 100), ("two", 50), ("one", 0)]));
    let page = Page { limit: 1, offset: 1 };
    assert_eq!(found_by(&lab.storage, &TENANT, &near(), page).await, pairs(&[("two", 50)]));
}

async fn vectors_are_replaced_and_removed_with_their_item(lab: Lab) {
    let count = async |expected: i64, when: &str| {
        if !lab.is_memory() {
            assert_eq!(rows(&lab, "item_vectors").await, expected, "{when}");
        }
    };
    put(&lab, [item(&["n"], "k", "{}", &[("a", 0.0), ("b", 90.0)])]).await;
    count(2, "written").await;
    put(&lab, [item(&["n"], "k", "{}", &[("b", 60.0)])]).await;
    assert_eq!(found(&lab, &near()).await, pairs(&[("k", 50)]));
    count(1, "written again, with fewer").await;
    // Without a model the vectors of what it was before must not remain.
    put(&lab, [NewItem { embedded: None, ..item(&["n"], "k", "{}", &[]) }]).await;
    assert_eq!(found(&lab, &near()).await, pairs(&[("k", -100)]));
    count(0, "written without a model").await;
    put(&lab, [item(&["n"], "k", "{}", &[("a", 0.0)])]).await;
    lab.storage.delete_item(&TENANT, &labels(&["n"]), "k").await.unwrap();
    assert!(found(&lab, &near()).await.is_empty());
    count(0, "deleted").await;
}

async fn items_without_a_vector_fill_the_page(lab: Lab) {
    put(
        &lab,
        [
            item(&["n"], "near", "{}", &[("$", 0.0)]),
            item(&["n"], "older", r#"{"n":1}"#, &[]),
            item(&["n"], "far", "{}", &[("$", 180.0)]),
            item(&["n"], "newer", "{}", &[]),
        ],
    )
    .await;
    let storage = &lab.storage;
    let scores = storage.search_items(&TENANT, &near(), Page { limit: 10, offset: 0 }, true).await.unwrap();
    let scores: Vec<(&str, bool)> = scores.iter().map(|f| (f.item.key.as_str(), f.score.is_some())).collect();
    assert_eq!(scores, [("near", true), ("far", true), ("newer", false), ("older", false)]);
    let page = |limit, offset| Page { limit, offset };
    let keys = async |filter: &ItemFilter, page: Page| -> Vec<String> {
        found_by(storage, &TENANT, filter, page).await.into_iter().map(|(key, _)| key).collect()
    };
    assert_eq!(keys(&near(), page(2, 1)).await, ["far", "newer"]);
    assert_eq!(keys(&near(), page(2, 3)).await, ["older"]);
    let one = ItemFilter { conditions: vec![(labels(&["n"]), ItemMatch::Eq(json("1")))], ..near() };
    assert_eq!(keys(&one, page(2, 0)).await, ["older"]);
}

async fn vectors_of_other_models_and_sizes_do_not_count(lab: Lab) {
    let other = Embedded { model: "other".into(), vectors: vec![ItemVector { path: "$".into(), vector: at(0.0) }] };
    let longer =
        Embedded { model: MODEL.into(), vectors: vec![ItemVector { path: "$".into(), vector: vec![1.0, 0.0, 0.0] }] };
    put(
        &lab,
        [
            item(&["n"], "mine", "{}", &[("$", 90.0)]),
            NewItem { embedded: Some(other), ..item(&["n"], "other", "{}", &[]) },
            NewItem { embedded: Some(longer), ..item(&["n"], "longer", "{}", &[]) },
        ],
    )
    .await;
    assert_eq!(found(&lab, &near()).await, pairs(&[("mine", 0), ("longer", -100), ("other", -100)]));
}

async fn expired_items_are_not_found_by_vector(lab: Lab) {
    let gone = NewItem { ttl_minutes: Some(0.0), ..item(&["n"], "gone", "{}", &[("$", 0.0)]) };
    put(&lab, [gone, item(&["n"], "there", "{}", &[("$", 90.0)])]).await;
    assert_eq!(found(&lab, &near()).await, pairs(&[("there", 0)]));
    lab.storage.sweep_items(&Scope::Server).await.unwrap();
    if !lab.is_memory() {
        assert_eq!(rows(&lab, "item_vectors").await, 1);
    }
}

async fn tenants_do_not_share_vectors(lab: Lab) {
    put(&lab, [item(&["n"], "k", "{}", &[("$", 0.0)])]).await;
    let page = Page { limit: 10, offset: 0 };
    assert!(found_by(&lab.storage, &OTHER, &near(), page).await.is_empty());
    lab.storage.put_item(&OTHER, item(&["n"], "k", "{}", &[("$", 90.0)])).await.unwrap();
    lab.storage.delete_item(&OTHER, &labels(&["n"]), "k").await.unwrap();
    assert_eq!(found(&lab, &near()).await, pairs(&[("k", 100)]));
    lab.storage.put_item(&OTHER, item(&["n"], "k", "{}", &[("$", 90.0)])).await.unwrap();
    assert_eq!(found(&lab, &near()).await, pairs(&[("k", 100)]));
    assert_eq!(found_by(&lab.storage, &Scope::Server, &near(), page).await, pairs(&[("k", 100), ("k", 0)]));
}

async fn racing_writers_leave_the_vectors_of_one_of_them(lab: Lab) {
    for _ in 0..30 {
        let racers = (0..8).map(|n: i32| {
            let storage = lab.storage.clone();
            tokio::spawn(async move {
                let value = format!(r#"{{"n":{n}}}"#);
                // Each has a path of its own besides the common one.
                let own = format!("own{n}");
                let vectors = [("common", (n * 10) as f32), (own.as_str(), (n * 10) as f32)];
                match n {
                    7 => storage.delete_item(&TENANT, &labels(&["n"]), "k").await.unwrap(),
                    6 => storage.put_item(&TENANT, item(&["n"], "k", &value, &[])).await.unwrap(),
                    _ => storage.put_item(&TENANT, item(&["n"], "k", &value, &vectors)).await.unwrap(),
                }
            })
        });
        for racer in futures_util::future::join_all(racers).await {
            racer.unwrap();
        }
        let found = lab.storage.search_items(&TENANT, &near(), Page::default(), false).await.unwrap();
        for FoundItem { item, score } in found {
            let n = item.value.get("n").and_then(|n| n.as_i64()).unwrap();
            let expected = (n != 6).then(|| f64::from((n as f32 * 10.0).to_radians().cos()));
            let is_close = match (score, expected) {
                (Some(score), Some(expected)) => (score - expected).abs() < 1e-5,
                (score, expected) => score == expected,
            };
            assert!(is_close, "the value of {n} with the score {score:?}");
        }
    }
}

async fn items_are_embedded_again_unless_they_changed(lab: Lab) {
    let storage = &lab.storage;
    let never = NewItem { indexing: Indexing::Never, embedded: None, ..item(&["n"], "never", "{}", &[]) };
    let paths = Indexing::Paths(labels(&["a", "b[*]"]));
    put(
        &lab,
        [
            item(&["n"], "fresh", "{}", &[("$", 0.0)]),
            item(&["n"], "textless", "{}", &[]),
            NewItem { embedded: None, indexing: paths.clone(), ..item(&["n"], "bare", "{}", &[]) },
            NewItem { embedded: None, ttl_minutes: Some(0.0), ..item(&["n"], "expired", "{}", &[]) },
            never,
        ],
    )
    .await;
    storage.put_item(&OTHER, NewItem { embedded: None, ..item(&["n"], "theirs", "{}", &[]) }).await.unwrap();
    let list = async |model: &str, after: Option<&ItemPlace>, limit| {
        storage.unembedded_items(&Scope::Server, model, after, limit).await.unwrap()
    };
    let keys = |list: &[UnembeddedItem]| -> Vec<String> { list.iter().map(|one| one.item.key.clone()).collect() };
    let due = list(MODEL, None, 10).await;
    assert_eq!(keys(&due).len(), 2);
    let bare = due.into_iter().find(|one| one.item.key == "bare").unwrap();
    assert_eq!((bare.scope, &bare.indexing), (TENANT, &paths));
    assert_eq!(keys(&storage.unembedded_items(&OTHER, MODEL, None, 10).await.unwrap()), ["theirs"]);
    // Page by page, in the order of their places, all but the one that is never embedded.
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = list("newer", after.as_ref(), 1).await;
        let Some(last) = page.last() else { break };
        let (namespace, key) = (last.item.namespace.clone(), last.item.key.clone());
        after = Some(ItemPlace { scope: last.scope, namespace, key });
        seen.extend(keys(&page));
    }
    seen.sort();
    assert_eq!(seen, ["bare", "fresh", "textless", "theirs"]);

    let now = embedded(&[("$", 60.0)]).unwrap();
    assert!(storage.embed_item(&TENANT, &bare.item, now.clone()).await.unwrap());
    assert!(storage.embed_item(&TENANT, &bare.item, now.clone()).await.unwrap(), "once more is no harm");
    assert!(!storage.embed_item(&OTHER, &bare.item, now.clone()).await.unwrap());
    assert!(!keys(&list(MODEL, None, 10).await).contains(&"bare".to_owned()));
    let scores = found(&lab, &near()).await;
    assert!(scores.contains(&("bare".to_owned(), 50)), "{scores:?}");
    let read = storage.get_item(&TENANT, &labels(&["n"]), "bare", false).await.unwrap().unwrap();
    assert_eq!(read.updated_at, bare.item.updated_at, "the item was not written");
    // Written meanwhile: the vectors would be those of the value before.
    put(&lab, [item(&["n"], "bare", "{}", &[("$", 0.0)])]).await;
    assert!(!storage.embed_item(&TENANT, &bare.item, now.clone()).await.unwrap());
    assert!(found(&lab, &near()).await.contains(&("bare".to_owned(), 100)));
    storage.delete_item(&TENANT, &labels(&["n"]), "bare").await.unwrap();
    assert!(!storage.embed_item(&TENANT, &bare.item, now).await.unwrap());
}

async fn damaged_vectors_name_their_place(lab: Lab) {
    if lab.is_memory() {
        return;
    }
    put(&lab, [item(&["n"], "k", "{}", &[("$", 0.0)])]).await;
    lab.tamper("UPDATE item_vectors SET dims = 2, vector = substr(vector, 1, 7)").await;
    let error = lab.storage.search_items(&TENANT, &near(), Page::default(), false).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, StorageError::Corrupt { .. }) && text.contains("item_vectors.vector of n.k"), "{text}");
}
