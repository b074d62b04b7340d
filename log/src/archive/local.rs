//! An object store in a local directory whose every put survives power loss before it resolves.
//!
//! Guarantee: an object that a caller has put, or has read, is durable with its whole path. `LocalFileSystem` of
//! `object_store` never syncs, so writes go through our own file layer; reads and lists are its.
//! Words: a *settled* directory is one that was synced, with its whole path, since this process began; *publishing* is giving the
//! finished file its name.
//! Flow of a put: write a hidden file, sync it, publish it (hard link, which fails if the name is taken, or rename),
//! sync the directory. A reader that sees a name while it is being published syncs the directory too: what it then
//! decides on can no longer vanish.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{
    CopyMode, CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, UploadPart,
};

use crate::error::{Error, Result};
use crate::fs::FileSystem;

/// Folder of unfinished files, below the root. Emptied at open, never listed.
const UNFINISHED_FOLDER: &str = ".unfinished";
const STORE_NAME: &str = "DurableLocal";

type StoreResult<T> = object_store::Result<T>;

/// A local directory as an object store. Cheap to clone. One process, and one instance in it, writes a directory.
#[derive(Clone)]
pub struct DurableLocal {
    shared: Arc<Shared>,
}

struct Shared {
    fs: Arc<dyn FileSystem>,
    local: LocalFileSystem,
    root: PathBuf,
    unfinished: PathBuf,
    unfinished_count: AtomicU64,
    directories: Mutex<Directories>,
    /// Set when a directory sync failed: a second one could claim success for entries that are lost.
    stopped: AtomicBool,
}

#[derive(Default)]
struct Directories {
    settled: HashSet<PathBuf>,
    /// Directories with names not yet synced, and how many publish steps are under way in each.
    publishing: HashMap<PathBuf, u32>,
}

impl DurableLocal {
    /// Opens the store at `root`, creating it if needed, and removes what a crash left unfinished.
    ///
    /// # Errors
    /// `Io` or `ObjectStore` if the directory cannot be created, listed or synced.
    pub fn open(fs: Arc<dyn FileSystem>, root: &Path) -> Result<Self> {
        let failed = |action: &'static str, path: &Path| {
            let path = path.to_path_buf();
            move |source: io::Error| Error::Io { action, path, source }
        };
        fs.create_dir_all(root).map_err(failed("create", root))?;
        let root = root.canonicalize().map_err(failed("resolve", root))?;
        let unfinished = root.join(UNFINISHED_FOLDER);
        fs.create_dir_all(&unfinished).map_err(failed("create", &unfinished))?;
        for left in fs.list(&unfinished).map_err(failed("list", &unfinished))? {
            fs.remove_file(&left).map_err(failed("remove", &left))?;
        }
        fs.sync_dir(&unfinished).map_err(failed("sync", &unfinished))?;
        // An earlier process may have created the root itself and died before syncing its name.
        let above = root.parent().unwrap_or(&root);
        fs.sync_dir(above).map_err(failed("sync", above))?;
        fs.sync_dir(&root).map_err(failed("sync", &root))?;
        let local = LocalFileSystem::new_with_prefix(&root).map_err(|source| Error::ObjectStore {
            action: "open",
            path: root.display().to_string(),
            source,
        })?;
        let shared = Shared {
            fs,
            local,
            root,
            unfinished,
            unfinished_count: AtomicU64::new(0),
            directories: Mutex::default(),
            stopped: AtomicBool::new(false),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Runs file work off the executor. It runs to its end even if the caller goes away.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> StoreResult<T> + Send + 'static,
    ) -> StoreResult<T> {
        let shared = Arc::clone(&self.shared);
        tokio::task::spawn_blocking(move || work(&shared)).await?
    }
}

