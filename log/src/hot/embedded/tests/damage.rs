//! Torn tails are cut, damage is named: every byte of a last frame, flipped bits, arbitrary bytes.

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

/// A closed log whose partition 0 holds one frame a text.
async fn log_of(texts: &[&str]) -> TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    let log = open(directory.path(), small()).expect("opened");
    for text in texts {
        append_text(&log, text).await.expect("appended");
    }
    directory
}

fn flip(path: &Path, at: u64) {
    let mut bytes = std::fs::read(path).expect("readable");
    bytes[at as usize] ^= 0x10;
    std::fs::write(path, bytes).expect("written");
}

fn damage_of<T>(outcome: Result<T>) -> (PathBuf, u64) {
    match outcome {
        Err(Error::Damage { path, at, .. }) => (path, at),
        Err(other) => panic!("not damage: {other}"),
        Ok(_) => panic!("no error"),
    }
}

#[tokio::test]
async fn a_last_frame_torn_at_any_byte_is_cut_and_the_log_goes_on() {
    let directory = log_of(&["one", "two", "a last frame that is torn"]).await;
    let segment = &segments(directory.path())[0];
    let whole = std::fs::read(segment).expect("readable");
    let last = frames(segment)[2];
    for cut in 0..last.bytes {
        let kept = last.at as usize + cut;
        // The rest of the frame is missing with the file's end, or reads as zeros, or as other bytes.
        let mut zeroed = whole.clone();
        zeroed[kept..].fill(0);
        let mut garbled = whole.clone();
        garbled[kept..last.at as usize + last.bytes].fill(0xA5);
        for torn in [&whole[..kept], &zeroed, &garbled] {
            std::fs::write(segment, torn).expect("written");
            let log = open(directory.path(), small()).expect("opened");
            assert_eq!(texts(&log).await, ["one", "two"], "cut after {cut} bytes");
            let mended = std::fs::read(segment).expect("readable");
            assert_eq!(mended.len(), whole.len());
            assert!(mended[last.at as usize..].iter().all(|byte| *byte == 0), "nothing torn stays");
            append_text(&log, "three").await.expect("appended");
            drop(log);
            let log = open(directory.path(), small()).expect("opened again");
            assert_eq!(texts(&log).await, ["one", "two", "three"], "cut after {cut} bytes");
        }
    }
}

#[tokio::test]
async fn a_flipped_bit_before_a_whole_frame_is_damage_at_that_frame() {
    let directory = log_of(&["one", "two", "three"]).await;
    let segment = &segments(directory.path())[0];
    let whole = std::fs::read(segment).expect("readable");
    let middle = frames(segment)[1];
    for at in middle.at..middle.at + middle.bytes as u64 {
        flip(segment, at);
        assert_eq!(damage_of(open(directory.path(), small())), (segment.clone(), middle.at), "byte {at}");
        assert_eq!(damage_of(EmbeddedLog::open_reader(directory.path())), (segment.clone(), middle.at));
        std::fs::write(segment, &whole).expect("written");
    }
    let mut zeroed = whole.clone();
    zeroed[middle.at as usize..middle.at as usize + middle.bytes].fill(0);
    std::fs::write(segment, zeroed).expect("written");
    assert_eq!(damage_of(open(directory.path(), small())), (segment.clone(), middle.at), "a lost block");
}

#[tokio::test]
async fn a_damaged_segment_header_is_damage_at_its_start() {
    let directory = log_of(&["one"]).await;
    let segment = &segments(directory.path())[0];
    for at in [0, 10, 30, 63] {
        flip(segment, at);
        assert_eq!(damage_of(open(directory.path(), small())), (segment.clone(), 0));
        flip(segment, at);
    }
    assert!(open(directory.path(), small()).is_ok());
}

