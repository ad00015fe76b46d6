-- The execution log. Its twin is migrations/postgres/0017_task_log.sql.

-- One row per execution of a task, in the commit of its superstep. It goes with its run and stays when checkpoints are
-- pruned. started_at and ended_at come from the clock of the process that executed it; no two executions of a run have the
-- same started_at.
CREATE TABLE task_log (
    thread_key    BLOB NOT NULL,
    started_at    INTEGER NOT NULL,
    run_id        BLOB NOT NULL,
    tenant        BLOB NOT NULL,
    ended_at      INTEGER NOT NULL,
    step          INTEGER NOT NULL,
    attempt       INTEGER NOT NULL,
    codec         INTEGER NOT NULL,
    ns            TEXT NOT NULL,
    -- The checkpoint that the task was planned from.
    checkpoint_id TEXT NOT NULL,
    task_id       TEXT NOT NULL,
    node          TEXT NOT NULL,
    outcome       TEXT NOT NULL CHECK (outcome IN ('success', 'error', 'interrupted', 'cancelled')),
    -- {from, next, written, error, usage}: what there is of it.
    detail        BLOB NOT NULL,
    PRIMARY KEY (thread_key, started_at, run_id)
) STRICT;
