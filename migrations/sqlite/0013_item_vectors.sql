-- Items found by meaning. Its twin is migrations/postgres/0013_item_vectors.sql.

-- What of the item is to be embedded: NULL, the server's default; false, nothing; or a list of paths. As JSON text.
ALTER TABLE items ADD COLUMN index_paths TEXT;
-- Which model has embedded it, and as of which updated_at: an item whose value is newer is to be embedded again.
ALTER TABLE items ADD COLUMN embedded_by TEXT;
ALTER TABLE items ADD COLUMN embedded_at INTEGER;
CREATE INDEX items_due ON items (expires_at) WHERE expires_at IS NOT NULL;

-- A vector counts while its item is there and written_at is the item's updated_at; whatever else is left is ignored.
CREATE TABLE item_vectors (
    tenant     BLOB NOT NULL,
    namespace  TEXT NOT NULL,
    key        TEXT NOT NULL,
    path       TEXT NOT NULL,
    model      TEXT NOT NULL,
    dims       INTEGER NOT NULL,
    -- Numbers of 32 bits, little-endian, of length 1.
    vector     BLOB NOT NULL,
    written_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, namespace, key, path)
) STRICT;
