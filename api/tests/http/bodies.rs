//! Clicks as Arrow IPC streams and as CloudEvents: the same door, the same answer, nothing of a broken body stored.

use std::sync::Arc;
use std::time::Instant;

use arrow::array::{
    ArrayRef, DictionaryArray, FixedSizeBinaryArray, Int64Array, LargeStringArray, NullArray, RecordBatch,
    StringArray, StringViewArray, TimestampMicrosecondArray, TimestampMillisecondArray, UInt8Array,
};
use arrow::datatypes::Int8Type;
use arrow_ipc::writer::StreamWriter;
use reqwest::RequestBuilder;
use serde_json::{Value, json};
use twice_api::ApiConfig;
use twice_log::{Click, ClickId};

use crate::support::{JSON, NDJSON, Server, ask, problem, time};

const ARROW: &str = "application/vnd.apache.arrow.stream";
const EVENT: &str = "application/cloudevents+json";
const EVENTS: &str = "application/cloudevents-batch+json";
const ID: &str = "0194f3a0-1111-7222-8333-444455556666";
const NOON: &str = "2025-01-15T12:00:00.123Z";

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter(columns).expect("a batch")
}

fn stream(batches: &[RecordBatch]) -> Vec<u8> {
    let mut writer = StreamWriter::try_new(Vec::new(), &batches[0].schema()).expect("starts");
    for batch in batches {
        writer.write(batch).expect("writes");
    }
    writer.into_inner().expect("ends")
}

fn texts(values: &[Option<&str>]) -> ArrayRef {
    Arc::new(StringArray::from(values.to_vec()))
}

fn sixteen(ids: &[ClickId]) -> FixedSizeBinaryArray {
    FixedSizeBinaryArray::try_from_iter(ids.iter().map(ClickId::as_bytes)).expect("16 bytes each")
}

fn id() -> ClickId {
    ClickId(ID.parse().expect("a UUID"))
}

async fn stored(server: &Server, request: RequestBuilder) -> (Value, Vec<Click>) {
    let before = server.clicks().await.len();
    let (status, answer) = ask(request).await;
    assert!(status.as_u16() == 202 || status.as_u16() == 422, "{status} {answer}");
    let mut clicks = server.clicks().await;
    assert_eq!(clicks.len() - before, answer["accepted"], "{answer}");
    clicks.sort_by_key(|click| click.event_time);
    (answer, clicks)
}

#[actix_web::test]
async fn an_arrow_stream_stores_what_the_same_clicks_as_lines_do() {
    let (lines, arrow) = (Server::start().await, Server::start().await);
    let line = json!({"click_id": ID, "campaign_id": "camp_1", "ad_id": "ad_9", "user_id": "u_7", "publisher_id": "p",
        "event_time": NOON, "schema_version": 2});
    let (_, of_lines) = stored(&lines, lines.post("/v1/clicks", NDJSON, line.to_string())).await;
    let ms = time(NOON).epoch_ms();
    let columns = vec![
        ("campaign_id", texts(&[Some("camp_1")])),
        ("click_id", Arc::new(sixteen(&[id()])) as ArrayRef),
        ("ad_id", Arc::new(LargeStringArray::from(vec!["ad_9"]))),
        ("user_id", Arc::new(StringViewArray::from(vec!["u_7"]))),
        ("publisher_id", Arc::new(DictionaryArray::<Int8Type>::from_iter(["p"]))),
        ("event_time", Arc::new(TimestampMillisecondArray::from(vec![ms]).with_timezone("Europe/Berlin"))),
        ("schema_version", Arc::new(UInt8Array::from(vec![2]))),
    ];
    let (answer, of_arrow) = stored(&arrow, arrow.post("/v1/clicks", ARROW, stream(&[batch(columns)]))).await;
    assert_eq!(answer["click_ids"], json!({}), "16 bytes are an id of its own");
    let shape = |clicks: &[Click]| {
        let click = &clicks[0];
        (
            click.click_id,
            click.campaign_id.clone(),
            click.ad_id.clone(),
            click.publisher_id.clone(),
            click.event_time,
        )
    };
    assert_eq!(shape(&of_arrow), shape(&of_lines));
    assert_eq!((of_lines.len(), of_arrow.len()), (1, 1));
    assert!(!of_arrow[0].user_id.is_empty() && of_arrow[0].user_id.as_str() != "u_7", "a pseudonym");
    lines.stop().await;
    arrow.stop().await;
}

