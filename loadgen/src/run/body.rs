//! The body of a request, in the form asked for. The truth about a copy does not depend on it.

use std::sync::Arc;

use anyhow::Result;
use arrow::array::{
    ArrayRef, FixedSizeBinaryBuilder, Int16Builder, RecordBatch, StringBuilder, TimestampMillisecondBuilder,
};
use arrow_ipc::writer::StreamWriter;
use clap::ValueEnum;

use crate::stream::{
    ClickStream, Content, Copy, FUTURE_MS, Fault, Kind, Profile, TOO_OLD_MS, Texts, write_click_id,
    write_faulty, write_line, write_object,
};

/// How the clicks of a request are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum BodyForm {
    /// One object a line.
    #[default]
    Ndjson,
    /// An array.
    Json,
    /// An Arrow IPC stream.
    Arrow,
    /// A batch of CloudEvents, whose ids are those of the clicks.
    Cloudevents,
}

impl BodyForm {
    /// Returns the media type.
    pub(super) fn content_type(self) -> &'static str {
        match self {
            BodyForm::Ndjson => "application/x-ndjson",
            BodyForm::Json => "application/json",
            BodyForm::Arrow => "application/vnd.apache.arrow.stream",
            BodyForm::Cloudevents => "application/cloudevents-batch+json",
        }
    }

    /// Writes copies as the body of a request.
    ///
    /// # Errors
    /// Only if Arrow refuses what is built here, which is a bug.
    pub(super) fn write(
        self,
        stream: &ClickStream,
        texts: &Texts,
        sequences: impl Iterator<Item = u64>,
    ) -> Result<bytes::Bytes> {
        let copies = sequences.map(|sequence| stream.copy(sequence));
        let mut body = Vec::with_capacity(copies.size_hint().0.max(1) * 200);
        match self {
            BodyForm::Ndjson => {
                for copy in copies {
                    match copy.kind {
                        // Lines have borders of their own: here even what is no JSON harms no neighbour.
                        Kind::Bad(Fault::Broken) => body.extend_from_slice(b"{\"campaign_id\":\n"),
                        Kind::Bad(fault) => {
                            write_faulty(&mut body, texts, &copy.content, fault);
                            body.push(b'\n');
                        }
                        _ => write_line(&mut body, texts, &copy.content),
                    }
                }
            }
            BodyForm::Json => write_array(&mut body, copies, |body, copy| match copy.kind {
                Kind::Bad(fault) => write_faulty(body, texts, &copy.content, fault),
                _ => write_line(body, texts, &copy.content),
            }),
            BodyForm::Cloudevents => {
                write_array(&mut body, copies, |body, copy| write_event(body, texts, copy));
            }
            BodyForm::Arrow => body = write_arrow(stream, texts, copies)?,
        }
        Ok(body.into())
    }
}

fn write_array(
    body: &mut Vec<u8>,
    copies: impl Iterator<Item = Copy>,
    mut write: impl FnMut(&mut Vec<u8>, &Copy),
) {
    body.push(b'[');
    for (nth, copy) in copies.enumerate() {
        if nth > 0 {
            body.push(b',');
        }
        write(body, &copy);
    }
    body.push(b']');
}

fn write_event(body: &mut Vec<u8>, texts: &Texts, copy: &Copy) {
    body.extend_from_slice(
        br#"{"specversion":"1.0","type":"com.count-twice.click.v2","source":"/twice-loadgen","id":""#,
    );
    write_click_id(body, &copy.content);
    body.extend_from_slice(br#"","data":"#);
    match copy.kind {
        Kind::Bad(fault) => write_faulty(body, texts, &copy.content, fault),
        _ => write_object(body, texts, &copy.content),
    }
    body.push(b'}');
}

/// A bad click needs a text for its id; all others go as 16 bytes.
fn write_arrow(stream: &ClickStream, texts: &Texts, copies: impl Iterator<Item = Copy>) -> Result<Vec<u8>> {
    let with_faults = stream.settings().profile == Profile::Malformed;
    let mut columns = Columns::new(with_faults);
    for copy in copies {
        columns.push(texts, &copy)?;
    }
    let batch = columns.finish()?;
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema())?;
    writer.write(&batch)?;
    Ok(writer.into_inner()?)
}

