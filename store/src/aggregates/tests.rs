use std::sync::Arc;

use bytes::Bytes;
use twice_log::archive::{AggregateFile, AggregateLevel, AggregateSet, Archive, BillingPath, RunKey, layout};
use twice_log::event::Sha256Hex;
use twice_log::fs::RealFs;
use twice_log::{AdId, CampaignId, Hour, UserId};

use super::*;

const CACHE_BYTES: u64 = 1 << 20;

fn hour() -> Hour {
    "2025-01-15T12".parse().expect("valid hour")
}

fn run(seq: u32) -> RunKey {
    RunKey { path: BillingPath::Lambda, hour: hour(), seq }
}

fn campaign(number: u32) -> CampaignId {
    CampaignId::new(format!("camp_{number:05}")).expect("valid id")
}

/// A row of an ad with `users` distinct users.
fn row(ad: &str, minute: i64, users: u64) -> AggregateRow {
    row_of(ad, minute, 0, users)
}

/// A row of an ad with `users` distinct users, counted up from `first`.
fn row_of(ad: &str, minute: i64, first: u64, users: u64) -> AggregateRow {
    let mut sketch = UserSketch::default();
    for user in first..first + users {
        sketch.insert(&UserId::new(format!("u_{user}")).expect("valid id"));
    }
    let counts = AggregateCounts {
        gross: users + 3,
        duplicates: 1,
        invalid_givt: 2,
        billable: users,
        amount_micros: users as i64 * 10,
        ..AggregateCounts::default()
    };
    AggregateRow {
        ad_id: Some(AdId::new(ad).expect("valid id")),
        window_start: hour().start().plus_ms(minute * 60_000),
        counts,
        users: sketch,
    }
}

fn encode(rows: &[(CampaignId, AggregateRow)]) -> WrittenAggregates<Vec<u8>> {
    let mut writer = AggregateWriter::new(Vec::new()).expect("begins");
    for (campaign, row) in rows {
        writer.push(campaign.clone(), row.clone()).expect("takes the row");
    }
    writer.finish().expect("ends").expect("has rows")
}

/// Puts `files` as the ad-minutes of a run.
async fn put(archive: &Archive, seq: u32, files: &[Vec<(CampaignId, AggregateRow)>]) -> AggregateSet {
    let mut set = AggregateSet { path: BillingPath::Lambda, hour: hour(), seq, files: Vec::new() };
    for rows in files {
        let written = encode(rows);
        let sha256 = Sha256Hex::of(&written.output);
        let level = AggregateLevel::AdMinutes;
        let path = layout::aggregate_path(BillingPath::Lambda, hour(), level, &sha256);
        set.files.push(AggregateFile {
            level,
            path: path.clone(),
            rows: written.rows,
            bytes: written.output.len() as u64,
            sha256,
            campaign_first: written.campaign_first,
            campaign_last: written.campaign_last,
        });
        archive.put_aggregate_file(&path, written.output.into()).await.expect("puts");
    }
    archive.put_aggregate_set(&set).await.expect("puts the list")
}

struct Place {
    folder: tempfile::TempDir,
    archive: Archive,
    reader: ArchiveAggregates,
}

fn place() -> Place {
    let folder = tempfile::tempdir().expect("folder");
    let archive = Archive::open_local(Arc::new(RealFs), folder.path()).expect("opens");
    let reader = ArchiveAggregates::new(archive.clone(), CACHE_BYTES);
    Place { folder, archive, reader }
}

impl Place {
    async fn read(&self, seq: u32, number: u32) -> Result<Option<Arc<Vec<AggregateRow>>>> {
        self.reader.read(run(seq), AggregateLevel::AdMinutes, &campaign(number)).await
    }
}

#[tokio::test]
async fn rows_read_back_as_they_were_written() {
    let place = place();
    let empty_ad = row("", 0, 0);
    let all_ads = AggregateRow { ad_id: None, ..row("", 1, 5) };
    let many = row("ad_9", 59, 500);
    let rows = [(campaign(1), empty_ad.clone()), (campaign(1), all_ads.clone()), (campaign(2), many.clone())];
    put(&place.archive, 1, &[rows.to_vec()]).await;
    assert_eq!(*place.read(1, 1).await.expect("reads").expect("there"), [empty_ad, all_ads]);
    let read = place.read(1, 2).await.expect("reads").expect("there");
    assert_eq!(*read, [many]);
    assert!(!read[0].users.is_exact());
    assert!(place.read(1, 3).await.expect("reads").expect("there").is_empty());
    assert_eq!(place.read(2, 1).await.expect("reads"), None, "another run wrote nothing");
}

