//! SQLite: the backend in the box, in a file or in memory.
//!
//! One task owns the only writing connection. Operations are sent to it; those that queue up while it works share one
//! transaction, those after the first in a savepoint each, and every caller is answered after the commit. A caller that goes away
//! changes nothing about that: its operation is done or, if it had not started, done all the same. Reads use a pool
//! beside it (WAL); a database in memory has one connection, so there reads queue with the writes.
//!
//! The file belongs to one process, proved by a lock on `<file>.lock`; so the process clock is the database's clock.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{ConnectOptions as _, Connection as _};
use tokio::sync::{broadcast, mpsc, oneshot};

use super::connect::ConnectOptions;
use super::migrations::{self, Migration};
use super::rows::driver_error;
use super::{Connections, Description, Notice, Result, SchemaState, Storage, StorageError};
use crate::model::{RunId, Scope, Ttl};

mod assistants;
mod branches;
mod cache;
mod checkpoints;
mod crons;
mod effects;
mod executions;
mod foreign;
mod foreign_prune;
mod health;
mod idempotency;
mod interrupts;
mod items;
mod retention;
mod runs;
mod sessions;
mod threads;
mod webhooks;

mod rows {
    //! The shared mapping over SQLite's row type.
    use sqlx::sqlite::SqliteRow;

    crate::storage::rows::define_rows!(SqliteRow);
}

const MIGRATIONS: &[Migration] = &[
    Migration { version: 1, name: "0001_init", sql: include_str!("../../../migrations/sqlite/0001_init.sql") },
    Migration {
        version: 2,
        name: "0002_interrupts",
        sql: include_str!("../../../migrations/sqlite/0002_interrupts.sql"),
    },
    Migration {
        version: 3,
        name: "0003_effects_and_usage",
        sql: include_str!("../../../migrations/sqlite/0003_effects_and_usage.sql"),
    },
    Migration {
        version: 6,
        name: "0006_assistants",
        sql: include_str!("../../../migrations/sqlite/0006_assistants.sql"),
    },
    Migration { version: 7, name: "0007_threads", sql: include_str!("../../../migrations/sqlite/0007_threads.sql") },
    Migration { version: 8, name: "0008_crons", sql: include_str!("../../../migrations/sqlite/0008_crons.sql") },
    Migration { version: 9, name: "0009_webhooks", sql: include_str!("../../../migrations/sqlite/0009_webhooks.sql") },
    Migration {
        version: 10,
        name: "0010_idempotency_keys",
        sql: include_str!("../../../migrations/sqlite/0010_idempotency_keys.sql"),
    },
    Migration { version: 12, name: "0012_sessions", sql: include_str!("../../../migrations/sqlite/0012_sessions.sql") },
    Migration {
        version: 13,
        name: "0013_item_vectors",
        sql: include_str!("../../../migrations/sqlite/0013_item_vectors.sql"),
    },
    Migration { version: 14, name: "0014_cache", sql: include_str!("../../../migrations/sqlite/0014_cache.sql") },
    Migration { version: 15, name: "0015_foreign", sql: include_str!("../../../migrations/sqlite/0015_foreign.sql") },
    Migration { version: 16, name: "0016_health", sql: include_str!("../../../migrations/sqlite/0016_health.sql") },
    Migration { version: 17, name: "0017_task_log", sql: include_str!("../../../migrations/sqlite/0017_task_log.sql") },
];

/// Operations that may share a transaction. A bound, so that the first caller does not wait for a crowd.
const MAX_BATCH: usize = 128;

/// What the writer task works with.
struct Write {
    conn: SqliteConnection,
    /// The time of the operation in progress; grows strictly from one to the next.
    now: i64,
    /// Sent after the commit.
    notices: Vec<Notice>,
}

/// How an operation ended: whether its savepoint is kept, and how to answer its caller once the fate of the whole
/// transaction is known (`Some` text: it could not be committed).
struct Finish {
    keep: bool,
    answer: Box<dyn FnOnce(Option<String>) + Send>,
}

type Operation = Box<dyn for<'c> FnOnce(&'c mut Write) -> BoxFuture<'c, Finish> + Send>;

struct Job {
    writes: bool,
    operation: Operation,
}

/// The SQLite backend.
pub(super) struct SqliteStorage {
    /// `None` once closed.
    writer: Mutex<Option<mpsc::Sender<Job>>>,
    writer_task: Mutex<Option<tokio::task::JoinHandle<()>>>,
    /// `None` for a database in memory.
    readers: Option<SqlitePool>,
    notices: broadcast::Sender<Notice>,
    commits: Arc<AtomicU64>,
    location: Option<PathBuf>,
    /// Held for the life of the storage.
    lock: Mutex<Option<File>>,
}

