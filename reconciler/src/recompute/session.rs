//! The query engine of one recompute: bounded memory, a spill folder, and the run's relations under their names.

use std::path::Path;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::dataframe::DataFrame;
use datafusion::datasource::MemTable;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::GreedyMemoryPool;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::logical_expr::{Expr, col, lit};
use datafusion::prelude::{SQLOptions, SessionConfig, SessionContext};
use twice_log::Topic;
use twice_log::archive::{Archive, Bucket, FileEntry, FileKind, Layout};

use super::aggregates::user_sketch;
use super::memory::FOOTER_CACHE_BYTES;
use super::related::{Columns, related};
use super::relations::{Files, Relations, engine_schema};
use super::scan::FilesTable;
use super::share::{means_one, plan_sharing};
use super::slices::Slice;
use super::spill;
use super::split::in_part;
use crate::error::{Error, Result};

/// Addresses under which the engine knows the archive's buckets.
const PRIMARY_URL: &str = "archive://root/";
const SECONDARY_URL: &str = "archive://secondary/";
/// One part in so many of the memory for rows may be rows of other hours.
const RELATED_PARTS: u64 = 4;
/// One part in so many of what may be spilled is for statements of others.
const FOREIGN_SPILL_PARTS: u64 = 8;

/// The engine: one memory pool and one spill folder for every slice.
#[derive(Debug)]
pub struct Engine {
    runtime: Arc<RuntimeEnv>,
    streams: usize,
    /// Most bytes of rows of other hours, or of verdicts, that one slice may hold.
    related_bytes_max: u64,
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
            .with_mode(DiskManagerMode::Directories(vec![spill_dir.to_path_buf()]))
            .with_max_temp_directory_size(spill::bytes_max(spill_dir));
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(GreedyMemoryPool::new(memory)))
            .with_disk_manager_builder(disk)
            .with_metadata_cache_limit(FOOTER_CACHE_BYTES)
            .build_arc()
            .map_err(Error::engine("set up memory and spill folder"))?;
        for bucket in [Bucket::Primary, Bucket::Secondary] {
            runtime.register_object_store(url_of(bucket)?.as_ref(), Arc::clone(archive.store_of(bucket)));
        }
        let related_bytes_max = pool_bytes / RELATED_PARTS;
        Ok(Self { runtime, streams: streams.max(1), related_bytes_max, archive: archive.clone() })
    }

    /// Lets statements spill no more than a part of what a recompute may: they are somebody's attempt.
    ///
    /// # Errors
    /// `Engine` if the engine refuses.
    pub fn bound_spill(&self) -> Result<()> {
        let disk = &self.runtime.disk_manager;
        let bytes = disk.max_temp_directory_size() / FOREIGN_SPILL_PARTS;
        disk.set_max_temp_directory_size(bytes).map_err(Error::engine("bound the spill folder"))
    }

    /// Opens a session in which the relations hold one slice.
    ///
    /// # Errors
    /// `Engine` if a relation cannot be planned or read; `OutOfMemory` if too much of other hours belongs to it.
    pub async fn slice(&self, relations: &Relations, slice: &Slice) -> Result<SliceSession> {
        let context = self.context();
        let session = SliceSession { context };
        for (name, rows) in [
            ("clicks", self.clicks(&session.context, relations, slice).await?),
            ("verdicts", self.verdicts(&session.context, relations, slice).await?),
        ] {
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

    /// Opens a session without relations.
    pub fn bare(&self) -> SliceSession {
        SliceSession { context: self.context() }
    }

    /// Registers the rows of a slice in `files` that fulfil `exist`, asked of the files in `cut` alone.
    ///
    /// # Errors
    /// `Engine` if the relation cannot be planned.
    pub fn register(
        &self,
        session: &SliceSession,
        name: &str,
        (topic, files, exist): (Topic, &Files, &Expr),
        slice: &Slice,
    ) -> Result<()> {
        let rows = self.rows(&session.context, topic, files, exist, slice)?;
        let registered = session.context.register_table(name, rows.into_view());
        registered.map(|_| ()).map_err(Error::engine("register a relation"))
    }

    fn context(&self) -> SessionContext {
        let mut config = SessionConfig::new().with_target_partitions(self.streams);
        let options = config.options_mut();
        // Every join of the two statements has a small side, which stands first: build from it, never shuffle the other.
        options.optimizer.repartition_joins = false;
        options.optimizer.join_reordering = false;
        options.execution.collect_statistics = false;
        let context = SessionContext::new_with_config_rt(config, Arc::clone(&self.runtime));
        context.register_udaf(user_sketch());
        context
    }

    /// Returns the hour's clicks of one slice, and the copies of the same identities in other hours.
    async fn clicks(
        &self,
        context: &SessionContext,
        relations: &Relations,
        slice: &Slice,
    ) -> Result<DataFrame> {
        let rows = |files| self.rows(context, Topic::AdClicks, files, &relations.clicks_exist, slice);
        let own = rows(&relations.clicks)?;
        // Without a click in the hour nothing elsewhere belongs to it.
        if relations.elsewhere.rows() == 0 || relations.clicks.rows() == 0 {
            return Ok(own);
        }
        let (others, columns) = (rows(&relations.elsewhere)?, relations.columns);
        let related = related(context, own.clone(), others, columns, self.related_bytes_max).await?;
        own.union(related).map_err(Error::engine("lay out a relation"))
    }

    /// Returns the verdicts of one slice; where there are many, those on the hour's identities.
    async fn verdicts(
        &self,
        context: &SessionContext,
        relations: &Relations,
        slice: &Slice,
    ) -> Result<DataFrame> {
        let exist = &relations.verdicts_exist;
        let verdicts = self.rows(context, Topic::FraudVerdicts, &relations.verdicts, exist, slice)?;
        if !relations.verdicts_are_many() {
            return Ok(verdicts);
        }
        if relations.clicks.rows() == 0 {
            return verdicts.filter(lit(false)).map_err(Error::engine("lay out a relation"));
        }
        let own = self.rows(context, Topic::AdClicks, &relations.clicks, &relations.clicks_exist, slice)?;
        related(context, own, verdicts, Columns::Every, self.related_bytes_max).await
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
        // Decisions are not archived, so no file is of their topic.
        Topic::FraudVerdicts | Topic::BudgetDecisions => FileKind::Verdicts,
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

    /// Runs one statement and registers its answer, which it holds in memory.
    ///
    /// # Errors
    /// `Engine` if it does not plan or run.
    pub async fn hold(&self, action: &'static str, name: &str, sql: &str) -> Result<()> {
        let frame = self.context.sql(sql).await.map_err(Error::engine(action))?;
        let schema = Arc::clone(frame.schema().inner());
        let answer = frame.collect().await.map_err(Error::engine(action))?;
        let table = MemTable::try_new(schema, vec![answer]).map_err(Error::engine(action))?;
        self.context.register_table(name, Arc::new(table)).map_err(Error::engine(action))?;
        Ok(())
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

    /// Runs one statement that others wrote, which can only SELECT from the relations; also returns its columns.
    ///
    /// `shared` is computed once where all its uses mean the same.
    ///
    /// # Errors
    /// `Engine` if it does not plan or run, or does anything but SELECT.
    pub async fn query_foreign(&self, sql: &str, shared: &str) -> Result<(SchemaRef, Vec<RecordBatch>)> {
        let failed = Error::engine("run the candidate");
        let select_only =
            SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        let plan = self.context.state().create_logical_plan(sql).await.map_err(failed)?;
        select_only.verify_plan(&plan).map_err(failed)?;
        let plan = match means_one(&plan, shared).map_err(failed)? {
            true => plan_sharing(&self.context, sql, shared).await.map_err(failed)?,
            false => plan,
        };
        let frame = self.context.execute_logical_plan(plan).await.map_err(failed)?;
        let schema = Arc::clone(frame.schema().inner());
        Ok((schema, frame.collect().await.map_err(failed)?))
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
