//! The way to the cluster: who leads each partition, and connections that are thrown away at the first doubt.
//!
//! Guarantee: every call ends within its timeout. A connection on which a call failed or was given up carries no other:
//! its bytes may be out of step. The next call connects again, so restarts of servers heal by themselves.
//! Words: *SC* = the controller, which knows who leads; *SPU* = a server that holds partitions.

use std::collections::HashMap;
use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fluvio::dataplane::api::Request;
use fluvio::dataplane::link::ErrorCode;
use fluvio::metadata::partition::PartitionSpec;
use fluvio::metadata::spu::SpuSpec;
use fluvio::{FluvioAdmin, FluvioClusterConfig};
use fluvio_socket::{ClientConfig, MultiplexerSocket, VersionedSerialSocket};
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::FluvioConfig;
use crate::error::{Error, Result};
use crate::event::{PartitionId, Topic};

/// A partition of a topic of this log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Slot {
    pub(super) topic: Topic,
    pub(super) partition: PartitionId,
}

impl Display for Slot {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} partition {}", self.topic, self.partition)
    }
}

/// Whatever the client's own crates end with.
pub(super) type BoxedError = Box<dyn std::error::Error + Send + Sync>;

/// Returns the error of an action that may be tried again.
pub(super) fn unavailable(action: impl Into<String>, source: impl Into<BoxedError>) -> Error {
    Error::Unavailable { action: action.into(), source: source.into() }
}

/// A server as a client reaches it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) id: i32,
    name: String,
    address: String,
}

/// The cluster as its controller described it last.
type Leaders = HashMap<Slot, Server>;

pub(super) struct Cluster {
    target: FluvioClusterConfig,
    topic_prefix: String,
    connect_timeout: Duration,
    request_timeout: Duration,
    /// Tasks of calls run here: a caller that goes away in the middle of a call leaves no half-sent request behind.
    tasks: Handle,
    leaders: Mutex<Arc<Leaders>>,
}

impl Cluster {
    /// `target` is what the config names, found out before there is anything to drop.
    pub(super) fn new(config: &FluvioConfig, target: FluvioClusterConfig, tasks: Handle) -> Self {
        Self {
            target,
            topic_prefix: config.topic_prefix.clone(),
            connect_timeout: Duration::from_millis(config.connect_timeout_ms),
            request_timeout: Duration::from_millis(config.request_timeout_ms),
            tasks,
            leaders: Mutex::default(),
        }
    }

    pub(super) fn endpoint(&self) -> &str {
        &self.target.endpoint
    }

    /// Returns where tasks of the log run.
    pub(super) fn tasks(&self) -> Handle {
        self.tasks.clone()
    }

    pub(super) fn topic_name(&self, topic: Topic) -> String {
        format!("{}{}", self.topic_prefix, topic.name())
    }

    /// Runs `work` with a connection to the controller.
    ///
    /// # Errors
    /// `Unavailable` if the controller does not answer in time, or the work failed.
    pub(super) async fn with_admin<T: Send + 'static, W>(
        &self,
        action: &'static str,
        work: impl FnOnce(FluvioAdmin) -> W + Send + 'static,
    ) -> Result<T>
    where
        W: Future<Output = Result<T, BoxedError>> + Send + 'static,
    {
        let target = self.target.clone();
        let task =
            self.tasks.spawn(async move { work(FluvioAdmin::connect_with_config(&target).await?).await });
        let abort = task.abort_handle();
        match tokio::time::timeout(self.connect_timeout, task).await {
            Ok(Ok(done)) => done.map_err(|error| unavailable(action, error)),
            Ok(Err(died)) => Err(unavailable(action, died)),
            Err(late) => {
                abort.abort();
                Err(unavailable(action, late))
            }
        }
    }

    /// Asks the controller who leads which partition.
    ///
    /// # Errors
    /// `Unavailable`; what was known stays.
    pub(super) async fn refresh_leaders(&self) -> Result<Arc<Leaders>> {
        let (partitions, servers) = self
            .with_admin("ask who leads its partitions", |admin| async move {
                Ok((admin.all::<PartitionSpec>().await?, admin.all::<SpuSpec>().await?))
            })
            .await?;
        let local = self.target.use_spu_local_address;
        let servers: HashMap<i32, Server> = servers
            .into_iter()
            .map(|found| {
                let spec = found.spec;
                let address = match spec.public_endpoint_local {
                    Some(endpoint) if local => format!("{}:{}", endpoint.host, endpoint.port),
                    _ => spec.public_endpoint.addr(),
                };
                (spec.id, Server { id: spec.id, name: found.name, address })
            })
            .collect();
        let mut leaders = Leaders::new();
        for partition in partitions {
            // Named `{topic}-{number}`.
            let Some((name, number)) = partition.name.rsplit_once('-') else { continue };
            let topic = Topic::ALL.into_iter().find(|topic| self.topic_name(*topic) == name);
            let server = servers.get(&partition.spec.leader);
            if let (Some(topic), Ok(number), Some(server)) = (topic, number.parse(), server) {
                leaders.insert(Slot { topic, partition: PartitionId(number) }, server.clone());
            }
        }
        let leaders = Arc::new(leaders);
        *self.leaders.lock().unwrap_or_else(PoisonError::into_inner) = leaders.clone();
        Ok(leaders)
    }

    /// Returns the server that leads a partition, as far as known.
    ///
    /// # Errors
    /// `Unavailable` if the controller knows none, or does not answer.
    pub(super) async fn leader(&self, slot: Slot) -> Result<Server> {
        let known = self.leaders.lock().unwrap_or_else(PoisonError::into_inner).get(&slot).cloned();
        let leader = match known {
            Some(leader) => Some(leader),
            None => self.refresh_leaders().await?.get(&slot).cloned(),
        };
        leader.ok_or_else(|| unavailable(format!("find the server of {slot}"), "no server leads it"))
    }

    /// # Errors
    /// `Unavailable` if the server does not answer in time.
    pub(super) async fn connect(&self, server: &Server) -> Result<Arc<Connection>> {
        let action = || format!("reach the server at {}", server.address);
        let config = ClientConfig::try_from(self.target.clone());
        let config = config.map_err(|error| unavailable(action(), error))?;
        let mut config = config.with_prefix_sni_domain(&server.name);
        config.set_addr(server.address.clone());
        let task = self.tasks.spawn(config.connect());
        let abort = task.abort_handle();
        let socket = match tokio::time::timeout(self.connect_timeout, task).await {
            Ok(Ok(connected)) => connected.map_err(|error| unavailable(action(), error))?,
            Ok(Err(died)) => return Err(unavailable(action(), died)),
            Err(late) => {
                abort.abort();
                return Err(unavailable(action(), late));
            }
        };
        let (socket, config, versions) = socket.split();
        let socket = VersionedSerialSocket::new(MultiplexerSocket::shared(socket), config, versions);
        let (tasks, timeout) = (self.tasks.clone(), self.request_timeout);
        Ok(Arc::new(Connection { socket: Arc::new(socket), tasks, timeout }))
    }
}

