-- The bill of one hour. One statement; it runs unchanged on DataFusion and on DuckDB.
--
-- It reads four relations:
--   clicks    one row a copy: every stored record of every click whose event hour lies in the horizon (the hour billed,
--             and `horizon_hours` before and after it) and whose position is below the run's cutoff
--   verdicts  one row a stored fraud ruling below the run's cutoff
--   rates     prices as recorded in the run's inputs
--   run       one row: hour_start, hour_end (exclusive), read_from, read_to, horizon_hours
--
-- It answers one row a campaign that has copies in the hour, and
--   gross = duplicates + invalid_givt + invalid_sivt + billable.
--
-- Where a join has a small side, that side stands first: DataFusion builds its hash table from it.
WITH

-- Each copy with its position, and whether its own event time lies in the hour billed.
-- A position is one number: generation times 2^48, plus the offset. A later generation is above every earlier one.
copies AS (
    SELECT
        campaign_id,
        click_id,
        CAST(generation AS BIGINT) * 281474976710656 + log_offset AS position,
        event_time,
        payload_hash,
        event_time >= (SELECT hour_start FROM run) AND event_time < (SELECT hour_end FROM run) AS in_hour
    FROM clicks
),

-- CR-1: a click counts once per identity (campaign_id, click_id); the copy with the lowest position is the winner.
-- Grouping finds that position without a join and without sorting. The hash of the payload covers ad, user, publisher
-- and event time: where its lowest and highest value are equal, all copies have the same event time as well.
identities AS (
    SELECT
        campaign_id,
        click_id,
        min(position) AS winner_position,
        min(payload_hash) AS payload_lowest,
        max(payload_hash) AS payload_highest,
        min(event_time) AS event_time,
        count(*) FILTER (WHERE in_hour) AS copies_in_hour
    FROM copies
    GROUP BY campaign_id, click_id
    HAVING count(*) FILTER (WHERE in_hour) > 0 -- only identities with a copy in the hour matter to its bill
),

-- The common case: all copies say the same. They all lie in the hour, so the winner does, and there is no conflict.
uncontested AS (
    SELECT
        campaign_id,
        click_id,
        event_time AS winner_time,
        copies_in_hour,
        CAST(1 AS BIGINT) AS winners_in_hour,
        CAST(0 AS BIGINT) AS conflicts
    FROM identities
    WHERE payload_lowest = payload_highest
),

-- The rare case, copies that contradict each other: fetch these again, and put copies that say the same together. Where
-- the payloads are equal so are the event times: a group lies in the hour or outside it as a whole.
contested_payloads AS (
    SELECT
        copies.campaign_id,
        copies.click_id,
        copies.payload_hash,
        min(copies.event_time) AS event_time,
        count(*) FILTER (WHERE copies.in_hour) AS copies_in_hour,
        count(*) FILTER (WHERE copies.position = identities.winner_position) AS winners
    FROM identities
    JOIN copies ON copies.campaign_id = identities.campaign_id AND copies.click_id = identities.click_id
    WHERE identities.payload_lowest <> identities.payload_highest
    GROUP BY copies.campaign_id, copies.click_id, copies.payload_hash
),

-- CR-2: a duplicate whose payload differs from the winner's is a conflict. The winner may lie outside the hour: then
-- every copy in the hour is a duplicate (CR-3), and the hour has no winner of this identity.
contested AS (
    SELECT
        campaign_id,
        click_id,
        min(event_time) FILTER (WHERE winners = 1) AS winner_time,
        CAST(sum(copies_in_hour) AS BIGINT) AS copies_in_hour,
        count(*) FILTER (WHERE winners = 1 AND copies_in_hour > 0) AS winners_in_hour,
        CAST(coalesce(sum(copies_in_hour) FILTER (WHERE winners = 0), 0) AS BIGINT) AS conflicts
    FROM contested_payloads
    GROUP BY campaign_id, click_id
),

all_identities AS (
    SELECT * FROM uncontested
    UNION ALL
    SELECT * FROM contested
),

