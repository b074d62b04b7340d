//! Rate limits: what a key over its limit is told, what is spilled for it, and what becomes of a version of the limits.

use std::sync::Arc;
use std::time::Duration;

use reqwest::{RequestBuilder, Response};
use serde_json::{Value, json};
use twice_api::{Access, ApiConfig, LimitsConfig, NewKey, RateLimits};
use twice_log::fs::RealFs;
use twice_log::spool::{SpoolConfig, SpoolQueue, Spooling};
use twice_store::{CampaignSet, LimitStore, LimitVersion, Scope, Tier};

use crate::support::{NDJSON, Server, ask, problem};

const CLICK: &str = r#"{"campaign_id":"camp_1","event_time":"2025-01-15T12:00:00.123Z"}"#;

/// Turns are short, and half of the keys try a new version.
fn config() -> ApiConfig {
    let limits = LimitsConfig { limits_sample_ms: 10, limits_canary_percent: 50, ..LimitsConfig::default() };
    ApiConfig { limits, ..ApiConfig::default() }
}

fn tier(clicks_per_second: u32, burst: u32) -> Value {
    json!({ "floor": clicks_per_second, "ceiling": clicks_per_second, "burst": burst })
}

/// A server that asks for keys, and a key that may do everything.
struct Site {
    server: Server,
    admin: String,
}

impl Site {
    async fn start() -> Self {
        Self::of(Server::start_as(Access::Keyed, config(), |_| {}).await).await
    }

    async fn of(server: Server) -> Self {
        let admin = server.keys.create(NewKey::admin("admin")).await.expect("creates").1.to_string();
        Self { server, admin }
    }

    async fn key(&self, tier: Tier) -> (String, String) {
        let scopes = [Scope::Ingest].into();
        let new =
            NewKey { name: "sender".into(), scopes, campaigns: CampaignSet::All, tier, expires_at: None };
        let (key, text) = self.server.keys.create(new).await.expect("creates");
        (key.key_id.clone(), text.to_string())
    }

    /// Returns a standard key that tries the version, and one that does not.
    async fn keys_beside(&self, version: u32) -> (String, String) {
        let version = LimitVersion { version, share_percent: 50, ..LimitVersion::built_in() };
        let (mut tried, mut rest) = (None, None);
        while tried.is_none() || rest.is_none() {
            let (key_id, text) = self.key(Tier::Standard).await;
            *(if version.tries(&key_id) { &mut tried } else { &mut rest }) = Some(text);
        }
        (tried.expect("one"), rest.expect("one"))
    }

    fn clicks(&self, key: &str, count: usize) -> RequestBuilder {
        self.server.post("/v1/clicks", NDJSON, vec![CLICK; count].join("\n")).bearer_auth(key)
    }

    async fn send(&self, key: &str, count: usize) -> Response {
        self.clicks(key, count).send().await.expect("an answer")
    }

    fn put(&self, tiers: &Value, canary_ms: u64) -> RequestBuilder {
        let body = json!({ "tiers": tiers, "note": "test", "canary_ms": canary_ms });
        self.server.put("/v1/rate-limits", &body).bearer_auth(&self.admin)
    }

    fn revert(&self) -> RequestBuilder {
        self.server.post("/v1/rate-limits/revert", NDJSON, "").bearer_auth(&self.admin)
    }

    async fn now(&self) -> Value {
        let (status, now) = ask(self.server.get("/v1/rate-limits").bearer_auth(&self.admin)).await;
        assert_eq!(status.as_u16(), 200, "{now}");
        now
    }

