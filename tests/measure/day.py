"""Measures both paths over one whole day at full size: the nightly close, the replay, and the comparison of the two.

Starts `twice up` in the release profile over a temporary folder, sends a day of clicks beside it, closes the day by the
nightly close (horizon of 24 hours), counts it by both paths over the same recorded inputs with `twice compare`, audits an
hour, replays the day beside live clicks, and prints the figures. Exit status 0 only if no row differs and each path's
process stayed within its memory limit.
"""

import argparse
import datetime
import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

from ingest import build, bytes_below, peak_memory_mib, start

DAY = datetime.timedelta(days=1)
BYTES_A_CLICK = 250  # log, windows, archive and ledger together, as a day of 100 million took them
REAL_TIME = 200_000  # clicks a second: what the product is to take


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clicks", type=int, default=100_000_000)
    parser.add_argument("--rate", type=int, default=200_000, help="clicks a second offered")
    parser.add_argument("--campaigns", type=int, default=10_000)
    parser.add_argument("--memory-mib", type=int, default=1024, help="limit of each path's process")
    parser.add_argument("--live-rate", type=int, default=20_000, help="live clicks a second beside the replay")
    parser.add_argument("--report", type=pathlib.Path, help="keep the comparison's HTML here")
    arguments = parser.parse_args()
    disk = shutil.disk_usage(tempfile.gettempdir())
    needed = arguments.clicks * BYTES_A_CLICK + disk.total // 20
    if disk.free < needed:
        sys.exit(f"{needed >> 30} GiB must be free in {tempfile.gettempdir()}, of which the node keeps a twentieth of the disk")
    twice, loadgen = build()
    with tempfile.TemporaryDirectory(prefix="count-twice-measure-") as name:
        folder = pathlib.Path(name)
        limit = str(arguments.memory_mib << 20)
        flags = ["--reconcile-schedule", "false", "--log-bytes-max", str(2 << 30)]
        flags += ["--recompute-memory-bytes-max", limit, "--replay-memory-bytes-max", limit]
        started = lambda: start(twice, folder, flags)  # noqa: E731, each start is a new count of freshness
        day = running(started, lambda node, server: measure(arguments, twice, loadgen, node, server, folder))
        alone = running(started, lambda node, server: live(arguments, loadgen, server, folder, "alone"))
        replaying = [twice, "replay", "--from", f"{day:%Y-%m-%dT%H}", "--to", f"{day + DAY:%Y-%m-%dT%H}", "--server"]
        beside = running(
            started, lambda node, server: live(arguments, loadgen, server, folder, "beside", replaying + [server])
        )
        print(f"arrival to visible, p50 and p99, at {arguments.live_rate:,}/s: {alone}; beside a replay of the day: {beside}")


def running(started, work):
    """Does `work` with a node of its own start, and stops the node."""
    node, server = started()
    try:
        return work(node, server)
    finally:
        node.send_signal(signal.SIGTERM)
        node.wait(timeout=300)


def live(arguments, loadgen, server, folder, name, beside=None):
    """Sends clicks of now, with another command beside them if one is given, and returns how fresh the numbers were."""
    load = [loadgen, "run", "--target", server, "--rate", arguments.live_rate, "--duration", "15s", "--batch", 200]
    load += ["--campaigns", 1000, "--seed", len(name), "--ledger", folder / f"{name}.parquet"]
    other = subprocess.Popen(list(map(str, beside))) if beside else None
    timed(load)
    with urllib.request.urlopen(server + "/metrics", timeout=30) as answer:
        metrics = answer.read().decode()
    if other:
        was_busy = other.poll() is None
        print("the replay outlasted the load" if was_busy else "the replay ended before the load did")
        if other.wait() != 0:
            sys.exit("the replay found a difference or could not run")
    pattern = r'twice_stream_freshness_arrival_seconds\{[^}]*quantile="(0\.5|0\.99)"[^}]*\} ([0-9.e+-]+)'
    found = dict(re.findall(pattern, metrics))
    return " and ".join(f"{float(found[quantile]):.2f} s" for quantile in ("0.5", "0.99"))


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
    following = day + DAY
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
    return day


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
