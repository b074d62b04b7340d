//! The stream's memory is a cache of the log: put back to any earlier state, damaged or lost, it gives the same counts.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use twice_log::Hour;
use twice_tests::{LoadShape, Node, NodeOptions, one_at_a_time};

use crate::support::{divergence, hours_ago, wait_for};

/// A node's data directory at rest, with what belongs to it.
struct Scene {
    node: Node,
    from: Hour,
    ledgers: Vec<std::path::PathBuf>,
}

/// Loads twice, closes the first hour in between, and dies: sealed state, open state, and a log beyond the checkpoint.
fn scene() -> Result<Scene> {
    let from = hours_ago(3);
    let mut node = Node::start(NodeOptions::brisk())?;
    let first = LoadShape::small("first", 31, &from.to_string()).run(&node)?;
    node.reconcile(&from.to_string())?;
    ensure!(node.stop()?.success(), "graceful stop\n{}", node.log_tail());
    copy_folder(&node.data_dir().join("sled"), &node.root().join("sled-earlier"))?;
    node.restart()?;
    let second = LoadShape::small("second", 32, &from.to_string()).run(&node)?;
    node.kill()?;
    Ok(Scene { node, from, ledgers: vec![first, second] })
}

/// Starts a new node over a copy of the scene's data after `change`, and proves every number.
fn counts_are_the_same_after(scene: &Scene, name: &str, change: impl Fn(&Path) -> Result<()>) -> Result<()> {
    eprintln!("checkpoints: {name}");
    let mut node = Node::prepare(NodeOptions::brisk())?;
    copy_folder(&scene.node.data_dir(), &node.data_dir())?;
    change(&node.data_dir())?;
    node.restart()?;
    node.prove(&scene.ledgers).with_context(|| format!("checkpoints {name}"))?;
    let rows = divergence(&node, scene.from, 2)?;
    ensure!(!rows.is_empty(), "no divergence rows");
    for row in rows {
        ensure!(row["stream"] == "complete" && row["unexplained"] == 0, "checkpoints {name}: {row}");
    }
    Ok(())
}

#[test]
fn checkpoints_put_back_damaged_or_lost_give_the_same_counts() -> Result<()> {
    let _turn = one_at_a_time();
    let scene = scene()?;
    let earlier = scene.node.root().join("sled-earlier");
    counts_are_the_same_after(&scene, "as they were", |_| Ok(()))?;
    counts_are_the_same_after(&scene, "put back to an earlier copy", |data| {
        let folder = data.join("sled/checkpoints");
        std::fs::remove_dir_all(&folder)?;
        copy_folder(&earlier.join("checkpoints"), &folder)
    })?;
    counts_are_the_same_after(&scene, "removed", |data| {
        Ok(std::fs::remove_dir_all(data.join("sled/checkpoints"))?)
    })?;
    counts_are_the_same_after(&scene, "removed together with the windows", |data| {
        Ok(std::fs::remove_dir_all(data.join("sled"))?)
    })?;
    counts_are_the_same_after(&scene, "damaged", |data| damage(&data.join("sled/checkpoints")))
}

#[test]
fn a_lost_seal_does_not_change_a_number_once_shown() -> Result<()> {
    let _turn = one_at_a_time();
    let mut scene = scene()?;
    let hour = scene.from.to_string();
    let path = format!("/v1/divergence?hour={hour}");
    scene.node.restart()?;
    let before = scene.node.client().get_rows(&path)?;
    scene.node.kill()?;
    std::fs::remove_dir_all(scene.node.data_dir().join("sled"))?;
    scene.node.restart()?;
    scene.node.reconcile(&hour)?;
    let after = wait_for("the hour's divergence", || {
        let rows = scene.node.client().get_rows(&path)?;
        Ok((!rows.is_empty()).then_some(rows))
    })?;
    for row in &before {
        let same = after.iter().find(|other| other["campaign_id"] == row["campaign_id"]);
        let same = same.with_context(|| format!("{row} is gone"))?;
        ensure!(same["preliminary"] == row["preliminary"], "the seal's number changed: {row} became {same}");
    }
    Ok(())
}

/// Overwrites a stretch in the middle of every file.
fn damage(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            damage(&path)?;
            continue;
        }
        let mut bytes = std::fs::read(&path)?;
        let length = bytes.len();
        bytes[length / 3..length / 2].fill(0x5a);
        std::fs::write(&path, bytes)?;
    }
    Ok(())
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}
