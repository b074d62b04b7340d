//! Where each object of the archive lies below the root, and what a listed path says.
//!
//! Paths are public and fixed: readers of other tools find files by them. Numbers that must sort as text
//! are padded; hours are written `2025-01-15T12`, and as Hive folders where tools prune by them.

use super::{AggregateLevel, BillingPath, FileKind, Grave, RunKey, TombstoneKey};
use crate::event::{Generation, Hour, LogOffset, PartitionId, Sha256Hex, Topic, UtcMillis};

/// One partition of one topic in one generation: what a chain of manifests belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainKey {
    pub topic: Topic,
    pub generation: Generation,
    pub partition: PartitionId,
}

/// Returns the folder of the chain's manifests.
pub fn manifest_folder(chain: ChainKey) -> String {
    format!("manifests/{}/{}/{}", chain.topic, chain.generation, chain.partition)
}

/// Returns the key of the manifest that begins at `first`. It carries no last offset, so that two writers meet.
pub fn manifest_path(chain: ChainKey, first: LogOffset) -> String {
    format!("{}/{:020}.json", manifest_folder(chain), first.0)
}

/// Returns the chain and first offset of a manifest's key.
pub fn parse_manifest_path(path: &str) -> Option<(ChainKey, LogOffset)> {
    let mut parts = path.strip_prefix("manifests/")?.split('/');
    let topic = Topic::from_name(parts.next()?)?;
    let generation = Generation(parse_number(parts.next()?)?);
    let partition = PartitionId(parse_number(parts.next()?)?);
    let digits = parts.next()?.strip_suffix(".json")?;
    let first = if digits.len() == 20 { digits.parse().ok()? } else { return None };
    let chain = ChainKey { topic, generation, partition };
    // Refuses what only looks like a key, such as a sign or a missing zero: nothing but our own form counts.
    (parts.next().is_none() && manifest_path(chain, LogOffset(first)) == path)
        .then_some((chain, LogOffset(first)))
}

/// Returns the path of a data file. `hour` is the event hour of clicks and the arrival hour of verdicts.
///
/// `first` and `last` are those of the manifest that commits the file, both inclusive.
pub fn data_path(
    kind: FileKind,
    chain: ChainKey,
    hour: Option<Hour>,
    first: LogOffset,
    last: LogOffset,
    sha256: &Sha256Hex,
) -> String {
    let folder = match kind {
        FileKind::Clicks => format!("clicks/{}", hour_folder(hour)),
        FileKind::Verdicts => format!("verdicts/{}", hour_folder(hour)),
        FileKind::Quarantine => format!("quarantine/{}", chain.topic),
    };
    let ChainKey { generation, partition, .. } = chain;
    format!("{folder}/{generation}-{partition}-{first}-{last}-{}.parquet", sha256.prefix())
}

/// Returns the folder of the files of clicks of an event hour.
pub fn clicks_folder(hour: Hour) -> String {
    format!("clicks/{}", hour_folder(Some(hour)))
}

/// Returns the folder of the files of verdicts that arrived in an hour.
pub fn verdicts_folder(hour: Hour) -> String {
    format!("verdicts/{}", hour_folder(Some(hour)))
}

/// Where a data file's positions lie, both ends inclusive: those of the manifest that commits it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataSpan {
    pub generation: Generation,
    pub partition: PartitionId,
    pub first: LogOffset,
    pub last: LogOffset,
}

/// Returns where the positions of a data file lie, by its path.
pub fn parse_data_path(path: &str) -> Option<DataSpan> {
    let name = path.rsplit('/').next()?.strip_suffix(".parquet")?;
    let mut parts = name.split('-');
    Some(DataSpan {
        generation: Generation(parse_number(parts.next()?)?),
        partition: PartitionId(parse_number(parts.next()?)?),
        first: LogOffset(parts.next()?.parse().ok()?),
        last: LogOffset(parts.next()?.parse().ok()?),
    })
}

/// Returns `year=YYYY/month=MM/day=DD/hour=HH`.
fn hour_folder(hour: Option<Hour>) -> String {
    let text = hour.map(|hour| hour.to_string()).unwrap_or_default();
    match (text.get(0..4), text.get(5..7), text.get(8..10), text.get(11..13)) {
        (Some(year), Some(month), Some(day), Some(hour)) => {
            format!("year={year}/month={month}/day={day}/hour={hour}")
        }
        _ => "hour=unknown".to_owned(),
    }
}

