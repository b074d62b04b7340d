use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::stream::settings_for_tests;
use crate::stream::{ClickStream, Kind, campaign_rates};

const COPIES: u64 = 3_000;

fn stream() -> Arc<ClickStream> {
    let settings = settings_for_tests("--seed 7 --duplicates 5% --conflicts 5%", COPIES).expect("valid");
    Arc::new(ClickStream::new(settings))
}

fn settled(sequence: u64) -> Settled {
    Settled {
        sequence,
        acknowledged: sequence % 10 != 3,
        attempts_unknown: (sequence % 4) as u32,
        rejected: (sequence % 10 == 3).then(|| "too_old".to_owned()),
    }
}

#[derive(Default)]
struct Collected {
    announced: usize,
    rows: Vec<Settled>,
    contents: Vec<(String, [u8; 16], String, i64, String)>,
}

impl RowSink for Collected {
    fn expect(&mut self, rows: usize) {
        self.announced = rows;
    }

    fn take(&mut self, row: &LedgerRow<'_>) -> anyhow::Result<()> {
        self.rows.push(Settled {
            sequence: row.sequence,
            acknowledged: row.acknowledged,
            attempts_unknown: row.attempts_unknown,
            rejected: row.rejected.map(str::to_owned),
        });
        self.contents.push((
            row.campaign_id.to_owned(),
            row.click_id,
            row.user_id.to_owned(),
            row.event_time_ms,
            row.kind.to_owned(),
        ));
        Ok(())
    }
}

fn read(path: &Path) -> (bool, Collected) {
    let file = LedgerFile::find(path).expect("a ledger");
    let mut collected = Collected::default();
    read_rows(&file, &mut collected).expect("readable");
    (file.whole, collected)
}

#[test]
fn a_ledger_reads_back_what_was_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("ledger");
    let stream = stream();
    let mut writer = LedgerWriter::new(&path, Arc::clone(&stream)).expect("created");
    let rows: Vec<Settled> = (0..COPIES).rev().map(settled).collect();
    for chunk in rows.chunks(100) {
        writer.append(chunk).expect("written");
    }
    writer.finish(&"the end").expect("joined");
    write_rates(&path, &campaign_rates(stream.settings())).expect("written");

    let (whole, collected) = read(&path);
    assert!(whole);
    assert_eq!(collected.announced, rows.len());
    assert_eq!(collected.rows, rows);
    for (row, content) in collected.rows.iter().zip(&collected.contents) {
        let copy = stream.copy(row.sequence);
        assert_eq!(content.0, format!("load7-{}", copy.content.campaign));
        assert_eq!(content.1, copy.content.click_id);
        assert_eq!(content.2.is_empty(), copy.content.user.is_none());
        assert_eq!(content.3, copy.content.event_time_ms);
        assert!(Kind::ALL.iter().any(|kind| *kind == copy.kind && kind.name() == content.4));
    }
    assert_eq!(read_rates(&path).expect("rates"), campaign_rates(stream.settings()));
}

#[test]
fn what_a_run_that_died_had_closed_is_still_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("ledger");
    let mut writer = LedgerWriter::new(&path, stream()).expect("created");
    for from in [0, 1_000, 2_000] {
        let rows: Vec<Settled> = (from..from + 1_000).map(settled).collect();
        writer.append(&rows).expect("written");
        if from < 2_000 {
            writer.close_part().expect("closed");
        }
    }
    std::mem::forget(writer); // killed: no destructor runs, and the open part has no end
    let (whole, collected) = read(&path);
    assert!(!whole);
    assert_eq!(collected.rows, (0..2_000).map(settled).collect::<Vec<_>>());
}

#[test]
fn a_ledger_that_says_nothing_is_still_a_ledger() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("ledger");
    LedgerWriter::new(&path, stream()).expect("created").finish(&()).expect("joined");
    let (whole, collected) = read(&path);
    assert!(whole && collected.rows.is_empty());
    let files = std::fs::read_dir(folder.path()).expect("listed").count();
    assert_eq!(files, 1);
}

#[test]
fn old_ledgers_are_in_the_way_until_told_otherwise() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("ledger");
    make_room(&path, false).expect("nothing is there");
    drop(LedgerWriter::new(&path, stream()).expect("created")); // leaves a part
    assert!(make_room(&path, false).is_err());
    make_room(&path, true).expect("removed");
    LedgerWriter::new(&path, stream()).expect("created").finish(&()).expect("joined");
    assert!(make_room(&path, false).is_err());
    make_room(&path, true).expect("removed");
    assert!(!path.exists());
}
