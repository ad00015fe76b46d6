//! From rows to webhooks, for both drivers; see [`super::rows`].

/// Defines `webhook_from` and `due_from` for a row type.
macro_rules! define_webhook_rows {
    ($row:ty) => {
        use crate::model::{RunId, ThreadId, ThreadKey, Timestamp};
        use crate::storage::encoding::{self, Place};
        use crate::storage::{Attempt, DueWebhook, Webhook, WebhookState};

        fn thread_id_from(row: &$row, run_id: &RunId) -> Result<ThreadId> {
            let at = Place { table: "webhooks", column: "thread_name", id: run_id };
            ThreadId::parse(&get::<String>(row, "thread_name")?).map_err(|error| at.corrupt(error.0))
        }

        /// A row of a list.
        fn webhook_from(row: &$row) -> Result<Webhook> {
            let run_id: RunId = get(row, "run_id")?;
            let state: String = get(row, "state")?;
            let at = Place { table: "webhooks", column: "state", id: &run_id };
            Ok(Webhook {
                thread_id: thread_id_from(row, &run_id)?,
                url: encoding::show_nul(get(row, "url")?),
                state: WebhookState::parse(&state).ok_or_else(|| at.corrupt(state))?,
                attempts: get(row, "attempts")?,
                next_attempt_at: Timestamp(get(row, "next_attempt_at")?),
                last_error: get::<Option<String>>(row, "last_error")?.map(encoding::show_nul),
                created_at: Timestamp(get(row, "created_at")?),
                run_id,
            })
        }

        /// A row that was claimed.
        fn due_from(row: &$row) -> Result<DueWebhook> {
            let run_id: RunId = get(row, "run_id")?;
            let at = |column| Place { table: "webhooks", column, id: &run_id };
            let codec: i16 = get(row, "codec")?;
            let result: Option<Vec<u8>> = get(row, "result")?;
            Ok(DueWebhook {
                attempt: Attempt { thread: ThreadKey(get(row, "thread_key")?), run_id, number: get(row, "attempts")? },
                url: encoding::show_nul(get(row, "url")?),
                thread_id: thread_id_from(row, &run_id)?,
                assistant_id: get(row, "assistant_id")?,
                status: get(row, "run_status")?,
                metadata: encoding::metadata(&get::<String>(row, "metadata")?, at("metadata"))?,
                kwargs: encoding::json(codec, get(row, "kwargs")?, at("kwargs"))?,
                multitask_strategy: get(row, "multitask_strategy")?,
                error: encoding::error_info(codec, get(row, "error")?, at("error"))?,
                values: result.map(|bytes| encoding::json(codec, bytes, at("result"))).transpose()?,
                created_at: Timestamp(get(row, "run_created_at")?),
                started_at: get::<Option<i64>>(row, "run_started_at")?.map(Timestamp),
                ended_at: Timestamp(get(row, "ended_at")?),
            })
        }
    };
}

pub(crate) use define_webhook_rows;
