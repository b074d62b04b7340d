"""Measures both paths over one whole day at full size: the nightly close, the replay, and the comparison of the two.

Starts `twice up` in the release profile over a temporary folder, sends a day of clicks beside it, closes the day by the
nightly close (horizon of 24 hours), counts it by both paths over the same recorded inputs with `twice compare`, audits an
hour, and prints the figures. Exit status 0 only if no row differs, the bill is what was sent, and each path's process
stayed within its memory limit.
"""

import argparse
import datetime
import json
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

from ingest import build, bytes_below, peak_memory_mib, start

REAL_TIME = 200_000  # clicks a second: what the product is to take


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clicks", type=int, default=100_000_000)
    parser.add_argument("--rate", type=int, default=200_000, help="clicks a second offered")
    parser.add_argument("--campaigns", type=int, default=10_000)
    parser.add_argument("--memory-mib", type=int, default=1024, help="limit of each path's process")
    parser.add_argument("--report", type=pathlib.Path, help="keep the comparison's HTML here")
    arguments = parser.parse_args()
    twice, loadgen = build()
    with tempfile.TemporaryDirectory(prefix="count-twice-measure-") as name:
        folder = pathlib.Path(name)
        limit = str(arguments.memory_mib << 20)
        flags = ["--reconcile-schedule", "false", "--log-bytes-max", str(2 << 30)]
        flags += ["--recompute-memory-bytes-max", limit, "--replay-memory-bytes-max", limit]
        node, server = start(twice, folder, flags)
        try:
            measure(arguments, twice, loadgen, node, server, folder)
        finally:
            node.send_signal(signal.SIGTERM)
            node.wait(timeout=300)


def timed(command, allowed=(0,)):
    started = time.monotonic()
    status = subprocess.run(list(map(str, command))).returncode
    if status not in allowed:
        sys.exit(f"{command[1]} ended with {status}")
    return time.monotonic() - started


def measure(arguments, twice, loadgen, node, server, folder):
    midnight = datetime.datetime.now(datetime.timezone.utc).replace(hour=0, minute=0, second=0, microsecond=0)
    day = midnight - datetime.timedelta(days=2)
    seconds = max(arguments.clicks // arguments.rate, 1)
    load = [loadgen, "run", "--target", server, "--rate", arguments.rate, "--duration", f"{seconds}s", "--batch", 500]
    load += ["--campaigns", arguments.campaigns, "--duplicates", "0.6%", "--late", "0.3%", "--seed", 7]
    load += ["--event-start", f"{day:%Y-%m-%dT%H}", "--event-span", f"{24 * 3600}s", "--ledger", folder / "ledger.parquet"]
    sent_s = timed(load)
    closed_s = timed([twice, "reconcile", "--day", f"{day:%Y-%m-%d}", "--server", server])
    following = day + datetime.timedelta(days=1)
    report = folder / "report.json"
    compare = [twice, "compare", "--from", f"{day:%Y-%m-%dT%H}", "--to", f"{following:%Y-%m-%dT%H}", "--server", server]
    timed(compare + ["--out", report])
    if arguments.report:
        timed(compare + ["--out", arguments.report])
    audited_s = timed([twice, "audit", "--hour", f"{day:%Y-%m-%dT}12", "--server", server])
    archive_bytes = bytes_below(folder / "data/archive/clicks", ".parquet", lambda path: path.stat().st_size)
    print(f"sent                        {seconds * arguments.rate:>14,} clicks in {sent_s:.0f} s")
    print(f"archive, bytes a click      {archive_bytes / (seconds * arguments.rate):>14.1f}")
    print(f"nightly close of the day    {closed_s:>14.1f} s")
    print(f"audit of one hour           {audited_s:>14.1f} s")
    print(f"peak memory of the node     {peak_memory_mib(node.pid):>14,} MiB")
    costs(json.loads(report.read_text()), arguments.memory_mib)


def costs(comparison, memory_mib):
    over = []
    for path in ("lambda", "kappa"):
        cost = comparison["costs"][path]
        rate = cost["clicks_per_second"]
        peak_mib = cost["rss_peak_bytes"] >> 20
        print(
            f"{path:<8} {cost['wall_seconds']:>10.1f} s {cost['cpu_seconds']:>10.1f} CPU s {peak_mib:>7,} MiB "
            f"{rate:>14,.0f} clicks/s  {rate / REAL_TIME:.1f}x of {REAL_TIME:,}/s"
        )
        if peak_mib > memory_mib:
            over.append(path)
    print(comparison["conclusion"])
    if over:
        sys.exit(f"more than {memory_mib} MiB: {', '.join(over)}")


if __name__ == "__main__":
    main()
