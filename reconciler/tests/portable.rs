//! The bill without this software: DuckDB over the very files, by the very lines of `docs/audit-with-duckdb.md`; and
//! files of several schema versions in one hour.

mod support;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use parquet::arrow::ArrowSchemaConverter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::arrow_writer::{ArrowWriter, ArrowWriterOptions};
use parquet::basic::LogicalType;
use parquet::schema::types::{SchemaDescriptor, Type};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use support::node::{HangAt, Node};
use support::{Records, Run, archive_records, at, campaign, click, hour, limits, rate, run_inputs, verdict};
use twice_log::archive::{CountingSettings, FileEntry, RunInputs};
use twice_log::event::Sha256Hex;
use twice_log::{Click, PartitionId, PublisherId, Verdict, VerdictClass};
use twice_reconciler::recompute::{BILLING_SQL, recompute_inputs};
use twice_store::{BillingCounts, CampaignStore, PutCampaign};

const FIRST_RUN: &str = "runs/lambda/2025-01-15T12/000001.json";

/// Clicks of six campaigns: retries, ids with other content, clicks around the hour's borders, both schema versions.
fn clicks(random: &mut StdRng, count: u32) -> Vec<Click> {
    let mut clicks: Vec<Click> = Vec::new();
    for _ in 0..count {
        if random.random_bool(0.15) && !clicks.is_empty() {
            let again = clicks[random.random_range(0..clicks.len())].clone();
            clicks.push(again);
            continue;
        }
        let event = if random.random_bool(0.8) {
            random.random_range(0..3600)
        } else {
            random.random_range(-4000..7600)
        };
        let delay = if random.random_bool(0.2) { random.random_range(0..2000) } else { 1 };
        let (number, id) = (random.random_range(1..7), random.random_range(0..count));
        let mut click = click(number, id, event, delay, random.random_range(0..3));
        if random.random_bool(0.4) {
            click.schema_version = 1;
        } else {
            click.publisher_id = PublisherId::new("pub_1").expect("valid id");
        }
        clicks.push(click);
    }
    clicks
}

/// Rulings that contradict each other, some of them decided at the same moment, some too early to be asked.
fn verdicts(random: &mut StdRng, clicks: &[Click]) -> Vec<Verdict> {
    let classes = [VerdictClass::Valid, VerdictClass::Givt, VerdictClass::Sivt];
    let one = |random: &mut StdRng| {
        let click = &clicks[random.random_range(0..clicks.len())];
        let arrival = if random.random_bool(0.8) { random.random_range(0..9000) } else { -90_000 };
        let class = classes[random.random_range(0..3)];
        let decided = at(random.random_range(0..3));
        Verdict {
            campaign_id: click.campaign_id.clone(),
            click_id: click.click_id,
            ..verdict(1, 0, class, decided, at(arrival))
        }
    };
    (0..clicks.len() / 3).map(|_| one(random)).collect()
}

fn python() -> PathBuf {
    if let Some(named) = std::env::var_os("TWICE_TEST_PYTHON") {
        return PathBuf::from(named);
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/python-env");
    let output = Command::new(script).output().expect("tests/python-env runs");
    assert!(output.status.success(), "no Python with duckdb: {}", String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8(output.stdout).expect("a path").trim())
}

/// The blocks of the page: names, relations, verdicts, no verdicts, check of the files.
fn blocks_of_the_page() -> Vec<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/audit-with-duckdb.md");
    let page = std::fs::read_to_string(path).expect("the page");
    let blocks = page.split("```sql\n").skip(1).filter_map(|rest| rest.split_once("```"));
    blocks.map(|(block, _)| block.to_owned()).collect()
}

