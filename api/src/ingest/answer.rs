//! Appends the records of one request and says what became of each.
//!
//! Guarantee (G-1): `accepted` counts records that are durable, in the log or in the spool; `rejected` ones are certainly
//! not stored; every other one stands in `retry`, because neither takes any. A retry with the ids of `click_ids` is
//! absorbed where the first attempt was stored after all (CR-1).

use std::collections::BTreeMap;
use std::time::Instant;

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::http::header::RETRY_AFTER;
use bytes::Bytes;
use metrics::{counter, histogram};
use serde::Serialize;
use tracing::debug;
use twice_log::event::json::{RejectCode, Rejection};
use twice_log::hot::AppendRecord;
use twice_log::spool::{Route, Stored};
use twice_log::{CampaignId, PartitionId, Topic};
use utoipa::ToSchema;

use crate::metrics as names;
use crate::server::ApiDeps;

/// One refused record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct RejectedRecord {
    /// Place in the request, from 0; for NDJSON among the lines that are not empty.
    pub index: u32,
    #[schema(value_type = String, example = "too_old")]
    pub code: RejectCode,
    pub detail: String,
}

/// What became of each record of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct IngestAnswer {
    /// Number of records that are durable.
    pub accepted: u32,
    /// Records that are certainly not stored, and why.
    pub rejected: Vec<RejectedRecord>,
    /// Indexes of records to send again, with the ids of `click_ids`.
    pub retry: Vec<u32>,
    /// Ids of the clicks that came without one, by index; those of `retry` included.
    #[schema(value_type = BTreeMap<String, String>)]
    pub click_ids: BTreeMap<u32, uuid::Uuid>,
    /// The queue it was meant for was full: certainly nothing was stored.
    #[serde(skip)]
    pub found_no_room: bool,
}

/// What kind of record a request carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Click,
    Verdict,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Click => "click",
            Kind::Verdict => "verdict",
        }
    }

    fn topic(self) -> Topic {
        match self {
            Kind::Click => Topic::AdClicks,
            Kind::Verdict => Topic::FraudVerdicts,
        }
    }
}

/// The records of a request that passed the door, encoded into one buffer, and the refusals.
pub(super) struct Prepared {
    partitions: u32,
    buffer: Vec<u8>,
    /// (index in the request, partition, end in the buffer) of each record that passed.
    passed: Vec<(u32, PartitionId, usize)>,
    answer: IngestAnswer,
}

impl Prepared {
    pub fn new(partitions: u32, records: usize, bytes_expected: usize) -> Self {
        Self {
            partitions,
            buffer: Vec::with_capacity(bytes_expected),
            passed: Vec::with_capacity(records),
            answer: IngestAnswer::default(),
        }
    }

    /// Takes in a record that passed; `encode` appends its bytes.
    pub fn pass(&mut self, index: u32, campaign: &CampaignId, encode: impl FnOnce(&mut Vec<u8>)) {
        encode(&mut self.buffer);
        let partition = twice_log::event::partition_of(campaign, self.partitions);
        self.passed.push((index, partition, self.buffer.len()));
    }

    /// Notes the id the gateway gave to a click.
    pub fn name(&mut self, index: u32, id: uuid::Uuid) {
        self.answer.click_ids.insert(index, id);
    }

    /// Takes in a refusal.
    pub fn reject(&mut self, index: u32, rejection: Rejection) {
        let Rejection { code, detail } = rejection;
        self.answer.rejected.push(RejectedRecord { index, code, detail });
    }

    /// Returns the number of records, refused ones included.
    pub fn records(&self) -> u32 {
        (self.passed.len() + self.answer.rejected.len()) as u32 // bounded by batch_records_max
    }

