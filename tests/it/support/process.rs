//! The real binary as a process, databases of its own for it, and a JSON client.

use std::fs::File;
use std::future::Future;
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

/// How long anything may take on a busy machine before a test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The root of the repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// True when a missing Postgres or Python is a failure instead of a reason to skip: in CI, or when somebody says so.
fn everything_is_wanted() -> bool {
    let set = |name: &str| std::env::var(name).is_ok_and(|value| !matches!(value.as_str(), "" | "0" | "false"));
    set("CI") || set("SESSION_STORE_TEST_ALL")
}

/// A setting of the test environment (README, "Tests"); without it the test is skipped, or fails when all are wanted.
pub(crate) fn provided(variable: &str) -> Option<String> {
    let value = std::env::var(variable).ok();
    if value.is_none() {
        assert!(!everything_is_wanted(), "{variable} is not set");
        eprintln!("skipped: {variable} is not set; .ci/test sets up everything");
    }
    value
}

/// Whether a program is installed; the test is skipped if not, or fails when all are wanted.
pub(crate) fn available(program: &str) -> bool {
    let mut command = Command::new(program);
    let found = command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    assert!(found || !everything_is_wanted(), "{program} is not installed");
    if !found {
        eprintln!("skipped: {program} is not installed");
    }
    found
}

/// A server process. Killed when dropped.
pub(crate) struct Server {
    child: Child,
    /// `http://127.0.0.1:PORT`, read from the start line.
    pub(crate) url: String,
    log: PathBuf,
    _dir: tempfile::TempDir,
}

impl Server {
    /// The built binary on a free port.
    pub(crate) fn start(database_url: &str) -> Server {
        let mut command = binary();
        command.args(["serve", "--listen", "127.0.0.1:0", "--database-url", database_url]);
        Server::spawn(command)
    }

    /// Any command that serves; returns once it has said where.
    pub(crate) fn spawn(command: Command) -> Server {
        Server::try_spawn(command).unwrap_or_else(|why| panic!("no start line: {why}"))
    }

    /// [`Server::spawn`] of one that may die before it has said anything.
    pub(crate) fn try_spawn(mut command: Command) -> Result<Server, String> {
        let stuck_after = "SESSION_STORE__RUNTIME__STUCK_AFTER_SECS";
        if command.get_envs().all(|(name, _)| name != stuck_after) {
            command.env(stuck_after, "10");
        }
        let dir = tempfile::tempdir().expect("a directory for the log");
        let log = dir.path().join("stderr.log");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(&log).expect("a log file"));
        let mut child = command.spawn().expect("the server binary starts");
        let stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let (lines, received) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                // The receiver is gone once the start line was seen; reading on keeps the pipe open.
                let _ = lines.send(line);
            }
        });
        let mut server = Server { child, url: String::new(), log, _dir: dir };
        let deadline = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = received.recv_timeout(left) else {
                // Reaped, and its port is unknown: there is nothing to ask it at the end.
                let why = format!("stdout: {seen:?}, {:?}", server.child.try_wait());
                return Err(why);
            };
            if let Some((_, url)) = line.split_once("listening on ") {
                server.url = url.trim().replace("0.0.0.0", "127.0.0.1");
                return Ok(server);
            }
            seen.push(line);
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn port(&self) -> u16 {
        self.url.rsplit(':').next().and_then(|port| port.parse().ok()).expect("the start line ends with the port")
    }

    /// Fails if the server, as long as it answers, knows of a run that nothing moves. At the end of every test.
    fn has_nothing_stuck(&self) {
        let Ok(mut stream) = std::net::TcpStream::connect(("127.0.0.1", self.port())) else { return };
        let mut answer = String::new();
        let asked = stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .and_then(|()| stream.write_all(b"GET /ready HTTP/1.1\r\nhost: it\r\nconnection: close\r\n\r\n"))
            .and_then(|()| stream.read_to_string(&mut answer));
        let Some((_, rest)) = answer.split_once("\"stuck_runs\":").filter(|_| asked.is_ok()) else { return };
        assert!(rest.starts_with('0'), "runs that nothing moves: {answer}");
    }

    /// Whether its log has a line with this text so far.
    pub(crate) fn logged(&self, text: &str) -> bool {
        std::fs::read_to_string(&self.log).unwrap_or_default().lines().any(|line| line.contains(text))
    }

    /// Sends a signal by name, such as STOP.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(sent.expect("kill runs").success(), "SIG{name} was sent");
    }

    /// How it ended, once it has by itself.
    pub(crate) fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a status")
    }

    /// `kill -9`, and wait until it is gone.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("kill -9");
        self.child.wait().expect("reaped");
    }

    /// SIGTERM, and wait for the process to end by itself.
    pub(crate) fn terminate(self) -> ExitStatus {
        self.has_nothing_stuck();
        self.signal("TERM");
        self.ends()
    }

    /// Waits for the process to end by itself, as after SIGTERM.
    pub(crate) fn ends(mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().expect("a status") {
                return status;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("still running {PATIENCE:?} after SIGTERM");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Asked before it is killed; a failure is told after.
        let stuck = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            if !self.url.is_empty() && !std::thread::panicking() && matches!(self.child.try_wait(), Ok(None)) {
                self.has_nothing_stuck();
            }
        }));
        // Both fail when the process is gone already: nothing is left to do then.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(60).collect();
            eprintln!("--- stderr of {} ---", self.url);
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
        if let Err(panic) = stuck
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

