//! The scenario's journal: what was sent and counted, in order, for the oracle that recounts it.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use twice_log::{Clock, Hour, WallClock};
use twice_tests::Client;

/// Clicks of one request.
const BATCH: usize = 400;

/// One click as a sender has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Click {
    pub campaign_id: String,
    pub click_id: String,
    pub ad_id: String,
    pub user_id: String,
    pub event_time: String,
}

impl Click {
    fn json(&self) -> Value {
        json!({
            "campaign_id": self.campaign_id, "click_id": self.click_id, "ad_id": self.ad_id,
            "user_id": self.user_id, "publisher_id": "pub_1", "event_time": self.event_time,
        })
    }
}

/// Sends to a node and writes down what was acknowledged.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
}

impl Journal {
    /// Begins an empty journal in `folder`.
    ///
    /// # Errors
    /// If the file cannot be made.
    pub fn create(folder: &Path) -> Result<Self> {
        let path = folder.join("scenario.journal");
        Ok(Self { file: File::create(&path)?, path })
    }

    /// Returns where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn write(&mut self, event: &Value) -> Result<()> {
        writeln!(self.file, "{event}").context("write the journal")
    }

    /// Sends clicks in their order; each request is acknowledged before the next, so the order is that of positions.
    ///
    /// # Errors
    /// If a click is not accepted at the first try.
    pub fn send(&mut self, client: &Client, clicks: &[Click]) -> Result<()> {
        for batch in clicks.chunks(BATCH) {
            let body: String = batch.iter().map(|click| format!("{}\n", click.json())).collect();
            let answer = client.post("/v1/clicks", "application/x-ndjson", &[], body.into_bytes())?;
            let accepted = answer.json()?["accepted"].as_u64();
            ensure!(answer.status == 202 && accepted == Some(batch.len() as u64), "{answer:?}");
            batch.iter().try_for_each(|click| self.write(&json!({ "copy": click.json() })))?;
        }
        Ok(())
    }

    /// Sends rulings on clicks: `(click, ruling, decided_at, whether the click's time goes with it)`.
    ///
    /// # Errors
    /// If one is not accepted.
    pub fn rule(&mut self, client: &Client, rulings: &[(&Click, &str, String, bool)]) -> Result<()> {
        for (click, verdict, decided_at, with_time) in rulings {
            let ruling = json!({
                "campaign_id": click.campaign_id, "click_id": click.click_id, "verdict": verdict,
                "model_version": "m1", "decided_at": decided_at,
                "click_event_time": with_time.then_some(&click.event_time),
            });
            let answer = client.post_json("/v1/verdicts", &ruling)?;
            ensure!(answer.status == 202 && answer.json()?["accepted"] == 1, "{answer:?}");
            let mut event = ruling;
            event["arrival_time"] = json!(WallClock.now().to_string());
            self.write(&json!({ "verdict": event }))?;
        }
        Ok(())
    }

    /// Records a price.
    ///
    /// # Errors
    /// If the node does not take it.
    pub fn price(
        &mut self,
        client: &Client,
        campaign: &str,
        currency: &str,
        cpc_micros: i64,
        from: &str,
    ) -> Result<()> {
        let body = json!({
            "name": campaign, "currency": currency, "cpc_micros": cpc_micros,
            "daily_budget_micros": null, "effective_from": from,
        });
        let answer = client.put_json(&format!("/v1/campaigns/{campaign}"), &body)?;
        ensure!((200..300).contains(&answer.status), "{answer:?}");
        let rate = json!({
            "campaign_id": campaign, "currency": currency, "cpc_micros": cpc_micros, "effective_from": from,
        });
        self.write(&json!({ "rate": rate }))
    }

    /// Notes that `hours` were counted by `path`, over everything sent so far.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn counted(
        &mut self,
        path: &str,
        horizon_hours: u32,
        hours: impl Iterator<Item = Hour>,
    ) -> Result<()> {
        let hours: Vec<String> = hours.map(|hour| hour.to_string()).collect();
        self.write(&json!({ "run": { "hours": hours, "horizon_hours": horizon_hours, "path": path } }))
    }
}
