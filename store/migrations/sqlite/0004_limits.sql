-- Versions of the rate limits. Append-only: a version never changes, and what became of it is appended. A version
-- without an outcome is in its canary; the greatest one that was promoted and not reverted is in force.
CREATE TABLE limit_versions (
    version          INTEGER NOT NULL PRIMARY KEY CHECK (version > 0),
    created_at_ms    INTEGER NOT NULL,
    created_by       TEXT    NOT NULL,
    note             TEXT    NOT NULL,
    share_percent    INTEGER NOT NULL CHECK (share_percent BETWEEN 0 AND 100),
    canary_ms        INTEGER NOT NULL CHECK (canary_ms >= 0)
) STRICT;

CREATE TABLE limit_tiers (
    version          INTEGER NOT NULL REFERENCES limit_versions (version),
    tier             TEXT    NOT NULL CHECK (tier IN ('standard', 'premium')),
    floor            INTEGER NOT NULL CHECK (floor > 0),
    ceiling          INTEGER NOT NULL CHECK (ceiling >= floor),
    burst            INTEGER NOT NULL CHECK (burst > 0),
    PRIMARY KEY (version, tier)
) STRICT, WITHOUT ROWID;

CREATE TABLE limit_outcomes (
    version          INTEGER NOT NULL REFERENCES limit_versions (version),
    outcome          TEXT    NOT NULL CHECK (outcome IN ('promoted', 'rolled_back', 'reverted')),
    at_ms            INTEGER NOT NULL,
    decided_by       TEXT    NOT NULL,
    detail           TEXT    NOT NULL,
    canary_requests  INTEGER NOT NULL CHECK (canary_requests >= 0),
    canary_over      INTEGER NOT NULL CHECK (canary_over >= 0),
    rest_requests    INTEGER NOT NULL CHECK (rest_requests >= 0),
    rest_over        INTEGER NOT NULL CHECK (rest_over >= 0),
    PRIMARY KEY (version, outcome)
) STRICT, WITHOUT ROWID;
