//! Postgres: the backend for production and for several replicas.
//!
//! Hot operations are one autocommit statement each; the rest are short transactions that lock first and look after.
//! The rules that keep them correct under READ COMMITTED:
//!
//! * **Lock order.** Thread rows in ascending order of their key, then run rows in ascending order. Only renewals and
//!   claims lock run rows without their thread; claims skip what is locked.
//! * **A statement has one snapshot.** When it waited for a row lock, that row is read anew, other rows are not. So no
//!   statement that locks also decides by rows it did not lock, unless it proves its snapshot fresh: `threads.revision`
//!   grows with every run inserted, and `runs::create` does nothing when the locked row's revision is not the
//!   snapshot's. Transactions lock in a first statement and decide in a later one, which has a new snapshot.
//! * **The fence.** Every write of a run selects from the run row, locked, with the epoch of the lease.

use std::str::FromStr as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions as _, Connection as _, Postgres, Transaction};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::at_hand::{AtHand, Lent};
use super::connect::ConnectOptions;
use super::migrations::{self, Migration};
use super::rows::driver_error;
use super::{Connections, Description, Notice, Result, SchemaState, Storage, StorageError};
use crate::model::{RunId, Scope, Ttl};

mod assistants;
mod at_hand;
mod branches;
mod cache;
mod checkpoints;
mod copies;
mod crons;
mod effects;
mod executions;
mod foreign;
mod foreign_alone;
mod foreign_prune;
mod foreign_together;
mod health;
mod idempotency;
mod interrupts;
mod items;
mod listen;
mod pgvector;
mod retention;
mod runs;
pub(super) mod scratch;
mod sessions;
mod threads;
mod webhooks;

mod rows {
    //! The shared mapping over Postgres' row type.
    use sqlx::postgres::PgRow;

    crate::storage::rows::define_rows!(PgRow);
}

const MIGRATIONS: &[Migration] = &[
    Migration { version: 1, name: "0001_init", sql: include_str!("../../../migrations/postgres/0001_init.sql") },
    Migration {
        version: 2,
        name: "0002_interrupts",
        sql: include_str!("../../../migrations/postgres/0002_interrupts.sql"),
    },
    Migration {
        version: 3,
        name: "0003_effects_and_usage",
        sql: include_str!("../../../migrations/postgres/0003_effects_and_usage.sql"),
    },
    Migration {
        version: 6,
        name: "0006_assistants",
        sql: include_str!("../../../migrations/postgres/0006_assistants.sql"),
    },
    Migration { version: 7, name: "0007_threads", sql: include_str!("../../../migrations/postgres/0007_threads.sql") },
    Migration { version: 8, name: "0008_crons", sql: include_str!("../../../migrations/postgres/0008_crons.sql") },
    Migration {
        version: 9,
        name: "0009_webhooks",
        sql: include_str!("../../../migrations/postgres/0009_webhooks.sql"),
    },
    Migration {
        version: 10,
        name: "0010_idempotency_keys",
        sql: include_str!("../../../migrations/postgres/0010_idempotency_keys.sql"),
    },
    Migration {
        version: 12,
        name: "0012_sessions",
        sql: include_str!("../../../migrations/postgres/0012_sessions.sql"),
    },
    Migration {
        version: 13,
        name: "0013_item_vectors",
        sql: include_str!("../../../migrations/postgres/0013_item_vectors.sql"),
    },
    Migration { version: 14, name: "0014_cache", sql: include_str!("../../../migrations/postgres/0014_cache.sql") },
    Migration { version: 15, name: "0015_foreign", sql: include_str!("../../../migrations/postgres/0015_foreign.sql") },
    Migration { version: 16, name: "0016_health", sql: include_str!("../../../migrations/postgres/0016_health.sql") },
    Migration {
        version: 17,
        name: "0017_task_log",
        sql: include_str!("../../../migrations/postgres/0017_task_log.sql"),
    },
];

/// The advisory lock of migrations: `sessstor` in bytes.
const MIGRATION_LOCK: i64 = 0x7365_7373_7374_6f72;

/// A connection that was idle this long is tried before it is used; a busy one is not worth a round trip.
const TEST_AFTER_IDLE: Duration = Duration::from_secs(2);

/// The database's clock in microseconds.
macro_rules! now {
    () => {
        "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
    };
}
use now;

