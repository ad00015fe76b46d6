-- Idempotency keys: what a key was used for, and how that was answered. Its twin is
-- migrations/sqlite/0010_idempotency_keys.sql.
--
-- The row is inserted by the transaction of the operation it stands for; the answer is added when it is known.

CREATE TABLE idempotency_keys (
    tenant      uuid NOT NULL,
    -- Method and path template, as in POST /threads/{thread_id}/runs.
    operation   text COLLATE "C" NOT NULL,
    key         text COLLATE "C" NOT NULL,
    -- A hash of the whole request: the same key for another one is a mistake.
    fingerprint bytea NOT NULL,
    -- The path of what the operation made, if it made something that can be read again.
    location    text,
    status      integer,
    answer      bytea,
    created_at  bigint NOT NULL,
    expires_at  bigint NOT NULL,
    PRIMARY KEY (tenant, operation, key)
);
CREATE INDEX idempotency_keys_expired ON idempotency_keys (expires_at);
