//! Moments whose answer is fixed (G-6).
//!
//! `commit_clock.settled_at_us` is the later of the newest commit and the newest `as_of` answered. A commit takes
//! max(clock, settled + 1 us) under the write lock. An `as_of` read at T first makes sure that T is settled: where it is
//! not, it takes the write lock, so no commit is under way, and stores T as settled. From then on every commit is later
//! than T, and every commit up to T is visible: the read that follows answers the same for ever, also when the machine's
//! clock is set back, and after a restart. Reads at settled moments, as most are, take no lock and write nothing.

use sqlx::{Sqlite, Transaction};

use super::{SqliteStore, begin_write, database};
use crate::billing::UtcMicros;
use crate::error::{Error, Result};

impl SqliteStore {
    /// Begins a read at `as_of` and returns it with the latest commit it may see; everything for `None`.
    pub(super) async fn begin_read_as_of(
        &self,
        as_of: Option<UtcMicros>,
    ) -> Result<(Transaction<'static, Sqlite>, i64)> {
        if let Some(moment) = as_of {
            self.settle(moment).await?;
        }
        // Begun after settling, or it could miss a commit up to `as_of`.
        Ok((self.begin_read().await?, as_of.map_or(i64::MAX, |moment| moment.0)))
    }

    async fn settle(&self, moment: UtcMicros) -> Result<()> {
        let settled: i64 = sqlx::query_scalar("SELECT settled_at_us FROM commit_clock")
            .fetch_one(&mut *self.begin_read().await?)
            .await
            .map_err(database("read the commit clock"))?;
        if moment.0 <= settled {
            return Ok(());
        }
        // The clock gives whole milliseconds: any microsecond of the present one has come, or is about to.
        if moment.floor_millis() > self.clock.now() {
            return Err(Error::AsOfInFuture);
        }
        let mut writer = self.writer().await?;
        let mut transaction = begin_write(&mut writer).await?;
        sqlx::query("UPDATE commit_clock SET settled_at_us = max(settled_at_us, ?)")
            .bind(moment.0)
            .execute(&mut *transaction)
            .await
            .map_err(database("settle a moment"))?;
        transaction.commit().await.map_err(database("settle a moment"))
    }

    /// Takes the next moment of a commit within its transaction.
    pub(super) async fn next_commit(&self, transaction: &mut Transaction<'_, Sqlite>) -> Result<UtcMicros> {
        let now = UtcMicros::from_millis(self.clock.now());
        sqlx::query_scalar(
            "UPDATE commit_clock SET settled_at_us = max(settled_at_us + 1, ?) RETURNING settled_at_us",
        )
        .bind(now.0)
        .fetch_one(&mut **transaction)
        .await
        .map(UtcMicros)
        .map_err(database("take the moment of a commit"))
    }
}
