//! A server on a free port of loopback, over real files in a folder of its own.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use reqwest::{Client, RequestBuilder, StatusCode};
use serde_json::Value;
use serde_json::value::RawValue;
use tempfile::TempDir;
use tokio::sync::watch;
use twice_api::ports::{
    Admission, AuditControl, BillChange, BudgetControl, CompareControl, CompareEvent, CompareRequest,
    ComparisonSummary, ExplainControl, ExplainQuery, Explanation, HealthStatus, PartitionState,
    PartitionStatus, PortError, Readiness, ReconcileControl, ReconcileEvent, ReconcileStep, ReconcileTarget,
    ReplayControl, ReplayEvent, ReplayRequest, ShadowControl, ShadowQuery, ShadowReport, StreamReport,
    StreamStatus,
};
use twice_api::{Access, ApiConfig, ApiDeps, KeyRing, Listeners, PseudonymKeys, RateLimits};
use twice_log::archive::{Archive, RunOutcome};
use twice_log::event::record;
use twice_log::fail::FailPoints;
use twice_log::fs::RealFs;
use twice_log::hot::ClickLog;
use twice_log::hot::embedded::{EmbeddedConfig, EmbeddedLog};
use twice_log::spool::Spooling;
use twice_log::{
    CampaignId, Click, Clock, Day, Generation, Hour, LogOffset, PartitionId, Topic, UtcMillis, Verdict,
};
use twice_store::windows::LiveWindows;
use twice_store::{ArchiveAggregates, BudgetReport, BudgetState, Page, SledWindows, SqliteStore};

pub const NDJSON: &str = "application/x-ndjson";
pub const JSON: &str = "application/json";

fn open_log(folder: &TempDir) -> Arc<EmbeddedLog> {
    let config = EmbeddedConfig { segment_bytes: 1 << 20, ..EmbeddedConfig::default() };
    let log = EmbeddedLog::open(Arc::new(RealFs), &folder.path().join("log"), config, FailPoints::default());
    Arc::new(log.expect("log opens"))
}

/// A clock that stands where it is set.
pub struct SetClock(AtomicI64);

impl Clock for SetClock {
    fn now(&self) -> UtcMillis {
        UtcMillis::clamped(self.0.load(Ordering::SeqCst))
    }
}

/// The parts behind the ports, reduced to what this crate does with their answers.
struct Parts;

#[async_trait]
impl ReconcileControl for Parts {
    async fn start(&self, target: ReconcileTarget) -> Result<BoxStream<'static, ReconcileEvent>, PortError> {
        let ReconcileTarget::Hour(hour) = target else {
            return Err(PortError::Conflict {
                reason: "a reconciliation of all due hours is under way".into(),
            });
        };
        let run_id = format!("lambda/{hour}/000001");
        let step = ReconcileEvent::Step { hour, step: ReconcileStep::Sealing };
        let outcome = RunOutcome::Committed;
        let done = ReconcileEvent::Done {
            hour,
            outcome,
            run_id,
            rows: 3,
            unexplained: Some(0),
            change: BillChange::default(),
        };
        Ok(stream::iter([step, done]).boxed())
    }

    async fn retain(
        &self,
        hour: Option<Hour>,
        dry_run: bool,
    ) -> Result<Box<serde_json::value::RawValue>, PortError> {
        let report = serde_json::json!({ "dry_run": dry_run, "hour": hour, "deleted": [], "kept": [] });
        Ok(serde_json::value::to_raw_value(&report).expect("JSON"))
    }
}

#[async_trait]
impl AuditControl for Parts {
    async fn audit(&self, hour: Hour, _: Option<CampaignId>) -> Result<Box<RawValue>, PortError> {
        if hour != "2025-01-15T11".parse().expect("valid hour") {
            return Err(PortError::NotFound { what: format!("a bill of {hour}") });
        }
        Ok(RawValue::from_string("{\"verdict\":\"proved\"}".to_owned()).expect("JSON"))
    }
}

