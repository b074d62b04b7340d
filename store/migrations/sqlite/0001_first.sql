-- Billing, campaigns, modes and imports. Hours are counted from 1970 in UTC; times end in their unit; money is in
-- millionths of the currency's unit. Rows of billing_rows, runs, divergence, rates and budgets are never changed.

-- The last moment that is settled: the newest commit, or the newest `as_of` answered, whichever is later (G-6).
CREATE TABLE commit_clock (
    id               INTEGER PRIMARY KEY CHECK (id = 1),
    settled_at_us    INTEGER NOT NULL
) STRICT;
INSERT INTO commit_clock (id, settled_at_us) VALUES (1, -9223372036854775808);

-- One computation of one hour by one path, committed or identical.
CREATE TABLE runs (
    run_id           TEXT    NOT NULL PRIMARY KEY,
    path             TEXT    NOT NULL CHECK (path IN ('lambda', 'kappa')),
    hour             INTEGER NOT NULL,
    seq              INTEGER NOT NULL,
    status           TEXT    NOT NULL CHECK (status IN ('reconciled', 'final')),
    outcome          TEXT    NOT NULL CHECK (outcome IN ('committed', 'identical')),
    rows_written     INTEGER NOT NULL,
    started_at_ms    INTEGER NOT NULL,
    committed_at_us  INTEGER NOT NULL UNIQUE,
    inputs_sha256    TEXT    NOT NULL,
    cutoffs_json     TEXT    NOT NULL,
    UNIQUE (hour, path, seq)
) STRICT, WITHOUT ROWID;

-- The reconciled mark: hours that have a committed run of a path, from the first one on.
CREATE TABLE billed_hours (
    hour             INTEGER NOT NULL,
    path             TEXT    NOT NULL,
    committed_at_us  INTEGER NOT NULL,
    run_id           TEXT    NOT NULL REFERENCES runs (run_id),
    PRIMARY KEY (hour, path)
) STRICT, WITHOUT ROWID;

-- Every version of every billing row (CR-5). The key is the order in which rows are listed.
CREATE TABLE billing_rows (
    hour             INTEGER NOT NULL,
    campaign_id      TEXT    NOT NULL,
    path             TEXT    NOT NULL CHECK (path IN ('lambda', 'kappa')),
    version          INTEGER NOT NULL CHECK (version >= 1),
    status           TEXT    NOT NULL CHECK (status IN ('reconciled', 'final')),
    gross            INTEGER NOT NULL CHECK (gross >= 0),
    duplicates       INTEGER NOT NULL CHECK (duplicates >= 0),
    conflicts        INTEGER NOT NULL CHECK (conflicts >= 0),
    invalid_givt     INTEGER NOT NULL CHECK (invalid_givt >= 0),
    invalid_sivt     INTEGER NOT NULL CHECK (invalid_sivt >= 0),
    billable         INTEGER NOT NULL CHECK (billable >= 0),
    unpriced         INTEGER NOT NULL CHECK (unpriced >= 0),
    amount_micros    INTEGER NOT NULL,
    currency         TEXT,
    digest           TEXT    NOT NULL,
    run_id           TEXT    NOT NULL REFERENCES runs (run_id),
    reason           TEXT    NOT NULL,
    committed_at_us  INTEGER NOT NULL,
    PRIMARY KEY (hour, campaign_id, path, version),
    CHECK (gross = duplicates + invalid_givt + invalid_sivt + billable)
) STRICT, WITHOUT ROWID;

CREATE INDEX billing_rows_by_campaign ON billing_rows (campaign_id, hour, path, version);
CREATE INDEX billing_rows_by_run ON billing_rows (run_id, campaign_id);

-- A published version never changes (G-6), whoever holds the file.
CREATE TRIGGER billing_rows_are_not_updated BEFORE UPDATE ON billing_rows
BEGIN SELECT RAISE(ABORT, 'a published version never changes'); END;
CREATE TRIGGER billing_rows_are_not_deleted BEFORE DELETE ON billing_rows
BEGIN SELECT RAISE(ABORT, 'a published version never changes'); END;

-- Stream against bill, by cause (G-5), as each run found it.
CREATE TABLE divergence (
    run_id           TEXT    NOT NULL REFERENCES runs (run_id),
    campaign_id      TEXT    NOT NULL,
    version          INTEGER NOT NULL,
    stream           TEXT    NOT NULL CHECK (stream IN ('complete', 'incomplete', 'unsealed')),
    preliminary      INTEGER,
    billed           INTEGER NOT NULL,
    late             INTEGER,
    late_duplicate   INTEGER,
    fraud            INTEGER,
    unexplained      INTEGER,
    PRIMARY KEY (run_id, campaign_id)
) STRICT, WITHOUT ROWID;

-- Highest cutoff of any run, per partition (G-3).
CREATE TABLE cutoffs (
    topic                 TEXT    NOT NULL,
    generation            INTEGER NOT NULL,
    partition             INTEGER NOT NULL,
    end_offset            INTEGER NOT NULL,
    head_manifest_sha256  TEXT,
    PRIMARY KEY (topic, generation, partition)
) STRICT, WITHOUT ROWID;

-- Path in force of billed hours: the first commit of an hour writes one row, a change of mode another.
CREATE TABLE hour_modes (
    hour             INTEGER NOT NULL,
    committed_at_us  INTEGER NOT NULL,
    path             TEXT    NOT NULL CHECK (path IN ('lambda', 'kappa')),
    PRIMARY KEY (hour, committed_at_us)
) STRICT, WITHOUT ROWID;

-- Modes set for hours not yet billed; append-only: of those not after an hour, the one set last counts.
CREATE TABLE mode_settings (
    id               INTEGER PRIMARY KEY,
    from_hour        INTEGER NOT NULL,
    path             TEXT    NOT NULL CHECK (path IN ('lambda', 'kappa')),
    recorded_at_ms   INTEGER NOT NULL
) STRICT;

CREATE TABLE campaigns (
    campaign_id      TEXT    NOT NULL PRIMARY KEY,
    name             TEXT    NOT NULL,
    currency         TEXT    NOT NULL
) STRICT, WITHOUT ROWID;

-- Append-only (CR-6): the latest effective_from, then recorded_at, counts.
CREATE TABLE rates (
    campaign_id       TEXT    NOT NULL REFERENCES campaigns (campaign_id),
    effective_from_ms INTEGER NOT NULL,
    recorded_at_ms    INTEGER NOT NULL,
    cpc_micros        INTEGER NOT NULL CHECK (cpc_micros >= 0),
    PRIMARY KEY (campaign_id, effective_from_ms, recorded_at_ms)
) STRICT, WITHOUT ROWID;

-- Append-only: the latest recorded counts; null lifts the budget.
CREATE TABLE budgets (
    campaign_id          TEXT    NOT NULL REFERENCES campaigns (campaign_id),
    recorded_at_ms       INTEGER NOT NULL,
    daily_budget_micros  INTEGER CHECK (daily_budget_micros >= 0),
    PRIMARY KEY (campaign_id, recorded_at_ms)
) STRICT, WITHOUT ROWID;

CREATE TABLE imports (
    import_id        TEXT    NOT NULL PRIMARY KEY,
    sha256           TEXT    NOT NULL,
    announced_at_ms  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE import_hours (
    hour             INTEGER NOT NULL,
    import_id        TEXT    NOT NULL REFERENCES imports (import_id),
    PRIMARY KEY (hour, import_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX import_hours_by_import ON import_hours (import_id, hour);