/// Runs a read, and again while its connections turn out to be broken, for [`READ_BUDGET`]: reads change nothing, and a
/// database that restarts is back soon. Bounded as every operation is.
macro_rules! read {
    ($storage:expr, $attempt:expr) => {
        $storage
            .bounded(async {
                let mut patience = crate::storage::postgres::Patience::default();
                loop {
                    match $attempt.await {
                        Err(error) if patience.is_left_for(&error) => {
                            $storage.distrust();
                            patience.pause().await;
                        }
                        outcome => break outcome,
                    }
                }
            })
            .await
    };
}
use read;

/// How long a read is repeated while the database is away; then its caller is told to try again later.
const READ_BUDGET: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// What is left of the budget of a read.
struct Patience {
    until: Instant,
    pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        // The first repetition comes at once: usually one connection was broken, and the next is well.
        Patience { until: Instant::now() + READ_BUDGET, pause: Duration::ZERO }
    }
}

impl Patience {
    fn is_left_for(&self, error: &StorageError) -> bool {
        worth_repeating(error) && Instant::now() + self.pause < self.until
    }

    async fn pause(&mut self) {
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).clamp(Duration::from_millis(25), LONGEST_PAUSE);
    }
}

/// A broken connection, not an overloaded database.
fn worth_repeating(error: &StorageError) -> bool {
    matches!(error, StorageError::Unavailable(text) if !text.contains("timed out") && !text.contains("timeout"))
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX / 4)
}

/// A connection for one statement. Behind PgBouncer it is pinned by a transaction, since the parts of one prepared
/// statement must meet the same server.
enum Session {
    Plain(Lent),
    Pinned(Transaction<'static, Postgres>),
}

impl Session {
    fn conn(&mut self) -> &mut PgConnection {
        match self {
            Session::Plain(lent) => &mut lent.conn,
            Session::Pinned(transaction) => transaction,
        }
    }

    /// Makes the statement count, which was answered in full.
    async fn finish(self) -> Result<()> {
        match self {
            Session::Plain(lent) => {
                lent.give_back();
                Ok(())
            }
            Session::Pinned(transaction) => transaction.commit().await.map_err(driver_error),
        }
    }
}

/// The Postgres backend.
pub(super) struct PostgresStorage {
    pool: RwLock<Pool>,
    /// The number of those connections.
    current: watch::Sender<u64>,
    /// When somebody was last answered.
    heard: RwLock<Instant>,
    /// No operation takes longer, unless its connection is dead without anybody having said so; zero: no bound.
    answers_within: Duration,
    group: runs::Group,
    pgbouncer: bool,
    /// One thread per statement.
    distributed: bool,
    notices: broadcast::Sender<Notice>,
    commits: AtomicU64,
    location: String,
    listener: Mutex<Option<JoinHandle<()>>>,
    pgvector: pgvector::Pgvector,
}

/// The connections in use. The number tells one set from the next.
struct Pool {
    pool: PgPool,
    at_hand: Arc<AtHand>,
    number: u64,
}

impl std::fmt::Debug for PostgresStorage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresStorage").field("location", &self.location).finish_non_exhaustive()
    }
}