/// A connection to one server. After a failed call it is stale for good.
pub(super) struct Connection {
    socket: Arc<VersionedSerialSocket>,
    tasks: Handle,
    timeout: Duration,
}

impl Connection {
    pub(super) fn is_stale(&self) -> bool {
        self.socket.is_stale()
    }

    /// Sends a request and returns the answer.
    ///
    /// # Errors
    /// `Unavailable` if there was none in time: what became of the request is unknown.
    pub(super) async fn call<R>(&self, action: &'static str, request: R) -> Result<R::Response>
    where
        R: Request + Send + Sync + 'static,
        R::Response: Send + 'static,
    {
        let socket = self.socket.clone();
        let task = self.tasks.spawn(async move { socket.send_receive(request).await });
        let answer = match tokio::time::timeout(self.timeout, task).await {
            Ok(Ok(Ok(answer))) => return Ok(answer),
            Ok(Ok(Err(error))) => unavailable(action, error),
            Ok(Err(died)) => unavailable(action, died),
            Err(late) => unavailable(action, late),
        };
        self.socket.set_stale();
        Err(answer)
    }
}

/// The connection of one user to the leader of one partition, made when it is needed.
pub(super) struct Link {
    pub(super) cluster: Arc<Cluster>,
    pub(super) slot: Slot,
    current: tokio::sync::Mutex<Current>,
}

#[derive(Default)]
struct Current {
    connection: Option<Arc<Connection>>,
    /// When connecting failed last, and why.
    failed: Option<(Instant, String)>,
}

impl Link {
    pub(super) fn new(cluster: Arc<Cluster>, slot: Slot) -> Self {
        Self { cluster, slot, current: tokio::sync::Mutex::default() }
    }

    /// Calls the partition's leader.
    ///
    /// # Errors
    /// `Unavailable`; the next call connects again.
    pub(super) async fn call<R>(&self, action: &'static str, request: R) -> Result<R::Response>
    where
        R: Request + Send + Sync + 'static,
        R::Response: Send + 'static,
    {
        self.connection().await?.call(action, request).await
    }

    async fn connection(&self) -> Result<Arc<Connection>> {
        let asked = Instant::now();
        let mut current = self.current.lock().await;
        if let Some(connection) = current.connection.as_ref().filter(|connection| !connection.is_stale()) {
            return Ok(connection.clone());
        }
        // Whoever waited while another tried in vain has the answer: one after the other they would wait for minutes.
        if let Some((when, why)) = &current.failed
            && *when >= asked
        {
            return Err(unavailable(format!("reach the server of {}", self.slot), why.clone()));
        }
        current.connection = None;
        match self.connect().await {
            Ok(connection) => Ok(current.connection.insert(connection).clone()),
            Err(error) => {
                current.failed = Some((Instant::now(), error.to_string()));
                Err(error)
            }
        }
    }

    async fn connect(&self) -> Result<Arc<Connection>> {
        let leader = self.cluster.leader(self.slot).await?;
        let connected = self.cluster.connect(&leader).await;
        if connected.is_err() {
            // It may have moved to another address, or another server may lead by now. While the controller is down as
            // well, its last word stands.
            let _ = self.cluster.refresh_leaders().await;
        }
        connected
    }

    /// Begins anew: the next call connects.
    pub(super) async fn reopen(&self) {
        self.current.lock().await.connection = None;
    }

    /// Returns the error for an answer's code, having asked anew for what it says is wrong.
    pub(super) async fn refused(&self, action: &'static str, code: ErrorCode) -> Error {
        if matches!(
            code,
            ErrorCode::NotLeaderForPartition
                | ErrorCode::PartitionNotLeader
                | ErrorCode::TopicNotFound
                | ErrorCode::TopicDeleted
                | ErrorCode::PartitionPendingInitialization
        ) {
            // While the controller is down, its last word stands.
            let _ = self.cluster.refresh_leaders().await;
            self.reopen().await;
        }
        unavailable(format!("{action} {}", self.slot), code)
    }
}
