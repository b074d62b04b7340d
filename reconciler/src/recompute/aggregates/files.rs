//! Finished files of one run's aggregates, in a folder of the parent's, by level.
//!
//! A file ends at about [`FILE_BYTES_MAX`]: small enough to be held in memory by who writes it and who puts it into the
//! archive. Rows of the hour are made of those of its minutes: counts add, sketches merge.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use twice_log::archive::AggregateLevel;
use twice_log::event::Sha256Hex;
use twice_log::{CampaignId, Hour};
use twice_store::AggregateRow;
use twice_store::aggregates::{AggregateWriter, WrittenAggregates};

use crate::error::{Error, Result};

/// Bytes of finished row groups after which a file ends.
const FILE_BYTES_MAX: usize = 8 << 20;

/// A finished file that is not in the archive yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalAggregates {
    pub level: AggregateLevel,
    pub file: PathBuf,
    pub rows: u64,
    pub bytes: u64,
    pub sha256: Sha256Hex,
    pub campaign_first: CampaignId,
    pub campaign_last: CampaignId,
}

/// Writes the three levels side by side, from rows by ad and minute in order.
pub(super) struct Levels {
    hour: Hour,
    ad_minutes: Files,
    ad_hours: Files,
    campaign_hours: Files,
    /// The ad and the campaign whose rows are coming in.
    ad: Option<(CampaignId, AggregateRow)>,
    campaign: Option<(CampaignId, AggregateRow)>,
}

impl Levels {
    pub fn new(folder: &Path, hour: Hour) -> Self {
        Self {
            hour,
            ad_minutes: Files::new(folder, AggregateLevel::AdMinutes),
            ad_hours: Files::new(folder, AggregateLevel::AdHours),
            campaign_hours: Files::new(folder, AggregateLevel::CampaignHours),
            ad: None,
            campaign: None,
        }
    }

    /// Takes the next row by ad and minute.
    pub fn push(&mut self, campaign: CampaignId, row: AggregateRow) -> Result<()> {
        let start = self.hour.start();
        match &mut self.ad {
            Some((of, sum)) if *of == campaign && sum.ad_id == row.ad_id => sum.add(&row),
            _ => {
                self.end_ad()?;
                self.ad = Some((campaign.clone(), AggregateRow { window_start: start, ..row.clone() }));
            }
        }
        match &mut self.campaign {
            Some((of, sum)) if *of == campaign => sum.add(&row),
            _ => {
                self.end_campaign()?;
                let sum = AggregateRow { ad_id: None, window_start: start, ..row.clone() };
                self.campaign = Some((campaign.clone(), sum));
            }
        }
        self.ad_minutes.push(campaign, row)
    }

    /// Ends every file and lists them by level, in order of campaigns.
    pub fn finish(mut self) -> Result<Vec<LocalAggregates>> {
        self.end_ad()?;
        self.end_campaign()?;
        let mut files = self.campaign_hours.finish()?;
        files.extend(self.ad_hours.finish()?);
        files.extend(self.ad_minutes.finish()?);
        Ok(files)
    }

    fn end_ad(&mut self) -> Result<()> {
        self.ad.take().map_or(Ok(()), |(campaign, row)| self.ad_hours.push(campaign, row))
    }

    fn end_campaign(&mut self) -> Result<()> {
        self.campaign.take().map_or(Ok(()), |(campaign, row)| self.campaign_hours.push(campaign, row))
    }
}

/// Files of one level.
struct Files {
    folder: PathBuf,
    level: AggregateLevel,
    writer: Option<AggregateWriter<Vec<u8>>>,
    files: Vec<LocalAggregates>,
}

impl Files {
    fn new(folder: &Path, level: AggregateLevel) -> Self {
        Self { folder: folder.to_path_buf(), level, writer: None, files: Vec::new() }
    }

    fn push(&mut self, campaign: CampaignId, row: AggregateRow) -> Result<()> {
        if self.writer.as_ref().is_some_and(|writer| writer.bytes_written() >= FILE_BYTES_MAX) {
            self.end_file()?;
        }
        let mut writer = match self.writer.take() {
            Some(writer) => writer,
            None => AggregateWriter::new(Vec::new())?,
        };
        writer.push(campaign, row)?;
        self.writer = Some(writer);
        Ok(())
    }

    fn end_file(&mut self) -> Result<()> {
        let Some(writer) = self.writer.take() else { return Ok(()) };
        let Some(written) = writer.finish()? else { return Ok(()) };
        let WrittenAggregates { output, rows, campaign_first, campaign_last } = written;
        let file = self.folder.join(format!("{}-{}.parquet", self.level.name(), self.files.len()));
        std::fs::write(&file, &output)
            .map_err(|source| Error::Process { action: "write aggregates", source })?;
        self.files.push(LocalAggregates {
            level: self.level,
            file,
            rows,
            bytes: output.len() as u64,
            sha256: Sha256Hex::of(&output),
            campaign_first,
            campaign_last,
        });
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<LocalAggregates>> {
        self.end_file()?;
        Ok(self.files)
    }
}
