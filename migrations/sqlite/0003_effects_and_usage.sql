-- The effect journal and the totals of what models cost. Its twin is migrations/postgres/0003_effects_and_usage.sql.

-- One row per external call that a task made: `started` before the call, `recorded` with its result, `failed` when the
-- call is known not to have happened. run_id is the run that wrote the row last.
CREATE TABLE effects (
    thread_key    BLOB NOT NULL,
    ns            TEXT NOT NULL,
    checkpoint_id TEXT NOT NULL,
    task_id       TEXT NOT NULL,
    key           TEXT NOT NULL,
    tenant        BLOB NOT NULL,
    run_id        BLOB NOT NULL,
    node          TEXT NOT NULL,
    state         TEXT NOT NULL CHECK (state IN ('started', 'failed', 'recorded')),
    attempt       INTEGER NOT NULL,
    -- Questions about this call that were answered: later executions pass over as many.
    asked         INTEGER NOT NULL,
    started_at    INTEGER NOT NULL,
    ended_at      INTEGER,
    codec         INTEGER NOT NULL,
    result        BLOB,
    error         BLOB,
    PRIMARY KEY (thread_key, ns, checkpoint_id, task_id, key)
) STRICT;
CREATE INDEX effects_by_started_at ON effects (thread_key, started_at);

-- What models cost, by run and model. A run_id of all zeros holds the thread's totals, which outlive its runs. seq is the
-- last commit that was counted: a commit repeated after its answer was lost is not counted again.
CREATE TABLE usage_totals (
    thread_key    BLOB NOT NULL,
    run_id        BLOB NOT NULL,
    model         TEXT NOT NULL,
    tenant        BLOB NOT NULL,
    input_tokens  INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    total_tokens  INTEGER NOT NULL,
    -- In 1/1,000,000,000 of the currency of the prices.
    cost_nanos    INTEGER NOT NULL,
    seq           INTEGER NOT NULL,
    PRIMARY KEY (thread_key, run_id, model)
) STRICT;
