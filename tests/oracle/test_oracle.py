"""Cases small enough to count by hand, with the answers counted by hand."""

import contextlib
import io
import json
import pathlib
import tempfile
import unittest
import uuid

import oracle
from oracle import Copy, Rates, Verdicts, bill, compare, epoch_ms

NOON = "2025-01-15T12:00:00.000Z"
HOUR = epoch_ms(NOON) // oracle.HOUR_MS


def at(time):
    return epoch_ms(f"2025-01-15T{time}Z")


def click(number):
    return uuid.UUID(int=number).bytes


def copy(number, time, order, ad="ad", campaign="c", acknowledged=True, unknown=0):
    event_time = at(time)
    payload = (ad, "user", "publisher", event_time)
    return Copy(campaign, click(number), payload, event_time, (0, order), acknowledged, unknown)


def rate(cpc_micros, effective_from, campaign="c", currency="USD"):
    return {"campaign_id": campaign, "cpc_micros": cpc_micros, "currency": currency, "effective_from": effective_from}


FIVE_CENTS = Rates([rate(50_000, "2025-01-01T00:00:00Z")])


def counts(row):
    """The row's non-zero counts; ranges as pairs."""
    plain = {name: value.low if value.low == value.high else (value.low, value.high) for name, value in row.items()}
    return {name: value for name, value in plain.items() if value != 0}


