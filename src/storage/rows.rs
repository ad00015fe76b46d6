//! From rows to nouns. Both backends select the same column names, so the mapping is written once, as a macro over the
//! driver's row type; the rows themselves stay private to a backend.

use super::StorageError;

/// What every backend makes of a driver error. Connection trouble may pass; the rest will not.
pub(crate) fn driver_error(error: sqlx::Error) -> StorageError {
    use sqlx::Error;
    match &error {
        Error::Io(_) | Error::Tls(_) | Error::PoolTimedOut | Error::PoolClosed | Error::WorkerCrashed => {
            StorageError::Unavailable(error.to_string())
        }
        // A connection that ends while it is being made.
        Error::Protocol(text) if text.contains("SSLRequest") => StorageError::Unavailable(error.to_string()),
        Error::Database(inner) => {
            let code = inner.code().unwrap_or_default();
            // Connection exceptions; too many connections, a full disk, no memory; shutdown and start-up, serialization and
            // deadlock victims, statement timeout. SQLITE_BUSY; SQLITE_FULL and its kin: the file, or the index of its log,
            // cannot grow. Room comes back, and what a run has computed is worth waiting for it.
            let passing = code.starts_with("08")
                || code.starts_with("53")
                || matches!(
                    &*code,
                    "57P01"
                        | "57P02"
                        | "57P03"
                        | "57014"
                        | "40001"
                        | "40P01"
                        | "55P03"
                        | "5"
                        | "261"
                        | "517"
                        | "13"
                        | "778"
                        | "4874"
                );
            if passing {
                StorageError::Unavailable(error.to_string())
            } else if code == "42P01" || error.to_string().contains("no such table") {
                StorageError::Schema(format!("{error}; run the `migrate` command"))
            } else {
                StorageError::Other(error.to_string())
            }
        }
        _ => StorageError::Other(error.to_string()),
    }
}

