-- The effect journal and the totals of what models cost. Its twin is migrations/sqlite/0003_effects_and_usage.sql.

-- One row per external call that a task made: `started` before the call, `recorded` with its result, `failed` when the
-- call is known not to have happened. run_id is the run that wrote the row last.
CREATE TABLE effects (
    thread_key    uuid NOT NULL,
    ns            text COLLATE "C" NOT NULL,
    checkpoint_id text COLLATE "C" NOT NULL,
    task_id       text COLLATE "C" NOT NULL,
    key           text COLLATE "C" NOT NULL,
    tenant        uuid NOT NULL,
    run_id        uuid NOT NULL,
    node          text COLLATE "C" NOT NULL,
    state         text NOT NULL CHECK (state IN ('started', 'failed', 'recorded')),
    attempt       integer NOT NULL,
    -- Questions about this call that were answered: later executions pass over as many.
    asked         integer NOT NULL,
    started_at    bigint NOT NULL,
    ended_at      bigint,
    codec         smallint NOT NULL,
    result        bytea,
    error         bytea,
    PRIMARY KEY (thread_key, ns, checkpoint_id, task_id, key)
);
CREATE INDEX effects_by_started_at ON effects (thread_key, started_at);

-- What models cost, by run and model. A run_id of all zeros holds the thread's totals, which outlive its runs. seq is the
-- last commit that was counted: a commit repeated after its answer was lost is not counted again.
CREATE TABLE usage_totals (
    thread_key    uuid NOT NULL,
    run_id        uuid NOT NULL,
    model         text COLLATE "C" NOT NULL,
    tenant        uuid NOT NULL,
    input_tokens  bigint NOT NULL,
    output_tokens bigint NOT NULL,
    total_tokens  bigint NOT NULL,
    -- In 1/1,000,000,000 of the currency of the prices.
    cost_nanos    bigint NOT NULL,
    seq           bigint NOT NULL,
    PRIMARY KEY (thread_key, run_id, model)
);