#[actix_web::test]
async fn bad_rows_of_several_batches_are_refused_by_their_index_in_the_stream() {
    let server = Server::start().await;
    let campaigns = [texts(&[Some("camp_1"), None]), texts(&[Some("camp_1"), Some("camp_1"), Some("")])];
    let ids = [texts(&[None, Some(ID)]), texts(&[Some("7"), Some(ID), None])];
    let us = time(NOON).epoch_ms() * 1_000;
    let times = [vec![us + 999, us], vec![us, us - 4_000_000_000_000, us]];
    let batches: Vec<RecordBatch> = (0..2)
        .map(|nth| {
            batch(vec![
                ("event_time", Arc::new(TimestampMicrosecondArray::from(times[nth].clone())) as ArrayRef),
                ("click_id", ids[nth].clone()),
                ("campaign_id", campaigns[nth].clone()),
                ("ad_id", Arc::new(NullArray::new(times[nth].len()))),
            ])
        })
        .collect();
    let (answer, clicks) = stored(&server, server.post("/v1/clicks", ARROW, stream(&batches))).await;
    let codes: Vec<_> = answer["rejected"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|row| (row["index"].as_u64().expect("a number"), row["code"].as_str().expect("text").to_owned()))
        .collect();
    let expected = [(1, "malformed"), (2, "click_id_not_uuid"), (3, "too_old"), (4, "invalid_id")];
    assert_eq!(codes, expected.map(|(index, code)| (index, code.to_owned())));
    assert_eq!(clicks[0].event_time, time(NOON), "microseconds are floored");
    assert_eq!(answer["click_ids"]["0"], clicks[0].click_id.to_string());
    server.stop().await;
}

#[actix_web::test]
async fn arrow_ids_are_derived_as_those_of_lines_and_packed_streams_unpack() {
    let server = Server::start().await;
    let body = stream(&[batch(vec![("campaign_id", texts(&[Some("c"), Some("c")]))])]);
    let packed = zstd::encode_all(&body[..], 3).expect("packs");
    let keyed = |request: RequestBuilder| request.header("idempotency-key", "k1");
    let (first, _) = stored(&server, keyed(server.post("/v1/clicks", ARROW, body))).await;
    let again = keyed(server.post("/v1/clicks", ARROW, packed)).header("content-encoding", "zstd");
    assert_eq!(stored(&server, again).await.0["click_ids"], first["click_ids"]);
    let lines = "{\"campaign_id\":\"c\"}\n{\"campaign_id\":\"c\"}";
    let (of_lines, _) = stored(&server, keyed(server.post("/v1/clicks", NDJSON, lines))).await;
    assert_eq!(of_lines["click_ids"], first["click_ids"]);
    server.stop().await;
}

