//! QueryActor: gathers what an answer needs from the stores and labels it.
//!
//! Guarantee: a published number is not shown with a stronger label than it has, whatever is down.
//! Flow: windows first, then billed hours, then billed rows, then their aggregates. In this order a run that commits in between can only make
//! the answer a moment old: an hour seen as unbilled still had its windows when they were read.

use std::collections::BTreeSet;
use std::sync::Arc;

use actix::{Actor, Context, Handler, Message, ResponseFuture};
use tokio::sync::Semaphore;
use tracing::warn;
use twice_log::archive::{AggregateLevel, BillingPath};
use twice_log::{AdId, CampaignId, Hour, UtcMillis};
use twice_store::{BillingCounts, BillingQuery, UtcMicros};

use super::aggregates;
use super::answer::{ClicksAnswer, Notice, NoticeCode};
use super::billed::Billed;
use super::merge::{self, Facts, MinuteCount};
use super::range::{Granularity, QueryPath, Range};
use crate::config::ApiConfig;
use crate::error::{Error, Result};
use crate::ports::PartitionState;
use crate::server::ApiDeps;

/// Messages that may wait. Handling one takes microseconds (it starts a future), so few ever do.
const MAILBOX_CAPACITY: usize = 64;
const BILLING_PAGE_ROWS: u32 = 1_000;

/// A question about the clicks of a campaign, or of one of its ads.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Result<ClicksAnswer>")]
pub(super) struct ReadClicks {
    pub campaign: CampaignId,
    pub ad: Option<AdId>,
    pub range: Range,
    pub path: QueryPath,
    pub as_of: Option<UtcMicros>,
}

impl ReadClicks {
    /// Whether the stream's numbers may be part of the answer.
    fn uses_stream(&self) -> bool {
        matches!(self.path, QueryPath::Merged | QueryPath::Stream) && self.as_of.is_none()
    }

    /// Whether billed rows may be part of the answer.
    fn uses_billing(&self) -> bool {
        self.path != QueryPath::Stream
    }

    /// Whether billing rows, which are by campaign and hour, do not answer it alone.
    fn needs_detail(&self) -> bool {
        self.ad.is_some() || self.range.granularity == Granularity::Minute
    }

    fn level(&self) -> AggregateLevel {
        match (&self.ad, self.range.granularity) {
            (_, Granularity::Minute) => AggregateLevel::AdMinutes,
            (Some(_), _) => AggregateLevel::AdHours,
            (None, _) => AggregateLevel::CampaignHours,
        }
    }

    /// What it means for the answer that a billed hour has no aggregates.
    fn without_aggregates(&self) -> &'static str {
        match (self.needs_detail(), self.uses_stream()) {
            (false, _) => "their unique users are not known",
            (true, true) => "the stream's numbers stand in for them",
            (true, false) => "what is asked of them is not known",
        }
    }

    fn billing_path(&self) -> Option<BillingPath> {
        match self.path {
            QueryPath::Lambda => Some(BillingPath::Lambda),
            QueryPath::Kappa => Some(BillingPath::Kappa),
            QueryPath::Merged | QueryPath::Stream => None,
        }
    }
}

/// Answers questions about clicks; refuses those above the bound at once.
pub(crate) struct QueryActor {
    gatherer: Arc<Gatherer>,
    in_flight: Arc<Semaphore>,
}

impl QueryActor {
    pub fn new(deps: ApiDeps, config: &ApiConfig) -> Self {
        let in_flight = Arc::new(Semaphore::new(config.queries_in_flight_max as usize));
        let gatherer = Gatherer {
            deps,
            retry_after_s: config.retry_after_s,
            aggregate_hours_max: config.query_aggregate_hours_max as usize,
        };
        Self { gatherer: Arc::new(gatherer), in_flight }
    }
}

impl Actor for QueryActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.set_mailbox_capacity(MAILBOX_CAPACITY);
    }
}

impl Handler<ReadClicks> for QueryActor {
    type Result = ResponseFuture<Result<ClicksAnswer>>;

    fn handle(&mut self, question: ReadClicks, _context: &mut Self::Context) -> Self::Result {
        let permit = self.in_flight.clone().try_acquire_owned();
        let gatherer = self.gatherer.clone();
        Box::pin(async move {
            let retry_after_s = gatherer.retry_after_s;
            let _permit = permit.map_err(|_| Error::Overloaded { retry_after_s })?;
            gatherer.answer(question).await
        })
    }
}

struct Gatherer {
    deps: ApiDeps,
    retry_after_s: u32,
    aggregate_hours_max: usize,
}

impl Gatherer {
    async fn answer(&self, question: ReadClicks) -> Result<ClicksAnswer> {
        let now = self.deps.clock.now();
        let mut notices = Vec::new();
        let facts = self.gather(&question, &mut notices).await?;
        let fresh_to = self.freshness(&question, &mut notices).await;
        let zero = BillingCounts::zero(question.campaign.clone(), None);
        let rows = merge::rows(&facts, &question.range, now, &zero);
        Ok(ClicksAnswer {
            campaign_id: question.campaign,
            ad_id: question.ad,
            granularity: question.range.granularity,
            path: question.path,
            as_of: question.as_of.map(|as_of| as_of.to_string()),
            fresh_to,
            rows,
            notices,
        })
    }

