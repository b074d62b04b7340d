//! Files of sled with bytes flipped or gone while the process was down: moved aside or not, no count changes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::restarts::drawn;
use super::site::Site;
use crate::testing::{NOON_MS, clicks, files_below};

/// Overwrites a stretch of a file, or flips one bit of it.
fn damage(file: &Path, from: usize, length: usize) {
    let mut bytes = fs::read(file).expect("read");
    let from = from.min(bytes.len().saturating_sub(1));
    let to = (from + length).min(bytes.len());
    bytes[from..to].iter_mut().for_each(|byte| *byte ^= 0x20);
    fs::write(file, bytes).expect("write");
}

async fn survives(name: &str) {
    let mut site = Site::new();
    let running = site.start().await;
    site.append(clicks(&drawn(400), NOON_MS)).await;
    let expected = site.expected(&BTreeMap::new());
    site.shows(&running, &expected).await;
    running.stop().await;
    site.keep(name, "whole");
    let files = files_below(&site.folder(name));
    for file in &files {
        let length = usize::try_from(fs::metadata(file).expect("metadata").len()).expect("fits");
        for place in 0..4 {
            site.put_back("whole", name);
            match place {
                0 => fs::remove_file(file).expect("remove"),
                _ => damage(file, length * place / 5, if place == 1 { 1 } else { 3_000 }),
            }
            let running = site.start().await;
            site.shows(&running, &expected).await;
            running.stop().await;
        }
    }
    assert!(!files.is_empty());
}

#[actix::test]
async fn damaged_checkpoints_are_rebuilt_with_the_same_counts() {
    survives("checkpoints").await;
}

#[actix::test]
async fn a_damaged_store_of_windows_is_filled_again_from_the_state() {
    survives("windows").await;
}
