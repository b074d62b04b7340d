#!/usr/bin/env python3
"""Recounts a load generator's ledger by the counting rules alone, and compares the result with a bill.

Independent on purpose: written from the counting rules CR-1 to CR-6 and CR-10, sharing no code with the Rust programs.
Words: a *copy* is one stored record of a click; its *identity* is (campaign_id, click_id); its *order* stands for its
position in the log. Of copies that differ, the ledger's order is that of their positions, because a differing copy was sent
only after its original was acknowledged; copies that are equal need no order.
A send with unknown outcome may have stored a copy or not: then gross, duplicates and conflicts lie in a range.

    oracle.py check --ledger F [--ledger G ...] (--billing FILE | --url URL) [--horizon-hours N] [--verdicts FILE]
    oracle.py bill  --ledger F                  prints the bill it expects, as JSON

Exit status: 0 agreed, 1 a difference, 2 could not run.
"""

import argparse
import collections
import dataclasses
import datetime
import hashlib
import itertools
import json
import pathlib
import sys
import urllib.error
import urllib.parse
import urllib.request

HOUR_MS = 3_600_000
VERDICT_EARLY_MS = 24 * HOUR_MS
COUNTS = ("gross", "duplicates", "conflicts", "invalid_givt", "invalid_sivt", "billable", "unpriced", "amount_micros")
LISTED = 20


class CannotRun(Exception):
    """The question cannot be answered; says what to try next."""


@dataclasses.dataclass(frozen=True)
class Copy:
    """One copy as the ledger has it: sent once with a known outcome, and `unknown` times without."""

    campaign_id: str
    click_id: bytes
    payload: tuple  # ad_id, user_id, publisher_id, event time (CR-2)
    event_time: int  # epoch milliseconds
    order: tuple
    acknowledged: bool = True
    unknown: int = 0

    @property
    def hour(self):
        return self.event_time // HOUR_MS  # floors, also before 1970

    @property
    def low(self):
        return 1 if self.acknowledged else 0

    @property
    def high(self):
        return self.low + self.unknown


@dataclasses.dataclass
class Range:
    """A count that lies between two numbers, both inclusive."""

    low: int = 0
    high: int = 0

    def add(self, low, high=None):
        self.low += low
        self.high += low if high is None else high

    def allows(self, number):
        return self.low <= number <= self.high

    def __str__(self):
        return str(self.low) if self.low == self.high else f"{self.low} to {self.high}"


def new_row():
    return {name: Range() for name in COUNTS}


class Rates:
    """Prices by campaign: the latest effective_from counts, then the one recorded last (CR-6)."""

    def __init__(self, rates=()):
        self.by_campaign = collections.defaultdict(list)
        for recorded, rate in enumerate(rates):
            effective = epoch_ms(rate["effective_from"])
            self.by_campaign[rate["campaign_id"]].append((effective, recorded, rate["cpc_micros"], rate["currency"]))

    def price(self, campaign_id, event_time):
        in_force = [rate for rate in self.by_campaign.get(campaign_id, ()) if rate[0] <= event_time]
        return max(in_force)[2] if in_force else None

    def currencies(self, campaign_id, hour):
        """The currencies a row of the hour may show. A campaign's currency never changes; one whose first rate begins
        after the hour may show it or none."""
        rates = self.by_campaign.get(campaign_id, ())
        if not rates:
            return {None}
        currency = rates[0][3]
        begun = any(rate[0] < (hour + 1) * HOUR_MS for rate in rates)
        return {currency} if begun else {currency, None}


class Verdicts:
    """Rulings by identity. Of several, the greatest (decided_at, position) counts (CR-10); position is file order."""

    def __init__(self, verdicts=()):
        self.by_identity = collections.defaultdict(list)
        for position, verdict in enumerate(verdicts):
            identity = (verdict["campaign_id"], uuid_bytes(verdict["click_id"]))
            arrival = epoch_ms(verdict["arrival_time"]) if "arrival_time" in verdict else None
            self.by_identity[identity].append((epoch_ms(verdict["decided_at"]), position, verdict["verdict"], arrival))

    def ruling(self, copy):
        earliest = copy.hour * HOUR_MS - VERDICT_EARLY_MS
        rulings = self.by_identity.get((copy.campaign_id, copy.click_id), ())
        in_time = [ruling for ruling in rulings if ruling[3] is None or ruling[3] >= earliest]
        return max(in_time)[2] if in_time else "valid"


def bill(copies, rates, horizon_hours=1, verdicts=None):
    """The bill of copies that come grouped by identity and, within one, in order: {(hour, campaign_id): row}."""
    verdicts = verdicts or Verdicts()
    rows = collections.defaultdict(new_row)
    for _, group in itertools.groupby(copies, key=lambda copy: (copy.campaign_id, copy.click_id)):
        group = [copy for copy in group if copy.high > 0]
        for hour in {copy.hour for copy in group}:
            here = [copy for copy in group if copy.hour == hour]
            near = [copy for copy in group if abs(copy.hour - hour) <= horizon_hours]
            count_identity(rows[hour, here[0].campaign_id], here, near, rates, verdicts)
    return dict(rows)