impl PostgresStorage {
    pub(super) async fn connect(url: &str, options: &ConnectOptions) -> Result<PostgresStorage> {
        let mut connect = PgConnectOptions::from_str(url)
            .map_err(|error| StorageError::Url(format!("not a Postgres URL: {error}")))?
            .application_name("session-store")
            .disable_statement_logging();
        if options.pgbouncer {
            // PgBouncer refuses start-up parameters it does not know, and may hand each statement to another server.
            connect = connect.statement_cache_capacity(0).extra_float_digits(None);
        } else {
            let timeout = options.statement_timeout.as_millis().to_string();
            connect = connect.options([
                ("statement_timeout", timeout.as_str()),
                ("default_transaction_isolation", "read committed"),
                // What a process holds that has vanished is let go within seconds, not hours.
                ("idle_in_transaction_session_timeout", "10000"),
                ("tcp_keepalives_idle", "10"),
                ("tcp_keepalives_interval", "3"),
                ("tcp_keepalives_count", "3"),
            ]);
        }
        let location = format!("{}/{}", connect.get_host(), connect.get_database().unwrap_or(connect.get_username()));
        let pool = PgPoolOptions::new()
            .max_connections(options.max_connections.max(1))
            .acquire_timeout(options.acquire_timeout)
            .test_before_acquire(false)
            .before_acquire(|conn, meta| {
                Box::pin(async move {
                    if meta.idle_for > TEST_AFTER_IDLE {
                        conn.ping().await?;
                    }
                    Ok(true)
                })
            })
            .connect_with(connect)
            .await
            .map_err(|error| match driver_error(error) {
                StorageError::Other(text) | StorageError::Unavailable(text) => {
                    StorageError::Unavailable(format!("{location}: {text}"))
                }
                other => other,
            })?;
        let (notices, _) = broadcast::channel(4096);
        let listener = match options.pgbouncer {
            true => None,
            false => Some(listen::start(&pool, notices.clone()).await),
        };
        let answers_within = match options.statement_timeout {
            Duration::ZERO => Duration::ZERO,
            timeout => timeout + options.acquire_timeout + Duration::from_secs(1),
        };
        let storage = PostgresStorage {
            pool: RwLock::new(Pool { pool, at_hand: Arc::default(), number: 0 }),
            current: watch::Sender::new(0),
            heard: RwLock::new(Instant::now()),
            answers_within,
            group: runs::Group::default(),
            pgbouncer: options.pgbouncer,
            distributed: options.distributed,
            notices,
            commits: AtomicU64::new(0),
            location,
            listener: Mutex::new(listener),
            // How the tables are distributed is not known here.
            pgvector: pgvector::Pgvector::new(options.pgvector && !options.distributed),
        };
        storage.look_for_pgvector().await?;
        Ok(storage)
    }

    async fn session(&self) -> Result<Session> {
        // Under a key the statement shares a transaction with the key's row: see `wrote`.
        if self.pgbouncer || super::idempotency::unused().is_some() {
            return Ok(Session::Pinned(self.open().await?));
        }
        let (pool, at_hand) = self.connections_in_use();
        Ok(Session::Plain(at_hand.take(&pool, TEST_AFTER_IDLE).await.map_err(driver_error)?))
    }

    /// [`PostgresStorage::session`] for what cannot wait for long. That others hold all connections says nothing about the
    /// network, unless none of them has been answered for as long.
    async fn session_within(&self, limit: Duration) -> Result<Session> {
        if limit.is_zero() {
            return self.session().await;
        }
        let number = *self.current.borrow();
        match tokio::time::timeout(limit, self.session()).await {
            Ok(session) => session,
            Err(_) => {
                if self.heard.read().unwrap_or_else(PoisonError::into_inner).elapsed() >= limit {
                    self.connect_anew(number);
                }
                Err(StorageError::Unavailable(format!("no free connection within {limit:?}")))
            }
        }
    }

