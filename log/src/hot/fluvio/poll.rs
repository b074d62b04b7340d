//! Asking for ends: of one partition with certainty, and of all that someone waits for in one request a server.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use fluvio::dataplane::link::ErrorCode;
use fluvio::dataplane::record::{BATCH_FILE_HEADER_SIZE, Batch, RawRecords};
use fluvio_spu_schema::server::fetch_offset::{FetchOffsetPartition, FetchOffsetTopic, FetchOffsetsRequest};

use super::Parts;
use super::cluster::{Cluster, Connection, Server, Slot, unavailable};
use super::read::{Fetch, Fetched};
use crate::error::Result;
use crate::event::LogOffset;
use crate::hot::OffsetBounds;

/// Wait after a poll that failed: nobody is helped by asking a dead server a hundred times a second.
const FAILED_PAUSE: Duration = Duration::from_millis(250);
/// Room of an answer that looks for the end, at least: more than writers store while it is under way.
const STORED_BYTES_MIN: u32 = 4 * 1024 * 1024;
/// Answers after which the end of what is stored is not looked for any more; about 256 MiB.
const STORED_ROUNDS_MAX: u32 = 64;

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
    let end = if parts.copies == 1 {
        let bytes_max = reader.fetch_bytes_max.max(STORED_BYTES_MIN);
        stored_end(&reader.source, slot, committed, bytes_max).await?
    } else {
        committed
    };
    parts.tips.told(slot, known, end)?;
    Ok(OffsetBounds { earliest, end })
}

/// Returns an end of what is stored that lies at or above the one when it was asked, from the committed end on.
///
/// A lone server writes down what is committed a moment after it acknowledged it: killed in between, it comes back with
/// a committed end that lies below acknowledged records, and says so until the next append. Writers go on meanwhile, so
/// the end is not chased: an answer with room left held all there was in its segment file, and two such answers leave no
/// file behind.
///
/// # Errors
/// `Unavailable` if so much lies behind the committed end that no answer has room left.
pub(super) async fn stored_end(
    source: &impl Fetch,
    slot: Slot,
    committed: LogOffset,
    bytes_max: u32,
) -> Result<LogOffset> {
    let (mut end, mut with_room) = (committed, 0);
    for _round in 0..STORED_ROUNDS_MAX {
        let Fetched { batches, .. } = source.fetch(end, bytes_max).await?;
        let last = batches.iter().map(|batch| LogOffset(batch.get_last_offset()).next()).max();
        let Some(last) = last.filter(|last| *last > end) else { return Ok(end) };
        end = last;
        with_room += u32::from(!is_full(&batches, bytes_max));
        if with_room == 2 {
            return Ok(end);
        }
    }
    let source = format!("from {committed} to {end} and beyond, nothing is committed");
    Err(unavailable(format!("find the end of {slot}"), source))
}

/// Says whether more may have been stored than the answer had room for. What is cut inside a header is not seen at all.
fn is_full(batches: &[Batch<RawRecords>], bytes_max: u32) -> bool {
    let bytes: usize = batches.iter().map(|batch| BATCH_FILE_HEADER_SIZE + batch.records().0.len()).sum();
    bytes + BATCH_FILE_HEADER_SIZE > bytes_max as usize
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
    let mut all = Ok(()); // one partition that cannot be told of keeps none of the others waiting
    for (slot, found) in ends(&parts.cluster, answer, slots) {
        let known = slots.iter().position(|other| *other == slot).and_then(|index| known.get(index));
        let Some(Ok(known)) = known else { continue }; // it went backwards, and its waiters know
        let told = match found {
            Ok((_, committed)) if known.is_some_and(|known| committed >= known) => {
                parts.tips.told(slot, *known, committed)
            }
            // Behind, or the first answer: look closely.
            Ok(_) => bounds(parts, slot).await.map(|_| ()),
            Err(code) => Err(unavailable(format!("read the ends of {slot}"), code)),
        };
        all = all.and(told);
    }
    all
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