def count_identity(row, here, near, rates, verdicts):
    """Adds one identity to the row of an hour: `here` are its copies in that hour, `near` those within the horizon."""
    low, high = sum(copy.low for copy in here), sum(copy.high for copy in here)
    row["gross"].add(low, high)
    certain = [copy for copy in near if copy.acknowledged]
    winner = certain[0] if certain else None
    # A different copy that may lie before the winner makes it unknowable which one wins.
    if winner is None or any(copy.payload != winner.payload for copy in near if copy.order < winner.order):
        add_undecided(row, here, low, high, rates)
        return
    for copy in here:
        if copy.payload != winner.payload:
            row["conflicts"].add(copy.low, copy.high)
    if winner not in here:
        row["duplicates"].add(low, high)
        return
    row["duplicates"].add(low - 1, high - 1)
    ruling = verdicts.ruling(winner)
    if ruling in ("givt", "sivt"):
        row["invalid_" + ruling].add(1)
        return
    row["billable"].add(1)
    price = rates.price(winner.campaign_id, winner.event_time)
    if price is None:
        row["unpriced"].add(1)
    else:
        row["amount_micros"].add(price)


def add_undecided(row, here, low, high, rates):
    """Adds an identity of which it is unknown whether, or as which copy, it counts in this hour."""
    prices = [rates.price(copy.campaign_id, copy.event_time) or 0 for copy in here]
    row["duplicates"].add(max(low - 1, 0), high)
    row["conflicts"].add(0, high)
    for name in ("billable", "unpriced", "invalid_givt", "invalid_sivt"):
        row[name].add(0, 1)
    row["amount_micros"].add(0, max(prices))


def row_digest(row):
    """SHA-256 of the canonical encoding of a billing row (CR-8)."""
    start = hour_text(hour_number(row["hour_bucket"])) + ":00:00Z"
    fields = [row["campaign_id"], start] + [row[name] for name in COUNTS] + [row.get("currency") or ""]
    lines = ["count-twice billing row 1"] + [str(field) for field in fields]
    return hashlib.sha256("".join(line + "\n" for line in lines).encode("ascii")).hexdigest()


def compare(expected, billed_rows, rates, exclusive=False, extra_copies=False):
    """Returns (rows checked, differences); a difference is (hour, campaign_id, field, expected, got)."""
    differences = []
    billed = {}
    known = {campaign_id for _, campaign_id in expected} | set(rates.by_campaign)
    for row in billed_rows:
        key = (hour_number(row["hour_bucket"]), row["campaign_id"])
        if key in billed:
            differences.append((*key, "row", "once", "twice"))
        if row["campaign_id"] in known or exclusive:
            billed[key] = row
    for key, wanted in expected.items():
        if key not in billed and wanted["gross"].low > 0:
            differences.append((*key, "row", f"billable {wanted['billable']}", "none"))
    for key, row in billed.items():
        wanted = expected.get(key) or new_row()
        for name in COUNTS:
            open_above = extra_copies and (
                name in ("gross", "duplicates") or name == "conflicts" and wanted["conflicts"].high > 0
            )
            if not wanted[name].allows(row[name]) and not (open_above and row[name] >= wanted[name].low):
                differences.append((*key, name, str(wanted[name]), str(row[name])))
        parts = row["duplicates"] + row["invalid_givt"] + row["invalid_sivt"] + row["billable"]
        if row["gross"] != parts:
            differences.append((*key, "gross (CR-5: sum of its parts)", str(parts), str(row["gross"])))
        currencies = rates.currencies(row["campaign_id"], key[0])
        if key in expected and row.get("currency") not in currencies:
            differences.append((*key, "currency", " or ".join(map(str, currencies)), str(row.get("currency"))))
        if row.get("digest") != row_digest(row):
            differences.append((*key, "digest", row_digest(row), str(row.get("digest"))))
    return len(billed), sorted(differences)


