//! Campaigns with their rates and budgets.

use std::collections::{BTreeSet, HashMap};

use async_trait::async_trait;
use futures::TryStreamExt;
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Sqlite, Transaction};
use twice_log::archive::Rate;
use twice_log::{CampaignId, UtcMillis};

use super::cursor::{self, fetch_limit};
use super::insert::insert_rows;
use super::{SqliteStore, begin_write, billing, columns, database};
use crate::billing::Page;
use crate::campaigns::{Campaign, CampaignStore, PutCampaign, StoredCampaign, put};
use crate::error::{Error, Result};

const LIST_CAMPAIGNS: &str = "campaigns";

/// Campaigns whose ids the JSON list `?1` holds, with the newest budget and strictness of each.
const CAMPAIGNS: &str = "SELECT c.campaign_id, c.name, c.currency, b.daily_budget_micros,
        b.recorded_at_ms AS budget_recorded_at_ms, s.strict, s.recorded_at_ms AS strict_recorded_at_ms
    FROM campaigns AS c LEFT JOIN budgets AS b ON b.campaign_id = c.campaign_id
        AND b.recorded_at_ms = (SELECT max(n.recorded_at_ms) FROM budgets AS n WHERE n.campaign_id = c.campaign_id)
    LEFT JOIN strictness AS s ON s.campaign_id = c.campaign_id
        AND s.recorded_at_ms = (SELECT max(n.recorded_at_ms) FROM strictness AS n WHERE n.campaign_id = c.campaign_id)
    WHERE c.campaign_id IN (SELECT value FROM json_each(?1))";

/// Rates of those campaigns, in the order in which they count.
const RATES: &str = "SELECT r.campaign_id, c.currency, r.cpc_micros, r.effective_from_ms, r.recorded_at_ms
    FROM rates AS r JOIN campaigns AS c ON c.campaign_id = r.campaign_id
    WHERE r.campaign_id IN (SELECT value FROM json_each(?1))
    ORDER BY r.campaign_id, r.effective_from_ms, r.recorded_at_ms";

const RATES_BEFORE: &str =
    "SELECT r.campaign_id, c.currency, r.cpc_micros, r.effective_from_ms, r.recorded_at_ms
    FROM rates AS r JOIN campaigns AS c ON c.campaign_id = r.campaign_id WHERE r.effective_from_ms < ?1
    ORDER BY r.campaign_id, r.effective_from_ms, r.recorded_at_ms";

#[async_trait]
impl CampaignStore for SqliteStore {
    async fn put_campaign(&self, new: PutCampaign, recorded_at: UtcMillis) -> Result<Campaign> {
        let campaign_id = new.campaign_id.clone();
        let mut stored = self.put_all(&[new], recorded_at).await?;
        let put = stored.remove(&campaign_id).flatten();
        put.map(|stored| stored.campaign).ok_or(Error::NotFound { what: format!("campaign {campaign_id}") })
    }

    async fn put_campaigns(&self, puts: Vec<PutCampaign>, recorded_at: UtcMillis) -> Result<()> {
        self.put_all(&puts, recorded_at).await.map(|_| ())
    }

    async fn campaign(&self, id: &CampaignId) -> Result<Option<Campaign>> {
        let mut transaction = self.begin_read().await?;
        let mut found = load(&mut transaction, &[id]).await?;
        Ok(found.remove(id).map(|stored| stored.campaign))
    }

    async fn campaigns(
        &self,
        campaigns: Option<&BTreeSet<CampaignId>>,
        limit: u32,
        cursor: Option<String>,
    ) -> Result<Page<Campaign>> {
        let after: Option<CampaignId> = cursor::decode(LIST_CAMPAIGNS, cursor.as_deref())?;
        let (limit, fetched) = fetch_limit(limit);
        let mut transaction = self.begin_read().await?;
        // No id is empty, so the empty text is before the first.
        let mut builder =
            QueryBuilder::<Sqlite>::new("SELECT campaign_id FROM campaigns WHERE campaign_id > ");
        builder.push_bind(after.map_or(String::new(), |id| id.as_str().to_owned()));
        if let Some(campaigns) = campaigns {
            billing::push_campaigns(&mut builder, "campaign_id", campaigns);
        }
        builder.push(" ORDER BY campaign_id LIMIT ").push_bind(fetched);
        let read = |row: &SqliteRow| columns::parsed::<CampaignId>(row, "campaign_id");
        let ids = billing::fetch(builder, &mut transaction, "list campaigns", read).await?;
        let Page { rows: ids, next_cursor } = cursor::page(ids, limit, LIST_CAMPAIGNS, CampaignId::clone)?;
        let mut found = load(&mut transaction, &ids.iter().collect::<Vec<_>>()).await?;
        let rows = ids.iter().filter_map(|id| found.remove(id)).map(|stored| stored.campaign).collect();
        Ok(Page { rows, next_cursor })
    }

    async fn rates_effective_before(&self, before: UtcMillis) -> Result<Vec<Rate>> {
        let mut rates = Vec::new();
        let mut rows = sqlx::query(RATES_BEFORE).bind(before.epoch_ms()).fetch(&self.readers);
        while let Some(row) = rows.try_next().await.map_err(database("read rates"))? {
            rates.push(read_rate(&row)?);
        }
        Ok(rates)
    }
}

