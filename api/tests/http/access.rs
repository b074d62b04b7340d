//! Keys and tenants (G-8): nobody reads or writes what their key does not allow.

use reqwest::{RequestBuilder, StatusCode};
use serde_json::{Value, json};
use twice_api::{Access, KeyRing, KeyText, NewKey};
use twice_log::archive::BillingStatus::Reconciled;
use twice_store::{CampaignSet, KeyStore, Scope, Tier};

use crate::query::{bill, counts};
use crate::support::{JSON, NDJSON, Server, ask, campaign, problem, time};

const INVALID: &str = "the API key is not valid";

/// Makes a key through the ring, as the API does.
pub async fn key(server: &Server, scopes: &[Scope], campaigns: &[&str]) -> String {
    let campaigns = match campaigns {
        [] => CampaignSet::All,
        some => CampaignSet::Only(some.iter().map(|name| campaign(name)).collect()),
    };
    let scopes = scopes.iter().copied().collect();
    let new = NewKey { name: "test".into(), scopes, campaigns, tier: Tier::Standard, expires_at: None };
    server.keys.create(new).await.expect("creates").1.to_string()
}

async fn status(request: RequestBuilder) -> u16 {
    request.send().await.expect("an answer").status().as_u16()
}

fn names(body: &Value) -> Vec<&str> {
    let rows = body["rows"].as_array().expect("rows");
    rows.iter().map(|row| row["campaign_id"].as_str().expect("an id")).collect()
}

pub fn click(of: &str) -> Value {
    json!({ "campaign_id": of, "event_time": "2025-01-15T12:29:00Z" })
}

#[actix_web::test]
async fn without_a_valid_key_only_open_paths_answer() {
    let server = Server::start_keyed().await;
    for (path, expected) in [("/", 200), ("/livez", 200), ("/readyz", 503), ("/openapi.json", 200)] {
        assert_eq!(status(server.get(path)).await, expected, "{path}");
        let wrong = server.get(path).bearer_auth("twice_1_2");
        assert_eq!(status(wrong).await, expected, "{path}: a wrong key closes no open path");
    }
    for path in
        ["/metrics", "/v1/campaigns", "/v1/billing?hour=2025-01-15T12", "/v1/nothing", "/livez/", "//livez"]
    {
        let answer = server.get(path).send().await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{path}");
        assert_eq!(answer.headers()["www-authenticate"], "Bearer");
        problem(server.get(path), 401, "Authorization: Bearer").await;
    }
    server.stop().await;
}

#[actix_web::test]
async fn forged_expired_and_revoked_keys_are_refused_in_one_and_the_same_words() {
    let server = Server::start_keyed().await;
    let good = key(&server, &[Scope::Query], &[]).await;
    let id = KeyText::read(&good).expect("a key").key_id().to_owned();
    let ask_with = |key: String| server.get("/v1/campaigns").bearer_auth(key);
    assert_eq!(status(ask_with(good.clone())).await, 200);
    let forged = format!("twice_{id}_{}", "0".repeat(64));
    let unknown = KeyText::draw().expect("draws").to_string();
    let almost = format!("{}{}", &good[..good.len() - 1], if good.ends_with('0') { '1' } else { '0' });
    for wrong in [forged, unknown, almost, good.to_uppercase(), "x".into(), String::new(), "ü".into()] {
        problem(ask_with(wrong), 401, INVALID).await;
    }
    for header in [good.clone(), format!("Basic {good}"), "Bearer".to_owned()] {
        problem(server.get("/v1/campaigns").header("authorization", header), 401, INVALID).await;
    }
    let twice = ask_with(good.clone()).header("authorization", "Bearer twice_0_0");
    problem(twice, 401, INVALID).await;
    assert_eq!(
        status(server.get("/v1/campaigns").header("authorization", format!("bEaReR {good}"))).await,
        200
    );

    let expires_at = Some(time("2025-01-15T12:31:00Z"));
    let new = NewKey { expires_at, ..NewKey::admin("short") };
    let short = server.keys.create(new).await.expect("creates").1.to_string();
    assert_eq!(status(ask_with(short.clone())).await, 200);
    server.set_clock("2025-01-15T12:31:00Z");
    problem(ask_with(short), 401, INVALID).await;

    server.keys.revoke(&id).await.expect("revokes");
    problem(ask_with(good), 401, INVALID).await;
    server.stop().await;
}

