//! What threads occupy, and removing what is not needed (contract section 3.2).

use axum::Json as Reply;
use axum::extract::State;
use axum::response::IntoResponse;
use serde_json::{Value, json};

use crate::http::AppState;
use crate::http::auth::Caller;
use crate::http::error::ApiResult;
use crate::http::extract::{Body, PathIds, thread_id};
use crate::model::{ThreadId, TtlStrategy};
use crate::storage::Size;

/// The most threads of one request.
pub(in crate::http) const MAX_PRUNED: usize = 1000;

/// `POST /threads/prune`: threads that are unknown, or in use where their latest state is to be kept, are left alone.
pub(super) async fn prune(State(state): State<AppState>, caller: Caller, Body(mut body): Body) -> ApiResult {
    let ids = body.strings("thread_ids", MAX_PRUNED)?.ok_or_else(|| body.missing("thread_ids"))?;
    let strategy = body.choice("strategy", &["delete", "keep_latest"], TtlStrategy::parse)?.unwrap_or_default();
    let ids: Vec<ThreadId> = ids.iter().map(|id| thread_id(id)).collect::<ApiResult<_>>()?;
    let mut pruned = 0;
    for id in &ids {
        pruned += i64::from(match strategy {
            TtlStrategy::Delete => state.runtime.storage().delete_thread(&caller.scope, id).await?.is_some(),
            TtlStrategy::KeepLatest => state.runtime.prune_to_latest(&caller.scope, id).await?,
        });
    }
    Ok(Reply(json!({"pruned_count": pruned})).into_response())
}

/// `GET /threads/{thread_id}/storage`: bytes by kind and, for values, by channel.
pub(super) async fn storage(State(state): State<AppState>, caller: Caller, path: PathIds) -> ApiResult {
    let id = path.thread()?;
    let report = state.runtime.thread_storage(&caller.scope, &id).await?;
    let sizes = &report.sizes;
    let values = sizes
        .lists
        .iter()
        .fold(sizes.payloads, |all, (_, list)| Size { count: all.count + list.count, bytes: all.bytes + list.bytes });
    let kinds = [
        sizes.checkpoints,
        values,
        sizes.task_writes,
        sizes.events,
        sizes.runs,
        sizes.interrupts,
        sizes.effects,
        sizes.executions,
    ];
    let total: i64 = kinds.iter().map(|kind| kind.bytes).sum();
    let by_channel: serde_json::Map<String, Value> =
        report.by_channel.iter().map(|(channel, size)| (channel.clone(), shown(*size))).collect();
    let mut channel_values = shown(values);
    channel_values["by_channel"] = Value::Object(by_channel);
    Ok(Reply(json!({
        "thread_id": id,
        "total_bytes": total,
        "checkpoints": shown(sizes.checkpoints),
        "channel_values": channel_values,
        "pending_writes": shown(sizes.task_writes),
        "events": shown(sizes.events),
        "runs": shown(sizes.runs),
        "interrupts": shown(sizes.interrupts),
        "effects": shown(sizes.effects),
        "log": shown(sizes.executions),
    }))
    .into_response())
}

fn shown(size: Size) -> Value {
    json!({"count": size.count, "bytes": size.bytes})
}
