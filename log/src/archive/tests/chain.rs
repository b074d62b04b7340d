//! Chains and the index over them: a hole, a swap or a changed byte is an error, never a smaller answer.

use proptest::prelude::*;

use super::*;
use crate::archive::{Cutoff, ManifestIndex, PutOutcome, layout};
use crate::error::{Error, Result};
use crate::event::{Hour, Sha256Hex};

async fn four_manifests() -> Archive {
    let archive = memory();
    let mut archiver = archiver(&archive).await;
    for end in [100, 200, 300, 400] {
        push_until(&mut archiver, end);
        archiver.flush().await.expect("flushes");
    }
    archive
}

/// Copies every manifest but those whose bytes `change` takes away; may change what it keeps.
async fn copied(archive: &Archive, change: impl Fn(i64, Vec<u8>) -> Option<Vec<u8>>) -> Archive {
    let copy = memory();
    for first in [0, 100, 200, 300] {
        let path = layout::manifest_path(CLICKS, LogOffset(first));
        let bytes = archive.get(&path).await.expect("reads").expect("is there");
        if let Some(bytes) = change(first, bytes.to_vec()) {
            copy.put_if_absent(&path, bytes.into()).await.expect("puts");
        }
    }
    copy
}

async fn refusal(archive: &Archive) -> bool {
    let direct = archive.manifests(CLICKS, None).await;
    let mut index = ManifestIndex::new(archive.clone());
    let indexed = index.refresh().await;
    assert_eq!(direct.is_err(), indexed.is_err());
    matches!(direct, Err(Error::ArchiveDamage { .. })) && matches!(indexed, Err(Error::ArchiveDamage { .. }))
}

#[tokio::test]
async fn a_whole_chain_is_read_from_the_start_or_from_behind_a_manifest() {
    let archive = four_manifests().await;
    assert_eq!(archive.manifests(CLICKS, None).await.expect("whole").len(), 4);
    assert_eq!(archive.manifests(CLICKS, Some(LogOffset(100))).await.expect("whole").len(), 2);
    assert!(archive.manifests(CLICKS, Some(LogOffset(50))).await.is_err(), "no manifest begins there");
    let head = archive.head(CLICKS).await.expect("reads").expect("a head");
    assert_eq!((head.manifest.first, head.end()), (LogOffset(300), LogOffset(400)));
    assert_eq!(archive.head(VERDICTS).await.expect("reads"), None);
    assert_eq!(archive.chains().await.expect("lists"), [CLICKS]);
}

#[tokio::test]
async fn a_removed_manifest_is_an_error() {
    let archive = four_manifests().await;
    for removed in [0, 100, 200] {
        let copy = copied(&archive, |first, bytes| (first != removed).then_some(bytes)).await;
        assert!(refusal(&copy).await, "manifest {removed} is gone");
    }
}

#[tokio::test]
async fn a_manifest_swapped_for_another_is_an_error() {
    let archive = four_manifests().await;
    let other = memory();
    let mut archiver = archiver(&other).await;
    for end in [100, 200] {
        // Other records at the same offsets: a valid manifest of another history.
        for offset in archiver.next_offset().0..end {
            archiver.push(LogOffset(offset), b"other").expect("takes the record");
        }
        archiver.flush().await.expect("flushes");
    }
    for swapped in [0, 100] {
        let path = layout::manifest_path(CLICKS, LogOffset(swapped));
        let foreign = other.get(&path).await.expect("reads").expect("is there").to_vec();
        let copy =
            copied(&archive, |first, bytes| Some(if first == swapped { foreign.clone() } else { bytes }))
                .await;
        assert!(refusal(&copy).await, "manifest {swapped} is another one");
    }
}

