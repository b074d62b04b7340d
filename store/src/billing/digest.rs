//! The digest of a billing row (CR-8): what two runs compare, and what an auditor recomputes.
//!
//! Canonical encoding: the lines below, each ended by one line feed (0x0A), all ASCII. Identifiers are visible ASCII, so
//! no line holds a line feed of its own and no two rows share an encoding.
//!
//! ```text
//! count-twice billing row 1        the version of this encoding
//! camp_123                         campaign_id
//! 2025-01-15T12:00:00Z             start of the hour
//! 852                              gross
//! 3                                duplicates
//! 1                                conflicts
//! 1                                invalid_givt
//! 1                                invalid_sivt
//! 847                              billable
//! 0                                unpriced
//! 423500000                        amount_micros
//! USD                              currency; an empty line where there is none
//! ```
//!
//! Numbers are decimal without leading zeros or plus sign. The digest is the SHA-256 of these bytes in lower-case
//! hexadecimal. In Python:
//!
//! ```python
//! lines = ["count-twice billing row 1", campaign_id, hour_start, gross, duplicates, conflicts, invalid_givt,
//!          invalid_sivt, billable, unpriced, amount_micros, currency or ""]
//! digest = hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()
//! ```
//!
//! Path, version, status, run and times stay out: the same counts by another path, or in a later run, are the same row.

use std::fmt::Write;

use twice_log::Hour;
use twice_log::event::Sha256Hex;

use super::BillingCounts;

/// First line of the canonical encoding. A change of the encoding changes it.
const ENCODING: &str = "count-twice billing row 1";

/// Returns the canonical encoding of a row, as the module describes it.
pub fn canonical_row(hour: Hour, counts: &BillingCounts) -> String {
    let currency = counts.currency.as_ref().map_or("", |currency| currency.as_str());
    let mut text = String::with_capacity(192);
    let numbers = [
        counts.gross,
        counts.duplicates,
        counts.conflicts,
        counts.invalid_givt,
        counts.invalid_sivt,
        counts.billable,
        counts.unpriced,
    ];
    // Writing to a String cannot fail.
    let _ = write!(text, "{ENCODING}\n{}\n{hour}:00:00Z\n", counts.campaign_id);
    for number in numbers {
        let _ = writeln!(text, "{number}");
    }
    let _ = write!(text, "{}\n{currency}\n", counts.amount_micros);
    text
}

/// Returns the digest of a row (CR-8).
pub fn row_digest(hour: Hour, counts: &BillingCounts) -> Sha256Hex {
    Sha256Hex::of(canonical_row(hour, counts).as_bytes())
}

#[cfg(test)]
mod tests {
    use twice_log::CampaignId;

    use super::*;

    fn counts() -> BillingCounts {
        BillingCounts {
            campaign_id: CampaignId::new("camp_123").expect("valid id"),
            gross: 852,
            duplicates: 3,
            conflicts: 1,
            invalid_givt: 1,
            invalid_sivt: 1,
            billable: 847,
            unpriced: 0,
            amount_micros: 423_500_000,
            currency: Some("USD".parse().expect("valid currency")),
        }
    }

    fn hour() -> Hour {
        "2025-01-15T12".parse().expect("valid hour")
    }

    #[test]
    fn the_encoding_and_the_digest_are_those_published() {
        let expected = "count-twice billing row 1\ncamp_123\n2025-01-15T12:00:00Z\n852\n3\n1\n1\n1\n847\n0\n\
                        423500000\nUSD\n";
        assert_eq!(canonical_row(hour(), &counts()), expected);
        // Recomputed with Python's hashlib by the snippet of the module header.
        assert_eq!(
            row_digest(hour(), &counts()).0,
            "a04cf24a955ea1c5b80c5ffdaaaf04ba345ec14cb3efeeca9b20c91499cd5de1"
        );
    }

    #[test]
    fn a_row_without_currency_ends_in_an_empty_line() {
        let zeros = BillingCounts::zero(CampaignId::new("c").expect("valid id"), None);
        assert!(canonical_row(hour(), &zeros).ends_with("\n0\n0\n\n"));
        assert_eq!(
            row_digest(hour(), &zeros).0,
            "65ede69269fffb0636c553ea234fb70e96e7d6f3956c8ee7b7333dbeab60a9d6"
        );
    }

    #[test]
    fn every_count_changes_the_digest() {
        let base = row_digest(hour(), &counts());
        let changes: [fn(&mut BillingCounts); 10] = [
            |counts| counts.campaign_id = CampaignId::new("camp_124").expect("valid id"),
            |counts| counts.gross += 1,
            |counts| counts.duplicates += 1,
            |counts| counts.conflicts += 1,
            |counts| counts.invalid_givt += 1,
            |counts| counts.invalid_sivt += 1,
            |counts| counts.billable += 1,
            |counts| counts.unpriced += 1,
            |counts| counts.amount_micros += 1,
            |counts| counts.currency = None,
        ];
        for change in changes {
            let mut changed = counts();
            change(&mut changed);
            assert_ne!(row_digest(hour(), &changed), base);
        }
        assert_ne!(row_digest(hour().plus(1), &counts()), base);
    }
}