impl std::fmt::Debug for SqliteStorage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteStorage").field("location", &self.location).finish_non_exhaustive()
    }
}

/// Microseconds since 1970. The clock of this backend; nothing else here asks the machine.
fn clock() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX / 4)
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SqliteStorage {
    /// Opens (and creates) a database file, or a database in memory when there is no path.
    pub(super) async fn open(path: Option<&Path>, options: &ConnectOptions) -> Result<SqliteStorage> {
        let synchronous =
            if options.sqlite_synchronous_full { SqliteSynchronous::Full } else { SqliteSynchronous::Normal };
        let base = SqliteConnectOptions::new()
            .busy_timeout(options.acquire_timeout.max(Duration::from_secs(1)))
            .foreign_keys(false)
            .synchronous(synchronous)
            .disable_statement_logging();
        let (writer_options, lock) = match path {
            None => (base.clone().in_memory(true), None),
            Some(path) => {
                if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                    std::fs::create_dir_all(parent)
                        .map_err(|error| StorageError::Unavailable(format!("{}: {error}", parent.display())))?;
                }
                let lock = lock_file(path)?;
                let on_file = base.clone().filename(path).create_if_missing(true).journal_mode(SqliteJournalMode::Wal);
                (on_file, Some(lock))
            }
        };
        let conn = SqliteConnection::connect_with(&writer_options).await.map_err(|error| match path {
            Some(path) => StorageError::Unavailable(format!("{}: {error}", path.display())),
            None => driver_error(error),
        })?;
        let readers = path.map(|path| {
            SqlitePoolOptions::new()
                .max_connections(options.max_connections.clamp(1, 8))
                .acquire_timeout(options.acquire_timeout)
                .test_before_acquire(false)
                .connect_lazy_with(base.filename(path).pragma("query_only", "ON"))
        });
        let (notices, _) = broadcast::channel(4096);
        let commits = Arc::new(AtomicU64::new(0));
        let (sender, receiver) = mpsc::channel(1024);
        let write = Write { conn, now: 0, notices: Vec::new() };
        let task = tokio::spawn(write_loop(receiver, write, notices.clone(), Arc::clone(&commits)));
        Ok(SqliteStorage {
            writer: Mutex::new(Some(sender)),
            writer_task: Mutex::new(Some(task)),
            readers,
            notices,
            commits,
            location: path.map(Path::to_owned),
            lock: Mutex::new(lock),
        })
    }

    async fn send(&self, job: Job) -> Result<()> {
        let sender = locked(&self.writer).clone();
        let closed = || StorageError::Unavailable("the database is closed".into());
        sender.ok_or_else(closed)?.send(job).await.map_err(|_| closed())
    }

    /// Runs an operation on the writing connection; its result arrives after the commit.
    async fn write<T, F>(&self, operation: F) -> Result<T>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut Write) -> BoxFuture<'c, Result<T>> + Send + 'static,
    {
        self.write_if(|_| true, operation).await
    }

    /// [`SqliteStorage::write`] of an operation that may be refused: then nothing of it stays, nor of its key.
    async fn write_if<T, F>(&self, is_done: fn(&T) -> bool, operation: F) -> Result<T>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut Write) -> BoxFuture<'c, Result<T>> + Send + 'static,
    {
        let (answer, result) = oneshot::channel();
        let keyed = super::idempotency::unused();
        let taken = keyed.clone();
        let operation: Operation = Box::new(move |write: &mut Write| {
            Box::pin(async move {
                let is_free = match &taken {
                    Some(keyed) => idempotency::take(write, keyed).await,
                    None => Ok(()),
                };
                let result = match is_free {
                    Ok(()) => operation(write).await,
                    Err(used) => Err(used),
                };
                let keep = result.as_ref().is_ok_and(is_done);
                let answer = Box::new(move |failure: Option<String>| {
                    let outcome = match failure {
                        Some(reason) => result.and(Err(StorageError::Unavailable(reason))),
                        None => result,
                    };
                    // The caller may be gone; the operation counts all the same.
                    let _gone = answer.send(outcome);
                });
                Finish { keep, answer }
            })
        });
        self.send(Job { writes: true, operation }).await?;
        let outcome = result.await.map_err(|_| StorageError::Unavailable("the database was closed".into()))?;
        if let Some(keyed) = keyed.filter(|_| outcome.as_ref().is_ok_and(is_done)) {
            keyed.set_used();
        }
        outcome
    }

    /// Runs a read in one snapshot.
    async fn read<T, F>(&self, read: F) -> Result<T>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T>> + Send + 'static,
    {
        let Some(readers) = &self.readers else {
            let (answer, result) = oneshot::channel();
            let operation: Operation = Box::new(move |write: &mut Write| {
                Box::pin(async move {
                    let result = read(&mut write.conn).await;
                    // Answered whatever becomes of the transaction: in memory it is only undone by a broken process.
                    let answer = Box::new(move |_failure: Option<String>| {
                        let _gone = answer.send(result);
                    });
                    Finish { keep: true, answer }
                })
            });
            self.send(Job { writes: false, operation }).await?;
            return result.await.map_err(|_| StorageError::Unavailable("the database was closed".into()))?;
        };
        let mut transaction = readers.begin().await.map_err(driver_error)?;
        let result = read(&mut transaction).await;
        // Nothing was written; a failure to end the snapshot only costs the connection.
        let _ended = transaction.rollback().await;
        result
    }
}

