//! Items ranked by pgvector: the same answers as without, whatever happens to the extension and to the copies it ranks.

use std::collections::BTreeMap;

use super::*;

const MODEL: &str = "test:24";
const DIMS: usize = 24;

/// Numbers that are the same each time (SplitMix64).
struct Chance(u64);

impl Chance {
    fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.number() % limit
    }

    /// A vector of length 1.
    fn vector(&mut self, dims: usize) -> Vec<f32> {
        let numbers: Vec<f64> = (0..dims).map(|_| self.below(2_000_001) as f64 / 1e6 - 1.0).collect();
        let length = numbers.iter().map(|number| number * number).sum::<f64>().sqrt();
        numbers.into_iter().map(|number| (number / length) as f32).collect()
    }
}

fn labels(namespace: &[&str]) -> Vec<String> {
    namespace.iter().map(|label| (*label).to_owned()).collect()
}

fn item(n: u64, vectors: Vec<Vec<f32>>) -> NewItem {
    let vectors = vectors.into_iter().enumerate().map(|(n, vector)| ItemVector { path: format!("p{n}"), vector });
    NewItem {
        namespace: vec!["memories".to_owned(), format!("u{}", n % 5)],
        key: format!("k{n:03}"),
        value: json(&format!(r#"{{"n":{n},"third":{}}}"#, n.is_multiple_of(3))),
        embedded: Some(Embedded { model: MODEL.to_owned(), vectors: vectors.collect() }),
        ..NewItem::default()
    }
}

/// What one of many writers would do next, on each storage given.
async fn write(chance: &mut Chance, pool: &[Vec<f32>], storages: &[&SharedStorage]) {
    let n = chance.below(80);
    let new = match chance.below(10) {
        0 => {
            for storage in storages {
                let namespace = vec!["memories".to_owned(), format!("u{}", n % 5)];
                storage.delete_item(&TENANT, &namespace, &format!("k{n:03}")).await.unwrap();
            }
            return;
        }
        1 => NewItem { embedded: None, ..item(n, vec![]) },
        2 => item(n, vec![]),
        3 => item(n, vec![chance.vector(DIMS / 2)]),
        4 => {
            let mut new = item(n, vec![chance.vector(DIMS)]);
            if let Some(embedded) = &mut new.embedded {
                embedded.model = "another".to_owned();
            }
            new
        }
        5 => NewItem { ttl_minutes: Some(0.0), ..item(n, vec![chance.vector(DIMS)]) },
        // Vectors that others have, too: ties.
        6 => item(n, vec![pool[chance.below(pool.len() as u64) as usize].clone()]),
        7 => NewItem { ttl_minutes: Some(60.0), ..item(n, vec![chance.vector(DIMS)]) },
        _ => {
            let count = 1 + chance.below(3);
            item(n, (0..count).map(|_| chance.vector(DIMS)).collect())
        }
    };
    for storage in storages {
        storage.put_item(&TENANT, new.clone()).await.unwrap();
    }
}

type Found = Vec<(Vec<String>, String, String, Option<f64>)>;

async fn search(storage: &SharedStorage, scope: &Scope, filter: &ItemFilter, page: Page) -> Found {
    let found = storage.search_items(scope, filter, page, false).await.unwrap();
    let parts = |FoundItem { item, score }: FoundItem| (item.namespace, item.key, item.value.text(), score);
    found.into_iter().map(parts).collect()
}

/// Asks both the same questions: models and sizes, prefixes, conditions, pages. The answers are the same, and the scores are
/// the same numbers.
async fn compare(one: &SharedStorage, other: &SharedStorage, chance: &mut Chance, pool: &[Vec<f32>], what: &str) {
    let mut seen = 0;
    for (n, near) in [
        Near { model: MODEL.to_owned(), vector: chance.vector(DIMS) },
        Near { model: MODEL.to_owned(), vector: pool[0].clone() },
        Near { model: MODEL.to_owned(), vector: vec![0.0; DIMS] },
        Near { model: MODEL.to_owned(), vector: chance.vector(DIMS / 2) },
        Near { model: "another".to_owned(), vector: chance.vector(DIMS) },
        Near { model: "nobody's".to_owned(), vector: chance.vector(DIMS) },
    ]
    .into_iter()
    .enumerate()
    {
        for prefix in [labels(&[]), labels(&["memories", "u3"]), labels(&["memo"])].into_iter().filter(|_| n < 2) {
            for conditions in [vec![], vec![(labels(&["third"]), ItemMatch::Eq(json("true")))]] {
                let filter = ItemFilter { prefix: prefix.clone(), conditions, near: Some(near.clone()) };
                for (limit, offset) in [(100, 0), (7, 0), (5, 11)] {
                    let page = Page { limit, offset };
                    let found = search(one, &TENANT, &filter, page).await;
                    seen += found.iter().filter(|found| found.3.is_some()).count();
                    let theirs = search(other, &TENANT, &filter, page).await;
                    assert_eq!(found, theirs, "{what}, query {n}, {prefix:?}, {page:?}");
                }
            }
        }
        let filter = ItemFilter { near: Some(near), ..ItemFilter::default() };
        let page = Page { limit: 20, offset: 0 };
        let all = search(one, &Scope::Server, &filter, page).await;
        assert_eq!(all, search(other, &Scope::Server, &filter, page).await, "{what}, query {n}, of all");
        assert!(search(one, &OTHER, &filter, page).await.is_empty());
    }
    assert!(seen > 40, "{what}: only {seen} were found by vector");
}

/// Asks both one question.
async fn glance(one: &SharedStorage, other: &SharedStorage, chance: &mut Chance, what: &str) {
    let near = Some(Near { model: MODEL.to_owned(), vector: chance.vector(DIMS) });
    let filter = ItemFilter { near, ..ItemFilter::default() };
    let page = Page { limit: 100, offset: 0 };
    let found = search(one, &TENANT, &filter, page).await;
    assert_eq!(found, search(other, &TENANT, &filter, page).await, "{what}");
    assert!(found[0].3.is_some() && found.len() > 20, "{what}: {found:?}");
}

/// A storage that does without, as a process of a release before or with the setting off.
async fn without(url: &str) -> SharedStorage {
    let storage = connect(url, &ConnectOptions { pgvector: false, ..options() }).await.unwrap();
    storage.migrate().await.unwrap();
    assert_eq!(storage.describe().ranked_by, None);
    storage
}

async fn with(url: &str) -> SharedStorage {
    let storage = connect(url, &options()).await.unwrap();
    storage.migrate().await.unwrap();
    storage
}

/// Makes all copies; returns of how many vectors.
async fn tend(storage: &SharedStorage) -> u64 {
    let (mut copied, mut after) = (0, None);
    loop {
        let tended = storage.tend_vectors(&Scope::Server, after.as_ref()).await.unwrap();
        assert_eq!(tended.refused, 0);
        copied += tended.copied;
        after = tended.next;
        if after.is_none() {
            return copied;
        }
    }
}

async fn count(url: &str, of: &str) -> i64 {
    let mut conn = sqlx::PgConnection::connect(url).await.unwrap();
    sqlx::query_scalar(AssertSqlSafe(format!("SELECT COUNT(*) FROM {of}"))).fetch_one(&mut conn).await.unwrap()
}

async fn execute(url: &str, statement: &str) {
    let mut conn = sqlx::PgConnection::connect(url).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut conn).await.unwrap();
}

/// Vectors that count, and copies that do.
const VECTORS: &str =
    "item_vectors v JOIN items i ON i.tenant = v.tenant AND i.namespace = v.namespace AND i.key = v.key
                       AND i.updated_at = v.written_at";
const COPIES: &str = "item_vectors_pgvector v JOIN items i ON i.tenant = v.tenant AND i.namespace = v.namespace
                      AND i.key = v.key AND i.updated_at = v.written_at";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_answers_are_those_of_the_other_backends() {
    let (Some(database), Some(plain)) =
        (Database::create_beside_pgvector().await, Database::create_beside_pgvector().await)
    else {
        return;
    };
    database.install_pgvector().await;
    let ranked = with(&database.url()).await;
    assert!(ranked.describe().ranked_by.is_some_and(|by| by.starts_with("pgvector ")));
    let sqlite = connect("memory", &options()).await.unwrap();
    sqlite.migrate().await.unwrap();
    let postgres = with(&plain.url()).await;
    assert_eq!(postgres.describe().ranked_by, None, "not installed in this database");
    let mut chance = Chance(5);
    let pool: Vec<Vec<f32>> = (0..3).map(|_| chance.vector(DIMS)).collect();
    for round in 0..2 {
        for _ in 0..120 {
            write(&mut chance, &pool, &[&ranked, &postgres, &sqlite]).await;
        }
        compare(&ranked, &postgres, &mut chance, &pool, &format!("round {round}, exact on Postgres")).await;
        compare(&ranked, &sqlite, &mut chance, &pool, &format!("round {round}, SQLite")).await;
    }
    assert!(!ranked.wants_vectors_tended(), "each had its copy");
    assert_eq!(count(&database.url(), COPIES).await, count(&database.url(), VECTORS).await);
    // It is the copies that are ranked.
    let filter = ItemFilter {
        near: Some(Near { model: MODEL.to_owned(), vector: chance.vector(DIMS) }),
        ..ItemFilter::default()
    };
    let first = Page { limit: 1, offset: 0 };
    let before = search(&ranked, &TENANT, &filter, first).await;
    let key = &before[0].1;
    execute(
        &database.url(),
        &format!(r#"UPDATE item_vectors_pgvector SET vector = array_fill(0, ARRAY[dims])::"Its own".vector WHERE key = '{key}'"#),
    )
    .await;
    let after = search(&ranked, &TENANT, &filter, first).await;
    assert!(before[0].3 > after[0].3 && after[0].3 > Some(0.0), "{before:?} and {after:?}");
    for storage in [ranked, postgres, sqlite] {
        storage.close().await;
    }
    database.drop().await;
    plain.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vectors_from_before_it_came_are_found_while_they_are_copied() {
    let Some(database) = Database::create_beside_pgvector().await else { return };
    let url = database.url();
    let old = with(&url).await;
    let mut chance = Chance(6);
    let pool: Vec<Vec<f32>> = (0..3).map(|_| chance.vector(DIMS)).collect();
    // More than a step copies.
    for n in 0..600 {
        old.put_item(&TENANT, item(n, vec![chance.vector(DIMS)])).await.unwrap();
    }
    for _ in 0..100 {
        write(&mut chance, &pool, &[&old]).await;
    }
    database.install_pgvector().await;
    // Two that start at once make one table.
    let (new, third) = tokio::join!(with(&url), with(&url));
    assert!(new.describe().ranked_by.is_some() && third.describe().ranked_by.is_some());
    assert_eq!((count(&url, COPIES).await, old.describe().ranked_by), (0, None));
    compare(&new, &old, &mut chance, &pool, "before the first copy").await;
    assert!(new.wants_vectors_tended() && !new.wants_vectors_tended());

    let half = new.tend_vectors(&Scope::Server, None).await.unwrap();
    assert!(half.copied > 300 && half.next.is_some(), "{half:?}");
    let vectors = count(&url, VECTORS).await;
    assert!((1..vectors).contains(&count(&url, COPIES).await));
    compare(&new, &old, &mut chance, &pool, "half of them copied").await;

    // Two at once, as two replicas do.
    tokio::join!(tend(&new), tend(&third));
    assert_eq!(tend(&new).await, 0, "nothing is left");
    assert_eq!((count(&url, COPIES).await, count(&url, "item_vectors_pgvector").await), (vectors, vectors));
    new.wants_vectors_tended();
    compare(&new, &old, &mut chance, &pool, "all of them copied").await;
    assert!(!new.wants_vectors_tended());
    for storage in [old, new, third] {
        storage.close().await;
    }
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_a_process_without_it_nothing_is_missed() {
    let Some(database) = Database::create_beside_pgvector().await else { return };
    let url = database.url();
    database.install_pgvector().await;
    let (old, new) = (without(&url).await, with(&url).await);
    let mut chance = Chance(7);
    let pool: Vec<Vec<f32>> = (0..3).map(|_| chance.vector(DIMS)).collect();
    for round in 0..2 {
        for _ in 0..60 {
            write(&mut chance, &pool, &[&old]).await;
            write(&mut chance, &pool, &[&new]).await;
        }
        compare(&new, &old, &mut chance, &pool, &format!("round {round}")).await;
        assert!(new.wants_vectors_tended());
        tend(&new).await;
        assert_eq!(count(&url, COPIES).await, count(&url, VECTORS).await);
        assert_eq!(count(&url, "item_vectors_pgvector").await, count(&url, COPIES).await, "stale copies are removed");
        compare(&new, &old, &mut chance, &pool, &format!("round {round}, tended")).await;
        // Embedded again by the old process, which keeps the time of the writing.
        for due in old.unembedded_items(&TENANT, "another", None, 20).await.unwrap() {
            let vectors = vec![ItemVector { path: "p0".to_owned(), vector: chance.vector(DIMS) }];
            let embedded = Embedded { model: "another".to_owned(), vectors };
            assert!(old.embed_item(&TENANT, &due.item, embedded).await.unwrap());
        }
        compare(&new, &old, &mut chance, &pool, &format!("round {round}, embedded again")).await;
    }
    // Both write the same items at once, while copies are made.
    let writers = [&old, &new, &old, &new].into_iter().enumerate().map(|(n, storage)| {
        let (storage, pool) = (storage.clone(), pool.clone());
        tokio::spawn(async move {
            let mut chance = Chance(100 + n as u64);
            for _ in 0..80 {
                write(&mut chance, &pool, &[&storage]).await;
            }
        })
    });
    let tending = async {
        for _ in 0..5 {
            tend(&new).await;
        }
    };
    let (written, ()) = tokio::join!(futures_util::future::join_all(writers), tending);
    for writer in written {
        writer.unwrap();
    }
    compare(&new, &old, &mut chance, &pool, "after writing at once").await;
    tend(&new).await;
    compare(&new, &old, &mut chance, &pool, "after writing at once, tended").await;
    for storage in [old, new] {
        storage.close().await;
    }
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_goes_on_when_it_is_dropped_and_comes_back() {
    let Some(database) = Database::create_beside_pgvector().await else { return };
    let url = database.url();
    database.install_pgvector().await;
    let (old, new) = (without(&url).await, with(&url).await);
    let mut chance = Chance(8);
    let pool: Vec<Vec<f32>> = (0..3).map(|_| chance.vector(DIMS)).collect();
    for _ in 0..120 {
        write(&mut chance, &pool, &[&new]).await;
    }
    compare(&new, &old, &mut chance, &pool, "at first").await;
    let scope = Scope::Server;
    // What comes first then, by the operation: each has to notice by itself.
    for first in ["search", "put", "delete", "embed", "sweep", "tend"] {
        assert!(new.describe().ranked_by.is_some(), "{first}");
        let gone = NewItem { ttl_minutes: Some(0.0), ..item(900, vec![chance.vector(DIMS)]) };
        let there = item(901, vec![chance.vector(DIMS)]);
        for item in [gone, there.clone()] {
            new.put_item(&TENANT, item).await.unwrap();
        }
        let read = new.get_item(&TENANT, &there.namespace, &there.key, false).await.unwrap().unwrap();
        // A copy of it, or the extension itself.
        match first {
            "put" => execute(&url, "DROP TABLE item_vectors_pgvector").await,
            _ => execute(&url, "DROP EXTENSION vector CASCADE").await,
        }
        match first {
            "put" => new.put_item(&TENANT, item(901, vec![chance.vector(DIMS)])).await.unwrap(),
            "delete" => new.delete_item(&TENANT, &there.namespace, &there.key).await.unwrap(),
            "embed" => assert!(new.embed_item(&TENANT, &read, there.embedded.unwrap()).await.unwrap()),
            "sweep" => assert!(!new.sweep_items(&scope).await.unwrap()),
            "tend" => assert_eq!(new.tend_vectors(&scope, None).await.unwrap(), VectorsTended::default()),
            _ => {}
        }
        glance(&new, &old, &mut chance, &format!("dropped, {first}")).await;
        assert_eq!(new.describe().ranked_by, None, "{first}");
        for _ in 0..20 {
            write(&mut chance, &pool, &[&new]).await;
        }
        new.sweep_items(&scope).await.unwrap();
        glance(&new, &old, &mut chance, &format!("without, {first}")).await;
        if first != "put" {
            database.install_pgvector().await;
        }
        assert_eq!(new.migrate().await.unwrap(), 0);
        glance(&new, &old, &mut chance, &format!("back again, {first}")).await;
        tend(&new).await;
        assert_eq!(count(&url, COPIES).await, count(&url, VECTORS).await);
    }
    compare(&new, &old, &mut chance, &pool, "at last").await;
    for storage in [old, new] {
        storage.close().await;
    }
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_no_copy_costs_only_itself() {
    let Some(database) = Database::create_beside_pgvector().await else { return };
    let url = database.url();
    database.install_pgvector().await;
    let (old, new) = (without(&url).await, with(&url).await);
    let mut chance = Chance(9);
    // Longer than the type allows.
    let long = chance.vector(16_001);
    let near =
        ItemFilter { near: Some(Near { model: MODEL.to_owned(), vector: long.clone() }), ..ItemFilter::default() };
    new.put_item(&TENANT, item(1, vec![long])).await.unwrap();
    new.put_item(&TENANT, item(2, vec![chance.vector(DIMS)])).await.unwrap();
    let found = search(&new, &TENANT, &near, Page::default()).await;
    assert_eq!(found, search(&old, &TENANT, &near, Page::default()).await, "a long one");
    assert!(found[0].3 > Some(0.99) && found[1].3.is_none(), "{found:?}");
    // Refused by the table of copies alone, as a row that is too long for its index would be.
    execute(&url, "ALTER TABLE item_vectors_pgvector ADD CHECK (key <> 'k003')").await;
    new.put_item(&TENANT, item(3, vec![chance.vector(DIMS)])).await.unwrap();
    old.put_item(&TENANT, item(4, vec![chance.vector(DIMS)])).await.unwrap();
    assert!(new.describe().ranked_by.is_some(), "pgvector is used as before");
    let near = ItemFilter {
        near: Some(Near { model: MODEL.to_owned(), vector: chance.vector(DIMS) }),
        ..ItemFilter::default()
    };
    let keys = |found: &Found| -> BTreeMap<String, bool> {
        found.iter().map(|found| (found.1.clone(), found.3.is_some())).collect()
    };
    let all = search(&new, &TENANT, &near, Page::default()).await;
    assert_eq!(all, search(&old, &TENANT, &near, Page::default()).await, "one that is refused");
    assert_eq!(keys(&all).values().filter(|is_near| **is_near).count(), 3);
    let tended = new.tend_vectors(&Scope::Server, None).await.unwrap();
    assert_eq!(tended, VectorsTended { next: None, copied: 1, refused: 1 });
    assert_eq!(count(&url, COPIES).await, 2);
    assert_eq!(all, search(&new, &TENANT, &near, Page::default()).await, "tended");
    // Without the right to use its schema there is nothing to rank by, and nothing else to complain of.
    let role = format!("plain_{}", std::process::id());
    execute(
        &url,
        &format!(
            "DROP TABLE item_vectors_pgvector; CREATE ROLE {role}; GRANT ALL ON SCHEMA public TO {role};
             GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}"
        ),
    )
    .await;
    let plain = with(&format!("{url}?options=-c%20role%3D{role}")).await;
    assert_eq!(plain.describe().ranked_by, None);
    assert_eq!(all, search(&plain, &TENANT, &near, Page::default()).await, "as somebody with few rights");
    for storage in [old, new, plain] {
        storage.close().await;
    }
    execute(&url, &format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
    database.drop().await;
}
