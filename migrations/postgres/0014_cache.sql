-- Outputs of nodes with a cache policy. Its twin is migrations/sqlite/0014_cache.sql.
--
-- Entries belong to no thread and to no run's commit: one that is lost costs an execution of its node, nothing else.

CREATE TABLE cache_entries (
    tenant     uuid NOT NULL,
    -- A hash of the graph, its version, the node's place in it, and its input or the author's key.
    key        bytea NOT NULL,
    graph_id   text NOT NULL,
    codec      smallint NOT NULL,
    output     bytea NOT NULL,
    -- What the entry counts for when the table is kept within its bound.
    size       bigint NOT NULL,
    created_at bigint NOT NULL,
    -- NULL: kept until there is no room.
    expires_at bigint,
    PRIMARY KEY (tenant, key)
);
CREATE INDEX cache_entries_due ON cache_entries (expires_at) WHERE expires_at IS NOT NULL;
-- With the size, so that the sum is read from the index.
CREATE INDEX cache_entries_by_age ON cache_entries (created_at, size);