    /// Begins a transaction. Behind PgBouncer the connection may have been another client's, whose statements have the
    /// same names as ours.
    async fn open(&self) -> Result<Transaction<'static, Postgres>> {
        let begin = if self.pgbouncer { "BEGIN; DEALLOCATE ALL" } else { "BEGIN" };
        self.begin_with(begin).await
    }

    /// Begins a transaction whose statements all see the same rows, and change none.
    async fn open_snapshot(&self) -> Result<Transaction<'static, Postgres>> {
        let begin = match self.pgbouncer {
            true => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; DEALLOCATE ALL",
            false => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        };
        self.begin_with(begin).await
    }

    async fn begin_with(&self, begin: &'static str) -> Result<Transaction<'static, Postgres>> {
        let (pool, at_hand) = self.connections_in_use();
        let _waiting = at_hand.make_room();
        pool.begin_with(begin).await.map_err(driver_error)
    }

    /// After one connection broke: the others at hand are tested before they are used.
    fn distrust(&self) {
        self.connections_in_use().1.clear();
    }

    fn connections_in_use(&self) -> (PgPool, Arc<AtHand>) {
        let current = self.pool.read().unwrap_or_else(PoisonError::into_inner);
        (current.pool.clone(), current.at_hand.clone())
    }

    /// Gives up an operation that gets no answer. A network that swallows packets, or a peer that vanished, leaves
    /// connections that look alive for a quarter of an hour: then all of them are left behind, and new ones made. What was
    /// given up may have been done or not; every write of a run is fenced by its lease.
    async fn answered<T>(&self, limit: Duration, operation: impl Future<Output = Result<T>>) -> Result<T> {
        if limit.is_zero() {
            return operation.await;
        }
        let mut current = self.current.subscribe();
        let number = *current.borrow_and_update();
        tokio::select! {
            biased;
            answered = tokio::time::timeout(limit, operation) => match answered {
                Ok(outcome) => {
                    if matches!(outcome, Err(StorageError::Unavailable(_))) {
                        self.distrust();
                    } else {
                        *self.heard.write().unwrap_or_else(PoisonError::into_inner) = Instant::now();
                    }
                    outcome
                }
                Err(_) => {
                    self.connect_anew(number);
                    Err(StorageError::Unavailable(format!("no answer within {limit:?}")))
                }
            },
            // Somebody else got no answer: what is under way gets none either.
            _ = current.changed() => Err(StorageError::Unavailable("its connection was left behind".to_owned())),
        }
    }

    /// [`PostgresStorage::answered`] within the time that any operation may take.
    async fn bounded<T>(&self, operation: impl Future<Output = Result<T>>) -> Result<T> {
        self.answered(self.answers_within, operation).await
    }

    /// Replaces the connections that had this number, unless somebody has.
    fn connect_anew(&self, number: u64) {
        let mut current = self.pool.write().unwrap_or_else(PoisonError::into_inner);
        if current.number != number || current.pool.is_closed() {
            return;
        }
        tracing::warn!("the database does not answer: its connections are left behind and made anew");
        let new = current.pool.options().clone().connect_lazy_with((*current.pool.connect_options()).clone());
        let anew = Pool { pool: new.clone(), at_hand: Arc::default(), number: number + 1 };
        let Pool { pool: old, at_hand, .. } = std::mem::replace(&mut *current, anew);
        drop(current);
        at_hand.close();
        self.current.send_replace(number + 1);
        // Waits for connections that may never come back.
        tokio::spawn(async move { old.close().await });
        let mut listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(listener) = listener.as_mut() {
            listener.abort();
            *listener = listen::restart(&new, self.notices.clone());
        }
    }

    /// Begins a writing transaction; under a key the key's row is its first.
    async fn begin(&self) -> Result<Transaction<'static, Postgres>> {
        let mut transaction = self.open().await?;
        if let Some(keyed) = super::idempotency::unused() {
            idempotency::take(&mut transaction, &keyed).await?;
        }
        Ok(transaction)
    }

    /// Ends a writing session.
    async fn wrote(&self, mut session: Session) -> Result<()> {
        let keyed = super::idempotency::unused();
        if let Some(keyed) = &keyed {
            idempotency::take(session.conn(), keyed).await?;
        }
        session.finish().await?;
        if let Some(keyed) = keyed {
            keyed.set_used();
        }
        self.commits.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Ends a writing transaction.
    async fn commit(&self, transaction: Transaction<'static, Postgres>) -> Result<()> {
        transaction.commit().await.map_err(driver_error)?;
        self.commits.fetch_add(1, Ordering::Relaxed);
        if let Some(keyed) = super::idempotency::unused() {
            keyed.set_used();
        }
        Ok(())
    }

    /// Tells this process.
    fn tell(&self, notices: impl IntoIterator<Item = Notice>) {
        for notice in notices {
            // Nobody listening is fine.
            let _unheard = self.notices.send(notice);
        }
    }
}

/// Version, checksum and `expands` of the migrations that were applied.
async fn applied(conn: &mut PgConnection) -> Result<Vec<(i64, String, bool)>> {
    // The column is younger than the table.
    let (says_more,): (bool,) = sqlx::query_as("SELECT EXISTS (SELECT 1 FROM schema_migrations WHERE version = $1)")
        .bind(migrations::SAYS_WHAT_EXPANDS)
        .fetch_one(&mut *conn)
        .await
        .map_err(driver_error)?;
    sqlx::query_as(match says_more {
        true => "SELECT version, checksum, expands FROM schema_migrations",
        false => "SELECT version, checksum, FALSE FROM schema_migrations",
    })
    .fetch_all(conn)
    .await
    .map_err(driver_error)
}

/// Tells the other processes, when the transaction commits.
async fn notify(conn: &mut PgConnection, notices: &[Notice]) -> Result<()> {
    let payloads: Vec<String> = notices.iter().filter_map(listen::payload).collect();
    if payloads.is_empty() {
        return Ok(());
    }
    sqlx::query("SELECT pg_notify('session_store', p) FROM UNNEST($1::text[]) AS p")
        .bind(payloads)
        .execute(conn)
        .await
        .map_err(driver_error)?;
    Ok(())
}