/// Runs the page's lines over one run, and returns the rows of the pasted statement.
fn rows_in_duckdb(root: &Path, run: &str, inputs: &RunInputs) -> Vec<BillingCounts> {
    let blocks = blocks_of_the_page();
    let [names, relations, some_verdicts, no_verdicts, check] = blocks.as_slice() else {
        panic!("the page has other blocks: {blocks:?}")
    };
    let named = names
        .replace("/var/lib/twice/archive", &root.display().to_string())
        .replace("runs/lambda/2025-01-15T12/000001.json", run);
    let verdicts = if inputs.verdict_files.is_empty() { no_verdicts } else { some_verdicts };
    let request = serde_json::json!({
        "layout": [named, relations, verdicts], "check": check, "bill": BILLING_SQL,
    });
    let script = "import duckdb, json, sys\n\
        request = json.load(sys.stdin)\n\
        base = duckdb.connect()\n\
        for block in request['layout']: base.execute(block)\n\
        changed = base.execute(request['check']).fetchall()\n\
        rows = base.execute(request['bill']).fetchall()\n\
        print(json.dumps({'changed': changed, 'rows': rows}))\n";
    let mut child = Command::new(python())
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("python starts");
    let mut stdin = child.stdin.take().expect("stdin");
    stdin.write_all(request.to_string().as_bytes()).expect("request is written");
    drop(stdin);
    let output = child.wait_with_output().expect("python ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).expect("an answer");
    assert_eq!(answer["changed"], serde_json::json!([]), "files whose hash differs");
    answer["rows"].as_array().expect("rows").iter().map(counts).collect()
}

fn counts(row: &serde_json::Value) -> BillingCounts {
    // Whole numbers or nothing: a figure that came as a float would fail here.
    let number = |index: usize| row[index].as_i64().unwrap_or_else(|| panic!("no whole number: {row}"));
    let count = |index| u64::try_from(number(index)).expect("a count");
    BillingCounts {
        campaign_id: row[0].as_str().expect("campaign").parse().expect("valid id"),
        gross: count(1),
        duplicates: count(2),
        conflicts: count(3),
        invalid_givt: count(4),
        invalid_sivt: count(5),
        billable: count(6),
        unpriced: count(7),
        amount_micros: number(8),
        currency: row[9].as_str().map(|code| code.parse().expect("a currency")),
    }
}

/// Asserts that rows hold every kind of thing a bill can hold: equal rows of nothing would prove nothing.
fn assert_rich(rows: &[BillingCounts]) {
    let sum = |value: fn(&BillingCounts) -> u64| rows.iter().map(value).sum::<u64>();
    let sums = [
        sum(|row| row.duplicates),
        sum(|row| row.conflicts),
        sum(|row| row.invalid_givt),
        sum(|row| row.invalid_sivt),
        sum(|row| row.billable),
        sum(|row| row.unpriced),
        sum(|row| row.amount_micros.unsigned_abs()),
    ];
    assert!(sums.iter().all(|sum| *sum > 0), "{sums:?}");
}

async fn put_campaign(node: &Node, number: u8, cpc_micros: i64, from: i64) {
    let put = PutCampaign {
        campaign_id: campaign(number),
        name: "a campaign".to_owned(),
        currency: "EUR".parse().expect("valid currency"),
        cpc_micros,
        daily_budget_micros: None,
        strict: false,
        effective_from: Some(at(from)),
    };
    node.store.put_campaign(put, at(-7200)).await.expect("campaign is put");
}

#[actix::test]
async fn the_statement_pasted_into_duckdb_gives_the_rows_of_the_billing_store() {
    let node = Node::start().await;
    for number in 1..5 {
        put_campaign(&node, number, 250_000, -7200).await;
    }
    put_campaign(&node, 1, 300_001, 1800).await;
    put_campaign(&node, 5, 70_000, 1200).await; // no price before that; campaign 6 is unknown
    let mut random = StdRng::seed_from_u64(11);
    let clicks = clicks(&mut random, 1500);
    node.append(&clicks).await;
    node.append_verdicts(&verdicts(&mut random, &clicks)).await;
    let reconciler = node.reconciler(false, HangAt::Nowhere);
    reconciler.reconcile(hour(), None).await.expect("closed");
    let path = twice_log::archive::BillingPath::Lambda;
    let first = node.archive.run_inputs(path, hour(), 1).await.expect("read").expect("inputs").inputs;
    let billed: Vec<BillingCounts> = node.rows().await.into_iter().map(|row| row.counts).collect();
    assert_rich(&billed);
    assert_eq!(rows_in_duckdb(&node.archive_root(), FIRST_RUN, &first), billed);

    // Later clicks make a second run; the first one's inputs still give the first one's rows.
    node.append(&[click(2, 90_000, 100, 5000, 0), click(6, 90_001, 100, 5000, 0)]).await;
    reconciler.reconcile(hour(), None).await.expect("closed again");
    let second = node.archive.run_inputs(path, hour(), 2).await.expect("read").expect("inputs").inputs;
    let newest = newest(node.rows().await);
    let again = rows_in_duckdb(&node.archive_root(), "runs/lambda/2025-01-15T12/000002.json", &second);
    assert_eq!(again, newest);
    assert_ne!(newest, billed);
    assert_eq!(rows_in_duckdb(&node.archive_root(), FIRST_RUN, &first), billed);
    reconciler.stop().await;
}

fn newest(rows: Vec<twice_store::BillingRow>) -> Vec<BillingCounts> {
    let mut newest: BTreeMap<_, (u32, BillingCounts)> = BTreeMap::new();
    for row in rows {
        let kept = newest.entry(row.counts.campaign_id.clone()).or_insert((row.version, row.counts.clone()));
        if row.version >= kept.0 {
            *kept = (row.version, row.counts);
        }
    }
    newest.into_values().map(|(_, counts)| counts).collect()
}

/// Rewrites a file's columns as another build would have written them, under a name of its own.
fn rewritten(root: &Path, entry: &FileEntry, change: impl Fn(RecordBatch) -> RecordBatch) -> FileEntry {
    let bytes = bytes::Bytes::from(std::fs::read(root.join(&entry.path)).expect("file"));
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).expect("opens").build().expect("reads");
    let batches: Vec<RecordBatch> = reader.map(|batch| change(batch.expect("batch"))).collect();
    let schema = batches[0].schema();
    let plain = ArrowSchemaConverter::new().convert(&schema).expect("converts");
    let mut fields = plain.root_schema().get_fields().to_vec();
    for field in fields.iter_mut().filter(|field| field.name() == "click_id") {
        let uuid = Type::primitive_type_builder("click_id", field.get_physical_type());
        let uuid = uuid.with_length(16).with_logical_type(Some(LogicalType::Uuid));
        let uuid = uuid.with_repetition(field.get_basic_info().repetition());
        *field = Arc::new(uuid.build().expect("a type"));
    }
    let schema_root = Type::group_type_builder("schema").with_fields(fields).build().expect("a schema");
    let options = ArrowWriterOptions::new()
        .with_skip_arrow_metadata(true)
        .with_parquet_schema(SchemaDescriptor::new(Arc::new(schema_root)));
    let mut writer = ArrowWriter::try_new_with_options(Vec::new(), schema, options).expect("writer");
    batches.iter().for_each(|batch| writer.write(batch).expect("writes"));
    let bytes = writer.into_inner().expect("ends");
    let path = entry.path.replace(".parquet", "9.parquet");
    std::fs::write(root.join(&path), &bytes).expect("file");
    FileEntry { path, bytes: bytes.len() as u64, sha256: Sha256Hex::of(&bytes), ..entry.clone() }
}

