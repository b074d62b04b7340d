//! The merged view and the bills, over the real stores.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Value, json};
use twice_api::ApiConfig;
use twice_log::archive::{BillingPath, BillingStatus};
use twice_log::event::Sha256Hex;
use twice_log::{AdId, CampaignId, Generation, Hour, LogOffset, UserId, UtcMillis};
use twice_store::{
    AdCounts, BillingCounts, BillingStore, Divergence, Error, Fence, NewBillingRow, Result, RunCommit,
    StreamState, UserSketch, WindowRow, WindowStore,
};

use crate::support::{Server, ask, campaign, hour, problem, time};

pub fn users(count: usize) -> UserSketch {
    let mut sketch = UserSketch::default();
    (0..count).for_each(|user| sketch.insert(&UserId::new(format!("u_{user}")).expect("valid id")));
    sketch
}

pub fn window(of: &str, start: &str, clicks: u64) -> WindowRow {
    let ad_id = AdId::new("ad_9").expect("valid id");
    WindowRow {
        campaign_id: campaign(of),
        window_start: time(start),
        fence: Fence { lease_epoch: 1, generation: Generation(0), applied: LogOffset(1) },
        clicks,
        users: users(2),
        ads: vec![AdCounts { ad_id, clicks: clicks - 1, users: users(1) }],
    }
}

pub fn counts(of: &str, billable: u64) -> BillingCounts {
    BillingCounts {
        gross: billable + 2,
        duplicates: 1,
        invalid_sivt: 1,
        billable,
        amount_micros: billable as i64 * 500_000,
        ..BillingCounts::zero(campaign(of), Some("USD".parse().expect("valid currency")))
    }
}

pub async fn bill(server: &Server, at: &str, seq: u32, status: BillingStatus, rows: Vec<BillingCounts>) {
    let hour = hour(at);
    let divergence = rows.iter().map(|row| Divergence {
        campaign_id: row.campaign_id.clone(),
        stream: StreamState::Complete,
        preliminary: Some(row.billable + 1),
        billed: row.billable,
        late: Some(1),
        late_duplicate: Some(1),
        fraud: Some(1),
        unexplained: Some(0),
    });
    let commit = RunCommit {
        path: BillingPath::Lambda,
        hour,
        seq,
        run_id: format!("lambda/{hour}/{seq:06}"),
        status,
        inputs_sha256: Sha256Hex::of(b"inputs"),
        cutoffs: Vec::new(),
        started_at: time("2025-01-15T12:00:00Z"),
        mode_change: false,
        divergence: divergence.collect(),
        rows: rows.into_iter().map(|row| NewBillingRow::new(hour, row)).collect(),
    };
    server.store.commit_run(commit).await.expect("commits");
}

pub fn labels(body: &Value) -> Vec<(Value, Value)> {
    let rows = body["rows"].as_array().expect("rows");
    rows.iter().map(|row| (row["clicks"].clone(), row["status"].clone())).collect()
}

/// Returns the codes of an answer's notices.
pub fn codes(body: &Value) -> Vec<String> {
    let notices = body["notices"].as_array().expect("notices");
    notices.iter().filter_map(|notice| notice["code"].as_str().map(str::to_owned)).collect()
}

pub fn row(clicks: impl Into<Value>, status: &str) -> (Value, Value) {
    (clicks.into(), json!(status))
}

const HOURS: &str = "/v1/campaigns/c/clicks?from=2025-01-15T10&to=2025-01-15T13";

