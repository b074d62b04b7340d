//! Reading data files back, each checked against the hash its manifest recorded.
//!
//! Guarantee: what is returned is what was archived, or an error names the file. Used by explain, replay and audit;
//! the recompute reads the same files through DataFusion.

use std::sync::Arc;

use arrow::array::{
    Array, AsArray, BinaryArray, FixedSizeBinaryArray, Int32Array, Int64Array, RecordBatch,
    RecordBatchReader, StringArray, TimestampMillisecondArray,
};
use arrow::datatypes::{Int32Type, Int64Type, TimestampMillisecondType};
use bytes::Bytes;
use futures::StreamExt;
use object_store::ObjectStoreExt;
use object_store::path::Path as ObjectPath;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use sha2::{Digest, Sha256};

use super::columns::Layout;
use super::rows::QuarantineRow;
use super::{Archive, FileEntry};
use crate::error::{Error, Result};
use crate::event::{
    CampaignId, Click, ClickCopy, ClickId, Generation, LogOffset, PartitionId, Position, Sha256Hex,
    UtcMillis, Verdict, VerdictClass, VerdictCopy,
};

const BATCH_ROWS: usize = 16 * 1024;

impl Archive {
    /// Returns a data file's bytes, after checking length and SHA-256 against its manifest entry.
    ///
    /// # Errors
    /// `ArchiveDamage` if the file is missing or its bytes are not those the manifest committed; `Deleted` if a tombstone
    /// names it.
    pub async fn read_bytes(&self, entry: &FileEntry) -> Result<Bytes> {
        let damage =
            |reason: &str| Error::ArchiveDamage { path: entry.path.clone(), reason: reason.to_owned() };
        let Some(bytes) = self.get_data(entry).await? else { return Err(self.absent(entry).await) };
        if bytes.len() as u64 != entry.bytes || Sha256Hex::of(&bytes) != entry.sha256 {
            return Err(damage("is not the file its manifest committed: length or SHA-256 differ"));
        }
        Ok(bytes)
    }

    /// Compares a data file's SHA-256 with the one its manifest recorded, reading it piece by piece.
    ///
    /// # Errors
    /// `ArchiveDamage` if it is missing or another, `Deleted` if a tombstone names it; `ObjectStore` if the store fails.
    pub async fn verify_data(&self, entry: &FileEntry) -> Result<()> {
        let damage = |reason: String| Error::ArchiveDamage { path: entry.path.clone(), reason };
        let failed = |source| Error::ObjectStore { action: "get", path: entry.path.clone(), source };
        let path = ObjectPath::parse(&entry.path).map_err(|error| damage(error.to_string()))?;
        let mut pieces = match self.store_of(self.bucket_of(entry)).get(&path).await {
            Ok(found) => found.into_stream(),
            Err(object_store::Error::NotFound { .. }) => return Err(self.absent(entry).await),
            Err(source) => return Err(failed(source)),
        };
        let mut hasher = Sha256::new();
        while let Some(bytes) = pieces.next().await {
            hasher.update(bytes.map_err(failed)?);
        }
        let found = Sha256Hex(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect());
        if found == entry.sha256 {
            Ok(())
        } else {
            Err(damage(format!("has the SHA-256 {found}, its manifest says {}", entry.sha256)))
        }
    }

    /// Returns a data file's rows as Arrow batches.
    ///
    /// # Errors
    /// As [`Archive::read_bytes`], and `ArchiveDamage` or `Parquet` if the rows are not those the manifest counts.
    pub async fn read_batches(&self, entry: &FileEntry) -> Result<Vec<RecordBatch>> {
        let bytes = self.read_bytes(entry).await?;
        let entry = entry.clone();
        let path = entry.path.clone();
        let decoded = tokio::task::spawn_blocking(move || decode_batches(&entry, bytes)).await;
        decoded.map_err(|error| Error::ObjectStore { action: "decode", path, source: error.into() })?
    }

