-- The first schema. Its twin is migrations/postgres/0001_init.sql: same tables, same columns, same order.
--
-- * Every table carries the tenant. Rows of a thread start with its key, uuid5(tenant, name).
-- * `codec` says how the byte columns of the row are written: 0 is plain UTF-8 JSON text. Anything else is unknown to
--   this build and read as damage.
-- * Times are microseconds since 1970 from the clock of the one process that owns the file. Truth is 0 or 1.

CREATE TABLE threads (
    thread_key       BLOB NOT NULL,
    tenant           BLOB NOT NULL,
    name             TEXT NOT NULL,
    graph_id         TEXT,
    metadata         TEXT NOT NULL,
    codec            INTEGER NOT NULL,
    config           BLOB NOT NULL,
    -- What the thread rests at while no run is active; `busy` is derived from its runs.
    rest_status      TEXT NOT NULL CHECK (rest_status IN ('idle', 'interrupted', 'error')),
    error            BLOB,
    head             TEXT,
    -- What the thread's document shows instead of its head; NULL in the usual case.
    view             BLOB,
    last_event       INTEGER NOT NULL,
    -- Grows with every run inserted: lets create_run notice that its snapshot is older than its row lock.
    revision         INTEGER NOT NULL,
    created_at       INTEGER NOT NULL,
    updated_at       INTEGER NOT NULL,
    state_updated_at INTEGER NOT NULL,
    PRIMARY KEY (thread_key)
) STRICT;
CREATE INDEX threads_by_name ON threads (tenant, name);
CREATE INDEX threads_by_created_at ON threads (tenant, created_at, name);
CREATE INDEX threads_by_updated_at ON threads (tenant, updated_at, name);

CREATE TABLE runs (
    thread_key         BLOB NOT NULL,
    run_id             BLOB NOT NULL,
    tenant             BLOB NOT NULL,
    assistant_id       BLOB NOT NULL,
    graph_id           TEXT NOT NULL,
    status             TEXT NOT NULL
        CHECK (status IN ('pending', 'running', 'error', 'success', 'timeout', 'interrupted')),
    metadata           TEXT NOT NULL,
    codec              INTEGER NOT NULL,
    kwargs             BLOB NOT NULL,
    error              BLOB,
    multitask_strategy TEXT NOT NULL CHECK (multitask_strategy IN ('enqueue', 'reject', 'interrupt', 'rollback')),
    attempts           INTEGER NOT NULL,
    input_applied      INTEGER NOT NULL,
    cancel_action      TEXT CHECK (cancel_action IN ('interrupt', 'rollback')),
    cancel_actor       TEXT,
    cancel_reason      TEXT,
    temporary          INTEGER NOT NULL,
    worker             TEXT,
    lease_epoch        INTEGER NOT NULL,
    lease_until        INTEGER NOT NULL,
    run_at             INTEGER NOT NULL,
    created_at         INTEGER NOT NULL,
    updated_at         INTEGER NOT NULL,
    PRIMARY KEY (thread_key, run_id),
    -- Only a running run is leased; a running run always says until when.
    CHECK ((status = 'running') = (lease_until > 0))
) STRICT;
-- At most one run executes per thread, whatever the code above believes.
CREATE UNIQUE INDEX runs_one_running ON runs (thread_key) WHERE status = 'running';
CREATE INDEX runs_active ON runs (thread_key, created_at, run_id) WHERE status IN ('pending', 'running');
CREATE INDEX runs_pending ON runs (created_at, run_id) WHERE status = 'pending';
CREATE INDEX runs_leased ON runs (lease_until) WHERE status = 'running';

-- Resolves a run id alone to its thread.
CREATE TABLE run_lookup (
    run_id     BLOB NOT NULL,
    tenant     BLOB NOT NULL,
    thread_key BLOB NOT NULL,
    PRIMARY KEY (run_id)
) STRICT;

CREATE TABLE checkpoints (
    thread_key    BLOB NOT NULL,
    ns            TEXT NOT NULL,
    checkpoint_id TEXT NOT NULL,
    tenant        BLOB NOT NULL,
    parent_id     TEXT,
    run_id        BLOB,
    step          INTEGER NOT NULL,
    source        TEXT NOT NULL CHECK (source IN ('input', 'loop', 'update', 'fork')),
    created_at    INTEGER NOT NULL,
    metadata      TEXT NOT NULL,
    codec         INTEGER NOT NULL,
    next_nodes    BLOB NOT NULL,
    body          BLOB NOT NULL,
    size_bytes    INTEGER NOT NULL,
    PRIMARY KEY (thread_key, ns, checkpoint_id)
) STRICT;

-- run_id is all zeros for writes from outside a run. Where several runs wrote for one task, the row written last counts.
CREATE TABLE task_writes (
    thread_key    BLOB NOT NULL,
    ns            TEXT NOT NULL,
    checkpoint_id TEXT NOT NULL,
    task_id       TEXT NOT NULL,
    run_id        BLOB NOT NULL,
    tenant        BLOB NOT NULL,
    path          TEXT NOT NULL,
    written_at    INTEGER NOT NULL,
    codec         INTEGER NOT NULL,
    body          BLOB NOT NULL,
    PRIMARY KEY (thread_key, ns, checkpoint_id, task_id, run_id)
) STRICT;

CREATE TABLE payloads (
    thread_key BLOB NOT NULL,
    hash       BLOB NOT NULL,
    tenant     BLOB NOT NULL,
    codec      INTEGER NOT NULL,
    value      BLOB NOT NULL,
    PRIMARY KEY (thread_key, hash)
) STRICT;

-- Positions start .. start + count of one branch of a list channel.
CREATE TABLE channel_log (
    thread_key BLOB NOT NULL,
    ns         TEXT NOT NULL,
    channel    TEXT NOT NULL,
    branch     INTEGER NOT NULL,
    start      INTEGER NOT NULL,
    tenant     BLOB NOT NULL,
    count      INTEGER NOT NULL,
    run_id     BLOB,
    codec      INTEGER NOT NULL,
    items      BLOB NOT NULL,
    PRIMARY KEY (thread_key, ns, channel, branch, start)
) STRICT;

CREATE TABLE events (
    thread_key BLOB NOT NULL,
    event_id   INTEGER NOT NULL,
    tenant     BLOB NOT NULL,
    run_id     BLOB NOT NULL,
    name       TEXT NOT NULL,
    codec      INTEGER NOT NULL,
    data       BLOB NOT NULL,
    PRIMARY KEY (thread_key, event_id)
) STRICT;

-- namespace is every label followed by a dot (labels hold none), so that a prefix is a range of whole labels.
CREATE TABLE items (
    tenant     BLOB NOT NULL,
    namespace  TEXT NOT NULL,
    key        TEXT NOT NULL,
    codec      INTEGER NOT NULL,
    value      BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    ttl        INTEGER,
    expires_at INTEGER,
    PRIMARY KEY (tenant, namespace, key)
) STRICT;
CREATE INDEX items_by_updated_at ON items (tenant, updated_at);
