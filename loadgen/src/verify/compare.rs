//! One hour of the node's answers against what they must be. No I/O.

use std::collections::{BTreeMap, HashMap, HashSet};

use twice_log::Hour;

use super::expect::{Bounds, Expected, ExpectedRow};
use super::fetch::{BillingRow, DivergenceRow};

/// What a node says of an hour.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HourAnswer {
    pub billing: Vec<BillingRow>,
    pub divergence: Vec<DivergenceRow>,
}

/// How much is a difference.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Strictness {
    /// A campaign the ledgers do not know is one.
    pub exclusive: bool,
    /// A stream that is not complete is one.
    pub require_complete: bool,
}

/// One number that is not what it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub hour: Hour,
    pub campaign_id: String,
    pub field: &'static str,
    pub expected: String,
    pub got: String,
}

/// Sums over the rows of an hour, and its differences.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HourTotals {
    pub campaigns: u64,
    pub gross: u64,
    pub duplicates: u64,
    pub conflicts: u64,
    pub invalid: u64,
    pub billable: u64,
    pub unpriced: u64,
    pub amounts: BTreeMap<String, i128>,
    pub preliminary: u64,
    pub late: u64,
    pub late_sent: u64,
    pub late_duplicate: u64,
    pub fraud: u64,
    pub unexplained: i64,
    /// Rows whose stream is not complete.
    pub not_complete: u64,
    /// Rows of campaigns the ledgers do not know, passed over.
    pub passed_over: u64,
    pub differences: Vec<Difference>,
}

/// Compares the answers for `hour` with what they must be.
pub fn compare_hour(
    hour: Hour,
    expected: &Expected,
    answer: &HourAnswer,
    strictness: Strictness,
) -> HourTotals {
    let mut comparison = Comparison { hour, expected, strictness, totals: HourTotals::default() };
    let mut billed: HashMap<&str, &BillingRow> = HashMap::with_capacity(answer.billing.len());
    for row in &answer.billing {
        if row.hour_bucket != hour {
            comparison.differ(&row.campaign_id, "hour_bucket", hour.to_string(), row.hour_bucket.to_string());
        }
        if billed.insert(&row.campaign_id, row).is_some() {
            comparison.differ(&row.campaign_id, "row", "once".to_owned(), "twice".to_owned());
            continue;
        }
        comparison.billing_row(row);
    }
    for (campaign_id, row) in expected.rows(hour) {
        if row.gross.min > 0 && !billed.contains_key(campaign_id) {
            comparison.differ(
                campaign_id,
                "row",
                format!("billable {}", show(row.billable)),
                "none".to_owned(),
            );
        }
    }
    let mut explained = HashSet::with_capacity(answer.divergence.len());
    for row in &answer.divergence {
        explained.insert(row.campaign_id.as_str());
        comparison.divergence_row(row, billed.get(row.campaign_id.as_str()).copied());
    }
    for row in &answer.billing {
        let counts = row.gross > 0 && expected.knows(&row.campaign_id);
        if counts && !explained.contains(row.campaign_id.as_str()) {
            comparison.differ(&row.campaign_id, "divergence row", "one".to_owned(), "none".to_owned());
        }
    }
    let mut totals = comparison.totals;
    totals.differences.sort_by(|left, right| left.campaign_id.cmp(&right.campaign_id));
    totals
}

struct Comparison<'a> {
    hour: Hour,
    expected: &'a Expected,
    strictness: Strictness,
    totals: HourTotals,
}

