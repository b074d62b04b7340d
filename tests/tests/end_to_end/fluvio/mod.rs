//! The hot log on a real Fluvio cluster, by itself and below a whole node.

mod log;
mod node;

use std::sync::Arc;

use anyhow::Result;
use twice_log::WallClock;
use twice_log::hot::fluvio::{FluvioConfig, FluvioLog};
use twice_tests::FluvioCluster;

fn config(cluster: &FluvioCluster, prefix: &str) -> FluvioConfig {
    FluvioConfig {
        endpoint: Some(cluster.endpoint().to_owned()),
        topic_prefix: prefix.to_owned(),
        ..FluvioConfig::default()
    }
}

async fn open(config: &FluvioConfig, partitions: u32) -> Result<FluvioLog, twice_log::Error> {
    FluvioLog::open(config, partitions, Arc::new(WallClock)).await
}

fn run<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(work)
}
