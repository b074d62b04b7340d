//! What event streams have in common: their form, a bound on their number, and when they end by themselves.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use actix_web::http::header::{ACCEPT, CACHE_CONTROL};
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior, interval};
use twice_store::ApiKey;

use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::server::ApiState;

/// Media type of an event stream.
pub(super) const EVENT_STREAM: &str = "text/event-stream";

/// Returns whether the sender asks for JSON and not for an event stream.
pub(super) fn wants_json(request: &HttpRequest) -> bool {
    let accept = request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    accept.contains("application/json") && !accept.contains(EVENT_STREAM)
}

/// Writes one event.
pub(super) fn event(name: &str, id: Option<u64>, data: &impl Serialize) -> String {
    let id = id.map_or_else(String::new, |id| format!("id: {id}\n"));
    // JSON has no bare line break, so it is one line of data.
    let data = serde_json::to_string(data).unwrap_or_default();
    format!("event: {name}\n{id}data: {data}\n\n")
}

/// The last event of a stream that ends by itself: why, and what to do.
#[derive(Debug, Serialize)]
pub(super) struct Farewell {
    pub detail: &'static str,
}

/// One key may hold one of so many places: others must find some, whatever one tenant opens and never reads.
const SHARES: u32 = 4;

/// The places for event streams.
pub(crate) struct Places {
    places: usize,
    places_a_key: usize,
    /// Places taken by each key; a node without keys has one name for all, and no shares.
    taken: Mutex<HashMap<String, usize>>,
}

impl Places {
    /// Makes room for so many streams.
    pub fn new(places: u32) -> Arc<Self> {
        let places_a_key = places.div_ceil(SHARES) as usize;
        Arc::new(Self { places: places as usize, places_a_key, taken: Mutex::default() })
    }

    fn taken(&self) -> std::sync::MutexGuard<'_, HashMap<String, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place, if there is one and the caller's key has not had its share.
    fn take(self: &Arc<Self>, caller: &Caller) -> Option<Place> {
        let mut taken = self.taken();
        let own = taken.get(&caller.key_id).copied().unwrap_or(0);
        let is_over_share = caller.key.is_some() && own >= self.places_a_key;
        // Summed, not counted apart: keys with streams are few, and nothing can drift.
        if is_over_share || taken.values().sum::<usize>() >= self.places {
            return None;
        }
        taken.insert(caller.key_id.clone(), own + 1);
        Some(Place { places: self.clone(), key_id: caller.key_id.clone() })
    }
}

/// A place taken; dropping it gives it back.
struct Place {
    places: Arc<Places>,
    key_id: String,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        if let Some(own) = taken.get_mut(&self.key_id) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.key_id);
            }
        }
    }
}

/// What every event stream holds.
pub(super) struct EventStream {
    pub state: web::Data<ApiState>,
    key: Option<Arc<ApiKey>>,
    heartbeat: Interval,
    stopping: watch::Receiver<bool>,
    is_over: bool,
    _place: Place,
}

/// Why a wait ended without news.
pub(super) enum Pause {
    /// Nothing happened for a while: a comment keeps the connection open, and finds out whether it still is.
    Quiet,
    /// The stream ends, with this as its last event.
    End(String),
}

impl EventStream {
    /// Takes a place.
    ///
    /// # Errors
    /// `Overloaded` if there is none, or the key has its share of them.
    pub fn open(state: &web::Data<ApiState>, caller: &Caller) -> Result<Self> {
        let place = state.event_streams.take(caller);
        let place = place.ok_or(Error::Overloaded { retry_after_s: state.config.retry_after_s })?;
        let mut heartbeat = interval(Duration::from_millis(state.config.event_heartbeat_ms.into()));
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        heartbeat.reset();
        Ok(Self {
            state: state.clone(),
            key: caller.key.clone(),
            heartbeat,
            stopping: state.deps.stopping.clone(),
            is_over: false,
            _place: place,
        })
    }

    /// Returns whether the last event was sent.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Makes `last` the last event.
    pub fn end(&mut self, name: &str, detail: &'static str) -> String {
        self.is_over = true;
        event(name, None, &Farewell { detail })
    }

    /// Returns the last event if the key no longer holds, whatever it was opened with.
    pub fn refused(&mut self) -> Option<String> {
        let key = self.key.as_ref()?;
        let is_valid = self.state.deps.keys.is_valid(&key.key_id);
        (!is_valid).then(|| self.end("refused", "the key was revoked or has expired"))
    }

    /// Waits for `news`, at most until the next heartbeat.
    pub async fn wait<T>(&mut self, news: impl Future<Output = T>) -> Result<T, Pause> {
        let is_stopping = *self.stopping.borrow_and_update();
        if !is_stopping {
            tokio::select! {
                news = news => return Ok(news),
                _ = self.heartbeat.tick() => return Err(Pause::Quiet),
                changed = self.stopping.changed() => {
                    // A node that is gone without a word is stopping as well.
                    if changed.is_ok() && !*self.stopping.borrow() {
                        return Err(Pause::Quiet);
                    }
                }
            }
        }
        Err(Pause::End(self.end("closing", "the node stops; connect again")))
    }
}

/// The comment that keeps a connection open.
pub(super) const HEARTBEAT: &str = ": alive\n\n";

/// The comment that keeps a connection open, with an id: who reconnects goes on after it. It is no event, as it has no data.
pub(super) fn heartbeat_after(id: u64) -> String {
    format!(": alive\nid: {id}\n\n")
}

/// Answers with an event stream that begins with `hello`.
pub(super) fn answer(hello: String, events: impl Stream<Item = String> + 'static) -> HttpResponse {
    // The first bytes go at once: whoever connects learns that it is connected.
    let hello = futures::stream::once(std::future::ready(hello));
    let bytes = hello.chain(events).map(|text| Ok::<_, Error>(Bytes::from(text)));
    HttpResponse::Ok()
        .content_type(EVENT_STREAM)
        .insert_header((CACHE_CONTROL, "no-store"))
        .insert_header(("x-accel-buffering", "no"))
        .streaming(bytes)
}
