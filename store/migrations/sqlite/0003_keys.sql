-- API keys (G-8). Of a key's secret only the hash is here; a revoked key stays, so that the log of actions keeps its meaning.
CREATE TABLE api_keys (
    key_id           TEXT    NOT NULL PRIMARY KEY,
    name             TEXT    NOT NULL,
    scopes_json      TEXT    NOT NULL,
    -- null: every campaign
    campaigns_json   TEXT,
    tier             TEXT    NOT NULL CHECK (tier IN ('standard', 'premium')),
    secret_sha256    BLOB    NOT NULL CHECK (length(secret_sha256) = 32),
    created_at_ms    INTEGER NOT NULL,
    expires_at_ms    INTEGER,
    revoked_at_ms    INTEGER,
    last_used_at_ms  INTEGER
) STRICT, WITHOUT ROWID;

CREATE TRIGGER api_keys_are_not_deleted BEFORE DELETE ON api_keys
BEGIN SELECT RAISE(ABORT, 'a key is revoked, never deleted'); END;
CREATE TRIGGER api_keys_stay_revoked BEFORE UPDATE OF revoked_at_ms ON api_keys WHEN OLD.revoked_at_ms IS NOT NULL
BEGIN SELECT RAISE(ABORT, 'a revoked key stays revoked'); END;

-- What administrators asked for: one row before it is done, with status null, and one with the answer's status.
CREATE TABLE admin_actions (
    id               INTEGER PRIMARY KEY,
    at_ms            INTEGER NOT NULL,
    key_id           TEXT    NOT NULL,
    address          TEXT,
    request_id       TEXT    NOT NULL,
    action           TEXT    NOT NULL,
    status           INTEGER
) STRICT;

CREATE TRIGGER admin_actions_are_not_updated BEFORE UPDATE ON admin_actions
BEGIN SELECT RAISE(ABORT, 'the log of actions only grows'); END;
CREATE TRIGGER admin_actions_are_not_deleted BEFORE DELETE ON admin_actions
BEGIN SELECT RAISE(ABORT, 'the log of actions only grows'); END;
