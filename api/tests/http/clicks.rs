//! Good input: what is stored, under which identity, and what a failing log means for the sender.

use std::io::Write;
use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Value, json};
use twice_api::ApiConfig;
use twice_log::hot::{AppendRecord, ClickLog, OffsetBounds, ReadBatch};
use twice_log::spool::Spooling;
use twice_log::{ClickId, Error, Generation, LogOffset, PartitionId, Result, Topic, VerdictClass};

use crate::support::{JSON, NDJSON, Server, ask, problem, time};

const CLICK: &str = r#"{"campaign_id":"camp_123","user_id":"u_7","event_time":"2025-01-15T12:00:00.123Z"}"#;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).expect("writes");
    encoder.finish().expect("ends")
}

#[actix_web::test]
async fn objects_arrays_and_lines_packed_or_not_are_stored() {
    let server = Server::start().await;
    let array = format!("[{}]", [CLICK; 3].join(","));
    let lines = [CLICK; 2].join("\n");
    let zstd = zstd::encode_all(array.as_bytes(), 3).expect("packs");
    let requests = [
        (server.post("/v1/clicks", JSON, CLICK), 1),
        (server.post("/v1/clicks", JSON, array.clone()), 3),
        (server.post("/v1/clicks", NDJSON, lines.clone()), 2),
        (server.post("/v1/clicks", NDJSON, gzip(lines.as_bytes())).header("content-encoding", "gzip"), 2),
        (server.post("/v1/clicks", JSON, zstd).header("content-encoding", "zstd"), 3),
    ];
    let mut ids = Vec::new();
    for (request, count) in requests {
        let (status, body) = ask(request).await;
        assert_eq!((status.as_u16(), &body["accepted"]), (202, &json!(count)), "{body}");
        let named = body["click_ids"].as_object().expect("ids");
        assert_eq!(named.len(), count as usize);
        ids.extend(named.values().map(|id| id.as_str().expect("text").to_owned()));
    }
    let clicks = server.clicks().await;
    let mut stored: Vec<String> = clicks.iter().map(|click| click.click_id.to_string()).collect();
    stored.sort();
    ids.sort();
    assert_eq!(stored, ids, "every click is stored under the id its sender was told");
    assert!(clicks.iter().all(|click| click.click_id.0.get_version_num() == 7));
    server.stop().await;
}

