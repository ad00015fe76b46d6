-- Interrupts are rows: a question of a node, its answer, who gave it and when. And runs remember who asked for them.
-- Its twin is migrations/sqlite/0002_interrupts.sql: same tables, same columns, same order.

ALTER TABLE runs ADD COLUMN actor text;

-- Whether an open question is pending is not stored: it is while root_checkpoint_id is its thread's head.
CREATE TABLE interrupts (
    thread_key         uuid NOT NULL,
    interrupt_id       text COLLATE "C" NOT NULL,
    tenant             uuid NOT NULL,
    ns                 text COLLATE "C" NOT NULL,
    checkpoint_id      text COLLATE "C" NOT NULL,
    root_checkpoint_id text COLLATE "C" NOT NULL,
    task_id            text COLLATE "C" NOT NULL,
    node               text COLLATE "C" NOT NULL,
    graph_id           text COLLATE "C" NOT NULL,
    assistant_id       uuid NOT NULL,
    run_id             uuid NOT NULL,
    codec              smallint NOT NULL,
    question           bytea NOT NULL,
    response_schema    bytea,
    checked            boolean NOT NULL,
    asked_at           bigint NOT NULL,
    answer             bytea,
    answered_at        bigint,
    answered_by        text,
    answered_run       uuid,
    -- The run in which its task went on without an answer.
    withdrawn_run      uuid,
    PRIMARY KEY (thread_key, interrupt_id),
    CHECK ((answer IS NULL) = (answered_at IS NULL))
);
CREATE INDEX interrupts_by_asked_at ON interrupts (tenant, asked_at, interrupt_id, thread_key);
-- What the inbox reads.
CREATE INDEX interrupts_open ON interrupts (tenant, asked_at, interrupt_id, thread_key)
    WHERE answered_at IS NULL AND withdrawn_run IS NULL;