/// Defines `thread_from`, `closed_from`, `run_from`, `cancel_from`, `checkpoint_from`, `log_from`, `event_from`,
/// `assistant_from`, `interrupt_from`, `entry_from`, `effect_from`, `execution_from`, `item_from`, `unembedded_from` and
/// `look_at` for a row type.
macro_rules! define_rows {
    ($row:ty) => {
        use sqlx::Row as _;

        use crate::model::{
            Assistant, CancelAction, CheckpointSource, Closed, ClosedAs, Effect, EffectEntry, EffectPlace, EffectState,
            EventId, InterruptRecord, InterruptStatus, Item, LoggedTask, Moved, MultitaskStrategy, Run, RunStatus,
            Scope, TaskDetail, TaskExecution, TaskOutcome, Thread, ThreadId, ThreadKey, ThreadStatus, Timestamp,
        };
        use crate::storage::encoding::{self, Place};
        use crate::storage::vectors::{self, Key, Nearest};
        use crate::storage::{
            CancelRequest, CheckpointRow, ItemMatch, LogRow, Result, StorageError, StoredEvent, UnembeddedItem,
        };

        /// Reads a column by name.
        pub(super) fn get<'r, T>(row: &'r $row, column: &str) -> Result<T>
        where
            T: sqlx::Decode<'r, <$row as sqlx::Row>::Database> + sqlx::Type<<$row as sqlx::Row>::Database>,
        {
            row.try_get::<T, _>(column).map_err(crate::storage::rows::driver_error)
        }

        /// The columns of a thread, as the backend's `thread_columns!` names them.
        pub(super) fn thread_from(row: &$row) -> Result<Thread> {
            let key: uuid::Uuid = get(row, "thread_key")?;
            let at = |column| Place { table: "threads", column, id: &key };
            let name: String = get(row, "name")?;
            let codec: i16 = get(row, "codec")?;
            let rest: String = get(row, "rest_status")?;
            let rest = ThreadStatus::parse(&rest).ok_or_else(|| at("rest_status").corrupt(rest))?;
            let busy: bool = get(row, "busy")?;
            let status = if busy { ThreadStatus::Busy } else { rest };
            let error = encoding::error_info(codec, get(row, "error")?, at("error"))?;
            let view: Option<Vec<u8>> = get(row, "view")?;
            Ok(Thread {
                key: ThreadKey(key),
                id: ThreadId::parse(&name).map_err(|error| at("name").corrupt(error.0))?,
                graph_id: get(row, "graph_id")?,
                metadata: encoding::metadata(&get::<String>(row, "metadata")?, at("metadata"))?,
                config: encoding::json(codec, get(row, "config")?, at("config"))?,
                status,
                error,
                head: get(row, "head")?,
                view: view.map(|view| encoding::json(codec, view, at("view"))).transpose()?,
                last_event: get(row, "last_event")?,
                usage: crate::storage::usage::totals(get(row, "usage")?, &key)?,
                created_at: Timestamp(get(row, "created_at")?),
                updated_at: Timestamp(get(row, "updated_at")?),
                state_updated_at: Timestamp(get(row, "state_updated_at")?),
                closed: closed_from(row, &name)?,
                moved: moved_from(row)?,
            })
        }

        /// Whether and how a thread is closed.
        pub(super) fn closed_from(row: &$row, name: &impl std::fmt::Display) -> Result<Option<Closed>> {
            let Some(how) = get::<Option<String>>(row, "closed")? else { return Ok(None) };
            let text = |column| Ok::<_, StorageError>(get::<Option<String>>(row, column)?.map(encoding::show_nul));
            Ok(Some(Closed {
                how: ClosedAs::parse(&how)
                    .ok_or_else(|| Place { table: "threads", column: "closed", id: name }.corrupt(how))?,
                at: Timestamp(get::<Option<i64>>(row, "closed_at")?.unwrap_or_default()),
                by: text("closed_by")?,
                reason: text("closed_reason")?,
            }))
        }

        fn moved_from(row: &$row) -> Result<Option<Moved>> {
            let (to, past): (Option<String>, Option<String>) = (get(row, "moved_to")?, get(row, "moved_past")?);
            Ok(to.zip(past).map(|(to, past)| Moved { to, past }))
        }

        /// The columns of a run, with its thread's name, as the backend's `run_columns!` names them.
        pub(super) fn run_from(row: &$row) -> Result<Run> {
            let run_id: uuid::Uuid = get(row, "run_id")?;
            let at = |column| Place { table: "runs", column, id: &run_id };
            let codec: i16 = get(row, "run_codec")?;
            let name: String = get(row, "thread_name")?;
            let status: String = get(row, "status")?;
            let strategy: String = get(row, "multitask_strategy")?;
            Ok(Run {
                run_id,
                thread_key: ThreadKey(get(row, "run_thread_key")?),
                thread_id: ThreadId::parse(&name)
                    .map_err(|error| Place { table: "threads", column: "name", id: &name }.corrupt(error.0))?,
                assistant_id: get(row, "assistant_id")?,
                graph_id: get(row, "run_graph_id")?,
                status: RunStatus::parse(&status).ok_or_else(|| at("status").corrupt(status))?,
                metadata: encoding::metadata(&get::<String>(row, "run_metadata")?, at("metadata"))?,
                kwargs: encoding::json(codec, get(row, "kwargs")?, at("kwargs"))?,
                multitask_strategy: MultitaskStrategy::parse(&strategy)
                    .ok_or_else(|| at("multitask_strategy").corrupt(strategy))?,
                attempts: get(row, "attempts")?,
                created_at: Timestamp(get(row, "run_created_at")?),
                updated_at: Timestamp(get(row, "run_updated_at")?),
                error: encoding::error_info(codec, get(row, "run_error")?, at("error"))?,
                actor: get::<Option<String>>(row, "actor")?.map(encoding::show_nul),
                usage: crate::storage::usage::totals(get(row, "run_usage")?, &run_id)?,
            })
        }

        /// The cancel flag of a run row.
        pub(super) fn cancel_from(row: &$row) -> Result<Option<CancelRequest>> {
            let Some(action) = get::<Option<String>>(row, "cancel_action")? else { return Ok(None) };
            let run_id: uuid::Uuid = get(row, "run_id")?;
            let action = CancelAction::parse(&action)
                .ok_or_else(|| Place { table: "runs", column: "cancel_action", id: &run_id }.corrupt(action))?;
            let text = |column| Ok::<_, StorageError>(get::<Option<String>>(row, column)?.map(encoding::show_nul));
            Ok(Some(CancelRequest { action, actor: text("cancel_actor")?, reason: text("cancel_reason")? }))
        }

        pub(super) fn checkpoint_from(row: &$row) -> Result<CheckpointRow> {
            let key: uuid::Uuid = get(row, "thread_key")?;
            let (ns, id): (String, String) = (get(row, "ns")?, get(row, "checkpoint_id")?);
            let name = format!("{key}/{ns}/{id}");
            let at = |column| Place { table: "checkpoints", column, id: &name };
            let codec: i16 = get(row, "codec")?;
            let source: String = get(row, "source")?;
            let next = encoding::json(codec, get(row, "next_nodes")?, at("next_nodes"))?;
            Ok(CheckpointRow {
                parent: get(row, "parent_id")?,
                run_id: get(row, "run_id")?,
                step: get(row, "step")?,
                source: CheckpointSource::parse(&source).ok_or_else(|| at("source").corrupt(source))?,
                at: Timestamp(get(row, "created_at")?),
                metadata: encoding::metadata(&get::<String>(row, "metadata")?, at("metadata"))?,
                next: next.decode().map_err(|error| at("next_nodes").corrupt(error.0))?,
                body: encoding::json(codec, get(row, "body")?, at("body"))?,
                bytes: get(row, "size_bytes")?,
                ns,
                id,
            })
        }

        pub(super) fn log_from(row: &$row) -> Result<LogRow> {
            let key: uuid::Uuid = get(row, "thread_key")?;
            let (ns, channel): (String, String) = (get(row, "ns")?, get(row, "channel")?);
            let (branch, start): (i64, i64) = (get(row, "branch")?, get(row, "start")?);
            let name = format!("{key}/{ns}/{channel}/{branch}/{start}");
            let at = Place { table: "channel_log", column: "items", id: &name };
            Ok(LogRow {
                count: get(row, "count")?,
                run_id: get(row, "run_id")?,
                items: encoding::json(get(row, "codec")?, get(row, "items")?, at)?,
                ns,
                channel,
                branch,
                start,
            })
        }

        pub(super) fn event_from(row: &$row) -> Result<StoredEvent> {
            let key: uuid::Uuid = get(row, "thread_key")?;
            let id = EventId(get(row, "event_id")?);
            let name = format!("{key}/{id}");
            let at = Place { table: "events", column: "data", id: &name };
            Ok(StoredEvent {
                id,
                run_id: get(row, "run_id")?,
                name: encoding::show_nul(get(row, "name")?),
                data: encoding::json(get(row, "codec")?, get(row, "data")?, at)?,
            })
        }

        /// The columns of an assistant, as the backend's `assistant_columns!` names them.
        pub(super) fn assistant_from(row: &$row) -> Result<Assistant> {
            let assistant_id: uuid::Uuid = get(row, "assistant_id")?;
            let at = |column| Place { table: "assistants", column, id: &assistant_id };
            let codec: i16 = get(row, "codec")?;
            Ok(Assistant {
                assistant_id,
                graph_id: get(row, "graph_id")?,
                config: encoding::json(codec, get(row, "config")?, at("config"))?,
                context: encoding::json(codec, get(row, "context")?, at("context"))?,
                metadata: encoding::metadata(&get::<String>(row, "metadata")?, at("metadata"))?,
                name: get(row, "name")?,
                description: get(row, "description")?,
                created_at: Timestamp(get(row, "created_at")?),
                updated_at: Timestamp(get(row, "updated_at")?),
                version: get(row, "version")?,
            })
        }

        /// The columns of an interrupt `i` and its thread `t`, as the backend selects them.
        pub(super) fn interrupt_from(row: &$row) -> Result<(ThreadKey, InterruptRecord)> {
            let key: uuid::Uuid = get(row, "thread_key")?;
            let interrupt_id: String = get(row, "interrupt_id")?;
            let thread: String = get(row, "thread_name")?;
            let name = format!("{key}/{interrupt_id}");
            let at = |column| Place { table: "interrupts", column, id: &name };
            let codec: i16 = get(row, "codec")?;
            let read = |column| {
                let bytes: Option<Vec<u8>> = get(row, column)?;
                bytes.map(|bytes| encoding::json(codec, bytes, at(column))).transpose()
            };
            let (head, root): (Option<String>, String) = (get(row, "thread_head")?, get(row, "root_checkpoint_id")?);
            let closed = get::<Option<String>>(row, "thread_closed")?.is_some();
            let answered_at: Option<i64> = get(row, "answered_at")?;
            let withdrawn_run: Option<uuid::Uuid> = get(row, "withdrawn_run")?;
            let status = match (answered_at, withdrawn_run) {
                (Some(_), _) => InterruptStatus::Answered,
                (None, None) if head.as_ref() == Some(&root) && !closed => InterruptStatus::Pending,
                _ => InterruptStatus::Dropped,
            };
            let record = InterruptRecord {
                thread_id: ThreadId::parse(&thread)
                    .map_err(|error| Place { table: "threads", column: "name", id: &key }.corrupt(error.0))?,
                status,
                graph_id: get(row, "graph_id")?,
                assistant_id: get(row, "assistant_id")?,
                node: get(row, "node")?,
                task_id: get(row, "task_id")?,
                checkpoint_ns: get(row, "ns")?,
                checkpoint_id: get(row, "checkpoint_id")?,
                root_checkpoint_id: root,
                run_id: get(row, "run_id")?,
                value: read("question")?.ok_or_else(|| at("question").corrupt("no value"))?,
                response_schema: read("response_schema")?,
                checked: get(row, "checked")?,
                asked_at: Timestamp(get(row, "asked_at")?),
                answer: read("answer")?,
                answered_at: answered_at.map(Timestamp),
                answered_by: get::<Option<String>>(row, "answered_by")?.map(encoding::show_nul),
                answered_run_id: get(row, "answered_run")?,
                interrupt_id,
            };
            Ok((ThreadKey(key), record))
        }

        /// The columns `key, state, attempt, asked, codec, result, error, task_id` of an effect.
        pub(super) fn entry_from(row: &$row) -> Result<EffectEntry> {
            let (task_id, key): (String, String) = (get(row, "task_id")?, get(row, "key")?);
            let name = format!("{task_id}/{key}");
            let at = |column| Place { table: "effects", column, id: &name };
            let codec: i16 = get(row, "codec")?;
            let state: String = get(row, "state")?;
            let result: Option<Vec<u8>> = get(row, "result")?;
            Ok(EffectEntry {
                state: EffectState::parse(&state).ok_or_else(|| at("state").corrupt(state))?,
                attempt: get(row, "attempt")?,
                asked: get(row, "asked")?,
                result: result.map(|result| encoding::json(codec, result, at("result"))).transpose()?,
                error: encoding::error_info(codec, get(row, "error")?, at("error"))?,
                key,
            })
        }

        pub(super) fn effect_from(row: &$row) -> Result<Effect> {
            let ended_at: Option<i64> = get(row, "ended_at")?;
            Ok(Effect {
                place: EffectPlace {
                    ns: get(row, "ns")?,
                    checkpoint_id: get(row, "checkpoint_id")?,
                    task_id: get(row, "task_id")?,
                    node: encoding::show_nul(get(row, "node")?),
                },
                entry: entry_from(row)?,
                run_id: get(row, "run_id")?,
                started_at: Timestamp(get(row, "started_at")?),
                ended_at: ended_at.map(Timestamp),
                bytes: get::<Option<i64>>(row, "bytes")?.unwrap_or(0),
            })
        }

        /// The columns of an execution `e`, with the `actor` of its run.
        pub(super) fn execution_from(row: &$row) -> Result<LoggedTask> {
            let key: uuid::Uuid = get(row, "thread_key")?;
            let (started_at, run_id): (i64, uuid::Uuid) = (get(row, "started_at")?, get(row, "run_id")?);
            let name = format!("{key}/{started_at}/{run_id}");
            let at = |column| Place { table: "task_log", column, id: &name };
            let outcome: String = get(row, "outcome")?;
            let detail = encoding::json(get(row, "codec")?, get(row, "detail")?, at("detail"))?;
            Ok(LoggedTask {
                run_id,
                actor: get::<Option<String>>(row, "actor")?.map(encoding::show_nul),
                execution: TaskExecution {
                    started_at: Timestamp(started_at),
                    ended_at: Timestamp(get(row, "ended_at")?),
                    ns: get(row, "ns")?,
                    checkpoint_id: get(row, "checkpoint_id")?,
                    task_id: get(row, "task_id")?,
                    node: encoding::show_nul(get(row, "node")?),
                    step: get(row, "step")?,
                    attempt: get(row, "attempt")?,
                    outcome: TaskOutcome::parse(&outcome).ok_or_else(|| at("outcome").corrupt(outcome))?,
                    detail: TaskDetail::from_json(&detail).map_err(|error| at("detail").corrupt(error.0))?,
                },
            })
        }

        pub(super) fn item_from(row: &$row) -> Result<Item> {
            let (namespace, key): (String, String) = (get(row, "namespace")?, get(row, "key")?);
            let name = format!("{namespace}{key}");
            let at = Place { table: "items", column: "value", id: &name };
            Ok(Item {
                namespace: crate::storage::matching::namespace_labels(&namespace),
                value: encoding::json(get(row, "codec")?, get(row, "value")?, at)?,
                created_at: Timestamp(get(row, "created_at")?),
                updated_at: Timestamp(get(row, "updated_at")?),
                key: encoding::show_nul(key),
            })
        }

        /// An item to embed, with its tenant and `index_paths`.
        pub(super) fn unembedded_from(row: &$row) -> Result<UnembeddedItem> {
            let item = item_from(row)?;
            let name = format!("{:?} {}", item.namespace, item.key);
            let at = Place { table: "items", column: "index_paths", id: &name };
            Ok(UnembeddedItem {
                scope: Scope::Tenant(get(row, "tenant")?),
                indexing: crate::storage::items::indexing(get(row, "index_paths")?, at)?,
                item,
            })
        }

        /// Looks at one vector of an item: its `tenant`, `namespace`, `key`, `updated_at` and `vector`, and with
        /// conditions `codec` and `value`, too.
        pub(super) fn look_at(
            row: &$row,
            query: &[f32],
            conditions: &[(Vec<String>, ItemMatch)],
            nearest: &mut Nearest,
        ) -> Result<()> {
            let key = || -> Result<Key> {
                Ok(Key { tenant: get(row, "tenant")?, namespace: get(row, "namespace")?, key: get(row, "key")? })
            };
            let Some(score) = vectors::nearness(query, get(row, "vector")?) else {
                let key = key()?;
                let name = format!("{}{}", key.namespace, key.key);
                let at = Place { table: "item_vectors", column: "vector", id: &name };
                return Err(at.corrupt("not as many numbers as it says"));
            };
            if !nearest.may_take(score) {
                return Ok(());
            }
            if is_met(row, conditions)? {
                nearest.take(score, get(row, "updated_at")?, key()?);
            }
            Ok(())
        }

        /// Whether an item's `value`, in `codec`, meets conditions. Without any neither column is needed.
        pub(super) fn is_met(row: &$row, conditions: &[(Vec<String>, ItemMatch)]) -> Result<bool> {
            if conditions.is_empty() {
                return Ok(true);
            }
            let name = format!("{}{}", get::<String>(row, "namespace")?, get::<String>(row, "key")?);
            let at = Place { table: "items", column: "value", id: &name };
            let value = encoding::json(get(row, "codec")?, get(row, "value")?, at)?;
            Ok(crate::storage::matching::meets(&value, conditions))
        }
    };
}

pub(crate) use define_rows;
