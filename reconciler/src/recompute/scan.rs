//! A table over the very files a run's inputs list: never a listing, never a glob.
//!
//! Sizes come from the manifests, so opening a thousand files asks the store for nothing but their bytes.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::Result;
use datafusion::datasource::TableType;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::CachedParquetFileReaderFactory;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_plan::ExecutionPlan;
use twice_log::archive::{FileEntry, Layout};

use super::layouts::FileLayouts;

/// Parquet files of one kind, by path and size.
#[derive(Debug)]
pub struct FilesTable {
    url: ObjectStoreUrl,
    schema: SchemaRef,
    layout: Layout,
    files: Vec<FileEntry>,
}

impl FilesTable {
    /// Reads `files` from the store registered under `url` in the columns of `schema`; what a file of an older layout
    /// lacks reads as `layout` says.
    pub fn new(url: ObjectStoreUrl, schema: SchemaRef, layout: Layout, files: Vec<FileEntry>) -> Self {
        Self { url, schema, layout, files }
    }

    /// Spreads the files over `groups` lists by size, so that threads end together.
    fn groups(&self, groups: usize) -> Vec<FileGroup> {
        let mut files: Vec<&FileEntry> = self.files.iter().collect();
        files.sort_by(|left, right| right.bytes.cmp(&left.bytes).then_with(|| left.path.cmp(&right.path)));
        let mut lists: Vec<(u64, Vec<PartitionedFile>)> = vec![(0, Vec::new()); groups.max(1)];
        for file in files {
            if let Some((bytes, list)) = lists.iter_mut().min_by_key(|(bytes, _)| *bytes) {
                *bytes += file.bytes;
                list.push(PartitionedFile::new(file.path.clone(), file.bytes));
            }
        }
        lists.into_iter().filter(|(_, list)| !list.is_empty()).map(|(_, list)| FileGroup::new(list)).collect()
    }
}

#[async_trait]
impl TableProvider for FilesTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    /// Filters stay in the plan as well: here they only skip row groups, by their statistics.
    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        // Each slice scans the same files several times: their footers are read once, and kept within a bound.
        let runtime = state.runtime_env();
        let footers = CachedParquetFileReaderFactory::new(
            runtime.object_store(&self.url)?,
            runtime.cache_manager.get_file_metadata_cache(),
        );
        // The filters reach the source by the optimizer's own push-down, from the FilterExec above.
        let source = ParquetSource::new(Arc::clone(&self.schema))
            .with_table_parquet_options(state.table_options().parquet.clone())
            .with_parquet_file_reader_factory(Arc::new(footers));
        let config = FileScanConfigBuilder::new(self.url.clone(), Arc::new(source))
            .with_file_groups(self.groups(state.config().target_partitions()))
            .with_projection_indices(projection.cloned())?
            .with_limit(limit)
            .with_expr_adapter(Some(Arc::new(FileLayouts(self.layout.clone()))))
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }
}
