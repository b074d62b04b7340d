//! The topics of the log: created where they are absent, checked where they are not.

use std::sync::Arc;
use std::time::Duration;

use fluvio::metadata::objects::Metadata;
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

/// What the topics of a log have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) partitions: u32,
    /// Copies of each partition. What a topic was created with holds, whatever the setting says today.
    pub(super) copies: u32,
}

/// A topic of the cluster.
struct Present {
    name: String,
    shape: Shape,
}

/// Makes the topics as wanted and returns what they have in common.
///
/// # Errors
/// `Config` if the cluster cannot be reached, a topic has another partition count, topics differ, or there is none to
/// be read.
pub(super) async fn prepare(cluster: &Arc<Cluster>, config: &FluvioConfig, wanted: Wanted) -> Result<Shape> {
    let present = reached(cluster, config).await?;
    let mut topics = Vec::new();
    for topic in Topic::ALL {
        let name = cluster.topic_name(topic);
        let found = present.iter().find(|other| other.name == name).map(|found| found.shape);
        let shape = match (found, wanted) {
            (Some(Shape { partitions: count, .. }), Wanted::Partitions(wanted)) if count != wanted => {
                return Err(Error::Config {
                    reason: format!(
                        "the Fluvio topic {name} has {count} partitions and the setting says {wanted}: start with \
                         --partitions {count}, or with another --fluvio-topic-prefix and a new data folder"
                    ),
                });
            }
            (Some(shape), _) => shape,
            (None, Wanted::Partitions(wanted)) => create(cluster, config, name.clone(), wanted).await?,
            (None, Wanted::Existing) => {
                let endpoint = cluster.endpoint();
                return Err(Error::Config {
                    reason: format!(
                        "the Fluvio cluster at {endpoint} has no topic {name}; `twice up` creates it"
                    ),
                });
            }
        };
        topics.push(Present { name, shape });
    }
    let shape = in_common(&topics)?;
    if matches!(wanted, Wanted::Partitions(_)) && shape.copies != config.replication {
        tracing::warn!(
            copies = shape.copies,
            setting = config.replication,
            "the Fluvio topics were created with another number of copies than the setting says; theirs holds"
        );
    }
    wait_until_served(cluster, shape.partitions).await?;
    Ok(shape)
}

/// Clicks acknowledged by one rule and verdicts by another, or partitions without a counterpart, are no one log.
fn in_common(topics: &[Present]) -> Result<Shape> {
    let Some(Present { name: first, shape }) = topics.first() else {
        return Ok(Shape { partitions: 0, copies: 0 });
    };
    match topics.iter().find(|topic| topic.shape != *shape) {
        None => Ok(*shape),
        Some(Present { name, shape: other }) => Err(Error::Config {
            reason: format!(
                "the topics of one log differ: {first} has {} partitions and {} copies of each, {name} has {} and {}; \
                 start with another --fluvio-topic-prefix and a new data folder",
                shape.partitions, shape.copies, other.partitions, other.copies
            ),
        }),
    }
}

/// Returns the topics of the cluster, once its controller answers.
async fn reached(cluster: &Arc<Cluster>, config: &FluvioConfig) -> Result<Vec<Present>> {
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

async fn list(cluster: &Arc<Cluster>) -> Result<Vec<Present>> {
    let topics = cluster
        .with_admin("list its topics", |admin| async move { Ok(admin.all::<TopicSpec>().await?) })
        .await?;
    let present = |topic: Metadata<TopicSpec>| {
        // A mirror says nothing of copies: it is what its one server has.
        let copies = topic.spec.replication_factor().unwrap_or(1);
        Present { name: topic.name, shape: Shape { partitions: topic.spec.partitions(), copies } }
    };
    Ok(topics.into_iter().map(present).collect())
}

async fn create(
    cluster: &Arc<Cluster>,
    config: &FluvioConfig,
    name: String,
    partitions: u32,
) -> Result<Shape> {
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
        return Ok(Shape { partitions, copies: config.replication });
    };
    // Another node may have been first.
    let present = list(cluster).await?;
    let found = present.iter().find(|found| found.name == name && found.shape.partitions == partitions);
    if let Some(found) = found {
        return Ok(found.shape);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_that_differ_are_no_one_log() {
        let topic = |name: &str, partitions, copies| Present {
            name: name.to_owned(),
            shape: Shape { partitions, copies },
        };
        let same = [topic("ad-clicks", 4, 3), topic("fraud-verdicts", 4, 3)];
        assert_eq!(in_common(&same).expect("the same"), Shape { partitions: 4, copies: 3 });
        for (partitions, copies) in [(4, 1), (2, 3)] {
            let error = in_common(&[topic("ad-clicks", 4, 3), topic("fraud-verdicts", partitions, copies)]);
            let error = error.expect_err("they differ").to_string();
            assert!(error.contains("fraud-verdicts") && error.contains("--fluvio-topic-prefix"), "{error}");
        }
    }
}
