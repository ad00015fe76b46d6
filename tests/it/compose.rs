//! `docker-compose.yml` and the `Dockerfile` are executed as far as that goes without a container engine: the exact
//! command, environment and health checks, on this machine's Postgres; only hosts and ports are substituted.

use std::fs;
use std::process::Command;

use serde_json::json;
use yaml_rust2::{Yaml, YamlLoader};

use crate::support::process::{PATIENCE, Server, binary, eventually, execute, number, post, provided, root};

fn compose() -> Yaml {
    let text = fs::read_to_string(root().join("docker-compose.yml")).expect("readable");
    YamlLoader::load_from_str(&text).expect("YAML").remove(0)
}

fn strings(list: &Yaml) -> Vec<String> {
    list.as_vec().expect("a list").iter().map(|item| item.as_str().expect("a string").to_owned()).collect()
}

/// `${NAME:-default}` without NAME in the environment: what the first `up` sees.
fn interpolate(value: &str) -> String {
    match value.strip_prefix("${").and_then(|rest| rest.strip_suffix('}')) {
        Some(variable) => variable.split_once(":-").expect("a default: nothing needs to be set").1.to_owned(),
        None => value.to_owned(),
    }
}

fn environment(service: &Yaml) -> Vec<(String, String)> {
    let pairs = service["environment"].as_hash().expect("a map");
    let text = |value: &Yaml| value.as_str().expect("a string").to_owned();
    pairs.iter().map(|(name, value)| (text(name), interpolate(&text(value)))).collect()
}

fn variable<'e>(environment: &'e [(String, String)], name: &str) -> &'e str {
    environment.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str()).expect("the variable is set")
}

/// The JSON list after an instruction of the Dockerfile.
fn instruction(name: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join("Dockerfile")).expect("readable");
    let line = text.lines().rev().find(|line| line.starts_with(&format!("{name} "))).expect("the instruction");
    serde_json::from_str(&line[line.find('[').expect("the exec form")..]).expect("a list of words")
}

#[test]
fn the_compose_file_is_safe_and_complete() {
    let compose = compose();
    let (postgres, server) = (&compose["services"]["postgres"], &compose["services"]["server"]);
    assert_eq!(strings(&server["ports"]), ["127.0.0.1:8123:8123"], "published on this machine only");
    assert!(postgres["ports"].is_badvalue(), "the database is not published");
    assert_eq!(server["depends_on"]["postgres"]["condition"].as_str(), Some("service_healthy"));
    for service in [postgres, server] {
        assert_eq!(service["restart"].as_str(), Some("unless-stopped"));
        assert!(!service["healthcheck"]["test"].is_badvalue());
    }
    let volume = strings(&postgres["volumes"]).remove(0);
    let (name, path) = volume.split_once(':').expect("name:path");
    assert_eq!(path, "/var/lib/postgresql/data");
    assert!(compose["volumes"].as_hash().expect("volumes").contains_key(&Yaml::String(name.to_owned())));
    assert_eq!(instruction("ENTRYPOINT"), ["session-store"]);
    assert_eq!(instruction("HEALTHCHECK")[1..], strings(&server["healthcheck"]["test"])[2..]);
}

#[tokio::test]
async fn the_compose_file_runs_as_it_is_written() {
    let Some(admin) = provided("SESSION_STORE_TEST_POSTGRES") else { return };
    let compose = compose();
    let (postgres, server) = (&compose["services"]["postgres"], &compose["services"]["server"]);

    // What the Postgres image does with its environment.
    let of_postgres = environment(postgres);
    let (user, password) = (variable(&of_postgres, "POSTGRES_USER"), variable(&of_postgres, "POSTGRES_PASSWORD"));
    let database = variable(&of_postgres, "POSTGRES_DB");
    execute(&admin, &format!("DROP DATABASE IF EXISTS {database} WITH (FORCE)")).await;
    if number(&admin, &format!("SELECT count(*) FROM pg_roles WHERE rolname = '{user}'")).await == 0 {
        execute(&admin, &format!("CREATE ROLE {user} LOGIN PASSWORD '{password}'")).await;
    }
    execute(&admin, &format!("CREATE DATABASE {database} OWNER {user}")).await;
    let (_, address) = admin.split_once('@').expect("user@host");
    let (address, _) = address.split_once('/').expect("host/database");
    let (host, port) = address.split_once(':').expect("host:port");

    let check = strings(&postgres["healthcheck"]["test"]);
    assert_eq!(check[0], "CMD-SHELL");
    let asked = check[1].replace("--host=127.0.0.1", &format!("--host={host}"));
    let healthy = Command::new("sh").args(["-c", &asked]).env("PGPORT", port).output();
    let healthy = healthy.expect("sh runs");
    assert!(healthy.status.success(), "{}: {healthy:?}", check[1]);

    // The server: entrypoint of the image, command and environment of the compose file.
    let mut command = binary();
    command.args(strings(&server["command"]));
    for (name, value) in environment(server) {
        let value = match name.as_str() {
            "DATABASE_URL" => {
                let substituted = value.replace("@postgres:5432/", &format!("@{address}/"));
                assert_ne!(substituted, value, "the URL leads to the service `postgres`");
                substituted
            }
            "SESSION_STORE__SERVER__LISTEN" => value.replace(":8123", ":0"),
            _ => value,
        };
        command.env(name, value);
    }
    let running = Server::spawn(command);

    let check = strings(&server["healthcheck"]["test"]);
    assert_eq!(check[..2], ["CMD", "session-store"]);
    let listen = variable(&environment(server), "SESSION_STORE__SERVER__LISTEN")
        .replace(":8123", &format!(":{}", running.port()));
    let healthcheck = async || {
        let asked = binary().args(&check[2..]).env("SESSION_STORE__SERVER__LISTEN", &listen).output();
        asked.expect("it runs").status.success().then_some(())
    };
    eventually("the health check of the compose file passes", PATIENCE, healthcheck).await;

    let url = format!("{}/threads/order-123/runs/wait", running.url);
    let values = post(&url, json!({"assistant_id": "counter", "input": {"counter": 0}})).await;
    assert_eq!(values, json!({"counter": 3}));

    let status = running.terminate();
    assert!(status.success(), "{status}");
    let refused = binary().args(&check[2..]).env("SESSION_STORE__SERVER__LISTEN", &listen).output().expect("it runs");
    assert_eq!(refused.status.code(), Some(1), "nobody answers any more");
    execute(&admin, &format!("DROP DATABASE {database} WITH (FORCE)")).await;
}
