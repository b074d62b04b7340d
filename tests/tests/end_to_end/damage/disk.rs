//! A full disk: below the reserve nothing more is acknowledged, nothing acknowledged is lost, and with room again
//! everything goes on.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use twice_tests::{LoadShape, Node, NodeOptions, one_at_a_time, run};

use crate::support::{hours_ago, wait_for};

/// A small disk of its own, mounted where the node's data goes.
pub(crate) struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    /// `None` where this user may not mount; the test then says that it was skipped.
    pub(crate) fn mount(at: &Path, mebibytes: u32) -> Result<Option<Self>> {
        std::fs::create_dir_all(at)?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m"), "count-twice-test"]).arg(at);
        let mounted = run(&mut mount, Duration::from_secs(30))?.code() == 0;
        Ok(mounted.then(|| Self { at: at.to_path_buf() }))
    }

    /// Fills what is free but for `percent` of the whole, and returns the file that does it.
    pub(crate) fn fill_to(&self, percent: u64) -> Result<PathBuf> {
        let space = rustix::fs::statvfs(&self.at)?;
        let left = space.f_blocks * percent / 100;
        let bytes = space.f_bavail.saturating_sub(left) * space.f_frsize;
        let path = self.at.join("filler");
        let mut file = std::fs::File::create(&path)?;
        let block = vec![1; 1 << 16];
        for _ in 0..bytes / block.len() as u64 {
            match file.write_all(&block) {
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => break, // the node wrote meanwhile
                written => written?,
            }
        }
        Ok(path)
    }

    /// Makes it read-only, as the kernel does after an I/O error; says whether it could: nobody may be writing.
    pub(crate) fn make_read_only(&self) -> Result<bool> {
        self.remount("remount,ro")
    }

    /// Makes it writable again.
    pub(crate) fn make_writable(&self) -> Result<()> {
        ensure!(self.remount("remount,rw")?, "{} cannot be made writable", self.at.display());
        Ok(())
    }

    fn remount(&self, options: &str) -> Result<bool> {
        let mut mount = Command::new("mount");
        mount.args(["-o", options]).arg(&self.at);
        Ok(run(&mut mount, Duration::from_secs(30))?.code() == 0)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a node that a failed test left behind still holds files on it.
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

fn a_click(number: u32) -> serde_json::Value {
    json!({
        "click_id": format!("0194f3a0-1111-7222-8333-{number:012}"), "campaign_id": "full-disk",
        "ad_id": "a", "event_time": hours_ago(2).start().to_string(),
    })
}

#[test]
fn below_the_reserve_nothing_is_acknowledged_and_above_it_everything_goes_on() -> Result<()> {
    let _turn = one_at_a_time();
    let mut node = Node::prepare(NodeOptions::brisk())?;
    let Some(disk) = SmallDisk::mount(&node.data_dir(), 256)? else {
        eprintln!("SKIPPED: this user may not mount a small disk; the full disk is not tested");
        return Ok(());
    };
    node.restart()?;
    let from = hours_ago(3);
    let first = LoadShape::small("before", 71, &from.to_string()).run(&node)?;

    let filler = disk.fill_to(3)?;
    let ready = wait_for("the refusal", || {
        let answer = node.client().get("/readyz")?;
        Ok((answer.status == 503).then_some(answer))
    })?;
    ensure!(ready.body.contains("disk_free_percent_min"), "{ready:?}");
    let refused = node.client().post_json("/v1/clicks", &a_click(1))?;
    let body = refused.json()?;
    ensure!(refused.status == 503 && body["accepted"] == 0 && body["retry"] == json!([0]), "{body}");
    ensure!(!refused.header("retry-after").is_empty(), "{refused:?}");
    ensure!(node.client().get("/livez")?.status == 200, "it lives");
    // What was taken is still shown, and reading needs no room.
    ensure!(node.client().get("/v1/stream")?.status == 200, "it answers");

    std::fs::remove_file(filler)?;
    wait_for("the node taking clicks again", || {
        Ok((node.client().get("/readyz")?.status == 200).then_some(()))
    })?;
    let second = LoadShape::small("after", 72, &from.to_string()).run(&node)?;
    node.prove(&[first, second])?;
    node.kill()
}

#[test]
fn a_disk_filled_to_the_last_byte_loses_nothing_that_was_acknowledged() -> Result<()> {
    let _turn = one_at_a_time();
    let settings = "log_segment_bytes = 1048576\ncheckpoint_interval_ms = 700\ndisk_free_percent_min = 0\n";
    let options = NodeOptions { settings: Some(settings.to_owned()), ..NodeOptions::default() };
    let mut node = Node::prepare(options)?;
    let Some(disk) = SmallDisk::mount(&node.data_dir(), 256)? else {
        eprintln!("SKIPPED: this user may not mount a small disk; the full disk is not tested");
        return Ok(());
    };
    node.restart()?;
    let mut shape = LoadShape::small("through", 73, &hours_ago(3).to_string());
    shape.duration = Duration::from_secs(12);
    let load = shape.start(&node)?;
    std::thread::sleep(Duration::from_secs(3));
    let filler = disk.fill_to(0)?;
    std::thread::sleep(Duration::from_secs(4));
    std::fs::remove_file(filler)?;
    // The log may have stopped at a failed write, which a restart ends; the senders send again what was not answered.
    // Meanwhile clicks may be spooled: the log says itself that it stopped.
    let ready = node.client().get("/readyz");
    let is_stopped =
        ready.is_ok_and(|answer| answer.status != 200 || answer.body.contains("restart the node"));
    if is_stopped || takes_nothing(&node)? {
        node.kill()?;
        node.restart()?;
    }
    let ledger = load.finish(&node)?;
    if takes_nothing(&node)? {
        bail!("the node takes nothing after the disk had room again\n{}", node.log_tail());
    }
    // Not exclusively: the clicks that asked whether it takes any are in the bill too.
    node.wait_drained()?;
    let verified = node.verify(&[ledger], &["--reconcile", "--require-complete", "--extra-copies"])?;
    verified.expect(0).with_context(|| node.log_tail()).context("after the disk was full")?;
    node.kill()
}

fn takes_nothing(node: &Node) -> Result<bool> {
    Ok(node.client().post_json("/v1/clicks", &a_click(2))?.status != 202)
}
