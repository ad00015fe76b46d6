-- Assistants that somebody made, or changed: an assistant of a graph that nobody touched has no row. Its twin is
-- migrations/sqlite/0006_assistants.sql.
--
-- The row holds the current version whole, so that a run reads one row; assistant_versions holds all of them.

CREATE TABLE assistants (
    assistant_id uuid NOT NULL,
    tenant       uuid NOT NULL,
    graph_id     text COLLATE "C" NOT NULL,
    name         text COLLATE "C" NOT NULL,
    -- The name in lower case by Unicode's rules, which databases do not share: what a search by name looks at.
    folded_name  text COLLATE "C" NOT NULL,
    description  text,
    metadata     jsonb NOT NULL,
    codec        smallint NOT NULL,
    config       bytea NOT NULL,
    context      bytea NOT NULL,
    version      bigint NOT NULL,
    created_at   bigint NOT NULL,
    -- Grows with every change: who has read the row can tell whether it is still the same.
    updated_at   bigint NOT NULL,
    PRIMARY KEY (tenant, assistant_id)
);
CREATE INDEX assistants_by_created_at ON assistants (tenant, created_at, assistant_id);
CREATE INDEX assistants_by_metadata ON assistants USING gin (metadata jsonb_path_ops);

CREATE TABLE assistant_versions (
    assistant_id uuid NOT NULL,
    tenant       uuid NOT NULL,
    version      bigint NOT NULL,
    graph_id     text COLLATE "C" NOT NULL,
    name         text COLLATE "C" NOT NULL,
    description  text,
    metadata     jsonb NOT NULL,
    codec        smallint NOT NULL,
    config       bytea NOT NULL,
    context      bytea NOT NULL,
    created_at   bigint NOT NULL,
    PRIMARY KEY (tenant, assistant_id, version)
);