#[tokio::test]
async fn a_manifest_under_another_key_or_with_a_changed_sum_is_an_error() {
    let archive = four_manifests().await;
    let second = archive.get(&layout::manifest_path(CLICKS, LogOffset(100))).await.expect("reads");
    let second = second.expect("is there").to_vec();
    let misplaced =
        copied(&archive, |first, bytes| Some(if first == 200 { second.clone() } else { bytes })).await;
    assert!(refusal(&misplaced).await);
    let changed = copied(&archive, |first, bytes| {
        let text = String::from_utf8(bytes).expect("JSON is text");
        Some(if first == 300 { text.replacen("\"rows\":", "\"rows\":1", 1) } else { text }.into_bytes())
    });
    assert!(refusal(&changed.await).await);
    let stranger = copied(&archive, |_, bytes| Some(bytes)).await;
    let path = format!("{}/stranger.json", layout::manifest_folder(CLICKS));
    stranger.put_if_absent(&path, "{}".into()).await.expect("puts");
    assert!(refusal(&stranger).await);
}

#[tokio::test]
async fn the_index_reads_only_what_came_since_and_finds_a_break_there() {
    let archive = four_manifests().await;
    let mut index = ManifestIndex::new(archive.clone());
    assert_eq!(index.refresh().await.expect("refreshes"), 4);
    assert_eq!(index.refresh().await.expect("refreshes"), 0);
    let mut archiver = archiver(&archive).await;
    push_until(&mut archiver, 450);
    archiver.flush().await.expect("flushes");
    assert_eq!(index.refresh().await.expect("refreshes"), 1);
    assert_eq!(index.covered_end(CLICKS), LogOffset(450));
    let forged = index.manifests(CLICKS)[1].manifest.clone();
    let forged = crate::archive::Manifest { first: LogOffset(450), last: LogOffset(549), ..forged };
    let path = layout::manifest_path(CLICKS, LogOffset(450));
    let bytes = serde_json::to_vec(&forged).expect("encodes");
    archive.put_if_absent(&path, bytes.into()).await.expect("puts");
    assert!(matches!(index.refresh().await, Err(Error::ArchiveDamage { .. })));
    assert_eq!(index.covered_end(CLICKS), LogOffset(450), "what was checked before stays");
}

#[tokio::test]
async fn an_index_over_a_local_directory_is_empty_at_first_and_then_finds_the_chain() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path().join("archive");
    let archive = Archive::open_local(Arc::new(crate::fs::RealFs), &root).expect("opens");
    let mut index = ManifestIndex::new(archive.clone());
    assert_eq!(index.refresh().await.expect("refreshes"), 0);
    assert_eq!(archive.run_hours(crate::archive::BillingPath::Lambda).await.expect("lists"), []);
    let mut archiver = archiver(&archive).await;
    for end in [50, 60] {
        push_until(&mut archiver, end);
        archiver.flush().await.expect("flushes");
        assert_eq!(index.refresh().await.expect("refreshes"), 1);
    }
    assert_eq!(index.covered_end(CLICKS), LogOffset(60));
    let mut reader = ManifestIndex::new(Archive::read_local(&root).expect("opens"));
    assert_eq!(reader.refresh().await.expect("refreshes"), 2);
    assert_archived(reader.archive(), 60).await;
}

#[tokio::test]
async fn a_cutoff_names_the_first_manifest_that_reaches_it() {
    let mut index = ManifestIndex::new(four_manifests().await);
    index.refresh().await.expect("refreshes");
    for (end, first) in [(1, 0), (100, 0), (101, 100), (400, 300)] {
        let head = index.head(CLICKS, LogOffset(end)).expect("is covered");
        assert_eq!(head.manifest.first, LogOffset(first), "cutoff {end}");
        let cutoff = index.cutoff(CLICKS, LogOffset(end)).expect("is covered");
        assert_eq!(cutoff.head_manifest_sha256.as_ref(), Some(&head.sha256));
    }
    assert_eq!(index.cutoff(CLICKS, LogOffset(401)), None);
    let empty = index.cutoff(VERDICTS, LogOffset(0)).expect("nothing to cover");
    assert_eq!(empty.head_manifest_sha256, None);
}

