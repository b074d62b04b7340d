//! Columns that ledgers and generated Parquet files share.

use std::sync::Arc;

use arrow::array::{ArrayRef, FixedSizeBinaryBuilder, StringBuilder, TimestampMillisecondBuilder};
use arrow::datatypes::{DataType, Field, TimeUnit};
use uuid::Uuid;

use crate::stream::{Content, Texts};

/// How `click_id` is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClickIdForm {
    /// 16 bytes: ledgers.
    Bytes,
    /// Text with hyphens: files to import.
    Text,
}

/// Returns the fields of the columns that [`ClickColumns::finish`] returns, in that order.
pub fn click_fields(form: ClickIdForm) -> Vec<Field> {
    let click_id = match form {
        ClickIdForm::Bytes => DataType::FixedSizeBinary(16),
        ClickIdForm::Text => DataType::Utf8,
    };
    vec![
        Field::new("campaign_id", DataType::Utf8, false),
        Field::new("click_id", click_id, false),
        Field::new("ad_id", DataType::Utf8, false),
        Field::new("user_id", DataType::Utf8, false),
        Field::new("publisher_id", DataType::Utf8, false),
        Field::new("event_time", DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())), false),
    ]
}

/// Gathers clicks as columns.
#[derive(Debug)]
pub struct ClickColumns {
    texts: Texts,
    form: ClickIdForm,
    campaign_id: StringBuilder,
    click_id_bytes: FixedSizeBinaryBuilder,
    click_id_text: StringBuilder,
    ad_id: StringBuilder,
    user_id: StringBuilder,
    publisher_id: StringBuilder,
    event_time: TimestampMillisecondBuilder,
    scratch: Vec<u8>,
    rows: usize,
}

impl ClickColumns {
    /// Starts empty columns.
    pub fn new(texts: Texts, form: ClickIdForm) -> Self {
        Self {
            texts,
            form,
            campaign_id: StringBuilder::new(),
            click_id_bytes: FixedSizeBinaryBuilder::new(16),
            click_id_text: StringBuilder::new(),
            ad_id: StringBuilder::new(),
            user_id: StringBuilder::new(),
            publisher_id: StringBuilder::new(),
            event_time: TimestampMillisecondBuilder::new().with_timezone("UTC"),
            scratch: Vec::with_capacity(64),
            rows: 0,
        }
    }

    /// Returns the number of rows gathered.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Appends a click.
    ///
    /// # Errors
    /// Never for 16-byte ids; the builder's signature has one.
    pub fn push(&mut self, content: &Content) -> Result<(), arrow::error::ArrowError> {
        let Self { texts, scratch, .. } = self;
        append(&mut self.campaign_id, scratch, |buffer| texts.campaign_id(buffer, content.campaign));
        append(&mut self.ad_id, scratch, |buffer| texts.ad_id(buffer, content));
        append(&mut self.user_id, scratch, |buffer| texts.user_id(buffer, content));
        append(&mut self.publisher_id, scratch, |buffer| texts.publisher_id(buffer, content));
        match self.form {
            ClickIdForm::Bytes => self.click_id_bytes.append_value(content.click_id)?,
            ClickIdForm::Text => {
                let mut encoded = Uuid::encode_buffer();
                let click_id = Uuid::from_bytes(content.click_id);
                self.click_id_text.append_value(click_id.hyphenated().encode_lower(&mut encoded));
            }
        }
        self.event_time.append_value(content.event_time_ms);
        self.rows += 1;
        Ok(())
    }

    /// Returns the columns and starts anew.
    pub fn finish(&mut self) -> Vec<ArrayRef> {
        self.rows = 0;
        let click_id: ArrayRef = match self.form {
            ClickIdForm::Bytes => Arc::new(self.click_id_bytes.finish()),
            ClickIdForm::Text => Arc::new(self.click_id_text.finish()),
        };
        vec![
            Arc::new(self.campaign_id.finish()),
            click_id,
            Arc::new(self.ad_id.finish()),
            Arc::new(self.user_id.finish()),
            Arc::new(self.publisher_id.finish()),
            Arc::new(self.event_time.finish()),
        ]
    }
}

fn append(builder: &mut StringBuilder, scratch: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    scratch.clear();
    write(scratch);
    builder.append_value(String::from_utf8_lossy(scratch)); // identifiers are ASCII: borrowed, not copied
}
