//! Windows of a campaign as they change.

use std::collections::{BTreeMap, VecDeque};

use actix_web::{HttpResponse, get, web};
use serde::Serialize;
use twice_log::event::MINUTE_MS;
use twice_log::{CampaignId, UtcMillis};
use twice_store::Scope;
use twice_store::windows::{Fence, LiveSubscription, WindowUpdate};
use utoipa::ToSchema;

use super::events::{self, EventStream, HEARTBEAT, Pause};
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::server::ApiState;

/// What has been counted of these minutes is sent first.
const SHOWN_FIRST_MS: i64 = 5 * MINUTE_MS;
/// Minutes whose last state shown is remembered; older ones change no more.
const REMEMBERED_MAX: usize = 256;

/// One minute of a campaign as the stream has it now, in the place of what was sent of it before.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LiveWindow {
    #[schema(value_type = String, format = "date-time")]
    window_start: UtcMillis,
    #[schema(value_type = String, format = "date-time")]
    window_end: UtcMillis,
    clicks: u64,
    unique_users: u64,
    /// Always `preliminary`.
    status: &'static str,
}

impl From<&WindowUpdate> for LiveWindow {
    fn from(update: &WindowUpdate) -> Self {
        let WindowUpdate { window_start, clicks, unique_users, .. } = *update;
        let window_end = window_start.plus_ms(MINUTE_MS);
        Self { window_start, window_end, clicks, unique_users, status: "preliminary" }
    }
}

/// Follows the minutes of a campaign as they change, as an event stream: first the newest, then each change within about a
/// second. Values are absolute: a later one of the same minute takes the place of the one before.
///
/// Who reads too slowly is let go with a last event `dropped`, as a number left out would be taken for the newest.
#[utoipa::path(
    params(("campaign_id" = String, Path, description = "id of the campaign")),
    responses((
        status = 200,
        description = "events named `window`",
        content((LiveWindow = "text/event-stream")),
    )),
    tag = "budgets",
)]
#[get("/v1/campaigns/{campaign_id}/live")]
pub(crate) async fn get_live(
    state: web::Data<ApiState>,
    caller: Caller,
    campaign: web::Path<CampaignId>,
) -> Result<HttpResponse> {
    caller.require_for(Scope::Query, &campaign)?;
    let events = EventStream::open(&state, &caller)?;
    let subscription = state.deps.live.subscribe(&campaign);
    // Read after subscribing: what is stored from now on comes by subscription.
    let now = state.deps.clock.now();
    let (from, to) = (now.plus_ms(-SHOWN_FIRST_MS).minute_start(), now.plus_ms(SHOWN_FIRST_MS));
    let stored = state.deps.windows.read(&campaign, from, to).await;
    let stored =
        stored.map_err(|error| Error::of_store("real-time store", state.config.retry_after_s, error))?;
    let waiting = stored.iter().map(WindowUpdate::of).collect();
    let watch = Watch { events, subscription, waiting, shown: BTreeMap::new() };
    Ok(events::answer(HEARTBEAT.to_owned(), futures::stream::unfold(watch, Watch::next)))
}

/// Somebody who watches a campaign.
struct Watch {
    events: EventStream,
    subscription: LiveSubscription,
    waiting: VecDeque<WindowUpdate>,
    /// Which state of each minute was shown last.
    shown: BTreeMap<UtcMillis, Fence>,
}

impl Watch {
    async fn next(mut self) -> Option<(String, Self)> {
        if self.events.is_over() {
            return None;
        }
        let text = self.text().await;
        Some((text, self))
    }

    async fn text(&mut self) -> String {
        loop {
            if let Some(last) = self.events.refused() {
                return last;
            }
            if let Some(update) = self.waiting.pop_front() {
                if let Some(text) = self.show(&update) {
                    return text;
                }
                continue;
            }
            match self.events.wait(self.subscription.next()).await {
                Ok(Some(update)) => self.waiting.push_back(update),
                Ok(None) => {
                    return self.events.end("dropped", "updates were not read fast enough; connect again");
                }
                Err(Pause::Quiet) => return HEARTBEAT.to_owned(),
                Err(Pause::End(last)) => return last,
            }
        }
    }

    /// Returns the event of an update; `None` where a newer state of its minute was shown.
    fn show(&mut self, update: &WindowUpdate) -> Option<String> {
        if self.shown.get(&update.window_start).is_some_and(|shown| *shown >= update.fence) {
            return None;
        }
        self.shown.insert(update.window_start, update.fence);
        while self.shown.len() > REMEMBERED_MAX {
            self.shown.pop_first();
        }
        Some(events::event("window", None, &LiveWindow::from(update)))
    }
}
