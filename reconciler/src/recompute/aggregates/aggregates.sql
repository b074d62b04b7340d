-- What the bill of one hour counts, by campaign, ad and minute, with a sketch of the users who made the billable clicks.
--
-- It reads the relations of billing.sql and follows its rules; its rows sum to that statement's, campaign by campaign,
-- and the run checks that they do. Where the bill counts identities, this counts copies, each under its own ad and
-- minute: a duplicate may name another ad, or another minute, than its winner.
--
-- Beside SQL it uses user_sketch(text), the set of texts as a sketch of users. Casting a timestamp to BIGINT gives its
-- epoch milliseconds (DataFusion). Small sides of joins stand first: DataFusion builds its hash table from them.
WITH

copies AS (
    SELECT
        campaign_id,
        ad_id,
        user_id,
        click_id,
        CAST(generation AS BIGINT) * 281474976710656 + log_offset AS position,
        event_time,
        payload_hash,
        event_time >= (SELECT hour_start FROM run) AND event_time < (SELECT hour_end FROM run) AS in_hour
    FROM clicks
),

-- An identity with one copy is its own winner and needs no second look. These are the others, of which a copy lies in
-- the hour: few, unless much is sent twice.
repeated AS (
    SELECT
        campaign_id,
        click_id,
        min(position) AS winner_position,
        min(payload_hash) AS payload_lowest,
        max(payload_hash) AS payload_highest
    FROM copies
    GROUP BY campaign_id, click_id
    HAVING count(*) > 1 AND count(*) FILTER (WHERE in_hour) > 0
),

-- What the winner says, where copies contradict each other (CR-2).
contested AS (
    SELECT
        copies.campaign_id,
        copies.click_id,
        min(copies.position) AS winner_position,
        min(copies.payload_hash) FILTER (WHERE copies.position = repeated.winner_position) AS winner_payload
    FROM repeated
    JOIN copies ON copies.campaign_id = repeated.campaign_id AND copies.click_id = repeated.click_id
    WHERE repeated.payload_lowest <> repeated.payload_highest
    GROUP BY copies.campaign_id, copies.click_id
),

winners AS (
    SELECT campaign_id, click_id, winner_position, payload_lowest AS winner_payload
    FROM repeated
    WHERE payload_lowest = payload_highest
    UNION ALL
    SELECT campaign_id, click_id, winner_position, winner_payload
    FROM contested
),

-- Each copy of the hour: whether it is the winner (CR-1), and whether it contradicts it.
judged AS (
    SELECT
        copies.campaign_id,
        copies.ad_id,
        copies.user_id,
        copies.click_id,
        copies.event_time,
        coalesce(winners.winner_position = copies.position, TRUE) AS is_winner,
        coalesce(winners.winner_payload <> copies.payload_hash, FALSE) AS is_conflict
    FROM winners
    RIGHT JOIN copies ON winners.campaign_id = copies.campaign_id AND winners.click_id = copies.click_id
    WHERE copies.in_hour
),

-- Rulings and prices as in the bill (CR-10, CR-6).
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
        judged.campaign_id,
        judged.ad_id,
        judged.user_id,
        judged.event_time,
        judged.is_winner,
        judged.is_conflict,
        rulings.verdict
    FROM rulings
    RIGHT JOIN judged ON rulings.campaign_id = judged.campaign_id AND rulings.click_id = judged.click_id
),

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

priced AS (
    SELECT
        ruled.campaign_id,
        ruled.ad_id,
        ruled.user_id,
        (CAST(ruled.event_time AS BIGINT) - (SELECT CAST(hour_start AS BIGINT) FROM run)) / 60000 AS minute,
        ruled.is_winner,
        ruled.is_conflict,
        ruled.is_winner AND ruled.verdict IS NULL AS is_billable,
        ruled.verdict,
        prices.cpc_micros
    FROM prices
    RIGHT JOIN ruled
        ON prices.campaign_id = ruled.campaign_id
        AND prices.effective_from <= ruled.event_time
        AND (prices.effective_to IS NULL OR prices.effective_to > ruled.event_time)
)

SELECT
    campaign_id,
    ad_id,
    minute,
    count(*) AS gross,
    count(*) FILTER (WHERE NOT is_winner) AS duplicates,
    count(*) FILTER (WHERE is_conflict) AS conflicts,
    count(*) FILTER (WHERE is_winner AND verdict = 'givt') AS invalid_givt,
    count(*) FILTER (WHERE is_winner AND verdict = 'sivt') AS invalid_sivt,
    count(*) FILTER (WHERE is_billable) AS billable,
    count(*) FILTER (WHERE is_billable AND cpc_micros IS NULL) AS unpriced,
    CAST(coalesce(sum(cpc_micros) FILTER (WHERE is_billable), 0) AS BIGINT) AS amount_micros,
    user_sketch(user_id) FILTER (WHERE is_billable) AS users
FROM priced
GROUP BY campaign_id, ad_id, minute
ORDER BY campaign_id, ad_id, minute
