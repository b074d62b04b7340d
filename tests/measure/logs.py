"""Compares the embedded log with Fluvio: throughput, acknowledge latency and CPU of `twice up` at several offered rates.

Prints a Markdown table. Fluvio is a running cluster; its processes are named so that their CPU can be counted too:

    python3 tests/measure/logs.py --fluvio 127.0.0.1:9003 --watch spu=4711 --watch sc=4710
"""

import argparse
import os
import pathlib
import re
import signal
import subprocess
import tempfile
import time

from ingest import build, start

TICK = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid):
    """Returns the CPU time a process has taken, user and system, all threads."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def told(text, label):
    found = re.search(rf"^\s*{re.escape(label)}\s+(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else "?"


def measure(programs, flags, rate, seconds, watched):
    """Runs one load against a new node and returns a row of the table."""
    twice, loadgen = programs
    with tempfile.TemporaryDirectory(prefix="count-twice-measure-") as name:
        folder = pathlib.Path(name)
        node, server = start(twice, folder, flags)
        try:
            before = {label: cpu_seconds(pid) for label, pid in watched.items()} | {"node": cpu_seconds(node.pid)}
            load = [loadgen, "run", "--target", server, "--rate", str(rate), "--duration", f"{seconds}s"]
            load += ["--campaigns", "10000", "--zipf", "1.05", "--duplicates", "0.6%", "--late", "0.3%", "--seed", "7"]
            load += ["--batch", "200", "--ledger", folder / "ledger.parquet"]
            ran = subprocess.run(load, check=True, capture_output=True, text=True)
            after = {label: cpu_seconds(pid) for label, pid in watched.items()} | {"node": cpu_seconds(node.pid)}
        finally:
            node.send_signal(signal.SIGTERM)
            node.wait(timeout=120)
    said = ran.stdout + ran.stderr
    clicks = rate * seconds / 1e6
    cpu = {label: (after[label] - before[label]) / clicks for label in after}
    return [told(said, label) for label in ("acknowledged/s", "latency p50", "latency p99")], cpu


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fluvio", metavar="HOST:PORT", help="a running cluster; without it the embedded log alone")
    parser.add_argument("--watch", action="append", default=[], metavar="NAME=PID", help="a server process of the cluster")
    parser.add_argument("--rates", default="20000,50000,100000,200000", help="clicks a second offered")
    parser.add_argument("--seconds", type=int, default=15)
    arguments = parser.parse_args()
    watched = {name: int(pid) for name, pid in (item.split("=") for item in arguments.watch)}
    programs = build()
    print("| log | offered/s | acknowledged/s | p50 | p99 | CPU of the node, s a million clicks | CPU of Fluvio |")
    print("|---|---|---|---|---|---|---|")
    for rate in (int(text) for text in arguments.rates.split(",")):
        rows = [("embedded", [], {})]
        if arguments.fluvio:
            prefix = f"measure-{int(time.time())}-"
            rows.append(("Fluvio", ["--log", "fluvio", "--fluvio-endpoint", arguments.fluvio, "--fluvio-topic-prefix", prefix], watched))
        for log, flags, processes in rows:
            told_of, cpu = measure(programs, flags, rate, arguments.seconds, processes)
            servers = ", ".join(f"{name} {cpu[name]:.1f}" for name in processes) or "-"
            print(f"| {log} | {rate:,} | {' | '.join(told_of)} | {cpu['node']:.1f} | {servers} |", flush=True)


if __name__ == "__main__":
    main()
