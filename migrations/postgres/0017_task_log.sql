-- The execution log. Its twin is migrations/sqlite/0017_task_log.sql.

-- One row per execution of a task, in the commit of its superstep. It goes with its run and stays when checkpoints are
-- pruned. started_at and ended_at come from the clock of the process that executed it; no two executions of a run have the
-- same started_at.
CREATE TABLE task_log (
    thread_key    uuid NOT NULL,
    started_at    bigint NOT NULL,
    run_id        uuid NOT NULL,
    tenant        uuid NOT NULL,
    ended_at      bigint NOT NULL,
    step          bigint NOT NULL,
    attempt       integer NOT NULL,
    codec         smallint NOT NULL,
    ns            text COLLATE "C" NOT NULL,
    -- The checkpoint that the task was planned from.
    checkpoint_id text COLLATE "C" NOT NULL,
    task_id       text COLLATE "C" NOT NULL,
    node          text COLLATE "C" NOT NULL,
    outcome       text NOT NULL CHECK (outcome IN ('success', 'error', 'interrupted', 'cancelled')),
    -- {from, next, written, error, usage}: what there is of it.
    detail        bytea NOT NULL,
    PRIMARY KEY (thread_key, started_at, run_id)
);