struct Columns {
    with_faults: bool,
    campaign_id: StringBuilder,
    click_id: FixedSizeBinaryBuilder,
    click_id_text: StringBuilder,
    ad_id: StringBuilder,
    user_id: StringBuilder,
    publisher_id: StringBuilder,
    event_time: TimestampMillisecondBuilder,
    schema_version: Int16Builder,
    scratch: Vec<u8>,
}

impl Columns {
    fn new(with_faults: bool) -> Self {
        Self {
            with_faults,
            campaign_id: StringBuilder::new(),
            click_id: FixedSizeBinaryBuilder::new(16),
            click_id_text: StringBuilder::new(),
            ad_id: StringBuilder::new(),
            user_id: StringBuilder::new(),
            publisher_id: StringBuilder::new(),
            event_time: TimestampMillisecondBuilder::new().with_timezone("UTC"),
            schema_version: Int16Builder::new(),
            scratch: Vec::with_capacity(64),
        }
    }

    fn text(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> String {
        self.scratch.clear();
        write(&mut self.scratch);
        String::from_utf8_lossy(&self.scratch).into_owned()
    }

    fn push(&mut self, texts: &Texts, copy: &Copy) -> Result<()> {
        let content: &Content = &copy.content;
        let fault = match copy.kind {
            Kind::Bad(fault) => Some(fault),
            _ => None,
        };
        let campaign = self.text(|buffer| texts.campaign_id(buffer, content.campaign));
        match fault {
            Some(Fault::Broken | Fault::NoCampaign) => self.campaign_id.append_null(),
            Some(Fault::LongCampaign) => self.campaign_id.append_value("c".repeat(65)),
            _ => self.campaign_id.append_value(campaign),
        }
        if self.with_faults {
            let id = self.text(|buffer| write_click_id(buffer, content));
            self.click_id_text.append_value(if fault == Some(Fault::ClickId) { "7" } else { &id });
        } else {
            self.click_id.append_value(content.click_id)?;
        }
        let ad = self.text(|buffer| texts.ad_id(buffer, content));
        self.ad_id.append_value(ad);
        let user = self.text(|buffer| texts.user_id(buffer, content));
        self.user_id.append_option(content.user.map(|_| user));
        let publisher = self.text(|buffer| texts.publisher_id(buffer, content));
        self.publisher_id.append_value(publisher);
        self.event_time.append_value(match fault {
            Some(Fault::Time) => i64::MAX,
            Some(Fault::TooOld) => content.event_time_ms - TOO_OLD_MS,
            Some(Fault::Future) => FUTURE_MS,
            _ => content.event_time_ms,
        });
        self.schema_version.append_value(if fault == Some(Fault::Version) { 9 } else { 2 });
        Ok(())
    }

    fn finish(&mut self) -> Result<RecordBatch> {
        let click_id: ArrayRef = if self.with_faults {
            Arc::new(self.click_id_text.finish())
        } else {
            Arc::new(self.click_id.finish())
        };
        Ok(RecordBatch::try_from_iter([
            ("campaign_id", Arc::new(self.campaign_id.finish()) as ArrayRef),
            ("click_id", click_id),
            ("ad_id", Arc::new(self.ad_id.finish())),
            ("user_id", Arc::new(self.user_id.finish())),
            ("publisher_id", Arc::new(self.publisher_id.finish())),
            ("event_time", Arc::new(self.event_time.finish())),
            ("schema_version", Arc::new(self.schema_version.finish())),
        ])?)
    }
}
