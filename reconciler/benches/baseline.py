"""The billing statement on DuckDB: the named baseline of the recompute benchmark, and an auditor's second engine.

Reads {"sql", "files", "rates", "threads", "memory_mib"} as JSON, answers seconds, peak memory and totals.
"""
import json
import resource
import sys
import time

import duckdb

request = json.load(sys.stdin)
base = duckdb.connect()
base.execute(f"SET threads = {request['threads']}")
base.execute(f"SET memory_limit = '{max(request['memory_mib'], 1024)}MiB'")
base.execute("SET TimeZone = 'UTC'")
base.execute("CREATE VIEW clicks AS SELECT * FROM read_parquet([{}], hive_partitioning = false)".format(
    ", ".join("'" + path.replace("'", "''") + "'" for path in request["files"])))
base.execute("""CREATE TABLE verdicts (campaign_id VARCHAR, click_id UUID, verdict VARCHAR, decided_at TIMESTAMPTZ,
    arrival_time TIMESTAMPTZ, generation INTEGER, log_offset BIGINT)""")
base.execute("""CREATE TABLE rates (campaign_id VARCHAR, currency VARCHAR, cpc_micros BIGINT,
    effective_from TIMESTAMPTZ, recorded_at TIMESTAMPTZ)""")
hour = "TIMESTAMPTZ '2025-01-15 12:00:00Z'"
ids = [campaign for campaign, _ in request["rates"]]
prices = [price for _, price in request["rates"]]
base.execute(f"INSERT INTO rates SELECT unnest(?), 'USD', unnest(?), {hour}, {hour}", [ids, prices])
base.execute(f"""CREATE VIEW run AS SELECT {hour} AS hour_start, {hour} + INTERVAL 1 HOUR AS hour_end,
    {hour} - INTERVAL 1 HOUR AS read_from, {hour} + INTERVAL 2 HOUR AS read_to, 1 AS horizon_hours""")
started = time.perf_counter()
rows = base.execute(request["sql"]).fetchall()
seconds = time.perf_counter() - started
print(json.dumps({
    "seconds": seconds,
    "rss_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    "gross": sum(row[1] for row in rows),
    "billable": sum(row[6] for row in rows),
    "amount": sum(row[8] for row in rows),
}))
