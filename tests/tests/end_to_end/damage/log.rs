//! Damage in the hot log: what a crash explains is cut, what it does not explain stops the node, what does not decode
//! is kept aside.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use twice_log::fail::FailPoints;
use twice_log::fs::RealFs;
use twice_log::hot::embedded::{EmbeddedConfig, EmbeddedLog};
use twice_log::hot::{AppendRecord, ClickLog};
use twice_log::{PartitionId, Topic};
use twice_tests::{Node, NodeOptions, one_at_a_time};

use super::{Scene, files, flip};
use crate::support::wait_for;

/// As `NodeOptions::brisk` has it.
const SEGMENT_BYTES: u64 = 1 << 20;

/// Appends `bytes` to partition 0 of the clicks of a stopped node.
fn append(node: &Node, bytes: &'static [u8]) -> Result<()> {
    let config = EmbeddedConfig { segment_bytes: SEGMENT_BYTES, ..EmbeddedConfig::default() };
    let folder = node.data_dir().join("log");
    let log = EmbeddedLog::open(Arc::new(RealFs), &folder, config, FailPoints::default())?;
    let records = vec![AppendRecord { partition: PartitionId(0), bytes: bytes.into() }];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(log.append(Topic::AdClicks, records))?;
    log.close();
    Ok(())
}

/// The segments of partition 0 of the clicks, oldest first.
fn segments(node: &Node) -> Result<Vec<PathBuf>> {
    files(&node.data_dir().join("log/ad-clicks/0/0"), ".seg")
}

#[test]
fn a_torn_tail_is_cut_with_a_warning_and_the_log_goes_on() -> Result<()> {
    let _turn = one_at_a_time();
    let mut scene = Scene::stopped(41)?;
    append(&scene.node, b"a click of which nobody was told that it is stored")?;
    let newest = segments(&scene.node)?.pop().context("a segment")?;
    let mut bytes = std::fs::read(&newest)?;
    let end = bytes.iter().rposition(|byte| *byte != 0).context("something is written")?;
    // The crash came before the last bytes of the frame were on disk.
    bytes[end - 10..=end].fill(0);
    std::fs::write(&newest, bytes)?;
    scene.node.restart()?;
    let said = scene.node.log_tail();
    ensure!(said.contains("cutting an incomplete frame"), "no warning:\n{said}");
    scene.prove()
}

#[test]
fn a_flipped_bit_in_the_middle_of_a_segment_stops_the_node_and_names_the_place() -> Result<()> {
    let _turn = one_at_a_time();
    let mut scene = Scene::stopped(42)?;
    let newest = segments(&scene.node)?.pop().context("a segment")?;
    let bytes = std::fs::read(&newest)?;
    let end = bytes.iter().rposition(|byte| *byte != 0).context("something is written")?;
    flip(&newest, end / 2)?;
    let name = newest.file_name().context("a name")?.to_string_lossy().into_owned();
    scene.is_refused(&["damage in", &name, "at byte", "backup"])?;
    flip(&newest, end / 2)?;
    scene.node.restart()?;
    scene.prove()
}

#[test]
fn a_record_that_does_not_decode_is_kept_in_quarantine_and_counts_nowhere() -> Result<()> {
    let _turn = one_at_a_time();
    let mut scene = Scene::stopped(43)?;
    append(&scene.node, b"no click at all")?;
    scene.node.restart()?;
    wait_for("the record in the metrics", || {
        let metrics = scene.node.client().get("/metrics")?.body;
        let line = metrics.lines().find(|line| line.starts_with("twice_stream_undecodable_total"));
        Ok(line.filter(|line| line.ends_with(" 1")).map(|_| ()))
    })?;
    scene.prove()?;
    let kept = files(&scene.node.data_dir().join("archive/quarantine"), ".parquet")?;
    ensure!(kept.len() == 1, "{kept:?}");
    let manifests = files(&scene.node.data_dir().join("archive/manifests/ad-clicks/0/0"), ".json")?;
    let name = kept[0].file_name().context("a name")?.to_string_lossy().into_owned();
    let mut named = 0;
    for manifest in manifests {
        let text = std::fs::read_to_string(manifest)?;
        named += u32::from(text.contains(&name) && text.contains("\"quarantine\""));
    }
    ensure!(named == 1, "the file in quarantine is named by {named} manifests");
    Ok(())
}

#[test]
fn a_log_folder_that_vanished_under_checkpoints_or_the_archive_stops_the_node() -> Result<()> {
    let _turn = one_at_a_time();
    let mut scene = Scene::running(44, NodeOptions::brisk())?;
    scene.node.reconcile(&scene.from.to_string())?; // there are manifests from here on
    ensure!(scene.node.stop()?.success(), "graceful stop\n{}", scene.node.log_tail());
    let data = scene.node.data_dir();
    let put_aside = |name: &str| std::fs::rename(data.join(name), data.join(format!("{name}.aside")));
    put_aside("log")?;
    // Twice: the first start leaves an empty log behind, over which a second must not go on either.
    for _start in 0..2 {
        scene.is_refused(&["now ends at 0", "restore the log's data", "new data folder"])?;
    }
    // Without checkpoints the archive remembers how far the log reached.
    put_aside("sled")?;
    scene.is_refused(&["now ends at 0", "restore the log's data", "new data folder"])?;
    for name in ["log", "sled"] {
        std::fs::remove_dir_all(data.join(name))?;
        std::fs::rename(data.join(format!("{name}.aside")), data.join(name))?;
    }
    scene.node.restart()?;
    scene.prove()
}
