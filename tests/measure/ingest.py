"""Measures ingest at full size: clicks a second acknowledged through `twice up` with everything on, and bytes a click.

Builds in the release profile, starts a node over a temporary folder, runs the load generator beside it, closes the
hours, verifies every row, and prints the figures. Exit status 0 only if the bill is exactly what was sent.
"""

import argparse
import json
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
READY_LIMIT_S = 60


def build():
    """Builds the programs and returns their paths, as cargo tells them."""
    command = ["cargo", "build", "--release", "-p", "twice", "-p", "twice-loadgen"]
    subprocess.run(command, cwd=ROOT, check=True)
    told = subprocess.run(command + ["--message-format=json"], cwd=ROOT, check=True, capture_output=True, text=True)
    messages = [json.loads(line) for line in told.stdout.splitlines()]
    paths = {m["target"]["name"]: m["executable"] for m in messages if m.get("executable")}
    return paths["twice"], paths["twice-loadgen"]


def start(twice, folder, flags=()):
    """Starts a node with further flags and returns the process and its address, once it is ready."""
    log = open(folder / "node.log", "w")
    command = [twice, "up", "--data-dir", folder / "data", "--listen", "127.0.0.1:0", "--insecure-no-auth", *flags]
    node = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + READY_LIMIT_S
    while time.monotonic() < deadline and node.poll() is None:
        found = re.search(r"listening on (http://[0-9.:]+)", (folder / "node.log").read_text())
        if found:
            try:
                urllib.request.urlopen(found[1] + "/readyz", timeout=5).close()
                return node, found[1]
            except OSError:
                pass
        time.sleep(0.05)
    node.kill()
    sys.exit("the node did not get ready:\n" + (folder / "node.log").read_text()[-4000:])


def used_bytes(path):
    """Returns the bytes up to the last one that is not zero: segments are preallocated."""
    data = path.read_bytes()
    return len(data.rstrip(b"\0"))


def bytes_below(folder, suffix, measure):
    return sum(measure(path) for path in folder.rglob("*" + suffix))


def peak_memory_mib(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) // 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=int, default=50_000, help="clicks a second offered")
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--campaigns", type=int, default=10_000)
    arguments = parser.parse_args()
    twice, loadgen = build()
    with tempfile.TemporaryDirectory(prefix="count-twice-measure-") as name:
        folder = pathlib.Path(name)
        node, server = start(twice, folder)
        try:
            measure(arguments, loadgen, node, server, folder)
        finally:
            node.send_signal(signal.SIGTERM)
            node.wait(timeout=120)


def measure(arguments, loadgen, node, server, folder):
    ledger = folder / "ledger.parquet"
    load = [loadgen, "run", "--target", server, "--rate", str(arguments.rate), "--duration", f"{arguments.seconds}s"]
    load += ["--campaigns", str(arguments.campaigns), "--zipf", "1.05", "--duplicates", "0.6%", "--late", "0.3%"]
    load += ["--seed", "7", "--batch", "200", "--ledger", ledger]
    subprocess.run(load, check=True)
    started = time.monotonic()
    verify = [loadgen, "verify", "--target", server, "--ledger", ledger, "--reconcile", "--exclusive"]
    verified = subprocess.run(verify)
    closed_s = time.monotonic() - started
    clicks = arguments.rate * arguments.seconds
    log_bytes = bytes_below(folder / "data/log/ad-clicks", ".seg", used_bytes)
    archive_bytes = bytes_below(folder / "data/archive/clicks", ".parquet", lambda path: path.stat().st_size)
    print(f"clicks                  {clicks:>14,}")
    print(f"log, bytes a click      {log_bytes / clicks:>14.1f}")
    print(f"archive, bytes a click  {archive_bytes / clicks:>14.1f}")
    print(f"closed and verified in  {closed_s:>14.1f} s")
    print(f"peak memory of the node {peak_memory_mib(node.pid):>14,} MiB")
    if verified.returncode != 0:
        sys.exit(verified.returncode)


if __name__ == "__main__":
    main()
