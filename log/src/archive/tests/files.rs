//! What a data file looks like to other readers: types, order, statistics that prune, and its size.

use parquet::basic::LogicalType;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::statistics::Statistics;

use super::*;
use crate::archive::FileEntry;
use crate::error::Error;

async fn one_file(rows: u64) -> (Archive, FileEntry) {
    let archive = memory();
    let mut archiver = archiver(&archive).await;
    push_until(&mut archiver, rows);
    let stored = archiver.flush().await.expect("flushes").expect("a manifest");
    let clicks = stored.manifest.files.into_iter().filter(|file| file.kind == FileKind::Clicks);
    (archive, clicks.max_by_key(|file| file.rows).expect("a file of clicks"))
}

#[tokio::test]
async fn rows_are_sorted_by_campaign_event_time_and_offset() {
    let (archive, file) = one_file(5_000).await;
    let copies = archive.read_clicks(&file, None).await.expect("reads");
    assert!(copies.is_sorted_by_key(|copy| {
        (copy.click.campaign_id.clone(), copy.click.event_time, copy.position.offset)
    }));
    let campaign = &copies[100].click.campaign_id;
    let of_campaign = archive.read_clicks(&file, Some(campaign)).await.expect("reads");
    assert_eq!(of_campaign.len(), copies.iter().filter(|copy| copy.click.campaign_id == *campaign).count());
}

#[tokio::test]
async fn ids_are_uuids_and_row_groups_have_bounds_of_campaigns_that_do_not_overlap() {
    let (archive, file) = one_file(300_000).await;
    let reader =
        SerializedFileReader::new(archive.read_bytes(&file).await.expect("reads")).expect("is Parquet");
    let metadata = reader.metadata();
    let schema = metadata.file_metadata().schema_descr();
    assert_eq!(schema.column(4).logical_type_ref(), Some(&LogicalType::Uuid));
    assert!(metadata.num_row_groups() >= 3);
    let mut last_max: Vec<u8> = Vec::new();
    for group in metadata.row_groups() {
        assert!(group.sorting_columns().is_some_and(|columns| columns.len() == 2));
        let Some(Statistics::ByteArray(bounds)) = group.column(0).statistics() else {
            panic!("campaign_id has no bounds");
        };
        let min = bounds.min_opt().expect("a lower bound").data().to_vec();
        assert!(last_max <= min, "row groups overlap in campaigns");
        last_max = bounds.max_opt().expect("an upper bound").data().to_vec();
    }
    let bytes_per_click = file.bytes as f64 / file.rows as f64;
    assert!(bytes_per_click < 72.0, "a click takes {bytes_per_click:.1} bytes");
}

#[tokio::test]
async fn a_changed_byte_a_missing_file_or_a_wrong_count_is_damage() {
    let (archive, file) = one_file(500).await;
    let other = memory();
    let mut bytes = archive.read_bytes(&file).await.expect("reads").to_vec();
    bytes[100] ^= 1;
    other.put_if_absent(&file.path, bytes.into()).await.expect("puts");
    for (archive, file) in [
        (&other, file.clone()),
        (&memory(), file.clone()),
        (&archive, FileEntry { rows: file.rows + 1, ..file.clone() }),
        (&archive, FileEntry { kind: FileKind::Verdicts, ..file.clone() }),
    ] {
        assert!(matches!(archive.read_batches(&file).await, Err(Error::ArchiveDamage { .. })));
    }
}
