//! A file layer for tests that knows which bytes and directory entries were synced, and can lose all others.
//!
//! The live view is real files below a root, so that anything may read them. Beside it stands a record of what is
//! durable: of each file the bytes at its last sync, of each directory the entries at its last sync. A crash replaces
//! the live view by that record. Stricter than a usual file system where those differ: syncing a file does not make
//! its directory entry durable, and no order holds between changes of two directories.
//!
//! Each [`File::sync_data`] and [`FileSystem::sync_dir`] is one *sync point*, counted from 1.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::image::{Change, Image};
use super::{File, FileSystem, missing_directories, parent_of, real};

/// What a crash does with changes that no sync made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsynced {
    /// All are lost.
    Lost,
    /// A random part is kept, the same for the same seed: of each file any blocks of its unsynced writes, of each
    /// directory its first so many unsynced changes (a rename within it is one change).
    Some { seed: u64 },
}

/// A file system for tests that forgets what was not synced. Cheap to clone; clones share one state.
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// use std::path::Path;
/// use twice_log::fs::{FileSystem, ForgetfulFs, Unsynced};
///
/// let root = std::env::temp_dir().join(format!("forgetful-{}", std::process::id()));
/// std::fs::create_dir_all(&root)?;
/// let forgetful = ForgetfulFs::new(&root)?;
/// forgetful.create_new(&root.join("kept"))?.write_all_at(b"bytes", 0)?;
/// forgetful.sync_dir(&root)?; // the entry is durable, the bytes are not
/// forgetful.crash(Unsynced::Lost)?;
/// assert_eq!(std::fs::read(root.join("kept"))?, b"");
/// std::fs::remove_dir_all(&root)
/// # }
/// ```
#[derive(Clone)]
pub struct ForgetfulFs {
    root: PathBuf,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// By a number of our own: the machine's may be given again to a new file while a crash can still bring back the old.
    inodes: HashMap<u64, Inode>,
    /// By path; the root is the empty path.
    directories: HashMap<PathBuf, Directory>,
    sync_points: u64,
    stop_at: Option<u64>,
    fail_at: Option<u64>,
    fail_writes: bool,
    stopped: bool,
}

#[derive(Default)]
struct Inode {
    durable: Image,
    unsynced: Vec<Change>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    File(u64),
    Directory,
}

#[derive(Default)]
struct Directory {
    live: BTreeMap<OsString, Entry>,
    durable: BTreeMap<OsString, Entry>,
    /// Each change sets or removes (`None`) names at once.
    unsynced: Vec<Vec<(OsString, Option<Entry>)>>,
}

impl Directory {
    fn change(&mut self, changes: Vec<(OsString, Option<Entry>)>) {
        apply_entries(&mut self.live, &changes);
        self.unsynced.push(changes);
    }
}

fn apply_entries(entries: &mut BTreeMap<OsString, Entry>, changes: &[(OsString, Option<Entry>)]) {
    for (name, entry) in changes {
        match entry {
            Some(entry) => entries.insert(name.clone(), *entry),
            None => entries.remove(name),
        };
    }
}

impl ForgetfulFs {
    /// Opens the existing directory `root`; all that is in it counts as durable.
    ///
    /// # Errors
    /// Those of reading the tree.
    pub fn new(root: &Path) -> io::Result<Self> {
        let mut state = State::default();
        state.adopt(root, PathBuf::new(), &mut HashMap::new())?;
        Ok(Self { root: root.to_path_buf(), state: Arc::new(Mutex::new(state)) })
    }

    /// Returns the number of sync points passed.
    pub fn sync_points(&self) -> u64 {
        self.lock().sync_points
    }

    /// Makes sync point `nth` (from 1) and every operation after it fail, as if the power was cut just before.
    pub fn stop_at_sync_point(&self, nth: u64) {
        self.lock().stop_at = Some(nth);
    }

    /// Makes sync point `nth` alone fail. Like a real one, the failed sync loses the changes it was asked to keep:
    /// they stay readable until a crash and no later sync makes them durable.
    pub fn fail_sync_point(&self, nth: u64) {
        self.lock().fail_at = Some(nth);
    }

    /// Makes every write fail half done, as on a full disk, or ends that.
    pub fn fail_writes(&self, fail: bool) {
        self.lock().fail_writes = fail;
    }

    /// Makes every operation fail from now on.
    pub fn stop(&self) {
        self.lock().stopped = true;
    }

    /// Cuts the power: stops this file system and leaves below its root only what a power cut would.
    /// Open the root again with [`ForgetfulFs::new`] or [`super::RealFs`].
    ///
    /// # Errors
    /// Those of the real file system.
    pub fn crash(&self, unsynced: Unsynced) -> io::Result<()> {
        let mut state = self.lock();
        state.stopped = true;
        for entry in real::list(&self.root)? {
            if entry.is_dir() { fs::remove_dir_all(entry)? } else { fs::remove_file(entry)? }
        }
        state.store(&self.root, unsynced)
    }

