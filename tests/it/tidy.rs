//! The repository checks itself: which layer may import which, which file may name which crate, twins, and the facts
//! that are written down in more than one place.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::process::root;

/// Layers and what each may name with `crate::`, besides itself. DESIGN section 3, with two departures: `runtime` may
/// name `graph`, because a run executes node bodies, and those live there; `graphs` may name `model`, as other people's
/// graphs do.
const LAYERS: [(&str, &[&str]); 15] = [
    ("model", &[]),
    ("clock", &["model"]),
    ("spans", &[]),
    ("memory", &[]),
    ("engine", &["model"]),
    ("graph", &["engine", "model"]),
    ("graphs", &["graph", "model"]),
    ("storage", &["model"]),
    ("runtime", &["storage", "engine", "graph", "model", "clock", "memory", "spans"]),
    ("http", &["runtime", "storage", "model", "clock", "spans"]),
    ("config", &["model"]),
    ("telemetry", &["config"]),
    ("app", &["config", "storage", "runtime", "http", "graph", "memory", "model", "clock"]),
    ("selfproof", &["app", "config", "storage", "graph", "model", "clock"]),
    ("cli", &["app", "config", "telemetry", "graph", "selfproof"]),
];

/// Words and the places (prefixes of paths in `src`) that may use them. Tests inside `src` are free.
const RESERVED: [(&str, &[&str]); 14] = [
    (
        "sqlx",
        &["storage/postgres/", "storage/sqlite/", "storage/connect.rs", "storage/migrations.rs", "storage/rows.rs"],
    ),
    ("axum", &["http/", "app.rs"]),
    ("tower_http", &["http/", "app.rs"]),
    (
        "tokio",
        &[
            "app.rs",
            "cli.rs",
            "clock.rs",
            "graph/",
            "graphs/",
            "http/",
            "runtime/",
            "selfproof/",
            "storage/",
            "telemetry/otlp.rs",
        ],
    ),
    ("opentelemetry", &["spans.rs", "telemetry/otlp.rs"]),
    // What the runtime spawns belongs to a process that simulations can kill.
    (
        "tokio::spawn",
        &["app.rs", "graph/", "http/", "runtime/simulation/", "runtime/tasks.rs", "selfproof/", "storage/"],
    ),
    ("clap", &["cli.rs", "config/", "lib.rs", "selfproof/"]),
    ("anyhow", &["app.rs", "cli.rs", "lib.rs", "selfproof/", "telemetry/"]),
    // SQLite has no clock but the machine's: there it is the database's.
    ("SystemTime::now", &["clock.rs", "storage/sqlite/"]),
    ("Utc::now", &["clock.rs"]),
    ("Uuid::new_v4", &["clock.rs"]),
    ("Uuid::now_v7", &["clock.rs"]),
    ("crate::storage::postgres", &["storage/connect.rs", "storage/postgres/"]),
    ("crate::storage::sqlite", &["storage/connect.rs", "storage/sqlite/"]),
];

/// All Rust files below `folder`, as (path relative to `folder`, text).
fn sources(folder: &str) -> Vec<(String, String)> {
    let mut files = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root().join(folder)).expect("below the folder").display().to_string();
                files.push((name, fs::read_to_string(&path).expect("readable")));
            }
        }
    }
    files.sort();
    files
}

/// What the product is made of: without comments and without what only tests compile.
fn product_code() -> Vec<(String, String)> {
    let is_test = |name: &str| name.ends_with("tests.rs") || name.contains("tests/");
    sources("src")
        .into_iter()
        .filter(|(name, _)| !is_test(name))
        .map(|(name, text)| {
            // Inline test modules stand at the end of a file; `mod tests;` may stand anywhere.
            let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
            let code = |line: &&str| !line.trim_start().starts_with("//");
            (name, text.lines().filter(code).collect::<Vec<_>>().join("\n"))
        })
        .collect()
}

/// The words that follow `prefix` in `text`.
fn words_after<'t>(text: &'t str, prefix: &str) -> BTreeSet<&'t str> {
    let name = |rest: &'t str| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
    text.match_indices(prefix).map(|(at, _)| name(&text[at + prefix.len()..])).collect()
}

