//! The body of everything that starts a run (contract section 3.4), read into a [`RunRequest`].

use std::time::Duration;

use super::auth::Caller;
use super::cursor;
use super::error::{ApiError, ApiResult};
use super::object::{Object, parse_uuid};
use super::reserved::{strip_configurable, strip_metadata};
use super::sse::check_mode;
use crate::model::{Breakpoints, Durability, Fields, Json, MultitaskStrategy, OnCompletion, RunKwargs, ThreadId};
use crate::runtime::{AssistantName, EXPLAIN_STRICT_RESUME, RunRequest};

/// The largest metadata of a run or thread.
pub(crate) const MAX_METADATA_BYTES: usize = 256 * 1024;
pub(crate) const MAX_AFTER_SECONDS: f64 = 366.0 * 86_400.0;
pub(crate) const MAX_NODES: usize = 1000;
pub(crate) const MAX_TAGS: usize = 1000;
pub(crate) const MAX_RECURSION: i64 = i32::MAX as i64;

/// Reads a run for a thread, or (`None`) a stateless one.
pub(crate) fn read(
    caller: &Caller,
    thread: Option<ThreadId>,
    mut body: Object,
    start_here: bool,
) -> ApiResult<RunRequest> {
    let on_completion = body.choice("on_completion", &["delete", "keep"], OnCompletion::parse)?.unwrap_or_default();
    let command = command(&mut body, thread.is_some())?;
    let (mut config, context) = config_and_context(&mut body)?;
    if let Some(strict) = body.bool("strict_resume")? {
        config = with_strict_resume(&config, strict);
    }
    if !caller.carried.is_empty() {
        config = with_configurable(&config, Fields::clone(&caller.carried));
    }
    let (during, durability) = durability(&mut body)?;
    let kwargs = RunKwargs {
        input: body.json("input"),
        command,
        config,
        context,
        stream_mode: stream_modes(&mut body)?,
        interrupt_before: breakpoints(&mut body, "interrupt_before")?,
        interrupt_after: breakpoints(&mut body, "interrupt_after")?,
        webhook: webhook(&mut body)?,
        feedback_keys: body.strings("feedback_keys", 100)?,
        temporary: thread.is_none() && on_completion == OnCompletion::Delete,
        subgraphs: body.bool("stream_subgraphs")?.unwrap_or(false),
        resumable: body.bool("stream_resumable")?.unwrap_or(false),
        checkpoint_during: during,
        durability: Durability::default(),
        protocol: false,
        heard_by: None,
    };
    let after = body.number("after_seconds", 0.0..=MAX_AFTER_SECONDS)?.unwrap_or(0.0);
    let strategies = ["enqueue", "reject", "interrupt", "rollback"];
    Ok(RunRequest {
        durability,
        assistant: body.string("assistant_id")?.filter(|name| !name.is_empty()).map(|name| AssistantName::parse(&name)),
        metadata: metadata(&mut body, "metadata")?.unwrap_or_else(Json::object),
        multitask_strategy: body
            .choice("multitask_strategy", &strategies, MultitaskStrategy::parse)?
            .unwrap_or_default(),
        create_thread: body.choice("if_not_exists", &["reject", "create"], |word| two(word, "create", "reject"))?,
        after: Duration::from_secs_f64(after),
        cancel_on_disconnect: body
            .choice("on_disconnect", &["continue", "cancel"], |word| two(word, "cancel", "continue"))?
            .unwrap_or(false),
        thread,
        kwargs,
        on_completion,
        start_here,
        actor: caller.actor.clone(),
    })
}

/// Metadata to be written: bounded, without the keys that only the server sets.
pub(crate) fn metadata(body: &mut Object, key: &str) -> ApiResult<Option<Json>> {
    Ok(body.small_object(key, MAX_METADATA_BYTES)?.map(strip_metadata))
}

/// Which of two words it is.
fn two(word: &str, yes: &str, no: &str) -> Option<bool> {
    (word == yes).then_some(true).or_else(|| (word == no).then_some(false))
}

/// `checkpoint_during`, and the durability that is asked for, by its new name or by that old one.
fn durability(body: &mut Object) -> ApiResult<(Option<bool>, Option<Durability>)> {
    let during = body.bool("checkpoint_during")?;
    let given = body.choice("durability", &["sync", "async", "exit"], Durability::parse)?;
    let by_old_name = during.map(|during| if during { Durability::Async } else { Durability::Exit });
    Ok((during, given.or(by_old_name)))
}

