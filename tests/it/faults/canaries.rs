//! Secrets that must not be seen: they are put wherever a server is given some, everything is made to fail, and then all
//! that it logs and says is searched for them.

use super::*;
use crate::support::process::{Database, binary};
use crate::support::proxy::Proxy;

const KEY: &str = "canary-api-key-0Kf3";
const WRONG: &str = "canary-wrong-key-7Qx1";
const PASSWORD: &str = "canary-password-9Lz4";
const HOOK: &str = "canary-hook-token-2Vb8";
const MODEL: &str = "canary-embedding-key-5Tn6";
/// `canary-webhook-secret-24bytes..` in base64.
const SIGNING: &str = "Y2FuYXJ5LXdlYmhvb2stc2VjcmV0LTI0Ynl0ZXMuLg==";

fn secrets() -> [&'static str; 6] {
    [KEY, WRONG, PASSWORD, HOOK, MODEL, SIGNING]
}

fn is_clean(what: &str, text: &str) {
    for secret in secrets() {
        assert!(!text.contains(secret), "{what} tells {secret}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_logged_or_told_whatever_goes_wrong() {
    let Some(database) = Database::create("canary").await else { return };
    let traces = tempfile::tempdir().expect("a directory");
    let proxy = Proxy::to(&database.url).await;
    // Trusted clients may send any password.
    let url = proxy.url(&database.url).replacen("postgres@", &format!("postgres:{PASSWORD}@"), 1);
    assert!(url.contains(PASSWORD), "the URL has a user");
    let signing = format!("whsec_{SIGNING}");
    let settings = [
        ("AUTH__API_KEY", KEY),
        ("WEBHOOKS__SECRET", signing.as_str()),
        ("WEBHOOKS__ALLOW_PRIVATE", "true"),
        ("WEBHOOKS__MAX_ATTEMPTS", "1"),
        ("EMBEDDING__PROVIDER", "openai"),
        ("EMBEDDING__URL", "http://127.0.0.1:1/v1"),
        ("EMBEDDING__API_KEY", MODEL),
        ("EMBEDDING__DIMS", "8"),
        ("LOG__FILTER", "debug"),
    ];
    let server = server(&url, traces.path(), &settings);
    let ask = async |method: reqwest::Method, path: &str, key: Option<&str>, body: Option<Value>| {
        let mut request = reqwest::Client::new().request(method, format!("{}{path}", server.url)).timeout(PATIENCE);
        if let Some(key) = key {
            request = request.header("x-api-key", key).header("authorization", format!("Bearer {key}"));
        }
        if let Some(body) = body {
            request = request.body(body.to_string());
        }
        let answer = request.send().await.expect("an answer");
        let (status, text) = (answer.status().as_u16(), answer.text().await.expect("a body"));
        (status, text)
    };
    let (get, post) = (reqwest::Method::GET, reqwest::Method::POST);
    // Refused.
    assert_eq!(ask(get.clone(), "/threads/t", Some(WRONG), None).await.0, 403);
    assert_eq!(ask(get.clone(), &format!("/threads/t?api_key={WRONG}"), None, None).await.0, 401);
    // A webhook that fails, an item that cannot be embedded, a node that fails, a body that is none.
    let hook = format!("http://127.0.0.1:1/hook?token={HOOK}");
    let run = json!({"assistant_id": "counter", "input": {"counter": "x"}, "webhook": hook});
    let mut told = vec![ask(post.clone(), "/threads/t/runs/wait", Some(KEY), Some(run)).await.1];
    let item = json!({"namespace": ["a"], "key": "k", "value": {"text": "hello"}});
    let (status, text) = ask(reqwest::Method::PUT, "/store/items", Some(KEY), Some(item)).await;
    assert_eq!(status, 503, "{text}");
    told.push(text);
    let dead = async || {
        let (_, text) = ask(get.clone(), "/webhooks?state=dead", Some(KEY), None).await;
        serde_json::from_str::<Value>(&text).ok().filter(|list| list[0].is_object())
    };
    let (dead, _) = eventually("the webhook is given up", PATIENCE, dead).await;
    is_clean("why it failed", &dead[0]["last_error"].to_string());
    for path in
        ["/ok?check_db=1", "/ready", "/info", "/metrics", "/openapi.json", "/nope", "/threads/t", "/threads/t/log"]
    {
        told.push(ask(get.clone(), path, Some(KEY), None).await.1);
    }
    // The database goes away.
    proxy.refuse();
    let (status, text) = ask(get.clone(), "/threads/t", Some(KEY), None).await;
    assert_eq!(status, 503, "{text}");
    told.push(text);
    told.push(ask(get.clone(), "/ready", Some(KEY), None).await.1);
    proxy.pass();
    for text in told {
        is_clean("an answer", &text);
    }
    // What the commands print.
    for command in ["check-config", "doctor"] {
        let mut said = binary();
        said.arg(command).env("DATABASE_URL", &url);
        said.envs(settings.iter().map(|(name, value)| (format!("SESSION_STORE__{name}"), *value)));
        let out = said.output().expect("it runs");
        is_clean(command, &String::from_utf8_lossy(&out.stdout));
        is_clean(command, &String::from_utf8_lossy(&out.stderr));
    }
    // There is something in the log to search.
    assert!(server.logged("DEBUG") && server.logged("storage is unavailable"));
    for secret in secrets() {
        assert!(!server.logged(secret), "the log tells {secret}");
    }
}
