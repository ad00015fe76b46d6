-- Items found by meaning. Its twin is migrations/sqlite/0013_item_vectors.sql.

-- What of the item is to be embedded: NULL, the server's default; false, nothing; or a list of paths. As JSON text.
ALTER TABLE items ADD COLUMN index_paths text;
-- Which model has embedded it, and as of which updated_at: an item whose value is newer is to be embedded again.
ALTER TABLE items ADD COLUMN embedded_by text;
ALTER TABLE items ADD COLUMN embedded_at bigint;
CREATE INDEX items_due ON items (expires_at) WHERE expires_at IS NOT NULL;

-- A vector counts while its item is there and written_at is the item's updated_at; whatever else is left is ignored.
-- Wide rows: a vector of up to some 2,000 numbers stays in its row's page, so that a scan reads the pages in order.
CREATE TABLE item_vectors (
    tenant     uuid NOT NULL,
    namespace  text COLLATE "C" NOT NULL,
    key        text COLLATE "C" NOT NULL,
    path       text COLLATE "C" NOT NULL,
    model      text NOT NULL,
    dims       integer NOT NULL,
    -- Numbers of 32 bits, little-endian, of length 1.
    vector     bytea NOT NULL,
    written_at bigint NOT NULL,
    PRIMARY KEY (tenant, namespace, key, path)
) WITH (toast_tuple_target = 8160);
ALTER TABLE item_vectors ALTER COLUMN vector SET STORAGE EXTERNAL;
