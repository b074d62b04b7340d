//! A billing store that cannot be written: refused at start with advice, and nothing else is lost by it.

use std::os::unix::fs::PermissionsExt;

use anyhow::Result;
use twice_tests::one_at_a_time;

use super::{Scene, files};

#[test]
fn a_read_only_billing_store_is_refused_at_start_with_advice() -> Result<()> {
    let _turn = one_at_a_time();
    let mut scene = Scene::stopped(61)?;
    let data_dir = scene.node.data_dir();
    let mode = |mode| -> Result<()> {
        // With its journal, and what a refused start left of it.
        let files = files(&data_dir, "")?;
        for file in files.iter().filter(|file| file.to_string_lossy().contains("twice.sqlite")) {
            std::fs::set_permissions(file, std::fs::Permissions::from_mode(mode))?;
        }
        Ok(())
    };
    mode(0o444)?;
    scene.node.obey_permissions();
    scene.is_refused(&["twice.sqlite", "read-only", "write permission"])?;
    mode(0o644)?;
    scene.node.restart()?;
    scene.prove()
}
