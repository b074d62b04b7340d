use std::io;

use tempfile::TempDir;

use super::*;

fn forgetful() -> (TempDir, ForgetfulFs) {
    let root = tempfile::tempdir().expect("a temporary directory");
    let forgetful = ForgetfulFs::new(root.path()).expect("opened");
    (root, forgetful)
}

fn after_crash(forgetful: &ForgetfulFs, unsynced: Unsynced) -> TempDir {
    let target = tempfile::tempdir().expect("a temporary directory");
    forgetful.crash_into(target.path(), unsynced).expect("crashed");
    target
}

#[test]
fn bytes_without_a_sync_are_lost_and_synced_ones_stay() -> io::Result<()> {
    let (root, forgetful) = forgetful();
    let file = forgetful.create_new(&root.path().join("a"))?;
    file.write_all_at(b"kept", 0)?;
    file.sync_data()?;
    file.write_all_at(b"lost", 4)?;
    forgetful.sync_dir(root.path())?;
    assert_eq!(std::fs::read(root.path().join("a"))?, b"keptlost");
    let left = after_crash(&forgetful, Unsynced::Lost);
    assert_eq!(std::fs::read(left.path().join("a"))?, b"kept");
    Ok(())
}

#[test]
fn a_file_whose_directory_was_not_synced_is_lost_with_its_bytes() -> io::Result<()> {
    let (root, forgetful) = forgetful();
    let file = forgetful.create_new(&root.path().join("a"))?;
    file.write_all_at(b"bytes", 0)?;
    file.sync_data()?;
    let left = after_crash(&forgetful, Unsynced::Lost);
    assert!(!left.path().join("a").exists());
    Ok(())
}

#[test]
fn an_unsynced_rename_and_removal_are_undone() -> io::Result<()> {
    let (root, forgetful) = forgetful();
    for name in ["old", "gone"] {
        let file = forgetful.create_new(&root.path().join(name))?;
        file.write_all_at(name.as_bytes(), 0)?;
        file.sync_data()?;
    }
    forgetful.sync_dir(root.path())?;
    forgetful.rename(&root.path().join("old"), &root.path().join("new"))?;
    forgetful.remove_file(&root.path().join("gone"))?;
    let left = after_crash(&forgetful, Unsynced::Lost);
    assert_eq!(std::fs::read(left.path().join("old"))?, b"old");
    assert_eq!(std::fs::read(left.path().join("gone"))?, b"gone");
    forgetful.sync_dir(root.path())?;
    let left = after_crash(&forgetful, Unsynced::Lost);
    assert_eq!(std::fs::read(left.path().join("new"))?, b"old");
    assert!(!left.path().join("old").exists() && !left.path().join("gone").exists());
    Ok(())
}

#[test]
fn create_dir_all_leaves_durable_directories() -> io::Result<()> {
    let (root, forgetful) = forgetful();
    forgetful.create_dir_all(&root.path().join("a/b/c"))?;
    assert_eq!(forgetful.sync_points(), 3);
    forgetful.create_dir_all(&root.path().join("a/b/c"))?;
    assert_eq!(forgetful.sync_points(), 3, "nothing was new");
    forgetful.crash(Unsynced::Lost)?;
    assert!(root.path().join("a/b/c").is_dir());
    Ok(())
}

#[test]
fn a_second_link_keeps_the_same_bytes_and_a_taken_name_is_refused() -> io::Result<()> {
    let (root, forgetful) = forgetful();
    let (first, second) = (root.path().join("first"), root.path().join("second"));
    let file = forgetful.create_new(&first)?;
    file.write_all_at(b"one", 0)?;
    file.sync_data()?;
    forgetful.hard_link(&first, &second)?;
    let refused = forgetful.hard_link(&first, &second).expect_err("taken");
    assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
    forgetful.sync_dir(root.path())?;
    forgetful.remove_file(&first)?;
    forgetful.sync_dir(root.path())?;
    let left = after_crash(&forgetful, Unsynced::Lost);
    assert_eq!(std::fs::read(left.path().join("second"))?, b"one");
    assert!(!left.path().join("first").exists());
    Ok(())
}

