//! The archive as a place: objects put once, read by path, listed by folder.
//!
//! Guarantee: nothing is ever overwritten. Every put is put-if-absent; who comes second gets what the first one put.
//! Words: the *primary* bucket holds everything that decides (manifests, seals, runs) and normally all data files; the
//! *secondary* bucket, if there is one, holds the data files whose manifests name it, and nothing else.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::DurableLocal;
use super::s3::Fence;
use crate::error::{Error, Result};
use crate::event::Sha256Hex;
use crate::fs::FileSystem;

/// Bucket name of an archive in a local directory.
pub const LOCAL_BUCKET: &str = "local";

/// Times a put is tried that was refused as existing while nothing is there: S3 refuses so while another put of the
/// same key is under way, which may still fail.
const CONFLICT_TRIES: u32 = 3;

/// The archive. Cheap to clone; safe to use from many tasks.
#[derive(Debug, Clone)]
pub struct Archive {
    store: Arc<dyn ObjectStore>,
    bucket: Arc<str>,
    pub(super) secondary: Option<Arc<Secondary>>,
    /// Data files above this size are put in parts.
    pub(super) part_above_bytes: usize,
    /// What must be proven of the store before anything is put; `None` where it is known.
    pub(super) fence: Option<Arc<Fence>>,
}

/// The bucket that takes data files while the primary refuses them.
#[derive(Debug)]
pub(super) struct Secondary {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) bucket: Arc<str>,
    /// How long the primary must have refused data files.
    pub(super) after: Duration,
}

/// How a put-if-absent ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PutOutcome {
    /// The object is there now, with the caller's bytes.
    Put,
    /// An object was there already: these are its bytes, equal to the caller's or not.
    Exists(Bytes),
}

impl Archive {
    /// Wraps a store that honours `PutMode::Create`. `bucket` is what manifests record as the place of data files.
    pub fn new(store: Arc<dyn ObjectStore>, bucket: &str) -> Self {
        Self { store, bucket: bucket.into(), secondary: None, part_above_bytes: usize::MAX, fence: None }
    }

    /// Adds a bucket that takes data files once the primary has refused them for `after`.
    #[must_use]
    pub fn with_secondary(self, store: Arc<dyn ObjectStore>, bucket: &str, after: Duration) -> Self {
        let secondary = Secondary { store, bucket: bucket.into(), after };
        Self { secondary: Some(Arc::new(secondary)), ..self }
    }

    /// Puts data files above `bytes` in parts, where one request could be too large to succeed.
    #[must_use]
    pub fn with_parts_above(self, bytes: usize) -> Self {
        Self { part_above_bytes: bytes, ..self }
    }

    /// Puts nothing before `fence` is proven.
    pub(super) fn with_fence(self, fence: Arc<Fence>) -> Self {
        Self { fence: Some(fence), ..self }
    }

    /// Opens the archive in a local directory for writing; each put is durable before it resolves.
    ///
    /// One process and one `Archive` a directory (clones are fine): the caller holds the data directory's lock.
    ///
    /// # Errors
    /// `Io` if the directory cannot be created, synced or cleaned.
    pub fn open_local(fs: Arc<dyn FileSystem>, root: &Path) -> Result<Self> {
        Ok(Self::new(Arc::new(DurableLocal::open(fs, root)?), LOCAL_BUCKET))
    }

    /// Opens the archive in a local directory for reading, beside a process that writes it.
    ///
    /// # Errors
    /// `ObjectStore` if the directory does not exist.
    pub fn read_local(root: &Path) -> Result<Self> {
        let store = LocalFileSystem::new_with_prefix(root)
            .map_err(|source| store_error("open", &root.display().to_string(), source))?;
        Ok(Self::new(Arc::new(store), LOCAL_BUCKET))
    }

    /// Returns the store itself, for readers such as DataFusion.
    pub fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    /// Returns the name of the primary bucket.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// Puts `bytes` at `path` if nothing is there, and otherwise returns what is.
    ///
    /// `Put` means durable. After an error the outcome is unknown; putting the same bytes again is safe.
    ///
    /// # Errors
    /// `ObjectStore` if the store fails; `Config` if it cannot put if absent, on which every guarantee rests.
    pub async fn put_if_absent(&self, path: &str, bytes: Bytes) -> Result<PutOutcome> {
        self.check_fence().await?;
        put_absent(self.store.as_ref(), path, bytes).await
    }

    pub(super) async fn check_fence(&self) -> Result<()> {
        match &self.fence {
            Some(fence) => fence.check(self.store.as_ref()).await,
            None => Ok(()),
        }
    }

    /// Returns the bytes at `path` of the primary bucket, or `None` if nothing is there.
    ///
    /// # Errors
    /// `ObjectStore` if the store fails.
    pub async fn get(&self, path: &str) -> Result<Option<Bytes>> {
        get_from(self.store.as_ref(), path).await
    }

