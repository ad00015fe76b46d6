-- The first schema. Its twin is migrations/sqlite/0001_init.sql: same tables, same columns, same order.
--
-- * Every table carries the tenant. Rows of a thread start with its key, uuid5(tenant, name), so that they can be
--   distributed by it. No sequences, no foreign keys across tables, no extensions.
-- * `codec` says how the byte columns of the row are written: 0 is plain UTF-8 JSON text. Anything else is unknown to
--   this build and read as damage.
-- * jsonb columns hold NUL as U+E000 '0' and U+E000 itself as U+E000 '1' (see storage/encoding.rs).
-- * Times are microseconds since 1970 from the database's clock.
-- * COLLATE "C": ids and names sort by bytes, as in SQLite and in Rust.

CREATE TABLE threads (
    thread_key       uuid NOT NULL,
    tenant           uuid NOT NULL,
    name             text COLLATE "C" NOT NULL,
    graph_id         text COLLATE "C",
    metadata         jsonb NOT NULL,
    codec            smallint NOT NULL,
    config           bytea NOT NULL,
    -- What the thread rests at while no run is active; `busy` is derived from its runs.
    rest_status      text NOT NULL CHECK (rest_status IN ('idle', 'interrupted', 'error')),
    error            bytea,
    head             text COLLATE "C",
    -- What the thread's document shows instead of its head; NULL in the usual case.
    view             bytea,
    last_event       bigint NOT NULL,
    -- Grows with every run inserted: lets create_run notice that its snapshot is older than its row lock.
    revision         bigint NOT NULL,
    created_at       bigint NOT NULL,
    updated_at       bigint NOT NULL,
    state_updated_at bigint NOT NULL,
    PRIMARY KEY (thread_key)
);
CREATE INDEX threads_by_name ON threads (tenant, name);
CREATE INDEX threads_by_created_at ON threads (tenant, created_at, name);
CREATE INDEX threads_by_updated_at ON threads (tenant, updated_at, name);
CREATE INDEX threads_by_metadata ON threads USING gin (metadata jsonb_path_ops);

CREATE TABLE runs (
    thread_key         uuid NOT NULL,
    run_id             uuid NOT NULL,
    tenant             uuid NOT NULL,
    assistant_id       uuid NOT NULL,
    graph_id           text COLLATE "C" NOT NULL,
    status             text NOT NULL
        CHECK (status IN ('pending', 'running', 'error', 'success', 'timeout', 'interrupted')),
    metadata           jsonb NOT NULL,
    codec              smallint NOT NULL,
    kwargs             bytea NOT NULL,
    error              bytea,
    multitask_strategy text NOT NULL CHECK (multitask_strategy IN ('enqueue', 'reject', 'interrupt', 'rollback')),
    attempts           integer NOT NULL,
    input_applied      boolean NOT NULL,
    cancel_action      text CHECK (cancel_action IN ('interrupt', 'rollback')),
    cancel_actor       text,
    cancel_reason      text,
    temporary          boolean NOT NULL,
    worker             text,
    lease_epoch        bigint NOT NULL,
    lease_until        bigint NOT NULL,
    run_at             bigint NOT NULL,
    created_at         bigint NOT NULL,
    updated_at         bigint NOT NULL,
    PRIMARY KEY (thread_key, run_id),
    -- Only a running run is leased; a running run always says until when.
    CHECK ((status = 'running') = (lease_until > 0))
);
-- At most one run executes per thread, whatever the code above believes.
CREATE UNIQUE INDEX runs_one_running ON runs (thread_key) WHERE status = 'running';
CREATE INDEX runs_active ON runs (thread_key, created_at, run_id) WHERE status IN ('pending', 'running');
CREATE INDEX runs_pending ON runs (created_at, run_id) WHERE status = 'pending';
CREATE INDEX runs_leased ON runs (lease_until) WHERE status = 'running';

-- Resolves a run id alone to its thread.
CREATE TABLE run_lookup (
    run_id     uuid NOT NULL,
    tenant     uuid NOT NULL,
    thread_key uuid NOT NULL,
    PRIMARY KEY (run_id)
);

CREATE TABLE checkpoints (
    thread_key    uuid NOT NULL,
    ns            text COLLATE "C" NOT NULL,
    checkpoint_id text COLLATE "C" NOT NULL,
    tenant        uuid NOT NULL,
    parent_id     text COLLATE "C",
    run_id        uuid,
    step          bigint NOT NULL,
    source        text NOT NULL CHECK (source IN ('input', 'loop', 'update', 'fork')),
    created_at    bigint NOT NULL,
    metadata      jsonb NOT NULL,
    codec         smallint NOT NULL,
    next_nodes    bytea NOT NULL,
    body          bytea NOT NULL,
    size_bytes    bigint NOT NULL,
    PRIMARY KEY (thread_key, ns, checkpoint_id)
);

-- run_id is all zeros for writes from outside a run. Where several runs wrote for one task, the row written last counts.
CREATE TABLE task_writes (
    thread_key    uuid NOT NULL,
    ns            text COLLATE "C" NOT NULL,
    checkpoint_id text COLLATE "C" NOT NULL,
    task_id       text COLLATE "C" NOT NULL,
    run_id        uuid NOT NULL,
    tenant        uuid NOT NULL,
    path          text COLLATE "C" NOT NULL,
    written_at    bigint NOT NULL,
    codec         smallint NOT NULL,
    body          bytea NOT NULL,
    PRIMARY KEY (thread_key, ns, checkpoint_id, task_id, run_id)
);

CREATE TABLE payloads (
    thread_key uuid NOT NULL,
    hash       bytea NOT NULL,
    tenant     uuid NOT NULL,
    codec      smallint NOT NULL,
    value      bytea NOT NULL,
    PRIMARY KEY (thread_key, hash)
);

-- Positions start .. start + count of one branch of a list channel.
CREATE TABLE channel_log (
    thread_key uuid NOT NULL,
    ns         text COLLATE "C" NOT NULL,
    channel    text COLLATE "C" NOT NULL,
    branch     bigint NOT NULL,
    start      bigint NOT NULL,
    tenant     uuid NOT NULL,
    count      bigint NOT NULL,
    run_id     uuid,
    codec      smallint NOT NULL,
    items      bytea NOT NULL,
    PRIMARY KEY (thread_key, ns, channel, branch, start)
);

CREATE TABLE events (
    thread_key uuid NOT NULL,
    event_id   bigint NOT NULL,
    tenant     uuid NOT NULL,
    run_id     uuid NOT NULL,
    name       text NOT NULL,
    codec      smallint NOT NULL,
    data       bytea NOT NULL,
    PRIMARY KEY (thread_key, event_id)
);

-- namespace is every label followed by a dot (labels hold none), so that a prefix is a range of whole labels.
CREATE TABLE items (
    tenant     uuid NOT NULL,
    namespace  text COLLATE "C" NOT NULL,
    key        text COLLATE "C" NOT NULL,
    codec      smallint NOT NULL,
    value      bytea NOT NULL,
    created_at bigint NOT NULL,
    updated_at bigint NOT NULL,
    ttl        bigint,
    expires_at bigint,
    PRIMARY KEY (tenant, namespace, key)
);
CREATE INDEX items_by_updated_at ON items (tenant, updated_at);