class Bill(unittest.TestCase):
    def check(self, copies, expected, rates=FIVE_CENTS, horizon_hours=1, verdicts=None):
        rows = bill(copies, rates, horizon_hours, verdicts)
        self.assertEqual({key: counts(row) for key, row in rows.items()}, expected)

    def test_one_click_counts_once(self):
        self.check([copy(1, "12:00:01", 1)], {(HOUR, "c"): {"gross": 1, "billable": 1, "amount_micros": 50_000}})

    def test_a_plain_duplicate_is_no_conflict(self):
        self.check(
            [copy(1, "12:00:01", 1), copy(1, "12:00:01", 2)],
            {(HOUR, "c"): {"gross": 2, "duplicates": 1, "billable": 1, "amount_micros": 50_000}},
        )

    def test_the_same_click_id_in_two_campaigns_is_two_clicks(self):
        rates = Rates([rate(50_000, "2025-01-01T00:00:00Z"), rate(7, "2025-01-01T00:00:00Z", "d", "EUR")])
        self.check(
            [copy(1, "12:00:01", 1), copy(1, "12:00:01", 2, campaign="d")],
            {
                (HOUR, "c"): {"gross": 1, "billable": 1, "amount_micros": 50_000},
                (HOUR, "d"): {"gross": 1, "billable": 1, "amount_micros": 7},
            },
            rates,
        )

    def test_a_duplicate_with_another_payload_is_also_a_conflict(self):
        self.check(
            [copy(1, "12:00:01", 1), copy(1, "12:00:01", 2, ad="other")],
            {(HOUR, "c"): {"gross": 2, "duplicates": 1, "conflicts": 1, "billable": 1, "amount_micros": 50_000}},
        )

    def test_a_duplicate_over_the_hour_border_belongs_to_its_own_hour(self):
        # 11:59:59.999 wins by position; the copy of 12:00 is a duplicate and a conflict there, and bills nothing.
        self.check(
            [copy(1, "11:59:59.999", 1), copy(1, "12:00:00.000", 2)],
            {
                (HOUR - 1, "c"): {"gross": 1, "billable": 1, "amount_micros": 50_000},
                (HOUR, "c"): {"gross": 1, "duplicates": 1, "conflicts": 1},
            },
        )

    def test_position_decides_and_not_event_time(self):
        self.check(
            [copy(1, "12:00:00.000", 1), copy(1, "11:59:59.999", 2)],
            {
                (HOUR, "c"): {"gross": 1, "billable": 1, "amount_micros": 50_000},
                (HOUR - 1, "c"): {"gross": 1, "duplicates": 1, "conflicts": 1},
            },
        )

    def test_beyond_the_horizon_a_copy_counts_again_until_the_nightly_close(self):
        copies = [copy(1, "10:30:00", 1), copy(1, "12:30:00", 2)]
        once = {"gross": 1, "billable": 1, "amount_micros": 50_000}
        self.check(copies, {(HOUR - 2, "c"): once, (HOUR, "c"): once})
        nightly = {(HOUR - 2, "c"): once, (HOUR, "c"): {"gross": 1, "duplicates": 1, "conflicts": 1}}
        self.check(copies, nightly, horizon_hours=24)

    def test_a_duplicate_of_a_duplicate_is_one_whatever_that_is(self):
        # 10:30, 11:30, 12:30: the middle copy is itself a duplicate, and still makes the last one a duplicate (CR-3).
        once = {"gross": 1, "billable": 1, "amount_micros": 50_000}
        duplicate = {"gross": 1, "duplicates": 1, "conflicts": 1}
        self.check(
            [copy(1, "10:30:00", 1), copy(1, "11:30:00", 2), copy(1, "12:30:00", 3)],
            {(HOUR - 2, "c"): once, (HOUR - 1, "c"): duplicate, (HOUR, "c"): duplicate},
        )

    def test_hour_borders_are_half_open_to_the_millisecond(self):
        copies = [copy(1, "11:59:59.999", 1), copy(2, "12:00:00.000", 2), copy(3, "12:59:59.999", 3)]
        rows = bill(copies, FIVE_CENTS)
        self.assertEqual([rows[hour, "c"]["billable"].low for hour in (HOUR - 1, HOUR)], [1, 2])

    def test_a_price_change_in_mid_hour_splits_the_hour_at_its_millisecond(self):
        rates = Rates([rate(100, "2025-01-01T00:00:00Z"), rate(300, "2025-01-15T12:30:00Z")])
        copies = [copy(1, "12:29:59.999", 1), copy(2, "12:30:00.000", 2), copy(3, "12:30:00.001", 3)]
        self.check(copies, {(HOUR, "c"): {"gross": 3, "billable": 3, "amount_micros": 700}}, rates)

    def test_the_winners_event_time_sets_the_price(self):
        rates = Rates([rate(100, "2025-01-01T00:00:00Z"), rate(300, "2025-01-15T12:30:00Z")])
        copies = [copy(1, "12:10:00", 1), copy(1, "12:40:00", 2)]
        wanted = {"gross": 2, "duplicates": 1, "conflicts": 1, "billable": 1, "amount_micros": 100}
        self.check(copies, {(HOUR, "c"): wanted}, rates)

    def test_of_rates_from_one_moment_the_last_recorded_counts(self):
        rates = Rates([rate(300, NOON), rate(100, "2025-01-01T00:00:00Z"), rate(200, NOON)])
        self.check([copy(1, "12:00:00", 1)], {(HOUR, "c"): {"gross": 1, "billable": 1, "amount_micros": 200}}, rates)

    def test_an_unknown_campaign_is_counted_and_unpriced(self):
        copies = [copy(1, "12:00:01", 1), copy(2, "12:00:02", 2), copy(2, "12:00:02", 3)]
        wanted = {"gross": 3, "duplicates": 1, "billable": 2, "unpriced": 2}
        self.check(copies, {(HOUR, "c"): wanted}, Rates())
        self.assertEqual(Rates().currencies("c", HOUR), {None})

    def test_clicks_before_the_first_rate_are_unpriced(self):
        rates = Rates([rate(100, "2025-01-15T12:30:00Z")])
        copies = [copy(1, "12:29:59.999", 1), copy(2, "12:30:00", 2)]
        wanted = {"gross": 2, "billable": 2, "unpriced": 1, "amount_micros": 100}
        self.check(copies, {(HOUR, "c"): wanted}, rates)

    def test_verdicts_take_the_winner_out_and_duplicates_stay_duplicates(self):
        verdicts = Verdicts([{"campaign_id": "c", "click_id": str(uuid.UUID(int=1)), "verdict": "sivt", "decided_at": NOON}])
        copies = [copy(1, "12:00:01", 1), copy(1, "12:00:01", 2), copy(2, "12:00:02", 3)]
        wanted = {"gross": 3, "duplicates": 1, "invalid_sivt": 1, "billable": 1, "amount_micros": 50_000}
        self.check(copies, {(HOUR, "c"): wanted}, verdicts=verdicts)

    def test_the_greatest_decision_counts_and_early_arrivals_do_not(self):
        def verdict(ruling, decided_at, arrival_time):
            return {"campaign_id": "c", "click_id": str(uuid.UUID(int=1)), "verdict": ruling,
                    "decided_at": decided_at, "arrival_time": arrival_time}

        day_before = "2025-01-14T12:00:00Z"
        just_too_early = "2025-01-14T11:59:59.999Z"
        copies = [copy(1, "12:00:01", 1)]
        valid = {(HOUR, "c"): {"gross": 1, "billable": 1, "amount_micros": 50_000}}
        invalid = {(HOUR, "c"): {"gross": 1, "invalid_givt": 1}}
        self.check(copies, invalid, verdicts=Verdicts([verdict("givt", NOON, day_before)]))
        self.check(copies, valid, verdicts=Verdicts([verdict("givt", NOON, just_too_early)]))
        both = [verdict("givt", "2025-01-15T13:00:00Z", NOON), verdict("valid", NOON, NOON)]
        self.check(copies, invalid, verdicts=Verdicts(both))
        tie = [verdict("givt", NOON, NOON), verdict("valid", NOON, NOON)]
        self.check(copies, valid, verdicts=Verdicts(tie))

    def test_a_send_with_unknown_outcome_widens_gross_and_duplicates_only(self):
        wanted = {"gross": (1, 3), "duplicates": (0, 2), "billable": 1, "amount_micros": 50_000}
        self.check([copy(1, "12:00:01", 1, unknown=2)], {(HOUR, "c"): wanted})

    def test_a_click_never_acknowledged_may_or_may_not_be_billed(self):
        rows = bill([copy(1, "12:00:01", 1, acknowledged=False, unknown=1)], FIVE_CENTS)
        row = rows[HOUR, "c"]
        self.assertEqual([(row[name].low, row[name].high) for name in ("gross", "billable", "amount_micros")],
                         [(0, 1), (0, 1), (0, 50_000)])

    def test_a_rejected_copy_leaves_nothing(self):
        self.check([copy(1, "12:00:01", 1, acknowledged=False)], {})


