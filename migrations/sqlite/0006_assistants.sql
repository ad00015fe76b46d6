-- Assistants that somebody made, or changed: an assistant of a graph that nobody touched has no row. Its twin is
-- migrations/postgres/0006_assistants.sql.
--
-- The row holds the current version whole, so that a run reads one row; assistant_versions holds all of them.

CREATE TABLE assistants (
    assistant_id BLOB NOT NULL,
    tenant       BLOB NOT NULL,
    graph_id     TEXT NOT NULL,
    name         TEXT NOT NULL,
    -- The name in lower case by Unicode's rules, which databases do not share: what a search by name looks at.
    folded_name  TEXT NOT NULL,
    description  TEXT,
    metadata     TEXT NOT NULL,
    codec        INTEGER NOT NULL,
    config       BLOB NOT NULL,
    context      BLOB NOT NULL,
    version      INTEGER NOT NULL,
    created_at   INTEGER NOT NULL,
    -- Grows with every change: who has read the row can tell whether it is still the same.
    updated_at   INTEGER NOT NULL,
    PRIMARY KEY (tenant, assistant_id)
) STRICT;
CREATE INDEX assistants_by_created_at ON assistants (tenant, created_at, assistant_id);

CREATE TABLE assistant_versions (
    assistant_id BLOB NOT NULL,
    tenant       BLOB NOT NULL,
    version      INTEGER NOT NULL,
    graph_id     TEXT NOT NULL,
    name         TEXT NOT NULL,
    description  TEXT,
    metadata     TEXT NOT NULL,
    codec        INTEGER NOT NULL,
    config       BLOB NOT NULL,
    context      BLOB NOT NULL,
    created_at   INTEGER NOT NULL,
    PRIMARY KEY (tenant, assistant_id, version)
) STRICT;
