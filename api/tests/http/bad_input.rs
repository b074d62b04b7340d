//! Bad input: a clear answer each, nothing else lost.

use serde_json::{Value, json};
use twice_api::ApiConfig;

use crate::support::{JSON, NDJSON, Server, ask, problem};

fn small() -> ApiConfig {
    ApiConfig { body_bytes_max: 4_096, batch_records_max: 10, ..ApiConfig::default() }
}

fn good() -> Value {
    json!({
        "click_id": "0194f3a0-1111-7222-8333-444455556666", "campaign_id": "camp_123", "ad_id": "ad_9",
        "event_time": "2025-01-15T12:00:00.123Z",
    })
}

#[actix_web::test]
async fn bodies_that_cannot_be_read_are_refused_as_a_whole_and_nothing_is_stored() {
    let server = Server::start_with(small(), |_| {}).await;
    let clicks = |content_type, body: &[u8]| server.post("/v1/clicks", content_type, body.to_vec());
    problem(clicks(JSON, b"{\"campaign_id\":"), 400, "line 1 column 15").await;
    problem(clicks(JSON, b"[{\"campaign_id\":\"c\"},\n{]"), 400, "line 2").await;
    problem(clicks(JSON, b"hello"), 400, "JSON").await;
    problem(clicks(JSON, b"{\"campaign_id\":\"caf\xe9\"}"), 400, "UTF-8").await;
    problem(clicks(JSON, b"[]"), 422, "empty").await;
    problem(clicks(JSON, b""), 422, "empty").await;
    problem(clicks(NDJSON, b"\n \n"), 422, "empty").await;
    problem(clicks("text/plain", b"{}"), 415, "application/x-ndjson").await;
    problem(clicks("application/x-www-form-urlencoded", b"{}"), 415, "application/json").await;
    problem(clicks(JSON, &[b' '; 4_097]), 413, "4096 bytes").await;
    problem(clicks(NDJSON, "{}\n".repeat(11).as_bytes()), 413, "10 records").await;
    let chunks = futures::stream::iter((0..5).map(|_| Ok::<_, std::io::Error>(vec![b' '; 1_000])));
    problem(server.post("/v1/clicks", JSON, reqwest::Body::wrap_stream(chunks)), 413, "4096 bytes").await;
    problem(server.post("/v1/verdicts", JSON, "[]"), 422, "empty").await;
    assert_eq!(server.clicks().await, []);
    server.stop().await;
}

#[actix_web::test]
async fn packed_bodies_that_cannot_be_read_are_refused() {
    let server = Server::start_with(small(), |_| {}).await;
    let packed = |encoding, body| server.post("/v1/clicks", JSON, body).header("content-encoding", encoding);
    let bomb = zstd::encode_all(&vec![b' '; 100 << 20][..], 1).expect("packs");
    assert!(bomb.len() < 4_096, "100 MiB in a body the limit lets through");
    problem(packed("zstd", bomb), 413, "4096 bytes").await;
    problem(packed("zstd", vec![b' '; 4_097]), 413, "4096 bytes").await;
    problem(packed("gzip", b"not gzip".to_vec()), 400, "gzip").await;
    problem(packed("br", b"x".to_vec()), 415, "gzip").await;
    problem(packed("gzip, zstd", b"x".to_vec()), 415, "twice").await;
    server.stop().await;
}

#[actix_web::test]
async fn each_fault_of_a_click_has_its_code_and_names_its_field() {
    let server = Server::start().await;
    let cases = [
        ("event_time", json!("2025-01-07T12:00:00Z"), "too_old"),
        ("event_time", json!("2025-01-15T12:36:00Z"), "in_future"),
        ("event_time", json!("noon"), "invalid_time"),
        ("campaign_id", json!("c".repeat(65)), "invalid_id"),
        ("ad_id", json!("a".repeat(65)), "invalid_id"),
        ("user_id", json!("a b"), "invalid_id"),
        ("click_id", json!("12345"), "click_id_not_uuid"),
        ("schema_version", json!(3), "schema_version"),
    ];
    for (field, value, code) in cases {
        let mut click = good();
        click[field] = value;
        let (status, body) = ask(server.post("/v1/clicks", JSON, click.to_string())).await;
        assert_eq!(status, 422, "{body}");
        assert_eq!((&body["accepted"], &body["retry"]), (&json!(0), &json!([])), "{body}");
        assert_eq!((&body["rejected"][0]["index"], &body["rejected"][0]["code"]), (&json!(0), &json!(code)));
        let detail = body["rejected"][0]["detail"].as_str().expect("a detail");
        assert!(detail.contains(field), "{detail}");
    }
    assert_eq!(server.clicks().await, []);
    server.stop().await;
}

