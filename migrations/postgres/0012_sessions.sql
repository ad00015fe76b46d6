-- Sessions that end, named branches, and heads that were moved. Its twin is migrations/sqlite/0012_sessions.sql: same
-- tables, same columns, same order.

-- How the thread was closed, when, by whom and why; NULL while it is open. A closed thread takes no run and no change of
-- its state.
ALTER TABLE threads ADD COLUMN closed text CHECK (closed IN ('ended', 'archived'));
ALTER TABLE threads ADD COLUMN closed_at bigint;
ALTER TABLE threads ADD COLUMN closed_by text;
ALTER TABLE threads ADD COLUMN closed_reason text;
-- The branch the thread is on: its name follows the head, and the row in branches is where it was when last left.
ALTER TABLE threads ADD COLUMN branch text COLLATE "C";
-- The checkpoint the head was moved to last, and the newest one there was then. The head stands on a checkpoint that was
-- gone on from before while it still is the former.
ALTER TABLE threads ADD COLUMN moved_to text COLLATE "C";
ALTER TABLE threads ADD COLUMN moved_past text COLLATE "C";

-- When a worker first took the run.
ALTER TABLE runs ADD COLUMN started_at bigint;

-- Names of checkpoints of the root graph.
CREATE TABLE branches (
    thread_key    uuid NOT NULL,
    name          text COLLATE "C" NOT NULL,
    tenant        uuid NOT NULL,
    checkpoint_id text COLLATE "C" NOT NULL,
    created_at    bigint NOT NULL,
    updated_at    bigint NOT NULL,
    updated_by    text,
    PRIMARY KEY (thread_key, name)
);
