//! The topics of the log: created where they are absent, checked where they are not.

use std::sync::Arc;
use std::time::Duration;

use fluvio::metadata::partition::PartitionSpec;
use fluvio::metadata::topic::{CleanupPolicy, SegmentBasedPolicy, TopicSpec, TopicStorageConfig};

use super::FluvioConfig;
use super::cluster::{Cluster, unavailable};
use crate::error::{Error, Result};
use crate::event::Topic;

/// How long a new topic may take until a server serves each of its partitions, and how often it is looked at.
const SERVED_LIMIT: Duration = Duration::from_secs(30);
const SERVED_POLL: Duration = Duration::from_millis(50);
const START_PAUSE: Duration = Duration::from_millis(200);

/// What is done about topics at open.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wanted {
    /// This many partitions; created where absent.
    Partitions(u32),
    /// Whatever is there; nothing is created.
    Existing,
}

/// Makes the topics as wanted and returns their partition count.
///
/// # Errors
/// `Config` if the cluster cannot be reached, a topic has another partition count, or there is none to be read.
pub(super) async fn prepare(cluster: &Arc<Cluster>, config: &FluvioConfig, wanted: Wanted) -> Result<u32> {
    let present = reached(cluster, config).await?;
    let mut partitions = None;
    for topic in Topic::ALL {
        let name = cluster.topic_name(topic);
        let found = present.iter().find(|(other, _)| *other == name).map(|(_, count)| *count);
        let count = match (found, wanted) {
            (Some(count), Wanted::Partitions(wanted)) if count != wanted => {
                return Err(Error::Config {
                    reason: format!(
                        "the Fluvio topic {name} has {count} partitions and the setting says {wanted}: start with \
                         --partitions {count}, or with another --fluvio-topic-prefix and a new data folder"
                    ),
                });
            }
            (Some(count), _) => count,
            (None, Wanted::Partitions(wanted)) => {
                create(cluster, config, name.clone(), wanted).await?;
                wanted
            }
            (None, Wanted::Existing) => {
                let endpoint = cluster.endpoint();
                return Err(Error::Config {
                    reason: format!(
                        "the Fluvio cluster at {endpoint} has no topic {name}; `twice up` creates it"
                    ),
                });
            }
        };
        if partitions.is_some_and(|other| other != count) {
            let reason = format!("the topics of one log have different partition counts: {name} has {count}");
            return Err(Error::Config { reason });
        }
        partitions = Some(count);
    }
    let partitions = partitions.unwrap_or_default();
    wait_until_served(cluster, partitions).await?;
    Ok(partitions)
}

/// Returns the topics of the cluster with their partition counts, once its controller answers.
async fn reached(cluster: &Arc<Cluster>, config: &FluvioConfig) -> Result<Vec<(String, u32)>> {
    let limit = Duration::from_millis(config.connect_timeout_ms);
    let begun = tokio::time::Instant::now();
    loop {
        match list(cluster).await {
            Ok(topics) => return Ok(topics),
            // A controller that is just starting refuses connections.
            Err(_) if begun.elapsed() + START_PAUSE < limit => tokio::time::sleep(START_PAUSE).await,
            Err(error) => {
                let endpoint = cluster.endpoint();
                return Err(Error::Config {
                    reason: format!(
                        "no Fluvio cluster answers at {endpoint} ({error}): start it (`fluvio cluster start`), or \
                         correct --fluvio-endpoint or the profile"
                    ),
                });
            }
        }
    }
}

async fn list(cluster: &Arc<Cluster>) -> Result<Vec<(String, u32)>> {
    let topics = cluster
        .with_admin("list its topics", |admin| async move { Ok(admin.all::<TopicSpec>().await?) })
        .await?;
    Ok(topics.into_iter().map(|topic| (topic.name, topic.spec.partitions())).collect())
}

async fn create(cluster: &Arc<Cluster>, config: &FluvioConfig, name: String, partitions: u32) -> Result<()> {
    let mut spec = TopicSpec::new_computed(partitions, config.replication, None);
    spec.set_cleanup_policy(CleanupPolicy::Segment(SegmentBasedPolicy {
        time_in_seconds: config.retention_s,
    }));
    spec.set_storage(TopicStorageConfig {
        segment_size: None,
        max_partition_size: Some(config.partition_bytes_max),
    });
    let topic = name.clone();
    let created = cluster
        .with_admin("create a topic", |admin| async move { Ok(admin.create(topic, false, spec).await?) })
        .await;
    let Err(error) = created else {
        tracing::info!(topic = %name, partitions, replication = config.replication, "Fluvio topic created");
        return Ok(());
    };
    // Another node may have been first.
    if list(cluster).await?.contains(&(name.clone(), partitions)) {
        return Ok(());
    }
    Err(Error::Config {
        reason: format!(
            "the Fluvio topic {name} with {partitions} partitions and {} copies of each cannot be created: {error}; \
             are there as many SPUs (`fluvio cluster spu list`)?",
            config.replication
        ),
    })
}

/// Waits until a server leads each partition and serves it.
async fn wait_until_served(cluster: &Arc<Cluster>, partitions: u32) -> Result<()> {
    let names: Vec<String> = Topic::ALL
        .into_iter()
        .flat_map(|topic| (0..partitions).map(move |number| (topic, number)))
        .map(|(topic, number)| format!("{}-{number}", cluster.topic_name(topic)))
        .collect();
    let begun = tokio::time::Instant::now();
    loop {
        let served = cluster
            .with_admin(
                "look at its partitions",
                |admin| async move { Ok(admin.all::<PartitionSpec>().await?) },
            )
            .await
            .map(|found| {
                let online =
                    found.iter().filter(|found| found.status.is_online() && names.contains(&found.name));
                online.count()
            });
        match served {
            Ok(count) if count == names.len() => break,
            _ if begun.elapsed() < SERVED_LIMIT => tokio::time::sleep(SERVED_POLL).await,
            Ok(count) => {
                return Err(Error::Config {
                    reason: format!(
                        "{count} of {} partitions are served after {SERVED_LIMIT:?}: start the SPUs of the Fluvio \
                         cluster at {} (`fluvio cluster spu list` shows which are offline)",
                        names.len(),
                        cluster.endpoint()
                    ),
                });
            }
            Err(error) => return Err(unavailable("serve its partitions", error)),
        }
    }
    cluster.refresh_leaders().await.map(|_| ())
}