#[async_trait]
impl ReplayControl for Parts {
    async fn start(&self, request: ReplayRequest) -> Result<BoxStream<'static, ReplayEvent>, PortError> {
        if request.restate.is_some() {
            return Err(PortError::Conflict { reason: "another replay is under way".into() });
        }
        let (copies_total, slices_total) = (10, 1);
        let progress = ReplayEvent::Progress { copies_done: 5, copies_total, slices_done: 0, slices_total };
        let (hour, outcome) = (request.from, RunOutcome::Committed);
        let run_id = format!("kappa/{hour}/000001");
        let done = ReplayEvent::Done { hour, outcome, run_id, rows: 3, rows_written: 3, differing: 0 };
        Ok(stream::iter([progress, done, ReplayEvent::Ended]).boxed())
    }
}

#[async_trait]
impl ExplainControl for Parts {
    async fn explain(&self, query: ExplainQuery) -> Result<Explanation, PortError> {
        Err(PortError::NotFound { what: format!("a committed run of {}", query.hour) })
    }
}

#[async_trait]
impl CompareControl for Parts {
    async fn start(&self, request: CompareRequest) -> Result<BoxStream<'static, CompareEvent>, PortError> {
        if request.prices.is_some() {
            return Err(PortError::Refused { reason: "prices do not read".into() });
        }
        let progress = CompareEvent::Progress { path: "kappa".into(), done: 1, total: 2 };
        let id = format!("kept-{}-{}", request.from, request.to);
        let comparison = RawValue::from_string("{\"equal\":true}".to_owned()).expect("JSON");
        Ok(stream::iter([progress, CompareEvent::Done { id, equal: true, comparison }]).boxed())
    }

    async fn list(&self, _: u32, _: Option<String>) -> Result<Page<ComparisonSummary>, PortError> {
        Ok(Page { rows: Vec::new(), next_cursor: None })
    }

    async fn get(&self, id: &str) -> Result<Bytes, PortError> {
        Err(PortError::NotFound { what: format!("comparison {id}") })
    }
}

#[async_trait]
impl ShadowControl for Parts {
    async fn compare(&self, query: ShadowQuery) -> Result<ShadowReport, PortError> {
        if query.sql != "SELECT 1" {
            return Err(PortError::Refused { reason: "column gross is missing".into() });
        }
        Ok(ShadowReport {
            hour: query.hour,
            run_id: format!("lambda/{}/000001", query.hour),
            candidate_sha256: String::new(),
            equal: true,
            campaigns: 1,
            differing: 0,
            totals: Vec::new(),
            amounts: Vec::new(),
            rows: Vec::new(),
        })
    }
}

#[async_trait]
impl StreamStatus for Parts {
    async fn report(&self) -> Result<StreamReport, PortError> {
        Err(PortError::Unavailable { reason: "the stream path is down".into() })
    }

    async fn campaign(&self, _campaign: &CampaignId) -> Result<PartitionStatus, PortError> {
        Ok(PartitionStatus {
            generation: Generation(0),
            partition: PartitionId(0),
            state: PartitionState::Running,
            applied_end: LogOffset(5),
            log_end: LogOffset(5),
            archived_end: LogOffset(0),
            lag: 0,
            fresh_to: Some(time("2025-01-15T12:29:59Z")),
            detail: None,
        })
    }
}

/// Budgets of which the day is known and nothing is spent.
struct Budgeting(Arc<watch::Sender<u64>>);

#[async_trait]
impl BudgetControl for Budgeting {
    fn stored(&self) -> watch::Receiver<u64> {
        self.0.subscribe()
    }

    async fn report(&self, id: &CampaignId, day: Option<Day>) -> Result<Option<BudgetReport>, PortError> {
        let report = BudgetReport {
            campaign_id: id.clone(),
            day: day.unwrap_or("2025-01-15".parse().expect("valid day")),
            currency: "USD".parse().expect("valid currency"),
            budget_micros: Some(100),
            strict: false,
            spend_micros: 130,
            billed_micros: 80,
            preliminary_micros: 50,
            state: Some(BudgetState::Exhausted),
            overspend_micros: 30,
            spent_after_exhausted_micros: 20,
            recent_micros_per_minute: 10,
            forecast_exhausted_at: None,
            last_decision: None,
        };
        Ok((id.as_str() != "nobody").then_some(report))
    }
}