#[tokio::test]
async fn damage_in_an_earlier_segment_is_found_at_open_or_when_read_and_never_skipped() {
    let texts: Vec<String> = (0..30).map(|number| format!("{number:0400}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let directory = log_of(&texts).await;
    let segment = &segments(directory.path())[0];
    let frame = frames(segment)[3];

    flip(segment, frame.at + 200); // within a record
    let log = open(directory.path(), small()).expect("headers are whole");
    assert_eq!(log.read(TOPIC, ZERO, LogOffset(0), 500).await.expect("before it").records.len(), 2);
    for from in [0, 2, 3, 5] {
        let read = log.read(TOPIC, ZERO, LogOffset(from), 100_000).await;
        assert_eq!(damage_of(read), (segment.clone(), frame.at), "from {from}");
    }
    let after = log.read(TOPIC, ZERO, LogOffset(25), 100_000).await;
    assert!(!after.expect("another segment").records.is_empty());
    drop(log);
    flip(segment, frame.at + 200);

    flip(segment, frame.at + 12); // the record count
    assert_eq!(damage_of(open(directory.path(), small())).0, *segment);
    flip(segment, frame.at + 12);

    std::fs::remove_file(&segments(directory.path())[1]).expect("removed");
    assert_eq!(damage_of(open(directory.path(), small())).0, *segment, "a missing segment is a hole");
}

#[tokio::test]
async fn a_frame_inside_a_torn_frames_record_does_not_feign_damage() {
    let directory = log_of(&["one", "two"]).await;
    let segment = &segments(directory.path())[0];
    let whole = std::fs::read(segment).expect("readable");
    let first = frames(segment)[0];
    let copied = whole[first.at as usize..first.at as usize + first.bytes].to_vec();
    let log = open(directory.path(), small()).expect("opened");
    let hostile = AppendRecord { partition: ZERO, bytes: [copied, vec![7; 50]].concat().into() };
    log.append(TOPIC, vec![hostile]).await.expect("appended");
    drop(log);
    let last = frames(segment)[2];
    flip(segment, last.at + last.bytes as u64 - 1);
    let log = open(directory.path(), small()).expect("opened");
    assert_eq!(texts(&log).await, ["one", "two"]);
}

#[tokio::test]
async fn a_file_that_is_no_segment_is_left_alone() {
    let directory = log_of(&["one"]).await;
    let stray = directory.path().join("ad-clicks/0/0/notes.txt");
    std::fs::write(&stray, "mine").expect("written");
    let log = open(directory.path(), small()).expect("opened");
    assert_eq!(texts(&log).await, ["one"]);
    assert!(stray.exists());
}

fn mangled() -> impl Strategy<Value = Vec<(usize, Vec<u8>)>> {
    let piece = (0..400_usize, proptest::collection::vec(any::<u8>(), 1..60));
    proptest::collection::vec(piece, 1..4)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_in_a_segment_panic_the_opener(pieces in mangled(), all in any::<bool>(), length in 0..500_usize) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let directory = log_of(&["one", "two", "three"]).await;
            let segment = &segments(directory.path())[0];
            let mut bytes = std::fs::read(segment).expect("readable");
            if all {
                bytes.truncate(length);
            }
            for (at, piece) in &pieces {
                let end = (at + piece.len()).max(bytes.len());
                bytes.resize(end, 0);
                bytes[*at..at + piece.len()].copy_from_slice(piece);
            }
            std::fs::write(segment, &bytes).expect("written");
            if let Ok(reader) = EmbeddedLog::open_reader(directory.path()) {
                let read = reader.read(TOPIC, ZERO, LogOffset(0), 1_000).await;
                assert!(matches!(read, Ok(_) | Err(Error::Damage { .. })), "{read:?}");
            }
            match open(directory.path(), small()) {
                Ok(log) => {
                    let found = texts(&log).await;
                    assert_eq!(found, ["one", "two", "three"][..found.len()], "what is read is what was written");
                }
                Err(error) => assert!(matches!(error, Error::Damage { .. }), "{error}"),
            }
        });
    }
}
