//! The command line: what [`crate::main`] does with its arguments.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand};

use crate::app;
use crate::config::{Config, Overrides, Role};
use crate::graph::{BuildErrors, Graph, Registry};
use crate::selfproof;
use crate::telemetry;

/// A self-hosted session store and graph runtime for LangGraph-style agents.
#[derive(Debug, Parser)]
#[command(name = "session-store", version, about)]
pub(crate) struct Cli {
    /// A TOML file that overrides defaults; `config.toml` in the repository lists all settings.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// sqlite://FILE, postgres://user@host/db, or memory.
    #[arg(long, global = true, value_name = "URL")]
    database_url: Option<String>,
    #[command(flatten)]
    serve: ServeArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Default, Args)]
struct ServeArgs {
    /// The address to listen on, as in 127.0.0.1:8123.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Allow an address other machines can reach although no API key is set.
    #[arg(long)]
    insecure: bool,
    /// What this process does: the API, the execution of runs, or both.
    #[arg(long, value_enum)]
    role: Option<Role>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the API and execute runs (the default).
    Serve(ServeArgs),
    /// Create the schema of the database, or bring it up to date.
    Migrate,
    /// Print the settings in force, secrets redacted; exit with 1 and the reasons if they are bad.
    CheckConfig(ServeArgs),
    /// List the graphs of this build.
    Graphs {
        /// Draw one graph as a Mermaid flow chart instead.
        #[arg(long, value_name = "NAME", conflicts_with = "check")]
        mermaid: Option<String>,
        /// List the waiting threads of the database that this build could not resume; exit with 1 if there are any.
        #[arg(long)]
        check: bool,
        /// With --check: one JSON object per thread, a line each.
        #[arg(long, requires = "check")]
        json: bool,
        /// With --check: bring the schema of the database up to date first.
        #[arg(long, requires = "check")]
        migrate: bool,
    },
    /// Embed the items that the configured model has not embedded as they are: after it was changed or set.
    Reembed,
    /// Check a deployment: versions, clocks, migrations, settings, leases, stuck runs; exit with 1 if something failed.
    Doctor {
        /// One JSON object per finding, a line each.
        #[arg(long)]
        json: bool,
    },
    /// List the runs that were attempted too often without progress, or let some of them try again.
    Quarantine {
        /// Runs to release: they are pending again, and the next free worker takes them.
        #[arg(long, value_name = "RUN_ID", num_args = 1..)]
        release: Vec<uuid::Uuid>,
    },
    /// Ask the server at the configured address whether it is well; exit with 0 or 1.
    Healthcheck(ServeArgs),
    /// Show that nothing is lost, doubled or stuck: in a schema of its own that is dropped afterwards, with processes of
    /// its own that are killed. Exit with 0 only if that is so.
    Selfproof(ProofArgs),
    /// One process of a proof.
    #[command(name = selfproof::REPLICA, hide = true)]
    SelfproofReplica {
        #[arg(long, allow_hyphen_values = true, default_value_t = 0)]
        skew_secs: i64,
    },
}

#[derive(Debug, Args)]
struct ProofArgs {
    /// How long faults are made.
    #[arg(long, default_value_t = 60, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    seconds: u64,
    /// What all choices follow from; by chance if it is left out.
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Processes, on Postgres.
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u16).range(2..=64))]
    replicas: u16,
    /// Clients that ask all the time.
    #[arg(long, default_value_t = 12, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    clients: u16,
    /// Before the faults, how often to measure takeovers after a kill and after a stop, of ten runs each; not on SQLite. From
    /// --seconds 600 on they must be as quick as promised, and are measured 10 times if this is left out; otherwise not at all.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=100))]
    takeovers: Option<u8>,
    /// A Postgres of its own in this folder, made with the local binaries and crashed as well.
    #[arg(long, value_name = "DIR")]
    own_postgres: Option<PathBuf>,
    /// Damages the data before they are judged: the proof must fail.
    #[arg(long, value_enum, hide = true)]
    sabotage: Option<selfproof::Sabotage>,
}

