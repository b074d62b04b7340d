//! The fence, proven: a bucket that takes a second put of one key is never written to.
//!
//! Guarantee: two archivers that put one manifest's key cannot both succeed, because the server has refused a put of a key
//! that was there. Proven once a process, before its first put.

use bytes::Bytes;
use object_store::{ObjectStore, PutMode, PutOptions};
use tokio::sync::OnceCell;

use super::trouble;
use crate::archive::store::{get_from, is_refused_as_existing, object_path};
use crate::error::{Error, Result};

/// The key that is put again and again. It stays in the bucket: it needs no right to delete, and a later start needs
/// one put only.
const PROBE_PATH: &str = "probe/put-if-absent";
const PROBE_TEXT: &[u8] = b"A second put of this key must be refused.\n";

/// Whether the store has proven that it can put if absent.
#[derive(Debug, Default)]
pub(in crate::archive) struct Fence {
    proven: OnceCell<()>,
}

impl Fence {
    /// Returns once the store is proven; asks it if nobody has.
    ///
    /// # Errors
    /// `Config` if the store cannot be used, with what to do; `ObjectStore` if it does not answer.
    pub(in crate::archive) async fn check(&self, store: &dyn ObjectStore) -> Result<()> {
        self.proven.get_or_try_init(|| prove(store)).await.map(|_| ())
    }
}

async fn prove(store: &dyn ObjectStore) -> Result<()> {
    // Listing is a right of its own; it also tells a bucket that does not exist from one without this key.
    let folder = object_path("probe")?;
    store.list_with_delimiter(Some(&folder)).await.map_err(|error| trouble::of("list", PROBE_PATH, error))?;
    // The first put takes the place, or finds it taken by an earlier start: then the server has refused already.
    if !is_taken(store).await? && !is_taken(store).await? {
        return Err(Error::Config {
            reason: "the server took a second put of a key that was there: it ignores If-None-Match. Two nodes could \
                     then archive the same clicks twice. Use a server that honours it: Amazon S3, MinIO, Ceph from \
                     Tentacle on, R2"
                .to_owned(),
        });
    }
    match get_from(store, PROBE_PATH).await? {
        Some(_) => Ok(()),
        None => Err(Error::Config {
            reason: format!(
                "{PROBE_PATH} was put and cannot be found: the bucket does not keep what it takes"
            ),
        }),
    }
}

/// Puts the probe if absent; returns whether that was refused because it is there.
async fn is_taken(store: &dyn ObjectStore) -> Result<bool> {
    let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    let put = store.put_opts(&object_path(PROBE_PATH)?, Bytes::from_static(PROBE_TEXT).into(), options).await;
    match put {
        Ok(_) => Ok(false),
        Err(error) if is_refused_as_existing(&error) => Ok(true),
        Err(error) => Err(trouble::of("put", PROBE_PATH, error)),
    }
}

/// Puts the probe into a bucket that needs no fence, so that a wrong setting shows at the start and not in an outage.
pub(super) async fn try_put(store: &dyn ObjectStore) -> Result<()> {
    is_taken(store).await.map(|_| ())
}