    /// Returns the copies in a file of clicks, as stored: by campaign, event time and offset; one campaign's if given.
    ///
    /// # Errors
    /// As [`Archive::read_batches`].
    pub async fn read_clicks(
        &self,
        entry: &FileEntry,
        campaign: Option<&CampaignId>,
    ) -> Result<Vec<ClickCopy>> {
        let mut copies = Vec::new();
        for batch in self.read_batches(entry).await? {
            let columns = Columns { path: &entry.path, batch: &batch };
            let campaigns = columns.strings("campaign_id")?;
            for row in 0..batch.num_rows() {
                if campaign.is_none_or(|campaign| campaigns.value(row) == campaign.as_str()) {
                    copies.push(columns.click(row)?);
                }
            }
        }
        Ok(copies)
    }

    /// Returns the verdicts in a file of verdicts, as stored: by campaign, decision time and offset.
    ///
    /// # Errors
    /// As [`Archive::read_batches`].
    pub async fn read_verdicts(&self, entry: &FileEntry) -> Result<Vec<VerdictCopy>> {
        let mut copies = Vec::new();
        for batch in self.read_batches(entry).await? {
            let columns = Columns { path: &entry.path, batch: &batch };
            for row in 0..batch.num_rows() {
                copies.push(columns.verdict(row)?);
            }
        }
        Ok(copies)
    }

    /// Returns the records in a file of quarantine, by offset.
    ///
    /// # Errors
    /// As [`Archive::read_batches`].
    pub async fn read_quarantine(&self, entry: &FileEntry) -> Result<Vec<QuarantineRow>> {
        let mut rows = Vec::new();
        for batch in self.read_batches(entry).await? {
            let columns = Columns { path: &entry.path, batch: &batch };
            let (offsets, reasons) = (columns.longs("log_offset")?, columns.strings("reason")?);
            let records: &BinaryArray = columns.column("bytes")?.as_binary();
            for row in 0..batch.num_rows() {
                rows.push(QuarantineRow {
                    offset: LogOffset(offsets.value(row)),
                    bytes: Bytes::copy_from_slice(records.value(row)),
                    reason: reasons.value(row).to_owned(),
                });
            }
        }
        Ok(rows)
    }
}

/// Decodes a file of any layout into the newest one, and checks its count of rows. Synchronous: call it off the executor.
fn decode_batches(entry: &FileEntry, bytes: Bytes) -> Result<Vec<RecordBatch>> {
    let failed = |source| Error::Parquet { path: entry.path.clone(), source };
    let damage = |reason: String| Error::ArchiveDamage { path: entry.path.clone(), reason };
    let builder = ParquetRecordBatchReaderBuilder::try_new(bytes).map_err(failed)?;
    let reader = builder.with_batch_size(BATCH_ROWS).build().map_err(failed)?;
    let layout = Layout::of(entry.kind);
    // An empty file has no batch to check: its columns are checked all the same.
    layout.adapt(&RecordBatch::new_empty(reader.schema())).map_err(damage)?;
    let mut batches = Vec::new();
    for batch in reader {
        batches.push(layout.adapt(&batch?).map_err(damage)?);
    }
    let rows: u64 = batches.iter().map(|batch| batch.num_rows() as u64).sum();
    if rows != entry.rows {
        return Err(damage(format!("holds {rows} rows, its manifest says {}", entry.rows)));
    }
    Ok(batches)
}

/// One batch whose columns were checked against the schema of its kind.
struct Columns<'a> {
    path: &'a str,
    batch: &'a RecordBatch,
}

