//! Corrections, modes and shadow runs, over the real store.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use parquet::arrow::arrow_reader::ParquetRecordBatchReader;
use serde_json::{Value, json};
use twice_log::archive::BillingStatus::{Final, Reconciled};
use twice_store::BillingStore;

use crate::query::{bill, counts};
use crate::support::{JSON, Server, ask, hour, problem};

const CORRECTIONS: &str = "/v1/billing/corrections";
const PARQUET: &str = "application/vnd.apache.parquet";

/// Bills noon, restates it with late clicks and a new campaign, and closes it without a change.
async fn restated() -> Server {
    let server = Server::start().await;
    server.set_clock("2025-01-15T14:00:00Z");
    bill(&server, "2025-01-15T12", 1, Reconciled, vec![counts("a", 10), counts("=b", 5)]).await;
    server.set_clock("2025-01-15T15:00:00Z");
    let late = vec![counts("a", 12), counts("=b", 4), counts("c", 1)];
    bill(&server, "2025-01-15T12", 2, Reconciled, late.clone()).await;
    server.set_clock("2025-01-15T16:00:00Z");
    bill(&server, "2025-01-15T12", 3, Final, late).await;
    server
}

fn names(body: &Value) -> Vec<&str> {
    let rows = body["rows"].as_array().expect("rows");
    rows.iter().map(|row| row["campaign_id"].as_str().expect("an id")).collect()
}

#[actix_web::test]
async fn corrections_say_what_to_credit_and_debit_and_why() {
    let server = restated().await;
    let (status, body) = ask(server.get(CORRECTIONS)).await;
    assert_eq!((status.as_u16(), names(&body)), (200, vec!["=b", "a", "c"]));
    let expected = json!({
        "campaign_id": "a", "hour_bucket": "2025-01-15T12", "path": "lambda", "version": 2,
        "previous_path": "lambda", "previous_version": 1, "status": "reconciled", "reason": "late_clicks",
        "run_id": "lambda/2025-01-15T12/000002", "reconciled_at": "2025-01-15T15:00:00.000000Z",
        "delta_gross": 2, "delta_duplicates": 0, "delta_conflicts": 0, "delta_invalid_givt": 0,
        "delta_invalid_sivt": 0, "delta_billable": 2, "delta_unpriced": 0, "delta_amount_micros": 1_000_000,
        "currency": "USD",
    });
    assert_eq!(body["rows"][1], expected);
    assert_eq!(body["rows"][0]["reason"], "rerun", "a click that vanished is no cause of the outside");
    assert_eq!(body["rows"][2]["previous_version"], Value::Null);
    assert_eq!(body["rows"][2]["delta_gross"], 3);

    let all = ask(server.get(&format!("{CORRECTIONS}?include_unchanged=true"))).await.1;
    assert_eq!(all["rows"].as_array().expect("rows").len(), 6);
    assert_eq!((&all["rows"][3]["reason"], &all["rows"][3]["delta_gross"]), (&json!("close"), &json!(0)));
}

#[actix_web::test]
async fn corrections_are_cut_by_hour_day_campaign_and_moment_and_come_in_pages() {
    let server = restated().await;
    let count = async |query: &str| {
        let (status, body) = ask(server.get(&format!("{CORRECTIONS}?{query}"))).await;
        assert_eq!(status.as_u16(), 200, "{query}: {body}");
        names(&body).len()
    };
    assert_eq!(count("from=2025-01-15T12&to=2025-01-15T13").await, 3);
    assert_eq!(count("from=2025-01-15&to=2025-01-16").await, 3);
    assert_eq!(count("from=2025-01-15T13").await, 0);
    assert_eq!(count("to=2025-01-15").await, 0);
    assert_eq!(count("campaign=c").await, 1);
    assert_eq!(count("since=2025-01-15T14:59:59Z").await, 3);
    assert_eq!(count("since=2025-01-15T15:00:00Z").await, 0, "what was committed at the moment is left out");
    assert_eq!(count("as_of=2025-01-15T14:30:00Z").await, 0);
    assert_eq!(count("as_of=2025-01-15T15:00:00Z").await, 3);

    let first = ask(server.get(&format!("{CORRECTIONS}?limit=2"))).await.1;
    assert_eq!(names(&first), ["=b", "a"]);
    let cursor = first["next_cursor"].as_str().expect("a cursor");
    let second = ask(server.get(&format!("{CORRECTIONS}?limit=2&cursor={cursor}"))).await.1;
    assert_eq!((names(&second), &second["next_cursor"]), (vec!["c"], &Value::Null));

    let refused = async |query: &str, mentions: &str| {
        problem(server.get(&format!("{CORRECTIONS}?{query}")), 422, mentions).await;
    };
    refused("from=noon", "from is neither").await;
    refused("to=2025-1-15", "to is neither").await;
    refused("since=yesterday", "since").await;
    refused("as_of=2025-01-15T23:00:00Z", "future").await;
    refused("cursor=abc", "cursor").await;
    refused("limit=0", "limit").await;
}

