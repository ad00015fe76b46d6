-- Idempotency keys: what a key was used for, and how that was answered. Its twin is
-- migrations/postgres/0010_idempotency_keys.sql.
--
-- The row is inserted by the transaction of the operation it stands for; the answer is added when it is known.

CREATE TABLE idempotency_keys (
    tenant      BLOB NOT NULL,
    -- Method and path template, as in POST /threads/{thread_id}/runs.
    operation   TEXT NOT NULL,
    key         TEXT NOT NULL,
    -- A hash of the whole request: the same key for another one is a mistake.
    fingerprint BLOB NOT NULL,
    -- The path of what the operation made, if it made something that can be read again.
    location    TEXT,
    status      INTEGER,
    answer      BLOB,
    created_at  INTEGER NOT NULL,
    expires_at  INTEGER NOT NULL,
    PRIMARY KEY (tenant, operation, key)
) STRICT;
CREATE INDEX idempotency_keys_expired ON idempotency_keys (expires_at);