class Compare(unittest.TestCase):
    def setUp(self):
        self.expected = bill([copy(1, "12:00:01", 1), copy(1, "12:00:01", 2)], FIVE_CENTS)
        self.row = {
            "campaign_id": "c", "hour_bucket": "2025-01-15T12", "gross": 2, "duplicates": 1, "conflicts": 0,
            "invalid_givt": 0, "invalid_sivt": 0, "billable": 1, "unpriced": 0, "amount_micros": 50_000, "currency": "USD",
        }
        self.row["digest"] = oracle.row_digest(self.row)

    def fields(self, rows, **options):
        return [difference[2] for difference in compare(self.expected, rows, FIVE_CENTS, **options)[1]]

    def with_digest(self, **changes):
        row = {**self.row, **changes}
        return {**row, "digest": oracle.row_digest(row)}

    def test_the_right_row_agrees(self):
        self.assertEqual(compare(self.expected, [self.row], FIVE_CENTS), (1, []))

    def test_each_wrong_number_is_named(self):
        for name in oracle.COUNTS:
            self.assertIn(name, self.fields([self.with_digest(**{name: self.row[name] + 1})]), name)

    def test_a_missing_a_double_and_a_foreign_row_are_told_apart(self):
        self.assertEqual(self.fields([]), ["row"])
        self.assertEqual(self.fields([self.row, self.row]), ["row"])
        foreign = self.with_digest(campaign_id="other")
        self.assertEqual(self.fields([self.row, foreign]), [])
        self.assertIn("gross", self.fields([self.row, foreign], exclusive=True))
        other_hour = self.with_digest(hour_bucket="2025-01-15T13")
        self.assertIn("gross", self.fields([self.row, other_hour]))

    def test_a_wrong_currency_and_a_wrong_digest_are_named(self):
        self.assertEqual(self.fields([self.with_digest(currency="EUR")]), ["currency"])
        self.assertEqual(self.fields([{**self.row, "digest": "0" * 64}]), ["digest"])

    def test_extra_copies_open_gross_and_duplicates_upwards_only(self):
        more = self.with_digest(gross=5, duplicates=4)
        self.assertEqual(self.fields([more]), ["duplicates", "gross"])
        self.assertEqual(self.fields([more], extra_copies=True), [])
        fewer = self.with_digest(gross=1, duplicates=0)
        self.assertEqual(self.fields([fewer], extra_copies=True), ["duplicates", "gross"])

    def test_the_digest_is_that_of_the_published_encoding(self):
        row = {
            "campaign_id": "camp_123", "hour_bucket": "2025-01-15T12", "gross": 852, "duplicates": 3, "conflicts": 1,
            "invalid_givt": 1, "invalid_sivt": 1, "billable": 847, "unpriced": 0, "amount_micros": 423_500_000,
            "currency": "USD",
        }
        self.assertEqual(
            oracle.row_digest(row), "a04cf24a955ea1c5b80c5ffdaaaf04ba345ec14cb3efeeca9b20c91499cd5de1"
        )