/// `word` as a path of its own: not the end of a longer name.
fn names(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        let joined = |c: char| c.is_alphanumeric() || c == '_';
        let is_path = word.contains("::") || matches!(after, Some(':' | ';' | ' '));
        !before.is_some_and(|c| joined(c) || c == '.') && !after.is_some_and(joined) && is_path
    })
}

fn layer_of(file: &str) -> &str {
    file.split(['/', '.']).next().unwrap_or_default()
}

#[test]
fn imports_point_down() {
    let mut wrong = Vec::new();
    for (file, text) in product_code() {
        let layer = layer_of(&file);
        if matches!(layer, "lib" | "main") {
            continue;
        }
        let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == layer) else {
            wrong.push(format!("src/{file}: {layer} is in no layer"));
            continue;
        };
        for word in words_after(&text, "crate::") {
            if word.is_empty() {
                wrong.push(format!("src/{file}: `crate::{{..}}` hides what is imported: one `use` per module"));
            }
            let is_layer = LAYERS.iter().any(|(name, _)| *name == word);
            if is_layer && word != layer && !allowed.contains(&word) {
                wrong.push(format!("src/{file}: {layer} must not name {word}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn crates_and_clocks_are_named_where_they_belong() {
    let mut wrong = Vec::new();
    for (file, text) in product_code() {
        for (word, places) in RESERVED {
            if names(&text, word) && !places.iter().any(|place| file.starts_with(place)) {
                wrong.push(format!("src/{file} names {word}; only {} may", places.join(", ")));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn routes_are_mounted_with_their_descriptions() {
    for (file, text) in product_code() {
        let mounts = [".route(", ".route_service(", ".nest("].iter().any(|call| text.contains(call));
        assert!(!mounts || file == "http/openapi/mod.rs", "src/{file} mounts a route that /openapi.json does not know");
    }
}

#[test]
fn nothing_unwraps() {
    for (file, text) in product_code() {
        for (index, line) in text.lines().enumerate() {
            assert!(!line.contains(".unwrap()"), "src/{file}, code line {}: {line}", index + 1);
        }
    }
}

#[test]
fn every_file_says_what_it_is() {
    for folder in ["src", "tests", "examples", "benches"] {
        for (file, text) in sources(folder) {
            assert!(text.starts_with("//!"), "{folder}/{file} does not start with `//!`");
        }
    }
    for script in [".ci/test", ".ci/run"] {
        assert!(read(script).lines().nth(1).is_some_and(|line| line.starts_with("# ")), "{script} says nothing");
    }
}

/// What shows how the library is used names what its users shall: graphs, and what serves them.
#[test]
fn examples_need_nothing_but_the_public_composition() {
    const PUBLIC: [&str; 5] = ["app", "config", "graph", "main", "update"];
    for (file, text) in sources("examples") {
        for word in words_after(&text, "session_store::") {
            assert!(PUBLIC.contains(&word), "examples/{file} names session_store::{word}");
        }
        let braces = text.contains("session_store::{");
        assert!(!braces, "examples/{file}: `session_store::{{..}}` hides what is named: one `use` per module");
    }
}

#[test]
fn migrations_are_twins() {
    let files = |backend: &str| -> BTreeSet<String> {
        let folder = root().join("migrations").join(backend);
        let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        entries.map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned()).collect()
    };
    let (postgres, sqlite) = (files("postgres"), files("sqlite"));
    assert_eq!(postgres, sqlite);
    assert!(!postgres.is_empty());
}

fn read(path: &str) -> String {
    let path: PathBuf = root().join(Path::new(path));
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn the_readme_lists_every_setting_with_its_default() {
    let settings: toml::Table = session_store::config::DEFAULTS.parse().expect("config.toml is TOML");
    let readme = read("README.md");
    let mut listed = 0;
    for (section, keys) in &settings {
        for (key, value) in keys.as_table().expect("a section") {
            let row = format!("| `{section}.{key}` | `{value}` |");
            assert!(readme.contains(&row), "the README has no row {row}");
            listed += 1;
        }
    }
    let rows = readme.lines().filter(|line| settings.keys().any(|section| line.starts_with(&format!("| `{section}."))));
    assert_eq!(rows.count(), listed, "the README has rows for settings that do not exist");
}

#[test]
fn the_readme_names_tests_that_exist() {
    let readme = read("README.md");
    let section = |title: &str| {
        let (_, rest) = readme.split_once(&format!("\n## {title}\n")).unwrap_or_else(|| panic!("no section {title}"));
        rest.split("\n## ").next().unwrap_or_default()
    };
    let (faults, section) = (section("Faults and what happens"), section("Invariants"));
    let code: Vec<(String, String)> = sources("src").into_iter().chain(sources("tests/it")).collect();
    let mut named = 0;
    for test in section.split('`').chain(faults.split('`')).filter(|word| word.contains("::")) {
        let (path, name) = test.rsplit_once("::").expect("module::test");
        let module = path.trim_end_matches("::tests").rsplit("::").next().unwrap_or_default();
        let is_there = code.iter().any(|(file, text)| {
            let file = file.trim_end_matches(".rs").trim_end_matches("/mod");
            file.rsplit('/').next() == Some(module) && text.contains(&format!("fn {name}("))
        });
        assert!(is_there, "the README names {test}, which does not exist");
        named += usize::from(section.contains(test));
    }
    let invariants = section.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_digit())).count();
    assert!(invariants >= 12 && named >= invariants, "{invariants} invariants, {named} tests");
}

#[test]
fn port_paths_and_commands_are_the_same_everywhere() {
    let settings: toml::Table = session_store::config::DEFAULTS.parse().expect("config.toml is TOML");
    let listen = settings["server"]["listen"].as_str().expect("an address");
    let (_, port) = listen.rsplit_once(':').expect("a port");
    let url = settings["database"]["url"].as_str().expect("a URL");
    let (readme, compose, image) = (read("README.md"), read("docker-compose.yml"), read("Dockerfile"));
    assert!(readme.contains(&format!("http://{listen}")), "README: the default address");
    assert!(readme.contains(url.trim_start_matches("sqlite://")), "README: the default database");
    assert!(compose.contains(&format!("\"{listen}:{port}\"")), "compose: published on {listen}");
    assert!(compose.contains(&format!("0.0.0.0:{port}")), "compose: the server's own port");
    assert!(image.contains(&format!("EXPOSE {port}")), "Dockerfile: EXPOSE");
    assert!(image.contains(&format!("SERVER__LISTEN=0.0.0.0:{port}")), "Dockerfile: the server's own port");

    let help = crate::support::process::binary().arg("--help").output().expect("it runs");
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    for command in ["serve", "migrate", "check-config", "graphs", "healthcheck"] {
        assert!(help.contains(command), "--help: {command}\n{help}");
        assert!(readme.contains(&format!("`{command}`")), "README: {command}");
    }
    assert!(readme.contains(".ci/test"), "README: the one test command");
    assert!(read(".ci/run").contains("/test"), ".ci/run calls the one test command");

    let manifest: toml::Table = read("Cargo.toml").parse().expect("TOML");
    let rust = manifest["package"]["rust-version"].as_str().expect("a version");
    assert!(image.contains(&format!("FROM rust:{rust}-")), "Dockerfile: Rust {rust}");
}

#[test]
fn the_image_is_built_from_all_it_needs() {
    const NEEDED: [&str; 9] = [
        "Cargo.toml",
        "Cargo.lock",
        "README.md",
        "build.rs",
        "config.toml",
        "benches",
        "examples",
        "migrations",
        "src",
    ];
    let ignore = read(".dockerignore");
    assert!(ignore.lines().any(|line| line == "*"), "the list names what is let through");
    // Targets that the manifest names must be there even when they are not built.
    for path in NEEDED.into_iter().chain(["tests"]).filter(|path| root().join(path).exists()) {
        assert!(ignore.lines().any(|line| line == format!("!{path}")), ".dockerignore: {path} is left out");
    }
    for secret in [".env", "data", "target"] {
        assert!(!ignore.lines().any(|line| line == format!("!{secret}")), ".dockerignore: {secret} is let through");
    }
}