def epoch_ms(time):
    """Reads RFC 3339 or epoch milliseconds, floored to milliseconds."""
    if isinstance(time, (int, float)):
        return int(time // 1)
    moment = datetime.datetime.fromisoformat(time.replace("Z", "+00:00"))
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
    return (moment - epoch) // datetime.timedelta(milliseconds=1)


def hour_number(text):
    """Reads `2025-01-15T12`, or a full time on the hour."""
    return epoch_ms(text + ":00:00Z" if len(text) == 13 else text) // HOUR_MS


def hour_text(number):
    epoch = datetime.datetime(1970, 1, 1)
    return (epoch + datetime.timedelta(hours=number)).strftime("%Y-%m-%dT%H")


def uuid_bytes(text):
    return bytes.fromhex(text.replace("-", ""))


def read_ledgers(paths):
    """Yields the copies of all ledgers, grouped by identity and in order; later ledgers were sent later."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise CannotRun("pyarrow is missing; install tests/requirements.txt") from None
    columns = ["campaign_id", "click_id", "ad_id", "user_id", "publisher_id", "event_time", "sequence",
               "acknowledged", "attempts_unknown"]
    tables = []
    for number, path in enumerate(paths):
        if not pathlib.Path(path).exists():
            raise CannotRun(f"there is no ledger {path}; write one with `twice-loadgen run --ledger`")
        table = pyarrow.parquet.read_table(path, columns=columns)
        tables.append(table.append_column("ledger", pyarrow.array([number] * table.num_rows, pyarrow.int64())))
    table = pyarrow.concat_tables(tables)
    time = table.schema.get_field_index("event_time")
    table = table.set_column(time, "event_time", table["event_time"].cast(pyarrow.int64()))
    keys = ["campaign_id", "click_id", "ledger", "sequence"]
    for batch in table.sort_by([(key, "ascending") for key in keys]).to_batches(max_chunksize=65_536):
        values = {name: batch.column(name).to_pylist() for name in batch.schema.names}
        for index in range(batch.num_rows):
            event_time = values["event_time"][index]
            yield Copy(
                campaign_id=values["campaign_id"][index],
                click_id=values["click_id"][index],
                payload=(values["ad_id"][index], values["user_id"][index], values["publisher_id"][index], event_time),
                event_time=event_time,
                order=(values["ledger"][index], values["sequence"][index]),
                acknowledged=values["acknowledged"][index],
                unknown=values["attempts_unknown"][index],
            )


def read_rates(ledgers):
    rates = []
    for ledger in ledgers:
        path = pathlib.Path(str(ledger) + ".rates.json")
        if not path.exists():
            raise CannotRun(f"{path} is missing; keep it beside the ledger it belongs to")
        rates.extend(json.loads(path.read_text()))
    return Rates(rates)


def read_verdicts(path):
    if path is None:
        return Verdicts()
    return Verdicts(json.loads(line) for line in pathlib.Path(path).read_text().splitlines() if line.strip())


def fetch_billing(url, hours, api_key=None):
    """Reads the billing rows of `hours` from a node, page by page."""
    rows = []
    for hour in hours:
        cursor = None
        while True:
            query = {"hour": hour_text(hour), "limit": 1000}
            if cursor is not None:
                query["cursor"] = cursor
            request = urllib.request.Request(f"{url.rstrip('/')}/v1/billing?{urllib.parse.urlencode(query)}")
            if api_key:
                request.add_header("Authorization", f"Bearer {api_key}")
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    page = json.load(answer)
            except urllib.error.HTTPError as error:
                raise CannotRun(f"{request.full_url}: {error.code} {error.read()[:300]!r}") from None
            except OSError as error:
                raise CannotRun(f"{request.full_url}: {error}; is the node running?") from None
            rows.extend(page["rows"])
            cursor = page.get("next_cursor")
            if cursor is None:
                break
    return rows


def arguments(line=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="compare a bill with what the ledgers make it")
    source = check.add_mutually_exclusive_group(required=True)
    source.add_argument("--billing", metavar="FILE", help="saved answer of GET /v1/billing, all pages in one")
    source.add_argument("--url", help="node to ask for /v1/billing")
    check.add_argument("--api-key", help="key sent to the node")
    check.add_argument("--exclusive", action="store_true", help="rows of campaigns no ledger knows are differences too")
    check.add_argument("--extra-copies", action="store_true", help="copies may be stored more often than the ledger says")
    show = commands.add_parser("bill", help="print the expected bill as JSON")
    for command in (check, show):
        command.add_argument("--ledger", action="append", required=True, metavar="FILE", help="ledger; oldest first")
        command.add_argument("--horizon-hours", type=int, default=1, help="dedup horizon: 1 hourly, 24 nightly")
        command.add_argument("--verdicts", metavar="FILE", help="verdicts as JSON lines, in order of position")
    return parser.parse_args(line)


def run(options):
    rates = read_rates(options.ledger)
    verdicts = read_verdicts(options.verdicts)
    expected = bill(read_ledgers(options.ledger), rates, options.horizon_hours, verdicts)
    if options.command == "bill":
        for (hour, campaign_id), row in sorted(expected.items()):
            counts = {name: [row[name].low, row[name].high] for name in COUNTS}
            print(json.dumps({"hour_bucket": hour_text(hour), "campaign_id": campaign_id, **counts}))
        return 0
    if options.billing:
        try:
            saved = json.loads(pathlib.Path(options.billing).read_text())
        except (OSError, ValueError) as error:
            raise CannotRun(f"{options.billing}: {error}") from None
        rows = saved["rows"] if isinstance(saved, dict) else saved
    else:
        rows = fetch_billing(options.url, sorted({hour for hour, _ in expected}), options.api_key)
    checked, differences = compare(expected, rows, rates, options.exclusive, options.extra_copies)
    for hour, campaign_id, field, wanted, got in differences[:LISTED]:
        print(f"{hour_text(hour)} {campaign_id}: {field} must be {wanted}, is {got}")
    if differences:
        print(f"DIFFERENT: {len(differences)} differences in {checked} rows")
        return 1
    billable = sum(row["billable"].low for row in expected.values())
    print(f"agreed: {checked} rows, {billable} billable clicks")
    return 0


def main(line=None):
    try:
        return run(arguments(line))
    except CannotRun as error:
        print(f"oracle: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