/// Returns the path of one partition's seal of `hour`.
pub fn seal_path(hour: Hour, generation: Generation, partition: PartitionId) -> String {
    format!("seals/{hour}/{generation}-{partition}.json")
}

/// Returns the folder of an hour's seals.
pub fn seal_folder(hour: Hour) -> String {
    format!("seals/{hour}")
}

/// Returns hour, generation and partition of a seal's path.
pub fn parse_seal_path(path: &str) -> Option<(Hour, Generation, PartitionId)> {
    let (hour, name) = path.strip_prefix("seals/")?.split_once('/')?;
    let (generation, partition) = name.strip_suffix(".json")?.split_once('-')?;
    let hour: Hour = hour.parse().ok()?;
    let (generation, partition) =
        (Generation(parse_number(generation)?), PartitionId(parse_number(partition)?));
    (seal_path(hour, generation, partition) == path).then_some((hour, generation, partition))
}

/// Returns the folder of all runs of one billing path.
pub fn runs_folder(path: BillingPath) -> String {
    format!("runs/{path}")
}

/// Returns the folder of an hour's runs.
pub fn run_folder(path: BillingPath, hour: Hour) -> String {
    format!("runs/{path}/{hour}")
}

/// Returns the path of a run's inputs.
pub fn run_inputs_path(path: BillingPath, hour: Hour, seq: u32) -> String {
    format!("runs/{path}/{hour}/{seq:06}.json")
}

/// Returns the path of a run's result.
pub fn run_result_path(path: BillingPath, hour: Hour, seq: u32) -> String {
    format!("runs/{path}/{hour}/{seq:06}.result.json")
}

/// Returns the path of the list of a run's files of aggregates.
pub fn aggregate_set_path(run: RunKey) -> String {
    format!("aggregates/{run}.json")
}

/// Returns the path of a file of aggregates. It carries no number of a run: equal bytes have one place.
pub fn aggregate_path(path: BillingPath, hour: Hour, level: AggregateLevel, sha256: &Sha256Hex) -> String {
    // The whole hash: nothing else in the name tells two files of an hour apart.
    format!("aggregates/{path}/{hour}/{}-{}.parquet", level.name(), sha256.0)
}

/// Folder of the records of sweeps.
pub const SWEEPS_FOLDER: &str = "sweeps";

/// Returns the path of the record of a sweep.
pub fn sweep_path(seq: u32) -> String {
    format!("{SWEEPS_FOLDER}/{seq:08}.json")
}

/// Folder of what was deleted under retention.
pub const TOMBSTONES_FOLDER: &str = "tombstones";
/// Folder of the gateways' copies of their spools, which billing never reads.
pub const SPOOL_FOLDER: &str = "spool";
/// Folder of what was billed of hours that can no longer be counted.
pub const SETTLED_FOLDER: &str = "settled";

/// Returns the folder of the tombstones of one kind.
pub fn tombstone_folder(grave: Grave) -> String {
    format!("{TOMBSTONES_FOLDER}/{grave}")
}

/// Returns the path of a tombstone: the first of an hour carries no number.
pub fn tombstone_path(key: TombstoneKey) -> String {
    format!("{}.json", tombstone_stem(key))
}

/// Returns the path of the marker that every file of a tombstone is gone.
pub fn tombstone_removed_path(key: TombstoneKey) -> String {
    format!("{}.removed.json", tombstone_stem(key))
}

fn tombstone_stem(TombstoneKey { grave, hour, number }: TombstoneKey) -> String {
    match number {
        1 => format!("{TOMBSTONES_FOLDER}/{grave}/{hour}"),
        _ => format!("{TOMBSTONES_FOLDER}/{grave}/{hour}.{number}"),
    }
}

/// Returns which tombstone a path is of, and whether it is the marker that its files are gone.
pub fn parse_tombstone_path(path: &str) -> Option<(TombstoneKey, bool)> {
    let (folder, name) = path.strip_prefix(TOMBSTONES_FOLDER)?.strip_prefix('/')?.split_once('/')?;
    let grave = Grave::ALL.into_iter().find(|grave| grave.name() == folder)?;
    let stem = name.strip_suffix(".json")?;
    let (stem, is_marker) = stem.strip_suffix(".removed").map_or((stem, false), |stem| (stem, true));
    let (hour, number) = match stem.split_once('.') {
        Some((hour, number)) => (hour, parse_number(number)?),
        None => (stem, 1),
    };
    let key = TombstoneKey { grave, hour: hour.parse().ok()?, number };
    let again = if is_marker { tombstone_removed_path(key) } else { tombstone_path(key) };
    (again == path).then_some((key, is_marker))
}