#[actix_web::test]
async fn a_key_revoked_through_the_api_is_refused_at_once_and_stays_so_after_a_restart() {
    let server = Server::start_keyed().await;
    let admin = key(&server, &[Scope::Admin], &[]).await;
    let body = json!({ "name": "loader", "scopes": ["ingest"], "campaigns": ["c1"], "tier": "premium" });
    let (created, answer) = ask(server.post("/v1/keys", JSON, body.to_string()).bearer_auth(&admin)).await;
    assert_eq!(created, StatusCode::CREATED, "{answer}");
    let (text, id) = (answer["key"].as_str().expect("a key"), answer["key_id"].as_str().expect("an id"));
    let send = || server.post("/v1/clicks", JSON, click("c1").to_string()).bearer_auth(text);
    assert_eq!(status(send()).await, 202);
    let listed = ask(server.get("/v1/keys").bearer_auth(&admin)).await.1;
    assert_eq!(listed["rows"][1]["last_used_at"], "2025-01-15T12:30:00.000Z");
    assert!(!listed.to_string().contains(&text[24..]), "no list shows a secret");

    let revoke = || server.client.delete(format!("{}/v1/keys/{id}", server.url)).bearer_auth(&admin);
    let revoked = ask(revoke()).await;
    assert_eq!((revoked.0, revoked.1["revoked_at"].is_string()), (StatusCode::OK, true));
    for _replay in 0..3 {
        problem(send(), 401, INVALID).await;
    }
    server.keys.reload().await.expect("reloads");
    problem(send(), 401, INVALID).await;
    assert_eq!(ask(revoke()).await.1["revoked_at"], revoked.1["revoked_at"]);
    let unknown = server.client.delete(format!("{}/v1/keys/nobody", server.url)).bearer_auth(&admin);
    problem(unknown, 404, "nobody").await;

    // Another process over the same store: what is revoked there is refused here after a reload.
    let other = KeyRing::open(std::sync::Arc::new(server.store.clone()), server.clock.clone(), Access::Keyed);
    let other = other.await.expect("opens");
    let admin_id = KeyText::read(&admin).expect("a key").key_id().to_owned();
    other.revoke(&admin_id).await.expect("revokes");
    server.keys.reload().await.expect("reloads");
    problem(server.get("/v1/keys").bearer_auth(&admin), 401, INVALID).await;
    server.stop().await;
}

#[actix_web::test]
async fn a_scope_allows_its_own_and_nothing_else() {
    let server = Server::start_keyed().await;
    let ingest = key(&server, &[Scope::Ingest], &[]).await;
    let query = key(&server, &[Scope::Query], &[]).await;
    let verdicts = key(&server, &[Scope::Verdicts], &[]).await;
    let admin = key(&server, &[Scope::Admin], &[]).await;
    let request = |method: &str, path: &str, key: &str| {
        let method = method.parse().expect("a method");
        let body = if path == "/v1/clicks" { click("a") } else { json!({}) };
        server.client.request(method, format!("{}{path}", server.url)).json(&body).bearer_auth(key)
    };
    let calls = [
        ("POST", "/v1/clicks", "ingest"),
        ("POST", "/v1/imports", "ingest"),
        ("POST", "/v1/verdicts", "verdicts"),
        ("GET", "/v1/campaigns", "query"),
        ("GET", "/v1/campaigns/a", "query"),
        ("GET", "/v1/campaigns/a/clicks", "query"),
        ("GET", "/v1/campaigns/a/ads/b/clicks", "query"),
        ("GET", "/v1/billing?hour=2025-01-15T11", "query"),
        ("GET", "/v1/billing/corrections", "query"),
        ("GET", "/v1/divergence?hour=2025-01-15T11", "query"),
        ("GET", "/v1/explain?hour=2025-01-15T11&campaign=a", "query"),
        ("GET", "/v1/reconciliations", "query"),
        ("GET", "/v1/campaigns/a/budget", "query"),
        ("POST", "/v1/campaigns", "admin"),
        ("PUT", "/v1/campaigns/a", "admin"),
        ("POST", "/v1/reconciliations", "admin"),
        ("POST", "/v1/replays", "admin"),
        ("POST", "/v1/audits", "admin"),
        ("GET", "/v1/comparisons", "admin"),
        ("GET", "/v1/comparisons/x", "admin"),
        ("POST", "/v1/comparisons", "admin"),
        ("GET", "/v1/mode", "admin"),
        ("PUT", "/v1/mode", "admin"),
        ("POST", "/v1/shadow-runs", "admin"),
        ("GET", "/v1/stream", "admin"),
        ("GET", "/metrics", "admin"),
        ("GET", "/v1/keys", "admin"),
        ("POST", "/v1/keys", "admin"),
        ("DELETE", "/v1/keys/x", "admin"),
        ("GET", "/v1/admin-actions", "admin"),
        ("GET", "/v1/rate-limits", "admin"),
        ("PUT", "/v1/rate-limits", "admin"),
        ("POST", "/v1/rate-limits/revert", "admin"),
        ("POST", "/v1/retention", "admin"),
    ];
    for (method, path, allowed) in calls {
        for (scope, key) in
            [("ingest", &ingest), ("query", &query), ("verdicts", &verdicts), ("admin", &admin)]
        {
            let refused = [401, 403].contains(&status(request(method, path, key)).await);
            assert_eq!(!refused, scope == allowed || scope == "admin", "{method} {path} with {scope}");
        }
    }
    server.stop().await;
}