    /// Waits until the version that is newest has a state.
    async fn until(&self, state: &str) -> Value {
        for _ in 0..2_000 {
            let now = self.now().await;
            if now["versions"][0]["state"] == state {
                return now;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never {state}: {}", self.now().await);
    }

    /// Puts limits and lets their canary pass; the clock stands a second later then.
    async fn hold(&self, tiers: &Value) {
        let (status, put) = ask(self.put(tiers, 100)).await;
        assert_eq!(status.as_u16(), 200, "{put}");
        self.server.advance_clock(1_000);
        self.until("promoted").await;
    }
}

fn header(answer: &Response, name: &str) -> String {
    answer.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or("absent").to_owned()
}

#[actix_web::test]
async fn over_the_limit_is_429_with_the_wait_and_nothing_is_stored() {
    let site = Site::start().await;
    site.hold(&json!({ "standard": tier(10, 20) })).await;
    let (_, key) = site.key(Tier::Standard).await;
    let answer = site.send(&key, 15).await;
    assert_eq!(answer.status(), 202);
    assert_eq!(header(&answer, "ratelimit-policy"), "\"clicks\";q=20;w=2");
    assert_eq!(header(&answer, "ratelimit"), "\"clicks\";r=5;t=2");
    let over = site.send(&key, 18).await;
    assert_eq!(
        (over.status().as_u16(), header(&over, "retry-after").as_str()),
        (429, "2"),
        "13 at 10 a second"
    );
    problem(site.clicks(&key, 18), 429, "10 clicks a second (tier standard)").await;
    assert_eq!(site.server.clicks().await.len(), 15, "a batch is refused whole");

    // With nothing left at all, the body is not even read.
    assert_eq!(site.send(&key, 5).await.status(), 202);
    let unread = site.server.post("/v1/clicks", NDJSON, "no click").bearer_auth(&key);
    problem(unread, 429, "nothing of this request was stored").await;
    let (_, other) = site.key(Tier::Standard).await;
    assert_eq!(site.send(&other, 20).await.status(), 202, "another key has its own limit");

    site.server.advance_clock(2_000);
    assert_eq!(site.send(&key, 18).await.status(), 202, "after the wait named");
    assert_eq!(site.server.clicks().await.len(), 58);
    site.server.stop().await;
}

#[actix_web::test]
async fn a_batch_larger_than_the_burst_passes_when_the_bucket_is_full() {
    let site = Site::start().await;
    site.hold(&json!({ "standard": tier(10, 20) })).await;
    let (_, key) = site.key(Tier::Standard).await;
    assert_eq!(site.send(&key, 100).await.status(), 202);
    let over = site.send(&key, 1).await;
    assert_eq!(
        (over.status().as_u16(), header(&over, "retry-after").as_str()),
        (429, "9"),
        "80 are owed first"
    );
    site.server.stop().await;
}

#[actix_web::test]
async fn clicks_refused_at_the_door_use_the_limit_and_an_append_that_failed_gives_it_back() {
    let site = Site::start().await;
    site.hold(&json!({ "standard": tier(10, 20) })).await;
    let (_, key) = site.key(Tier::Standard).await;
    let bad = site.server.post("/v1/clicks", NDJSON, "{}\n".repeat(15)).bearer_auth(&key);
    assert_eq!(ask(bad).await.0, 422);
    assert_eq!(site.send(&key, 6).await.status(), 429);
    site.server.log.close();
    let failed = site.send(&key, 5).await;
    assert_eq!(
        (failed.status().as_u16(), header(&failed, "ratelimit")),
        (503, "\"clicks\";r=5;t=2".to_owned())
    );
    site.server.stop().await;
}

/// A site with a spill queue, which is drained only when a test does.
async fn spilling(config_of_queue: SpoolConfig) -> (Site, Arc<Spooling>, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("folder");
    let mut held = None;
    let server = Server::start_as(Access::Keyed, config(), |deps| {
        let opened = futures::executor::block_on(Spooling::open(
            deps.log.clone(),
            Arc::new(RealFs),
            folder.path(),
            config_of_queue,
        ));
        let spooling = Arc::new(opened.expect("queues open"));
        deps.spooling = spooling.clone();
        held = Some(spooling);
    })
    .await;
    let site = Site::of(server).await;
    site.hold(&json!({ "premium": tier(10, 20) })).await;
    (site, held.expect("queues"), folder)
}

fn spill_of(spooling: &Spooling) -> Arc<SpoolQueue> {
    let queue = spooling.queues().find(|queue| queue.status().name == "spill queue");
    queue.expect("a spill queue").clone()
}

#[actix_web::test]
async fn premium_clicks_over_the_limit_are_spilled_acknowledged_and_drained() {
    let (site, spooling, _folder) = spilling(SpoolConfig::default()).await;
    let (_, key) = site.key(Tier::Premium).await;
    assert_eq!(site.send(&key, 20).await.status(), 202);
    let (status, answer) = ask(site.clicks(&key, 7)).await;
    assert_eq!((status.as_u16(), &answer["accepted"]), (202, &json!(7)), "{answer}");
    assert_eq!(site.server.clicks().await.len(), 20);
    let spill = spill_of(&spooling);
    assert_eq!(spill.status().records, 7);
    assert_eq!(spooling.drain_chunk(&spill).await.expect("drains"), 7);
    assert_eq!(site.server.clicks().await.len(), 27);
    site.server.stop().await;
}

#[actix_web::test]
async fn a_full_spill_queue_or_none_refuses_premium_clicks_with_429() {
    let small = SpoolConfig { spill_bytes_max: 1 << 20, ..SpoolConfig::default() };
    let (site, spooling, _folder) = spilling(small).await;
    let (_, key) = site.key(Tier::Premium).await;
    assert_eq!(site.send(&key, 20).await.status(), 202);
    problem(site.clicks(&key, 20_000), 429, "tier premium").await;
    assert_eq!(spill_of(&spooling).status().records, 0);
    site.server.stop().await;

    let (site, _, _folder) = spilling(SpoolConfig { spill_bytes_max: 0, ..SpoolConfig::default() }).await;
    let (_, key) = site.key(Tier::Premium).await;
    assert_eq!(site.send(&key, 20).await.status(), 202);
    problem(site.clicks(&key, 1), 429, "tier premium").await;
    site.server.stop().await;
}

#[actix_web::test]
async fn a_new_version_holds_for_its_share_of_the_keys_and_is_rolled_back_by_its_figures() {
    let site = Site::start().await;
    site.hold(&json!({ "standard": tier(10, 100_000) })).await;
    let (tried, rest) = site.keys_beside(2).await;
    assert_eq!(ask(site.put(&json!({ "standard": tier(10, 1) }), 600_000)).await.0, 200);
    problem(site.put(&json!({ "standard": tier(10, 2) }), 600_000), 409, "version 2 is in its canary").await;
    for key in [&tried, &rest] {
        assert_eq!(site.send(key, 1).await.status(), 202);
    }
    assert_eq!(site.send(&rest, 1).await.status(), 202);
    assert_eq!(site.send(&tried, 1).await.status(), 429);
    let now = site.now().await;
    assert_eq!((&now["in_force"]["version"], &now["canary"]["version"]), (&json!(1), &json!(2)));
    let figures = &now["canary"]["figures"];
    assert_eq!(figures["canary"], json!({ "requests": 2, "over": 1 }));
    assert_eq!(figures["rest"], json!({ "requests": 2, "over": 0 }));

    for _ in 0..98 {
        site.send(&tried, 1).await;
    }
    let now = site.until("rolled_back").await;
    let end = &now["versions"][0]["ends"][0];
    assert!(end["detail"].as_str().expect("text").contains("more than 5 %"), "{end}");
    assert_eq!(end["figures"]["canary"]["requests"], 100);
    assert_eq!((&now["in_force"]["version"], &now["canary"]), (&json!(1), &Value::Null));
    assert_eq!(site.send(&tried, 50).await.status(), 202, "the limits before hold again");
    site.server.stop().await;
}

#[actix_web::test]
async fn one_call_takes_back_the_newest_version_and_the_one_before_holds_at_once() {
    let site = Site::start().await;
    site.hold(&json!({ "standard": tier(10, 1) })).await;
    assert_eq!(ask(site.put(&json!({ "standard": tier(10, 2) }), 600_000)).await.0, 200);
    let (_, key) = site.key(Tier::Standard).await;
    for (reverted, in_force) in [(2, "version 1 holds"), (1, "the limits built in hold")] {
        let (status, answer) = ask(site.revert()).await;
        let detail = answer["detail"].as_str().unwrap_or_default().to_owned();
        assert_eq!(status.as_u16(), 200, "{answer}");
        assert!(detail.contains(&format!("version {reverted} is taken back; {in_force}")), "{detail}");
    }
    assert_eq!(site.send(&key, 1_000).await.status(), 202);
    problem(site.revert(), 409, "no version").await;
    let now = site.now().await;
    assert_eq!(now["versions"][1]["ends"][1]["outcome"], "reverted");
    assert!(!now["versions"][1]["ends"][1]["decided_by"].as_str().expect("a key").is_empty());
    site.server.stop().await;
}

#[actix_web::test]
async fn a_restart_in_mid_canary_goes_on_with_it_and_counts_anew() {
    let site = Site::start().await;
    let (tried, _) = site.keys_beside(1).await;
    assert_eq!(ask(site.put(&json!({ "standard": tier(10, 1) }), 50_000)).await.0, 200);
    for _ in 0..40 {
        site.send(&tried, 1).await;
    }
    let before = site.now().await;
    assert_eq!(before["canary"]["figures"]["canary"]["requests"], 40);

    // What a death leaves is what is stored; another server over the same store is the node started again.
    let again =
        RateLimits::open(Arc::new(site.server.store.clone()), site.server.clock.clone(), config().limits);
    let again = again.await.expect("opens");
    let keys = site.server.keys.clone();
    let second = Server::start_as(Access::Keyed, config(), |deps| {
        deps.limits = again;
        deps.keys = keys;
    })
    .await;
    site.server.advance_clock(60_000);
    let second = Site { server: second, admin: site.admin.clone() };
    let after = second.now().await;
    assert_eq!(after["canary"]["begun_at"], before["canary"]["begun_at"]);
    assert_eq!(after["canary"]["figures"]["canary"]["requests"], 0);
    second.send(&tried, 1).await;
    assert_eq!(second.send(&tried, 1).await.status(), 429, "it holds for the same keys");
    // Its time is over by the clock, and yet nobody has watched it for as long as it takes.
    let state = site.server.store.limit_state().await.expect("reads");
    assert_eq!(state.canary.expect("a canary").version, 1);
    second.server.stop().await;
    site.server.stop().await;
}

#[actix_web::test]
async fn limits_that_are_none_are_refused_and_so_is_who_may_not_set_them() {
    let site = Site::start().await;
    problem(site.put(&json!({ "standard": tier(0, 1) }), 1_000), 422, "standard: floor is 0").await;
    let crossed = json!({ "premium": { "floor": 5, "ceiling": 4, "burst": 1 } });
    problem(site.put(&crossed, 1_000), 422, "ceiling 4 lies below floor 5").await;
    problem(site.put(&json!({ "gold": tier(1, 1) }), 1_000), 422, "gold").await;
    problem(site.put(&json!({}), 1_000), 422, "tiers is empty").await;
    problem(site.put(&json!({ "standard": tier(1, 1) }), 99), 422, "canary_ms is 99").await;
    let (_, key) = site.key(Tier::Premium).await;
    let body = json!({ "tiers": { "standard": tier(1, 1) } });
    problem(site.server.put("/v1/rate-limits", &body).bearer_auth(&key), 403, "admin").await;
    problem(site.server.get("/v1/rate-limits").bearer_auth(&key), 403, "admin").await;
    let revert = site.server.post("/v1/rate-limits/revert", NDJSON, "").bearer_auth(&key);
    problem(revert, 403, "admin").await;
    assert_eq!(site.now().await["versions"], json!([]));
    site.server.stop().await;
}

#[actix_web::test]
async fn a_node_without_keys_has_no_limits() {
    // Such a node does not look at the keys this site sends.
    let server = Server::start_with(config(), |_| {}).await;
    let site = Site { server, admin: String::new() };
    site.hold(&json!({ "standard": tier(1, 1), "premium": tier(1, 1) })).await;
    for _ in 0..3 {
        let answer = site.send("none", 100).await;
        assert_eq!((answer.status().as_u16(), header(&answer, "ratelimit").as_str()), (202, "absent"));
    }
    site.server.stop().await;
}
