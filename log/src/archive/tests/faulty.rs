//! An object store in memory that refuses, loses answers or ignores conditions, as a test tells it to.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// What happens to the puts of some paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is put, and the answer says so.
    Refuse,
    /// The object is put, and the answer is lost.
    LoseAnswer,
    /// Refused as existing, as S3 does while another put of the key is under way.
    Conflict,
}

/// The store. Clones share everything.
#[derive(Debug, Clone, Default)]
pub struct FaultyStore {
    inner: Arc<InMemory>,
    faults: Arc<Mutex<Vec<(&'static str, Fault)>>>,
    ignores_conditions: bool,
    multiparts: Arc<AtomicU64>,
    puts: Arc<AtomicU64>,
}

impl FaultyStore {
    /// Returns a store that overwrites whatever it is told to put if absent.
    pub fn ignoring_conditions() -> Self {
        Self { ignores_conditions: true, ..Self::default() }
    }

    /// Has puts of paths below `prefix` fail as `fault` from now on.
    pub fn fail(&self, prefix: &'static str, fault: Fault) {
        self.faults.lock().expect("not poisoned").push((prefix, fault));
    }

    /// Ends every fault.
    pub fn heal(&self) {
        self.faults.lock().expect("not poisoned").clear();
    }

    /// Returns how many uploads in parts were begun.
    pub fn multiparts(&self) -> u64 {
        self.multiparts.load(Ordering::SeqCst)
    }

    /// Returns how many puts were asked for.
    pub fn puts(&self) -> u64 {
        self.puts.load(Ordering::SeqCst)
    }

    fn fault(&self, location: &Path) -> Option<Fault> {
        let faults = self.faults.lock().expect("not poisoned");
        faults.iter().find(|(prefix, _)| location.as_ref().starts_with(prefix)).map(|(_, fault)| *fault)
    }
}

fn down() -> object_store::Error {
    object_store::Error::Generic { store: "faulty", source: "503 Service Unavailable".into() }
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("FaultyStore")
    }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        mut options: PutOptions,
    ) -> Result<PutResult> {
        self.puts.fetch_add(1, Ordering::SeqCst);
        if self.ignores_conditions {
            options.mode = PutMode::Overwrite;
        }
        match self.fault(location) {
            Some(Fault::Refuse) => Err(down()),
            Some(Fault::Conflict) => Err(object_store::Error::AlreadyExists {
                path: location.to_string(),
                source: "409 ConditionalRequestConflict".into(),
            }),
            Some(Fault::LoseAnswer) => {
                self.inner.put_opts(location, payload, options).await?;
                Err(down())
            }
            None => self.inner.put_opts(location, payload, options).await,
        }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.multiparts.fetch_add(1, Ordering::SeqCst);
        match self.fault(location) {
            Some(_) => Err(down()),
            None => self.inner.put_multipart_opts(location, options).await,
        }
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