    /// Lists the objects below `folder`, sorted by path; only those with a path above `after`, if given.
    ///
    /// # Errors
    /// `ObjectStore` if the store fails.
    pub async fn list(&self, folder: &str, after: Option<&str>) -> Result<Vec<ObjectMeta>> {
        let prefix = object_path(folder)?;
        let stream = match after {
            Some(after) => self.store.list_with_offset(Some(&prefix), &object_path(after)?),
            None => self.store.list(Some(&prefix)),
        };
        let mut objects: Vec<ObjectMeta> =
            stream.try_collect().await.map_err(|source| store_error("list", folder, source))?;
        // A local directory lists in no order.
        objects.sort_unstable_by(|left, right| left.location.cmp(&right.location));
        Ok(objects)
    }

    /// Lists the names of the folders directly below `folder`, sorted.
    ///
    /// # Errors
    /// `ObjectStore` if the store fails.
    pub async fn list_folders(&self, folder: &str) -> Result<Vec<String>> {
        let prefix = object_path(folder)?;
        let listed = match self.store.list_with_delimiter(Some(&prefix)).await {
            Ok(listed) => listed,
            Err(source) if is_absent(&source) => return Ok(Vec::new()),
            Err(source) => return Err(store_error("list", folder, source)),
        };
        let mut names: Vec<String> =
            listed.common_prefixes.iter().filter_map(|path| path.filename().map(str::to_owned)).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// Puts `value` as JSON if nothing is at `path`; returns what stands there now, with the hash of its bytes.
    pub(super) async fn put_json<T: Serialize + DeserializeOwned>(
        &self,
        path: &str,
        value: &T,
    ) -> Result<(T, Sha256Hex)> {
        let bytes = encode_json(path, value)?;
        match self.put_if_absent(path, bytes.clone()).await? {
            PutOutcome::Put => Ok((decode_json(path, &bytes)?, Sha256Hex::of(&bytes))),
            PutOutcome::Exists(stored) => Ok((decode_json(path, &stored)?, Sha256Hex::of(&stored))),
        }
    }

    /// Reads the JSON object at `path`, with the hash of its bytes.
    pub(super) async fn get_json<T: DeserializeOwned>(&self, path: &str) -> Result<Option<(T, Sha256Hex)>> {
        match self.get(path).await? {
            Some(bytes) => Ok(Some((decode_json(path, &bytes)?, Sha256Hex::of(&bytes)))),
            None => Ok(None),
        }
    }
}

/// Puts `bytes` at `path` of `store` if nothing is there, and otherwise returns what is.
pub(super) async fn put_absent(store: &dyn ObjectStore, path: &str, bytes: Bytes) -> Result<PutOutcome> {
    let location = object_path(path)?;
    let mut tries = 0;
    loop {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let refused = match store.put_opts(&location, bytes.clone().into(), options).await {
            Ok(_) => return Ok(PutOutcome::Put),
            Err(error) => error,
        };
        tries += 1;
        if !is_refused_as_existing(&refused) {
            return Err(store_error("put", path, refused));
        }
        match get_from(store, path).await? {
            Some(stored) => return Ok(PutOutcome::Exists(stored)),
            None if tries < CONFLICT_TRIES => {}
            None => return Err(store_error("put", path, refused)),
        }
    }
}

/// Says whether a put-if-absent failed because something is there: S3 and its kin answer so in several ways.
pub(super) fn is_refused_as_existing(error: &object_store::Error) -> bool {
    matches!(error, object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. })
}

/// Returns the bytes at `path` of `store`, or `None` if nothing is there.
pub(super) async fn get_from(store: &dyn ObjectStore, path: &str) -> Result<Option<Bytes>> {
    let location = object_path(path)?;
    let found = match store.get(&location).await {
        Ok(found) => found,
        Err(source) if is_absent(&source) => return Ok(None),
        Err(source) => return Err(store_error("get", path, source)),
    };
    match found.bytes().await {
        Ok(bytes) => Ok(Some(bytes)),
        Err(source) => Err(store_error("get", path, source)),
    }
}

/// Says whether the error means that nothing is at the path. A bucket that is gone is an error: read as "nothing", it
/// would look like an empty archive, and an empty archive bills nothing.
pub(super) fn is_absent(error: &object_store::Error) -> bool {
    match error {
        object_store::Error::NotFound { source, .. } => !source.to_string().contains("NoSuchBucket"),
        _ => false,
    }
}

/// Encodes an object of the archive. Equal values give equal bytes: no maps but ordered ones.
pub(super) fn encode_json<T: Serialize>(path: &str, value: &T) -> Result<Bytes> {
    let bytes = serde_json::to_vec(value)
        .map_err(|error| Error::ArchiveDamage { path: path.to_owned(), reason: error.to_string() })?;
    Ok(bytes.into())
}

/// Reads an object of the archive.
pub(super) fn decode_json<T: DeserializeOwned>(path: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| Error::ArchiveDamage {
        path: path.to_owned(),
        reason: format!("is not the JSON it must be: {error}"),
    })
}

pub(super) fn object_path(path: &str) -> Result<ObjectPath> {
    ObjectPath::parse(path)
        .map_err(|error| Error::ArchiveDamage { path: path.to_owned(), reason: error.to_string() })
}

pub(super) fn store_error(action: &'static str, path: &str, source: object_store::Error) -> Error {
    Error::ObjectStore { action, path: path.to_owned(), source }
}