impl Comparison<'_> {
    fn differ(&mut self, campaign_id: &str, field: &'static str, expected: String, got: String) {
        let campaign_id = campaign_id.to_owned();
        self.totals.differences.push(Difference { hour: self.hour, campaign_id, field, expected, got });
    }

    fn check(&mut self, campaign_id: &str, field: &'static str, bounds: Bounds, got: u64) {
        if !bounds.allow(got) {
            self.differ(campaign_id, field, show(bounds), got.to_string());
        }
    }

    fn billing_row(&mut self, row: &BillingRow) {
        let campaign = row.campaign_id.as_str();
        let known = self.expected.row(self.hour, campaign);
        let foreign = !self.expected.knows(campaign) && !self.strictness.exclusive;
        if known.is_none() && (foreign || self.expected.is_partial()) {
            self.totals.passed_over += 1;
            return;
        }
        self.add(row, known);
        let parts = row.duplicates + row.invalid_givt + row.invalid_sivt + row.billable;
        if row.gross != parts {
            self.differ(campaign, "gross (CR-5: sum of its parts)", parts.to_string(), row.gross.to_string());
        }
        // A campaign without a click in this hour may have a row of zeros (CR-9), no more.
        let wanted = known.copied().unwrap_or_default();
        self.check(campaign, "gross", wanted.gross, row.gross);
        self.check(campaign, "duplicates", wanted.duplicates, row.duplicates);
        self.check(campaign, "conflicts", wanted.conflicts, row.conflicts);
        self.check(campaign, "invalid_givt", wanted.invalid_givt, row.invalid_givt);
        self.check(campaign, "invalid_sivt", wanted.invalid_sivt, row.invalid_sivt);
        self.check(campaign, "billable", wanted.billable, row.billable);
        self.check(campaign, "unpriced", wanted.unpriced, row.unpriced);
        match u64::try_from(row.amount_micros) {
            Ok(amount) => self.check(campaign, "amount_micros", wanted.amount_micros, amount),
            Err(_) => self.differ(
                campaign,
                "amount_micros",
                show(wanted.amount_micros),
                row.amount_micros.to_string(),
            ),
        }
        self.currency(row);
    }

    fn currency(&mut self, row: &BillingRow) {
        let got = row.currency.as_deref();
        let wanted = self.expected.currency(self.hour, &row.campaign_id);
        let agrees = match wanted {
            Some((currency, true)) => got == Some(currency),
            Some((currency, false)) => got.is_none() || got == Some(currency),
            None => got.is_none() || self.expected.row(self.hour, &row.campaign_id).is_none(),
        };
        if !agrees {
            let wanted = wanted.map_or("none", |(currency, _)| currency).to_owned();
            self.differ(&row.campaign_id, "currency", wanted, got.unwrap_or("none").to_owned());
        }
    }

    fn add(&mut self, row: &BillingRow, known: Option<&ExpectedRow>) {
        let totals = &mut self.totals;
        totals.campaigns += 1;
        totals.gross += row.gross;
        totals.duplicates += row.duplicates;
        totals.conflicts += row.conflicts;
        totals.invalid += row.invalid_givt + row.invalid_sivt;
        totals.billable += row.billable;
        totals.unpriced += row.unpriced;
        totals.late_sent += known.map_or(0, |known| known.late_sent);
        if let Some(currency) = &row.currency {
            *totals.amounts.entry(currency.clone()).or_default() += i128::from(row.amount_micros);
        }
    }

    /// Checks G-5 on one row: every difference between stream and bill has a cause.
    fn divergence_row(&mut self, row: &DivergenceRow, billed: Option<&BillingRow>) {
        let campaign = row.campaign_id.as_str();
        if !self.expected.knows(campaign) && !self.strictness.exclusive {
            return;
        }
        let bill = billed.map_or(0, |billed| billed.billable);
        if row.billed != bill {
            self.differ(campaign, "divergence billed", bill.to_string(), row.billed.to_string());
        }
        if row.stream != "complete" {
            self.totals.not_complete += 1;
            if self.strictness.require_complete {
                self.differ(campaign, "stream", "complete".to_owned(), row.stream.clone());
            }
        } else if row.unexplained != Some(0) {
            let got = row.unexplained.map_or("null".to_owned(), |unexplained| unexplained.to_string());
            self.differ(campaign, "unexplained", "0".to_owned(), got);
        }
        let (Some(preliminary), Some(late), Some(late_duplicate), Some(fraud)) =
            (row.preliminary, row.late, row.late_duplicate, row.fraud)
        else {
            if row.stream != "unsealed" {
                self.differ(campaign, "preliminary and causes", "numbers".to_owned(), "null".to_owned());
            }
            return;
        };
        self.totals.preliminary += preliminary;
        self.totals.late += late;
        self.totals.late_duplicate += late_duplicate;
        self.totals.fraud += fraud;
        if let Some(unexplained) = row.unexplained {
            self.totals.unexplained += unexplained;
            let causes =
                i128::from(late_duplicate) + i128::from(fraud) - i128::from(late) + i128::from(unexplained);
            let difference = i128::from(preliminary) - i128::from(row.billed);
            if difference != causes {
                self.differ(campaign, "preliminary - billed", causes.to_string(), difference.to_string());
            }
        }
        // Causes are lists of copies: none can be longer than the copies there are.
        if let Some(billed) = billed {
            self.check(campaign, "late (at most billable)", Bounds { min: 0, max: billed.billable }, late);
            let duplicates = Bounds { min: 0, max: billed.duplicates };
            self.check(campaign, "late_duplicate (at most duplicates)", duplicates, late_duplicate);
        }
    }
}

fn show(bounds: Bounds) -> String {
    match bounds {
        Bounds { min, max } if min == max => min.to_string(),
        Bounds { min, max: u64::MAX } => format!("{min} or more"),
        Bounds { min, max } => format!("{min} to {max}"),
    }
}
