//! Budgets: how a day stands, decisions and windows as they come, and who may see them.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use reqwest::StatusCode;
use twice_log::{Generation, LogOffset, UtcMillis};
use twice_store::windows::{Fence, ObservedWindows, WindowRow, WindowStore};
use twice_store::{BudgetCause, BudgetDecision, BudgetState, BudgetStore, Scope};

use crate::access::key;
use crate::support::{JSON, Server, ask, campaign, problem, time};

/// Far beyond what an event takes: no test asserts a time.
const PATIENCE: Duration = Duration::from_secs(60);

fn decision(id: &str, number: u32, state: BudgetState) -> BudgetDecision {
    BudgetDecision {
        sequence: 0,
        campaign_id: campaign(id),
        day: "2025-01-15".parse().expect("valid day"),
        number,
        state,
        cause: BudgetCause::Stream,
        spend_micros: 10,
        budget_micros: Some(10),
        decided_at: time("2025-01-15T12:00:00Z"),
        position: None,
        event_time: None,
    }
}

async fn decide(server: &Server, decisions: Vec<BudgetDecision>) {
    let stored = server.store.record_decisions(decisions).await.expect("stored");
    server.budgeting.0.send_replace(stored.last().expect("one").sequence);
}

/// An event stream as its reader sees it.
struct Reader {
    bytes: BoxStream<'static, String>,
    text: String,
}

impl Reader {
    async fn open(request: reqwest::RequestBuilder) -> Self {
        let response = request.send().await.expect("an answer");
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let bytes = response.bytes_stream();
        let text = bytes.map(|bytes| String::from_utf8(bytes.unwrap_or_default().to_vec()).expect("text"));
        Self { bytes: text.boxed(), text: String::new() }
    }

    /// Reads until something is there; `None` at the end of the stream.
    async fn until(&mut self, wanted: &str) -> Option<String> {
        while !self.text.contains(wanted) {
            let read = tokio::time::timeout(PATIENCE, self.bytes.next()).await.expect("in time");
            self.text.push_str(&read?);
        }
        Some(std::mem::take(&mut self.text))
    }
}

#[actix_web::test]
async fn a_day_is_told_with_what_is_billed_and_what_is_not() {
    let server = Server::start().await;
    let (status, budget) = ask(server.get("/v1/campaigns/a/budget")).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(budget["spend_micros"], 130);
    assert_eq!((&budget["billed_micros"], &budget["preliminary_micros"]), (&80.into(), &50.into()));
    assert_eq!((&budget["state"], &budget["overspend_micros"]), (&"exhausted".into(), &30.into()));
    assert_eq!(budget["fresh_to"], "2025-01-15T12:29:59.000Z");
    let (_, before) = ask(server.get("/v1/campaigns/a/budget?day=2025-01-14")).await;
    assert_eq!(before["day"], "2025-01-14");
    problem(server.get("/v1/campaigns/nobody/budget"), 404, "nobody").await;
    problem(server.get("/v1/campaigns/a/budget?day=soon"), 400, "is not").await;
    server.stop().await;
}

#[actix_web::test]
async fn who_resumes_after_an_event_misses_none_and_a_list_pages() {
    let server = Server::start().await;
    decide(&server, vec![decision("a", 1, BudgetState::Serving), decision("b", 1, BudgetState::Serving)])
        .await;
    let follow = server.get("/v1/budget-decisions").header("last-event-id", "1");
    let mut reader = Reader::open(follow).await;
    let first = reader.until("\"number\":1").await.expect("an event");
    assert!(first.contains("id: 2") && first.contains("\"campaign_id\":\"b\""), "{first}");
    decide(&server, vec![decision("a", 2, BudgetState::Exhausted)]).await;
    let next = reader.until("\"number\":2").await.expect("an event");
    assert!(next.contains("event: decision\nid: 3") && next.contains("\"state\":\"exhausted\""), "{next}");

    let list = |path: &str| server.get(path).header("accept", JSON);
    let (_, page) = ask(list("/v1/budget-decisions?limit=2")).await;
    assert_eq!((page["rows"].as_array().expect("rows").len(), &page["next_cursor"]), (2, &"2".into()));
    let (_, page) = ask(list("/v1/budget-decisions?limit=2&cursor=2")).await;
    assert_eq!((&page["rows"][0]["number"], &page["next_cursor"]), (&2.into(), &serde_json::Value::Null));
    let (_, page) = ask(list("/v1/budget-decisions?campaign=b")).await;
    assert_eq!(page["rows"].as_array().expect("rows").len(), 1);
    server.budgeting.2.send_replace(true);
    assert!(reader.until("event: closing").await.is_some(), "a stop ends the stream with a word");
    assert!(reader.until("anything more").await.is_none());
    server.stop().await;
}

