-- Checkpoints of graphs that run elsewhere and keep their state here. Its twin is migrations/sqlite/0015_foreign.sql.
--
-- Their values are bytes with a type tag that only their writers understand. They are in `payloads`, once per thread,
-- under two codecs of their own: 1 is raw bytes, 2 a list of 16-byte hashes whose rows, in that order, are the value.
-- `codec` 1 in the tables below: a frame, that is the length of a JSON header (4 bytes, little endian), the header, and
-- the bytes it refers to.

-- Whether checkpoints on this thread come from elsewhere: then no graph of this server runs on it.
ALTER TABLE threads ADD COLUMN is_foreign boolean NOT NULL DEFAULT FALSE;

CREATE TABLE foreign_checkpoints (
    thread_key    uuid NOT NULL,
    ns            text COLLATE "C" NOT NULL,
    checkpoint_id text COLLATE "C" NOT NULL,
    tenant        uuid NOT NULL,
    parent_id     text COLLATE "C",
    -- What its metadata calls the run, if anything: any text.
    run_id        text COLLATE "C",
    created_at    bigint NOT NULL,
    codec         smallint NOT NULL,
    body          bytea NOT NULL,
    size_bytes    bigint NOT NULL,
    PRIMARY KEY (thread_key, ns, checkpoint_id)
);
CREATE INDEX foreign_checkpoints_by_run ON foreign_checkpoints (tenant, run_id) WHERE run_id IS NOT NULL;

-- What a task wrote, a row for each time it did. The slot is a hash of what was written, so that repeating changes
-- nothing; writes of a special kind (errors, interrupts, ..) have a fixed slot each, and the last one counts.
CREATE TABLE foreign_writes (
    thread_key    uuid NOT NULL,
    ns            text COLLATE "C" NOT NULL,
    checkpoint_id text COLLATE "C" NOT NULL,
    task_id       text COLLATE "C" NOT NULL,
    slot          text COLLATE "C" NOT NULL,
    tenant        uuid NOT NULL,
    path          text COLLATE "C" NOT NULL,
    written_at    bigint NOT NULL,
    codec         smallint NOT NULL,
    body          bytea NOT NULL,
    PRIMARY KEY (thread_key, ns, checkpoint_id, task_id, slot)
);
