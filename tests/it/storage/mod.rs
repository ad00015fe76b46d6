//! The contract suite: every rule of `session_store::storage`, once per backend.

use std::future::Future;
use std::time::{Duration, Instant};

use session_store::model::*;
use session_store::storage::connect::{ConnectOptions, connect};
use session_store::storage::*;
use sqlx::{AssertSqlSafe, Connection as _};
use uuid::Uuid;

use crate::support::pgbouncer::PgBouncer;
use crate::support::postgres::Database;

mod assistants;
mod branches;
mod cache;
mod checkpoints;
mod claims;
mod commits;
mod connections;
mod crons;
mod effects;
mod executions;
mod foreign;
mod health;
mod idempotency;
mod interrupts;
mod item_vectors;
mod items;
mod pgvector;
mod retention;
mod runs;
mod schema;
mod sessions;
mod threads;
mod usage;
mod views;
mod webhooks;

/// A backend with a fresh database, and what a test needs beside the contract.
pub(crate) struct Lab {
    pub(crate) storage: SharedStorage,
    pub(crate) url: String,
}

impl Lab {
    fn is_postgres(&self) -> bool {
        self.url.starts_with("postgres")
    }

    fn is_memory(&self) -> bool {
        self.url == "memory"
    }

    /// Runs a statement past the storage, as someone with psql would.
    async fn tamper(&self, statement: &str) {
        let statement = AssertSqlSafe(statement.to_owned());
        if self.is_postgres() {
            let mut conn = sqlx::PgConnection::connect(&self.url).await.unwrap();
            sqlx::raw_sql(statement).execute(&mut conn).await.unwrap();
        } else {
            let mut conn = sqlx::SqliteConnection::connect(&self.url).await.unwrap();
            sqlx::raw_sql(statement).execute(&mut conn).await.unwrap();
        }
    }
}

/// Runs a test body on an SQLite file, in memory, or on Postgres, directly, behind PgBouncer or with pgvector, and cleans up
/// whatever comes of it.
async fn on<F, Fut>(backend: &str, body: F)
where
    F: FnOnce(Lab) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    let dir = tempfile::tempdir().unwrap();
    let mut database = None;
    let url = match backend {
        "memory" => "memory".to_owned(),
        "sqlite" => format!("sqlite://{}", dir.path().join("sub/dir/test.db").display()),
        "pgvector" => {
            database = Database::create_beside_pgvector().await;
            let Some(database) = &database else { return };
            database.install_pgvector().await;
            database.url()
        }
        _ => {
            database = Database::create().await;
            let Some(database) = &database else { return };
            database.url()
        }
    };
    let bouncer = if backend == "pgbouncer" { PgBouncer::before(&url) } else { None };
    let storage = match (&bouncer, backend) {
        (None, "pgbouncer") => return,
        (Some(bouncer), _) => {
            let options = ConnectOptions { pgbouncer: true, ..options() };
            connect(&bouncer.url(&url), &options).await.unwrap()
        }
        (None, _) => connect(&url, &options()).await.unwrap(),
    };
    storage.migrate().await.unwrap();
    assert_eq!(storage.describe().ranked_by.is_some(), backend == "pgvector");
    let outcome = tokio::spawn(body(Lab { storage: storage.clone(), url })).await;
    storage.close().await;
    if let Some(database) = database {
        database.drop().await;
    }
    if let Err(error) = outcome {
        std::panic::resume_unwind(error.into_panic());
    }
}

fn options() -> ConnectOptions {
    ConnectOptions { max_connections: 8, ..ConnectOptions::default() }
}

/// Generates `sqlite::name`, `memory::name` and `postgres::name` for each test body `async fn name(lab: Lab)`.
macro_rules! for_each_backend {
    ($($name:ident),* $(,)?) => {
        for_each_backend!(@ sqlite, $($name),*);
        for_each_backend!(@ memory, $($name),*);
        for_each_backend!(@ postgres, $($name),*);
    };
    (@ $backend:ident, $($name:ident),*) => {
        mod $backend {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    crate::storage::on(stringify!($backend), super::$name).await;
                }
            )*
        }
    };
}
use for_each_backend;