fn row(clicks: u64) -> WindowRow {
    let start: UtcMillis = time("2025-01-15T12:29:00Z");
    let applied = LogOffset(i64::try_from(clicks).expect("small"));
    WindowRow {
        campaign_id: campaign("a"),
        window_start: start,
        fence: Fence { lease_epoch: 0, generation: Generation(0), applied },
        clicks,
        users: Default::default(),
        ads: Vec::new(),
    }
}

#[actix_web::test]
async fn windows_come_as_they_are_stored_and_never_go_back() {
    let server = Server::start().await;
    let observed =
        ObservedWindows::new(server.windows.clone(), vec![std::sync::Arc::new(server.budgeting.1.clone())]);
    observed.publish(vec![row(3)]).await.expect("stored");
    let mut reader = Reader::open(server.get("/v1/campaigns/a/live")).await;
    let first = reader.until("\"clicks\":3").await.expect("what is stored comes first");
    assert!(first.contains("\"status\":\"preliminary\""), "{first}");
    observed.publish(vec![row(2)]).await.expect("passed over");
    observed.publish(vec![row(5)]).await.expect("stored");
    let next = reader.until("\"clicks\":5").await.expect("an event");
    assert!(!next.contains("\"clicks\":2"), "{next}");
    server.budgeting.2.send_replace(true);
    assert!(reader.until("event: closing").await.is_some());
    server.stop().await;
}

#[actix_web::test]
async fn who_reconnects_before_the_first_event_goes_on_where_it_was() {
    let server = Server::start().await;
    decide(&server, vec![decision("a", 1, BudgetState::Serving)]).await;
    let mut reader = Reader::open(server.get("/v1/budget-decisions")).await;
    let hello = reader.until("id: 1\n\n").await.expect("a hello");
    assert!(!hello.contains("data:"), "no event: {hello}");
    drop(reader);
    decide(&server, vec![decision("a", 2, BudgetState::Exhausted)]).await;
    let again = server.get("/v1/budget-decisions").header("last-event-id", "1");
    assert!(Reader::open(again).await.until("\"number\":2").await.is_some());
    let of_another_store = server.get("/v1/budget-decisions").header("last-event-id", "900");
    let mut reader = Reader::open(of_another_store).await;
    let reset = reader.until("event: reset").await.expect("a word");
    assert!(reset.contains("id: 2\n"), "{reset}");
    decide(&server, vec![decision("a", 3, BudgetState::Serving)]).await;
    assert!(reader.until("\"number\":3").await.is_some());
    server.budgeting.2.send_replace(true);
    server.stop().await;
}

#[actix_web::test]
async fn one_key_takes_a_share_of_the_event_streams_and_leaves_the_others() {
    let config = twice_api::ApiConfig { event_streams_max: 8, ..Default::default() };
    let server = Server::start_keyed_with(config).await;
    let [one, other] = [key(&server, &[Scope::Query], &[]).await, key(&server, &[Scope::Query], &[]).await];
    let follow = |key: &str| server.get("/v1/budget-decisions").bearer_auth(key);
    let mut readers = vec![Reader::open(follow(&one)).await, Reader::open(follow(&one)).await];
    problem(follow(&one), 503, "later").await;
    readers.push(Reader::open(follow(&other)).await);
    server.budgeting.2.send_replace(true);
    server.stop().await;
}

#[actix_web::test]
async fn event_streams_have_an_end_of_their_number() {
    let config = twice_api::ApiConfig { event_streams_max: 1, ..Default::default() };
    let server = Server::start_with(config, |_| {}).await;
    let reader = Reader::open(server.get("/v1/budget-decisions")).await;
    problem(server.get("/v1/campaigns/a/live"), 503, "later").await;
    drop(reader);
    problem(server.get("/v1/budget-decisions").header("last-event-id", "x"), 400, "Last-Event-ID").await;
    server.budgeting.2.send_replace(true);
    server.stop().await;
}