#[async_trait]
impl HealthStatus for Parts {
    async fn readiness(&self) -> Readiness {
        Readiness { ready: false, reasons: vec!["the log is recovering: /data/log".into()] }
    }
}

impl Admission for Parts {
    fn admit(&self) -> Result<(), PortError> {
        Ok(())
    }
}

pub struct Server {
    pub url: String,
    pub client: Client,
    pub clock: Arc<SetClock>,
    pub log: Arc<EmbeddedLog>,
    pub store: SqliteStore,
    pub windows: Arc<SledWindows>,
    pub archive: Archive,
    pub keys: Arc<KeyRing>,
    /// Sequence of the newest decision, window updates, and whether the node is about to stop.
    pub budgeting: (Arc<watch::Sender<u64>>, LiveWindows, Arc<watch::Sender<bool>>),
    handle: actix_web::dev::ServerHandle,
    folder: TempDir,
}

pub fn time(text: &str) -> UtcMillis {
    text.parse().expect("valid time")
}

pub fn hour(text: &str) -> Hour {
    text.parse().expect("valid hour")
}

pub fn campaign(text: &str) -> CampaignId {
    CampaignId::new(text).expect("valid id")
}

impl Server {
    pub async fn start() -> Self {
        Self::start_with(ApiConfig::default(), |_| {}).await
    }

    /// Starts a server at 2025-01-15T12:30:00Z; `replace` may put other parts in place of the real ones.
    pub async fn start_with(config: ApiConfig, replace: impl FnOnce(&mut ApiDeps)) -> Self {
        Self::start_as(Access::Open, config, replace).await
    }

    /// Starts a server that asks for keys.
    pub async fn start_keyed() -> Self {
        Self::start_keyed_with(ApiConfig::default()).await
    }

    pub async fn start_keyed_with(config: ApiConfig) -> Self {
        Self::start_as(Access::Keyed, config, |_| {}).await
    }