/// A Command keeps its JSON; its shape is checked so that mistakes are told at once.
fn command(body: &mut Object, has_thread: bool) -> ApiResult<Option<Json>> {
    let Some(command) = body.object("command")? else { return Ok(None) };
    let given = |key: &str| command.get(key).filter(|value| !value.is_null());
    if given("resume").is_some() && !has_thread {
        return Err(ApiError::BadRequest("You must provide a thread_id when resuming.".to_owned()));
    }
    if given("update").is_some_and(|update| !update.is_object() && !update.is_array()) {
        return Err(ApiError::invalid("command.update: expected an object or an array of [key, value] pairs"));
    }
    let is_goto = |goto: &Json| goto.as_str().is_some() || goto.is_object() || goto.is_array();
    if given("goto").is_some_and(|goto| !is_goto(&goto)) {
        return Err(ApiError::invalid("command.goto: expected a node name, {node, input}, or an array of both"));
    }
    Ok(Some(command))
}

/// A `config` and a `context` as a client gave them: the same configuration under two names.
pub(crate) struct GivenConfig {
    /// Without `configurable`.
    pub(crate) config: Option<Fields>,
    /// What `config.configurable` and `context` hold.
    pub(crate) configurable: Fields,
    pub(crate) has_context: bool,
}

/// Reads `config` and `context`, of which one at most may say something.
pub(crate) fn given_config(body: &mut Object) -> ApiResult<GivenConfig> {
    let mut config = None;
    let mut configurable = Fields::new();
    if let Some(mut given) = body.nested("config")? {
        let mut fields = Fields::new();
        if let Some(tags) = given.strings("tags", MAX_TAGS)? {
            fields.insert("tags".to_owned(), tags.into_iter().map(Json::from).collect());
        }
        if let Some(limit) = given.integer("recursion_limit", i64::MIN..=MAX_RECURSION)? {
            fields.insert("recursion_limit".to_owned(), Json::from(limit));
        }
        let word = |word: &str| Durability::parse(word).map(|_| word.to_owned());
        if let Some(durability) = given.choice("durability", &["sync", "async", "exit"], word)? {
            fields.insert("durability".to_owned(), Json::from(durability));
        }
        if let Some(metadata) = metadata(&mut given, "metadata")? {
            fields.insert("metadata".to_owned(), metadata);
        }
        configurable = members(given.object("configurable")?);
        fields.extend(given.rest().into_iter().filter(|(_, value)| !value.is_null()));
        config = Some(fields);
    }
    let context = body.object("context")?;
    let has_context = context.is_some();
    let context = members(context);
    if !configurable.is_empty() && !context.is_empty() {
        return Err(ApiError::BadRequest(
            "Cannot specify both config.configurable and context: send only one of them".to_owned(),
        ));
    }
    configurable.extend(context);
    Ok(GivenConfig { config, configurable, has_context })
}

/// The config and context of a run; the checkpoint to start from goes into `configurable`.
fn config_and_context(body: &mut Object) -> ApiResult<(Json, Json)> {
    let given = given_config(body)?;
    let context = Json::from(&given.configurable);
    let (mut config, mut configurable) = (given.config.unwrap_or_default(), given.configurable);
    fold_checkpoint(body, &mut configurable)?;
    if !configurable.is_empty() {
        config.insert("configurable".to_owned(), Json::from(&configurable));
    }
    Ok((Json::from(&config), context))
}

/// `strict_resume`: answers that no pending question waits for fail the run (engine specification, section 5.3).
fn with_strict_resume(config: &Json, strict: bool) -> Json {
    let flags = ["__pregel_strict_resume", EXPLAIN_STRICT_RESUME];
    with_configurable(config, flags.into_iter().map(|flag| (flag.to_owned(), Json::from(strict))).collect())
}

/// The config with more in `configurable`.
fn with_configurable(config: &Json, more: Fields) -> Json {
    let mut fields = config.fields().unwrap_or_default();
    let mut configurable = fields.get("configurable").and_then(Json::fields).unwrap_or_default();
    configurable.extend(more);
    fields.insert("configurable".to_owned(), Json::from(&configurable));
    Json::from(&fields)
}