/// Sets three campaigns and bills an hour of them twice.
async fn two_versions(server: &Server, admin: &str) {
    for name in ["a", "b", "c"] {
        let body = json!({ "currency": "USD", "cpc_micros": 500_000 });
        assert_eq!(status(server.put(&format!("/v1/campaigns/{name}"), &body).bearer_auth(admin)).await, 200);
    }
    server.set_clock("2025-01-15T14:00:00Z");
    let rows = || ["a", "b", "c"].map(|name| counts(name, 10)).to_vec();
    bill(server, "2025-01-15T12", 1, Reconciled, rows()).await;
    server.set_clock("2025-01-15T15:00:00Z");
    bill(server, "2025-01-15T12", 2, Reconciled, ["a", "b", "c"].map(|name| counts(name, 11)).to_vec()).await;
}

#[actix_web::test]
async fn an_advertiser_sees_its_campaigns_and_cannot_tell_whether_others_exist() {
    let server = Server::start_keyed().await;
    let admin = key(&server, &[Scope::Admin], &[]).await;
    let mine = key(&server, &[Scope::Query], &["a", "c"]).await;
    two_versions(&server, &admin).await;
    let get = |path: &str| server.get(path).bearer_auth(&mine);
    let lists = [
        "/v1/billing?hour=2025-01-15T12",
        "/v1/billing?day=2025-01-15&version=1",
        "/v1/billing/corrections",
        "/v1/divergence?hour=2025-01-15T12",
        "/v1/campaigns",
    ];
    for path in lists {
        assert_eq!(names(&ask(server.get(path).bearer_auth(&admin)).await.1), ["a", "b", "c"], "{path}");
        assert_eq!(names(&ask(get(path)).await.1), ["a", "c"], "{path}");
        // Page by page: another's row takes no place and moves no cursor.
        let separator = if path.contains('?') { '&' } else { '?' };
        let first = ask(get(&format!("{path}{separator}limit=1"))).await.1;
        let cursor = first["next_cursor"].as_str().expect("a cursor").to_owned();
        let second = ask(get(&format!("{path}{separator}limit=1&cursor={cursor}"))).await.1;
        assert_eq!((names(&first), names(&second)), (vec!["a"], vec!["c"]), "{path}");
        assert_eq!(second["next_cursor"], Value::Null, "{path}");
        // A cursor of somebody who sees more opens nothing.
        let foreign = ask(server.get(&format!("{path}{separator}limit=1")).bearer_auth(&admin)).await.1;
        let cursor = foreign["next_cursor"].as_str().expect("a cursor");
        let rest = ask(get(&format!("{path}{separator}cursor={cursor}"))).await.1;
        assert_eq!(names(&rest), ["c"], "{path}");
    }
    let csv =
        get("/v1/billing?hour=2025-01-15T12").header("accept", "text/csv").send().await.expect("an answer");
    let csv = csv.text().await.expect("text");
    assert_eq!(
        csv.lines().skip(1).filter(|line| line.starts_with("a,") || line.starts_with("c,")).count(),
        2
    );
    assert_eq!(csv.lines().count(), 3, "{csv}");

    for existing in [true, false] {
        let other = if existing { "b" } else { "no_such" };
        for path in [
            format!("/v1/campaigns/{other}"),
            format!("/v1/campaigns/{other}/clicks"),
            format!("/v1/campaigns/{other}/ads/ad_9/clicks"),
            format!("/v1/billing?hour=2025-01-15T12&campaign={other}"),
            format!("/v1/billing/corrections?campaign={other}"),
            format!("/v1/explain?hour=2025-01-15T12&campaign={other}"),
            format!("/v1/campaigns/{other}/budget"),
            format!("/v1/campaigns/{other}/live"),
            format!("/v1/budget-decisions?campaign={other}"),
        ] {
            problem(get(&path), 403, &format!("the key does not allow campaign {other}")).await;
        }
    }
    problem(get("/v1/reconciliations"), 403, "all campaigns").await;
    assert_eq!(names(&ask(get("/v1/billing?hour=2025-01-15T12&campaign=a")).await.1), ["a"]);
    server.stop().await;
}

