-- Webhooks: one row per run that asked for one, from its creation until its delivery. Its twin is
-- migrations/sqlite/0009_webhooks.sql.
--
-- The row waits while the run is active. The commit that ends the run makes it due and copies into it what the receiver
-- is told, so that nothing of the run is needed afterwards. A delivered row is deleted.

CREATE TABLE webhooks (
    thread_key         uuid NOT NULL,
    run_id             uuid NOT NULL,
    tenant             uuid NOT NULL,
    thread_name        text COLLATE "C" NOT NULL,
    url                text NOT NULL,
    state              text NOT NULL CHECK (state IN ('waiting', 'due', 'dead')),
    -- Grows with every attempt: whoever reports an outcome says of which.
    attempts           integer NOT NULL,
    -- While an attempt is under way: when it counts as failed.
    next_attempt_at    bigint NOT NULL,
    last_error         text,
    created_at         bigint NOT NULL,
    -- From here on NULL while the row waits.
    ended_at           bigint,
    run_status         text,
    run_created_at     bigint,
    run_started_at     bigint,
    assistant_id       uuid,
    multitask_strategy text,
    metadata           jsonb,
    codec              smallint NOT NULL,
    kwargs             bytea,
    error              bytea,
    result             bytea,
    PRIMARY KEY (thread_key, run_id)
);
CREATE INDEX webhooks_due ON webhooks (next_attempt_at) WHERE state = 'due';
CREATE INDEX webhooks_waiting ON webhooks (created_at) WHERE state = 'waiting';
CREATE INDEX webhooks_by_state ON webhooks (tenant, state, created_at);
