-- Interrupts are rows: a question of a node, its answer, who gave it and when. And runs remember who asked for them.
-- Its twin is migrations/postgres/0002_interrupts.sql: same tables, same columns, same order.

ALTER TABLE runs ADD COLUMN actor TEXT;

-- Whether an open question is pending is not stored: it is while root_checkpoint_id is its thread's head.
CREATE TABLE interrupts (
    thread_key         BLOB NOT NULL,
    interrupt_id       TEXT NOT NULL,
    tenant             BLOB NOT NULL,
    ns                 TEXT NOT NULL,
    checkpoint_id      TEXT NOT NULL,
    root_checkpoint_id TEXT NOT NULL,
    task_id            TEXT NOT NULL,
    node               TEXT NOT NULL,
    graph_id           TEXT NOT NULL,
    assistant_id       BLOB NOT NULL,
    run_id             BLOB NOT NULL,
    codec              INTEGER NOT NULL,
    question           BLOB NOT NULL,
    response_schema    BLOB,
    checked            INTEGER NOT NULL,
    asked_at           INTEGER NOT NULL,
    answer             BLOB,
    answered_at        INTEGER,
    answered_by        TEXT,
    answered_run       BLOB,
    -- The run in which its task went on without an answer.
    withdrawn_run      BLOB,
    PRIMARY KEY (thread_key, interrupt_id),
    CHECK ((answer IS NULL) = (answered_at IS NULL))
) STRICT;
CREATE INDEX interrupts_by_asked_at ON interrupts (tenant, asked_at, interrupt_id, thread_key);
-- What the inbox reads.
CREATE INDEX interrupts_open ON interrupts (tenant, asked_at, interrupt_id, thread_key)
    WHERE answered_at IS NULL AND withdrawn_run IS NULL;
