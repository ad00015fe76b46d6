-- Webhooks: one row per run that asked for one, from its creation until its delivery. Its twin is
-- migrations/postgres/0009_webhooks.sql.
--
-- The row waits while the run is active. The commit that ends the run makes it due and copies into it what the receiver
-- is told, so that nothing of the run is needed afterwards. A delivered row is deleted.

CREATE TABLE webhooks (
    thread_key         BLOB NOT NULL,
    run_id             BLOB NOT NULL,
    tenant             BLOB NOT NULL,
    thread_name        TEXT NOT NULL,
    url                TEXT NOT NULL,
    state              TEXT NOT NULL CHECK (state IN ('waiting', 'due', 'dead')),
    -- Grows with every attempt: whoever reports an outcome says of which.
    attempts           INTEGER NOT NULL,
    -- While an attempt is under way: when it counts as failed.
    next_attempt_at    INTEGER NOT NULL,
    last_error         TEXT,
    created_at         INTEGER NOT NULL,
    -- From here on NULL while the row waits.
    ended_at           INTEGER,
    run_status         TEXT,
    run_created_at     INTEGER,
    run_started_at     INTEGER,
    assistant_id       BLOB,
    multitask_strategy TEXT,
    metadata           TEXT,
    codec              INTEGER NOT NULL,
    kwargs             BLOB,
    error              BLOB,
    result             BLOB,
    PRIMARY KEY (thread_key, run_id)
) STRICT;
CREATE INDEX webhooks_due ON webhooks (next_attempt_at) WHERE state = 'due';
CREATE INDEX webhooks_waiting ON webhooks (created_at) WHERE state = 'waiting';
CREATE INDEX webhooks_by_state ON webhooks (tenant, state, created_at);