impl SqliteStore {
    async fn put_all(
        &self,
        puts: &[PutCampaign],
        recorded_at: UtcMillis,
    ) -> Result<HashMap<CampaignId, Option<StoredCampaign>>> {
        let mut writer = self.writer().await?;
        let mut transaction = begin_write(&mut writer).await?;
        let ids: Vec<&CampaignId> = puts.iter().map(|put| &put.campaign_id).collect();
        let known = load(&mut transaction, &ids).await?;
        let mut stored: HashMap<CampaignId, Option<StoredCampaign>> =
            known.into_iter().map(|(id, campaign)| (id, Some(campaign))).collect();
        let (mut rates, mut budgets, mut strictness) = (Vec::new(), Vec::new(), Vec::new());
        for new in puts {
            let appends = put(stored.entry(new.campaign_id.clone()).or_default(), new, recorded_at)?;
            rates.extend(appends.rate);
            budgets.extend(appends.budget.map(|(budget, at)| (new.campaign_id.clone(), budget, at)));
            strictness.extend(appends.strict.map(|(strict, at)| (new.campaign_id.clone(), strict, at)));
        }
        write_campaigns(&mut transaction, puts).await?;
        write_rates(&mut transaction, &rates).await?;
        write_budgets(&mut transaction, &budgets).await?;
        write_strictness(&mut transaction, &strictness).await?;
        transaction.commit().await.map_err(database("put campaigns"))?;
        Ok(stored)
    }
}

async fn load(
    transaction: &mut Transaction<'_, Sqlite>,
    ids: &[&CampaignId],
) -> Result<HashMap<CampaignId, StoredCampaign>> {
    let ids = serde_json::to_string(ids)
        .map_err(|error| Error::Invalid { what: "campaign ids".to_owned(), reason: error.to_string() })?;
    let mut found = HashMap::new();
    {
        let mut rows = sqlx::query(CAMPAIGNS).bind(&ids).fetch(&mut **transaction);
        while let Some(row) = rows.try_next().await.map_err(database("read campaigns"))? {
            let stored = read_campaign(&row)?;
            found.insert(stored.campaign.campaign_id.clone(), stored);
        }
    }
    let mut rows = sqlx::query(RATES).bind(&ids).fetch(&mut **transaction);
    while let Some(row) = rows.try_next().await.map_err(database("read rates"))? {
        let rate = read_rate(&row)?;
        if let Some(stored) = found.get_mut(&rate.campaign_id) {
            stored.campaign.rates.push(rate);
        }
    }
    Ok(found)
}

async fn write_campaigns(transaction: &mut Transaction<'_, Sqlite>, puts: &[PutCampaign]) -> Result<()> {
    let head = "INSERT INTO campaigns (campaign_id, name, currency) ";
    let tail = " ON CONFLICT (campaign_id) DO UPDATE SET name = excluded.name";
    insert_rows(transaction, "write campaigns", (head, tail), puts, |row_columns, new| {
        row_columns.push_bind(new.campaign_id.as_str().to_owned());
        row_columns.push_bind(new.name.clone());
        row_columns.push_bind(new.currency.as_str().to_owned());
    })
    .await
}

async fn write_rates(transaction: &mut Transaction<'_, Sqlite>, rates: &[Rate]) -> Result<()> {
    let head = "INSERT INTO rates (campaign_id, effective_from_ms, recorded_at_ms, cpc_micros) ";
    insert_rows(transaction, "write rates", (head, ""), rates, |row_columns, rate| {
        row_columns.push_bind(rate.campaign_id.as_str().to_owned());
        row_columns.push_bind(rate.effective_from.epoch_ms());
        row_columns.push_bind(rate.recorded_at.epoch_ms());
        row_columns.push_bind(rate.cpc_micros);
    })
    .await
}

async fn write_budgets(
    transaction: &mut Transaction<'_, Sqlite>,
    budgets: &[(CampaignId, Option<i64>, UtcMillis)],
) -> Result<()> {
    let head = "INSERT INTO budgets (campaign_id, recorded_at_ms, daily_budget_micros) ";
    insert_rows(transaction, "write budgets", (head, ""), budgets, |row_columns, (id, budget, at)| {
        row_columns.push_bind(id.as_str().to_owned());
        row_columns.push_bind(at.epoch_ms());
        row_columns.push_bind(*budget);
    })
    .await
}

async fn write_strictness(
    transaction: &mut Transaction<'_, Sqlite>,
    strictness: &[(CampaignId, bool, UtcMillis)],
) -> Result<()> {
    let head = "INSERT INTO strictness (campaign_id, recorded_at_ms, strict) ";
    insert_rows(transaction, "write strictness", (head, ""), strictness, |row_columns, (id, strict, at)| {
        row_columns.push_bind(id.as_str().to_owned());
        row_columns.push_bind(at.epoch_ms());
        row_columns.push_bind(*strict);
    })
    .await
}

fn read_campaign(row: &SqliteRow) -> Result<StoredCampaign> {
    let recorded_at = columns::integer_or_null(row, "budget_recorded_at_ms")?;
    let strict_recorded_at = columns::integer_or_null(row, "strict_recorded_at_ms")?;
    let campaign = Campaign {
        campaign_id: columns::parsed(row, "campaign_id")?,
        name: columns::text(row, "name")?.to_owned(),
        currency: columns::parsed(row, "currency")?,
        daily_budget_micros: columns::integer_or_null(row, "daily_budget_micros")?,
        strict: columns::integer_or_null(row, "strict")? == Some(1),
        rates: Vec::new(),
    };
    Ok(StoredCampaign {
        campaign,
        budget_recorded_at: recorded_at.map(UtcMillis::clamped),
        strict_recorded_at: strict_recorded_at.map(UtcMillis::clamped),
    })
}

fn read_rate(row: &SqliteRow) -> Result<Rate> {
    Ok(Rate {
        campaign_id: columns::parsed(row, "campaign_id")?,
        currency: columns::parsed(row, "currency")?,
        cpc_micros: columns::integer(row, "cpc_micros")?,
        effective_from: columns::millis(row, "effective_from_ms")?,
        recorded_at: columns::millis(row, "recorded_at_ms")?,
    })
}
