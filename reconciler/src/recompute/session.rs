//! The query engine of one recompute: bounded memory, a spill folder, and the run's relations under their names.

use std::path::Path;
use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::dataframe::DataFrame;
use datafusion::datasource::MemTable;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::GreedyMemoryPool;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::logical_expr::{Expr, col, lit};
use datafusion::prelude::{SessionConfig, SessionContext};
use twice_log::Topic;
use twice_log::archive::{Archive, Bucket, FileEntry, FileKind, Layout};

use super::aggregates::user_sketch;
use super::memory::FOOTER_CACHE_BYTES;
use super::relations::{Files, Relations, engine_schema};
use super::scan::FilesTable;
use super::share::plan_sharing;
use super::slices::Slice;
use super::split::in_part;
use crate::error::{Error, Result};

/// Addresses under which the engine knows the archive's buckets.
const PRIMARY_URL: &str = "archive://root/";
const SECONDARY_URL: &str = "archive://secondary/";

/// The engine: one memory pool and one spill folder for every slice.
#[derive(Debug)]
pub struct Engine {
    runtime: Arc<RuntimeEnv>,
    streams: usize,
    archive: Archive,
}

impl Engine {
    /// Starts an engine over `archive` whose operators reserve at most `pool_bytes` and work in `streams` streams.
    ///
    /// # Errors
    /// `Engine` if the spill folder cannot be made.
    pub fn new(archive: &Archive, spill_dir: &Path, pool_bytes: u64, streams: usize) -> Result<Self> {
        let memory = usize::try_from(pool_bytes).unwrap_or(usize::MAX);
        let disk = DiskManagerBuilder::default()
            .with_mode(DiskManagerMode::Directories(vec![spill_dir.to_path_buf()]));
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(GreedyMemoryPool::new(memory)))
            .with_disk_manager_builder(disk)
            .with_metadata_cache_limit(FOOTER_CACHE_BYTES)
            .build_arc()
            .map_err(Error::engine("set up memory and spill folder"))?;
        for bucket in [Bucket::Primary, Bucket::Secondary] {
            runtime.register_object_store(url_of(bucket)?.as_ref(), Arc::clone(archive.store_of(bucket)));
        }
        Ok(Self { runtime, streams: streams.max(1), archive: archive.clone() })
    }

    /// Opens a session in which the relations hold one slice.
    ///
    /// # Errors
    /// `Engine` if a relation cannot be planned.
    pub fn slice(&self, relations: &Relations, slice: &Slice) -> Result<SliceSession> {
        let mut config = SessionConfig::new().with_target_partitions(self.streams);
        let options = config.options_mut();
        // Every join of the two statements has a small side, which stands first: build from it, never shuffle the other.
        options.optimizer.repartition_joins = false;
        options.optimizer.join_reordering = false;
        options.execution.collect_statistics = false;
        let context = SessionContext::new_with_config_rt(config, Arc::clone(&self.runtime));
        context.register_udaf(user_sketch());
        let session = SliceSession { context };
        let clicks = (Topic::AdClicks, &relations.clicks, &relations.clicks_exist);
        let verdicts = (Topic::FraudVerdicts, &relations.verdicts, &relations.verdicts_exist);
        for (name, (topic, files, exist)) in [("clicks", clicks), ("verdicts", verdicts)] {
            let rows = self.rows(&session.context, topic, files, exist, slice)?;
            let registered = session.context.register_table(name, rows.into_view());
            registered.map_err(Error::engine("register a relation"))?;
        }
        let rates = relations.rates_of(slice);
        let batches = [("run", &relations.run), ("rates", &rates), ("seals", &relations.seals)];
        for (name, batch) in batches {
            let table = MemTable::try_new(batch.schema(), vec![vec![batch.clone()]])
                .map_err(Error::engine("lay out a relation"))?;
            let registered = session.context.register_table(name, Arc::new(table));
            registered.map_err(Error::engine("register a relation"))?;
        }
        Ok(session)
    }

    /// Returns the rows of one slice that exist for the run.
    fn rows(
        &self,
        context: &SessionContext,
        topic: Topic,
        files: &Files,
        exist: &Expr,
        slice: &Slice,
    ) -> Result<DataFrame> {
        let mut rows = self.table(context, topic, &files.below)?;
        if !files.cut.is_empty() {
            // Only files that reach over the cutoff pay for the comparison.
            let cut = self.table(context, topic, &files.cut)?.filter(exist.clone());
            rows = cut.and_then(|cut| rows.union(cut)).map_err(Error::engine("open files"))?;
        }
        match slice_filter(slice) {
            Some(filter) => rows.filter(filter).map_err(Error::engine("cut a slice")),
            None => Ok(rows),
        }
    }

    /// Returns the rows of `files`, each from the bucket its manifest names.
    fn table(&self, context: &SessionContext, topic: Topic, files: &[FileEntry]) -> Result<DataFrame> {
        let table = |bucket: Bucket, files: Vec<FileEntry>| {
            let layout = Layout::of(kind_of(topic));
            let table = FilesTable::new(url_of(bucket)?, engine_schema(topic), layout, files);
            context.read_table(Arc::new(table)).map_err(Error::engine("open files"))
        };
        let (primary, secondary): (Vec<_>, Vec<_>) =
            files.iter().cloned().partition(|file| self.archive.bucket_of(file) == Bucket::Primary);
        let rows = table(Bucket::Primary, primary)?;
        if secondary.is_empty() {
            return Ok(rows);
        }
        rows.union(table(Bucket::Secondary, secondary)?).map_err(Error::engine("open files"))
    }
}