#[actix_web::test]
async fn one_bad_click_is_named_by_its_index_and_the_others_are_stored() {
    let server = Server::start().await;
    let with_campaign = |campaign: &str| {
        let mut click = good();
        click["campaign_id"] = json!(campaign);
        click
    };
    let mut bad = good();
    bad["click_id"] = json!("12345");
    let array = json!([with_campaign("a"), bad, with_campaign("b"), "no click", with_campaign("c")]);
    let (status, body) = ask(server.post("/v1/clicks", JSON, array.to_string())).await;
    assert_eq!((status.as_u16(), &body["accepted"]), (202, &json!(3)), "{body}");
    assert_eq!(body["rejected"][0]["index"], 1);
    assert_eq!(
        (&body["rejected"][1]["index"], &body["rejected"][1]["code"]),
        (&json!(3), &json!("malformed"))
    );

    let mut lines = format!("{}\n", with_campaign("d")).into_bytes();
    lines.extend_from_slice(b"{\"campaign_id\":\"\xff\"}\n\n{broken\n");
    lines.extend_from_slice(with_campaign("e").to_string().as_bytes());
    let (status, body) = ask(server.post("/v1/clicks", NDJSON, lines)).await;
    assert_eq!((status.as_u16(), &body["accepted"]), (202, &json!(2)), "{body}");
    assert_eq!((&body["rejected"][0]["index"], &body["rejected"][1]["index"]), (&json!(1), &json!(2)));

    let clicks = server.clicks().await;
    let mut stored: Vec<&str> = clicks.iter().map(|click| click.campaign_id.as_str()).collect();
    stored.sort_unstable();
    assert_eq!(stored, ["a", "b", "c", "d", "e"]);
    server.stop().await;
}

#[actix_web::test]
async fn paths_methods_and_queries_that_do_not_exist_are_problems() {
    let server = Server::start().await;
    problem(server.get("/v1/nowhere"), 404, "/v1/nowhere").await;
    problem(server.get("/v1/clicks"), 405, "POST").await;
    problem(server.put("/v1/campaigns", &json!({})), 405, "GET, POST").await;
    problem(server.get("/v1/campaigns/caf%C3%A9"), 400, "visible ASCII").await;
    problem(server.get("/v1/billing?hour=noon"), 400, "hour").await;
    problem(server.get("/v1/billing"), 422, "hour").await;
    problem(server.get("/v1/billing?hour=2025-01-15T12&colour=red"), 400, "colour").await;
    problem(server.get("/v1/billing?hour=2025-01-15T12&limit=0"), 422, "limit").await;
    problem(server.get("/v1/billing?hour=2025-01-15T12&cursor=x"), 422, "cursor").await;
    problem(server.get("/v1/billing?hour=2025-01-15T12&as_of=2025-01-16T00:00:00Z"), 422, "future").await;
    problem(server.get("/v1/campaigns/c/clicks?granularity=second"), 400, "minute").await;
    problem(server.get("/v1/campaigns/c/clicks?granularity=minute&from=2025-01-01T00"), 422, "rows").await;
    problem(server.get("/v1/campaigns/c/clicks?path=stream&as_of=2025-01-15T00:00:00Z"), 422, "as_of").await;
    problem(server.get("/v1/campaigns/c/ads/a/clicks?path=stream&as_of=2025-01-15T00:00:00Z"), 422, "as_of")
        .await;
    problem(server.post("/v1/reconciliations", JSON, "{}"), 422, "due").await;
    problem(server.post("/v1/reconciliations", JSON, "{"), 400, "JSON").await;
    problem(server.post("/v1/reconciliations", "text/plain", "{}"), 415, "application/json").await;
    server.stop().await;
}