#[actix_web::test]
async fn billed_hours_stand_before_the_stream_and_every_row_is_labelled() {
    let server = Server::start().await;
    let windows = vec![
        window("c", "2025-01-15T10:05:00Z", 50),
        window("c", "2025-01-15T11:00:00Z", 40),
        window("c", "2025-01-15T12:00:00Z", 30),
        window("c", "2025-01-15T12:01:00Z", 3),
    ];
    server.windows.publish(windows).await.expect("publishes");
    bill(&server, "2025-01-15T10", 1, BillingStatus::Reconciled, vec![counts("c", 48)]).await;
    bill(&server, "2025-01-15T11", 1, BillingStatus::Reconciled, vec![counts("other", 1)]).await;

    let (status, body) = ask(server.get(HOURS)).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(labels(&body), [row(48, "reconciled"), row(0, "reconciled"), row(33, "preliminary")]);
    let billed = &body["rows"][0];
    assert_eq!(
        (&billed["gross"], &billed["billable"], &billed["version"]),
        (&json!(50), &json!(48), &json!(1))
    );
    assert_eq!((&billed["amount_micros"], &billed["currency"]), (&json!(24_000_000), &json!("USD")));
    assert_eq!(body["rows"][2]["unique_users"], 2);
    assert_eq!(body["rows"][2].get("billable"), None);
    assert_eq!(body["fresh_to"], "2025-01-15T12:29:59.000Z");
    assert_eq!(codes(&body), ["aggregates_missing"], "its users are not known without aggregates");

    let (_, stream) = ask(server.get(&format!("{HOURS}&path=stream"))).await;
    assert_eq!(labels(&stream), [50, 40, 33].map(|clicks| row(clicks, "preliminary")));
    let (_, lambda) = ask(server.get(&format!("{HOURS}&path=lambda"))).await;
    assert_eq!(labels(&lambda), [row(48, "reconciled"), row(0, "reconciled"), row(Value::Null, "unbilled")]);
    let (_, kappa) = ask(server.get(&format!("{HOURS}&path=kappa"))).await;
    assert_eq!(labels(&kappa), [(); 3].map(|()| row(Value::Null, "unbilled")));
    let day = "/v1/campaigns/c/clicks?granularity=day&from=2025-01-15T00:00:00Z&to=2025-01-16T00:00:00Z";
    let (_, day) = ask(server.get(day)).await;
    assert_eq!(labels(&day), [row(81, "preliminary")], "a sum has the label of its weakest part");
    server.stop().await;
}

#[actix_web::test]
async fn as_of_shows_the_bill_as_it_stood_and_never_the_stream() {
    let server = Server::start().await;
    server.windows.publish(vec![window("c", "2025-01-15T10:05:00Z", 50)]).await.expect("publishes");
    bill(&server, "2025-01-15T10", 1, BillingStatus::Reconciled, vec![counts("c", 48)]).await;
    server.set_clock("2025-01-15T12:40:00Z");
    bill(&server, "2025-01-15T10", 2, BillingStatus::Final, vec![counts("c", 47)]).await;
    server.set_clock("2025-01-15T12:50:00Z");
    for (as_of, expected) in [
        ("2025-01-15T12:29:59Z", row(Value::Null, "unbilled")),
        ("2025-01-15T12:35:00Z", row(48, "reconciled")),
        ("2025-01-15T12:45:00Z", row(47, "final")),
    ] {
        let path = format!("/v1/campaigns/c/clicks?from=2025-01-15T10&to=2025-01-15T11&as_of={as_of}");
        let (status, body) = ask(server.get(&path)).await;
        assert_eq!((status.as_u16(), labels(&body)), (200, vec![expected]), "{as_of}: {body}");
        assert_eq!(body["fresh_to"], Value::Null);
    }
    problem(server.get(&format!("{HOURS}&as_of=2025-01-15T13:00:00Z")), 422, "future").await;
    server.stop().await;
}

#[actix_web::test]
async fn minutes_and_ads_of_billed_hours_without_aggregates_are_the_streams_and_say_so() {
    let server = Server::start().await;
    server.windows.publish(vec![window("c", "2025-01-15T11:01:00Z", 40)]).await.expect("publishes");
    bill(&server, "2025-01-15T10", 1, BillingStatus::Reconciled, vec![counts("c", 48)]).await;
    bill(&server, "2025-01-15T11", 1, BillingStatus::Reconciled, vec![counts("c", 39)]).await;

    let minutes = "granularity=minute&from=2025-01-15T10:59:00Z&to=2025-01-15T11:02:00Z";
    let (_, body) = ask(server.get(&format!("/v1/campaigns/c/clicks?{minutes}"))).await;
    let expected = [row(Value::Null, "preliminary"), row(0, "preliminary"), row(40, "preliminary")];
    assert_eq!(labels(&body), expected, "windows that are gone are not zero");
    assert_eq!(codes(&body), ["aggregates_missing", "billed_from_stream", "windows_gone"]);

    let (_, body) = ask(server.get(&format!("/v1/campaigns/c/ads/ad_9/clicks?{minutes}"))).await;
    assert_eq!(labels(&body)[2], row(39, "preliminary"));
    assert_eq!((&body["ad_id"], &body["rows"][2]["unique_users"]), (&json!("ad_9"), &json!(1)));
    let (_, body) = ask(server.get(&format!("/v1/campaigns/c/ads/none/clicks?{minutes}"))).await;
    assert_eq!(labels(&body)[2], row(0, "preliminary"));
    server.stop().await;
}

