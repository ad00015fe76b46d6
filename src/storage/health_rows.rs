//! From rows to what [`super::health`] tells, for both drivers; see [`super::rows`].

/// Defines `stuck_from`, `quarantined_from` and `applied_from` for a row type.
macro_rules! define_health_rows {
    ($row:ty) => {
        use crate::model::{ThreadId, ThreadKey, Timestamp};
        use crate::storage::encoding::{self, Place};
        use crate::storage::health::{AppliedMigration, QuarantinedRun, StuckReason, StuckRun};

        fn thread_id_of(name: &str) -> Result<ThreadId> {
            ThreadId::parse(name)
                .map_err(|error| Place { table: "threads", column: "name", id: &name }.corrupt(error.0))
        }

        fn stuck_from(row: &$row) -> Result<StuckRun> {
            let run_id: uuid::Uuid = get(row, "run_id")?;
            let reason: String = get(row, "reason")?;
            let name: Option<String> = get(row, "thread_name")?;
            let since: i64 = get(row, "since")?;
            Ok(StuckRun {
                thread: ThreadKey(get(row, "thread_key")?),
                thread_id: name.map(|name| thread_id_of(&name)).transpose()?,
                reason: StuckReason::parse(&reason)
                    .ok_or_else(|| Place { table: "runs", column: "status", id: &run_id }.corrupt(reason))?,
                since: std::time::Duration::from_micros(u64::try_from(since).unwrap_or(0)),
                attempts: get(row, "attempts")?,
                worker: get::<Option<String>>(row, "worker")?.map(encoding::show_nul),
                run_id,
            })
        }

        fn quarantined_from(row: &$row) -> Result<QuarantinedRun> {
            let run_id: uuid::Uuid = get(row, "run_id")?;
            let at = Place { table: "runs", column: "error", id: &run_id };
            Ok(QuarantinedRun {
                thread_id: thread_id_of(&get::<String>(row, "thread_name")?)?,
                graph_id: get(row, "graph_id")?,
                attempts: get(row, "attempts")?,
                worker: get::<Option<String>>(row, "worker")?.map(encoding::show_nul),
                error: encoding::error_info(get(row, "codec")?, get(row, "error")?, at)?,
                created_at: Timestamp(get(row, "created_at")?),
                quarantined_at: Timestamp(get(row, "quarantined_at")?),
                run_id,
            })
        }

        fn applied_from(row: &$row, known: &[migrations::Migration]) -> Result<AppliedMigration> {
            let (version, checksum): (i64, String) = (get(row, "version")?, get(row, "checksum")?);
            let is_same = |known: &migrations::Migration| known.version == version && known.checksum() == checksum;
            Ok(AppliedMigration {
                version,
                name: get(row, "name")?,
                is_known: known.iter().any(is_same),
                expands: get(row, "expands")?,
            })
        }
    };
}

pub(crate) use define_health_rows;