impl<'a> Columns<'a> {
    fn column(&self, name: &str) -> Result<&'a Arc<dyn Array>> {
        self.batch.column_by_name(name).ok_or_else(|| self.damage(format!("has no column {name}")))
    }

    fn strings(&self, name: &str) -> Result<&'a StringArray> {
        Ok(self.column(name)?.as_string())
    }

    fn longs(&self, name: &str) -> Result<&'a Int64Array> {
        Ok(self.column(name)?.as_primitive::<Int64Type>())
    }

    fn number(&self, name: &str, row: usize) -> Result<u32> {
        let column: &Int32Array = self.column(name)?.as_primitive::<Int32Type>();
        Ok(column.value(row) as u32) // written from an unsigned number
    }

    fn time(&self, name: &str, row: usize) -> Result<Option<UtcMillis>> {
        let column: &TimestampMillisecondArray =
            self.column(name)?.as_primitive::<TimestampMillisecondType>();
        if column.is_null(row) {
            return Ok(None);
        }
        UtcMillis::new(column.value(row)).map(Some).map_err(|error| self.damage(format!("{name} {error}")))
    }

    fn required_time(&self, name: &str, row: usize) -> Result<UtcMillis> {
        self.time(name, row)?.ok_or_else(|| self.damage(format!("{name} is null")))
    }

    fn bytes16(&self, name: &str, row: usize) -> Result<Option<[u8; 16]>> {
        let column: &FixedSizeBinaryArray = self.column(name)?.as_fixed_size_binary();
        Ok(if column.is_null(row) { None } else { column.value(row).try_into().ok() })
    }

    fn id<T: std::str::FromStr<Err: std::fmt::Display>>(&self, name: &str, row: usize) -> Result<T> {
        let text = self.strings(name)?.value(row);
        text.parse().map_err(|error: T::Err| self.damage(format!("{name} in row {row} {error}")))
    }

    fn click_id(&self, row: usize) -> Result<ClickId> {
        let bytes = self.bytes16("click_id", row)?;
        bytes.map(ClickId::from_bytes).ok_or_else(|| self.damage("click_id is null".to_owned()))
    }

    fn place(&self, row: usize) -> Result<(PartitionId, Position)> {
        let position = Position {
            generation: Generation(self.number("generation", row)?),
            offset: LogOffset(self.longs("log_offset")?.value(row)),
        };
        Ok((PartitionId(self.number("partition", row)?), position))
    }

    fn click(&self, row: usize) -> Result<ClickCopy> {
        let (partition, position) = self.place(row)?;
        let click = Click {
            campaign_id: self.id("campaign_id", row)?,
            click_id: self.click_id(row)?,
            ad_id: self.id("ad_id", row)?,
            user_id: self.id("user_id", row)?,
            publisher_id: self.id("publisher_id", row)?,
            event_time: self.required_time("event_time", row)?,
            arrival_time: self.required_time("arrival_time", row)?,
            ip_hash: self.bytes16("ip_hash", row)?,
            schema_version: self.number("schema_version", row)? as u8, // written from a byte
        };
        Ok(ClickCopy { partition, position, watermark: self.time("watermark", row)?, click })
    }

    fn verdict(&self, row: usize) -> Result<VerdictCopy> {
        let (partition, position) = self.place(row)?;
        let name = self.strings("verdict")?.value(row);
        let class = [VerdictClass::Valid, VerdictClass::Givt, VerdictClass::Sivt]
            .into_iter()
            .find(|class| class.name() == name)
            .ok_or_else(|| self.damage(format!("verdict {name:?} is unknown")))?;
        let verdict = Verdict {
            campaign_id: self.id("campaign_id", row)?,
            click_id: self.click_id(row)?,
            verdict: class,
            model_version: self.id("model_version", row)?,
            decided_at: self.required_time("decided_at", row)?,
            click_event_time: self.time("click_event_time", row)?,
            arrival_time: self.required_time("arrival_time", row)?,
            schema_version: self.number("schema_version", row)? as u8, // written from a byte
        };
        Ok(VerdictCopy { partition, position, verdict })
    }

    fn damage(&self, reason: String) -> Error {
        Error::ArchiveDamage { path: self.path.to_owned(), reason }
    }
}