    /// Writes into the directory `target`, which it creates, what a power cut now would leave. The file system goes on.
    ///
    /// # Errors
    /// Those of the real file system.
    pub fn crash_into(&self, target: &Path, unsynced: Unsynced) -> io::Result<()> {
        fs::create_dir_all(target)?;
        self.lock().store(target, unsynced)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn relative(&self, path: &Path) -> io::Result<PathBuf> {
        path.strip_prefix(&self.root).map(Path::to_path_buf).map_err(|_| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("{} is outside of the root", path.display()))
        })
    }

    /// Splits `path` into its directory and its name there.
    fn place(&self, path: &Path) -> io::Result<(PathBuf, OsString)> {
        let relative = self.relative(path)?;
        let name = relative.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_os_string();
        Ok((relative.parent().map(Path::to_path_buf).unwrap_or_default(), name))
    }

    fn opened(&self, file: fs::File, inode: u64) -> Arc<dyn File> {
        Arc::new(ForgetfulFile { file, inode, state: self.state.clone() })
    }
}

impl State {
    fn add_inode(&mut self, durable: Image) -> u64 {
        let inode = self.inodes.len() as u64; // none is ever taken out
        self.inodes.insert(inode, Inode { durable, unsynced: Vec::new() });
        inode
    }

    /// Takes in what is there already; `links` maps the machine's numbers of files seen to ours.
    fn adopt(&mut self, path: &Path, relative: PathBuf, links: &mut HashMap<u64, u64>) -> io::Result<()> {
        let mut directory = Directory::default();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            let found = if metadata.is_dir() {
                self.adopt(&entry.path(), relative.join(entry.file_name()), links)?;
                Entry::Directory
            } else if let Some(inode) = links.get(&metadata.ino()) {
                Entry::File(*inode)
            } else {
                let inode = self.add_inode(Image::of(&fs::File::open(entry.path())?)?);
                links.insert(metadata.ino(), inode);
                Entry::File(inode)
            };
            directory.live.insert(entry.file_name(), found);
        }
        directory.durable = directory.live.clone();
        self.directories.insert(relative, directory);
        Ok(())
    }

    fn check_running(&self) -> io::Result<()> {
        if self.stopped { Err(io::Error::other("the power was cut")) } else { Ok(()) }
    }

    /// Counts a sync point. `Ok(false)`: this one fails and loses its changes.
    fn sync_point(&mut self) -> io::Result<bool> {
        self.check_running()?;
        self.sync_points += 1;
        if self.stop_at.is_some_and(|nth| nth <= self.sync_points) {
            self.stopped = true;
        }
        self.check_running()?;
        Ok(self.fail_at != Some(self.sync_points))
    }

    fn directory(&mut self, relative: &Path) -> io::Result<&mut Directory> {
        self.directories.get_mut(relative).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn file_at(&mut self, place: &(PathBuf, OsString)) -> io::Result<u64> {
        match self.directory(&place.0)?.live.get(&place.1) {
            Some(Entry::File(inode)) => Ok(*inode),
            Some(Entry::Directory) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn store(&self, target: &Path, unsynced: Unsynced) -> io::Result<()> {
        let mut coin = match unsynced {
            Unsynced::Lost => None,
            Unsynced::Some { seed } => Some(Random(seed)),
        };
        let mut images: HashMap<u64, PathBuf> = HashMap::new();
        self.store_directory(Path::new(""), target, &mut coin, &mut images)
    }

    fn store_directory(
        &self,
        relative: &Path,
        target: &Path,
        coin: &mut Option<Random>,
        stored: &mut HashMap<u64, PathBuf>,
    ) -> io::Result<()> {
        // A directory whose own entry was kept by chance has a record; one never seen is empty.
        let Some(directory) = self.directories.get(relative) else { return Ok(()) };
        let mut entries = directory.durable.clone();
        if let Some(random) = coin {
            let kept = random.below(directory.unsynced.len() as u64 + 1) as usize;
            directory.unsynced[..kept].iter().for_each(|changes| apply_entries(&mut entries, changes));
        }
        for (name, entry) in &entries {
            let path = target.join(name);
            match entry {
                Entry::Directory => {
                    fs::create_dir(&path)?;
                    self.store_directory(&relative.join(name), &path, coin, stored)?;
                }
                Entry::File(inode) => match stored.get(inode) {
                    Some(first) => fs::hard_link(first, &path)?,
                    None => {
                        self.image_after_crash(*inode, coin).store(&fs::File::create_new(&path)?)?;
                        stored.insert(*inode, path);
                    }
                },
            }
        }
        Ok(())
    }

    fn image_after_crash(&self, inode: u64, coin: &mut Option<Random>) -> Image {
        let Some(inode) = self.inodes.get(&inode) else { return Image::default() };
        let mut image = inode.durable.clone();
        if let Some(random) = coin {
            inode.unsynced.iter().for_each(|change| image.apply_some(change, &mut || random.below(2) == 1));
        }
        image
    }
}

impl FileSystem for ForgetfulFs {
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let (directory, name) = self.place(path)?;
        let mut state = self.lock();
        state.check_running()?;
        state.directory(&directory)?;
        let file = fs::OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        let inode = state.add_inode(Image::default());
        state.directory(&directory)?.change(vec![(name, Some(Entry::File(inode)))]);
        Ok(self.opened(file, inode))
    }

    fn open(&self, path: &Path, writable: bool) -> io::Result<Arc<dyn File>> {
        let place = self.place(path)?;
        let mut state = self.lock();
        state.check_running()?;
        let inode = state.file_at(&place)?;
        Ok(self.opened(fs::OpenOptions::new().read(true).write(writable).open(path)?, inode))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.relative(path)?;
        for missing in missing_directories(path, Path::is_dir) {
            {
                let (parent, name) = self.place(&missing)?;
                let mut state = self.lock();
                state.check_running()?;
                match fs::create_dir(&missing) {
                    Ok(()) => {
                        state.directory(&parent)?.change(vec![(name, Some(Entry::Directory))]);
                        state.directories.insert(self.relative(&missing)?, Directory::default());
                    }
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    Err(error) => return Err(error),
                }
            }
            self.sync_dir(parent_of(&missing))?;
        }
        Ok(())
    }

    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from_place, (directory, name)) = (self.place(from)?, self.place(to)?);
        let mut state = self.lock();
        state.check_running()?;
        let inode = state.file_at(&from_place)?;
        state.directory(&directory)?;
        fs::hard_link(from, to)?;
        state.directory(&directory)?.change(vec![(name, Some(Entry::File(inode)))]);
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from_place, (directory, name)) = (self.place(from)?, self.place(to)?);
        let mut state = self.lock();
        state.check_running()?;
        let inode = state.file_at(&from_place)?;
        state.directory(&directory)?;
        fs::rename(from, to)?;
        let (removed, added) = ((from_place.1, None), (name, Some(Entry::File(inode))));
        if from_place.0 == directory {
            state.directory(&directory)?.change(vec![removed, added]);
        } else {
            state.directory(&from_place.0)?.change(vec![removed]);
            state.directory(&directory)?.change(vec![added]);
        }
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let (directory, name) = self.place(path)?;
        let mut state = self.lock();
        state.check_running()?;
        state.file_at(&(directory.clone(), name.clone()))?;
        fs::remove_file(path)?;
        state.directory(&directory)?.change(vec![(name, None)]);
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        self.lock().check_running()?;
        real::list(path)
    }

    /// Above the root nothing is its own, and a sync there counts as done.
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let Ok(relative) = self.relative(path) else { return Ok(()) };
        let mut state = self.lock();
        let kept = state.sync_point()?;
        let directory = state.directory(&relative)?;
        let unsynced = std::mem::take(&mut directory.unsynced);
        if !kept {
            return Err(io::Error::other("this sync was told to fail"));
        }
        unsynced.iter().for_each(|changes| apply_entries(&mut directory.durable, changes));
        Ok(())
    }
}