fn members(object: Option<Json>) -> Fields {
    object.map(strip_configurable).and_then(|object| object.fields()).unwrap_or_default()
}

fn fold_checkpoint(body: &mut Object, configurable: &mut Fields) -> ApiResult<()> {
    let checkpoint = cursor::take(body, "checkpoint")?;
    let id = body.uuid("checkpoint_id")?;
    let mut set = |key: &str, value: Json| configurable.insert(key.to_owned(), value);
    if let Some(checkpoint) = checkpoint {
        set("checkpoint_ns", Json::from(checkpoint.ns));
        if let Some(id) = checkpoint.id {
            set("checkpoint_id", Json::from(id));
        }
        if !checkpoint.map.is_empty() {
            let map: Fields = checkpoint.map.into_iter().map(|(ns, id)| (ns, Json::from(id))).collect();
            set("checkpoint_map", Json::from(&map));
        }
    }
    if let Some(id) = id {
        set("checkpoint_id", Json::from(id.hyphenated().to_string()));
    }
    // Runs go on from this server's own checkpoints, whose ids are UUIDs.
    match configurable.get("checkpoint_id").map(|id| (id.is_null(), id.as_str())) {
        Some((true, _) | (_, Some(""))) => drop(configurable.shift_remove("checkpoint_id")),
        Some((_, named)) => {
            let id = parse_uuid("checkpoint ID", named.unwrap_or_default())?;
            configurable.insert("checkpoint_id".to_owned(), Json::from(id.hyphenated().to_string()));
        }
        None => {}
    }
    Ok(())
}

/// `values` unless something else is asked for. `tools` is dropped.
fn stream_modes(body: &mut Object) -> ApiResult<Vec<String>> {
    const FIELD: &str = "stream_mode";
    let given = match body.json(FIELD) {
        Some(one) if one.as_str().is_some() => vec![one.as_str().unwrap_or_default().to_owned()],
        Some(other) => {
            let mut again = Object::body(&Json::from_fields([(FIELD, &other)]))?;
            again
                .strings(FIELD, 100)
                .map_err(|error| match error {
                    ApiError::Invalid(_) if !other.is_array() => {
                        ApiError::invalid("stream_mode: expected a string or an array of strings")
                    }
                    other => other,
                })?
                .unwrap_or_default()
        }
        None => Vec::new(),
    };
    let mut modes: Vec<String> = Vec::new();
    for mode in given {
        check_mode(FIELD, &mode)?;
        if mode != "tools" && !modes.contains(&mode) {
            modes.push(mode);
        }
    }
    if modes.is_empty() {
        modes.push("values".to_owned());
    }
    Ok(modes)
}

fn breakpoints(body: &mut Object, key: &str) -> ApiResult<Option<Breakpoints>> {
    let Some(value) = body.json(key) else { return Ok(None) };
    let wrapped = if value.is_array() { value } else { [value].into_iter().collect() };
    let mut again = Object::body(&Json::from_fields([(key, &wrapped)]))?;
    let names = again
        .strings(key, MAX_NODES)
        .map_err(|_| ApiError::invalid(format!("{key}: expected \"*\" or an array of at most {MAX_NODES} node names")))?
        .unwrap_or_default();
    let all = names.iter().any(|name| name == "*");
    Ok(Some(if all { Breakpoints::All } else { Breakpoints::Nodes(names) }))
}

