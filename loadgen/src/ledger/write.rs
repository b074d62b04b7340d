//! Writing the ledger: rows are gathered on a thread of their own and leave as row groups of a part file.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use arrow::array::{BooleanBuilder, Int32Builder, Int64Builder, RecordBatch, StringBuilder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use parquet::schema::types::ColumnPath;

use super::columns::{ClickColumns, ClickIdForm, click_fields};
use super::parts::{join_parts, list_parts, part_path};
use crate::stream::{CampaignRate, ClickStream, Ruling, Texts};

const ROWS_A_GROUP: usize = 131_072;
/// A part is closed this often: at most so much is lost if this process dies.
const PART_LIFETIME: Duration = Duration::from_secs(5);

/// What became of one copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    pub sequence: u64,
    /// The node accepted this copy.
    pub acknowledged: bool,
    /// Other sends of it whose outcome is unknown: each may have stored one more copy.
    pub attempts_unknown: u32,
    /// The node's code of refusal: it certainly did not store the copy on that send.
    pub rejected: Option<String>,
}

/// The columns of a ledger.
pub(super) fn ledger_schema() -> SchemaRef {
    let mut fields = click_fields(ClickIdForm::Bytes);
    fields.extend([
        Field::new("kind", DataType::Utf8, false),
        Field::new("sequence", DataType::Int64, false),
        Field::new("acknowledged", DataType::Boolean, false),
        Field::new("attempts_unknown", DataType::Int32, false),
        Field::new("rejected", DataType::Utf8, true),
        Field::new("verdict", DataType::Utf8, true),
    ]);
    Arc::new(Schema::new(fields))
}

/// Returns where the rates of the ledger `path` stand.
pub fn rates_path(path: &Path) -> PathBuf {
    with_suffix(path, ".rates.json")
}

pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Writes the rates beside the ledger, in the order they are put.
///
/// # Errors
/// If the file cannot be written.
pub fn write_rates(ledger: &Path, rates: &[CampaignRate]) -> Result<()> {
    let path = rates_path(ledger);
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    let mut writer = std::io::BufWriter::new(file);
    serde_json::to_writer(&mut writer, rates).with_context(|| format!("write {}", path.display()))?;
    std::io::Write::flush(&mut writer).with_context(|| format!("write {}", path.display()))
}

/// Makes sure that there is room for a ledger at `path`, removing an old one where `overwrite` says so.
///
/// # Errors
/// If there is one already and `overwrite` is false, or it cannot be removed.
pub fn make_room(path: &Path, overwrite: bool) -> Result<()> {
    let mut existing = list_parts(path)?;
    if path.exists() {
        existing.push(path.to_path_buf());
    }
    if let (Some(found), false) = (existing.first(), overwrite) {
        bail!("{} exists already; give --ledger another name, or add --overwrite", found.display());
    }
    for file in existing {
        std::fs::remove_file(&file).with_context(|| format!("remove {}", file.display()))?;
    }
    Ok(())
}

/// Writes a ledger. Whoever drops it without [`LedgerWriter::finish`] leaves the parts.
#[derive(Debug)]
pub struct LedgerWriter {
    path: PathBuf,
    stream: Arc<ClickStream>,
    schema: SchemaRef,
    rows: Columns,
    /// Verdicts are sent on the clicks that are ruled on.
    with_verdicts: bool,
    part: Option<OpenPart>,
    parts: Vec<PathBuf>,
}

#[derive(Debug)]
struct OpenPart {
    writer: ArrowWriter<File>,
    opened: Instant,
}

#[derive(Debug)]
struct Columns {
    click: ClickColumns,
    kind: StringBuilder,
    sequence: Int64Builder,
    acknowledged: BooleanBuilder,
    attempts_unknown: Int32Builder,
    rejected: StringBuilder,
    verdict: StringBuilder,
}

impl LedgerWriter {
    /// Starts a ledger at `path`, where [`make_room`] made room.
    ///
    /// # Errors
    /// If its first part cannot be created.
    pub fn new(path: &Path, stream: Arc<ClickStream>) -> Result<Self> {
        Self::after(path, stream, Vec::new())
    }

    /// Goes on with a ledger of which an earlier run left `parts`.
    ///
    /// # Errors
    /// If the next part cannot be created.
    pub fn after(path: &Path, stream: Arc<ClickStream>, parts: Vec<PathBuf>) -> Result<Self> {
        let texts = Texts::new(stream.settings());
        let rows = Columns {
            click: ClickColumns::new(texts, ClickIdForm::Bytes),
            kind: StringBuilder::new(),
            sequence: Int64Builder::new(),
            acknowledged: BooleanBuilder::new(),
            attempts_unknown: Int32Builder::new(),
            rejected: StringBuilder::new(),
            verdict: StringBuilder::new(),
        };
        let mut writer = Self {
            path: path.to_path_buf(),
            stream,
            schema: ledger_schema(),
            rows,
            with_verdicts: false,
            part: None,
            parts,
        };
        writer.open_part()?; // a folder that does not exist shows now, not after the run
        Ok(writer)
    }

