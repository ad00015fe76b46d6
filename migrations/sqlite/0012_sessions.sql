-- Sessions that end, named branches, and heads that were moved. Its twin is migrations/postgres/0012_sessions.sql: same
-- tables, same columns, same order.

-- How the thread was closed, when, by whom and why; NULL while it is open. A closed thread takes no run and no change of
-- its state.
ALTER TABLE threads ADD COLUMN closed TEXT CHECK (closed IN ('ended', 'archived'));
ALTER TABLE threads ADD COLUMN closed_at INTEGER;
ALTER TABLE threads ADD COLUMN closed_by TEXT;
ALTER TABLE threads ADD COLUMN closed_reason TEXT;
-- The branch the thread is on: its name follows the head, and the row in branches is where it was when last left.
ALTER TABLE threads ADD COLUMN branch TEXT;
-- The checkpoint the head was moved to last, and the newest one there was then. The head stands on a checkpoint that was
-- gone on from before while it still is the former.
ALTER TABLE threads ADD COLUMN moved_to TEXT;
ALTER TABLE threads ADD COLUMN moved_past TEXT;

-- When a worker first took the run.
ALTER TABLE runs ADD COLUMN started_at INTEGER;

-- Names of checkpoints of the root graph.
CREATE TABLE branches (
    thread_key    BLOB NOT NULL,
    name          TEXT NOT NULL,
    tenant        BLOB NOT NULL,
    checkpoint_id TEXT NOT NULL,
    created_at    INTEGER NOT NULL,
    updated_at    INTEGER NOT NULL,
    updated_by    TEXT,
    PRIMARY KEY (thread_key, name)
) STRICT;
