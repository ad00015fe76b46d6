//! Too little memory: large requests are turned away and runs wait, before the kernel ends the process and all that is in it.

use std::fs;
use std::path::PathBuf;

use super::*;
use crate::support::process::sqlite_url;

/// What the server of the first test may occupy.
const LIMIT: u64 = 384 << 20;
/// Bodies of 12 MiB: one fits, all of them at once are more than there is even without copies.
const BODIES: usize = 40;
const BODY: usize = 12 << 20;

/// A control group that holds its processes to [`LIMIT`]. Removed when dropped, after its processes have ended.
struct Group(PathBuf);

impl Group {
    /// None where control groups of version 1 cannot be made: that takes root and a kernel with them.
    fn make() -> Option<Group> {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        let own = groups.lines().find_map(|line| line.split_once(":memory:").map(|(_, group)| group))?;
        let group = PathBuf::from(format!("/sys/fs/cgroup/memory{own}/it-{}", uuid::Uuid::new_v4().simple()));
        fs::create_dir(&group).ok()?;
        let group = Group(group);
        fs::write(group.0.join("memory.limit_in_bytes"), LIMIT.to_string()).ok()?;
        // Swapping would only hide it; not every kernel counts swap.
        let _ = fs::write(group.0.join("memory.memsw.limit_in_bytes"), LIMIT.to_string());
        Some(group)
    }

    /// The same command, as a process of this group from its first instruction on.
    fn inside(&self, command: &Command) -> Command {
        let mut inside = Command::new("sh");
        inside.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(self.0.join("cgroup.procs"));
        inside.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(name, value),
                None => inside.env_remove(name),
            };
        }
        inside
    }

    /// How often its processes wanted more than there is.
    fn failures(&self) -> String {
        fs::read_to_string(self.0.join("memory.failcnt")).unwrap_or_default()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for _ in 0..500 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            // The kernel takes a moment to let go of what has ended.
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

async fn metric(server: &Server, name: &str) -> u64 {
    let text = reqwest::get(format!("{}/metrics", server.url)).await.expect("an answer").text().await.expect("a text");
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {text}"));
    line.rsplit(' ').next().and_then(|number| number.parse().ok()).expect("a number")
}

/// Adds a message of so many bytes to a thread: status, whether the answer says when to come back, and its text.
async fn say(server: &Server, thread: String, bytes: usize) -> (u16, bool, String) {
    // Written by hand: what it takes to make them should not be in the way.
    let text = "x".repeat(bytes);
    let body =
        format!(r#"{{"as_node":"__start__","values":{{"messages":[{{"role":"user","id":"m","content":"{text}"}}]}}}}"#);
    let url = format!("{}/threads/{thread}/state", server.url);
    let answer = reqwest::Client::new().post(url).body(body).send().await.expect("an answer, whatever it is");
    let retry = answer.headers().contains_key("retry-after");
    (answer.status().as_u16(), retry, answer.text().await.expect("a text"))
}

/// Where control groups can be made, the kernel would end the process; elsewhere the setting says what may be occupied, and
/// nobody enforces it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_requests_are_turned_away_before_the_kernel_ends_the_process() {
    let dir = tempfile::tempdir().expect("a directory");
    let traces = tempfile::tempdir().expect("a directory");
    let group = Group::make();
    let limit = LIMIT.to_string();
    let (server, by) = match &group {
        Some(group) => {
            (Server::spawn(group.inside(&command(&sqlite_url(&dir), traces.path(), &[]))), "its control group")
        }
        None => (server(&sqlite_url(&dir), traces.path(), &[("SERVER__MAX_MEMORY_BYTES", &limit)]), "a setting"),
    };
    assert_eq!(metric(&server, "session_store_memory_limit_bytes").await, LIMIT, "by {by}");
    for n in 0..BODIES {
        for size in ["large", "small"] {
            let new = json!({"thread_id": format!("{size}-{n}"), "metadata": {"graph_id": "chat"}});
            post(&format!("{}/threads", server.url), new).await;
        }
    }
    let large = (0..BODIES).map(|n| say(&server, format!("large-{n}"), BODY));
    let small = (0..BODIES).map(|n| say(&server, format!("small-{n}"), 100));
    let (large, small) = tokio::join!(futures_util::future::join_all(large), futures_util::future::join_all(small));
    assert!(small.iter().all(|(status, ..)| *status == 200), "small requests are served meanwhile: {small:?}");
    let stored = large.iter().filter(|(status, ..)| *status == 200).count();
    let away: Vec<_> = large.iter().filter(|(status, ..)| *status == 503).collect();
    assert_eq!(stored + away.len(), BODIES, "stored or turned away: {large:?}");
    assert!(stored > 0 && !away.is_empty(), "{stored} stored, {} turned away", away.len());
    assert!(away.iter().all(|(_, retry, text)| *retry && text.contains(&limit)), "{:?}", away[0]);
    assert_eq!(metric(&server, "session_store_requests_turned_away_total").await, away.len() as u64);
    // One by one there is room, sooner or later.
    for n in 0..3 {
        let again = async || Some(say(&server, format!("small-{n}"), BODY).await).filter(|(status, ..)| *status == 200);
        eventually("a large message is stored", PATIENCE, again).await;
    }
    let state = get(&format!("{}/threads/small-2/state", server.url)).await;
    assert_eq!(state["values"]["messages"][0]["content"].as_str().map(str::len), Some(BODY));
    eprintln!(
        "{stored} stored, {} turned away; {} bytes are occupied; limited by {by} {}",
        away.len(),
        metric(&server, "process_resident_memory_bytes").await,
        group.as_ref().map(Group::failures).unwrap_or_default()
    );
    drop(server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_short_of_memory_takes_one_run_after_the_other() {
    let dir = tempfile::tempdir().expect("a directory");
    let traces = tempfile::tempdir().expect("a directory");
    let gate = Gate(traces.path());
    // Less than any process occupies.
    let server = server(&sqlite_url(&dir), traces.path(), &[("SERVER__MAX_MEMORY_BYTES", "1048576")]);
    let ready = get(&format!("{}/ready", server.url)).await;
    assert!(ready["sick"][0].as_str().is_some_and(|why| why.starts_with("memory:")), "{ready}");
    let first = start_walk(&server, "first", 3).await;
    let begun = async || Some(()).filter(|()| started(traces.path(), "first-0") > 0);
    eventually("the first run has begun", PATIENCE, begun).await;
    let second = start_walk(&server, "second", 3).await;
    assert_eq!(get(&second).await["status"], "pending", "there is no room beside the first");
    gate.opens_until(3);
    assert_eq!(ended(&server, &first).await, "success");
    assert_eq!(ended(&server, &second).await, "success", "with room it goes on");
    has_each_step_once(&server, "first", 3).await;
    has_each_step_once(&server, "second", 3).await;
}
