//! Reads pieces of a data file, for Parquet's asynchronous decoder.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::arrow::arrow_reader::ArrowReaderOptions;
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};

use super::{Archive, FileEntry};
use crate::error::{Error, Result};

/// One data file in the bucket its manifest names. Page indexes are left out: row groups are small.
#[derive(Debug, Clone)]
pub struct DataFileReader {
    store: Arc<dyn ObjectStore>,
    path: Path,
    bytes: u64,
}

impl Archive {
    /// Opens a data file to be read piece by piece; nothing of it is checked but what is decoded.
    ///
    /// # Errors
    /// `ArchiveDamage` if its path is none.
    pub fn data_reader(&self, entry: &FileEntry) -> Result<DataFileReader> {
        let path = Path::parse(&entry.path)
            .map_err(|error| Error::ArchiveDamage { path: entry.path.clone(), reason: error.to_string() })?;
        let store = Arc::clone(self.store_of(self.bucket_of(entry)));
        Ok(DataFileReader { store, path, bytes: entry.bytes })
    }
}

impl AsyncFileReader for DataFileReader {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, ParquetResult<Bytes>> {
        self.store.get_range(&self.path, range).map(|read| read.map_err(external)).boxed()
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, ParquetResult<Vec<Bytes>>> {
        async move { self.store.get_ranges(&self.path, &ranges).await.map_err(external) }.boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, ParquetResult<Arc<ParquetMetaData>>> {
        async move {
            let options = options.map(|options| options.metadata_options().clone());
            let bytes = self.bytes;
            let reader = ParquetMetaDataReader::new().with_metadata_options(options);
            Ok(Arc::new(reader.load_and_finish(self, bytes).await?))
        }
        .boxed()
    }
}

fn external(error: object_store::Error) -> ParquetError {
    ParquetError::External(Box::new(error))
}