    async fn gather(&self, question: &ReadClicks, notices: &mut Vec<Notice>) -> Result<Facts> {
        let mut facts = Facts { ad: question.ad.clone(), ..Facts::default() };
        let mut window_hours = BTreeSet::new();
        if question.uses_stream() {
            match self.windows(question).await {
                Ok((minutes, hours)) => {
                    facts.minutes = Some(minutes);
                    window_hours = hours;
                }
                Err(error) if question.uses_billing() => {
                    warn!(%error, campaign = %question.campaign, "real-time store does not answer");
                    notices.push(notice(
                        NoticeCode::StreamUnavailable,
                        "the real-time store does not answer; hours that are not billed have no number",
                    ));
                }
                Err(error) => return Err(Error::of_store("real-time store", self.retry_after_s, error)),
            }
        }
        match self.billed(question).await {
            Ok(billed) => self.take_billed(question, billed, &window_hours, &mut facts, notices).await,
            Err(error) if facts.minutes.is_some() => {
                warn!(%error, campaign = %question.campaign, "billing store does not answer");
                notices.push(notice(
                    NoticeCode::BillingUnavailable,
                    "the billing store does not answer; every number is preliminary, and hours whose windows are \
                     gone have none",
                ));
                facts.gone = hours(question).filter(|hour| !window_hours.contains(hour)).collect();
            }
            Err(error) => return Err(Error::of_store("billing store", self.retry_after_s, error)),
        }
        Ok(facts)
    }

    async fn take_billed(
        &self,
        question: &ReadClicks,
        mut billed: Billed,
        window_hours: &BTreeSet<Hour>,
        facts: &mut Facts,
        notices: &mut Vec<Notice>,
    ) {
        let mut from_stream: BTreeSet<Hour> = BTreeSet::new();
        if question.uses_billing() {
            let reader = self.deps.aggregates.as_ref();
            let (level, hours_max) = (question.level(), self.aggregate_hours_max);
            let loaded = aggregates::load(reader, &question.campaign, level, &billed.rows, hours_max).await;
            notices.extend(loaded.notices(question.without_aggregates()));
            if question.needs_detail() && question.uses_stream() {
                from_stream = loaded.gaps();
            }
            billed.aggregates = loaded.rows;
            facts.billed = Some(billed);
        } else {
            from_stream = std::mem::take(&mut billed.hours);
        }
        facts.gone = from_stream.iter().filter(|hour| !window_hours.contains(hour)).copied().collect();
        if question.uses_billing() && facts.gone.len() < from_stream.len() {
            notices.push(notice(
                NoticeCode::BilledFromStream,
                "billed hours without aggregates are answered with the stream's numbers",
            ));
        }
        if let (Some(first), Some(last)) = (facts.gone.first(), facts.gone.last()) {
            let detail = format!(
                "the stream's windows of {} billed hours between {first} and {last} are gone; ask by hour",
                facts.gone.len()
            );
            notices.push(notice(NoticeCode::WindowsGone, detail));
        }
    }

    /// Returns the stream's minutes, and every hour the real-time store still knows.
    async fn windows(
        &self,
        question: &ReadClicks,
    ) -> twice_store::Result<(Vec<MinuteCount>, BTreeSet<Hour>)> {
        let (from, to) = (question.range.from, question.range.to);
        let windows = self.deps.windows.read(&question.campaign, from, to).await?;
        let hours = self.deps.windows.hours().await?;
        let ad = question.ad.as_ref();
        let minutes = windows.into_iter().filter_map(|window| MinuteCount::of(window, ad)).collect();
        Ok((minutes, hours.into_iter().collect()))
    }

    /// Returns the billed hours of the range and, where they can be part of the answer, the campaign's rows.
    async fn billed(&self, question: &ReadClicks) -> twice_store::Result<Billed> {
        let (from, to) = question.range.hours();
        let path = question.billing_path();
        let billing = &self.deps.billing;
        let hours = match question.as_of {
            Some(as_of) => billing.billed_hours_as_of(path, from, to, as_of).await?,
            None => billing.billed_hours(path, from, to).await?,
        };
        let mut billed = Billed { hours: hours.into_iter().collect(), ..Billed::default() };
        let mut query = BillingQuery {
            from,
            to,
            campaigns: Some([question.campaign.clone()].into()),
            path,
            version: None,
            as_of: question.as_of,
            limit: BILLING_PAGE_ROWS,
            cursor: None,
        };
        while question.uses_billing() {
            let page = billing.billing(&query).await?;
            billed.rows.extend(page.rows.into_iter().map(|row| (row.hour, row)));
            match page.next_cursor {
                Some(cursor) => query.cursor = Some(cursor),
                None => break,
            }
        }
        Ok(billed)
    }

    /// Returns up to when the stream's numbers are complete, and notes where its partition does not run.
    async fn freshness(&self, question: &ReadClicks, notices: &mut Vec<Notice>) -> Option<UtcMillis> {
        if !question.uses_stream() {
            return None;
        }
        match self.deps.stream.campaign(&question.campaign).await {
            Ok(status) => {
                if status.state != PartitionState::Running {
                    let detail =
                        format!("partition {} is not running; its numbers stand still", status.partition);
                    notices.push(notice(NoticeCode::StreamBehind, detail));
                }
                status.fresh_to
            }
            Err(error) => {
                warn!(%error, campaign = %question.campaign, "stream status is not known");
                notices
                    .push(notice(NoticeCode::StreamBehind, "how fresh preliminary numbers are is not known"));
                None
            }
        }
    }
}

fn hours(question: &ReadClicks) -> impl Iterator<Item = Hour> + use<> {
    let (from, to) = question.range.hours();
    (from.since_epoch()..to.since_epoch()).map(Hour::from_since_epoch)
}

fn notice(code: NoticeCode, detail: impl Into<String>) -> Notice {
    Notice { code, detail: detail.into() }
}