fn without(batch: &RecordBatch, columns: &[&str]) -> RecordBatch {
    let schema = batch.schema();
    let kept =
        (0..batch.num_columns()).filter(|index| !columns.contains(&schema.field(*index).name().as_str()));
    batch.project(&kept.collect::<Vec<_>>()).expect("projects")
}

/// Adds what a third version might: a text that may be null.
fn with_placement(batch: &RecordBatch) -> RecordBatch {
    let added = Arc::new(Field::new("placement", DataType::Utf8, true));
    let fields: Vec<_> = batch.schema().fields().iter().cloned().chain([added]).collect();
    let placements: ArrayRef =
        Arc::new((0..batch.num_rows()).map(|row| (row % 2 == 0).then_some("top")).collect::<StringArray>());
    let columns = batch.columns().iter().cloned().chain([placements]).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).expect("batch")
}

/// An archive of small files, and the inputs of a run whose cutoffs lie inside files.
async fn cut_run(root: &Path) -> (twice_log::archive::Archive, RunInputs) {
    let archive = support::open_archive(root);
    let mut random = StdRng::seed_from_u64(5);
    let mut clicks = clicks(&mut random, 900);
    // What a first version's record has; so its file may go without the later columns.
    clicks.iter_mut().for_each(|click| click.publisher_id = PublisherId::default());
    let verdicts = verdicts(&mut random, &clicks);
    let records = Records::of(&clicks, &verdicts, 2);
    archive_records(&archive, &records, 100, 60).await;
    let end = |partition: u32| records.clicks[&PartitionId(partition)].len() as i64;
    let click_ends = BTreeMap::from([(PartitionId(0), end(0) - 37), (PartitionId(1), end(1) - 1)]);
    let rates =
        vec![rate(1, 250, at(-9000), at(0)), rate(1, 400, at(1800), at(0)), rate(3, 7, at(60), at(5))];
    let run = Run { click_ends, rates, settings: CountingSettings::default(), seals: Vec::new() };
    let inputs = run_inputs(&archive, &records, &run).await;
    (archive, inputs)
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_three_schema_versions_in_one_hour_give_one_bill_on_both_engines() {
    let folder = tempfile::tempdir().expect("folder");
    let root = folder.path().join("archive");
    let (archive, mut inputs) = cut_run(&root).await;
    let expected = recompute_inputs(&archive, &inputs, &limits(folder.path(), 2, None)).await.expect("bill");
    assert_rich(&expected.rows);
    assert!(inputs.click_files.len() >= 9, "{} files", inputs.click_files.len());
    for (index, file) in inputs.click_files.iter_mut().enumerate() {
        *file = match index % 3 {
            0 => rewritten(&root, file, |batch| without(&batch, &["publisher_id", "ip_hash"])),
            1 => rewritten(&root, file, |batch| with_placement(&batch)),
            _ => continue, // stays as it is, and its hash is checked
        };
    }
    let stored = archive.put_run_inputs(&inputs).await.expect("inputs are put");
    for rows_max in [None, Some(40)] {
        let mixed = recompute_inputs(&archive, &stored.inputs, &limits(folder.path(), 2, rows_max)).await;
        let mixed = mixed.expect("bill of mixed files");
        assert_eq!(mixed.rows, expected.rows);
        assert_eq!(mixed.divergence, expected.divergence);
    }
    assert_eq!(rows_in_duckdb(&root, FIRST_RUN, &inputs), expected.rows);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_without_a_column_of_every_version_is_refused_by_the_columns_name() {
    let folder = tempfile::tempdir().expect("folder");
    let root = folder.path().join("archive");
    for column in ["watermark", "payload_hash", "schema_version"] {
        let (archive, mut inputs) = cut_run(&root.join(column)).await;
        let file = &mut inputs.click_files[0];
        *file = rewritten(&root.join(column), file, |batch| without(&batch, &[column]));
        let refused = recompute_inputs(&archive, &inputs, &limits(folder.path(), 2, None)).await;
        let refused = format!("{:?}", refused.expect_err("damaged"));
        assert!(refused.contains(&format!("no column {column}")), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_without_verdicts_reads_in_duckdb_as_well() {
    let folder = tempfile::tempdir().expect("folder");
    let root = folder.path().join("archive");
    let archive = support::open_archive(&root);
    let records = Records::of(&[click(1, 1, 10, 1, 0), click(1, 1, 10, 1, 1)], &[], 1);
    archive_records(&archive, &records, 100, 100).await;
    let run = Run {
        click_ends: BTreeMap::new(),
        rates: Vec::new(),
        settings: CountingSettings::default(),
        seals: Vec::new(),
    };
    let inputs = run_inputs(&archive, &records, &run).await;
    archive.put_run_inputs(&inputs).await.expect("inputs are put");
    let expected = recompute_inputs(&archive, &inputs, &limits(folder.path(), 1, None)).await.expect("bill");
    assert_eq!(rows_in_duckdb(&root, FIRST_RUN, &inputs), expected.rows);
}
