//! Data files in their buckets: where a file lies, and how it is put there.
//!
//! Guarantee: a file is read from the bucket its manifest names. A put whose outcome is unknown leaves no doubt: the
//! manifest decides which copy counts, and a copy no manifest names does not exist. Names carry the hash of the bytes, so
//! two puts of one name put the same bytes.
//! Flow of a put: one request with the condition "if absent"; above a size parts, four at a time, and a last request that
//! makes them one object.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt, PutPayload};

use super::store::{get_from, is_absent, object_path, put_absent, store_error};
use super::{Archive, FileEntry, PutOutcome};
use crate::error::{Error, Result};

/// Size of a part. S3 allows 10 000 parts of 5 MiB or more: 80 GiB a file at this size.
const PART_BYTES: usize = 8 << 20;
/// Parts under way at once: bounds memory and keeps a fast link busy.
const PARTS_AT_ONCE: usize = 4;

/// Which bucket holds a data file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bucket {
    Primary,
    Secondary,
}

impl Archive {
    /// Returns which bucket holds a data file.
    ///
    /// A name that is not the secondary's means the primary: an archive may be copied to a bucket of another name.
    pub fn bucket_of(&self, entry: &FileEntry) -> Bucket {
        match &self.secondary {
            Some(secondary) if *secondary.bucket == *entry.bucket => Bucket::Secondary,
            _ => Bucket::Primary,
        }
    }

    /// Returns the store of a bucket; the primary's, where there is no secondary.
    pub fn store_of(&self, bucket: Bucket) -> &Arc<dyn ObjectStore> {
        match (&self.secondary, bucket) {
            (Some(secondary), Bucket::Secondary) => &secondary.store,
            _ => self.store(),
        }
    }

    /// Returns the name by which manifests record a bucket.
    pub(super) fn name_of(&self, bucket: Bucket) -> &str {
        match (&self.secondary, bucket) {
            (Some(secondary), Bucket::Secondary) => &secondary.bucket,
            _ => self.bucket(),
        }
    }

    /// Returns the bytes of a data file from the bucket its manifest names.
    pub(super) async fn get_data(&self, entry: &FileEntry) -> Result<Option<Bytes>> {
        get_from(self.store_of(self.bucket_of(entry)).as_ref(), &entry.path).await
    }

    /// Says how a data file is missing, and what to do where its bucket is one this archive does not know.
    pub(super) fn missing_reason(&self, entry: &FileEntry) -> String {
        let looked_in = self.name_of(self.bucket_of(entry));
        if looked_in == entry.bucket {
            return format!("is missing in bucket {looked_in}");
        }
        format!(
            "is missing in bucket {looked_in}; its manifest names bucket {}: give that one as --archive-secondary",
            entry.bucket
        )
    }

    /// Puts a data file into `bucket`. Its being there already, with the same bytes, is a success.
    ///
    /// # Errors
    /// `ObjectStore` if the store fails, outcome unknown; `ArchiveDamage` if other bytes are there.
    pub(super) async fn put_data(&self, bucket: Bucket, path: &str, bytes: &Bytes) -> Result<()> {
        if bucket == Bucket::Primary {
            self.check_fence().await?;
        }
        let store = self.store_of(bucket).as_ref();
        let put = if bytes.len() > self.part_above_bytes {
            put_in_parts(store, path, bytes).await?
        } else {
            put_absent(store, path, bytes.clone()).await?
        };
        match put {
            PutOutcome::Exists(stored) if stored != *bytes => Err(Error::ArchiveDamage {
                path: path.to_owned(),
                reason: "exists with other bytes, although its name carries its hash".to_owned(),
            }),
            PutOutcome::Put | PutOutcome::Exists(_) => Ok(()),
        }
    }
}

/// Puts a large file as parts, unless it is there. Two writers at once both succeed: they put the same bytes.
async fn put_in_parts(store: &dyn ObjectStore, path: &str, bytes: &Bytes) -> Result<PutOutcome> {
    let location = object_path(path)?;
    match store.head(&location).await {
        Ok(_) => {
            if let Some(stored) = get_from(store, path).await? {
                return Ok(PutOutcome::Exists(stored));
            }
        }
        Err(error) if is_absent(&error) => {}
        Err(source) => return Err(store_error("put", path, source)),
    }
    let failed = |source| store_error("put", path, source);
    let mut upload = store.put_multipart(&location).await.map_err(failed)?;
    match send_parts(upload.as_mut(), bytes).await {
        Ok(()) => Ok(PutOutcome::Put),
        Err(source) => {
            // Parts cost storage until they are given up. If this fails too, the bucket's lifecycle rule does it.
            let _ = upload.abort().await;
            Err(failed(source))
        }
    }
}

async fn send_parts(upload: &mut dyn MultipartUpload, bytes: &Bytes) -> object_store::Result<()> {
    // Each takes its number when it is made, so they may end in any order.
    let parts: Vec<_> = (0..bytes.len())
        .step_by(PART_BYTES)
        .map(|start| bytes.slice(start..bytes.len().min(start + PART_BYTES)))
        .map(|part| upload.put_part(PutPayload::from(part)))
        .collect();
    futures::stream::iter(parts).buffer_unordered(PARTS_AT_ONCE).try_collect::<()>().await?;
    upload.complete().await.map(|_| ())
}