    pub async fn start_as(access: Access, config: ApiConfig, replace: impl FnOnce(&mut ApiDeps)) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let clock = Arc::new(SetClock(AtomicI64::new(time("2025-01-15T12:30:00Z").epoch_ms())));
        let log = open_log(&folder);
        let store = SqliteStore::open(&folder.path().join("twice.sqlite"), clock.clone()).await;
        let store = store.expect("store opens");
        let windows = SledWindows::open(&folder.path().join("windows"), 8 << 20).await.expect("windows open");
        let windows = Arc::new(windows);
        let archive =
            Archive::open_local(Arc::new(RealFs), &folder.path().join("archive")).expect("archive opens");
        let keys = KeyRing::open(Arc::new(store.clone()), clock.clone(), access).await.expect("keys open");
        let limits = RateLimits::open(Arc::new(store.clone()), clock.clone(), config.limits.clone()).await;
        let (stored, stopping) = (Arc::new(watch::channel(0).0), Arc::new(watch::channel(false).0));
        let live = LiveWindows::default();
        let mut deps = ApiDeps {
            log: log.clone(),
            spooling: Arc::new(Spooling::without_queues(log.clone())),
            windows: windows.clone(),
            billing: Arc::new(store.clone()),
            aggregates: Arc::new(ArchiveAggregates::new(archive.clone(), 8 << 20)),
            campaigns: Arc::new(store.clone()),
            imports: Arc::new(store.clone()),
            modes: Arc::new(store.clone()),
            keys: Arc::new(keys),
            limits: limits.expect("limits open"),
            clock: clock.clone(),
            pseudonyms: Arc::new(PseudonymKeys::open(folder.path().join("keys")).expect("keys open")),
            reconcile: Arc::new(Parts),
            explain: Arc::new(Parts),
            replay: Arc::new(Parts),
            shadow: Arc::new(Parts),
            audit: Arc::new(Parts),
            compare: Arc::new(Parts),
            stream: Arc::new(Parts),
            budgets: Arc::new(Budgeting(stored.clone())),
            decisions: Arc::new(store.clone()),
            live: live.clone(),
            stopping: stopping.subscribe(),
            health: Arc::new(Parts),
            admission: Arc::new(Parts),
            render_metrics: Arc::new(|| "twice_test 1\n".to_owned()),
        };
        replace(&mut deps);
        let keys = deps.keys.clone();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("address"));
        let listeners = Listeners { public: listener, local: None };
        let config = ApiConfig { workers: 1, ..config };
        let (server, handle) = twice_api::serve(deps, listeners, config).expect("serves");
        actix_web::rt::spawn(server);
        let budgeting = (stored, live, stopping);
        Self {
            url,
            client: Client::new(),
            clock,
            log,
            store,
            windows,
            archive,
            keys,
            budgeting,
            handle,
            folder,
        }
    }

    /// Returns the folder of the archive.
    pub fn archive_folder(&self) -> std::path::PathBuf {
        self.folder.path().join("archive")
    }

    pub fn set_clock(&self, now: &str) {
        self.clock.0.store(time(now).epoch_ms(), Ordering::SeqCst);
    }

    pub fn advance_clock(&self, ms: i64) {
        self.clock.0.fetch_add(ms, Ordering::SeqCst);
    }

    pub fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(format!("{}{path}", self.url))
    }

    pub fn post(&self, path: &str, content_type: &str, body: impl Into<reqwest::Body>) -> RequestBuilder {
        self.client.post(format!("{}{path}", self.url)).header("content-type", content_type).body(body)
    }

    pub fn put(&self, path: &str, body: &Value) -> RequestBuilder {
        self.client.put(format!("{}{path}", self.url)).json(body)
    }

    /// Reads every click of the log, in order of partition and offset.
    pub async fn clicks(&self) -> Vec<Click> {
        let records = self.records(Topic::AdClicks).await;
        records.iter().map(|bytes| record::decode_click(bytes).expect("a click")).collect()
    }

    /// Reads every verdict of the log.
    pub async fn verdicts(&self) -> Vec<Verdict> {
        let records = self.records(Topic::FraudVerdicts).await;
        records.iter().map(|bytes| record::decode_verdict(bytes).expect("a verdict")).collect()
    }

    async fn records(&self, topic: Topic) -> Vec<Vec<u8>> {
        let mut records = Vec::new();
        for partition in (0..self.log.partitions()).map(PartitionId) {
            let end = self.log.bounds(topic, partition).await.expect("bounds").end;
            let mut from = LogOffset(0);
            while from < end {
                let batch = self.log.read(topic, partition, from, 1 << 20).await.expect("reads");
                for (offset, bytes) in batch.records {
                    records.push(bytes.to_vec());
                    from = offset.next();
                }
            }
        }
        records
    }

    pub async fn stop(self) {
        self.handle.stop(true).await;
    }
}

/// Sends a request and returns its status and JSON.
pub async fn ask(request: RequestBuilder) -> (StatusCode, Value) {
    let response = request.send().await.expect("an answer");
    let status = response.status();
    let text = response.text().await.expect("a body");
    (status, serde_json::from_str(&text).unwrap_or_else(|_| panic!("not JSON: {text}")))
}

/// Sends a request that must be refused as a whole: a problem document of that status that mentions `mentions`.
pub async fn problem(request: RequestBuilder, status: u16, mentions: &str) {
    let response = request.send().await.expect("an answer");
    let content_type = response.headers()["content-type"].to_str().expect("text").to_owned();
    let got = response.status().as_u16();
    assert!(response.headers().contains_key("x-request-id"), "{status} {mentions}");
    let text = response.text().await.expect("a body");
    assert_eq!((got, content_type.as_str()), (status, "application/problem+json"), "{mentions}: {text}");
    let body: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(body["status"], status);
    let detail = body["detail"].as_str().expect("a detail");
    assert!(detail.contains(mentions), "does not mention {mentions:?}: {detail}");
}
