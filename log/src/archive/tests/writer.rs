//! The archiver: what goes in comes out, once, whoever archives it.

use super::*;
use crate::archive::layout;
use crate::error::Error;
use crate::event::record::encode_verdict;
use crate::event::{Hour, ModelVersion, Verdict, VerdictClass};

#[tokio::test]
async fn records_come_back_as_copies_with_the_watermark_of_the_naive_model() {
    let archive = memory();
    let mut archiver = archiver(&archive).await;
    push_until(&mut archiver, 2_000);
    assert_eq!(archiver.rows(), 2_000);
    assert!(archiver.bytes() > 2_000 * 90);
    let stored = archiver.flush().await.expect("flushes").expect("a manifest");
    assert_eq!((stored.manifest.first, stored.manifest.last), (LogOffset(0), LogOffset(1_999)));
    assert_eq!((archiver.rows(), archiver.archived_end()), (0, LogOffset(2_000)));
    assert!(archiver.pending_since().is_none());
    assert_archived(&archive, 2_000).await;
}

#[tokio::test]
async fn a_flush_of_nothing_puts_nothing() {
    let archive = memory();
    let mut archiver = archiver(&archive).await;
    assert_eq!(archiver.flush().await.expect("flushes"), None);
    assert!(archive.list("manifests", None).await.expect("lists").is_empty());
}

#[tokio::test]
async fn flushes_and_restarts_make_one_chain_and_change_no_watermark() {
    let archive = memory();
    let mut first = archiver(&archive).await;
    for end in [100, 101, 700] {
        push_until(&mut first, end);
        first.flush().await.expect("flushes");
    }
    push_until(&mut first, 800); // lost with the process: the log has them still
    let mut second = archiver(&archive).await;
    assert_eq!(second.next_offset(), LogOffset(700));
    push_until(&mut second, 1_500);
    second.flush().await.expect("flushes");
    let firsts: Vec<i64> = archive
        .manifests(CLICKS, None)
        .await
        .expect("a whole chain")
        .iter()
        .map(|stored| stored.manifest.first.0)
        .collect();
    assert_eq!(firsts, [0, 100, 101, 700]);
    assert_archived(&archive, 1_500).await;
}

#[tokio::test]
async fn the_archiver_refused_by_the_fence_drops_what_the_winner_covers_and_puts_the_rest() {
    let archive = memory();
    let (mut left, mut right) = (archiver(&archive).await, archiver(&archive).await);
    push_until(&mut left, 100);
    push_until(&mut right, 150);
    left.flush().await.expect("flushes");
    let rest = right.flush().await.expect("flushes").expect("a manifest for the rest");
    assert_eq!((rest.manifest.first, rest.manifest.last), (LogOffset(100), LogOffset(149)));
    push_until(&mut left, 120);
    assert_eq!(left.flush().await.expect("flushes"), None, "the winner covers all of it");
    assert_eq!(left.next_offset(), LogOffset(150));
    push_until(&mut left, 400);
    left.flush().await.expect("flushes");
    assert_archived(&archive, 400).await;
}

#[tokio::test]
async fn an_equal_manifest_that_is_there_already_counts_as_put() {
    let archive = memory();
    let (mut left, mut right) = (archiver(&archive).await, archiver(&archive).await);
    push_until(&mut left, 100);
    push_until(&mut right, 100);
    let of_left = left.flush().await.expect("flushes");
    assert!(of_left.is_some());
    assert_eq!(right.flush().await.expect("flushes"), of_left);
    assert_archived(&archive, 100).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_archivers_racing_on_one_partition_lose_and_double_nothing() {
    for seed in 0..10_u64 {
        let archive = memory();
        let race = |name: &'static str| {
            let archive = archive.clone();
            tokio::spawn(async move {
                let mut archiver = archiver(&archive).await;
                let mut round = seed;
                while archiver.archived_end() < LogOffset(600) {
                    round += 1;
                    let step = 1 + noise(name, round) % 60;
                    let end = (archiver.next_offset().0 as u64 + step).min(600);
                    push_until(&mut archiver, end);
                    archiver.flush().await.expect("flushes");
                }
            })
        };
        let (left, right) = (race("left"), race("right"));
        left.await.expect("ends");
        right.await.expect("ends");
        assert_archived(&archive, 600).await;
    }
}

#[tokio::test]
async fn equal_records_give_equal_bytes() {
    let mut contents = Vec::new();
    for _ in 0..2 {
        let archive = memory();
        let mut archiver = archiver(&archive).await;
        for end in [1_000, 3_000] {
            push_until(&mut archiver, end);
            archiver.flush().await.expect("flushes");
        }
        let mut objects = Vec::new();
        for folder in ["clicks", "quarantine", "manifests"] {
            for object in archive.list(folder, None).await.expect("lists") {
                let path = object.location.to_string();
                objects.push((path.clone(), archive.get(&path).await.expect("reads")));
            }
        }
        contents.push(objects);
    }
    assert!(contents[0].len() > 6);
    assert!(contents[0] == contents[1], "two archivers of the same records wrote different bytes");
}

