//! What somebody with a key, or with none, may try at the expense of the others.

use std::sync::Arc;

use actix_web::rt::spawn;
use arrow::array::{Array, ArrayRef, DictionaryArray, RecordBatch, StringArray, StringViewBuilder};
use arrow::buffer::Buffer;
use arrow::datatypes::Int32Type;
use arrow_ipc::writer::{DictionaryHandling, IpcWriteOptions, StreamWriter};
use async_trait::async_trait;
use bytes::Bytes;
use futures::future::select_all;
use serde_json::{Value, json};
use twice_api::ApiConfig;
use twice_api::ports::{ExplainControl, ExplainQuery, Explanation, PortError};
use twice_store::{KeyStore, Scope};

use crate::access::{click, key};
use crate::support::{JSON, Server, ask, problem};

const ARROW: &str = "application/vnd.apache.arrow.stream";
const CLIENTS: [&str; 3] = ["/v1/clicks", "/v1/verdicts", "/v1/imports"];

/// Every method and path that is no read and not for clients, as the server itself documents them.
async fn actions(server: &Server) -> Vec<(String, String)> {
    let document = ask(server.get("/openapi.json")).await.1;
    let paths = document["paths"].as_object().expect("paths").clone();
    let of_path = |(path, item): (String, Value)| {
        let methods: Vec<String> = item.as_object().expect("methods").keys().cloned().collect();
        methods.into_iter().map(move |method| (method.to_ascii_uppercase(), path.clone()))
    };
    let all = paths.into_iter().flat_map(of_path);
    all.filter(|(method, path)| method != "GET" && !CLIENTS.contains(&path.as_str()))
        .map(|(method, path)| (method, path.replace("{campaign_id}", "camp").replace("{key_id}", "id")))
        .collect()
}

/// Writes each letter of a path in turn as its percent code.
fn encoded(path: &str) -> Vec<String> {
    let letters = path.char_indices().filter(|(_, letter)| letter.is_ascii_alphanumeric());
    let encode = |(place, letter): (usize, char)| {
        format!("{}%{:02x}{}", &path[..place], u32::from(letter), &path[place + 1..])
    };
    letters.map(encode).collect()
}

#[actix_web::test]
async fn however_the_path_of_an_action_is_written_it_is_noted_before_and_after() {
    let server = Server::start_keyed().await;
    let admin = key(&server, &[Scope::Admin], &[]).await;
    let ingest = key(&server, &[Scope::Ingest], &[]).await;
    let actions = actions(&server).await;
    assert!(actions.len() >= 10, "{actions:?}");
    for (method, path) in actions {
        for (nth, written) in encoded(&path).into_iter().enumerate().step_by(3) {
            let request_id = format!("{method}{}-{nth}", path.replace('/', "."));
            let request = |key: &str| {
                let url = format!("{}{written}", server.url);
                let request = server.client.request(method.parse().expect("a method"), url).json(&json!({}));
                request.bearer_auth(key).header("x-request-id", request_id.as_str())
            };
            let answered = request(&admin).send().await.expect("an answer").status().as_u16();
            let rows = server.store.actions(2, None).await.expect("lists").rows;
            let seen: Vec<_> = rows.iter().map(|row| (row.request_id.as_str(), row.status)).collect();
            assert_eq!(
                seen,
                [(&*request_id, Some(answered)), (&*request_id, None)],
                "{method} {written} was answered {answered}"
            );
            assert!(rows[1].action.ends_with(&written), "{}", rows[1].action);
            problem(request(&ingest), 403, "scope admin").await;
        }
    }
    server.stop().await;
}

#[actix_web::test]
async fn a_path_nobody_has_is_closed_to_all_but_administrators_unless_it_is_read() {
    let server = Server::start_keyed().await;
    let (admin, query) = (key(&server, &[Scope::Admin], &[]).await, key(&server, &[Scope::Query], &[]).await);
    problem(server.post("/v1/nothing", JSON, "{}").bearer_auth(&query), 403, "scope admin").await;
    problem(server.post("/v1/nothing", JSON, "{}").bearer_auth(&admin), 404, "/v1/nothing").await;
    problem(server.get("/v1/nothing").bearer_auth(&query), 404, "/v1/nothing").await;
    server.stop().await;
}

#[actix_web::test]
async fn what_a_key_was_refused_is_noted_once_a_minute_with_a_count() {
    let server = Server::start_keyed().await;
    let query = key(&server, &[Scope::Query], &[]).await;
    let put = || server.put("/v1/mode", &json!({ "path": "kappa" })).bearer_auth(&query);
    for _ in 0..20 {
        assert_eq!(ask(put()).await.0, 403);
    }
    assert_eq!(server.store.actions(100, None).await.expect("lists").rows.len(), 1);
    server.advance_clock(60_000);
    assert_eq!(ask(put()).await.0, 403);
    let rows = server.store.actions(100, None).await.expect("lists").rows;
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[0].action, "PUT /v1/mode (and 19 refused before, not noted)");
    server.stop().await;
}