/// Returns the path of what was billed of an hour that can no longer be counted.
pub fn settled_path(hour: Hour) -> String {
    format!("{SETTLED_FOLDER}/{hour}.json")
}

/// Returns the hour of such a path.
pub fn parse_settled_path(path: &str) -> Option<Hour> {
    let name = path.strip_prefix(SETTLED_FOLDER)?.strip_prefix('/')?;
    let hour: Hour = name.strip_suffix(".json")?.parse().ok()?;
    (settled_path(hour) == path).then_some(hour)
}

/// Returns the path of the texts of counting rules.
pub fn rules_path(sha256: &Sha256Hex) -> String {
    format!("rules/{sha256}.json")
}

/// Folder of what comparisons of both paths found.
pub const COMPARISONS_FOLDER: &str = "comparisons";

/// Returns the name of a comparison: names sort by the time they were made.
pub fn comparison_id(created_at: UtcMillis, from: Hour, to: Hour) -> String {
    // As RFC 3339, always with milliseconds, and without what some file systems refuse in a name.
    let created: String =
        created_at.to_string().chars().filter(|letter| letter.is_ascii_alphanumeric()).collect();
    format!("{created}-{from}-{to}")
}

/// Returns the path of a comparison.
pub fn comparison_path(id: &str) -> String {
    format!("{COMPARISONS_FOLDER}/{id}.json")
}

/// Returns the hours a comparison's name says.
pub fn parse_comparison_id(id: &str) -> Option<(Hour, Hour)> {
    let (created, hours) = id.split_once('-')?;
    let is_time = created.len() >= 15 && created.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let (from, to) = (hours.get(..13)?.parse().ok()?, hours.get(14..)?.parse().ok()?);
    (is_time && hours == format!("{from}-{to}")).then_some((from, to))
}

/// Which of a run's two objects a path names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunObject {
    Inputs,
    Result,
}

/// Returns hour, number and kind of a run's object.
pub fn parse_run_path(path: &str) -> Option<(BillingPath, Hour, u32, RunObject)> {
    let mut parts = path.strip_prefix("runs/")?.split('/');
    let billing_path = BillingPath::from_name(parts.next()?)?;
    let hour: Hour = parts.next()?.parse().ok()?;
    let name = parts.next()?.strip_suffix(".json")?;
    let (digits, object) = match name.strip_suffix(".result") {
        Some(digits) => (digits, RunObject::Result),
        None => (name, RunObject::Inputs),
    };
    let seq = parse_number(digits)?;
    let again = match object {
        RunObject::Inputs => run_inputs_path(billing_path, hour, seq),
        RunObject::Result => run_result_path(billing_path, hour, seq),
    };
    (again == path).then_some((billing_path, hour, seq, object))
}