struct ForgetfulFile {
    file: fs::File,
    inode: u64,
    state: Arc<Mutex<State>>,
}

impl ForgetfulFile {
    /// Makes a change in the live view and remembers it, under the lock so that no crash sees half of it.
    fn change(&self, change: Change, apply: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut state = self.lock()?;
        apply()?;
        state.inodes.entry(self.inode).or_default().unsynced.push(change);
        Ok(())
    }

    fn lock(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.check_running()?;
        Ok(state)
    }
}

impl File for ForgetfulFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        drop(self.lock()?);
        self.file.read_at(buffer, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let full = self.lock()?.fail_writes;
        let written = if full { &bytes[..bytes.len() / 2] } else { bytes };
        let change = Change::Write { offset, bytes: written.to_vec() };
        self.change(change, || self.file.write_all_at(written, offset))?;
        if full { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn preallocate(&self, length: u64) -> io::Result<()> {
        self.change(Change::Extend(length), || real::preallocate(&self.file, length))
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.change(Change::SetLength(length), || self.file.set_len(length))
    }

    fn len(&self) -> io::Result<u64> {
        drop(self.lock()?);
        Ok(self.file.metadata()?.len())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.lock()?;
        let kept = state.sync_point()?;
        let inode = state.inodes.entry(self.inode).or_default();
        let unsynced = std::mem::take(&mut inode.unsynced);
        if !kept {
            return Err(io::Error::other("this sync was told to fail"));
        }
        unsynced.iter().for_each(|change| inode.durable.apply(change));
        Ok(())
    }
}

/// SplitMix64: tests need numbers that a seed repeats, not good ones.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound.max(1)
    }
}
