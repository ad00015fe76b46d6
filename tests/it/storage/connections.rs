//! The connections to Postgres: as few as will do, and nobody waits while one is free.

use super::*;

for_each_backend!(@ postgres,
    one_connection_serves_everything_in_turn,
    few_connections_serve_many_at_once,
    who_comes_one_after_the_other_uses_one_connection,
    broken_connections_are_made_anew,
    what_is_dropped_unclosed_leaves_no_connection
);

async fn connected(lab: &Lab, max_connections: u32) -> SharedStorage {
    let options = ConnectOptions { max_connections, acquire_timeout: Duration::from_secs(5), ..options() };
    connect(&lab.url, &options).await.unwrap()
}

/// Reads and writes of one statement each, and transactions.
async fn some_of_everything(storage: &SharedStorage, name: &str) {
    storage.create_thread(&TENANT, thread(name)).await.unwrap();
    assert!(find_thread(storage, name).await.is_some());
    let close = Close { how: ClosedAs::Ended, actor: None, reason: None, ttl: None, cancels: true };
    storage.close_thread(&TENANT, &tid(name), &close).await.unwrap();
    assert!(find_thread(storage, name).await.is_some());
    storage.ping(&TENANT).await.unwrap();
    storage.delete_thread(&TENANT, &tid(name)).await.unwrap();
    assert!(find_thread(storage, name).await.is_none());
}

async fn one_connection_serves_everything_in_turn(lab: Lab) {
    let storage = connected(&lab, 1).await;
    for n in 0..10 {
        some_of_everything(&storage, &format!("t{n}")).await;
    }
    assert_eq!((storage.connections().open, storage.connections().most), (1, 1));
    // One is at hand, and is closed with the others.
    tokio::time::timeout(Duration::from_secs(5), storage.close()).await.unwrap();
    assert!(matches!(storage.create_thread(&TENANT, thread("t")).await, Err(StorageError::Unavailable(_))));
}

async fn few_connections_serve_many_at_once(lab: Lab) {
    let storage = connected(&lab, 3).await;
    let many = (0..24).map(|caller| {
        let storage = storage.clone();
        tokio::spawn(async move {
            for n in 0..10 {
                some_of_everything(&storage, &format!("t{caller}-{n}")).await;
            }
        })
    });
    for outcome in futures_util::future::join_all(many).await {
        outcome.unwrap();
    }
    assert_eq!(storage.connections().open, 3);
    tokio::time::timeout(Duration::from_secs(5), storage.close()).await.unwrap();
}

async fn who_comes_one_after_the_other_uses_one_connection(lab: Lab) {
    let storage = connected(&lab, 8).await;
    for _ in 0..100 {
        storage.ping(&TENANT).await.unwrap();
    }
    // One more may have been made before the first came back from being connected.
    let connections = storage.connections();
    assert!(connections.open <= 2 && connections.idle == connections.open, "{connections:?}");
    storage.close().await;
}

async fn broken_connections_are_made_anew(lab: Lab) {
    let storage = connected(&lab, 4).await;
    for _ in 0..10 {
        futures_util::future::join_all((0..4).map(|_| storage.ping(&TENANT))).await;
        lab.tamper(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        .await;
        // A read is repeated; all that broke is found out by the first.
        assert!(find_thread(&storage, "t").await.is_none());
        storage.create_thread(&TENANT, thread("t")).await.unwrap();
        storage.delete_thread(&TENANT, &tid("t")).await.unwrap();
    }
    storage.close().await;
}

async fn what_is_dropped_unclosed_leaves_no_connection(lab: Lab) {
    let storage = connected(&lab, 4).await;
    futures_util::future::join_all((0..4).map(|_| storage.ping(&TENANT))).await;
    let opened = "SELECT pid FROM pg_stat_activity
                  WHERE datname = current_database() AND pid <> pg_backend_pid() AND query = 'SELECT 1'";
    let pids = async || {
        let mut conn = sqlx::PgConnection::connect(&lab.url).await.unwrap();
        sqlx::query_scalar::<_, i32>(opened).fetch_all(&mut conn).await.unwrap()
    };
    assert!(!pids().await.is_empty());
    // Where there is no runtime, as at the end of a program.
    std::thread::spawn(move || drop(storage)).join().expect("no panic");
    let end = Instant::now() + MINUTE;
    while !pids().await.is_empty() {
        assert!(Instant::now() < end, "connections are left");
        tokio::task::yield_now().await;
    }
}
