-- Why the stream's number of an hour and its bill differ: the very copies, each with its cause (G-5).
--
-- S = copies the stream's rules say it counted: not late, and no duplicate within the stream's own horizon.
-- B = billed copies: the winner of its identity (CR-1), in this hour, not ruled invalid.
-- Only copies in S and not in B, or in B and not in S, are listed, so the answer stays small.
--
-- Relations: clicks, verdicts and run as for the bill, and
--   seals     one row a sealed partition: generation, partition, seal_position (the first position not counted)
-- Settings that must stand as literals are written in before the statement runs:
--   {grace_ms} and {stream_dedup_ms}. Casting a timestamp to BIGINT gives its epoch milliseconds (DataFusion).
-- Small sides of joins stand first: DataFusion builds its hash table from them.
WITH

-- Each copy with its position, whether it lies in the hour, and whether it was late for the stream: its partition's
-- watermark had reached the end of its one-minute window and the grace, or its position is at or above the seal.
copies AS (
    SELECT
        clicks.campaign_id,
        clicks.click_id,
        clicks.generation,
        clicks.partition,
        clicks.log_offset,
        CAST(clicks.generation AS BIGINT) * 281474976710656 + clicks.log_offset AS position,
        clicks.event_time,
        clicks.event_time >= (SELECT hour_start FROM run) AND clicks.event_time < (SELECT hour_end FROM run)
            AS in_hour,
        coalesce(
            CAST(clicks.watermark AS BIGINT)
                >= CAST(clicks.event_time AS BIGINT)
                    - ((CAST(clicks.event_time AS BIGINT) % 60000) + 60000) % 60000 + 60000 + {grace_ms},
            FALSE
        )
            OR coalesce(
                CAST(clicks.generation AS BIGINT) * 281474976710656 + clicks.log_offset >= seals.seal_position,
                FALSE
            ) AS is_late
    FROM seals
    RIGHT JOIN clicks ON seals.generation = clicks.generation AND seals.partition = clicks.partition
),

-- Identities ruled invalid, as in the bill (CR-10).
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

-- An identity with one copy, in time and valid, was counted by both paths: it needs no second look. The others do.
suspects AS (
    SELECT campaign_id, click_id
    FROM copies
    GROUP BY campaign_id, click_id
    HAVING count(*) FILTER (WHERE in_hour) > 0
        AND (count(*) > 1 OR count(*) FILTER (WHERE in_hour AND is_late) > 0)
    UNION
    SELECT campaign_id, click_id FROM rulings
),

-- All copies of the suspects. first_position is the winner's. nearest_position is the lowest among copies at most
-- {stream_dedup_ms} ms of event time away, the copy itself included: where it is lower, the stream saw a duplicate.
suspect_copies AS (
    SELECT
        copies.*,
        min(copies.position) OVER (PARTITION BY copies.campaign_id, copies.click_id) AS first_position,
        min(copies.position) OVER (
            PARTITION BY copies.campaign_id, copies.click_id
            ORDER BY CAST(copies.event_time AS BIGINT)
            RANGE BETWEEN {stream_dedup_ms} PRECEDING AND {stream_dedup_ms} FOLLOWING
        ) AS nearest_position
    FROM suspects
    JOIN copies ON copies.campaign_id = suspects.campaign_id AND copies.click_id = suspects.click_id
),

judged AS (
    SELECT
        suspect_copies.*,
        rulings.verdict,
        NOT suspect_copies.is_late AND suspect_copies.nearest_position = suspect_copies.position AS is_counted,
        suspect_copies.first_position = suspect_copies.position AS is_winner
    FROM rulings
    RIGHT JOIN suspect_copies
        ON rulings.campaign_id = suspect_copies.campaign_id AND rulings.click_id = suspect_copies.click_id
    WHERE suspect_copies.in_hour
)

SELECT
    campaign_id,
    click_id,
    generation,
    partition,
    log_offset,
    event_time,
    CASE
        WHEN is_counted AND NOT is_winner THEN 'late_duplicate'
        WHEN is_counted AND verdict IS NOT NULL THEN 'fraud'
        WHEN NOT is_counted AND is_winner AND verdict IS NULL THEN 'late'
        ELSE 'unknown'
    END AS cause
FROM judged
-- counted and not billed, or billed and not counted
WHERE is_counted <> (is_winner AND verdict IS NULL)