/// Takes the lock that makes a file belong to this process.
fn lock_file(path: &Path) -> Result<File> {
    // The lock follows the real file, so that a second name (a symlink) is the same database.
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mut name = real.into_os_string();
    name.push(".lock");
    let name = PathBuf::from(name);
    let failed = |error: std::io::Error| StorageError::Unavailable(format!("{}: {error}", name.display()));
    let file = File::options().create(true).truncate(false).write(true).open(&name).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(StorageError::Unavailable(format!(
            "{} is in use by another process (it holds {}): stop that process, choose another file, or use Postgres \
             to run several processes",
            path.display(),
            name.display()
        ))),
        Err(std::fs::TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// The writer task: batches, commits, answers.
async fn write_loop(
    mut jobs: mpsc::Receiver<Job>,
    mut write: Write,
    notices: broadcast::Sender<Notice>,
    commits: Arc<AtomicU64>,
) {
    while let Some(first) = jobs.recv().await {
        let mut finished = Vec::new();
        let mut open = false;
        let mut failure: Option<String> = None;
        let mut next = Some(first);
        while let Some(job) = next.take() {
            let finish = match run_job(job, &mut write, &mut open).await {
                Ok(finish) => finish,
                Err((finish, error)) => {
                    failure = Some(error.to_string());
                    finished.extend(finish);
                    break;
                }
            };
            finished.push(finish);
            if finished.len() < MAX_BATCH {
                next = jobs.try_recv().ok();
            }
        }
        if open && failure.is_none() {
            match sqlx::query("COMMIT").execute(&mut write.conn).await {
                Ok(_) => {
                    commits.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => failure = Some(error.to_string()),
            }
        }
        if failure.is_some() {
            write.notices.clear();
            // After a failed COMMIT the transaction may be gone already.
            let _ended = sqlx::query("ROLLBACK").execute(&mut write.conn).await;
        }
        for finish in finished {
            (finish.answer)(failure.clone());
        }
        for notice in write.notices.drain(..) {
            // Nobody listening is fine.
            let _unheard = notices.send(notice);
        }
    }
    let _closed = write.conn.close().await;
}

type JobError = (Option<Finish>, sqlx::Error);

/// Runs one job. The first that writes opens the transaction, later ones have a savepoint each, so that one that fails is
/// undone alone. An error here spoils the whole transaction.
async fn run_job(job: Job, write: &mut Write, open: &mut bool) -> std::result::Result<Finish, JobError> {
    let before = |error| (None, error);
    if !job.writes {
        return Ok((job.operation)(write).await);
    }
    let is_first = !*open;
    let begin = if is_first { "BEGIN IMMEDIATE" } else { "SAVEPOINT operation" };
    sqlx::query(begin).execute(&mut write.conn).await.map_err(before)?;
    *open = true;
    write.now = clock().max(write.now + 1);
    let heard = write.notices.len();
    let finish = (job.operation)(write).await;
    if !finish.keep {
        write.notices.truncate(heard);
    }
    let end = match (is_first, finish.keep) {
        (true, true) => return Ok(finish),
        (true, false) => "ROLLBACK",
        (false, true) => "RELEASE operation",
        (false, false) => "ROLLBACK TO operation; RELEASE operation",
    };
    match sqlx::raw_sql(end).execute(&mut write.conn).await {
        Ok(_) => {
            *open = !is_first || finish.keep;
            Ok(finish)
        }
        Err(error) => Err((Some(finish), error)),
    }
}

#[async_trait]
impl Storage for SqliteStorage {
    fn describe(&self) -> Description {
        Description {
            backend: "sqlite",
            location: self.location.as_ref().map_or_else(|| "in memory".to_owned(), |path| path.display().to_string()),
            volatile: self.location.is_none(),
            ranked_by: None,
        }
    }

    async fn schema(&self) -> Result<SchemaState> {
        self.read(|conn| Box::pin(schema(conn))).await
    }

    async fn migrate(&self) -> Result<usize> {
        self.write(|write| Box::pin(migrate(write))).await
    }

    async fn ping(&self, _scope: &Scope) -> Result<()> {
        self.read(|conn| {
            Box::pin(async move {
                sqlx::query("SELECT 1").execute(conn).await.map_err(driver_error)?;
                Ok(())
            })
        })
        .await
    }

    fn is_shared(&self) -> bool {
        false
    }

    async fn want_run(&self, _run_id: RunId, _keep: Option<Ttl>) -> Result<()> {
        // There are no others.
        Ok(())
    }

    fn notices(&self) -> broadcast::Receiver<Notice> {
        self.notices.subscribe()
    }

    fn connections(&self) -> Connections {
        // The writer, and its readers; in memory it reads, too.
        let Some(readers) = &self.readers else { return Connections { open: 1, idle: 0, most: 1 } };
        Connections {
            open: u64::from(readers.size()) + 1,
            idle: u64::try_from(readers.num_idle()).unwrap_or(u64::MAX),
            most: u64::from(readers.options().get_max_connections()) + 1,
        }
    }

    fn write_transactions(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    async fn close(&self) {
        // Without senders the writer finishes what is queued and ends.
        drop(locked(&self.writer).take());
        let task = locked(&self.writer_task).take();
        if let Some(task) = task {
            let _ended = task.await;
        }
        if let Some(readers) = &self.readers {
            readers.close().await;
        }
        drop(locked(&self.lock).take());
    }
}

async fn schema(conn: &mut SqliteConnection) -> Result<SchemaState> {
    let (is_there,): (bool,) = sqlx::query_as(
        "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'schema_migrations')",
    )
    .fetch_one(&mut *conn)
    .await
    .map_err(driver_error)?;
    let applied = if is_there { applied(conn).await? } else { Vec::new() };
    let missing = migrations::missing(MIGRATIONS, &applied)?.len();
    Ok(SchemaState { applied: applied.len(), missing })
}

/// Version, checksum and `expands` of the migrations that were applied.
async fn applied(conn: &mut SqliteConnection) -> Result<Vec<(i64, String, bool)>> {
    // The column is younger than the table.
    let (says_more,): (bool,) = sqlx::query_as("SELECT EXISTS (SELECT 1 FROM schema_migrations WHERE version = $1)")
        .bind(migrations::SAYS_WHAT_EXPANDS)
        .fetch_one(&mut *conn)
        .await
        .map_err(driver_error)?;
    sqlx::query_as(match says_more {
        true => "SELECT version, checksum, expands <> 0 FROM schema_migrations",
        false => "SELECT version, checksum, FALSE FROM schema_migrations",
    })
    .fetch_all(conn)
    .await
    .map_err(driver_error)
}

async fn migrate(write: &mut Write) -> Result<usize> {
    sqlx::query(
        "CREATE TABLE IF NOT EXISTS schema_migrations (
            version    INTEGER NOT NULL,
            name       TEXT NOT NULL,
            checksum   TEXT NOT NULL,
            applied_at INTEGER NOT NULL,
            PRIMARY KEY (version)
        ) STRICT",
    )
    .execute(&mut write.conn)
    .await
    .map_err(driver_error)?;
    let missing = migrations::missing(MIGRATIONS, &applied(&mut write.conn).await?)?;
    for migration in &missing {
        sqlx::raw_sql(migration.sql)
            .execute(&mut write.conn)
            .await
            .map_err(|error| StorageError::Schema(format!("migration {}: {error}", migration.name)))?;
        sqlx::query("INSERT INTO schema_migrations (version, name, checksum, applied_at) VALUES ($1, $2, $3, $4)")
            .bind(migration.version)
            .bind(migration.name)
            .bind(migration.checksum())
            .bind(write.now)
            .execute(&mut write.conn)
            .await
            .map_err(driver_error)?;
        // It does: `storage::schema::migrations_only_add`.
        if migration.version >= migrations::SAYS_WHAT_EXPANDS {
            sqlx::query("UPDATE schema_migrations SET expands = 1 WHERE version <= $1")
                .bind(migration.version)
                .execute(&mut write.conn)
                .await
                .map_err(driver_error)?;
        }
    }
    Ok(missing.len())
}
