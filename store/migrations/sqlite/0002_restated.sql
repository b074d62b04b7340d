-- The versions that can be corrections, by run: a nightly close writes a version of every row of a day, and hardly any of
-- them changes a count. Those have the reason `close`, which says that nothing did.
CREATE INDEX billing_rows_restated ON billing_rows (run_id, campaign_id)
    WHERE reason <> 'first' AND reason <> 'close';
