//! Damage in the archive: what no manifest names does not exist, and what one names must be there, byte for byte.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use twice_tests::one_at_a_time;

use super::{Scene, files, flip};
use crate::support::bill;

impl Scene {
    /// The first hour's close must fail, say every one of `words`, and write no row.
    fn is_not_billed(&self, words: &[&str]) -> Result<()> {
        let finished = self.node.command(&["reconcile", "--hour", &self.from.to_string()])?;
        ensure!(finished.code() == 2, "exit status {}", finished.code());
        let said = finished.expect(2)? + &self.node.log_tail();
        let missing: Vec<_> = words.iter().filter(|word| !said.contains(**word)).collect();
        ensure!(missing.is_empty(), "the message lacks {missing:?}:\n{said}");
        ensure!(bill(&self.node, self.from, 1)?.is_empty(), "a bill was written from a damaged archive");
        Ok(())
    }

    fn data_files(&self) -> Result<Vec<PathBuf>> {
        files(&self.node.data_dir().join("archive/clicks"), ".parquet")
    }

    /// Starts the stopped node; `archive_flush_interval_ms` at its default, everything is archived since the stop.
    fn restarted(seed: u64) -> Result<Self> {
        let mut scene = Self::stopped(seed)?;
        scene.node.restart()?;
        // A first close of the later hour moves the archive up to the end of the log.
        scene.node.reconcile(&scene.from.plus(1).to_string())?;
        Ok(scene)
    }
}

#[test]
fn a_parquet_file_without_a_manifest_does_not_exist() -> Result<()> {
    let _turn = one_at_a_time();
    let scene = Scene::restarted(51)?;
    for file in scene.data_files()? {
        let name = file.file_name().context("a name")?.to_string_lossy().replace(".parquet", "-copy.parquet");
        std::fs::copy(&file, file.with_file_name(name))?;
    }
    scene.prove()
}

#[test]
fn a_parquet_file_with_one_flipped_byte_is_named_and_bills_nothing() -> Result<()> {
    let _turn = one_at_a_time();
    let scene = Scene::restarted(52)?;
    let hour = format!("hour={}", &scene.from.to_string()[11..13]);
    let file = scene.data_files()?.into_iter().find(|path| path.to_string_lossy().contains(&hour));
    let file = file.context("a file of the hour")?;
    flip(&file, 1_000)?;
    let name = file.file_name().context("a name")?.to_string_lossy().into_owned();
    scene.is_not_billed(&[&name, "SHA-256", "restore"])?;
    flip(&file, 1_000)?;
    scene.prove()
}

#[test]
fn a_missing_parquet_file_is_named_and_bills_nothing() -> Result<()> {
    let _turn = one_at_a_time();
    let scene = Scene::restarted(53)?;
    let hour = format!("hour={}", &scene.from.to_string()[11..13]);
    let file = scene.data_files()?.into_iter().find(|path| path.to_string_lossy().contains(&hour));
    let file = file.context("a file of the hour")?;
    let aside = scene.node.root().join("aside.parquet");
    std::fs::rename(&file, &aside)?;
    let name = file.file_name().context("a name")?.to_string_lossy().into_owned();
    scene.is_not_billed(&[&name, "restore"])?;
    std::fs::rename(&aside, &file)?;
    scene.prove()
}

#[test]
fn a_missing_manifest_is_a_hole_and_bills_nothing() -> Result<()> {
    let _turn = one_at_a_time();
    let mut scene = Scene::stopped(54)?;
    // Several manifests a partition, so that one before the newest can be missing.
    for seed in [55, 56] {
        scene.node.restart()?;
        let name = format!("more-{seed}");
        let shape = twice_tests::LoadShape::small(&name, seed, &scene.from.plus(-20).to_string());
        shape.run(&scene.node)?;
        scene.node.reconcile(&scene.from.plus(-20).to_string())?;
        ensure!(scene.node.stop()?.success(), "graceful stop\n{}", scene.node.log_tail());
    }
    let manifests = files(&scene.node.data_dir().join("archive/manifests/ad-clicks/0/0"), ".json")?;
    ensure!(manifests.len() >= 2, "{manifests:?}");
    let aside = scene.node.root().join("aside.json");
    std::fs::rename(&manifests[0], &aside)?;
    scene.node.restart()?;
    let name = manifests[0].file_name().context("a name")?.to_string_lossy().into_owned();
    scene.is_not_billed(&[&name, "restore"])?;
    std::fs::rename(&aside, &manifests[0])?;
    scene.node.reconcile(&scene.from.to_string()).map(|_| ())
}