fn url_of(bucket: Bucket) -> Result<ObjectStoreUrl> {
    let url = match bucket {
        Bucket::Primary => PRIMARY_URL,
        Bucket::Secondary => SECONDARY_URL,
    };
    ObjectStoreUrl::parse(url).map_err(Error::engine("name the archive"))
}

fn kind_of(topic: Topic) -> FileKind {
    match topic {
        Topic::AdClicks => FileKind::Clicks,
        Topic::FraudVerdicts => FileKind::Verdicts,
    }
}

fn slice_filter(slice: &Slice) -> Option<Expr> {
    let from = slice.from.as_ref().map(|from| col("campaign_id").gt_eq(lit(from.as_str())));
    let to = slice.to.as_ref().map(|to| col("campaign_id").lt(lit(to.as_str())));
    let part = slice.part.map(|(index, parts)| in_part(col("click_id"), index, parts));
    [from, to, part].into_iter().flatten().reduce(Expr::and)
}

/// A session whose relations hold one slice.
pub struct SliceSession {
    context: SessionContext,
}

impl SliceSession {
    /// Runs one statement and returns its answer.
    ///
    /// # Errors
    /// `Engine` if it does not plan or run.
    pub async fn query(&self, action: &'static str, sql: &str) -> Result<Vec<RecordBatch>> {
        let frame = self.context.sql(sql).await.map_err(Error::engine(action))?;
        frame.collect().await.map_err(Error::engine(action))
    }

    /// Runs one statement, its subquery `shared` once for all its uses.
    ///
    /// # Errors
    /// `Engine` if it does not plan or run.
    pub async fn query_sharing(
        &self,
        action: &'static str,
        sql: &str,
        shared: &str,
    ) -> Result<Vec<RecordBatch>> {
        let plan = plan_sharing(&self.context, sql, shared).await.map_err(Error::engine(action))?;
        let frame = self.context.execute_logical_plan(plan).await.map_err(Error::engine(action))?;
        frame.collect().await.map_err(Error::engine(action))
    }

    /// Runs one statement as [`SliceSession::query_sharing`] does, and returns its answer as it comes.
    ///
    /// # Errors
    /// `Engine` if it does not plan or start.
    pub async fn stream_sharing(
        &self,
        action: &'static str,
        sql: &str,
        shared: &str,
    ) -> Result<SendableRecordBatchStream> {
        let plan = plan_sharing(&self.context, sql, shared).await.map_err(Error::engine(action))?;
        let frame = self.context.execute_logical_plan(plan).await.map_err(Error::engine(action))?;
        frame.execute_stream().await.map_err(Error::engine(action))
    }
}
