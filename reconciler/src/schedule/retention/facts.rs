//! What a pass knows before it decides: the state of each hour, and the files of expired ones that still lie there.

use std::collections::{BTreeMap, BTreeSet};

use twice_log::archive::{
    BillingStatus, FileEntry, FileKind, Grave, ManifestIndex, SweepRecord, TombstoneKey, TombstoneKeys,
};
use twice_log::{Hour, LogOffset, Topic, UtcMillis};

use super::super::book::RunBook;
use super::frozen::Reach;
use super::plan::{Ages, HourState};
use crate::error::Result;

/// Files put longer after their hour than clicks may be old came by an import: such hours' tombstones are read, to find
/// what came behind them. All others had every file before anything of them could go.
const LATE_AFTER_MS: i64 = 8 * 86_400_000;

/// A data file that no tombstone names.
#[derive(Debug, Clone)]
pub(super) struct Lying {
    pub entry: FileEntry,
    pub put_at: UtcMillis,
    /// Clicks: whether the hour's newest run has read it. Verdicts: whether a sweep has looked at all of it.
    pub is_seen: bool,
}

/// Files by kind and hour.
pub(super) type LyingFiles = BTreeMap<(Grave, Hour), Vec<Lying>>;

/// What a pass decides by.
#[derive(Debug)]
pub(super) struct Facts {
    pub states: BTreeMap<Hour, HourState>,
    pub lying: LyingFiles,
}

/// Returns the state of every hour with clicks or a bill.
pub(super) fn states(
    index: &ManifestIndex,
    book: &RunBook,
    reach: &Reach,
    sweep: Option<&SweepRecord>,
) -> BTreeMap<Hour, HourState> {
    let later = book.with_later_clicks(index, BillingStatus::Final);
    let owed: BTreeSet<Hour> = sweep.iter().flat_map(|sweep| sweep.owed.iter().copied()).collect();
    let hours = index.click_hours().keys().copied().chain(book.runs().map(|(hour, _)| hour));
    let state = |hour: Hour| {
        if reach.is_settled(hour) {
            return HourState::Settled;
        }
        match book.run(hour) {
            _ if book.open().contains(&hour) => HourState::Needed("has a run without an end"),
            None if reach.why(hour).is_some() => HourState::Uncountable,
            None => HourState::Needed("is not billed yet"),
            Some(run) if run.status < BillingStatus::Final => HourState::Needed("is not final yet"),
            Some(_) if later.contains(&hour) => {
                HourState::Needed("has clicks that its bill has not seen yet")
            }
            Some(_) if owed.contains(&hour) => HourState::Needed("is owed a restatement that failed"),
            Some(_) => HourState::Final,
        }
    };
    hours.map(|hour| (hour, state(hour))).collect()
}

/// Returns the files of expired hours, and of quarantine, that no tombstone names.
///
/// # Errors
/// Those of the archive.
pub(super) async fn lying(
    index: &ManifestIndex,
    book: &RunBook,
    sweep: Option<&SweepRecord>,
    keys: &TombstoneKeys,
    ages: Ages,
    only: Option<Hour>,
) -> Result<LyingFiles> {
    let wanted = |grave: Grave, hour: Hour| {
        only.is_none_or(|only| only == hour)
            && match grave {
                Grave::AdClicks => ages.are_clicks_expired(hour),
                _ => ages.is_expired(hour.end()),
            }
    };
    let named = |grave, hour| keys.contains_key(&TombstoneKey { grave, hour, number: 1 });
    let mut late: BTreeSet<(Grave, Hour)> = BTreeSet::new();
    each_file(index, |grave, hour, _, put_at, _| {
        let is_late = put_at > hour.end().plus_ms(LATE_AFTER_MS) && !grave.is_quarantine();
        if wanted(grave, hour) && named(grave, hour) && is_late {
            late.insert((grave, hour));
        }
    });
    let mut lying = LyingFiles::new();
    each_file(index, |grave, hour, chain_end, put_at, entry| {
        if !wanted(grave, hour) || (named(grave, hour) && !late.contains(&(grave, hour))) {
            return;
        }
        let (chain, end) = chain_end;
        let is_seen = match grave {
            Grave::AdClicks => book.run(hour).is_some_and(|run| end <= run.end(chain)),
            Grave::FraudVerdicts => sweep.is_some_and(|sweep| {
                let mut ends = sweep.verdict_ends.iter();
                ends.any(|swept| {
                    (swept.generation, swept.partition) == (chain.generation, chain.partition)
                        && end <= swept.end
                })
            }),
            Grave::QuarantineAdClicks | Grave::QuarantineFraudVerdicts => true,
        };
        lying.entry((grave, hour)).or_default().push(Lying { entry: entry.clone(), put_at, is_seen });
    });
    for (grave, hour) in late {
        for stored in index.archive().tombstones_of(grave, hour).await? {
            let buried: BTreeSet<&str> =
                stored.tombstone.files.iter().map(|file| file.path.as_str()).collect();
            if let Some(files) = lying.get_mut(&(grave, hour)) {
                files.retain(|file| !buried.contains(file.entry.path.as_str()));
            }
        }
    }
    lying.retain(|_, files| !files.is_empty());
    Ok(lying)
}

/// Calls `take` with each file that manifests commit: kind, hour, chain and end of its manifest, when that was put.
fn each_file(
    index: &ManifestIndex,
    mut take: impl FnMut(Grave, Hour, (twice_log::archive::ChainKey, LogOffset), UtcMillis, &FileEntry),
) {
    for chain in index.chains() {
        for (stored, put_at) in index.manifests_put(chain) {
            for entry in &stored.manifest.files {
                let grave = Grave::of(entry.kind, topic_of(entry.kind, chain.topic));
                // Quarantine has no hour of its own: it counts from when it was archived.
                let hour = entry.hour.unwrap_or_else(|| put_at.hour());
                take(grave, hour, (chain, stored.end()), put_at, entry);
            }
        }
    }
}

fn topic_of(kind: FileKind, topic: Topic) -> Topic {
    match kind {
        FileKind::Clicks => Topic::AdClicks,
        FileKind::Verdicts => Topic::FraudVerdicts,
        FileKind::Quarantine => topic,
    }
}