    /// Appends what passed in one call, where `route` says, and returns what became of each record; resolves once it is
    /// durable.
    pub async fn append(self, deps: &ApiDeps, kind: Kind, route: Route<'_>) -> IngestAnswer {
        let Prepared { buffer, passed, mut answer, .. } = self;
        if passed.is_empty() {
            return answer;
        }
        let route = match deps.admission.admit() {
            Ok(()) => route,
            // The log's disk must not be filled further; the spool lies on another one.
            Err(_) if deps.spooling.is_apart() && route == Route::Log => Route::Spool,
            Err(_) if deps.spooling.is_apart() => route,
            // Whoever refuses has said why, once; a line for each request would fill the disk further.
            Err(_) => {
                answer.retry = passed.iter().map(|(index, ..)| *index).collect();
                return answer;
            }
        };
        let buffer = Bytes::from(buffer);
        let mut start = 0;
        let mut records = Vec::with_capacity(passed.len());
        for (_, partition, end) in &passed {
            records.push(AppendRecord { partition: *partition, bytes: buffer.slice(start..*end) });
            start = *end;
        }
        let begun = Instant::now();
        match deps.spooling.append(kind.topic(), records, route).await {
            Ok(stored) => {
                answer.accepted = passed.len() as u32; // bounded by batch_records_max
                if let Some(held) = held_name(stored) {
                    let labels = [("queue", held), ("kind", kind.name())];
                    counter!(names::HELD_TOTAL, &labels).increment(answer.accepted.into());
                }
                histogram!(names::ACKNOWLEDGE_SECONDS, "kind" => kind.name()).record(begun.elapsed());
            }
            // During an outage every request ends here, and readiness tells it already.
            Err(error) => {
                debug!(%error, records = passed.len(), topic = %kind.topic(), "append failed, sender retries");
                answer.retry = passed.iter().map(|(index, ..)| *index).collect();
                answer.found_no_room = matches!(error, twice_log::Error::SpoolFull { .. });
            }
        }
        answer
    }
}

impl IngestAnswer {
    /// Counts the answer in the metrics.
    pub(super) fn record_metrics(&self, kind: Kind) {
        let kind = kind.name();
        counter!(names::ACCEPTED_TOTAL, "kind" => kind).increment(self.accepted.into());
        if !self.retry.is_empty() {
            counter!(names::RETRY_TOTAL, "kind" => kind).increment(self.retry.len() as u64);
        }
        for rejected in &self.rejected {
            counter!(names::REJECTED_TOTAL, "kind" => kind, "code" => code_name(rejected.code)).increment(1);
        }
    }

    /// Returns the response: 202 if any record was accepted, 503 if none was and some may be sent again, else 422.
    pub fn into_response(self, retry_after_s: u32) -> HttpResponse {
        let status = match (self.accepted, self.retry.is_empty()) {
            (1.., _) => StatusCode::ACCEPTED,
            (0, false) => StatusCode::SERVICE_UNAVAILABLE,
            (0, true) => StatusCode::UNPROCESSABLE_ENTITY,
        };
        let mut response = HttpResponse::build(status);
        if !self.retry.is_empty() {
            response.insert_header((RETRY_AFTER, retry_after_s.to_string()));
        }
        response.json(self)
    }
}

fn held_name(stored: Stored) -> Option<&'static str> {
    match stored {
        Stored::Log => None,
        Stored::Spool => Some("spool"),
        Stored::Spill => Some("spill"),
    }
}

fn code_name(code: RejectCode) -> &'static str {
    match code {
        RejectCode::Malformed => "malformed",
        RejectCode::InvalidId => "invalid_id",
        RejectCode::ClickIdNotUuid => "click_id_not_uuid",
        RejectCode::InvalidTime => "invalid_time",
        RejectCode::TooOld => "too_old",
        RejectCode::InFuture => "in_future",
        RejectCode::SchemaVersion => "schema_version",
        RejectCode::Forbidden => "forbidden",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metric_labels_are_the_public_codes() {
        for code in [
            RejectCode::Malformed,
            RejectCode::InvalidId,
            RejectCode::ClickIdNotUuid,
            RejectCode::InvalidTime,
            RejectCode::TooOld,
            RejectCode::InFuture,
            RejectCode::SchemaVersion,
            RejectCode::Forbidden,
        ] {
            let public = serde_json::to_value(code).expect("serialises");
            assert_eq!(public, code_name(code));
        }
    }
}
