//! The binary against a small node: what it sends, what its ledger says, and what `verify` makes of right and wrong
//! answers.

mod fake_node;

use std::collections::HashMap;
use std::path::Path;
use std::process::{Command, Output};

use fake_node::{FakeNode, Lie, Trouble};
use twice_loadgen::ledger::{LedgerFile, LedgerRow, RowSink, read_rates, read_rows};

fn loadgen(line: &str, ledger: &Path) -> Output {
    let line = line.replace("LEDGER", &ledger.display().to_string());
    Command::new(env!("CARGO_BIN_EXE_twice-loadgen"))
        .env_remove("TWICE_API_KEY")
        .args(line.split_whitespace())
        .output()
        .expect("the binary runs")
}

fn succeed(output: &Output) {
    assert_eq!(output.status.code(), Some(0), "{}", said(output));
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn run_line(node: &FakeNode, more: &str) -> String {
    format!(
        "run --target {} --rate 20000 --duration 1s --campaigns 60 --seed 7 --batch 100 --connections 8 \
         --duplicates 5% --conflicts 3% --late 2% --event-span 3h --timeout 5s --give-up-after 20s --ledger LEDGER {more}",
        node.url
    )
}

fn verify_line(node: &FakeNode, more: &str) -> String {
    format!("verify --target {} --ledger LEDGER {more}", node.url)
}

#[derive(Default)]
struct Counted {
    kinds: HashMap<String, u64>,
    acknowledged: u64,
    unknown: u64,
    rejected: u64,
    sequences: Vec<u64>,
}

impl RowSink for Counted {
    fn expect(&mut self, rows: usize) {
        self.sequences.reserve(rows);
    }

    fn take(&mut self, row: &LedgerRow<'_>) -> anyhow::Result<()> {
        *self.kinds.entry(row.kind.to_owned()).or_default() += 1;
        self.acknowledged += u64::from(row.acknowledged);
        self.unknown += u64::from(row.attempts_unknown);
        self.rejected += u64::from(row.rejected.is_some());
        self.sequences.push(row.sequence);
        Ok(())
    }
}

fn count(ledger: &Path) -> Counted {
    let mut counted = Counted::default();
    read_rows(&LedgerFile::find(ledger).expect("a ledger"), &mut counted).expect("readable");
    counted
}

#[test]
fn a_healthy_node_is_sent_everything_once_and_its_bill_agrees() {
    let folder = tempfile::tempdir().expect("a folder");
    let ledger = folder.path().join("ledger.parquet");
    let node = FakeNode::start(Trouble::default());
    succeed(&loadgen(&run_line(&node, ""), &ledger));
    let mut counted = count(&ledger);
    assert_eq!((counted.acknowledged, counted.unknown, counted.rejected), (20_000, 0, 0));
    assert_eq!(node.copies(), 20_000);
    assert_eq!(node.identities() as u64, counted.kinds["original"] + counted.kinds["late"]);
    assert!(counted.kinds["moved"] > 0 && counted.kinds["conflict"] > 0 && counted.kinds["duplicate"] > 0);
    counted.sequences.sort_unstable();
    assert!(counted.sequences.into_iter().eq(0..20_000));
    assert!(!read_rates(&ledger).expect("rates beside the ledger").is_empty());
    let left: Vec<_> =
        std::fs::read_dir(folder.path()).expect("listed").flatten().map(|file| file.file_name()).collect();
    assert_eq!(left.len(), 2, "parts are joined and removed: {left:?}");

    let unbilled = loadgen(&verify_line(&node, ""), &ledger);
    assert_eq!(unbilled.status.code(), Some(1), "{}", said(&unbilled));
    assert!(said(&unbilled).contains("--reconcile"));
    let agreed = loadgen(&verify_line(&node, "--reconcile --exclusive --require-complete"), &ledger);
    succeed(&agreed);
    assert!(said(&agreed).contains("agreed:"), "{}", said(&agreed));
}

#[test]
fn every_lie_is_a_difference() {
    let folder = tempfile::tempdir().expect("a folder");
    let ledger = folder.path().join("ledger.parquet");
    let node = FakeNode::start(Trouble::default());
    succeed(&loadgen(&run_line(&node, ""), &ledger));
    succeed(&loadgen(&verify_line(&node, "--reconcile"), &ledger));
    let lies = [
        (Lie::LosesOneClick, "billable"),
        (Lie::BillsOneTwice, "billable"),
        (Lie::OneMicroTooMuch, "amount_micros"),
        (Lie::OneConflictTooMany, "conflicts"),
        (Lie::OneUnexplained, "unexplained"),
        (Lie::OneUncausedLate, "preliminary - billed"),
        (Lie::ForgetsOneCampaign, "row"),
    ];
    for (lie, field) in lies {
        node.lie(lie);
        let output = loadgen(&verify_line(&node, ""), &ledger);
        assert_eq!(output.status.code(), Some(1), "{lie:?}: {}", said(&output));
        assert!(said(&output).contains(field), "{lie:?}: {}", said(&output));
    }
    node.lie(Lie::InventsOneCampaign);
    succeed(&loadgen(&verify_line(&node, ""), &ledger)); // may be somebody else's
    assert_eq!(loadgen(&verify_line(&node, "--exclusive"), &ledger).status.code(), Some(1));
}

#[test]
fn through_every_trouble_nothing_is_lost_and_the_bill_still_agrees() {
    let folder = tempfile::tempdir().expect("a folder");
    let ledger = folder.path().join("ledger.parquet");
    let trouble = Trouble {
        stored_unanswered_every: 11,
        lost_every: 13,
        busy_every: 17,
        half_every: 7,
        ..Trouble::default()
    };
    let node = FakeNode::start(trouble);
    succeed(&loadgen(&run_line(&node, ""), &ledger));
    let counted = count(&ledger);
    assert_eq!((counted.acknowledged, counted.sequences.len()), (20_000, 20_000));
    assert!(counted.unknown > 0);
    let stored = node.copies() as u64;
    assert!(stored > 20_000 && stored <= 20_000 + counted.unknown, "{stored} {}", counted.unknown);
    succeed(&loadgen(&verify_line(&node, "--reconcile --exclusive"), &ledger));
    node.lie(Lie::LosesOneClick);
    assert_eq!(loadgen(&verify_line(&node, ""), &ledger).status.code(), Some(1));
}

#[test]
fn rejected_clicks_are_no_part_of_the_bill_and_the_run_says_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let ledger = folder.path().join("ledger.parquet");
    let node = FakeNode::start(Trouble { reject_every: 5, ..Trouble::default() });
    let output = loadgen(&run_line(&node, ""), &ledger);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let counted = count(&ledger);
    assert!(counted.rejected > 0);
    assert_eq!(counted.acknowledged + counted.rejected, 20_000);
    succeed(&loadgen(&verify_line(&node, "--reconcile --exclusive"), &ledger));
}