#[actix_web::test]
async fn arrow_streams_that_make_no_clicks_are_refused_as_a_whole() {
    let config = ApiConfig { body_bytes_max: 1 << 20, batch_records_max: 10, ..ApiConfig::default() };
    let server = Server::start_with(config, |_| {}).await;
    let post = |body: Vec<u8>| server.post("/v1/clicks", ARROW, body);
    let one = || texts(&[Some("c")]);
    let good = stream(&[batch(vec![("campaign_id", one())])]);
    problem(post(stream(&[batch(vec![("campaign_id", one()), ("campagin", one())])])), 422, "campagin").await;
    problem(post(stream(&[batch(vec![("ad_id", one())])])), 422, "campaign_id is missing").await;
    let number = Arc::new(Int64Array::from(vec![1])) as ArrayRef;
    problem(post(stream(&[batch(vec![("campaign_id", number)])])), 422, "campaign_id cannot be").await;
    let eleven = batch(vec![("campaign_id", texts(&[Some("c"); 11]))]);
    problem(post(stream(&[eleven])), 413, "10 records").await;
    let six = batch(vec![("campaign_id", texts(&[Some("c"); 6]))]);
    problem(post(stream(&[six.clone(), six])), 413, "10 records").await;
    problem(post(stream(&[batch(vec![("campaign_id", texts(&[]))])])), 422, "no rows").await;
    problem(post(Vec::new()), 400, "no schema").await;
    problem(post(b"{\"campaign_id\":\"c\"}".to_vec()), 400, "Arrow").await;
    problem(post([good.as_slice(), b"more"].concat()), 400, "follow its end").await;
    problem(server.post("/v1/verdicts", ARROW, good.clone()), 415, "application/x-ndjson").await;
    for cut in 1..good.len() - 8 {
        let answer = post(good[..cut].to_vec()).send().await.expect("an answer");
        assert!([400, 422].contains(&answer.status().as_u16()), "cut at {cut}: {}", answer.status());
    }
    assert_eq!(server.clicks().await, []);
    server.stop().await;
}

/// No byte of a stream, set to anything, costs more than an answer 4xx or a click that is not the one meant.
#[actix_web::test]
async fn a_stream_with_any_one_byte_wrong_is_answered() {
    let server = Server::start().await;
    let dictionary = Arc::new(DictionaryArray::<Int8Type>::from_iter(["p", "q"])) as ArrayRef;
    let view = Arc::new(StringViewArray::from(vec!["a value too long to be held inline", "u"]));
    let good = stream(&[batch(vec![
        ("campaign_id", texts(&[Some("c"), Some("d")])),
        ("publisher_id", dictionary),
        ("user_id", view),
    ])]);
    for (place, byte) in good.iter().enumerate() {
        for wrong in [0, 1, 0x7F, 0x80, 0xFF, byte ^ 4] {
            let mut body = good.clone();
            body[place] = wrong;
            let answer = server.post("/v1/clicks", ARROW, body).send().await.expect("an answer");
            let status = answer.status().as_u16();
            assert!([202, 400, 413, 415, 422].contains(&status), "byte {place} set to {wrong}: {status}");
        }
    }
    server.stop().await;
}

fn event(more: Value) -> Value {
    let mut event = json!({"specversion": "1.0", "id": "order-7", "source": "/shop:1", "time": NOON,
        "type": "com.count-twice.click.v2", "data": {"campaign_id": "camp_1"}});
    for (name, value) in more.as_object().expect("an object") {
        event[name.as_str()] = value.clone();
    }
    event
}

#[actix_web::test]
async fn an_event_gives_its_click_time_and_identity_where_the_click_has_none() {
    let server = Server::start().await;
    let (answer, clicks) =
        stored(&server, server.post("/v1/clicks", EVENT, event(json!({})).to_string())).await;
    let derived = ClickId::derived("event::7:/shop:1:order-7");
    assert_eq!((clicks[0].click_id, clicks[0].event_time), (derived, time(NOON)));
    assert_eq!(answer["click_ids"]["0"], derived.to_string());
    let data = json!({"campaign_id": "camp_1", "event_time": "2025-01-15T12:10:00Z"});
    let own =
        event(json!({"id": ID, "data": data, "type": "com.count-twice.click.v1", "traceparent": "00-1"}));
    let (_, clicks) = stored(&server, server.post("/v1/clicks", EVENT, own.to_string())).await;
    assert_eq!((clicks[1].click_id, clicks[1].event_time), (id(), time("2025-01-15T12:10:00Z")));
    assert_eq!(clicks[1].schema_version, 1);
    let named = event(
        json!({"data": {"campaign_id": "camp_1", "click_id": ID, "event_time": 1_736_943_000_500_i64}}),
    );
    let (answer, clicks) = stored(&server, server.post("/v1/clicks", EVENT, named.to_string())).await;
    assert_eq!((clicks[2].click_id, &answer["click_ids"]), (id(), &json!({})));
    server.stop().await;
}

