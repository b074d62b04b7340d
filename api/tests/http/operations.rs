//! Campaigns, reconciliations, health, the document and the dashboard.

use serde_json::{Value, json};

use crate::support::{JSON, NDJSON, Server, ask, problem};

fn body(currency: &str, cpc_micros: i64) -> Value {
    json!({ "name": "Spring", "currency": currency, "cpc_micros": cpc_micros, "daily_budget_micros": null,
        "effective_from": "2025-01-01T00:00:00Z" })
}

#[actix_web::test]
async fn campaigns_keep_every_price_and_their_currency() {
    let server = Server::start().await;
    let path = "/v1/campaigns/camp_123";
    problem(server.get(path), 404, "camp_123").await;
    assert_eq!(ask(server.put(path, &body("USD", 500_000))).await.0, 200);
    server.set_clock("2025-01-15T12:31:00Z");
    ask(server.put(path, &body("USD", 600_000))).await;
    ask(server.put(path, &body("USD", 600_000))).await;
    let (_, campaign) = ask(server.get(path)).await;
    let prices: Vec<&Value> =
        campaign["rates"].as_array().expect("rates").iter().map(|rate| &rate["cpc_micros"]).collect();
    assert_eq!(prices, [500_000, 600_000], "the same again appends nothing");
    problem(server.put(path, &body("EUR", 1)), 409, "currency").await;
    problem(server.put(path, &body("usd", 1)), 422, "ISO 4217").await;
    problem(server.put(path, &body("USD", -1)), 422, "cpc_micros").await;
    problem(server.put(path, &json!({ "currency": "USD", "cpc_micros": 1, "cpm": 2 })), 422, "cpm").await;
    problem(server.put(path, &json!({ "campaign_id": "x", "currency": "USD", "cpc_micros": 1 })), 422, "x")
        .await;
    problem(server.put("/v1/campaigns/a%20b", &body("USD", 1)), 400, "visible ASCII").await;
    server.stop().await;
}

#[actix_web::test]
async fn many_campaigns_are_set_at_once_or_none() {
    let server = Server::start().await;
    let line = |id: &str, currency: &str| {
        json!({ "campaign_id": id, "currency": currency, "cpc_micros": 7 }).to_string()
    };
    let lines = [line("a", "USD"), line("b", "EUR")].join("\n");
    let (status, stored) = ask(server.post("/v1/campaigns", NDJSON, lines)).await;
    assert_eq!((status.as_u16(), stored), (200, json!({ "stored": 2 })));
    let array = format!("[{},{}]", line("c", "USD"), line("d e", "USD"));
    problem(server.post("/v1/campaigns", JSON, array), 422, "campaign 1").await;
    let array = format!("[{},{}]", line("c", "USD"), line("a", "GBP"));
    problem(server.post("/v1/campaigns", JSON, array), 409, "currency").await;
    let (_, first) = ask(server.get("/v1/campaigns?limit=1")).await;
    let next = first["next_cursor"].as_str().expect("a cursor");
    let (_, second) = ask(server.get(&format!("/v1/campaigns?limit=5&cursor={next}"))).await;
    assert_eq!(
        (&first["rows"][0]["campaign_id"], &second["rows"][0]["campaign_id"]),
        (&json!("a"), &json!("b"))
    );
    assert_eq!((second["rows"].as_array().map(Vec::len), &second["next_cursor"]), (Some(1), &Value::Null));
    server.stop().await;
}