#[test]
fn a_stranger_on_the_node_matters_only_where_the_ledger_is_all_there_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let ledger = folder.path().join("ledger.parquet");
    let node = FakeNode::start(Trouble::default());
    succeed(&loadgen(&run_line(&node, ""), &ledger));
    node.store_stranger(last_event_time(&ledger));
    succeed(&loadgen(&verify_line(&node, "--reconcile"), &ledger));
    let strict = loadgen(&verify_line(&node, "--exclusive"), &ledger);
    assert_eq!(strict.status.code(), Some(1), "{}", said(&strict));
    assert!(said(&strict).contains("stranger"));
}

fn last_event_time(ledger: &Path) -> i64 {
    struct Last(i64);
    impl RowSink for Last {
        fn expect(&mut self, _rows: usize) {}
        fn take(&mut self, row: &LedgerRow<'_>) -> anyhow::Result<()> {
            self.0 = self.0.max(row.event_time_ms);
            Ok(())
        }
    }
    let mut last = Last(0);
    read_rows(&LedgerFile::find(ledger).expect("a ledger"), &mut last).expect("readable");
    last.0
}

#[test]
fn two_ledgers_into_one_node_verify_together() {
    let folder = tempfile::tempdir().expect("a folder");
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    let node = FakeNode::start(Trouble::default());
    succeed(&loadgen(&run_line(&node, ""), &first));
    succeed(&loadgen(&run_line(&node, ""), &second)); // the same seed: every click again
    assert_eq!(loadgen(&verify_line(&node, "--reconcile"), &first).status.code(), Some(1));
    let both = verify_line(&node, &format!("--ledger {}", second.display()));
    succeed(&loadgen(&both, &first));
}

