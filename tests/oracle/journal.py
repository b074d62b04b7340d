#!/usr/bin/env python3
"""Recounts a scenario from its journal: what was sent, in order, and which hours were counted when.

A journal is JSON lines. Each line is one of
    {"copy": {campaign_id, click_id, ad_id, user_id, publisher_id, event_time}}    a click was stored
    {"verdict": {campaign_id, click_id, verdict, decided_at, arrival_time}}        a ruling was stored
    {"rate": {campaign_id, cpc_micros, currency, effective_from}}                  a price was recorded
    {"run": {hours: ["2025-01-15T12", ...], horizon_hours: N, path: "lambda"}}     these hours were counted
The bill of an hour is what its path's last run must have made of everything that stands above it in the journal.
Counting itself is `oracle.bill`, written from the counting rules alone.

    journal.py check --journal F --billing FILE [--path kappa]

Exit status: 0 agreed, 1 a difference, 2 could not run.
"""

import argparse
import collections
import json
import pathlib
import sys

import oracle


def read(path):
    """Returns (copies, verdicts, rates, runs); runs by (path, hour) hold how much of each there was, and the horizon."""
    copies, verdicts, rates, runs = [], [], [], {}
    for number, line in enumerate(pathlib.Path(path).read_text().splitlines(), start=1):
        event = json.loads(line)
        if "copy" in event:
            copies.append(copy_of(event["copy"], number))
        elif "verdict" in event:
            verdicts.append(event["verdict"])
        elif "rate" in event:
            rates.append(event["rate"])
        elif "run" in event:
            run = event["run"]
            for hour in run["hours"]:
                state = (len(copies), len(verdicts), len(rates), run["horizon_hours"])
                runs[run["path"], oracle.hour_number(hour)] = state
        else:
            raise oracle.CannotRun(f"{path}:{number}: no event of a journal: {line[:100]}")
    return copies, verdicts, rates, runs


def copy_of(click, number):
    event_time = oracle.epoch_ms(click["event_time"])
    payload = (click["ad_id"], click["user_id"], click["publisher_id"], event_time)
    return oracle.Copy(click["campaign_id"], oracle.uuid_bytes(click["click_id"]), payload, event_time, (0, number))


def expected_rows(copies, verdicts, rates, runs, path):
    """Returns {(hour, campaign_id): row} of every hour the path has counted."""
    hours_by_state = collections.defaultdict(set)
    for (run_path, hour), state in runs.items():
        if run_path == path:
            hours_by_state[state].add(hour)
    expected = {}
    for (copy_count, verdict_count, rate_count, horizon), hours in hours_by_state.items():
        known = sorted(copies[:copy_count], key=lambda copy: (copy.campaign_id, copy.click_id, copy.order))
        bill = oracle.bill(
            known, oracle.Rates(rates[:rate_count]), horizon, oracle.Verdicts(verdicts[:verdict_count])
        )
        expected.update({key: row for key, row in bill.items() if key[0] in hours})
    return expected


def check(options):
    copies, verdicts, rates, runs = read(options.journal)
    expected = expected_rows(copies, verdicts, rates, runs, options.path)
    if not expected:
        raise oracle.CannotRun(f"the journal has no run of {options.path} that counted anything")
    saved = json.loads(pathlib.Path(options.billing).read_text())
    rows = saved["rows"] if isinstance(saved, dict) else saved
    checked, differences = oracle.compare(expected, rows, oracle.Rates(rates), exclusive=True)
    for hour, campaign_id, field, wanted, got in differences[: oracle.LISTED]:
        print(f"{oracle.hour_text(hour)} {campaign_id}: {field} must be {wanted}, is {got}")
    if differences:
        print(f"DIFFERENT: {len(differences)} differences in {checked} rows")
        return 1
    print(f"agreed: {checked} rows of {options.path}")
    return 0


def main(line=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("check", help="compare a bill with what the journal makes it")
    command.add_argument("--journal", required=True, metavar="FILE")
    command.add_argument("--billing", required=True, metavar="FILE", help="rows of GET /v1/billing, all pages in one")
    command.add_argument("--path", default="lambda", choices=["lambda", "kappa"])
    options = parser.parse_args(line)
    try:
        return check(options)
    except (oracle.CannotRun, OSError, ValueError, KeyError) as error:
        print(f"journal: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
