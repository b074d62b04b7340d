"""A scenario small enough to count by hand."""

import json
import pathlib
import tempfile
import unittest
import uuid

import journal
import oracle

NOON = "2025-01-15T12"


def copy(number, time, ad="ad"):
    return {"copy": {"campaign_id": "c", "click_id": str(uuid.UUID(int=number)), "ad_id": ad, "user_id": "u",
                     "publisher_id": "p", "event_time": f"2025-01-15T{time}Z"}}


def run(horizon_hours, *hours, path="lambda"):
    return {"run": {"hours": list(hours), "horizon_hours": horizon_hours, "path": path}}


RATE = {"rate": {"campaign_id": "c", "cpc_micros": 5, "currency": "USD", "effective_from": "2025-01-01T00:00:00Z"}}
SIVT = {"verdict": {"campaign_id": "c", "click_id": str(uuid.UUID(int=1)), "verdict": "sivt",
                    "decided_at": "2025-01-15T14:00:00Z", "arrival_time": "2025-01-15T14:00:01Z"}}


class Journal(unittest.TestCase):
    def rows(self, *events, path="lambda"):
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "journal"
            file.write_text("".join(json.dumps(event) + "\n" for event in events))
            expected = journal.expected_rows(*journal.read(file), path)
        return {
            oracle.hour_text(hour): {name: value.low for name, value in row.items() if value.low}
            for (hour, _), row in expected.items()
        }

    def test_an_hour_is_what_stood_above_its_last_run(self):
        events = [RATE, copy(1, "12:00:01"), run(1, NOON), copy(2, "12:00:02")]
        first = {NOON: {"gross": 1, "billable": 1, "amount_micros": 5}}
        self.assertEqual(self.rows(*events), first)
        self.assertEqual(self.rows(*events, run(1, NOON))[NOON]["billable"], 2)

    def test_a_verdict_counts_from_the_run_after_it(self):
        events = [RATE, copy(1, "12:00:01"), run(1, NOON), SIVT]
        self.assertEqual(self.rows(*events)[NOON]["billable"], 1)
        self.assertEqual(self.rows(*events, run(1, NOON))[NOON], {"gross": 1, "invalid_sivt": 1})

    def test_a_rate_counts_from_the_run_after_it(self):
        events = [copy(1, "12:00:01"), run(1, NOON), RATE]
        self.assertEqual(self.rows(*events)[NOON], {"gross": 1, "billable": 1, "unpriced": 1})
        self.assertEqual(self.rows(*events, run(1, NOON))[NOON], {"gross": 1, "billable": 1, "amount_micros": 5})

    def test_only_the_nightly_horizon_sees_a_copy_five_hours_away(self):
        events = [copy(1, "07:00:01"), copy(1, "12:00:01")]
        self.assertEqual(self.rows(*events, run(1, NOON))[NOON]["billable"], 1)
        self.assertEqual(self.rows(*events, run(24, NOON))[NOON], {"gross": 1, "duplicates": 1, "conflicts": 1})

    def test_paths_are_counted_apart(self):
        events = [copy(1, "12:00:01"), run(1, NOON), copy(2, "12:00:02"), run(1, NOON, path="kappa")]
        self.assertEqual(self.rows(*events)[NOON]["billable"], 1)
        self.assertEqual(self.rows(*events, path="kappa")[NOON]["billable"], 2)


if __name__ == "__main__":
    unittest.main()
