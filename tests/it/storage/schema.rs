//! The database as a whole: migrations, reopening, exclusive use, costs.

use std::collections::BTreeSet;

use super::*;

for_each_backend!(
    migrations_are_applied_once_by_many,
    a_database_of_a_newer_build_is_refused,
    everything_survives_closing,
    write_transactions_are_counted,
    reads_and_refusals_after_close_are_errors,
);

async fn migrations_are_applied_once_by_many(lab: Lab) {
    let racers = (0..10).map(|_| {
        let storage = lab.storage.clone();
        tokio::spawn(async move { storage.migrate().await.unwrap() })
    });
    let applied: usize = futures_util::future::join_all(racers).await.into_iter().map(|outcome| outcome.unwrap()).sum();
    assert_eq!(applied, 0, "the lab has applied them");
    lab.storage.ping(&Scope::Server).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_processes_migrate_an_empty_postgres_at_once() {
    let Some(database) = Database::create().await else { return };
    let racers = (0..6).map(|_| {
        let url = database.url();
        tokio::spawn(async move {
            let storage = connect(&url, &options()).await.unwrap();
            let applied = storage.migrate().await.unwrap();
            storage.close().await;
            applied
        })
    });
    let applied: usize = futures_util::future::join_all(racers).await.into_iter().map(|outcome| outcome.unwrap()).sum();
    database.drop().await;
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations/postgres");
    assert_eq!(applied, std::fs::read_dir(folder).unwrap().count(), "each of them once");
}

async fn a_database_of_a_newer_build_is_refused(lab: Lab) {
    if lab.is_memory() {
        return;
    }
    lab.tamper("INSERT INTO schema_migrations (version, name, checksum, applied_at) VALUES (9999, 'x', 'x', 0)").await;
    let error = lab.storage.migrate().await.unwrap_err();
    assert!(matches!(&error, StorageError::Schema(text) if text.contains("9999")), "{error}");
    lab.tamper("DELETE FROM schema_migrations WHERE version = 9999; UPDATE schema_migrations SET checksum = 'x'").await;
    assert!(matches!(lab.storage.migrate().await, Err(StorageError::Schema(_))));
}

async fn everything_survives_closing(lab: Lab) {
    if lab.is_memory() {
        assert!(lab.storage.describe().volatile);
        assert_eq!(lab.storage.describe().location, "in memory");
        return;
    }
    let lease = start(&lab.storage, "t", 1).await.lease;
    assert_eq!(commit(&lab.storage, head_step(lease, "c1", None)).await, CommitOutcome::Committed);
    lab.storage.close().await;
    let reopened = connect(&lab.url, &options()).await.unwrap();
    assert_eq!(reopened.migrate().await.unwrap(), 0);
    assert_eq!(find_thread(&reopened, "t").await.unwrap().head.as_deref(), Some("c1"));
    assert!(reopened.renew_leases(&Scope::Server, &[lease], MINUTE).await.unwrap()[0].held);
    let description = reopened.describe();
    assert!(!description.volatile && !description.location.is_empty());
    reopened.close().await;
}

async fn write_transactions_are_counted(lab: Lab) {
    let storage = &lab.storage;
    storage.create_thread(&TENANT, thread("t")).await.unwrap();
    let cost = async |what: &str, expected: u64, before: u64| {
        assert_eq!(storage.write_transactions() - before, expected, "{what}");
    };
    let before = storage.write_transactions();
    let lease = start(storage, "t", 1).await.lease;
    cost("creating and claiming a run", 1, before).await;
    let before = storage.write_transactions();
    commit(storage, head_step(lease, "c1", None)).await;
    cost("a superstep", 1, before).await;
    let before = storage.write_transactions();
    find_thread(storage, "t").await;
    storage.load_checkpoint(&TENANT, key("t"), "", &Which::Latest).await.unwrap();
    claim_all(storage, MINUTE).await;
    cost("reading and finding nothing to claim", 0, before).await;
    let before = storage.write_transactions();
    finish(storage, lease).await;
    cost("the end", 1, before).await;
    let batch: Vec<StepCommit> = {
        let mut batch = Vec::new();
        for n in 2..10 {
            batch.push(head_step(start(storage, &format!("t{n}"), n).await.lease, "c1", None));
        }
        batch
    };
    let before = storage.write_transactions();
    storage.commit_steps(&Scope::Server, &batch).await.unwrap();
    cost("a batch of eight", 1, before).await;
}

async fn reads_and_refusals_after_close_are_errors(lab: Lab) {
    lab.storage.close().await;
    lab.storage.close().await;
    assert!(matches!(lab.storage.find_thread(&TENANT, &tid("t")).await, Err(StorageError::Unavailable(_))));
    let made = lab.storage.create_thread(&TENANT, thread("t")).await;
    assert!(matches!(made, Err(StorageError::Unavailable(_))));
}

#[tokio::test]
async fn a_second_open_of_a_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", dir.path().join("a b.db").display());
    let first = connect(&url, &options()).await.unwrap();
    let error = connect(&url, &options()).await.unwrap_err();
    assert!(matches!(&error, StorageError::Unavailable(text) if text.contains("a b.db") && text.contains("Postgres")));
    let link = dir.path().join("link.db");
    std::os::unix::fs::symlink(dir.path().join("a b.db"), &link).unwrap();
    assert!(connect(&format!("sqlite://{}", link.display()), &options()).await.is_err(), "another name, the same file");
    first.close().await;
    connect(&url, &options()).await.unwrap().close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_pgbouncer_nothing_depends_on_the_connection() {
    let Some(database) = Database::create().await else { return };
    let pinned = ConnectOptions { pgbouncer: true, ..options() };
    let storage = connect(&database.url(), &pinned).await.unwrap();
    storage.migrate().await.unwrap();
    let lease = start(&storage, "t", 1).await.lease;
    created(storage.create_run(&TENANT, run("t", 2)).await.unwrap());
    assert_eq!(commit(&storage, head_step(lease, "c1", None)).await, CommitOutcome::Committed);
    finish(&storage, lease).await;
    assert_eq!(ids(&claim_all(&storage, MINUTE).await), [id(2)]);
    assert_eq!(find_thread(&storage, "t").await.unwrap().head.as_deref(), Some("c1"));
    assert_eq!(storage.write_transactions(), 6);
    storage.close().await;
    database.drop().await;
}

#[tokio::test]
async fn errors_hold_no_password() {
    let quick = ConnectOptions { acquire_timeout: Duration::from_secs(1), ..options() };
    for url in ["postgres://u:hunter2@127.0.0.1:1/d", "postgres://u:hunter2@127.0.0.1:x/d", "what://u:hunter2@h/d"] {
        let error = connect(url, &quick).await.unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queued_operations_share_a_transaction_on_sqlite() {
    let storage = connect("memory", &options()).await.unwrap();
    storage.migrate().await.unwrap();
    let before = storage.write_transactions();
    let racers = (0..200).map(|n| {
        let storage = storage.clone();
        async move { storage.create_thread(&TENANT, thread(&format!("t{n}"))).await.unwrap() }
    });
    futures_util::future::join_all(racers).await;
    let spent = storage.write_transactions() - before;
    assert!(spent < 100, "200 operations took {spent} transactions");
    storage.close().await;
}

/// Table names with their columns in order, as a migration's text has them.
fn tables(text: &str) -> Vec<(String, Vec<String>)> {
    let mut tables: Vec<(String, Vec<String>)> = Vec::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("CREATE TABLE ") {
            tables.push((rest.trim_end_matches(" (").to_owned(), Vec::new()));
        } else if let Some(rest) = line.strip_prefix("    ")
            && let Some(name) = rest.split_whitespace().next()
            && name.chars().all(|c| c.is_ascii_lowercase() || c == '_')
            && let Some(table) = tables.last_mut()
        {
            table.1.push(name.to_owned());
        }
    }
    tables
}

/// The rule of expand and contract: what a migration does to tables that are there already must not disturb the release
/// before it, which goes on reading and writing them.
#[test]
fn migrations_only_add() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    for backend in ["postgres", "sqlite"] {
        let mut names: Vec<_> = std::fs::read_dir(folder.join(backend)).unwrap().map(|e| e.unwrap().path()).collect();
        names.sort();
        assert!(names.len() >= 8);
        for path in names {
            let text = std::fs::read_to_string(&path).unwrap();
            let code =
                text.lines().map(|line| line.split("--").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
            let own: BTreeSet<String> = tables(&text).into_iter().map(|(table, _)| table).collect();
            for statement in code.split(';').map(str::trim).filter(|statement| !statement.is_empty()) {
                let words: Vec<&str> = statement.split_whitespace().collect();
                let at = |n: usize| words.get(n).copied().unwrap_or_default();
                let allowed = match (at(0), at(1)) {
                    ("CREATE", "TABLE" | "INDEX" | "VIEW") => true,
                    // Old writers know nothing of a new rule: only on tables they do not know.
                    ("CREATE", "UNIQUE") => own.contains(at(5)),
                    ("ALTER", "TABLE") if own.contains(at(2)) => true,
                    // A column that old writers leave out.
                    ("ALTER", "TABLE") => {
                        (at(3), at(4)) == ("ADD", "COLUMN")
                            && (!statement.contains("NOT NULL") || statement.contains("DEFAULT"))
                            && !statement.contains(" PRIMARY ")
                            && !statement.contains(" UNIQUE")
                    }
                    _ => false,
                };
                assert!(
                    allowed,
                    "{}: not an addition that the release before can live with: {statement}",
                    path.display()
                );
            }
        }
    }
}

#[test]
fn migrations_are_twins() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let files = |backend: &str| -> BTreeSet<String> {
        let entries = std::fs::read_dir(root.join(backend)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    assert_eq!(files("postgres"), files("sqlite"));
    for name in files("postgres") {
        let read = |backend: &str| std::fs::read_to_string(root.join(backend).join(&name)).unwrap();
        let (postgres, sqlite) = (tables(&read("postgres")), tables(&read("sqlite")));
        assert!(postgres.iter().all(|(_, columns)| columns.contains(&"tenant".to_owned())), "{name}: no tenant");
        assert_eq!(postgres, sqlite);
    }
}