fn parse_number(text: &str) -> Option<u32> {
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chain() -> ChainKey {
        ChainKey { topic: Topic::AdClicks, generation: Generation(1), partition: PartitionId(7) }
    }

    #[test]
    fn paths_are_those_the_design_fixes() {
        let hour: Hour = "2025-01-15T12".parse().expect("valid hour");
        let sha256 = Sha256Hex::of(b"");
        assert_eq!(
            data_path(FileKind::Clicks, chain(), Some(hour), LogOffset(5), LogOffset(9), &sha256),
            "clicks/year=2025/month=01/day=15/hour=12/1-7-5-9-e3b0c442.parquet"
        );
        assert_eq!(
            data_path(FileKind::Quarantine, chain(), None, LogOffset(5), LogOffset(9), &sha256),
            "quarantine/ad-clicks/1-7-5-9-e3b0c442.parquet"
        );
        assert_eq!(manifest_path(chain(), LogOffset(5)), "manifests/ad-clicks/1/7/00000000000000000005.json");
        assert_eq!(seal_path(hour, Generation(1), PartitionId(7)), "seals/2025-01-15T12/1-7.json");
        assert_eq!(run_inputs_path(BillingPath::Lambda, hour, 2), "runs/lambda/2025-01-15T12/000002.json");
        assert_eq!(
            run_result_path(BillingPath::Kappa, hour, 2),
            "runs/kappa/2025-01-15T12/000002.result.json"
        );
    }

    #[test]
    fn aggregates_lie_by_path_and_hour() {
        let hour: Hour = "2025-01-15T12".parse().expect("valid hour");
        let run = RunKey { path: BillingPath::Lambda, hour, seq: 2 };
        assert_eq!(aggregate_set_path(run), "aggregates/lambda/2025-01-15T12/000002.json");
        assert_eq!(
            aggregate_path(BillingPath::Lambda, hour, AggregateLevel::AdMinutes, &Sha256Hex::of(b"")),
            "aggregates/lambda/2025-01-15T12/ad-minutes-\
             e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855.parquet"
        );
    }

    #[test]
    fn a_comparisons_name_says_its_hours_and_no_other_text_does() {
        let hour: Hour = "2025-01-15T12".parse().expect("valid hour");
        let id = comparison_id(hour.end(), hour, hour.plus(2));
        assert_eq!(comparison_path(&id), "comparisons/20250115T130000000Z-2025-01-15T12-2025-01-15T14.json");
        assert_eq!(parse_comparison_id(&id), Some((hour, hour.plus(2))));
        for other in ["", "x-y", "../../secret", "20250115T130000000Z-2025-01-15T12", "\u{e9}-\u{e9}"] {
            assert_eq!(parse_comparison_id(other), None, "{other}");
        }
    }

    #[test]
    fn a_path_reads_back_as_what_it_was_made_of() {
        let hour: Hour = "2025-01-15T12".parse().expect("valid hour");
        assert_eq!(parse_manifest_path(&manifest_path(chain(), LogOffset(5))), Some((chain(), LogOffset(5))));
        assert_eq!(
            parse_seal_path(&seal_path(hour, Generation(1), PartitionId(7))),
            Some((hour, Generation(1), PartitionId(7)))
        );
        for (path, object) in [
            (run_inputs_path(BillingPath::Kappa, hour, 12), RunObject::Inputs),
            (run_result_path(BillingPath::Kappa, hour, 12), RunObject::Result),
        ] {
            assert_eq!(parse_run_path(&path), Some((BillingPath::Kappa, hour, 12, object)));
        }
    }

    #[test]
    fn a_tombstones_path_says_kind_hour_and_number_and_no_other_path_does() {
        let hour: Hour = "2025-01-15T12".parse().expect("valid hour");
        for (grave, number) in Grave::ALL.into_iter().flat_map(|grave| [(grave, 1), (grave, 2)]) {
            let key = TombstoneKey { grave, hour, number };
            assert_eq!(parse_tombstone_path(&tombstone_path(key)), Some((key, false)));
            assert_eq!(parse_tombstone_path(&tombstone_removed_path(key)), Some((key, true)));
        }
        let first = TombstoneKey { grave: Grave::AdClicks, hour, number: 1 };
        assert_eq!(tombstone_path(first), "tombstones/ad-clicks/2025-01-15T12.json");
        for path in [
            "tombstones/ad-clicks/2025-01-15T12.1.json",
            "tombstones/ad-clicks/2025-01-15T12.02.json",
            "tombstones/other/2025-01-15T12.json",
            "tombstones/ad-clicks/2025-01-15T12.json/more",
        ] {
            assert_eq!(parse_tombstone_path(path), None, "{path}");
        }
    }

    #[test]
    fn a_path_in_another_form_is_no_object_of_ours() {
        for path in [
            "manifests/ad-clicks/1/7/5.json",
            "manifests/ad-clicks/01/7/00000000000000000005.json",
            "manifests/ad-clicks/1/7/+0000000000000000005.json",
            "manifests/ad-clicks/1/7/00000000000000000005.json/more",
            "manifests/other/1/7/00000000000000000005.json",
        ] {
            assert_eq!(parse_manifest_path(path), None, "{path}");
        }
        assert_eq!(parse_run_path("runs/lambda/2025-01-15T12/2.json"), None);
        assert_eq!(parse_seal_path("seals/2025-01-15T12:00:00Z/1-7.json"), None);
    }

    proptest! {
        #[test]
        fn no_path_panics_the_parsers(path in "(manifests|seals|runs)(/[a-z0-9T:.+-]{0,24}){0,5}") {
            let _ = parse_manifest_path(&path);
            let _ = parse_seal_path(&path);
            let _ = parse_run_path(&path);
        }
    }
}