-- CR-10: of several verdicts on an identity the one decided last counts, then the one stored last. Verdicts that came
-- more than 24 hours before the hour began are not asked.
ranked_verdicts AS (
    SELECT
        campaign_id,
        click_id,
        verdict,
        row_number() OVER (
            PARTITION BY campaign_id, click_id
            ORDER BY decided_at DESC, CAST(generation AS BIGINT) * 281474976710656 + log_offset DESC
        ) AS newest_first
    FROM verdicts
    WHERE arrival_time >= (SELECT hour_start FROM run) - INTERVAL '24 hours'
),

rulings AS (
    SELECT campaign_id, click_id, verdict
    FROM ranked_verdicts
    WHERE newest_first = 1 AND verdict <> 'valid'
),

ruled AS (
    SELECT
        all_identities.campaign_id,
        all_identities.winner_time,
        all_identities.copies_in_hour,
        all_identities.winners_in_hour,
        all_identities.conflicts,
        rulings.verdict
    FROM rulings
    RIGHT JOIN all_identities
        ON rulings.campaign_id = all_identities.campaign_id AND rulings.click_id = all_identities.click_id
),

-- CR-6: a rate is in force from its effective_from until the campaign's next one. Of rates that take effect at the same
-- moment the one recorded last counts.
recorded_rates AS (
    SELECT
        campaign_id,
        cpc_micros,
        effective_from,
        row_number() OVER (
            PARTITION BY campaign_id, effective_from
            ORDER BY recorded_at DESC, cpc_micros DESC
        ) AS newest_first
    FROM rates
),

prices AS (
    SELECT
        campaign_id,
        cpc_micros,
        effective_from,
        lead(effective_from) OVER (PARTITION BY campaign_id ORDER BY effective_from) AS effective_to
    FROM recorded_rates
    WHERE newest_first = 1
),

-- A campaign's currency never changes, so any of its rates tells it. Without a rate there is none.
currencies AS (
    SELECT campaign_id, max(currency) AS currency
    FROM rates
    GROUP BY campaign_id
),

-- The price is the one in force at the winner's event time.
priced AS (
    SELECT
        ruled.campaign_id,
        ruled.copies_in_hour,
        ruled.winners_in_hour,
        ruled.conflicts,
        ruled.verdict,
        prices.cpc_micros
    FROM prices
    RIGHT JOIN ruled
        ON prices.campaign_id = ruled.campaign_id
        AND prices.effective_from <= ruled.winner_time
        AND (prices.effective_to IS NULL OR prices.effective_to > ruled.winner_time)
),

-- CR-5: the counts. Duplicate goes before invalid: a verdict touches the winner only, and only in the winner's hour.
counts AS (
    SELECT
        campaign_id,
        sum(copies_in_hour) AS gross,
        sum(copies_in_hour - winners_in_hour) AS duplicates,
        sum(conflicts) AS conflicts,
        count(*) FILTER (WHERE winners_in_hour = 1 AND verdict = 'givt') AS invalid_givt,
        count(*) FILTER (WHERE winners_in_hour = 1 AND verdict = 'sivt') AS invalid_sivt,
        count(*) FILTER (WHERE winners_in_hour = 1 AND verdict IS NULL) AS billable,
        count(*) FILTER (WHERE winners_in_hour = 1 AND verdict IS NULL AND cpc_micros IS NULL) AS unpriced,
        sum(cpc_micros) FILTER (WHERE winners_in_hour = 1 AND verdict IS NULL) AS amount_micros
    FROM priced
    GROUP BY campaign_id
)

SELECT
    counts.campaign_id,
    CAST(counts.gross AS BIGINT) AS gross,
    CAST(counts.duplicates AS BIGINT) AS duplicates,
    CAST(counts.conflicts AS BIGINT) AS conflicts,
    CAST(counts.invalid_givt AS BIGINT) AS invalid_givt,
    CAST(counts.invalid_sivt AS BIGINT) AS invalid_sivt,
    CAST(counts.billable AS BIGINT) AS billable,
    CAST(counts.unpriced AS BIGINT) AS unpriced,
    CAST(coalesce(counts.amount_micros, 0) AS BIGINT) AS amount_micros,
    currencies.currency
FROM currencies
RIGHT JOIN counts ON currencies.campaign_id = counts.campaign_id
ORDER BY counts.campaign_id