#[test]
fn what_cannot_run_exits_with_2_and_advice() {
    let folder = tempfile::tempdir().expect("a folder");
    let ledger = folder.path().join("ledger.parquet");
    let cases = [
        ("run --target http://127.0.0.1:9 --give-up-after 200ms --ledger LEDGER", "is the node running?"),
        ("run --target https://example.org --ledger LEDGER", "--target"),
        ("run --target http://127.0.0.1:9 --event-start 2001-01-01T00", "twice import"),
        ("run --target http://127.0.0.1:9 --ledger LEDGER/no/such/folder", "does the folder exist?"),
        ("verify --target http://127.0.0.1:9 --ledger LEDGER", "run --ledger"),
        ("generate --clicks 5 --out LEDGER.csv", ".ndjson or .parquet"),
    ];
    for (line, advice) in cases {
        let output = loadgen(line, &ledger);
        assert_eq!(output.status.code(), Some(2), "{line}: {}", said(&output));
        assert!(said(&output).contains(advice), "{line}: {}", said(&output));
    }
    std::fs::write(&ledger, b"precious").expect("written");
    let output = loadgen("run --target http://127.0.0.1:9 --ledger LEDGER", &ledger);
    assert!(said(&output).contains("--overwrite"), "{}", said(&output));
    assert_eq!(std::fs::read(&ledger).expect("still there"), b"precious");
}

#[test]
fn a_node_that_goes_away_for_good_ends_the_run_with_a_whole_ledger() {
    let folder = tempfile::tempdir().expect("a folder");
    let ledger = folder.path().join("ledger.parquet");
    // From the second request on every connection breaks after storing: nothing but unknown outcomes.
    let node = FakeNode::start(Trouble { stored_unanswered_every: 1, ..Trouble::default() });
    let output =
        loadgen(&run_line(&node, "").replace("--give-up-after 20s", "--give-up-after 300ms"), &ledger);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    let counted = count(&ledger);
    assert_eq!(counted.acknowledged, 0);
    assert!(counted.unknown >= counted.sequences.len() as u64);
    // Nothing is certain, so any number between none and all agrees.
    succeed(&loadgen(&verify_line(&node, "--reconcile"), &ledger));
}

#[test]
fn the_same_seed_writes_the_same_bytes() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let generate = |name: &str, seed: u32| {
        let line = format!(
            "generate --clicks 5000 --seed {seed} --campaigns 50 --event-start 2025-01-15T12 --event-span 2h --out LEDGER"
        );
        succeed(&loadgen(&line, &path(name)));
        std::fs::read(path(name)).expect("written")
    };
    let one = generate("one.ndjson", 7);
    assert_eq!(one, generate("two.ndjson", 7));
    assert_ne!(one, generate("three.ndjson", 8));
    assert_eq!(one.iter().filter(|byte| **byte == b'\n').count(), 5_000);
    assert_eq!(generate("one.parquet", 7), generate("two.parquet", 7));
}

#[test]
fn a_generated_file_sent_by_hand_is_billed_as_its_ledger_says() {
    let folder = tempfile::tempdir().expect("a folder");
    let (file, ledger) = (folder.path().join("clicks.ndjson"), folder.path().join("ledger"));
    let node = FakeNode::start(Trouble::default());
    let line = format!(
        "generate --clicks 20000 --campaigns 60 --conflicts 3% --duplicates 3% --out {} --ledger LEDGER",
        file.display()
    );
    succeed(&loadgen(&line, &ledger));
    succeed(&loadgen(&format!("campaigns --target {} --ledger LEDGER", node.url), &ledger));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let body = std::fs::read(&file).expect("written");
    let url = format!("{}/v1/clicks", node.url);
    let sent = runtime.block_on(async { reqwest::Client::new().post(url).body(body).send().await });
    assert!(sent.expect("sent").status().is_success());
    succeed(&loadgen(&verify_line(&node, "--reconcile --exclusive"), &ledger));
}