#[test]
fn some_unsynced_blocks_are_kept_and_a_seed_repeats_them() -> io::Result<()> {
    let (root, forgetful) = forgetful();
    let file = forgetful.create_new(&root.path().join("a"))?;
    forgetful.sync_dir(root.path())?;
    file.preallocate(64 * 512)?;
    file.sync_data()?;
    file.write_all_at(&[7; 64 * 512], 0)?;
    let bytes = |seed| -> io::Result<Vec<u8>> {
        std::fs::read(after_crash(&forgetful, Unsynced::Some { seed }).path().join("a"))
    };
    let kept = bytes(1)?;
    assert_eq!(kept, bytes(1)?);
    assert_ne!(kept, bytes(2)?);
    assert!(kept.chunks(512).all(|block| block.iter().all(|byte| *byte == block[0])));
    assert!(kept.contains(&0) && kept.contains(&7));
    Ok(())
}

#[test]
fn after_the_stop_nothing_works_and_the_root_reopens() -> io::Result<()> {
    let (root, forgetful) = forgetful();
    forgetful.stop_at_sync_point(2);
    let file = forgetful.create_new(&root.path().join("a"))?;
    forgetful.sync_dir(root.path())?;
    file.write_all_at(b"bytes", 0)?;
    assert!(file.sync_data().is_err());
    assert!(file.sync_data().is_err() && forgetful.list(root.path()).is_err());
    forgetful.crash(Unsynced::Lost)?;
    let again = ForgetfulFs::new(root.path())?;
    assert_eq!(read_file(&again, &root.path().join("a"))?, b"");
    Ok(())
}

#[test]
fn a_failed_sync_loses_its_bytes_for_good() -> io::Result<()> {
    let (root, forgetful) = forgetful();
    let file = forgetful.create_new(&root.path().join("a"))?;
    forgetful.sync_dir(root.path())?;
    file.write_all_at(b"bytes", 0)?;
    forgetful.fail_sync_point(2);
    assert!(file.sync_data().is_err());
    file.sync_data()?;
    assert_eq!(std::fs::read(root.path().join("a"))?, b"bytes");
    forgetful.crash(Unsynced::Lost)?;
    assert_eq!(std::fs::read(root.path().join("a"))?, b"");
    Ok(())
}

#[test]
fn cutting_a_file_zeroes_what_a_later_extension_shows() -> io::Result<()> {
    let (root, forgetful) = forgetful();
    let file = forgetful.create_new(&root.path().join("a"))?;
    forgetful.sync_dir(root.path())?;
    file.write_all_at(&[7; 2_000], 0)?;
    file.set_len(700)?;
    file.preallocate(1_500)?;
    file.sync_data()?;
    let live = std::fs::read(root.path().join("a"))?;
    forgetful.crash(Unsynced::Lost)?;
    assert_eq!(std::fs::read(root.path().join("a"))?, live);
    assert_eq!(live.iter().filter(|byte| **byte == 7).count(), 700);
    Ok(())
}

#[test]
fn the_real_file_system_preallocates_zeros_and_lists_nothing_where_nothing_is() -> io::Result<()> {
    let root = tempfile::tempdir()?;
    RealFs.create_dir_all(&root.path().join("a/b"))?;
    let file = RealFs.create_new(&root.path().join("a/b/file"))?;
    file.preallocate(10_000)?;
    file.write_all_at(b"x", 5)?;
    file.sync_data()?;
    RealFs.sync_dir(&root.path().join("a/b"))?;
    assert_eq!(file.len()?, 10_000);
    assert_eq!(RealFs.list(&root.path().join("a/b"))?, [root.path().join("a/b/file")]);
    assert!(RealFs.list(&root.path().join("absent"))?.is_empty());
    assert!(RealFs.create_new(&root.path().join("a/b/file")).is_err());
    Ok(())
}
