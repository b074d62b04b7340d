//! The server: what it is given, the state its workers share, and its start.
//!
//! Flow: [`serve`] starts the query actor on the calling system's arbiter and returns a server future, to be awaited
//! or spawned there, and its handle. `handle.stop(true)` stops taking connections, lets requests in flight finish
//! within `shutdown_timeout_s`, and resolves the server future.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, Addr};
use actix_server::ServerBuilder;
use actix_web::dev::{Server, ServerHandle};
use actix_web::web;
use tokio::sync::watch;
use twice_log::Clock;
use twice_log::hot::ClickLog;
use twice_log::spool::Spooling;
use twice_store::aggregates::AggregateReader;
use twice_store::billing::BillingStore;
use twice_store::budgets::BudgetStore;
use twice_store::campaigns::CampaignStore;
use twice_store::imports::ImportStore;
use twice_store::modes::ModeStore;
use twice_store::windows::{LiveWindows, WindowStore};

use crate::access::{Access, KeyRing, RefusedActions};
use crate::budgets::Places;
use crate::config::ApiConfig;
use crate::document::Document;
use crate::edge::{Certificates, Connections, listen};
use crate::error::Result;
use crate::ingest::{BodyMemory, PseudonymKeys};
use crate::limits::RateLimits;
use crate::operations::LastReadiness;
use crate::ports::{
    Admission, AuditControl, BudgetControl, CompareControl, ExplainControl, HealthStatus, ReconcileControl,
    ReplayControl, ShadowControl, StreamStatus,
};
use crate::query::QueryActor;
use crate::routes;
use crate::turns::Turns;

/// Renders the metrics page in Prometheus text format.
pub type RenderMetrics = Arc<dyn Fn() -> String + Send + Sync>;

/// Everything the HTTP face works with.
#[derive(Clone)]
pub struct ApiDeps {
    pub log: Arc<dyn ClickLog>,
    /// What records are appended through: the log, and the queues beside it.
    pub spooling: Arc<Spooling>,
    pub windows: Arc<dyn WindowStore>,
    pub billing: Arc<dyn BillingStore>,
    pub aggregates: Arc<dyn AggregateReader>,
    pub campaigns: Arc<dyn CampaignStore>,
    pub imports: Arc<dyn ImportStore>,
    pub modes: Arc<dyn ModeStore>,
    pub keys: Arc<KeyRing>,
    pub limits: Arc<RateLimits>,
    pub clock: Arc<dyn Clock>,
    pub pseudonyms: Arc<PseudonymKeys>,
    pub reconcile: Arc<dyn ReconcileControl>,
    pub explain: Arc<dyn ExplainControl>,
    pub replay: Arc<dyn ReplayControl>,
    pub shadow: Arc<dyn ShadowControl>,
    pub audit: Arc<dyn AuditControl>,
    pub compare: Arc<dyn CompareControl>,
    pub stream: Arc<dyn StreamStatus>,
    pub budgets: Arc<dyn BudgetControl>,
    pub decisions: Arc<dyn BudgetStore>,
    /// Window updates; the store of windows that the stream publishes to MUST tell it.
    pub live: LiveWindows,
    /// Turns true when the node is about to stop: event streams end then, or they would hold the stop up.
    pub stopping: watch::Receiver<bool>,
    pub health: Arc<dyn HealthStatus>,
    pub admission: Arc<dyn Admission>,
    pub render_metrics: RenderMetrics,
}

/// What the workers share.
pub(crate) struct ApiState {
    pub deps: ApiDeps,
    pub config: ApiConfig,
    pub query: Addr<QueryActor>,
    /// Places for event streams.
    pub event_streams: Arc<Places>,
    pub connections: Arc<Connections>,
    /// Places for what reads much: long lists, explanations.
    pub turns: Turns,
    /// Memory for bodies.
    pub bodies: BodyMemory,
    /// Actions that keys were refused.
    pub refused: RefusedActions,
    /// What strangers were told of the node's readiness last.
    pub readiness: LastReadiness,
    /// The OpenAPI document and what it says of paths and methods.
    pub document: Document,
}

impl ApiState {
    /// Checks the settings and starts the query actor on the current arbiter.
    pub fn start(deps: ApiDeps, config: ApiConfig) -> Result<web::Data<Self>> {
        config.validate()?;
        let query = QueryActor::new(deps.clone(), &config).start();
        if deps.keys.access() == Access::Keyed {
            let reload_interval = Duration::from_millis(config.key_reload_ms.into());
            actix_web::rt::spawn(deps.keys.keep(reload_interval));
        }
        actix_web::rt::spawn(deps.limits.clone().run(deps.stream.clone(), deps.spooling.clone()));
        let document = Document::build(routes::configure)?;
        let event_streams = Places::new(config.event_streams_max);
        let connections = Arc::default();
        let (turns, bodies) = (Turns::default(), BodyMemory::new(config.bodies_bytes_max));
        let (refused, readiness) = (RefusedActions::default(), LastReadiness::default());
        Ok(web::Data::new(Self {
            deps,
            config,
            query,
            event_streams,
            connections,
            turns,
            bodies,
            refused,
            readiness,
            document,
        }))
    }
}

/// Where the server listens; a listener may be bound to port 0.
#[derive(Debug)]
pub struct Listeners {
    /// For everybody: with TLS where a certificate is set.
    pub public: TcpListener,
    /// For programs of the same machine, always without TLS.
    pub local: Option<TcpListener>,
}

/// Starts the server. Signals are the caller's to handle.
///
/// MUST be called within an actix system; the query actor lives on the arbiter that calls.
///
/// # Errors
/// [`Error::Config`] and [`Error::Setting`] for a setting, [`Error::Tls`] for a certificate, [`Error::Internal`] if a
/// listener cannot be used.
pub fn serve(deps: ApiDeps, listeners: Listeners, config: ApiConfig) -> Result<(Server, ServerHandle)> {
    let state = ApiState::start(deps, config)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = match state.config.workers {
        0 => cores,
        workers => usize::from(workers),
    };
    let edge = state.config.edge.clone();
    let mut builder = ServerBuilder::default()
        .workers(workers)
        .max_concurrent_connections((edge.connections_max as usize).div_ceil(workers))
        .shutdown_timeout(state.config.shutdown_timeout_s.into())
        .disable_signals();
    let tls = match edge.tls_files()? {
        None => None,
        Some(files) => {
            let certificates = Certificates::open(files)?;
            actix_web::rt::spawn(certificates.watch(Duration::from_millis(edge.tls_reload_ms.into())));
            Some(certificates.server_config()?)
        }
    };
    builder = listen(builder, listeners.public, tls, &state)?;
    if let Some(local) = listeners.local {
        builder = listen(builder, local, None, &state)?;
    }
    let server = builder.run();
    let handle = server.handle();
    Ok((server, handle))
}