#[async_trait]
impl Storage for PostgresStorage {
    fn describe(&self) -> Description {
        let ranked_by = self.pgvector.version().map(|version| format!("pgvector {version}"));
        Description { backend: "postgres", location: self.location.clone(), volatile: false, ranked_by }
    }

    async fn schema(&self) -> Result<SchemaState> {
        let mut transaction = self.begin().await?;
        let (is_there,): (bool,) = sqlx::query_as("SELECT to_regclass('schema_migrations') IS NOT NULL")
            .fetch_one(&mut *transaction)
            .await
            .map_err(driver_error)?;
        let applied = if is_there { applied(&mut transaction).await? } else { Vec::new() };
        let missing = migrations::missing(MIGRATIONS, &applied)?.len();
        Ok(SchemaState { applied: applied.len(), missing })
    }

    async fn migrate(&self) -> Result<usize> {
        let mut transaction = self.begin().await?;
        // Processes that start together wait here for the first one; the lock goes with the transaction. Migrations
        // may take longer than a statement normally should.
        sqlx::query("SET LOCAL statement_timeout = 0").execute(&mut *transaction).await.map_err(driver_error)?;
        sqlx::query("SELECT pg_advisory_xact_lock($1)")
            .bind(MIGRATION_LOCK)
            .execute(&mut *transaction)
            .await
            .map_err(driver_error)?;
        sqlx::query(
            "CREATE TABLE IF NOT EXISTS schema_migrations (
                version    bigint NOT NULL,
                name       text NOT NULL,
                checksum   text NOT NULL,
                applied_at bigint NOT NULL,
                PRIMARY KEY (version)
            )",
        )
        .execute(&mut *transaction)
        .await
        .map_err(driver_error)?;
        let missing = migrations::missing(MIGRATIONS, &applied(&mut transaction).await?)?;
        for migration in &missing {
            sqlx::raw_sql(migration.sql)
                .execute(&mut *transaction)
                .await
                .map_err(|error| StorageError::Schema(format!("migration {}: {error}", migration.name)))?;
            sqlx::query(concat!(
                "INSERT INTO schema_migrations (version, name, checksum, applied_at) VALUES ($1, $2, $3, ",
                now!(),
                ")"
            ))
            .bind(migration.version)
            .bind(migration.name)
            .bind(migration.checksum())
            .execute(&mut *transaction)
            .await
            .map_err(driver_error)?;
        }
        if !missing.is_empty() {
            // All of them do: `storage::schema::migrations_only_add`.
            let known: Vec<i64> = MIGRATIONS.iter().map(|migration| migration.version).collect();
            sqlx::query("UPDATE schema_migrations SET expands = TRUE WHERE version = ANY ($1)")
                .bind(known)
                .execute(&mut *transaction)
                .await
                .map_err(driver_error)?;
        }
        self.commit(transaction).await?;
        self.prepare_pgvector().await?;
        Ok(missing.len())
    }

    async fn ping(&self, _scope: &Scope) -> Result<()> {
        read!(self, async {
            let mut session = self.session().await?;
            sqlx::query("SELECT 1").execute(session.conn()).await.map_err(driver_error)?;
            session.finish().await?;
            Ok(())
        })
    }

    fn is_shared(&self) -> bool {
        true
    }

    async fn want_run(&self, run_id: RunId, keep: Option<Ttl>) -> Result<()> {
        self.bounded(async {
            if let Some(ttl) = keep {
                self.keep_thread_of(run_id, ttl).await?;
            }
            let mut session = self.session().await?;
            notify(session.conn(), &[Notice::RunWanted(run_id)]).await
        })
        .await
    }

    fn notices(&self) -> broadcast::Receiver<Notice> {
        self.notices.subscribe()
    }

    fn connections(&self) -> Connections {
        let (pool, at_hand) = self.connections_in_use();
        let idle = u64::try_from(pool.num_idle() + at_hand.len()).unwrap_or(u64::MAX);
        Connections { open: pool.size().into(), idle, most: pool.options().get_max_connections().into() }
    }

    fn write_transactions(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    async fn close(&self) {
        let listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(listener) = listener {
            listener.abort();
        }
        let (pool, at_hand) = self.connections_in_use();
        at_hand.close();
        pool.close().await;
    }
}
