//! The parts a ledger is written in, and how they become one file.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use parquet::arrow::ARROW_SCHEMA_META_KEY;
use parquet::column::writer::ColumnCloseResult;
use parquet::file::metadata::{KeyValue, ParquetMetaData, ParquetMetaDataReader};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;

use super::write::with_suffix;

pub(super) fn part_path(ledger: &Path, number: usize) -> PathBuf {
    with_suffix(ledger, &format!(".part-{number:06}.parquet"))
}

/// Returns the parts of `ledger` that lie beside it, in order.
pub(super) fn list_parts(ledger: &Path) -> Result<Vec<PathBuf>> {
    let folder = match ledger.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let Some(name) = ledger.file_name() else { return Ok(Vec::new()) };
    let prefix = format!("{}.part-", name.to_string_lossy());
    let context = || format!("list {}; does the folder exist?", folder.display());
    let mut parts = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(context)? {
        let entry = entry.with_context(context)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(&prefix) && name.ends_with(".parquet") {
            parts.push(entry.path());
        }
    }
    parts.sort();
    Ok(parts)
}

/// Joins `parts` into `ledger` by copying their column chunks, then removes them. The ledger appears whole or not at
/// all: it is written under another name first.
pub(super) fn join_parts(ledger: &Path, parts: &[PathBuf], metadata: &[(&str, String)]) -> Result<()> {
    let joining = with_suffix(ledger, ".joining");
    let mut writer: Option<SerializedFileWriter<File>> = None;
    for part in parts {
        let input = File::open(part).with_context(|| format!("open {}", part.display()))?;
        let read = ParquetMetaDataReader::new()
            .parse_and_finish(&input)
            .with_context(|| format!("read {}", part.display()))?;
        if writer.is_none() {
            writer = Some(open_joined(&joining, &read, metadata)?);
        }
        if let Some(writer) = &mut writer {
            copy_groups(writer, &input, &read)?;
        }
    }
    if let Some(writer) = writer {
        writer.close()?;
    }
    std::fs::rename(&joining, ledger).with_context(|| format!("rename {}", joining.display()))?;
    for part in parts {
        std::fs::remove_file(part).with_context(|| format!("remove {}", part.display()))?;
    }
    Ok(())
}

fn open_joined(
    path: &Path,
    first: &ParquetMetaData,
    metadata: &[(&str, String)],
) -> Result<SerializedFileWriter<File>> {
    let inherited = first.file_metadata().key_value_metadata().into_iter().flatten();
    let mut pairs: Vec<KeyValue> =
        inherited.filter(|pair| pair.key == ARROW_SCHEMA_META_KEY).cloned().collect();
    pairs.extend(metadata.iter().map(|(key, value)| KeyValue::new((*key).to_owned(), value.clone())));
    let properties = WriterProperties::builder().set_key_value_metadata(Some(pairs)).build();
    let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    let schema = first.file_metadata().schema_descr().root_schema_ptr();
    Ok(SerializedFileWriter::new(file, schema, Arc::new(properties))?)
}

fn copy_groups(writer: &mut SerializedFileWriter<File>, input: &File, read: &ParquetMetaData) -> Result<()> {
    for group in read.row_groups() {
        let mut copied = writer.next_row_group()?;
        for column in group.columns() {
            let closed = ColumnCloseResult {
                bytes_written: column.compressed_size().unsigned_abs(),
                rows_written: group.num_rows().unsigned_abs(),
                metadata: column.clone(),
                bloom_filter: None,
                column_index: None,
                offset_index: None,
            };
            copied.append_column(input, closed)?;
        }
        copied.close()?;
    }
    Ok(())
}