#[actix_web::test]
async fn the_log_of_actions_says_what_was_changed() {
    let server = Server::start_keyed().await;
    let admin = key(&server, &[Scope::Admin], &[]).await;
    let campaign = json!({ "currency": "USD", "cpc_micros": 500_000, "daily_budget_micros": 7 });
    let range = json!({ "from": "2025-01-15T00", "to": "2025-01-15T02" });
    let calls = [
        (server.put("/v1/mode", &json!({ "path": "kappa" })), "PUT /v1/mode: kappa from 2025-01-15T12 on"),
        (
            server.put("/v1/campaigns/c", &campaign),
            "PUT /v1/campaigns/c: c at 500000 USD micros, daily budget 7",
        ),
        (
            server.post("/v1/replays?wait=false", JSON, range.to_string()),
            "POST /v1/replays?wait=false: 2025-01-15T00 to 2025-01-15T02",
        ),
        (
            server.post("/v1/retention", JSON, json!({ "dry_run": true }).to_string()),
            "POST /v1/retention: everything expired, dry run",
        ),
    ];
    for (request, expected) in calls {
        let (status, answer) = ask(request.bearer_auth(&admin)).await;
        assert!(status.is_success(), "{answer}");
        assert_eq!(server.store.actions(1, None).await.expect("lists").rows[0].action, expected);
    }
    server.stop().await;
}

#[actix_web::test]
async fn a_key_of_single_campaigns_announces_no_import() {
    let server = Server::start_keyed().await;
    let announce = json!({ "hours": ["2025-01-15T10"], "sha256": "ab".repeat(32) });
    for (campaigns, expected) in [(&["a"][..], 403), (&[], 200)] {
        let sender = key(&server, &[Scope::Ingest], campaigns).await;
        let request = server.post("/v1/imports", JSON, announce.to_string()).bearer_auth(sender);
        assert_eq!(ask(request).await.0.as_u16(), expected, "{campaigns:?}");
    }
    server.stop().await;
}

#[actix_web::test]
async fn what_a_key_sent_before_it_was_revoked_is_not_stored_when_its_body_ends_after() {
    let server = Server::start_keyed().await;
    let sender = key(&server, &[Scope::Ingest], &[]).await;
    let body = click("c").to_string();
    let (first, rest) = body.split_at(10);
    let (more, chunks) = futures::channel::mpsc::unbounded::<Result<Bytes, std::io::Error>>();
    more.unbounded_send(Ok(Bytes::copy_from_slice(first.as_bytes()))).expect("open");
    let request = server.post("/v1/clicks", JSON, reqwest::Body::wrap_stream(chunks)).bearer_auth(&sender);
    let answer = spawn(problem(request, 401, "not valid any more"));
    let known = || server.keys.keys().into_iter().next().expect("a key");
    while known().last_used_at.is_none() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    server.keys.revoke(&known().key_id).await.expect("revokes");
    more.unbounded_send(Ok(Bytes::copy_from_slice(rest.as_bytes()))).expect("open");
    drop(more);
    answer.await.expect("answered");
    assert_eq!(server.clicks().await, []);
    server.stop().await;
}

/// Explains for ever.
struct Endless;

#[async_trait]
impl ExplainControl for Endless {
    async fn explain(&self, _: ExplainQuery) -> Result<Explanation, PortError> {
        std::future::pending().await
    }
}

#[actix_web::test]
async fn more_explanations_than_there_are_places_are_refused_and_start_nothing() {
    let server = Server::start_with(ApiConfig::default(), |deps| deps.explain = Arc::new(Endless)).await;
    let explain = || Box::pin(server.get("/v1/explain?hour=2025-01-15T10&campaign=c").send());
    let (answer, _, waiting) = select_all([explain(), explain(), explain()]).await;
    assert_eq!(answer.expect("an answer").status(), 503);
    assert_eq!(waiting.len(), 2);
    drop(waiting);
    server.stop().await;
}

#[actix_web::test]
async fn strangers_learn_that_a_node_is_not_ready_and_not_why() {
    let server = Server::start_keyed().await;
    let query = key(&server, &[Scope::Query], &[]).await;
    let reason = |answer: Value| answer["reasons"][0].as_str().expect("a reason").to_owned();
    assert_eq!(
        reason(ask(server.get("/readyz").bearer_auth(&query)).await.1),
        "the log is recovering: /data/log"
    );
    assert_eq!(reason(ask(server.get("/readyz")).await.1), "the log is recovering");
    server.stop().await;
}