#[actix_web::test]
async fn an_event_delivered_twice_is_one_identity_and_another_source_is_another() {
    let server = Server::start().await;
    let body =
        json!([event(json!({})), event(json!({})), event(json!({"source": "/shop", "id": "1:order-7"}))]);
    let (answer, _) = stored(&server, server.post("/v1/clicks", EVENTS, body.to_string())).await;
    assert_eq!(answer["click_ids"]["0"], answer["click_ids"]["1"]);
    assert_ne!(answer["click_ids"]["0"], answer["click_ids"]["2"]);
    server.stop().await;
}

#[actix_web::test]
async fn bad_events_of_a_batch_are_refused_by_index_and_the_rest_counts() {
    let server = Server::start().await;
    let cases = [
        (json!({}), None),
        (json!({"specversion": "0.3"}), Some(("malformed", "specversion"))),
        (json!({"id": ""}), Some(("malformed", "empty"))),
        (json!({"source": null}), Some(("malformed", "null"))),
        (json!({"type": "com.example.sale"}), Some(("malformed", "type of the event"))),
        (json!({"type": "com.count-twice.click.v3"}), Some(("schema_version", "v1 and v2"))),
        (
            json!({"type": "com.count-twice.click.v1", "data": {"campaign_id": "c", "schema_version": 2}}),
            Some(("schema_version", "schema_version of the data")),
        ),
        (json!({"data": null}), Some(("malformed", "no data"))),
        (json!({"data": "text"}), Some(("malformed", "invalid type"))),
        (json!({"datacontenttype": "text/plain"}), Some(("malformed", "datacontenttype"))),
        (json!({"time": "noon"}), Some(("invalid_time", "event_time"))),
        (json!({"data": null, "data_base64": "!"}), Some(("malformed", "not base64"))),
        (json!({"data_base64": "e30="}), Some(("malformed", "both"))),
        (json!({"data": null, "data_base64": "eyJjYW1wYWlnbl9pZCI6ImMifQ=="}), None),
    ];
    let body: Vec<Value> = cases.iter().map(|(more, _)| event(more.clone())).collect();
    let (answer, _) = stored(&server, server.post("/v1/clicks", EVENTS, json!(body).to_string())).await;
    assert_eq!(answer["accepted"], 2, "{answer}");
    let mut rejected = answer["rejected"].as_array().expect("a list").iter();
    for (index, (_, refusal)) in cases.iter().enumerate() {
        let Some((code, mentions)) = refusal else { continue };
        let row = rejected.next().expect("one more");
        assert_eq!((row["index"].as_u64(), row["code"].as_str()), (Some(index as u64), Some(*code)), "{row}");
        assert!(row["detail"].as_str().expect("text").contains(mentions), "{row}");
    }
    let post = |content_type, body: &'static str| server.post("/v1/clicks", content_type, body);
    problem(post(EVENT, "[]"), 400, "cloudevents-batch").await;
    problem(post(EVENTS, "{}"), 400, "cloudevents-batch").await;
    problem(post(EVENTS, "[]"), 422, "empty").await;
    problem(post("application/cloudevents", "{}"), 415, "application/cloudevents+json").await;
    server.stop().await;
}