impl Shared {
    fn put(&self, location: &ObjectPath, payload: &PutPayload, create: bool) -> StoreResult<()> {
        if self.stopped.load(Ordering::SeqCst) {
            return Err(stopped());
        }
        let target = self.target(location)?;
        let directory = target.parent().unwrap_or(&self.root).to_path_buf();
        self.settle(&directory)?;
        let count = self.unfinished_count.fetch_add(1, Ordering::Relaxed);
        let unfinished = self.unfinished.join(count.to_string());
        let outcome = self
            .write_unfinished(&unfinished, payload)
            .map_err(|source| failed(location, source))
            .and_then(|()| self.publish(&unfinished, &target, &directory, create, location));
        // After a rename nothing is left; after a failure what is left is cleaned at the next open.
        if (create || outcome.is_err())
            && let Err(error) = self.fs.remove_file(&unfinished)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %unfinished.display(), %error, "unfinished file stays until the next start");
        }
        outcome
    }

    fn write_unfinished(&self, path: &Path, payload: &PutPayload) -> io::Result<()> {
        let file = self.fs.create_new(path)?;
        let mut offset = 0;
        for part in payload {
            file.write_all_at(part, offset)?;
            offset += part.len() as u64;
        }
        // Should this fail, the file is given up and a retry writes a new one: no failed sync is asked again.
        file.sync_data()
    }

    fn publish(
        &self,
        unfinished: &Path,
        target: &Path,
        directory: &Path,
        create: bool,
        location: &ObjectPath,
    ) -> StoreResult<()> {
        *self.directories().publishing.entry(directory.to_path_buf()).or_default() += 1;
        let published =
            if create { self.fs.hard_link(unfinished, target) } else { self.fs.rename(unfinished, target) };
        // Synced also when the name was taken: the caller goes on from what stands there, so it must be durable.
        let synced = self.sync_dir(directory);
        if synced.is_ok() {
            let mut directories = self.directories();
            if let Some(under_way) = directories.publishing.get_mut(directory) {
                *under_way -= 1;
                if *under_way == 0 {
                    directories.publishing.remove(directory);
                }
            }
        }
        synced?;
        published.map_err(|source| failed(location, source))
    }

    /// Creates `directory` if needed and makes its whole path durable, also where an earlier process created it and
    /// died before syncing.
    fn settle(&self, directory: &Path) -> StoreResult<()> {
        if self.directories().settled.contains(directory) {
            return Ok(());
        }
        self.fs.create_dir_all(directory).map_err(generic)?;
        let mut below_root: Vec<&Path> =
            directory.ancestors().take_while(|ancestor| *ancestor != self.root.as_path()).collect();
        below_root.retain(|path| !self.directories().settled.contains(*path));
        for path in below_root.iter().rev() {
            self.sync_dir(path.parent().unwrap_or(&self.root))?;
        }
        // Its own entries too: an earlier process may have published some and died before syncing.
        self.sync_dir(directory)?;
        self.directories().settled.extend(below_root.into_iter().map(Path::to_path_buf));
        Ok(())
    }

    /// Returns whether an object just read may not be durable yet. No I/O.
    fn is_unsettled(&self, location: &ObjectPath) -> StoreResult<bool> {
        let target = self.target(location)?;
        let directory = target.parent().unwrap_or(&self.root);
        let directories = self.directories();
        Ok(!directories.settled.contains(directory) || directories.publishing.contains_key(directory))
    }

    /// Makes sure that an object just read cannot vanish: syncs its directory, with its whole path if need be.
    fn settle_read(&self, location: &ObjectPath) -> StoreResult<()> {
        if self.stopped.load(Ordering::SeqCst) {
            return Err(stopped());
        }
        let target = self.target(location)?;
        let directory = target.parent().unwrap_or(&self.root);
        self.settle(directory)?;
        self.sync_dir(directory)
    }

    fn delete(&self, location: &ObjectPath) -> StoreResult<()> {
        let target = self.target(location)?;
        self.fs.remove_file(&target).map_err(|source| failed(location, source))?;
        self.sync_dir(target.parent().unwrap_or(&self.root))
    }

    fn sync_dir(&self, directory: &Path) -> StoreResult<()> {
        self.fs.sync_dir(directory).map_err(|source| {
            self.stopped.store(true, Ordering::SeqCst);
            tracing::error!(path = %directory.display(), error = %source, "directory sync failed, archive stopped");
            generic(source)
        })
    }

    fn target(&self, location: &ObjectPath) -> StoreResult<PathBuf> {
        if is_hidden(location) {
            let source = "the folder of unfinished files holds no objects".into();
            return Err(object_store::Error::NotSupported { source });
        }
        self.local.path_to_filesystem(location)
    }

    fn directories(&self) -> MutexGuard<'_, Directories> {
        // A panic elsewhere leaves the sets usable: at worst a directory is synced once more.
        self.directories.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_hidden(location: &ObjectPath) -> bool {
    location.parts().next().is_some_and(|part| part.as_ref() == UNFINISHED_FOLDER)
}

fn generic(source: io::Error) -> object_store::Error {
    object_store::Error::Generic { store: STORE_NAME, source: Box::new(source) }
}

fn stopped() -> object_store::Error {
    let source = "stopped after a failed directory sync; restart once the disk is healthy".into();
    object_store::Error::Generic { store: STORE_NAME, source }
}

