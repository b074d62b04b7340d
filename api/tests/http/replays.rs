//! Replays: progress as lines, and what is refused.

use serde_json::{Value, json};

use crate::support::{JSON, NDJSON, Server, ask, problem};

const RANGE: &str = r#"{"from":"2025-01-15T11","to":"2025-01-15T12"}"#;

#[actix_web::test]
async fn a_replay_streams_its_progress_as_lines_and_says_how_each_hour_ended() {
    let server = Server::start().await;
    let response = server.post("/v1/replays", JSON, RANGE).send().await.expect("an answer");
    assert_eq!(
        (response.status().as_u16(), &response.headers()["content-type"]),
        (200, &NDJSON.parse().expect("value"))
    );
    let lines = response.text().await.expect("a body");
    let events: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let progress = json!({ "event": "progress", "copies_done": 5, "copies_total": 10, "slices_done": 0,
        "slices_total": 1 });
    let done = json!({ "event": "done", "hour": "2025-01-15T11", "outcome": "committed",
        "run_id": "kappa/2025-01-15T11/000001", "rows": 3, "rows_written": 3, "differing": 0 });
    assert_eq!(events, [progress, done, json!({ "event": "ended" })]);
    let (status, body) = ask(server.post("/v1/replays?wait=false", JSON, RANGE)).await;
    assert_eq!((status.as_u16(), body), (202, json!({ "started": true })));
    server.stop().await;
}

#[actix_web::test]
async fn an_empty_range_a_too_long_one_an_unknown_path_and_a_second_replay_are_refused() {
    let server = Server::start().await;
    let empty = r#"{"from":"2025-01-15T12","to":"2025-01-15T12"}"#;
    problem(server.post("/v1/replays", JSON, empty), 422, "before").await;
    let long = r#"{"from":"2025-01-01T00","to":"2025-02-01T01"}"#;
    problem(server.post("/v1/replays", JSON, long), 422, "744 hours").await;
    let unknown = r#"{"from":"2025-01-15T11","to":"2025-01-15T12","restate":"gamma"}"#;
    problem(server.post("/v1/replays", JSON, unknown), 422, "gamma").await;
    let second = r#"{"from":"2025-01-15T11","to":"2025-01-15T12","restate":"kappa"}"#;
    problem(server.post("/v1/replays", JSON, second), 409, "under way").await;
    server.stop().await;
}
