-- Crons and the ticks they have fired for. Its twin is migrations/postgres/0008_crons.sql.
--
-- Crons belong to no thread: their rows are few and off the hot path. A tick's row, its run and the cron's next date are
-- one transaction.

CREATE TABLE crons (
    cron_id          BLOB NOT NULL,
    tenant           BLOB NOT NULL,
    assistant_id     BLOB NOT NULL,
    -- The thread the runs go to; NULL: every run gets a thread of its own.
    thread_key       BLOB,
    thread_name      TEXT,
    schedule         TEXT NOT NULL,
    timezone         TEXT,
    end_time         INTEGER,
    on_run_completed TEXT CHECK (on_run_completed IN ('delete', 'keep')),
    enabled          INTEGER NOT NULL,
    metadata         TEXT NOT NULL,
    codec            INTEGER NOT NULL,
    -- What the client sent.
    payload          BLOB NOT NULL,
    -- The same, read: what a run is made of.
    request          BLOB NOT NULL,
    -- The next tick; NULL when there is none before end_time.
    next_run_date    INTEGER,
    -- Grows with every change and every tick: a change that was computed from an older one is not applied.
    revision         INTEGER NOT NULL,
    created_at       INTEGER NOT NULL,
    updated_at       INTEGER NOT NULL,
    PRIMARY KEY (cron_id)
) STRICT;
CREATE INDEX crons_due ON crons (next_run_date) WHERE enabled AND next_run_date IS NOT NULL;
CREATE INDEX crons_by_created_at ON crons (tenant, created_at, cron_id);
CREATE INDEX crons_by_assistant ON crons (tenant, assistant_id);
CREATE INDEX crons_by_thread ON crons (thread_key) WHERE thread_key IS NOT NULL;

-- One row per tick that was fired, or refused by the thread: at most one run per tick, whatever the code believes.
CREATE TABLE cron_ticks (
    cron_id    BLOB NOT NULL,
    tick       INTEGER NOT NULL,
    tenant     BLOB NOT NULL,
    -- NULL: the thread was busy, and the cron said `reject`.
    run_id     BLOB,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (cron_id, tick)
) STRICT;