/// The built binary, without settings of the caller's environment.
pub(crate) fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_session-store"));
    command.env_remove("DATABASE_URL");
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("SESSION_STORE__") {
            command.env_remove(name);
        }
    }
    command
}

/// A SQLite file of its own.
pub(crate) fn sqlite_url(dir: &tempfile::TempDir) -> String {
    format!("sqlite://{}", dir.path().join("session-store.db").display())
}

/// A Postgres database of its own; dropped with the value.
pub(crate) struct Database {
    admin: String,
    name: String,
    pub(crate) url: String,
}

impl Database {
    /// Creates it; `None` when this machine has no Postgres for tests.
    pub(crate) async fn create(purpose: &str) -> Option<Database> {
        let admin = provided("SESSION_STORE_TEST_POSTGRES")?;
        let name = format!("{purpose}_{}", uuid::Uuid::new_v4().simple());
        execute(&admin, &format!("CREATE DATABASE {name}")).await;
        let (server, _) = admin.rsplit_once('/').expect("the URL names a database");
        let url = format!("{server}/{name}");
        Some(Database { admin, name, url })
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let (admin, sql) = (self.admin.clone(), format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name));
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(execute(&admin, &sql));
        });
        if dropping.join().is_err() {
            eprintln!("the database {} was not dropped", self.name);
        }
    }
}

/// Runs a test on SQLite and, where there is one, on Postgres: on both at once.
pub(crate) async fn on_each_database<F: AsyncFn(String)>(purpose: &str, test: F) {
    let on_sqlite = async {
        let dir = tempfile::tempdir().expect("a directory");
        test(sqlite_url(&dir)).await;
    };
    let on_postgres = async {
        if let Some(database) = Database::create(purpose).await {
            test(database.url.clone()).await;
        }
    };
    tokio::join!(on_sqlite, on_postgres);
}

/// Executes one statement on a connection of its own.
pub(crate) async fn execute(url: &str, sql: &str) {
    let mut connection = PgConnection::connect(url).await.expect("Postgres answers");
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.expect("executed");
    connection.close().await.expect("closed");
}

/// Reads one number on a connection of its own.
pub(crate) async fn number(url: &str, sql: &str) -> i64 {
    let mut connection = PgConnection::connect(url).await.expect("Postgres answers");
    let value = sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(&mut connection).await.expect("a number");
    connection.close().await.expect("closed");
    value
}

/// Sends JSON and returns status and body.
pub(crate) async fn send(method: reqwest::Method, url: &str, body: Option<Value>) -> reqwest::Result<(u16, Value)> {
    let mut request = reqwest::Client::new().request(method, url).timeout(PATIENCE);
    if let Some(body) = body {
        request = request.json(&body);
    }
    let response = request.send().await?;
    let status = response.status().as_u16();
    let text = response.text().await?;
    Ok((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
}

/// POST that must succeed.
pub(crate) async fn post(url: &str, body: Value) -> Value {
    let (status, answer) = send(reqwest::Method::POST, url, Some(body)).await.expect("the server answers");
    assert!(status < 300, "POST {url}: {status} {answer}");
    answer
}

/// GET that must succeed.
pub(crate) async fn get(url: &str) -> Value {
    let (status, answer) = send(reqwest::Method::GET, url, None).await.expect("the server answers");
    assert!(status < 300, "GET {url}: {status} {answer}");
    answer
}

/// Asks until there is an answer, for at most `limit`; returns it and how long it took.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    limit: Duration,
    mut ask: impl FnMut() -> F,
) -> (T, Duration) {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return (answer, start.elapsed());
        }
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