#[test]
fn equal_rows_give_equal_bytes() {
    let rows: Vec<_> = (0..300).map(|number| (campaign(number / 7), row("ad", 0, 40))).collect();
    assert_eq!(encode(&rows).output, encode(&rows).output);
}

#[tokio::test]
async fn one_campaign_of_a_large_file_is_read_by_a_few_ranges() {
    let place = place();
    let rows_of = |number| {
        (0..5).map(move |minute| {
            let first = u64::from(number) * 1_000 + minute as u64 * 100;
            (campaign(number), row_of("ad", minute, first, 20))
        })
    };
    let rows: Vec<_> = (0..8_000).flat_map(rows_of).collect();
    let set = put(&place.archive, 1, &[rows]).await;
    let file = &set.files[0];
    assert!(file.bytes > 1 << 20, "{} bytes", file.bytes);
    for number in [0, 1, 1_777, 7_999] {
        let read = place.read(1, number).await.expect("reads").expect("there");
        let minutes: Vec<i64> = read.iter().map(|row| row.window_start.epoch_ms() / 60_000 % 60).collect();
        assert_eq!(minutes, [0, 1, 2, 3, 4]);
        assert!(read.iter().all(|row| row.users.count() == 20));
    }
    let footer = place.reader.read_footer(file).await.expect("reads").expect("there");
    let groups = decode::groups_of(&file.path, &footer, &campaign(1_777)).expect("a footer");
    let bytes: u64 = groups.iter().map(|(_, range)| range.end - range.start).sum();
    assert!(groups.len() <= 2 && bytes * 3 < file.bytes, "{} groups, {bytes} bytes", groups.len());
}

#[tokio::test]
async fn a_campaign_goes_on_in_the_next_file() {
    let place = place();
    let first = vec![(campaign(1), row("ad", 0, 1)), (campaign(2), row("ad", 0, 2))];
    let second = vec![(campaign(2), row("ad", 1, 3)), (campaign(3), row("ad", 0, 4))];
    put(&place.archive, 1, &[first, second]).await;
    let read = place.read(1, 2).await.expect("reads").expect("there");
    assert_eq!(*read, [row("ad", 0, 2), row("ad", 1, 3)]);
}

#[tokio::test]
async fn files_that_are_gone_are_absent_and_what_was_read_stays_readable() {
    let place = place();
    let set =
        put(&place.archive, 1, &[vec![(campaign(1), row("ad", 0, 1)), (campaign(2), row("ad", 0, 2))]]).await;
    place.read(1, 1).await.expect("reads").expect("there");
    std::fs::remove_file(place.folder.path().join(&set.files[0].path)).expect("removes");
    assert_eq!(place.read(1, 2).await.expect("reads"), None);
    assert_eq!(place.read(1, 1).await.expect("reads").map(|rows| rows.len()), Some(1), "it is in the cache");
}

#[tokio::test]
async fn a_changed_byte_is_damage_and_names_the_file() {
    let place = place();
    let set = put(&place.archive, 1, &[vec![(campaign(1), row("ad", 0, 30))]]).await;
    let path = place.folder.path().join(&set.files[0].path);
    let mut bytes = std::fs::read(&path).expect("file");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).expect("writes");
    let error = place.read(1, 1).await.expect_err("damage");
    assert_eq!(error.kind(), crate::ErrorKind::Damage);
    assert!(format!("{error:?}").contains(&set.files[0].path), "{error:?}");
}

#[tokio::test]
async fn a_second_file_of_the_same_name_and_other_bytes_is_refused() {
    let place = place();
    let path = "aggregates/lambda/2025-01-15T12/ad-minutes-00000000.parquet";
    place.archive.put_aggregate_file(path, Bytes::from_static(b"one")).await.expect("puts");
    place.archive.put_aggregate_file(path, Bytes::from_static(b"one")).await.expect("the same stands");
    let error =
        place.archive.put_aggregate_file(path, Bytes::from_static(b"two")).await.expect_err("refused");
    assert!(error.to_string().contains("other bytes"), "{error}");
}
