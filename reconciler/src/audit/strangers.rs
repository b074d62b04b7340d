//! Row versions in the store that no run wrote.

use std::collections::BTreeSet;

use twice_log::archive::{BillingPath, RunKey};
use twice_store::BillingQuery;

use super::certificate::Check;
use super::findings::Findings;
use super::history::{Historian, name_of};
use crate::error::Result;

/// Rows read at once.
const PAGE: u32 = 10_000;

impl Historian<'_> {
    /// Finds row versions in the store that are of no run in `committed`: those of the store whose rows were compared.
    pub(super) async fn find_strangers(
        &self,
        path: BillingPath,
        committed: &BTreeSet<u32>,
        findings: &mut Findings,
    ) -> Result<()> {
        // By the numbers that there are: a stray row may stand far beyond a gap.
        let versions = self.marks.versions.iter().filter(|(of, _)| *of == path);
        for version in versions.map(|(_, version)| *version) {
            let mut query = BillingQuery {
                from: self.hour,
                to: self.hour.plus(1),
                campaigns: None,
                path: Some(path),
                version: Some(version),
                as_of: None,
                limit: PAGE,
                cursor: None,
            };
            loop {
                let page = self.billing.billing(&query).await?;
                for row in &page.rows {
                    let run: Option<RunKey> = row.run_id.parse().ok();
                    let is_known = run.is_some_and(|run| {
                        (run.path, run.hour) == (path, self.hour) && committed.contains(&run.seq)
                    });
                    if !is_known && findings.covers(&row.counts.campaign_id) {
                        let reason =
                            format!("is of run {}, which has committed nothing of the hour", row.run_id);
                        findings.add(Check::Store, name_of(row), reason);
                    }
                }
                query.cursor = page.next_cursor;
                if query.cursor.is_none() {
                    break;
                }
            }
        }
        Ok(())
    }
}
