//! Asking for ends: of one partition with certainty, and of all that someone waits for in one request a server.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use fluvio::dataplane::link::ErrorCode;
use fluvio_spu_schema::server::fetch_offset::{FetchOffsetPartition, FetchOffsetTopic, FetchOffsetsRequest};

use super::cluster::{Cluster, Connection, Server, Slot, unavailable};
use super::read::{Fetch, Fetched};
use super::{Parts, ReaderOfLeader};
use crate::error::Result;
use crate::event::LogOffset;
use crate::hot::OffsetBounds;

/// Wait after a poll that failed: nobody is helped by asking a dead server a hundred times a second.
const FAILED_PAUSE: Duration = Duration::from_millis(250);

/// Returns the offsets a partition holds.
///
/// # Errors
/// `Unavailable`; `WentBackwards`.
pub(super) async fn bounds(parts: &Parts, slot: Slot) -> Result<OffsetBounds> {
    let reader = parts.reader(slot)?;
    let known = parts.tips.known(slot)?;
    let link = &reader.source.link;
    let answer = link.call("read the ends", request(&link.cluster, &[slot])).await?;
    let told = ends(&link.cluster, answer, &[slot]).pop();
    let (earliest, committed) = match told {
        Some((_, Ok(found))) => found,
        Some((_, Err(code))) => return Err(link.refused("read the ends of", code).await),
        None => return Err(unavailable("read the ends", "the answer is about another partition")),
    };
    let end = if parts.replication == 1 { stored_end(reader, committed).await? } else { committed };
    parts.tips.told(slot, known, end)?;
    Ok(OffsetBounds { earliest, end })
}

/// Returns the end of what is stored, from the committed end on.
///
/// A lone server writes down what is committed a moment after it acknowledged it: killed in between, it comes back with
/// a committed end that lies below acknowledged records, and says so until the next append.
async fn stored_end(reader: &ReaderOfLeader, committed: LogOffset) -> Result<LogOffset> {
    let mut end = committed;
    loop {
        let Fetched { batches, .. } = reader.source.fetch(end, reader.fetch_bytes_max).await?;
        let last = batches.iter().map(|batch| LogOffset(batch.get_last_offset()).next()).max();
        match last.filter(|last| *last > end) {
            Some(last) => end = last,
            None => return Ok(end),
        }
    }
}

/// Tells waiters of records of other writers; ends when the log is dropped.
pub(super) async fn run(parts: Arc<Parts>, interval: Duration) {
    let mut connections: HashMap<i32, Arc<Connection>> = HashMap::new();
    loop {
        let waited_for = parts.tips.waited_for();
        if waited_for.is_empty() {
            parts.tips.someone_waits.notified().await;
            continue;
        }
        let mut failed = false;
        let mut by_server: HashMap<i32, (Server, Vec<Slot>)> = HashMap::new();
        for slot in waited_for {
            match parts.cluster.leader(slot).await {
                Ok(server) => by_server.entry(server.id).or_insert((server, Vec::new())).1.push(slot),
                Err(error) => {
                    tracing::debug!(%error, "no leader to ask for ends");
                    failed = true;
                }
            }
        }
        for (server, slots) in by_server.into_values() {
            if let Err(error) = ask(&parts, &mut connections, &server, &slots).await {
                tracing::debug!(%error, "asking for ends failed");
                failed = true;
            }
        }
        if failed {
            let _ = parts.cluster.refresh_leaders().await; // while the controller is down, its last word stands
        }
        tokio::time::sleep(if failed { FAILED_PAUSE } else { interval }).await;
    }
}

async fn ask(
    parts: &Arc<Parts>,
    connections: &mut HashMap<i32, Arc<Connection>>,
    server: &Server,
    slots: &[Slot],
) -> Result<()> {
    connections.retain(|_, connection| !connection.is_stale());
    let connection = match connections.get(&server.id) {
        Some(connection) => connection.clone(),
        None => {
            let connection = parts.cluster.connect(server).await?;
            connections.insert(server.id, connection.clone());
            connection
        }
    };
    let known = slots.iter().map(|slot| parts.tips.known(*slot)).collect::<Vec<_>>();
    let answer = connection.call("read the ends", request(&parts.cluster, slots)).await?;
    for (slot, found) in ends(&parts.cluster, answer, slots) {
        let known = slots.iter().position(|other| *other == slot).and_then(|index| known.get(index));
        let Some(Ok(known)) = known else { continue }; // it went backwards, and its waiters know
        match found {
            Ok((_, committed)) if known.is_some_and(|known| committed >= known) => {
                parts.tips.told(slot, *known, committed)?;
            }
            // Behind, or the first answer: look closely.
            Ok(_) => bounds(parts, slot).await.map(|_| ())?,
            Err(code) => return Err(unavailable(format!("read the ends of {slot}"), code)),
        }
    }
    Ok(())
}

fn request(cluster: &Cluster, slots: &[Slot]) -> FetchOffsetsRequest {
    let mut topics: Vec<FetchOffsetTopic> = Vec::new();
    for slot in slots {
        let name = cluster.topic_name(slot.topic);
        let partition = FetchOffsetPartition { partition_index: slot.partition.0 };
        match topics.iter_mut().find(|topic| topic.name == name) {
            Some(topic) => topic.partitions.push(partition),
            None => topics.push(FetchOffsetTopic { name, partitions: vec![partition] }),
        }
    }
    FetchOffsetsRequest { topics, ..Default::default() }
}

type Ends = (Slot, Result<(LogOffset, LogOffset), ErrorCode>);

fn ends(
    cluster: &Cluster,
    answer: fluvio_spu_schema::server::fetch_offset::FetchOffsetsResponse,
    slots: &[Slot],
) -> Vec<Ends> {
    let mut found = Vec::new();
    for topic in answer.topics {
        for partition in topic.partitions {
            let slot = slots.iter().find(|slot| {
                slot.partition.0 == partition.partition_index && cluster.topic_name(slot.topic) == topic.name
            });
            let Some(slot) = slot else { continue };
            let ends = match partition.error_code {
                ErrorCode::None => {
                    Ok((LogOffset(partition.start_offset), LogOffset(partition.last_stable_offset)))
                }
                code => Err(code),
            };
            found.push((*slot, ends));
        }
    }
    found
}
