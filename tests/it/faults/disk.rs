//! A disk without room: writes are told to come back later, reads go on, nothing is damaged, and all is well once there is
//! room again.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::PathBuf;

use super::*;
use crate::support::process::{execute, number, provided};

const STEPS: i64 = 12;

/// A small file system of its own; unmounted with the value.
struct Disk(PathBuf);

impl Disk {
    /// `None` where this process may not mount one; that is said.
    fn mount(mebibytes: u64) -> Option<Disk> {
        let place = std::env::temp_dir().join(format!("it-disk-{}", uuid::Uuid::new_v4().simple()));
        fs::create_dir(&place).expect("a folder");
        let size = format!("size={mebibytes}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "none"]).arg(&place).output();
        if !mounted.is_ok_and(|mounted| mounted.status.success()) {
            fs::remove_dir(&place).expect("removed");
            println!("SKIPPED: no file system can be mounted here");
            return None;
        }
        Some(Disk(place))
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }

    /// Takes all the room there is.
    fn fill(&self) {
        let mut filler = File::create(self.filler()).expect("created");
        for size in [1 << 20, 1 << 12, 1] {
            let block = vec![7; size];
            while filler.write_all(&block).is_ok() {}
        }
    }

    fn empty(&self) {
        fs::remove_file(self.filler()).expect("removed");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Whoever used it may take a moment to end.
        let gone = Command::new("umount").arg("--lazy").arg(&self.0).status();
        if !gone.is_ok_and(|status| status.success()) || fs::remove_dir(&self.0).is_err() {
            eprintln!("{} is left", self.0.display());
        }
    }
}

/// Puts an item that takes room and does not shrink; the status, and whether it says when to come back.
async fn put(server: &Server, n: usize) -> (u16, bool) {
    let noise: String = (0..2000).map(|_| uuid::Uuid::new_v4().simple().to_string()).collect();
    let body = json!({"namespace": ["disk"], "key": n.to_string(), "value": {"noise": noise}});
    let request = reqwest::Client::new().put(format!("{}/store/items", server.url)).json(&body).timeout(PATIENCE);
    let answer = request.send().await.expect("an answer");
    (answer.status().as_u16(), answer.headers().contains_key("retry-after"))
}

/// The run whose disk is filled has committed half of its steps, and each of the others needs room.
async fn is_survived(url: &str, disk: &Disk) {
    let traces = tempfile::tempdir().expect("a directory");
    let server = server(url, traces.path(), &[]);
    Gate(traces.path()).opens_until(6);
    let input = json!({"name": "full", "n": 0, "steps": STEPS, "noise_bytes": 200_000});
    let run = start(&server, "full", "walk", input).await;
    reaches(&server, "full", 6).await;
    assert_eq!(put(&server, 0).await.0, 204);
    disk.fill();
    let mut acknowledged = 0;
    for n in 1.. {
        assert!(n < 1000, "there is no end to this disk");
        match put(&server, n).await {
            (204, _) => acknowledged = n,
            refused => {
                assert_eq!(refused, (503, true));
                break;
            }
        }
    }
    // It knows what is the matter, and answers what it can.
    Gate(traces.path()).opens_until(STEPS);
    let waits = async || Some(()).filter(|()| server.logged("commit waits for the database"));
    eventually("the run waits for room", PATIENCE, waits).await;
    assert_eq!(get(&format!("{}/ok", server.url)).await["ok"], true);
    assert!(progress(&server, "full").await >= 6, "reads go on");
    let item = format!("{}/store/items?namespace=disk&key={acknowledged}", server.url);
    assert_eq!(get(&item).await["key"], acknowledged.to_string(), "what was acknowledged is there");
    assert_eq!(get(&run).await["status"], "running");
    disk.empty();
    // By itself.
    assert_eq!(ended(&server, &run).await, "success");
    has_each_step_once(&server, "full", STEPS).await;
    assert_eq!(put(&server, 2000).await.0, 204);
    for n in 0..=acknowledged {
        let item = format!("{}/store/items?namespace=disk&key={n}", server.url);
        assert_eq!(get(&item).await["key"], n.to_string());
    }
    assert!(server.terminate().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_waited_for_on_sqlite() {
    let Some(disk) = Disk::mount(24) else { return };
    let file = disk.0.join("session-store.db");
    let url = format!("sqlite://{}", file.display());
    is_survived(&url, &disk).await;
    // Nothing is damaged.
    let storage = sqlx::SqlitePool::connect(&url).await.expect("opened");
    let check: String = sqlx::query_scalar("PRAGMA integrity_check").fetch_one(&storage).await.expect("checked");
    assert_eq!(check, "ok");
    storage.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_waited_for_on_postgres() {
    let Some(admin) = provided("SESSION_STORE_TEST_POSTGRES") else { return };
    let Some(disk) = Disk::mount(96) else { return };
    let data: String = {
        use sqlx::Connection as _;
        let mut admin = sqlx::PgConnection::connect(&admin).await.expect("Postgres answers");
        sqlx::query_scalar("SELECT current_setting('data_directory')").fetch_one(&mut admin).await.expect("a folder")
    };
    // Tables on that disk, the log elsewhere: a log that cannot be written ends the server, and others use it, too.
    let Ok(owner) = fs::metadata(&data) else {
        println!("SKIPPED: Postgres is on another machine");
        return;
    };
    let tables = disk.0.join("tables");
    fs::create_dir(&tables).expect("a folder");
    fs::set_permissions(&disk.0, fs::Permissions::from_mode(0o755)).expect("readable");
    chown(&tables, Some(owner.uid()), Some(owner.gid())).expect("given away");
    let name = format!("disk_{}", uuid::Uuid::new_v4().simple());
    execute(&admin, &format!("CREATE TABLESPACE {name} LOCATION '{}'", tables.display())).await;
    execute(&admin, &format!("CREATE DATABASE {name} TABLESPACE {name}")).await;
    let url = format!("{}/{name}", admin.rsplit_once('/').expect("the URL names a database").0);
    // Mounted until Postgres has let go of it, whatever happens.
    let disk = std::sync::Arc::new(disk);
    let outcome = tokio::spawn({
        let (url, disk) = (url.clone(), std::sync::Arc::clone(&disk));
        async move {
            is_survived(&url, &disk).await;
            // Every row of every table can be read.
            let rows =
                "SELECT SUM(n)::bigint FROM (SELECT COUNT(*) AS n FROM checkpoints c WHERE c::text <> '' UNION ALL
                        SELECT COUNT(*) FROM payloads p WHERE p::text <> '' UNION ALL
                        SELECT COUNT(*) FROM items i WHERE i::text <> '') AS counts";
            assert!(number(&url, rows).await > STEPS);
        }
    })
    .await;
    // Also where it was not survived, so that there is room to drop it.
    let _empty = fs::remove_file(disk.filler());
    execute(&admin, &format!("DROP DATABASE {name} WITH (FORCE)")).await;
    execute(&admin, &format!("DROP TABLESPACE {name}")).await;
    outcome.expect("it is survived");
}
