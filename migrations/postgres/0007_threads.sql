-- Threads that expire, and threads whose rows are still being removed. Its twin is migrations/sqlite/0007_threads.sql.

-- How long a thread is kept after it was last used (`updated_at`), in microseconds; NULL: for ever.
ALTER TABLE threads ADD COLUMN ttl bigint;
-- What happens then: the whole thread goes, or all but its latest state.
ALTER TABLE threads ADD COLUMN ttl_strategy text CHECK (ttl_strategy IN ('delete', 'keep_latest'));
-- When all but the latest state was removed; what was used since may be due again.
ALTER TABLE threads ADD COLUMN pruned_at bigint;
CREATE INDEX threads_expiring ON threads ((updated_at + ttl))
    WHERE ttl IS NOT NULL AND (pruned_at IS NULL OR pruned_at < updated_at);

-- Threads that are deleted, but left rows in other tables. Nothing is made under such a key before they are gone.
CREATE TABLE dead_threads (
    thread_key uuid NOT NULL,
    tenant     uuid NOT NULL,
    deleted_at bigint NOT NULL,
    PRIMARY KEY (thread_key)
);