#[tokio::test]
async fn files_for_hours_are_those_below_the_cutoffs_in_manifest_order() {
    let archive = memory();
    let mut archiver = archiver(&archive).await;
    for end in [300, 600, 900] {
        push_until(&mut archiver, end); // two seconds of the first hour, then the next
        archiver.flush().await.expect("flushes");
    }
    let mut index = ManifestIndex::new(archive);
    index.refresh().await.expect("refreshes");
    let (twelve, thirteen): (Hour, Hour) =
        ("2025-01-15T12".parse().expect("hour"), "2025-01-15T13".parse().expect("hour"));
    let files = |hours, end: i64| -> Result<Vec<i64>> {
        let cutoff = index.cutoff(CLICKS, LogOffset(end)).ok_or(Error::Stopped)?;
        let files = index.files_for_hours(FileKind::Clicks, hours, &[cutoff])?;
        let first =
            |path: &str| path.rsplit('/').next().and_then(|name| name.split('-').nth(2)?.parse().ok());
        Ok(files.iter().filter_map(|file| first(&file.path)).collect())
    };
    assert_eq!(files(thirteen..=thirteen, 900).expect("covered"), [300, 600]);
    assert_eq!(files(twelve..=thirteen, 301).expect("covered")[..2], [0, 300]);
    assert_eq!(files(thirteen..=thirteen, 300).expect("covered"), Vec::<i64>::new());
    assert!(index.click_hours().contains_key(&twelve) && index.click_hours().contains_key(&thirteen));
    let uncovered = Cutoff {
        topic: CLICKS.topic,
        generation: CLICKS.generation,
        partition: CLICKS.partition,
        end: LogOffset(901),
        head_manifest_sha256: None,
    };
    assert!(
        index.files_for_hours(FileKind::Clicks, twelve..=thirteen, std::slice::from_ref(&uncovered)).is_err()
    );
    let other_head =
        Cutoff { end: LogOffset(900), head_manifest_sha256: Some(Sha256Hex::of(b"other")), ..uncovered };
    assert!(index.files_for_hours(FileKind::Clicks, twelve..=thirteen, &[other_head]).is_err());
}

#[tokio::test]
async fn the_second_put_of_a_path_returns_what_the_first_one_put() {
    let archive = memory();
    let first = archive.put_if_absent("a/b.json", "one".into()).await.expect("puts");
    let second = archive.put_if_absent("a/b.json", "two".into()).await.expect("puts");
    assert_eq!((first, second), (PutOutcome::Put, PutOutcome::Exists("one".into())));
    assert_eq!(archive.get("a/b.json").await.expect("reads"), Some("one".into()));
    assert_eq!(archive.get("a/c.json").await.expect("reads"), None);
}

proptest! {
    #[test]
    fn no_bytes_panic_the_manifest_reader(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let path = layout::manifest_path(CLICKS, LogOffset(0));
        prop_assert!(StoredManifest::decode(&path, &bytes).is_err());
    }

    #[test]
    fn no_numbers_panic_the_manifest_reader(first: i64, last: i64, rows: u64, more_rows: u64, generation: u32) {
        let file = |rows: u64| format!(
            r#"{{"path":"p","bucket":"b","hour":null,"kind":"clicks","rows":{rows},"bytes":1,"sha256":"x"}}"#
        );
        let json = format!(
            r#"{{"topic":"ad-clicks","generation":{generation},"partition":3,"partition_count":8,"hash_name":"h",
            "first":{first},"last":{last},"previous_sha256":null,"highest_time":null,"files":[{},{}]}}"#,
            file(rows), file(more_rows)
        );
        let chain = ChainKey { generation: Generation(generation), ..CLICKS };
        let path = layout::manifest_path(chain, LogOffset(first));
        if let Ok(stored) = StoredManifest::decode(&path, json.as_bytes()) {
            prop_assert_eq!(rows + more_rows, (stored.end().0 - first) as u64);
        }
    }

    #[test]
    fn no_changed_byte_of_a_manifest_panics_its_reader(at in 0_usize..400, byte: u8) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("builds");
        let path = layout::manifest_path(CLICKS, LogOffset(0));
        let mut bytes = runtime.block_on(async {
            let archive = memory();
            let mut archiver = archiver(&archive).await;
            archiver.push(LogOffset(0), b"x").expect("takes the record");
            archiver.flush().await.expect("flushes");
            archive.get(&path).await.expect("reads").expect("is there").to_vec()
        });
        let at = at % bytes.len();
        bytes[at] = byte;
        let _ = StoredManifest::decode(&path, &bytes);
    }
}
