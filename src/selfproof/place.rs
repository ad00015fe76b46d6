//! Where the proof happens: a schema or a file of its own, never anything that is there already.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use reqwest::Url;

use super::proxy::Upstream;
use crate::storage::scratch::Schema;

/// A folder that goes with the value, unless it is kept.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    keep: bool,
}

impl Folder {
    pub(super) fn create(seed: u64) -> anyhow::Result<Folder> {
        let path = std::env::temp_dir().join(format!("session-store-proof-{}-{seed}", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Folder { path, keep: false })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves it for people to look at.
    pub(super) fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.keep && std::fs::remove_dir_all(&self.path).is_err() {
            eprintln!("selfproof: {} is left", self.path.display());
        }
    }
}

/// The database of the proof.
#[derive(Debug)]
pub(super) enum Place {
    Postgres {
        schema: Schema,
        /// With the schema.
        url: Url,
        /// `None`: it wants encryption, through which no proxy sees.
        upstream: Option<Upstream>,
    },
    Sqlite {
        url: String,
    },
}

impl Place {
    pub(super) async fn open(database_url: &str, folder: &Path, seed: u64) -> anyhow::Result<Place> {
        if !database_url.starts_with("postgres") {
            if database_url == "memory" {
                bail!(
                    "selfproof kills processes, and a database in memory dies with its own: give it a file or Postgres"
                );
            }
            return Ok(Place::Sqlite { url: format!("sqlite://{}", folder.join("proof.db").display()) });
        }
        let server = Url::parse(database_url).context("the database URL")?;
        let name = format!("session_store_proof_{}_{seed}", std::process::id());
        let schema = Schema::create(database_url, &name).await.context("making the scratch schema")?;
        let mut url = server.clone();
        let (key, value) = schema.parameter();
        url.query_pairs_mut().append_pair(key, value);
        let upstream = (!wants_encryption(&server)).then(|| upstream(&server));
        Ok(Place::Postgres { schema, url, upstream })
    }

    /// What a process that is under nobody's proxy connects to.
    pub(super) fn url(&self) -> String {
        match self {
            Place::Postgres { url, .. } => url.to_string(),
            Place::Sqlite { url } => url.clone(),
        }
    }

    /// The same through a proxy on this machine.
    pub(super) fn through(&self, port: u16) -> String {
        let Place::Postgres { url, .. } = self else { return self.url() };
        through(url, port)
    }

    pub(super) async fn close(self) -> anyhow::Result<()> {
        match self {
            Place::Postgres { schema, .. } => {
                let name = schema.name().to_owned();
                schema.drop().await.with_context(|| format!("dropping the schema {name}: it is left"))
            }
            Place::Sqlite { .. } => Ok(()),
        }
    }
}

fn wants_encryption(url: &Url) -> bool {
    let asked = url.query_pairs().find(|(name, _)| matches!(&**name, "sslmode" | "ssl-mode"));
    let asked = asked.map(|(_, value)| value.into_owned()).or_else(|| std::env::var("PGSSLMODE").ok());
    asked.is_some_and(|mode| mode.starts_with("require") || mode.starts_with("verify"))
}

/// Where the driver would connect to.
fn upstream(url: &Url) -> Upstream {
    let parameter =
        |wanted: &str| url.query_pairs().find(|(name, _)| name == wanted).map(|(_, value)| value.into_owned());
    let host = parameter("host").or_else(|| url.host_str().filter(|host| !host.is_empty()).map(str::to_owned));
    let host = host.or_else(|| std::env::var("PGHOST").ok()).unwrap_or_else(|| "localhost".to_owned());
    let port = parameter("port").and_then(|port| port.parse().ok()).or_else(|| url.port());
    let port = port.or_else(|| std::env::var("PGPORT").ok()?.parse().ok()).unwrap_or(5432);
    let host = host.replace("%2F", "/");
    if host.starts_with('/') {
        return Upstream::Unix(PathBuf::from(host).join(format!(".s.PGSQL.{port}")));
    }
    Upstream::Tcp(host.trim_matches(['[', ']']).to_owned(), port)
}

fn through(url: &Url, port: u16) -> String {
    let mut own = url.clone();
    let kept: Vec<(String, String)> = url
        .query_pairs()
        .filter(|(name, _)| !matches!(&**name, "host" | "hostaddr" | "port" | "sslmode" | "ssl-mode"))
        .map(|(name, value)| (name.into_owned(), value.into_owned()))
        .collect();
    // Neither fails for a URL with a host.
    let _is_set = own.set_host(Some("127.0.0.1")).is_ok() && own.set_port(Some(port)).is_ok();
    own.query_pairs_mut().clear().extend_pairs(kept).append_pair("sslmode", "disable");
    own.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).expect("a URL")
    }

    #[test]
    fn a_proxy_stands_where_the_database_stood() {
        let there = url("postgres://me:p%40ss@db.example:6000/app?sslmode=prefer&options[search_path]=x");
        assert_eq!(upstream(&there), Upstream::Tcp("db.example".to_owned(), 6000));
        assert!(!wants_encryption(&there) && wants_encryption(&url("postgres://db/app?sslmode=verify-full")));
        let own = url(&through(&there, 7000));
        assert_eq!((own.host_str(), own.port(), own.password()), (Some("127.0.0.1"), Some(7000), Some("p%40ss")));
        let pairs: Vec<(String, String)> = own.query_pairs().into_owned().collect();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(pairs, [pair("options[search_path]", "x"), pair("sslmode", "disable")]);
    }

    #[test]
    fn sockets_are_places_too() {
        let there = url("postgres://localhost/app?host=/run/postgresql&port=5433");
        assert_eq!(upstream(&there), Upstream::Unix(PathBuf::from("/run/postgresql/.s.PGSQL.5433")));
    }
}
