//! From rows to crons, for both drivers; see [`super::rows`].

/// Defines `cron_from` for a row type.
macro_rules! define_cron_rows {
    ($row:ty) => {
        /// The columns of a cron, as the backend's `cron_columns!` names them.
        fn cron_from(row: &$row) -> crate::storage::Result<crate::model::Cron> {
            use crate::model::{OnCompletion, ThreadId, Timestamp};
            use crate::storage::encoding::{self, Place};

            let cron_id: uuid::Uuid = get(row, "cron_id")?;
            let at = |column| Place { table: "crons", column, id: &cron_id };
            let codec: i16 = get(row, "codec")?;
            let thread: Option<String> = get(row, "thread_name")?;
            let completed: Option<String> = get(row, "on_run_completed")?;
            Ok(crate::model::Cron {
                assistant_id: get(row, "assistant_id")?,
                thread_id: thread
                    .map(|name| ThreadId::parse(&name).map_err(|error| at("thread_name").corrupt(error.0)))
                    .transpose()?,
                schedule: get(row, "schedule")?,
                timezone: get(row, "timezone")?,
                end_time: get::<Option<i64>>(row, "end_time")?.map(Timestamp),
                on_run_completed: completed
                    .map(|word| OnCompletion::parse(&word).ok_or_else(|| at("on_run_completed").corrupt(word)))
                    .transpose()?,
                enabled: get(row, "enabled")?,
                metadata: encoding::metadata(&get::<String>(row, "metadata")?, at("metadata"))?,
                payload: encoding::json(codec, get(row, "payload")?, at("payload"))?,
                request: encoding::json(codec, get(row, "request")?, at("request"))?,
                next_run_date: get::<Option<i64>>(row, "next_run_date")?.map(Timestamp),
                revision: get(row, "revision")?,
                created_at: Timestamp(get(row, "created_at")?),
                updated_at: Timestamp(get(row, "updated_at")?),
                cron_id,
            })
        }
    };
}

pub(crate) use define_cron_rows;
