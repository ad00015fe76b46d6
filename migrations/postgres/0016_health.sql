-- Runs that were set aside, and which migrations earlier builds can live with. Its twin is
-- migrations/sqlite/0016_health.sql.

-- When the run was attempted too often without progress; NULL: it was not, or it was released.
ALTER TABLE runs ADD COLUMN quarantined_at bigint;
CREATE INDEX runs_quarantined ON runs (quarantined_at, run_id) WHERE quarantined_at IS NOT NULL;

-- The migration only adds: builds that do not know it keep working, and may be started.
ALTER TABLE schema_migrations ADD COLUMN expands boolean NOT NULL DEFAULT FALSE;