    /// Writes down with each copy the verdict that the run sends on its click.
    #[must_use]
    pub fn with_verdicts(self) -> Self {
        Self { with_verdicts: true, ..self }
    }

    /// Appends rows.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn append(&mut self, settled: &[Settled]) -> Result<()> {
        for row in settled {
            let copy = self.stream.copy(row.sequence);
            self.rows.click.push(&copy.content)?;
            self.rows.kind.append_value(copy.kind.name());
            self.rows.sequence.append_value(i64::try_from(row.sequence)?);
            self.rows.acknowledged.append_value(row.acknowledged);
            self.rows.attempts_unknown.append_value(i32::try_from(row.attempts_unknown).unwrap_or(i32::MAX));
            self.rows.rejected.append_option(row.rejected.as_deref());
            let ruling = if self.with_verdicts { self.stream.ruling(copy.original) } else { None };
            self.rows.verdict.append_option(ruling.map(Ruling::name));
        }
        if self.rows.click.rows() >= ROWS_A_GROUP {
            self.write_group()?;
        }
        self.tick()
    }

    /// Closes the part if its time has come; also called while no rows arrive.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn tick(&mut self) -> Result<()> {
        match &self.part {
            Some(part) if part.opened.elapsed() >= PART_LIFETIME => self.close_part(),
            _ => Ok(()),
        }
    }

    /// Writes the rest and joins the parts into the ledger, with `end` in its metadata.
    ///
    /// # Errors
    /// If the disk refuses; the parts then stay.
    pub fn finish(mut self, end: &impl serde::Serialize) -> Result<()> {
        self.close_part()?;
        // An empty part is still open where nothing came since the last one: the only one of a run that settled nothing
        // is its ledger, any other goes.
        let spare = part_path(&self.path, self.parts.len());
        if self.parts.is_empty() {
            self.close_open_part()?;
        } else if self.part.take().is_some() {
            std::fs::remove_file(&spare).with_context(|| format!("remove {}", spare.display()))?;
        }
        let metadata = [
            (super::KEY_VERSION, super::VERSION.to_owned()),
            (super::KEY_STREAM, serde_json::to_string(self.stream.settings())?),
            (super::KEY_END, serde_json::to_string(end)?),
        ];
        join_parts(&self.path, &self.parts, &metadata)
            .with_context(|| format!("join the parts of {}; they are still there", self.path.display()))
    }

    fn open_part(&mut self) -> Result<()> {
        let path = part_path(&self.path, self.parts.len());
        let context = || format!("create {}; does the folder exist?", path.display());
        let file = File::create(&path).with_context(context)?;
        let properties = WriterProperties::builder()
            .set_compression(Compression::UNCOMPRESSED)
            // Random ids and increasing numbers: a dictionary of them only costs.
            .set_column_dictionary_enabled(ColumnPath::from("click_id"), false)
            .set_column_dictionary_enabled(ColumnPath::from("sequence"), false)
            .set_column_dictionary_enabled(ColumnPath::from("event_time"), false)
            .build();
        let writer = ArrowWriter::try_new(file, Arc::clone(&self.schema), Some(properties))?;
        self.part = Some(OpenPart { writer, opened: Instant::now() });
        Ok(())
    }

    fn write_group(&mut self) -> Result<()> {
        if self.rows.click.rows() == 0 {
            return Ok(());
        }
        if self.part.is_none() {
            self.open_part()?;
        }
        let mut columns = self.rows.click.finish();
        columns.push(Arc::new(self.rows.kind.finish()));
        columns.push(Arc::new(self.rows.sequence.finish()));
        columns.push(Arc::new(self.rows.acknowledged.finish()));
        columns.push(Arc::new(self.rows.attempts_unknown.finish()));
        columns.push(Arc::new(self.rows.rejected.finish()));
        columns.push(Arc::new(self.rows.verdict.finish()));
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), columns)?;
        if let Some(part) = &mut self.part {
            part.writer.write(&batch)?;
            part.writer.flush()?;
        }
        Ok(())
    }

    /// Closes the open part; what was appended so far outlives this process.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn close_part(&mut self) -> Result<()> {
        self.write_group()?;
        match &self.part {
            Some(part) if part.writer.flushed_row_groups().is_empty() => {
                // Nothing arrived: the empty part stays open, for whatever comes next.
                self.part = self.part.take().map(|part| OpenPart { opened: Instant::now(), ..part });
                Ok(())
            }
            _ => self.close_open_part(),
        }
    }

    fn close_open_part(&mut self) -> Result<()> {
        if let Some(part) = self.part.take() {
            part.writer.close()?;
            self.parts.push(part_path(&self.path, self.parts.len()));
        }
        Ok(())
    }
}