#[actix_web::test]
async fn an_event_may_stand_in_the_headers() {
    let server = Server::start().await;
    let click = r#"{"campaign_id":"camp_1"}"#;
    let with = |request: RequestBuilder, headers: &[(&'static str, &'static str)]| {
        headers.iter().fold(request, |request, (name, value)| request.header(*name, *value))
    };
    let headers = [
        ("ce-specversion", "1.0"),
        ("ce-id", "order%2D7"),
        ("ce-source", "/shop:1"),
        ("ce-type", "com.count-twice.click.v2"),
        ("ce-time", NOON),
    ];
    let (_, clicks) = stored(&server, with(server.post("/v1/clicks", JSON, click), &headers)).await;
    let derived = ClickId::derived("event::7:/shop:1:order-7");
    assert_eq!((clicks[0].click_id, clicks[0].event_time), (derived, time(NOON)));
    problem(with(server.post("/v1/clicks", JSON, click), &headers[..2]), 400, "ce-source").await;
    problem(with(server.post("/v1/clicks", NDJSON, click), &headers), 415, "one click").await;
    problem(with(server.post("/v1/clicks", JSON, "[]"), &headers), 400, "no array").await;
    let (status, _) = ask(with(server.post("/v1/clicks", JSON, "{}"), &headers)).await;
    assert_eq!(status.as_u16(), 422);
    server.stop().await;
}

/// Says what a click costs as a line and as a row; asserts only what does not depend on the machine's mood.
#[actix_web::test]
async fn a_row_of_arrow_is_smaller_than_a_line_and_costs_less() {
    const CLICKS: u32 = 20_000;
    let server = Server::start().await;
    let ms = time(NOON).epoch_ms();
    let ids: Vec<ClickId> = (0..CLICKS).map(|nth| ClickId::derived(&nth.to_string())).collect();
    let lines: String = (ids.iter().zip(0..))
        .map(|(id, nth)| {
            format!(
                "{{\"click_id\":\"{id}\",\"campaign_id\":\"camp_{}\",\"ad_id\":\"ad_{}\",\"user_id\":\"u_{nth}\",\
                 \"publisher_id\":\"pub_{}\",\"event_time\":{}}}\n",
                nth % 100, nth % 7, nth % 50, ms + nth
            )
        })
        .collect();
    let column = |name: &str, of: i64| -> ArrayRef {
        Arc::new(
            (0..i64::from(CLICKS)).map(|nth| Some(format!("{name}_{}", nth % of))).collect::<StringArray>(),
        )
    };
    let rows = stream(&[batch(vec![
        ("click_id", Arc::new(sixteen(&ids))),
        ("campaign_id", column("camp", 100)),
        ("ad_id", column("ad", 7)),
        ("user_id", column("u", i64::MAX)),
        ("publisher_id", column("pub", 50)),
        (
            "event_time",
            Arc::new((0..i64::from(CLICKS)).map(|nth| Some(ms + nth)).collect::<TimestampMillisecondArray>()),
        ),
    ])]);
    let sizes = [lines.len(), rows.len()];
    let mut seconds = [0.0, 0.0];
    for _ in 0..3 {
        for (nth, (content_type, body)) in
            [(NDJSON, lines.clone().into_bytes()), (ARROW, rows.clone())].into_iter().enumerate()
        {
            let begun = Instant::now();
            let (status, answer) = ask(server.post("/v1/clicks", content_type, body)).await;
            assert_eq!((status.as_u16(), &answer["accepted"]), (202, &json!(CLICKS)));
            seconds[nth] += begun.elapsed().as_secs_f64() / 3.0;
        }
    }
    for (nth, name) in ["lines", "arrow"].iter().enumerate() {
        let (bytes, us) = (sizes[nth] as f64 / f64::from(CLICKS), seconds[nth] * 1e6 / f64::from(CLICKS));
        eprintln!("{name}: {bytes:.1} bytes and {us:.2} us a click, to the acknowledgement");
    }
    eprintln!(
        "arrow / lines: {:.2} of the bytes, {:.2} of the time",
        sizes[1] as f64 / sizes[0] as f64,
        seconds[1] / seconds[0]
    );
    assert!(sizes[1] * 3 < sizes[0] * 2, "{sizes:?}");
    server.stop().await;
}