#[actix_web::test]
async fn clicks_and_verdicts_of_other_campaigns_are_rejected_one_by_one() {
    let server = Server::start_keyed().await;
    let ingest = key(&server, &[Scope::Ingest, Scope::Verdicts], &["a"]).await;
    let body = format!("{}\n{}\n{}\n", click("a"), click("b"), click("a"));
    let (status, answer) = ask(server.post("/v1/clicks", NDJSON, body).bearer_auth(&ingest)).await;
    assert_eq!((status.as_u16(), &answer["accepted"]), (202, &json!(2)));
    assert_eq!(
        (&answer["rejected"][0]["index"], &answer["rejected"][0]["code"]),
        (&json!(1), &json!("forbidden"))
    );
    assert!(answer["click_ids"].get("1").is_none(), "a click that is not stored gets no id");
    let stored = server.clicks().await;
    assert!(stored.len() == 2 && stored.iter().all(|click| click.campaign_id == campaign("a")));

    let verdict = |of: &str| {
        json!({ "campaign_id": of, "click_id": "0194f3a0-1111-7222-8333-444455556666", "verdict": "sivt",
            "model_version": "m", "decided_at": "2025-01-15T12:00:00Z" })
    };
    let body = json!([verdict("b"), verdict("a")]).to_string();
    let (_, answer) = ask(server.post("/v1/verdicts", JSON, body).bearer_auth(&ingest)).await;
    assert_eq!((&answer["accepted"], &answer["rejected"][0]["code"]), (&json!(1), &json!("forbidden")));
    assert_eq!(server.verdicts().await.len(), 1);

    // Ids derived from an Idempotency-Key are of the key that sends it: another's cannot collide with them.
    let other = key(&server, &[Scope::Ingest], &[]).await;
    let mut ids = Vec::new();
    for sender in [&ingest, &ingest, &other] {
        let request = server.post("/v1/clicks", JSON, click("a").to_string()).bearer_auth(sender);
        ids.push(ask(request.header("idempotency-key", "k1")).await.1["click_ids"]["0"].clone());
    }
    assert!(ids[0] == ids[1] && ids[1] != ids[2], "{ids:?}");
    server.stop().await;
}

