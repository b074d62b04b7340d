//! Rows of both paths side by side, column by column (G-7).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use twice_log::{CampaignId, Hour};
use twice_store::BillingCounts;

/// Differing rows that are listed; all are counted.
const ROWS_LISTED_MAX: usize = 1_000;

/// A column of CR-5.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Column {
    Gross,
    Duplicates,
    Conflicts,
    InvalidGivt,
    InvalidSivt,
    Billable,
    Unpriced,
    AmountMicros,
    Currency,
    /// The whole row: one path has none.
    Row,
}

/// One row on which the paths differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowDifference {
    pub hour: Hour,
    pub campaign_id: CampaignId,
    pub columns: Vec<Column>,
    /// Null where the path has no row.
    pub lambda: Option<BillingCounts>,
    pub kappa: Option<BillingCounts>,
}

/// By what two sets of rows differ.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Differences {
    pub rows_compared: u64,
    pub rows_differing: u64,
    /// By hour and campaign.
    pub rows: Vec<RowDifference>,
    /// Whether more rows differ than are listed.
    pub truncated: bool,
}

impl Differences {
    /// Compares the rows of one hour and adds what differs.
    pub(super) fn add_hour(&mut self, hour: Hour, lambda: &[BillingCounts], kappa: &[BillingCounts]) {
        let mut pairs: BTreeMap<&CampaignId, (Option<&BillingCounts>, Option<&BillingCounts>)> =
            BTreeMap::new();
        lambda.iter().for_each(|row| pairs.entry(&row.campaign_id).or_default().0 = Some(row));
        kappa.iter().for_each(|row| pairs.entry(&row.campaign_id).or_default().1 = Some(row));
        for (campaign, (lambda, kappa)) in pairs {
            self.rows_compared += 1;
            let columns = columns(lambda, kappa);
            if columns.is_empty() {
                continue;
            }
            self.rows_differing += 1;
            if self.rows.len() == ROWS_LISTED_MAX {
                self.truncated = true;
                continue;
            }
            self.rows.push(RowDifference {
                hour,
                campaign_id: campaign.clone(),
                columns,
                lambda: lambda.cloned(),
                kappa: kappa.cloned(),
            });
        }
    }

    /// Returns whether no row differs.
    pub fn is_empty(&self) -> bool {
        self.rows_differing == 0
    }
}

fn columns(lambda: Option<&BillingCounts>, kappa: Option<&BillingCounts>) -> Vec<Column> {
    let (left, right) = match (lambda, kappa) {
        (Some(left), Some(right)) => (left, right),
        // A campaign that vanished has a row of zeros where it was billed before: that says the same as no row.
        (Some(row), None) | (None, Some(row)) if is_zero(row) => return Vec::new(),
        _ => return vec![Column::Row],
    };
    let equal = [
        (Column::Gross, left.gross == right.gross),
        (Column::Duplicates, left.duplicates == right.duplicates),
        (Column::Conflicts, left.conflicts == right.conflicts),
        (Column::InvalidGivt, left.invalid_givt == right.invalid_givt),
        (Column::InvalidSivt, left.invalid_sivt == right.invalid_sivt),
        (Column::Billable, left.billable == right.billable),
        (Column::Unpriced, left.unpriced == right.unpriced),
        (Column::AmountMicros, left.amount_micros == right.amount_micros),
        (Column::Currency, left.currency == right.currency),
    ];
    equal.into_iter().filter(|(_, equal)| !equal).map(|(column, _)| column).collect()
}

fn is_zero(row: &BillingCounts) -> bool {
    *row == BillingCounts::zero(row.campaign_id.clone(), row.currency)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(campaign: &str, billable: u64) -> BillingCounts {
        let campaign = CampaignId::new(campaign).expect("valid");
        BillingCounts { gross: billable, billable, ..BillingCounts::zero(campaign, None) }
    }

    fn hour() -> Hour {
        "2025-01-15T12".parse().expect("an hour")
    }

    #[test]
    fn equal_rows_do_not_differ_in_whatever_order_they_come() {
        let mut differences = Differences::default();
        differences.add_hour(hour(), &[row("a", 1), row("b", 2)], &[row("b", 2), row("a", 1)]);
        assert!(differences.is_empty());
        assert_eq!(differences.rows_compared, 2);
    }

    #[test]
    fn each_differing_column_is_named_and_a_missing_row_too() {
        let mut differences = Differences::default();
        let kappa = BillingCounts { conflicts: 1, ..row("a", 3) };
        differences.add_hour(hour(), &[row("a", 1), row("b", 2)], &[kappa]);
        assert_eq!((differences.rows_compared, differences.rows_differing), (2, 2));
        assert_eq!(differences.rows[0].columns, [Column::Gross, Column::Conflicts, Column::Billable]);
        assert_eq!(
            (&differences.rows[1].columns[..], &differences.rows[1].kappa),
            (&[Column::Row][..], &None)
        );
    }

    #[test]
    fn a_row_of_zeros_says_the_same_as_no_row() {
        let mut differences = Differences::default();
        differences.add_hour(hour(), &[row("a", 0), row("b", 1)], &[row("b", 1), row("c", 0)]);
        assert!(differences.is_empty(), "{differences:?}");
    }

    #[test]
    fn more_rows_than_are_listed_are_counted() {
        let rows: Vec<_> = (0..1_200).map(|number| row(&format!("c{number}"), 1)).collect();
        let mut differences = Differences::default();
        differences.add_hour(hour(), &rows, &[]);
        assert_eq!((differences.rows_differing, differences.rows.len()), (1_200, ROWS_LISTED_MAX));
        assert!(differences.truncated);
    }
}
