//! The layers, their order, and what is refused.

use std::collections::{BTreeSet, HashMap};

use super::*;

fn env(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn load(pairs: &[(&str, &str)], overrides: &Overrides) -> Result<Config, ConfigError> {
    Config::load(None, &env(pairs), overrides)
}

fn problem(pairs: &[(&str, &str)]) -> String {
    load(pairs, &Overrides::default()).expect_err("is refused").to_string()
}

#[test]
fn the_file_and_the_struct_agree_key_by_key() {
    let config = Config::defaults().expect("the defaults are readable");
    config.validate().expect("the defaults are valid");
    let serde_json::Value::Object(sections) = serde_json::to_value(&config).expect("serializes") else {
        panic!("not an object")
    };
    let mut fields = BTreeSet::new();
    for (section, keys) in &sections {
        fields.extend(keys.as_object().expect("a section").keys().map(|key| format!("{section}.{key}")));
    }
    assert_eq!(fields, known_keys().into_keys().collect());
    for line in DEFAULTS.split("\n\n").flat_map(str::lines).collect::<Vec<_>>().windows(2) {
        if line[1].contains(" = ") && !line[1].starts_with('#') {
            assert!(line[0].starts_with('#'), "no reason above: {}", line[1]);
        }
    }
}

#[test]
fn prices_of_models_are_read_from_files_and_checked() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("own.toml");
    let read = |text: &str| {
        std::fs::write(&path, text).expect("written");
        Config::load(Some(&path), &env(&[]), &Overrides::default())
    };
    let config = read("[models.\"GPT-4.1\"]\ninput_per_million = 2\noutput_per_million = 8.5\n").expect("valid");
    let prices = config.models["GPT-4.1"].prices().map(|cost| cost.to_string());
    assert_eq!(prices, ["2", "8.5", "2"], "cached tokens cost as much as others");
    let again = read(&config.render().expect("renders")).expect("reads what it prints");
    assert_eq!(again.models, config.models);
    for (text, reason) in [
        ("[models.m]\ninput_per_million = -1\noutput_per_million = 1\n", "models.\"m\".input_per_million = -1"),
        ("[models.m]\ninput_per_million = 1\n", "output_per_million"),
        ("[models.m]\ninput = 1\n", "cached_per_million"),
        ("[models]\nm = 1\n", "no such setting as models.m"),
    ] {
        let problem = read(text).expect_err(text).to_string();
        assert!(problem.contains(reason), "{text}: {problem}");
    }
}

#[test]
fn later_layers_win() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("own.toml");
    std::fs::write(
        &path,
        "[server]\nlisten = \"127.0.0.1:1\"\n[runtime]\nconcurrency = 2\n[database]\nurl = \"memory\"\n",
    )
    .expect("written");
    let file = Config::load(Some(&path), &env(&[]), &Overrides::default()).expect("valid");
    assert_eq!((file.server.listen.as_str(), file.runtime.concurrency), ("127.0.0.1:1", 2));
    assert_eq!(file.runtime.lease_secs, 4.0, "other keys keep their defaults");

    let variables = env(&[("SESSION_STORE__SERVER__LISTEN", "127.0.0.1:2"), ("DATABASE_URL", "sqlite:///b")]);
    let with_env = Config::load(Some(&path), &variables, &Overrides::default()).expect("valid");
    assert_eq!(with_env.server.listen, "127.0.0.1:2");
    assert_eq!(with_env.database.url.reveal(), "sqlite:///b");

    let overrides = Overrides {
        database_url: Some("sqlite:///c".into()),
        listen: Some("127.0.0.1:3".into()),
        insecure: true,
        role: Some(Role::Api),
    };
    let with_flags = Config::load(Some(&path), &variables, &overrides).expect("valid");
    assert_eq!(with_flags.server.listen, "127.0.0.1:3");
    assert_eq!(with_flags.database.url.reveal(), "sqlite:///c");
    assert!(with_flags.server.insecure);
    assert_eq!(with_flags.runtime.role, Role::Api);
}

#[test]
fn values_from_the_environment_are_taken_as_they_are() {
    let config = load(
        &[
            ("SESSION_STORE__AUTH__API_KEY", "0123"),
            ("SESSION_STORE__SERVER__INSECURE", "true"),
            ("SESSION_STORE__RUNTIME__LEASE_SECS", "2.5"),
            ("SESSION_STORE__RUNTIME__MAX_ATTEMPTS", "7"),
            ("SESSION_STORE__LOG__FILTER", ""),
        ],
        &Overrides::default(),
    )
    .expect("valid");
    assert_eq!(config.auth.api_key.reveal(), Some("0123"));
    assert!(config.server.insecure);
    assert_eq!(config.runtime.lease_secs, 2.5);
    assert_eq!(config.runtime.max_attempts, 7);
    assert_eq!(config.log.filter, "info,sqlx=warn", "an empty variable counts as not set");
}