#[actix_web::test]
async fn users_and_addresses_are_stored_as_pseudonyms_only() {
    let server = Server::start().await;
    let february = CLICK.replace("2025-01-15T12:00:00.123Z", "2025-02-01T00:00:00Z");
    ask(server.post("/v1/clicks", JSON, format!("[{CLICK},{CLICK}]"))).await;
    server.set_clock("2025-02-01T00:00:01Z");
    ask(server.post("/v1/clicks", JSON, february)).await;
    ask(server.post("/v1/clicks", JSON, r#"{"campaign_id":"camp_123"}"#)).await;
    let clicks = server.clicks().await;
    let users: Vec<&str> = clicks.iter().map(|click| click.user_id.as_str()).collect();
    assert_eq!((users[0].len(), users[2].len(), users[3]), (22, 22, ""));
    assert_eq!(users[0], users[1], "one user in one month");
    assert_ne!(users[0], users[2], "another month, another pseudonym");
    assert!(clicks[0].ip_hash.is_some() && clicks.iter().all(|click| click.ip_hash == clicks[0].ip_hash));
    assert_eq!(clicks[3].event_time, clicks[3].arrival_time, "CR-4");
    server.stop().await;
}

#[actix_web::test]
async fn the_same_idempotency_key_derives_the_same_ids() {
    let server = Server::start().await;
    let send = |key: &'static str| {
        ask(server.post("/v1/clicks", JSON, format!("[{CLICK},{CLICK}]")).header("idempotency-key", key))
    };
    let (first, second, other) = (send("order-1").await.1, send("order-1").await.1, send("order-2").await.1);
    assert_eq!(first["click_ids"], second["click_ids"]);
    assert_eq!(first["click_ids"]["1"], ClickId::derived("key::order-1:1").to_string(), "CR-1");
    assert_ne!(first["click_ids"], other["click_ids"]);
    let long = "k".repeat(256);
    problem(server.post("/v1/clicks", JSON, CLICK).header("idempotency-key", long), 400, "255").await;
    server.stop().await;
}

#[actix_web::test]
async fn an_import_lifts_the_age_limit_for_its_hours_and_names_clicks_by_row() {
    let server = Server::start().await;
    let sha256 = "AB".repeat(32);
    let announce = json!({ "hours": ["2024-06-01T10", "2024-06-01T09"], "sha256": sha256 });
    let (status, body) = ask(server.post("/v1/imports", JSON, announce.to_string())).await;
    assert_eq!(status, 200, "{body}");
    let import = body["import_id"].as_str().expect("an id").to_owned();
    let (_, again) = ask(server.post("/v1/imports", JSON, announce.to_string())).await;
    assert_eq!(again["import_id"], import);

    let lines = [
        r#"{"campaign_id":"c","user_id":"u","event_time":"2024-06-01T10:59:59.999Z"}"#,
        r#"{"campaign_id":"c","event_time":"2024-06-01T11:00:00Z"}"#,
        r#"{"campaign_id":"c","event_time":"2025-01-15T12:00:00Z"}"#,
    ];
    let path = format!("/v1/clicks?import={import}&first_row=40");
    let (status, body) = ask(server.post(&path, NDJSON, lines.join("\n"))).await;
    assert_eq!((status.as_u16(), &body["accepted"]), (202, &json!(2)), "{body}");
    assert_eq!((&body["rejected"][0]["index"], &body["rejected"][0]["code"]), (&json!(1), &json!("too_old")));
    let name = |row: u32| ClickId::derived(&format!("file:{}:{row}", "ab".repeat(32))).to_string();
    assert_eq!(body["click_ids"], json!({ "0": name(40), "2": name(42) }), "CR-1");
    assert_eq!(server.clicks().await[0].user_id.as_str().len(), 22);

    problem(server.post("/v1/clicks?import=nobody", JSON, CLICK), 404, "nobody").await;
    problem(server.post("/v1/clicks?first_row=1", JSON, CLICK), 422, "import").await;
    let empty = json!({ "hours": [], "sha256": sha256 });
    problem(server.post("/v1/imports", JSON, empty.to_string()), 422, "hours").await;
    let no_hash = json!({ "hours": ["2024-06-01T10"], "sha256": "../x" });
    problem(server.post("/v1/imports", JSON, no_hash.to_string()), 422, "sha256").await;
    server.stop().await;
}

#[actix_web::test]
async fn verdicts_are_stored_in_a_topic_of_their_own() {
    let server = Server::start().await;
    let verdict = json!({
        "campaign_id": "c", "click_id": "0194f3a0-1111-7222-8333-444455556666", "verdict": "sivt",
        "model_version": "m1", "decided_at": "2025-01-15T12:00:00Z", "click_event_time": null,
    });
    let mut unknown = verdict.clone();
    unknown["verdict"] = json!("maybe");
    let (status, body) = ask(server.post("/v1/verdicts", JSON, json!([verdict, unknown]).to_string())).await;
    assert_eq!((status.as_u16(), &body["accepted"]), (202, &json!(1)), "{body}");
    assert_eq!(
        (&body["rejected"][0]["index"], &body["rejected"][0]["code"]),
        (&json!(1), &json!("malformed"))
    );
    let verdicts = server.verdicts().await;
    assert_eq!((verdicts.len(), verdicts[0].verdict), (1, VerdictClass::Sivt));
    assert_eq!(verdicts[0].arrival_time, time("2025-01-15T12:30:00Z"));
    assert_eq!(server.clicks().await, []);
    server.stop().await;
}

/// A log that refuses every append.
struct Refusing(fn() -> Error);

#[async_trait]
impl ClickLog for Refusing {
    fn generation(&self) -> Generation {
        Generation(0)
    }
    fn partitions(&self) -> u32 {
        4
    }
    async fn append(&self, _topic: Topic, _records: Vec<AppendRecord>) -> Result<()> {
        Err((self.0)())
    }
    async fn read(&self, _: Topic, _: PartitionId, _: LogOffset, _: usize) -> Result<ReadBatch> {
        Err(Error::Stopped)
    }
    async fn wait_for(&self, _: Topic, _: PartitionId, _: LogOffset) -> Result<()> {
        Err(Error::Stopped)
    }
    async fn bounds(&self, _: Topic, _: PartitionId) -> Result<OffsetBounds> {
        Err(Error::Stopped)
    }
    async fn trim(&self, _: Topic, _: PartitionId, _: LogOffset) -> Result<()> {
        Err(Error::Stopped)
    }
}

#[actix_web::test]
async fn a_log_that_is_busy_or_stopped_leaves_clicks_to_retry_with_their_ids() {
    let failures: [fn() -> Error; 3] = [
        || Error::Busy { waiting_bytes: 1 },
        || Error::Stopped,
        || Error::AppendUnknown { source: Arc::new(std::io::Error::other("disk")) },
    ];
    for failure in failures {
        let config = ApiConfig { retry_after_s: 3, ..ApiConfig::default() };
        let server = Server::start_with(config, |deps| {
            deps.log = Arc::new(Refusing(failure));
            // No queue beside it: what the log does not take is refused.
            deps.spooling = Arc::new(Spooling::without_queues(deps.log.clone()));
        })
        .await;
        let batch = json!([serde_json::from_str::<Value>(CLICK).expect("JSON"), 7, { "campaign_id": "d" }]);
        let response = server.post("/v1/clicks", JSON, batch.to_string()).send().await.expect("an answer");
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["retry-after"], "3");
        let body: Value = serde_json::from_str(&response.text().await.expect("a body")).expect("JSON");
        assert_eq!((&body["accepted"], &body["retry"]), (&json!(0), &json!([0, 2])));
        assert_eq!(body["rejected"][0]["index"], 1);
        let ids = body["click_ids"].as_object().expect("ids");
        assert_eq!(ids.keys().collect::<Vec<_>>(), ["0", "2"]);

        let bad = server.post("/v1/clicks", JSON, r#"{"campaign_id":""}"#);
        assert_eq!(ask(bad).await.0, 422, "nothing is left to retry");
        server.stop().await;
    }
}