#[actix_web::test]
async fn every_action_is_noted_before_it_is_done_and_with_its_answer() {
    let server = Server::start_keyed().await;
    let admin = key(&server, &[Scope::Admin], &[]).await;
    let query = key(&server, &[Scope::Query], &[]).await;
    let id_of = |key: &str| KeyText::read(key).expect("a key").key_id().to_owned();
    let put = |key: &str, request_id: &str| {
        let request = server.put("/v1/mode", &json!({ "path": "kappa" })).bearer_auth(key);
        request.header("x-request-id", request_id)
    };
    assert_eq!(status(put(&admin, "done")).await, 200);
    assert_eq!(status(put(&query, "refused")).await, 403);
    let forged = format!("twice_{}_{}", id_of(&admin), "0".repeat(64));
    assert_eq!(status(put(&forged, "forged")).await, 401);
    server.keys.revoke(&id_of(&query)).await.expect("revokes");
    assert_eq!(status(put(&query, "ended")).await, 401);
    assert_eq!(status(server.get("/v1/mode").bearer_auth(&admin)).await, 200);
    assert_eq!(
        status(server.post("/v1/clicks", JSON, click("a").to_string()).bearer_auth(&admin)).await,
        202
    );

    let log = ask(server.get("/v1/admin-actions").bearer_auth(&admin)).await.1;
    let rows = log["rows"].as_array().expect("rows");
    let seen: Vec<_> =
        rows.iter().map(|row| (row["request_id"].as_str().unwrap_or(""), &row["status"])).collect();
    let (none, ok, forbidden, unauthorized) = (json!(null), json!(200), json!(403), json!(401));
    assert_eq!(seen, [("ended", &unauthorized), ("refused", &forbidden), ("done", &ok), ("done", &none)]);
    let done = &rows[2];
    assert_eq!(
        (done["key_id"].as_str(), done["action"].as_str()),
        (Some(&*id_of(&admin)), Some("PUT /v1/mode: kappa from 2025-01-15T12 on"))
    );
    assert_eq!(done["address"], "127.0.0.1");
    let page = ask(server.get("/v1/admin-actions?limit=2").bearer_auth(&admin)).await.1;
    assert!(page["next_cursor"].is_string());

    let body = json!({ "name": "new", "scopes": ["query"] }).to_string();
    let created = ask(server.post("/v1/keys", JSON, body).bearer_auth(&admin)).await.1;
    let log = server.store.actions(1, None).await.expect("lists").rows;
    let made = created["key_id"].as_str().expect("an id");
    assert_eq!(log[0].action, format!("POST /v1/keys: {made} with query of all campaigns"));
    server.stop().await;
}

#[actix_web::test]
async fn a_key_that_makes_no_sense_is_refused_and_not_made() {
    let server = Server::start_keyed().await;
    let admin = key(&server, &[Scope::Admin], &[]).await;
    let post = |body: Value| server.post("/v1/keys", JSON, body.to_string()).bearer_auth(&admin);
    for (body, mentions) in [
        (json!({ "name": "", "scopes": ["query"] }), "name"),
        (json!({ "name": "a\nb", "scopes": ["query"] }), "name"),
        (json!({ "name": "a", "scopes": [] }), "scopes"),
        (json!({ "name": "a", "scopes": ["root"] }), "root"),
        (json!({ "name": "a", "scopes": ["admin"], "campaigns": ["c"] }), "admin"),
        (json!({ "name": "a", "scopes": ["query"], "campaigns": [] }), "campaigns"),
        (json!({ "name": "a", "scopes": ["query"], "campaigns": ["ü"] }), "campaigns"),
        (json!({ "name": "a", "scopes": ["query"], "tier": "gold" }), "gold"),
        (json!({ "name": "a", "scopes": ["query"], "expires_at": "2025-01-15T12:30:00Z" }), "past"),
        (json!({ "name": "a", "scopes": ["query"], "secret": "mine" }), "secret"),
    ] {
        let answer = post(body.clone()).send().await.expect("an answer");
        assert_eq!(answer.status().as_u16(), 422, "{body}");
        let text = answer.text().await.expect("text");
        assert!(text.contains(mentions) || mentions == "campaigns", "{body}: {text}");
    }
    assert_eq!(server.keys.keys().len(), 1);
    server.stop().await;
}

#[actix_web::test]
async fn metrics_are_open_only_where_that_is_set() {
    let config = twice_api::ApiConfig { metrics_open: true, ..twice_api::ApiConfig::default() };
    let server = Server::start_keyed_with(config).await;
    assert_eq!(status(server.get("/metrics")).await, 200);
    let query = key(&server, &[Scope::Query], &[]).await;
    assert_eq!(status(server.get("/metrics").bearer_auth(query)).await, 200);
    assert_eq!(status(server.get("/v1/stream")).await, 401);
    server.stop().await;
}