#[actix_web::test]
async fn a_reconciliation_streams_its_progress_as_lines() {
    let server = Server::start().await;
    let hour = r#"{"hour":"2025-01-15T11"}"#;
    let response = server.post("/v1/reconciliations", JSON, hour).send().await.expect("an answer");
    assert_eq!(
        (response.status().as_u16(), &response.headers()["content-type"]),
        (200, &NDJSON.parse().expect("value"))
    );
    let lines = response.text().await.expect("a body");
    let events: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let step = json!({ "event": "step", "hour": "2025-01-15T11", "step": "sealing" });
    let done = json!({ "event": "done", "hour": "2025-01-15T11", "outcome": "committed",
        "run_id": "lambda/2025-01-15T11/000001", "rows": 3, "unexplained": 0,
        "change": { "rows": 0, "billable": 0, "money": [], "listed": [] } });
    assert_eq!(events, [step, done]);
    let (status, body) = ask(server.post("/v1/reconciliations?wait=false", JSON, hour)).await;
    assert_eq!((status.as_u16(), body), (202, json!({ "started": true })));
    problem(server.post("/v1/reconciliations", JSON, r#"{"due":true}"#), 409, "under way").await;
    problem(server.get("/v1/explain?hour=2025-01-15T11&campaign=c"), 404, "2025-01-15T11").await;
    let (status, body) = ask(server.post("/v1/audits", JSON, hour)).await;
    assert_eq!((status.as_u16(), body), (200, json!({ "verdict": "proved" })));
    problem(server.post("/v1/audits", JSON, r#"{"hour":"2025-01-15T12"}"#), 404, "2025-01-15T12").await;
    server.stop().await;
}

#[actix_web::test]
async fn health_says_what_is_wrong() {
    let server = Server::start().await;
    assert_eq!(ask(server.get("/livez")).await.0, 200);
    let (status, body) = ask(server.get("/readyz")).await;
    assert_eq!((status.as_u16(), &body["reasons"][0]), (503, &json!("the log is recovering: /data/log")));
    problem(server.get("/v1/stream"), 503, "stream path").await;
    let metrics = server.get("/metrics").send().await.expect("an answer");
    assert_eq!(metrics.text().await.expect("a body"), "twice_test 1\n");
    server.stop().await;
}

#[actix_web::test]
async fn the_document_names_every_route_and_every_schema_it_refers_to() {
    let server = Server::start().await;
    let (status, document) = ask(server.get("/openapi.json")).await;
    assert_eq!(status, 200);
    let paths = document["paths"].as_object().expect("paths");
    let expected = [
        ("/", "get"),
        ("/livez", "get"),
        ("/metrics", "get"),
        ("/openapi.json", "get"),
        ("/readyz", "get"),
        ("/v1/admin-actions", "get"),
        ("/v1/audits", "post"),
        ("/v1/billing", "get"),
        ("/v1/billing/corrections", "get"),
        ("/v1/budget-decisions", "get"),
        ("/v1/campaigns", "get"),
        ("/v1/campaigns", "post"),
        ("/v1/campaigns/{campaign_id}", "get"),
        ("/v1/campaigns/{campaign_id}", "put"),
        ("/v1/campaigns/{campaign_id}/ads/{ad_id}/clicks", "get"),
        ("/v1/campaigns/{campaign_id}/budget", "get"),
        ("/v1/campaigns/{campaign_id}/clicks", "get"),
        ("/v1/campaigns/{campaign_id}/live", "get"),
        ("/v1/clicks", "post"),
        ("/v1/comparisons", "get"),
        ("/v1/comparisons", "post"),
        ("/v1/comparisons/{id}", "get"),
        ("/v1/divergence", "get"),
        ("/v1/explain", "get"),
        ("/v1/imports", "post"),
        ("/v1/keys", "get"),
        ("/v1/keys", "post"),
        ("/v1/keys/{key_id}", "delete"),
        ("/v1/mode", "get"),
        ("/v1/mode", "put"),
        ("/v1/rate-limits", "get"),
        ("/v1/rate-limits", "put"),
        ("/v1/rate-limits/revert", "post"),
        ("/v1/reconciliations", "get"),
        ("/v1/reconciliations", "post"),
        ("/v1/replays", "post"),
        ("/v1/retention", "post"),
        ("/v1/shadow-runs", "post"),
        ("/v1/stream", "get"),
        ("/v1/verdicts", "post"),
    ];
    let named = paths.iter().flat_map(|(path, item)| {
        item.as_object().into_iter().flatten().map(move |(method, _)| (path.as_str(), method.as_str()))
    });
    let mut named: Vec<(&str, &str)> = named.collect();
    named.sort_unstable();
    assert_eq!(named, expected);

    let text = document.to_string();
    let schemas = document["components"]["schemas"].as_object().expect("schemas");
    for reference in text.split("#/components/schemas/").skip(1) {
        let name = reference.split('"').next().expect("a name");
        assert!(schemas.contains_key(name), "{name} is referred to and not there");
    }
    server.stop().await;
}

#[actix_web::test]
async fn the_dashboard_needs_nothing_from_elsewhere() {
    let server = Server::start().await;
    let response = server.get("/").send().await.expect("an answer");
    assert!(
        response.headers()["content-security-policy"].to_str().expect("text").contains("default-src 'none'")
    );
    assert!(!response.headers().contains_key("server"));
    let page = response.text().await.expect("a body");
    let addresses: Vec<&str> = page.match_indices("//").map(|(at, _)| &page[at - 1..at + 12]).collect();
    let foreign = addresses.iter().filter(|text| text.starts_with(':') && !text.starts_with("://www.w3.org"));
    assert_eq!(foreign.count(), 0, "{addresses:?}");
    assert!(!page.contains("innerHTML"), "texts of others are never markup");
    server.stop().await;
}

#[actix_web::test]
async fn a_comparison_is_answered_as_it_goes_and_refused_as_a_problem() {
    let server = Server::start().await;
    let hours = serde_json::json!({"from": "2025-01-15T10", "to": "2025-01-15T12"});
    let start = |body: &Value| server.post("/v1/comparisons", JSON, body.to_string());
    let text = start(&hours).send().await.expect("an answer").text().await.expect("a body");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines[0], serde_json::json!({"event": "progress", "path": "kappa", "done": 1, "total": 2}));
    assert_eq!(
        (&lines[1]["event"], &lines[1]["id"], &lines[1]["comparison"]["equal"]),
        (&"done".into(), &"kept-2025-01-15T10-2025-01-15T12".into(), &true.into())
    );
    let empty = serde_json::json!({"from": "2025-01-15T10", "to": "2025-01-15T10"});
    problem(start(&empty), 422, "must lie before").await;
    let priced = serde_json::json!({"from": "2025-01-15T10", "to": "2025-01-15T12", "prices": {}});
    problem(start(&priced), 422, "prices").await;
    problem(server.get("/v1/comparisons/other"), 404, "comparison other").await;
    let (status, page) = ask(server.get("/v1/comparisons")).await;
    assert_eq!((status.as_u16(), page), (200, serde_json::json!({"rows": [], "next_cursor": null})));
    server.stop().await;
}

#[actix_web::test]
async fn request_ids_are_kept_or_made() {
    let server = Server::start().await;
    let kept = server.get("/livez").header("x-request-id", "mine-1").send().await.expect("an answer");
    assert_eq!(kept.headers()["x-request-id"], "mine-1");
    let made = server.get("/livez").header("x-request-id", "x".repeat(65)).send().await.expect("an answer");
    assert_eq!(made.headers()["x-request-id"].len(), 32);
    server.stop().await;
}
