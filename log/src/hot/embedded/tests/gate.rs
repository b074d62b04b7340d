//! A file layer whose syncs wait for the test: to see what happens while the disk is slow.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};

use crate::fs::{File, FileSystem, RealFs};

/// The real file system with a gate before each sync of a file.
#[derive(Clone, Default)]
pub(super) struct GatedFs(Arc<Gate>);

#[derive(Default)]
struct Gate {
    /// Whether it is shut, and how many syncs wait before it.
    state: Mutex<(bool, u32)>,
    changed: Condvar,
}

impl GatedFs {
    pub(super) fn shut(&self) {
        self.0.state.lock().expect("no panic").0 = true;
    }

    pub(super) fn open_gate(&self) {
        self.0.state.lock().expect("no panic").0 = false;
        self.0.changed.notify_all();
    }

    /// Waits until a sync waits before the gate.
    pub(super) fn wait_for_a_sync(&self) {
        let state = self.0.state.lock().expect("no panic");
        drop(self.0.changed.wait_while(state, |(_, waiting)| *waiting == 0).expect("no panic"));
    }
}

struct GatedFile(Arc<dyn File>, Arc<Gate>);

impl File for GatedFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buffer, offset)
    }
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }
    fn preallocate(&self, length: u64) -> io::Result<()> {
        self.0.preallocate(length)
    }
    fn set_len(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.1.state.lock().expect("no panic");
        state.1 += 1;
        self.1.changed.notify_all();
        state = self.1.changed.wait_while(state, |(shut, _)| *shut).expect("no panic");
        state.1 -= 1;
        drop(state);
        self.0.sync_data()
    }
}

impl FileSystem for GatedFs {
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(GatedFile(RealFs.create_new(path)?, self.0.clone())))
    }
    fn open(&self, path: &Path, writable: bool) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(GatedFile(RealFs.open(path, writable)?, self.0.clone())))
    }
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        RealFs.create_dir_all(path)
    }
    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealFs.hard_link(from, to)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealFs.rename(from, to)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        RealFs.remove_file(path)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        RealFs.list(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        RealFs.sync_dir(path)
    }
}