#[tokio::test]
async fn clicks_on_either_side_of_an_hours_end_go_into_the_files_of_their_own_hours() {
    let archive = memory();
    let mut archiver = archiver(&archive).await;
    for (offset, time) in ["2025-01-15T12:59:59.999Z", "2025-01-15T13:00:00.000Z"].into_iter().enumerate() {
        let mut click = click(0);
        click.event_time = time.parse().expect("valid time");
        let mut bytes = Vec::new();
        encode_click(&click, &mut bytes);
        archiver.push(LogOffset(offset as i64), &bytes).expect("takes the record");
    }
    let stored = archiver.flush().await.expect("flushes").expect("a manifest");
    let hours: Vec<String> =
        stored.manifest.files.iter().filter_map(|file| file.hour.map(|hour| hour.to_string())).collect();
    assert_eq!(hours, ["2025-01-15T12", "2025-01-15T13"]);
    assert!(stored.manifest.files[0].path.starts_with("clicks/year=2025/month=01/day=15/hour=12/0-3-0-1-"));
    for file in &stored.manifest.files {
        let copies = archive.read_clicks(file, None).await.expect("reads");
        assert!(copies.iter().all(|copy| Some(copy.click.event_time.hour()) == file.hour));
    }
}

#[tokio::test]
async fn a_partition_of_broken_records_alone_is_archived_and_moves_no_watermark() {
    let archive = memory();
    let mut archiver = archiver(&archive).await;
    for offset in 0..5 {
        archiver.push(LogOffset(offset), b"nonsense").expect("takes the record");
    }
    let stored = archiver.flush().await.expect("flushes").expect("a manifest");
    assert_eq!(stored.manifest.highest_time, None);
    assert_eq!(stored.manifest.files.len(), 1);
    assert!(stored.manifest.files[0].path.starts_with("quarantine/ad-clicks/0-3-0-4-"));
    let rows = archive.read_quarantine(&stored.manifest.files[0]).await.expect("reads");
    assert!(rows.iter().all(|row| row.bytes.as_ref() == b"nonsense" && row.reason.contains("kind")));
}

#[tokio::test]
async fn an_hour_with_too_many_rows_is_split_into_several_files_of_one_manifest() {
    let archive = memory();
    let settings = ArchiverSettings { rows_per_file_max: 100, ..ArchiverSettings::default() };
    let mut archiver = open(&archive, CLICKS, settings).await;
    push_until(&mut archiver, 1_000);
    let stored = archiver.flush().await.expect("flushes").expect("a manifest");
    assert!(stored.manifest.files.len() >= 10);
    assert!(stored.manifest.files.iter().all(|file| file.rows <= 100));
    assert_archived(&archive, 1_000).await;
}

#[tokio::test]
async fn a_missing_or_repeated_offset_is_a_hole_and_changes_nothing() {
    let archive = memory();
    let mut archiver = archiver(&archive).await;
    push_until(&mut archiver, 10);
    for offset in [9, 11] {
        let refused = archiver.push(LogOffset(offset), &record(offset as u64));
        assert!(matches!(refused, Err(Error::Hole { expected: LogOffset(10), .. })));
    }
    assert_eq!(archiver.rows(), 10);
}

#[tokio::test]
async fn a_log_that_went_backwards_or_lost_unarchived_records_is_an_error() {
    let archive = memory();
    let mut archiver = archiver(&archive).await;
    push_until(&mut archiver, 10);
    archiver.flush().await.expect("flushes");
    let bounds =
        |earliest, end| crate::hot::OffsetBounds { earliest: LogOffset(earliest), end: LogOffset(end) };
    assert!(archiver.check_log(bounds(0, 10)).is_ok());
    assert!(archiver.check_log(bounds(0, 9)).is_err());
    assert!(archiver.check_log(bounds(11, 20)).is_err());
}

#[tokio::test]
async fn another_partition_count_in_the_same_generation_is_refused() {
    let archive = memory();
    let mut archiver = archiver(&archive).await;
    push_until(&mut archiver, 10);
    archiver.flush().await.expect("flushes");
    let settings = ArchiverSettings::default();
    let other = PartitionArchiver::open(archive, CLICKS, 16, settings, FailPoints::default()).await;
    assert!(matches!(other, Err(Error::Config { .. })));
}

#[tokio::test]
async fn verdicts_are_archived_by_arrival_hour_and_have_no_watermark() {
    let archive = memory();
    let mut archiver = open(&archive, VERDICTS, ArchiverSettings::default()).await;
    let mut expected = Vec::new();
    for offset in 0..3_i64 {
        let decided_at: UtcMillis = "2025-01-15T10:00:00Z".parse().expect("valid time");
        let verdict = Verdict {
            campaign_id: CampaignId::new(format!("c{}", 2 - offset)).expect("valid"),
            click_id: ClickId::from_bytes(noise16("verdict", offset as u64)),
            verdict: [VerdictClass::Valid, VerdictClass::Givt, VerdictClass::Sivt][offset as usize],
            model_version: ModelVersion::new("m1").expect("valid"),
            decided_at,
            click_event_time: (offset == 1).then_some(decided_at),
            arrival_time: decided_at.plus_ms(offset * 3_600_000),
            schema_version: 1,
        };
        let mut bytes = Vec::new();
        encode_verdict(&verdict, &mut bytes);
        archiver.push(LogOffset(offset), &bytes).expect("takes the record");
        expected.push(verdict);
    }
    let stored = archiver.flush().await.expect("flushes").expect("a manifest");
    assert_eq!(stored.manifest.highest_time, None);
    assert_eq!(stored.manifest.files[1].hour, "2025-01-15T11".parse::<Hour>().ok());
    let mut read = Vec::new();
    for file in &stored.manifest.files {
        assert!(file.path.starts_with("verdicts/year=2025/month=01/day=15/hour=1"));
        read.extend(archive.read_verdicts(file).await.expect("reads"));
    }
    assert_eq!(read.iter().map(|copy| copy.verdict.clone()).collect::<Vec<_>>(), expected);
    assert!(layout::parse_manifest_path(&layout::manifest_path(VERDICTS, LogOffset(0))).is_some());
}
