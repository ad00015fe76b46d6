-- Crons and the ticks they have fired for. Its twin is migrations/sqlite/0008_crons.sql.
--
-- Crons belong to no thread: their rows are few and off the hot path. A tick's row, its run and the cron's next date are
-- one transaction.

CREATE TABLE crons (
    cron_id          uuid NOT NULL,
    tenant           uuid NOT NULL,
    assistant_id     uuid NOT NULL,
    -- The thread the runs go to; NULL: every run gets a thread of its own.
    thread_key       uuid,
    thread_name      text COLLATE "C",
    schedule         text NOT NULL,
    timezone         text,
    end_time         bigint,
    on_run_completed text CHECK (on_run_completed IN ('delete', 'keep')),
    enabled          boolean NOT NULL,
    metadata         jsonb NOT NULL,
    codec            smallint NOT NULL,
    -- What the client sent.
    payload          bytea NOT NULL,
    -- The same, read: what a run is made of.
    request          bytea NOT NULL,
    -- The next tick; NULL when there is none before end_time.
    next_run_date    bigint,
    -- Grows with every change and every tick: a change that was computed from an older one is not applied.
    revision         bigint NOT NULL,
    created_at       bigint NOT NULL,
    updated_at       bigint NOT NULL,
    PRIMARY KEY (cron_id)
);
CREATE INDEX crons_due ON crons (next_run_date) WHERE enabled AND next_run_date IS NOT NULL;
CREATE INDEX crons_by_created_at ON crons (tenant, created_at, cron_id);
CREATE INDEX crons_by_assistant ON crons (tenant, assistant_id);
CREATE INDEX crons_by_thread ON crons (thread_key) WHERE thread_key IS NOT NULL;

-- One row per tick that was fired, or refused by the thread: at most one run per tick, whatever the code believes.
CREATE TABLE cron_ticks (
    cron_id    uuid NOT NULL,
    tick       bigint NOT NULL,
    tenant     uuid NOT NULL,
    -- NULL: the thread was busy, and the cron said `reject`.
    run_id     uuid,
    created_at bigint NOT NULL,
    PRIMARY KEY (cron_id, tick)
);
