//! Files of every schema version read together, and none is touched for it.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use bytes::Bytes;
use parquet::arrow::ArrowWriter;

use super::*;
use crate::archive::{FileEntry, Layout};
use crate::event::Sha256Hex;

/// Writes rows as a file of its own, as another build would have, and returns its entry.
async fn put_file(archive: &Archive, name: &str, like: &FileEntry, batch: &RecordBatch) -> FileEntry {
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).expect("writer");
    writer.write(batch).expect("writes");
    let bytes = Bytes::from(writer.into_inner().expect("ends"));
    let path = format!("clicks/{name}.parquet");
    let store = archive.store();
    let at = object_store::path::Path::from(path.as_str());
    object_store::ObjectStoreExt::put(store.as_ref(), &at, bytes.clone().into()).await.expect("puts");
    let (rows, length) = (batch.num_rows() as u64, bytes.len() as u64);
    FileEntry { path, rows, bytes: length, sha256: Sha256Hex::of(&bytes), ..like.clone() }
}

fn without(batch: &RecordBatch, columns: &[&str]) -> RecordBatch {
    let schema = batch.schema();
    let kept =
        (0..batch.num_columns()).filter(|index| !columns.contains(&schema.field(*index).name().as_str()));
    batch.project(&kept.collect::<Vec<_>>()).expect("projects")
}

fn with(batch: &RecordBatch, name: &str, column: ArrayRef) -> RecordBatch {
    let added = Arc::new(Field::new(name, column.data_type().clone(), true));
    // First, so that places of columns do not matter either.
    let fields: Vec<_> = [added].into_iter().chain(batch.schema().fields().iter().cloned()).collect();
    let columns = [column].into_iter().chain(batch.columns().iter().cloned()).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).expect("batch")
}

/// An archive with one file of this build, and its rows.
async fn one_file() -> (Archive, FileEntry, RecordBatch) {
    let archive = memory();
    let mut archiver = archiver(&archive).await;
    push_until(&mut archiver, 20);
    archiver.flush().await.expect("flush");
    let manifests = archive.manifests(CLICKS, None).await.expect("a chain");
    let files = manifests.iter().flat_map(|stored| stored.manifest.files.clone());
    let file = files.into_iter().find(|file| file.kind == FileKind::Clicks).expect("a file of clicks");
    let batch = archive.read_batches(&file).await.expect("reads").remove(0);
    (archive, file, batch)
}

#[tokio::test]
async fn files_of_the_first_version_read_as_their_records_do_once_upgraded() {
    let (archive, file, batch) = one_file().await;
    let old = put_file(&archive, "v1", &file, &without(&batch, &["publisher_id", "ip_hash"])).await;
    let mut expected = archive.read_clicks(&file, None).await.expect("reads");
    for copy in &mut expected {
        copy.click.publisher_id = PublisherId::default();
        copy.click.ip_hash = None;
    }
    assert_eq!(archive.read_clicks(&old, None).await.expect("reads"), expected);
}

#[tokio::test]
async fn a_version_to_come_adds_a_field_and_files_of_before_it_read_it_as_null() {
    let (archive, file, batch) = one_file().await;
    let placements: ArrayRef = Arc::new(StringArray::from_iter_values(vec!["top"; batch.num_rows()]));
    let new = put_file(&archive, "v3", &file, &with(&batch, "placement", placements)).await;
    let old = put_file(&archive, "v1", &file, &without(&batch, &["publisher_id", "ip_hash"])).await;

    // This build knows nothing of the field and reads the new file as it reads its own.
    let known = archive.read_clicks(&new, None).await.expect("reads");
    assert_eq!(known, archive.read_clicks(&file, None).await.expect("reads"));

    // The next build knows it: no file is touched, and where a file has none it is null.
    let next = Layout::of(FileKind::Clicks).adding("placement", DataType::Utf8);
    for (entry, expected) in [(&new, Some("top")), (&file, None), (&old, None)] {
        let bytes = archive.read_bytes(entry).await.expect("reads");
        let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(bytes);
        for batch in reader.expect("opens").build().expect("reads") {
            let adapted = next.adapt(&batch.expect("batch")).expect("adapts");
            let placements: &StringArray = adapted.column_by_name("placement").expect("there").as_string();
            let found =
                (0..adapted.num_rows()).map(|row| placements.is_valid(row).then(|| placements.value(row)));
            assert!(found.into_iter().all(|found| found == expected), "{}", entry.path);
        }
    }
}

#[tokio::test]
async fn a_column_that_every_version_has_is_missed_by_its_name() {
    let (archive, file, batch) = one_file().await;
    for column in ["payload_hash", "watermark", "click_id"] {
        let damaged = put_file(&archive, column, &file, &without(&batch, &[column])).await;
        let refused = archive.read_clicks(&damaged, None).await.expect_err("damaged").to_string();
        assert!(refused.contains(column) && refused.contains(&damaged.path), "{refused}");
    }
}