#[actix_web::test]
async fn memory_of_bodies_is_shared_and_free_again_when_a_request_ends() {
    let config =
        ApiConfig { body_bytes_max: 1 << 20, bodies_bytes_max: (1 << 20) + 1_024, ..ApiConfig::default() };
    let server = Server::start_with(config, |_| {}).await;
    let probe = || {
        let lines = format!("{}\n", click("c")).repeat(500);
        server.post("/v1/clicks", crate::support::NDJSON, lines)
    };
    let (more, chunks) = futures::channel::mpsc::unbounded::<Result<Bytes, std::io::Error>>();
    more.unbounded_send(Ok(Bytes::from(vec![b' '; 1_000 << 10]))).expect("open");
    let request = server.post("/v1/clicks", JSON, reqwest::Body::wrap_stream(chunks));
    let holding = spawn(async move { request.send().await.expect("an answer").status().as_u16() });
    // Time to come in: if a probe had the memory first, the large body were the one to be refused.
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let mut probes = 0;
    while ask(probe()).await.0 != 503 {
        probes += 1;
        assert!(probes < 200 && !holding.is_finished(), "it has not ended, and leaves no room for others");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    more.unbounded_send(Ok(Bytes::from(click("c").to_string()))).expect("open");
    drop(more);
    assert_eq!(holding.await.expect("answered"), 202);
    assert_eq!(ask(probe()).await.0, 202);
    server.stop().await;
}

fn stream(batches: &[RecordBatch], options: IpcWriteOptions) -> Vec<u8> {
    let mut writer = StreamWriter::try_new_with_options(Vec::new(), &batches[0].schema(), options);
    let writer = writer.as_mut().expect("starts");
    for batch in batches {
        writer.write(batch).expect("writes");
    }
    writer.finish().expect("ends");
    writer.get_ref().clone()
}

#[actix_web::test]
async fn arrow_bodies_that_cost_far_more_than_their_size_are_refused_before_they_are_read() {
    let server = Server::start().await;
    let send = |body: Vec<u8>| server.post("/v1/clicks", ARROW, body);
    let column = |column: ArrayRef| RecordBatch::try_from_iter([("campaign_id", column)]).expect("a batch");

    let of = |values: &[&str]| {
        let values = Arc::new(StringArray::from(values.to_vec()));
        let keys = (0..values.len() as i32).collect::<arrow::array::Int32Array>();
        column(Arc::new(DictionaryArray::<Int32Type>::new(keys, values)))
    };
    let batches = [of(&["a"]), of(&["a", "b"])];
    let deltas = IpcWriteOptions::default().with_dictionary_handling(DictionaryHandling::Delta);
    problem(send(stream(&batches, deltas)), 415, "deltas").await;
    let (status, answer) = ask(send(stream(&batches, IpcWriteOptions::default()))).await;
    assert_eq!((status.as_u16(), &answer["accepted"]), (202, &json!(3)), "whole dictionaries: {answer}");

    let views = |rows: u32, block_bytes: u32, shown: u32| {
        let mut views = StringViewBuilder::new();
        let block = views.append_block(Buffer::from(vec![b'a'; block_bytes as usize]));
        for _ in 0..rows {
            views.try_append_view(block, 0, shown).expect("fits");
        }
        stream(&[column(Arc::new(views.finish()))], IpcWriteOptions::default())
    };
    problem(send(views(1_000, 65_536, 65_536)), 400, "far more text").await;
    let (status, answer) = ask(send(views(1_000, 64, 64))).await;
    assert_eq!((status.as_u16(), &answer["accepted"]), (202, &json!(1_000)), "a text shared: {answer}");
    server.stop().await;
}

#[actix_web::test]
async fn a_percent_sign_before_what_is_no_digit_stands_for_itself() {
    let server = Server::start().await;
    let event = |id: &str| {
        let request = server.post("/v1/clicks", JSON, r#"{"campaign_id":"c"}"#);
        let headers =
            [("ce-specversion", "1.0"), ("ce-type", "com.count-twice.click.v1"), ("ce-source", "s")];
        headers
            .into_iter()
            .fold(request.header("ce-id", id), |request, (name, value)| request.header(name, value))
    };
    let id = async |id: &str| ask(event(id)).await.1["click_ids"]["0"].clone();
    let (signed, control) = (id("%+f").await, id("%0f").await);
    assert!(signed.is_string() && control.is_string(), "{signed} {control}");
    assert_ne!(signed, control, "a plus sign is no digit");
    server.stop().await;
}