/// A real-time store that is down.
struct Down;

#[async_trait]
impl WindowStore for Down {
    async fn publish(&self, _: Vec<WindowRow>) -> Result<()> {
        Err(down())
    }
    async fn read(&self, _: &CampaignId, _: UtcMillis, _: UtcMillis) -> Result<Vec<WindowRow>> {
        Err(down())
    }
    async fn flush(&self) -> Result<()> {
        Err(down())
    }
    async fn remove_hours(&self, _: &[Hour]) -> Result<()> {
        Err(down())
    }
    async fn hours(&self) -> Result<Vec<Hour>> {
        Err(down())
    }
}

fn down() -> Error {
    Error::Damage { what: "window".into(), reason: "down".into() }
}

#[actix_web::test]
async fn without_the_stream_hours_that_are_not_billed_have_no_number() {
    let server = Server::start_with(ApiConfig::default(), |deps| deps.windows = Arc::new(Down)).await;
    bill(&server, "2025-01-15T10", 1, BillingStatus::Reconciled, vec![counts("c", 48)]).await;
    let (status, body) = ask(server.get(HOURS)).await;
    assert_eq!(status, 200, "{body}");
    let unbilled = || row(Value::Null, "unbilled");
    assert_eq!(labels(&body), [row(48, "reconciled"), unbilled(), unbilled()]);
    assert_eq!(body["notices"][0]["code"], "stream_unavailable");
    let stream = server.get(&format!("{HOURS}&path=stream")).send().await.expect("an answer");
    assert!(stream.status().is_server_error());
    server.stop().await;
}

#[actix_web::test]
async fn bills_divergence_and_runs_have_the_published_shapes_and_pages() {
    let server = Server::start().await;
    let rows = ["a", "b", "c"].map(|of| counts(of, 10)).to_vec();
    bill(&server, "2025-01-15T10", 1, BillingStatus::Reconciled, rows).await;
    let mut campaigns = Vec::new();
    let mut cursor = String::new();
    loop {
        let (_, page) = ask(server.get(&format!("/v1/billing?hour=2025-01-15T10&limit=2{cursor}"))).await;
        campaigns.extend(page["rows"].as_array().expect("rows").iter().map(|row| row["campaign_id"].clone()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(campaigns, ["a", "b", "c"]);
    let (_, page) = ask(server.get("/v1/billing?day=2025-01-15&campaign=b&path=lambda&version=1")).await;
    let row = page["rows"][0].as_object().expect("a row");
    let expected = [
        "campaign_id",
        "hour_bucket",
        "path",
        "version",
        "status",
        "gross",
        "duplicates",
        "conflicts",
        "invalid_givt",
        "invalid_sivt",
        "billable",
        "unpriced",
        "amount_micros",
        "currency",
        "digest",
        "run_id",
        "reconciled_at",
    ];
    assert!(expected.iter().all(|field| row.contains_key(*field)), "{row:?}");
    assert_eq!(row["hour_bucket"], "2025-01-15T10");

    let request = server.get("/v1/billing?hour=2025-01-15T10&limit=2").header("accept", "text/csv");
    let response = request.send().await.expect("an answer");
    assert!(response.headers().contains_key("x-next-cursor"));
    let csv = response.text().await.expect("a body");
    assert!(csv.starts_with("campaign_id,hour_bucket,path,version,status,gross"), "{csv}");
    assert!(csv.contains("\r\na,2025-01-15T10,lambda,1,reconciled,12,1,0,0,1,10,0,5000000,USD,"), "{csv}");

    let (_, page) = ask(server.get("/v1/divergence?hour=2025-01-15T10")).await;
    let expected = json!({
        "campaign_id": "a", "hour_bucket": "2025-01-15T10", "path": "lambda", "version": 1, "stream": "complete",
        "preliminary": 11, "billed": 10, "late": 1, "late_duplicate": 1, "fraud": 1, "unexplained": 0,
    });
    assert_eq!(page["rows"][0], expected);
    let (_, page) = ask(server.get("/v1/reconciliations")).await;
    let run = &page["rows"][0];
    assert_eq!(
        (&run["run_id"], &run["outcome"]),
        (&json!("lambda/2025-01-15T10/000001"), &json!("committed"))
    );
    server.stop().await;
}