#[actix_web::test]
async fn corrections_as_csv_are_safe_in_a_spreadsheet_and_carry_the_cursor_in_a_header() {
    let server = restated().await;
    let answer = server.get(&format!("{CORRECTIONS}?limit=2")).header("accept", "text/csv").send().await;
    let answer = answer.expect("an answer");
    assert!(answer.headers()["content-type"].to_str().expect("text").starts_with("text/csv"));
    let cursor = answer.headers()["x-next-cursor"].to_str().expect("text").to_owned();
    let text = answer.text().await.expect("a body");
    let lines: Vec<&str> = text.split("\r\n").collect();
    assert!(
        lines[0].starts_with("campaign_id,hour_bucket,path,version,previous_path,previous_version,status,")
    );
    assert!(lines[1].starts_with("'=b,2025-01-15T12,lambda,2,lambda,1,reconciled,rerun,"), "{}", lines[1]);
    assert!(lines[1].ends_with(",-1,0,0,0,0,-1,0,-500000,USD"), "{}", lines[1]);
    let next = format!("{CORRECTIONS}?limit=2&cursor={cursor}");
    let answer = server.get(&next).header("accept", "text/csv").send().await.expect("an answer");
    assert!(!answer.headers().contains_key("x-next-cursor"));
    assert!(
        answer
            .text()
            .await
            .expect("a body")
            .contains("\r\nc,2025-01-15T12,lambda,1,,,reconciled,late_clicks,")
    );
}

async fn parquet(server: &Server, path: &str) -> RecordBatch {
    let answer = server.get(path).header("accept", PARQUET).send().await.expect("an answer");
    assert_eq!(answer.headers()["content-type"], PARQUET);
    let file = answer.bytes().await.expect("a body");
    let mut reader = ParquetRecordBatchReader::try_new(file, 1_000).expect("is Parquet");
    reader.next().expect("rows").expect("reads")
}

#[actix_web::test]
async fn bills_and_corrections_as_parquet_hold_the_rows_of_the_json() {
    let server = restated().await;
    let column = |batch: &RecordBatch, name: &str| batch.column_by_name(name).expect(name).clone();
    let batch = parquet(&server, CORRECTIONS).await;
    let ids = column(&batch, "campaign_id");
    assert_eq!(ids.as_string::<i32>().iter().flatten().collect::<Vec<_>>(), ["=b", "a", "c"]);
    let money = column(&batch, "delta_amount_micros");
    assert_eq!(money.as_primitive::<Int64Type>().values(), &[-500_000, 1_000_000, 500_000]);
    assert!(column(&batch, "previous_version").is_null(2));
    let moments = column(&batch, "reconciled_at");
    assert_eq!(moments.as_primitive::<TimestampMicrosecondType>().value(0), 1_736_953_200_000_000);

    let bill = parquet(&server, "/v1/billing?hour=2025-01-15T12").await;
    let billable = column(&bill, "billable");
    assert_eq!(billable.as_primitive::<Int64Type>().values(), &[4, 12, 1]);
    let reasons = column(&bill, "reason");
    assert!(reasons.as_string::<i32>().iter().all(|reason| reason == Some("close")));
}

#[actix_web::test]
async fn the_mode_is_set_from_an_hour_on_and_billed_hours_keep_theirs() {
    let server = restated().await;
    let (_, body) = ask(server.get("/v1/mode")).await;
    assert_eq!((&body["hour"], &body["path"]), (&json!("2025-01-15T16"), &json!("lambda")));
    assert_eq!(body["settings"], json!([]));
    assert_eq!(body["hours"][0]["hour"], "2025-01-15T12");

    // Without an hour: the present one, which is the next to close.
    let (status, set) = ask(server.put("/v1/mode", &json!({ "path": "kappa" }))).await;
    assert_eq!(status.as_u16(), 200);
    assert_eq!((&set["from"], &set["kept"]), (&json!("2025-01-15T16"), &json!([])));
    let earlier = json!({ "path": "kappa", "from": "2025-01-15T11" });
    let (_, set) = ask(server.put("/v1/mode", &earlier)).await;
    assert_eq!(set["kept"], json!(["2025-01-15T12"]), "it was billed by lambda before");
    assert!(set["detail"].as_str().expect("text").contains("keep"), "{set}");

    let (_, body) = ask(server.get("/v1/mode")).await;
    assert_eq!(body["path"], "kappa");
    let settings = body["settings"].as_array().expect("settings");
    assert_eq!((settings.len(), &settings[1]["from"]), (2, &json!("2025-01-15T11")));
    assert_eq!(settings[1]["recorded_at"], "2025-01-15T16:00:00.000Z");
    let mode = async |at: &str| server.store.mode(hour(at)).await.expect("reads").name();
    assert_eq!((mode("2025-01-15T12").await, mode("2025-01-15T11").await), ("lambda", "kappa"));

    problem(server.put("/v1/mode", &json!({ "path": "gamma" })), 422, "gamma").await;
    problem(server.put("/v1/mode", &json!({ "path": "kappa", "from": "noon" })), 422, "hour").await;
}

#[actix_web::test]
async fn a_shadow_run_answers_its_report_or_why_the_candidate_is_refused() {
    let server = Server::start().await;
    let run = |sql: &str| {
        server.post("/v1/shadow-runs", JSON, json!({ "hour": "2025-01-15T11", "sql": sql }).to_string())
    };
    let (status, report) = ask(run("SELECT 1")).await;
    assert_eq!((status.as_u16(), &report["equal"]), (200, &json!(true)));
    problem(run("SELECT 2"), 422, "column gross is missing").await;
}
