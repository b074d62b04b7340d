//! `generate`: the same stream in a file that `twice import` reads, and its ledger.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use arrow::array::RecordBatch;
use arrow::datatypes::Schema;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use serde::Serialize;
use twice_log::Clock;

use crate::cli::{Ended, GenerateArgs};
use crate::console::{print, tell};
use crate::ledger::{ClickColumns, ClickIdForm, LedgerWriter, Settled, click_fields, make_room, write_rates};
use crate::stream::{
    ClickStream, Content, Profile, StreamSettings, Texts, Timing, campaign_rates, write_line,
};

const ROWS_A_GROUP: usize = 131_072;
const ROWS_A_LEDGER_CHUNK: usize = 8_192;
const ROWS_A_PROGRESS_LINE: u64 = 1_000_000;

/// How the ledger of a generated file ends.
#[derive(Debug, Serialize)]
struct End {
    generated: String,
    acknowledged: u64,
}

/// Runs `generate`.
///
/// # Errors
/// If a file is in the way or cannot be written.
pub fn run(args: &GenerateArgs, clock: &dyn Clock) -> Result<Ended> {
    if args.stream.profile == Profile::Malformed {
        bail!("a file to import holds no bad clicks; --profile malformed goes with `run`");
    }
    let settings = StreamSettings::from_args(&args.stream, args.clicks, Timing::Written, clock)?;
    if args.out.exists() && !args.overwrite {
        bail!("{} exists already; give --out another name, or add --overwrite", args.out.display());
    }
    let rates = campaign_rates(&settings);
    let stream = Arc::new(ClickStream::new(settings));
    let mut ledger = match &args.ledger {
        Some(path) => {
            make_room(path, args.overwrite)?;
            write_rates(path, &rates)?;
            Some(LedgerWriter::new(path, Arc::clone(&stream))?)
        }
        None => None,
    };
    let mut file = ClickFile::create(&args.out, &stream)?;
    let mut settled = Vec::with_capacity(ROWS_A_LEDGER_CHUNK);
    for copy in stream.iter() {
        file.push(&copy.content)?;
        if let Some(ledger) = &mut ledger {
            let sequence = copy.sequence;
            settled.push(Settled { sequence, acknowledged: true, attempts_unknown: 0, rejected: None });
            if settled.len() == ROWS_A_LEDGER_CHUNK {
                ledger.append(&settled)?;
                settled.clear();
            }
        }
        if (copy.sequence + 1) % ROWS_A_PROGRESS_LINE == 0 {
            tell(&format!("{} clicks written", copy.sequence + 1));
        }
    }
    file.finish().with_context(|| format!("write {}", args.out.display()))?;
    if let Some(mut ledger) = ledger {
        ledger.append(&settled)?;
        ledger.finish(&End { generated: args.out.display().to_string(), acknowledged: args.clicks })?;
    }
    print(&format!("{} clicks in {}\n", args.clicks, args.out.display()));
    Ok(Ended::Agreed)
}

/// A file of clicks in one of the import formats.
enum ClickFile {
    Ndjson { writer: BufWriter<File>, texts: Texts, line: Vec<u8> },
    Parquet { writer: Box<ArrowWriter<File>>, columns: Box<ClickColumns>, schema: Arc<Schema> },
}

impl ClickFile {
    fn create(path: &Path, stream: &ClickStream) -> Result<Self> {
        let texts = Texts::new(stream.settings());
        let create = || {
            File::create(path).with_context(|| format!("create {}; does the folder exist?", path.display()))
        };
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("ndjson" | "jsonl") => Ok(Self::Ndjson {
                writer: BufWriter::with_capacity(1 << 20, create()?),
                texts,
                line: Vec::new(),
            }),
            Some("parquet") => {
                let schema = Arc::new(Schema::new(click_fields(ClickIdForm::Text)));
                let properties = WriterProperties::builder()
                    .set_compression(Compression::ZSTD(ZstdLevel::default()))
                    .build();
                let writer =
                    Box::new(ArrowWriter::try_new(create()?, Arc::clone(&schema), Some(properties))?);
                let columns = Box::new(ClickColumns::new(texts, ClickIdForm::Text));
                Ok(Self::Parquet { writer, columns, schema })
            }
            _ => bail!("--out {} must end in .ndjson or .parquet", path.display()),
        }
    }

    fn push(&mut self, content: &Content) -> Result<()> {
        match self {
            Self::Ndjson { writer, texts, line } => {
                line.clear();
                write_line(line, texts, content);
                writer.write_all(line)?;
            }
            Self::Parquet { writer, columns, schema } => {
                columns.push(content)?;
                if columns.rows() >= ROWS_A_GROUP {
                    writer.write(&RecordBatch::try_new(Arc::clone(schema), columns.finish())?)?;
                    writer.flush()?;
                }
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<()> {
        match self {
            Self::Ndjson { mut writer, .. } => writer.flush()?,
            Self::Parquet { mut writer, mut columns, schema } => {
                if columns.rows() > 0 {
                    writer.write(&RecordBatch::try_new(schema, columns.finish())?)?;
                }
                writer.close()?;
            }
        }
        Ok(())
    }
}