impl Cli {
    /// Executes the command. `graphs` are the graphs of this program, or why some of them are unusable.
    pub(crate) fn run(self, graphs: impl IntoIterator<Item = Result<Graph, BuildErrors>>) -> anyhow::Result<()> {
        let Cli { config: file, database_url, serve: outer, command } = self;
        let command = command.unwrap_or_else(|| Command::Serve(ServeArgs::default()));
        let load = |args: ServeArgs| {
            let overrides = Overrides {
                database_url: database_url.clone(),
                listen: args.listen.or_else(|| outer.listen.clone()),
                insecure: args.insecure || outer.insecure,
                role: args.role.or(outer.role),
            };
            Config::read(file.as_deref(), &environment(), &overrides)
        };
        let valid = |args: ServeArgs| -> anyhow::Result<Config> {
            let config = load(args)?;
            config.validate()?;
            Ok(config)
        };
        match command {
            Command::Serve(args) => {
                let config = valid(args)?;
                let graphs = Registry::new(graphs)?;
                let traces = telemetry::start(&config)?;
                let served = block_on(app::serve(config, graphs.iter().cloned().collect()));
                traces.finish();
                served
            }
            Command::Migrate => {
                let config = valid(ServeArgs::default())?;
                telemetry::init(&config.log)?;
                block_on(app::migrate(&config))
            }
            Command::CheckConfig(args) => {
                let config = load(args)?;
                app::say(&config.render()?);
                config.validate()?;
                Ok(())
            }
            Command::Graphs { check: true, json, migrate, .. } => {
                let config = valid(ServeArgs::default())?;
                let graphs = Registry::new(graphs)?;
                telemetry::init(&config.log)?;
                block_on(app::check_graphs(&config, graphs.iter().cloned().collect(), json, migrate))
            }
            Command::Graphs { mermaid, .. } => {
                let graphs = Registry::new(graphs)?;
                match mermaid {
                    Some(name) => draw_one(&graphs, &name),
                    None => {
                        list(&graphs);
                        Ok(())
                    }
                }
            }
            Command::Reembed => {
                let config = valid(ServeArgs::default())?;
                telemetry::init(&config.log)?;
                block_on(app::reembed(&config))
            }
            Command::Doctor { json } => {
                let config = valid(ServeArgs::default())?;
                telemetry::init(&config.log)?;
                let addr = config.listen_addr().context("server.listen is no address")?;
                let server = ask(addr, "/ready", Duration::from_secs(15)).ok();
                block_on(app::doctor(&config, server.as_deref(), json))
            }
            Command::Quarantine { release } => {
                let config = valid(ServeArgs::default())?;
                telemetry::init(&config.log)?;
                block_on(app::quarantine(&config, &release))
            }
            Command::Healthcheck(args) => {
                let config = valid(args)?;
                let addr = config.listen_addr().context("server.listen is no address")?;
                health(addr, Duration::from_secs(3))?;
                app::say("ok");
                Ok(())
            }
            Command::Selfproof(args) => {
                let config = valid(ServeArgs::default())?;
                telemetry::init(&config.log)?;
                let options = selfproof::Options {
                    seconds: args.seconds,
                    seed: args.seed,
                    replicas: args.replicas.into(),
                    clients: args.clients.into(),
                    takeovers: args.takeovers.map(usize::from),
                    own_postgres: args.own_postgres,
                    sabotage: args.sabotage,
                };
                block_on(selfproof::run(config, options))
            }
            Command::SelfproofReplica { skew_secs } => {
                let config = valid(ServeArgs::default())?;
                telemetry::init(&config.log)?;
                block_on(selfproof::serve(config, skew_secs))
            }
        }
    }
}

/// The environment, leaving out what is not text: no setting of ours can be meant by it.
fn environment() -> HashMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

fn block_on(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting threads")?;
    let result = runtime.block_on(work);
    // A node that never yields must not keep the process from ending.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

fn list(graphs: &Registry) {
    let width = graphs.names().map(str::len).max().unwrap_or(0);
    for graph in graphs.iter() {
        let description = graph.description().unwrap_or_default();
        app::say(format!("{:width$}  {description}", graph.name()).trim_end());
    }
}

fn draw_one(graphs: &Registry, name: &str) -> anyhow::Result<()> {
    let Some(graph) = graphs.get(name) else {
        bail!("no graph is named {name}; there are {}", graphs.names().collect::<Vec<_>>().join(", "));
    };
    app::say(graph.drawing(0).mermaid().trim_end());
    Ok(())
}

/// `GET /ok`.
fn health(listen: SocketAddr, timeout: Duration) -> anyhow::Result<()> {
    let answer = ask(listen, "/ok", timeout)?;
    let status = answer.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        bail!("http://{listen}/ok answered {status:?}");
    }
    Ok(())
}

/// A GET by hand, since the image needs no HTTP client: the answer as it comes, head and body.
fn ask(listen: SocketAddr, path: &str, timeout: Duration) -> anyhow::Result<String> {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let addr = SocketAddr::new(ip, listen.port());
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&addr, timeout)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        // In one piece: a server may answer and close as soon as it has seen enough.
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n").as_bytes())?;
        let mut answer = Vec::new();
        stream.take(64 * 1024).read_to_end(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    ask().with_context(|| format!("no answer from http://{addr}{path}"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_of_serve_work_with_and_without_the_word() {
        let bare = Cli::try_parse_from(["session-store", "--listen", "127.0.0.1:1", "--role", "api"]).expect("parses");
        assert!(bare.command.is_none());
        assert_eq!((bare.serve.listen.as_deref(), bare.serve.role), (Some("127.0.0.1:1"), Some(Role::Api)));
        let words = ["session-store", "serve", "--insecure", "--database-url", "memory", "--config", "x.toml"];
        let serve = Cli::try_parse_from(words).expect("parses");
        assert_eq!(serve.database_url.as_deref(), Some("memory"));
        assert!(matches!(serve.command, Some(Command::Serve(args)) if args.insecure));
        assert!(Cli::try_parse_from(["session-store", "--database-url", "memory", "migrate"]).is_ok());
        assert!(Cli::try_parse_from(["session-store", "dance"]).is_err());
    }

    #[test]
    fn a_health_check_tells_answers_apart() {
        for (answer, well) in [("HTTP/1.1 200 OK\r\n\r\n{}", true), ("HTTP/1.1 503 Busy\r\n\r\n", false), ("", false)] {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
            let addr = listener.local_addr().expect("an address");
            let serving = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().expect("a client");
                let mut request = [0; 256];
                let read = stream.read(&mut request).expect("a request");
                assert!(request[..read].starts_with(b"GET /ok HTTP/1.1\r\n"));
                stream.write_all(answer.as_bytes()).expect("answered");
            });
            let asked = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), addr.port());
            assert_eq!(health(asked, Duration::from_secs(5)).is_ok(), well, "{answer}");
            serving.join().expect("served");
        }
    }
}