/// [`for_each_backend`], and on Postgres behind PgBouncer in transaction mode.
macro_rules! for_each_backend_and_pgbouncer {
    ($($name:ident),* $(,)?) => {
        crate::storage::for_each_backend!($($name),*);
        crate::storage::for_each_backend!(@ pgbouncer, $($name),*);
    };
}
use for_each_backend_and_pgbouncer;

/// [`for_each_backend`], and on Postgres with pgvector.
macro_rules! for_each_backend_and_pgvector {
    ($($name:ident),* $(,)?) => {
        crate::storage::for_each_backend!($($name),*);
        crate::storage::for_each_backend!(@ pgvector, $($name),*);
    };
}
use for_each_backend_and_pgvector;

const TENANT: Scope = Scope::Tenant(DEFAULT);
const DEFAULT: Uuid = Uuid::nil();
const OTHER: Scope = Scope::Tenant(Uuid::from_u128(0x0123_4567_89ab));
const MINUTE: Duration = Duration::from_secs(60);

fn json(text: &str) -> Json {
    Json::parse(text).unwrap()
}

fn tid(name: &str) -> ThreadId {
    ThreadId::parse(name).unwrap()
}

fn key(name: &str) -> ThreadKey {
    tid(name).key(DEFAULT)
}

fn id(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

fn thread(name: &str) -> NewThread {
    NewThread { id: tid(name), graph_id: None, metadata: Json::object(), config: Json::object(), ttl: None }
}

fn claim(lease: Duration) -> Claim {
    Claim { worker: "worker-1".into(), lease }
}

/// A run to insert on a thread that is made if it is missing; not claimed.
fn run(name: &str, n: u128) -> NewRun {
    NewRun {
        run_id: id(n),
        thread_id: tid(name),
        create_thread: true,
        assistant_id: id(900),
        assistant_as_of: None,
        graph_id: "graph".into(),
        metadata: Json::object(),
        assistant_metadata: Json::object(),
        kwargs: json(r#"{"input":{"a":1}}"#),
        multitask_strategy: MultitaskStrategy::Enqueue,
        after: Duration::ZERO,
        thread_metadata: Json::object(),
        thread_ttl: None,
        temporary: false,
        claim: None,
        actor: Some("tester".into()),
        webhook: None,
    }
}

fn claimed_run(name: &str, n: u128, lease: Duration) -> NewRun {
    NewRun { claim: Some(claim(lease)), ..run(name, n) }
}

/// Inserts a run that is claimed at once.
async fn start(storage: &SharedStorage, name: &str, n: u128) -> ClaimedRun {
    start_for(storage, name, n, MINUTE).await
}

async fn start_for(storage: &SharedStorage, name: &str, n: u128, lease: Duration) -> ClaimedRun {
    match storage.create_run(&TENANT, claimed_run(name, n, lease)).await.unwrap() {
        RunCreated::Created { claimed: Some(claimed), .. } => *claimed,
        other => panic!("not claimed: {other:?}"),
    }
}

fn created(outcome: RunCreated) -> (Run, Option<Box<ClaimedRun>>, Vec<Cancelled>) {
    match outcome {
        RunCreated::Created { run, claimed, cancelled } => (run, claimed, cancelled),
        other => panic!("not created: {other:?}"),
    }
}

fn checkpoint(checkpoint_id: &str, run_id: Option<Uuid>) -> CheckpointRow {
    CheckpointRow {
        ns: String::new(),
        id: checkpoint_id.into(),
        parent: None,
        run_id,
        step: 1,
        source: CheckpointSource::Loop,
        at: Timestamp(1_000),
        metadata: json(r#"{"source":"loop","step":1}"#),
        next: vec!["node".into()],
        body: json(r#"{"v":1}"#),
        bytes: 10,
    }
}

fn task_writes(checkpoint_id: &str, task: &str, run_id: Option<Uuid>, body: &str) -> TaskWritesRow {
    TaskWritesRow {
        ns: String::new(),
        checkpoint_id: checkpoint_id.into(),
        task_id: task.into(),
        run_id,
        path: format!("~__pregel_pull, {task}"),
        body: json(body),
    }
}

fn log(branch: i64, from: i64, items: &str, run_id: Option<Uuid>) -> LogRow {
    let items = json(items);
    let count = items.items().unwrap().len() as i64;
    LogRow { ns: String::new(), channel: "messages".into(), branch, start: from, count, run_id, items }
}

/// What a commit says about a question of the root graph.
fn interrupt(interrupt_id: &str, checkpoint_id: &str, change: InterruptChange) -> InterruptRow {
    InterruptRow {
        id: interrupt_id.into(),
        ns: String::new(),
        checkpoint_id: checkpoint_id.into(),
        root_checkpoint_id: checkpoint_id.into(),
        task_id: "task".into(),
        node: "approve".into(),
        question: json(r#"{"ok?":1}"#),
        response_schema: Some(json(r#"{"type":"boolean"}"#)),
        checked: true,
        change,
    }
}

/// A call that a task made and recorded.
fn effect(checkpoint_id: &str, task_id: &str, key: &str, result: &str) -> EffectRow {
    let (task_id, node) = (task_id.into(), "node".into());
    EffectRow {
        place: EffectPlace { ns: String::new(), checkpoint_id: checkpoint_id.into(), task_id, node },
        entry: EffectEntry {
            key: key.into(),
            state: EffectState::Recorded,
            attempt: 1,
            asked: 0,
            result: Some(json(result)),
            error: None,
        },
    }
}

fn event(event_id: i64, run_id: Uuid) -> StoredEvent {
    StoredEvent { id: EventId(event_id), run_id, name: "values".into(), data: json(&format!("[{event_id}]")) }
}

fn end(status: RunStatus, thread_status: ThreadStatus) -> Option<RunEnd> {
    Some(RunEnd { status, error: None, thread_status, view: None, webhook: None, announce: true })
}

fn step(lease: Lease, rows: StepRows, end: Option<RunEnd>) -> StepCommit {
    StepCommit { lease, rows, events: Vec::new(), input_applied: true, end }
}

/// A step that adds one root checkpoint and makes it the head.
fn head_step(lease: Lease, checkpoint_id: &str, end: Option<RunEnd>) -> StepCommit {
    let rows = StepRows {
        checkpoints: vec![checkpoint(checkpoint_id, Some(lease.run_id))],
        head: Some(checkpoint_id.into()),
        ..StepRows::default()
    };
    step(lease, rows, end)
}

async fn commit(storage: &SharedStorage, commit: StepCommit) -> CommitOutcome {
    storage.commit_steps(&TENANT, &[commit]).await.unwrap()[0]
}

async fn finish(storage: &SharedStorage, lease: Lease) {
    let ended = step(lease, StepRows::default(), end(RunStatus::Success, ThreadStatus::Idle));
    assert_eq!(commit(storage, ended).await, CommitOutcome::Committed);
}

async fn find_thread(storage: &SharedStorage, name: &str) -> Option<Thread> {
    storage.find_thread(&TENANT, &tid(name)).await.unwrap()
}

async fn find_run(storage: &SharedStorage, name: &str, n: u128) -> Option<Run> {
    storage.find_run(&TENANT, &tid(name), id(n)).await.unwrap()
}

async fn claim_all(storage: &SharedStorage, lease: Duration) -> Vec<ClaimedRun> {
    storage.claim_runs(&Scope::Server, &claim(lease), 3, 100).await.unwrap()
}

fn ids(claimed: &[ClaimedRun]) -> Vec<Uuid> {
    claimed.iter().map(|claimed| claimed.run.run_id).collect()
}

/// Looks until something is there. For what another connection or the clock brings; a deadline, not a pace.
async fn eventually<T, Fut: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> Fut) -> T {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "never happened: {what}");
        tokio::task::yield_now().await;
    }
}