fn failed(location: &ObjectPath, source: io::Error) -> object_store::Error {
    let (path, kind) = (location.to_string(), source.kind());
    let source = Box::new(source);
    match kind {
        io::ErrorKind::AlreadyExists => object_store::Error::AlreadyExists { path, source },
        io::ErrorKind::NotFound => object_store::Error::NotFound { path, source },
        io::ErrorKind::PermissionDenied => object_store::Error::PermissionDenied { path, source },
        _ => object_store::Error::Generic { store: STORE_NAME, source },
    }
}

impl fmt::Display for DurableLocal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{STORE_NAME}({})", self.shared.root.display())
    }
}

impl fmt::Debug for DurableLocal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

#[async_trait]
impl ObjectStore for DurableLocal {
    async fn put_opts(
        &self,
        location: &ObjectPath,
        payload: PutPayload,
        options: PutOptions,
    ) -> StoreResult<PutResult> {
        let create = match options.mode {
            PutMode::Create => true,
            PutMode::Overwrite => false,
            PutMode::Update(_) => {
                let source = "objects of the archive are never updated".into();
                return Err(object_store::Error::NotSupported { source });
            }
        };
        let location = location.clone();
        self.blocking(move |shared| shared.put(&location, &payload, create)).await?;
        Ok(PutResult { e_tag: None, version: None })
    }

    async fn put_multipart_opts(
        &self,
        location: &ObjectPath,
        _options: PutMultipartOptions,
    ) -> StoreResult<Box<dyn MultipartUpload>> {
        let upload = BufferedUpload { store: self.clone(), location: location.clone(), parts: Vec::new() };
        Ok(Box::new(upload))
    }

    async fn get_opts(&self, location: &ObjectPath, options: GetOptions) -> StoreResult<GetResult> {
        let found = self.shared.local.get_opts(location, options).await?;
        // After the file was found: a publish step either is still announced, or had synced before it was found.
        if self.shared.is_unsettled(location)? {
            let location = location.clone();
            self.blocking(move |shared| shared.settle_read(&location)).await?;
        }
        Ok(found)
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, StoreResult<ObjectPath>>,
    ) -> BoxStream<'static, StoreResult<ObjectPath>> {
        let store = self.clone();
        locations
            .and_then(move |location| {
                let store = store.clone();
                async move {
                    let removed = location.clone();
                    store.blocking(move |shared| shared.delete(&removed)).await?;
                    Ok(location)
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&ObjectPath>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        visible(self.shared.local.list(prefix))
    }

    fn list_with_offset(
        &self,
        prefix: Option<&ObjectPath>,
        offset: &ObjectPath,
    ) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        visible(self.shared.local.list_with_offset(prefix, offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&ObjectPath>) -> StoreResult<ListResult> {
        let mut listed = self.shared.local.list_with_delimiter(prefix).await?;
        listed.common_prefixes.retain(|path| !is_hidden(path));
        listed.objects.retain(|object| !is_hidden(&object.location));
        Ok(listed)
    }

    async fn copy_opts(&self, from: &ObjectPath, to: &ObjectPath, options: CopyOptions) -> StoreResult<()> {
        let mode = match options.mode {
            CopyMode::Create => PutMode::Create,
            CopyMode::Overwrite => PutMode::Overwrite,
        };
        let bytes = self.get(from).await?.bytes().await?;
        self.put_opts(to, bytes.into(), PutOptions { mode, ..PutOptions::default() }).await?;
        Ok(())
    }
}

/// Leaves unfinished files out of a listing.
fn visible(
    objects: BoxStream<'static, StoreResult<ObjectMeta>>,
) -> BoxStream<'static, StoreResult<ObjectMeta>> {
    objects.try_filter(|object| futures::future::ready(!is_hidden(&object.location))).boxed()
}

/// Gathers the parts in memory and puts them as one object at the end.
struct BufferedUpload {
    store: DurableLocal,
    location: ObjectPath,
    parts: Vec<bytes::Bytes>,
}

impl fmt::Debug for BufferedUpload {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "BufferedUpload({}, {} parts)", self.location, self.parts.len())
    }
}

#[async_trait]
impl MultipartUpload for BufferedUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.parts.extend(data);
        futures::future::ready(Ok(())).boxed()
    }

    async fn complete(&mut self) -> StoreResult<PutResult> {
        let payload: PutPayload = std::mem::take(&mut self.parts).into_iter().collect();
        self.store.put_opts(&self.location, payload, PutOptions::default()).await
    }

    async fn abort(&mut self) -> StoreResult<()> {
        self.parts.clear();
        Ok(())
    }
}
