-- Decisions about daily budgets (CR-11), and what they depend on beside rates and budgets. Days are counted from 1970 in
-- UTC. Rows of strictness and budget_decisions are never changed.

-- Whether a campaign stops while its spend is not known; the latest recorded counts, none means it does not.
CREATE TABLE strictness (
    campaign_id      TEXT    NOT NULL REFERENCES campaigns (campaign_id),
    recorded_at_ms   INTEGER NOT NULL,
    strict           INTEGER NOT NULL CHECK (strict IN (0, 1)),
    PRIMARY KEY (campaign_id, recorded_at_ms)
) STRICT, WITHOUT ROWID;

-- Changes of state, numbered per campaign and day; `sequence` orders those of all campaigns.
CREATE TABLE budget_decisions (
    sequence         INTEGER PRIMARY KEY AUTOINCREMENT,
    campaign_id      TEXT    NOT NULL,
    day              INTEGER NOT NULL,
    number           INTEGER NOT NULL CHECK (number >= 1),
    state            TEXT    NOT NULL CHECK (state IN ('serving', 'exhausted', 'unknown')),
    cause            TEXT    NOT NULL
        CHECK (cause IN ('day_began', 'stream', 'reconciled', 'budget_changed', 'lag')),
    spend_micros     INTEGER NOT NULL,
    budget_micros    INTEGER,
    decided_at_ms    INTEGER NOT NULL,
    generation       INTEGER,
    log_offset       INTEGER,
    event_time_ms    INTEGER,
    UNIQUE (campaign_id, day, number)
) STRICT;

CREATE INDEX budget_decisions_by_day ON budget_decisions (day, campaign_id, number);

-- What was told once is not taken back, whoever holds the file.
CREATE TRIGGER budget_decisions_are_not_updated BEFORE UPDATE ON budget_decisions
BEGIN SELECT RAISE(ABORT, 'a decision never changes'); END;
CREATE TRIGGER budget_decisions_are_not_deleted BEFORE DELETE ON budget_decisions
BEGIN SELECT RAISE(ABORT, 'a decision never changes'); END;

-- Decisions up to this sequence are in the hot log's topic; those above wait to be published.
CREATE TABLE budget_published (
    id               INTEGER PRIMARY KEY CHECK (id = 1),
    sequence         INTEGER NOT NULL
) STRICT;

-- What changed lately is looked for every second.
CREATE INDEX budgets_by_time ON budgets (recorded_at_ms);
CREATE INDEX rates_by_time ON rates (recorded_at_ms);
CREATE INDEX strictness_by_time ON strictness (recorded_at_ms);