#[test]
fn unknown_names_are_refused_where_they_stand() {
    let text = problem(&[("SESSION_STORE__SERVER__LISTN", "x"), ("SESSION_STORE__SERVR__LISTEN", "x")]);
    assert!(
        text.contains("SESSION_STORE__SERVER__LISTN: no such setting as server.listn; there are server."),
        "{text}"
    );
    assert!(text.contains("SESSION_STORE__SERVR__LISTEN: no such setting as servr.listen; the sections are"), "{text}");

    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("own.toml");
    std::fs::write(&path, "[runtime]\nleese_secs = 3\n").expect("written");
    let error = Config::load(Some(&path), &env(&[]), &Overrides::default()).expect_err("is refused").to_string();
    assert!(error.contains("own.toml: no such setting as runtime.leese_secs"), "{error}");
    let missing = Config::load(Some(&dir.path().join("none.toml")), &env(&[]), &Overrides::default());
    assert!(missing.expect_err("is refused").to_string().contains("none.toml"));
}

#[test]
fn every_problem_is_named_with_key_value_and_rule() {
    let text = problem(&[
        ("SESSION_STORE__SERVER__LISTEN", "here"),
        ("SESSION_STORE__RUNTIME__RENEW_SECS", "3"),
        ("SESSION_STORE__DATABASE__MAX_CONNECTIONS", "0"),
        ("SESSION_STORE__MCP__ALLOWED_ORIGINS", "*, https://a.example:1, https://b.example/path"),
        ("SESSION_STORE__HTTP__CONFIGURABLE_HEADERS", "x-user-*, !x-user-secret, x user"),
    ]);
    assert!(text.contains("server.listen = here: must be an IP address and a port"), "{text}");
    assert!(text.contains("runtime.renew_secs = 3: must be less than half"), "{text}");
    assert!(text.contains("database.max_connections = 0: must be between 2 and 10000"), "{text}");
    assert!(text.contains("mcp.allowed_origins = ") && text.contains("b.example/path: must be origins"), "{text}");
    assert!(text.contains("http.configurable_headers = ") && text.contains("must be names of headers"), "{text}");
    assert_eq!(text.lines().count(), 5, "{text}");

    let wrong_type = problem(&[("SESSION_STORE__RUNTIME__CONCURRENCY", "many")]);
    assert!(wrong_type.contains("many") && wrong_type.contains("runtime.concurrency"), "{wrong_type}");
    let wrong_word = problem(&[("SESSION_STORE__RUNTIME__ROLE", "boss")]);
    assert!(wrong_word.contains("boss") && wrong_word.contains("worker"), "{wrong_word}");
}

#[test]
fn an_open_address_needs_a_key_or_consent() {
    let open = ("SESSION_STORE__SERVER__LISTEN", "0.0.0.0:8123");
    let text = problem(&[open]);
    assert!(text.contains("auth.api_key") && text.contains("--insecure"), "{text}");
    assert!(load(&[open, ("SESSION_STORE__AUTH__API_KEY", "k")], &Overrides::default()).is_ok());
    assert!(load(&[open], &Overrides { insecure: true, ..Overrides::default() }).is_ok());
    for loopback in ["127.0.0.1:1", "127.1.2.3:1", "[::1]:1", "localhost:1"] {
        assert!(load(&[("SESSION_STORE__SERVER__LISTEN", loopback)], &Overrides::default()).is_ok(), "{loopback}");
    }
}

#[test]
fn secrets_are_not_printed() {
    let config = load(
        &[
            ("SESSION_STORE__AUTH__API_KEY", "hush-hush"),
            ("DATABASE_URL", "postgres://me:p/w@hush@db:5432/app?sslmode=require&sslpassword=hush"),
        ],
        &Overrides::default(),
    )
    .expect("valid");
    let printed = format!("{config:?}\n{}", config.render().expect("renders"));
    assert!(!printed.contains("hush") && !printed.contains("p/w"), "{printed}");
    assert!(
        printed.contains("postgres://me:[redacted]@db:5432/app?sslmode=require&sslpassword=[redacted]"),
        "{printed}"
    );
    assert_eq!(DatabaseUrl::new("sqlite:///a/b.db?mode=rwc").to_string(), "sqlite:///a/b.db?mode=rwc");
    assert_eq!(DatabaseUrl::new("memory").to_string(), "memory");
}

#[test]
fn what_is_printed_can_be_read_again() {
    let config = Config::defaults().expect("readable");
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("printed.toml");
    std::fs::write(&path, config.render().expect("renders")).expect("written");
    Config::load(Some(&path), &env(&[]), &Overrides::default()).expect("valid");
}

#[test]
fn a_collector_needs_a_build_that_exports_traces() {
    let name = "SESSION_STORE__TELEMETRY__OTLP_ENDPOINT";
    let told = load(&[(name, "http://127.0.0.1:4318")], &Overrides::default());
    if cfg!(feature = "otlp") {
        assert_eq!(told.expect("valid").telemetry.otlp_endpoint, "http://127.0.0.1:4318");
    } else {
        let told = told.expect_err("is refused").to_string();
        assert!(told.contains("telemetry.otlp_endpoint") && told.contains("--features otlp"), "{told}");
    }
    assert!(problem(&[(name, "127.0.0.1:4318")]).contains("must be an http or https URL"));
}