/// A text of any length: the runtime says what is a target.
fn webhook(body: &mut Object) -> ApiResult<Option<String>> {
    let Some(value) = body.json("webhook") else { return Ok(None) };
    let url = value.as_str().ok_or_else(|| ApiError::invalid("webhook: expected a URL"))?;
    Ok(Some(url.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(text: &str) -> Object {
        Object::body(&Json::parse(text).expect("JSON")).expect("an object")
    }

    fn config(text: &str) -> ApiResult<(String, String)> {
        config_and_context(&mut body(text)).map(|(config, context)| (config.text(), context.text()))
    }

    #[test]
    fn context_and_configurable_mirror_each_other() {
        let both = (r#"{"configurable":{"a":1}}"#.to_owned(), r#"{"a":1}"#.to_owned());
        assert_eq!(config(r#"{"context":{"a":1}}"#).expect("valid"), both);
        assert_eq!(config(r#"{"config":{"configurable":{"a":1}},"context":{}}"#).expect("valid"), both);
        let error = config(r#"{"config":{"configurable":{"a":1}},"context":{"b":1}}"#);
        assert!(matches!(error, Err(ApiError::BadRequest(_))));
    }

    #[test]
    fn checkpoints_go_into_configurable_and_reserved_keys_go_away() {
        let id = "1f1e0000-0000-6000-8000-000000000000";
        let (config_text, context) = config(&format!(
            r#"{{"checkpoint":{{"thread_id":"t","checkpoint_id":"{id}"}},"config":{{"configurable":{{"__after_seconds__":1}},"metadata":{{"run_id":1,"m":2}}}}}}"#
        ))
        .expect("valid");
        assert_eq!(
            config_text,
            format!(r#"{{"metadata":{{"m":2}},"configurable":{{"checkpoint_ns":"","checkpoint_id":"{id}"}}}}"#)
        );
        assert_eq!(context, "{}");
        assert!(config(r#"{"checkpoint_id":"nope"}"#).is_err());
        // Too small a limit is the graph's refusal, told like any failure of a run.
        assert!(config(r#"{"config":{"recursion_limit":0}}"#).is_ok());
        assert!(config(r#"{"config":[]}"#).is_err());
    }

    #[test]
    fn strict_resume_is_a_setting_of_the_run_and_no_context() {
        let (config, context) = config(r#"{"context":{"a":1}}"#).expect("valid");
        let strict = with_strict_resume(&Json::parse(&config).expect("JSON"), true);
        assert_eq!(
            strict.text(),
            r#"{"configurable":{"a":1,"__pregel_strict_resume":true,"__explain_strict_resume":true}}"#
        );
        assert_eq!(context, r#"{"a":1}"#);
    }

    #[test]
    fn stream_modes_are_known_words() {
        let modes = |text: &str| stream_modes(&mut body(text));
        assert_eq!(modes("{}").expect("valid"), ["values"]);
        assert_eq!(modes(r#"{"stream_mode":"updates"}"#).expect("valid"), ["updates"]);
        assert_eq!(modes(r#"{"stream_mode":["updates","tools","updates"]}"#).expect("valid"), ["updates"]);
        for bad in [r#"{"stream_mode":"lifecycle"}"#, r#"{"stream_mode":[1]}"#, r#"{"stream_mode":{}}"#] {
            assert!(modes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn commands_breakpoints_and_webhooks_are_checked() {
        let resume = r#"{"command":{"resume":true}}"#;
        assert!(matches!(command(&mut body(resume), false), Err(ApiError::BadRequest(_))));
        assert!(command(&mut body(resume), true).expect("valid").is_some());
        assert!(command(&mut body(r#"{"command":{"resume":null,"goto":[]}}"#), false).is_ok());
        assert!(command(&mut body(r#"{"command":{"update":1}}"#), true).is_err());
        let points = |text: &str| breakpoints(&mut body(text), "interrupt_before");
        assert_eq!(points(r#"{"interrupt_before":"*"}"#).expect("valid"), Some(Breakpoints::All));
        let named = Some(Breakpoints::Nodes(vec!["a".into()]));
        assert_eq!(points(r#"{"interrupt_before":["a"]}"#).expect("valid"), named);
        assert_eq!(points(r#"{"interrupt_before":"a"}"#).expect("valid"), named);
        assert!(points(r#"{"interrupt_before":[1]}"#).is_err());
        assert!(webhook(&mut body(r#"{"webhook":1}"#)).is_err());
        assert!(webhook(&mut body(r#"{"webhook":"https://example.com/hook"}"#)).expect("valid").is_some());
    }

    #[test]
    fn checkpoint_during_is_the_old_name_of_durability() {
        let read = |text: &str| durability(&mut body(text)).expect("valid").1;
        assert_eq!(read(r#"{"checkpoint_during":false}"#), Some(Durability::Exit));
        assert_eq!(read(r#"{"checkpoint_during":false,"durability":"sync"}"#), Some(Durability::Sync));
        assert_eq!(read("{}"), None);
        assert!(durability(&mut body(r#"{"durability":"never"}"#)).is_err());
    }
}