class Times(unittest.TestCase):
    def test_times_are_floored_to_milliseconds(self):
        self.assertEqual(epoch_ms("1969-12-31T23:59:59.999900Z"), -1)
        self.assertEqual(epoch_ms("2025-01-15T13:00:00.123+01:00"), epoch_ms("2025-01-15T12:00:00.123Z"))
        self.assertEqual(epoch_ms(1_736_942_400_123.9), 1_736_942_400_123)

    def test_hours_are_read_and_written_alike(self):
        self.assertEqual(oracle.hour_number("2025-01-15T12"), oracle.hour_number("2025-01-15T12:00:00.000Z"))
        self.assertEqual(oracle.hour_text(oracle.hour_number("2025-01-15T12")), "2025-01-15T12")


class CommandLine(unittest.TestCase):
    """From files to exit status; needs pyarrow."""

    def setUp(self):
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            self.skipTest("pyarrow is missing; install tests/requirements.txt")
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.ledger = pathlib.Path(folder.name, "ledger.parquet")
        self.billing = pathlib.Path(folder.name, "billing.json")
        rows = [(1, "12:00:01", 0, "a"), (2, "12:00:02", 1, "a"), (1, "12:00:01", 2, "b")]
        table = pyarrow.table({
            "campaign_id": ["c"] * 3,
            "click_id": pyarrow.array([click(row[0]) for row in rows], pyarrow.binary(16)),
            "ad_id": [row[3] for row in rows], "user_id": [""] * 3, "publisher_id": ["p"] * 3,
            "event_time": pyarrow.array([at(row[1]) for row in rows], pyarrow.timestamp("ms", "UTC")),
            "sequence": [row[2] for row in rows], "acknowledged": [True] * 3,
            "attempts_unknown": pyarrow.array([0] * 3, pyarrow.int32()),
        })
        pyarrow.parquet.write_table(table, self.ledger)
        pathlib.Path(f"{self.ledger}.rates.json").write_text(json.dumps([rate(10, "2025-01-01T00:00:00Z")]))

    def run_with(self, billable):
        row = {
            "campaign_id": "c", "hour_bucket": "2025-01-15T12", "gross": billable + 1, "duplicates": 1, "conflicts": 1,
            "invalid_givt": 0, "invalid_sivt": 0, "billable": billable, "unpriced": 0, "amount_micros": 20,
            "currency": "USD",
        }
        row["digest"] = oracle.row_digest(row)
        self.billing.write_text(json.dumps({"rows": [row], "next_cursor": None}))
        return self.run_line("check", "--ledger", str(self.ledger), "--billing", str(self.billing))

    def run_line(self, *line):
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            status = oracle.main(line)
        return status, output.getvalue()

    def test_a_right_bill_exits_with_0_and_a_wrong_one_with_1(self):
        self.assertEqual(self.run_with(2), (0, "agreed: 1 rows, 2 billable clicks\n"))
        status, output = self.run_with(3)
        self.assertEqual(status, 1)
        self.assertIn("2025-01-15T12 c: billable must be 2, is 3", output)

    def test_what_is_missing_exits_with_2_and_advice(self):
        status, output = self.run_line("check", "--ledger", "/nowhere", "--billing", str(self.billing))
        self.assertEqual(status, 2)
        self.assertIn("is missing", output)


if __name__ == "__main__":
    unittest.main()
