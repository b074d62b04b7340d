//! Tests of the embedded log as a whole, on real files.

mod behaviour;
mod crash;
mod damage;
mod gate;
mod readers;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::frame::{FRAME_HEADER_BYTES, FrameHeader};
use super::scan::FramePlace;
use super::segment::SEGMENT_HEADER_BYTES;
use super::*;
use crate::hot::conformance::read_all;

const TOPIC: Topic = Topic::AdClicks;
const ZERO: PartitionId = PartitionId(0);

/// Two partitions, segments of 4 KiB, and nothing in memory, so that every read is one of a file.
fn small() -> EmbeddedConfig {
    EmbeddedConfig {
        partitions: 2,
        segment_bytes: 4096,
        tail_cache_bytes_max: 0,
        ..EmbeddedConfig::default()
    }
}

fn open(directory: &Path, config: EmbeddedConfig) -> Result<EmbeddedLog> {
    EmbeddedLog::open(Arc::new(RealFs), directory, config, FailPoints::default())
}

fn records(partition: u32, texts: impl IntoIterator<Item = String>) -> Vec<AppendRecord> {
    let record = |text: String| AppendRecord { partition: PartitionId(partition), bytes: text.into() };
    texts.into_iter().map(record).collect()
}

async fn append_text(log: &EmbeddedLog, text: &str) -> Result<()> {
    log.append(TOPIC, records(0, [text.to_owned()])).await
}

/// Reads all of partition 0 as texts.
async fn texts(log: &EmbeddedLog) -> Vec<String> {
    let earliest = log.bounds(TOPIC, ZERO).await.expect("bounds").earliest;
    let all = read_all(log, TOPIC, ZERO, earliest, 1_000).await;
    all.iter().map(|bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned()).collect()
}

/// Returns the segments of partition 0, in order.
fn segments(directory: &Path) -> Vec<PathBuf> {
    let mut paths = RealFs.list(&directory.join("ad-clicks/0/0")).expect("listed");
    paths.sort();
    paths
}

/// Returns the places of a segment's frames.
fn frames(segment: &Path) -> Vec<FramePlace> {
    let bytes = std::fs::read(segment).expect("readable");
    let (mut at, mut found) = (SEGMENT_HEADER_BYTES, Vec::new());
    while let Some(header) = bytes.get(at..at + FRAME_HEADER_BYTES)
        && let Ok(header) = FrameHeader::decode(header.try_into().expect("that long"))
    {
        found.push(FramePlace { at: at as u64, bytes: header.frame_bytes() });
        at += header.frame_bytes();
    }
    found
}
