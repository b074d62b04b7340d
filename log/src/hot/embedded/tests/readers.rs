//! Readers beside a writer: as in another process, they share nothing with it but the files.

use super::super::frame::{encode_frame, put_record};
use super::*;
use crate::fs::{ForgetfulFs, Unsynced};

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_beside_a_writer_sees_what_was_acknowledged_through_rolls_and_trims() {
    let directory = tempfile::tempdir().expect("a directory");
    let writer = Arc::new(open(directory.path(), small()).expect("opened"));
    let reader = EmbeddedLog::open_reader(directory.path()).expect("welcome");
    assert!(texts(&reader).await.is_empty());
    let count = 400_i64;
    let writing = {
        let writer = writer.clone();
        tokio::spawn(async move {
            for number in 0..count {
                append_text(&writer, &format!("{number:0150}")).await.expect("appended");
            }
        })
    };
    let mut next = LogOffset(0);
    while next.0 < count {
        reader.wait_for(TOPIC, ZERO, next).await.expect("it comes");
        for (offset, bytes) in reader.read(TOPIC, ZERO, next, 10_000).await.expect("readable").records {
            assert_eq!((offset, bytes), (next, format!("{:0150}", next.0).into()));
            next = next.next();
        }
    }
    writing.await.expect("no panic");
    writer.trim(TOPIC, ZERO, LogOffset(200)).await.expect("trimmed");
    let bounds = reader.bounds(TOPIC, ZERO).await.expect("bounds");
    assert_eq!(bounds, writer.bounds(TOPIC, ZERO).await.expect("bounds"));
    assert!(bounds.earliest > LogOffset(0));
    assert!(matches!(reader.read(TOPIC, ZERO, LogOffset(0), 10).await, Err(Error::OutOfRange { .. })));
    assert_eq!(texts(&reader).await.len() as i64, count - bounds.earliest.0);
}

#[tokio::test]
async fn a_reader_whose_segments_were_all_trimmed_finds_the_new_ones() {
    let directory = tempfile::tempdir().expect("a directory");
    let writer = open(directory.path(), small()).expect("opened");
    append_text(&writer, "old").await.expect("appended");
    let reader = EmbeddedLog::open_reader(directory.path()).expect("welcome");
    for number in 0..100 {
        append_text(&writer, &format!("{number:0200}")).await.expect("appended");
    }
    writer.trim(TOPIC, ZERO, LogOffset(90)).await.expect("trimmed");
    let bounds = writer.bounds(TOPIC, ZERO).await.expect("bounds");
    assert!(bounds.earliest > LogOffset(20));
    assert_eq!(reader.bounds(TOPIC, ZERO).await.expect("bounds"), bounds);
    assert_eq!(texts(&reader).await, texts(&writer).await);
}

#[tokio::test]
async fn a_reader_stops_quietly_at_an_incomplete_tail_and_changes_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let writer = open(directory.path(), small()).expect("opened");
    append_text(&writer, "one").await.expect("appended");
    append_text(&writer, "two").await.expect("appended");
    drop(writer);
    let segment = &segments(directory.path())[0];
    let mut bytes = std::fs::read(segment).expect("readable");
    let last = frames(segment)[1];
    bytes[last.at as usize + last.bytes - 1] = 0;
    std::fs::write(segment, &bytes).expect("written");
    let reader = EmbeddedLog::open_reader(directory.path()).expect("welcome");
    assert_eq!(texts(&reader).await, ["one"]);
    assert_eq!(std::fs::read(segment).expect("readable"), bytes);
    let writer = open(directory.path(), small()).expect("cuts it");
    append_text(&writer, "three").await.expect("appended");
    assert_eq!(texts(&reader).await, ["one", "three"]);
}

#[tokio::test]
async fn a_reader_neither_appends_nor_trims_and_needs_a_log() {
    let directory = tempfile::tempdir().expect("a directory");
    assert!(matches!(EmbeddedLog::open_reader(directory.path()), Err(Error::Config { .. })));
    drop(open(directory.path(), small()).expect("opened"));
    let reader = EmbeddedLog::open_reader(directory.path()).expect("welcome");
    assert!(matches!(append_text(&reader, "no").await, Err(Error::Config { .. })));
    assert!(matches!(reader.trim(TOPIC, ZERO, LogOffset(0)).await, Err(Error::Config { .. })));
}

#[tokio::test]
async fn what_a_reader_gives_out_is_durable_though_the_writer_has_not_synced_it_yet() {
    let directory = tempfile::tempdir().expect("a directory");
    let forgetful = ForgetfulFs::new(directory.path()).expect("opened");
    let writer =
        EmbeddedLog::open(Arc::new(forgetful.clone()), directory.path(), small(), FailPoints::default());
    let writer = writer.expect("opened");
    append_text(&writer, "one").await.expect("appended");
    // A writer between its write and its sync.
    let segment = &segments(directory.path())[0];
    let key = PartitionKey { topic: TOPIC, generation: Generation(0), partition: ZERO };
    let mut payload = Vec::new();
    put_record(&mut payload, b"two");
    let seed = key.segment(LogOffset(0)).seed();
    let frame = encode_frame(std::iter::once(payload.as_slice()), payload.len(), 1, LogOffset(1), seed);
    let first = frames(segment)[0];
    let file = forgetful.open(segment, true).expect("opened");
    file.write_all_at(&frame, first.at + first.bytes as u64).expect("written");

    let reader = EmbeddedLog::open_reader_on(Arc::new(forgetful.clone()), directory.path()).expect("welcome");
    assert_eq!(texts(&reader).await, ["one", "two"]);
    forgetful.crash(Unsynced::Lost).expect("cut");
    drop((reader, writer));
    assert_eq!(texts(&open(directory.path(), small()).expect("opened")).await, ["one", "two"]);
}
