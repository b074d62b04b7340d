//! The bill by the plainest reading of CR-1 to CR-6: for each copy, look at all the others.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Value, json};

const HOUR_MS: i64 = 3_600_000;

#[derive(Debug, Clone, PartialEq)]
pub struct Copy {
    pub campaign_id: String,
    pub click_id: String,
    /// Everything that makes two copies differ.
    payload: Vec<Value>,
    event_time: i64,
}

impl Copy {
    pub fn read(line: &Value) -> Self {
        let text = |name: &str| line[name].as_str().unwrap_or("").to_owned();
        let payload = ["ad_id", "user_id", "publisher_id", "event_time"].map(|name| line[name].clone());
        Self {
            campaign_id: text("campaign_id"),
            click_id: text("click_id"),
            payload: payload.to_vec(),
            event_time: line["event_time"].as_i64().expect("epoch milliseconds"),
        }
    }

    fn hour(&self) -> i64 {
        self.event_time.div_euclid(HOUR_MS)
    }
}

#[derive(Debug, Clone)]
pub struct Rate {
    campaign_id: String,
    currency: String,
    cpc_micros: i64,
    effective_from: i64,
}

impl Rate {
    pub fn read(line: &Value) -> Self {
        let time: twice_log::UtcMillis =
            line["effective_from"].as_str().expect("a time").parse().expect("RFC 3339");
        Self {
            campaign_id: line["campaign_id"].as_str().expect("an id").to_owned(),
            currency: line["currency"].as_str().expect("a code").to_owned(),
            cpc_micros: line["cpc_micros"].as_i64().expect("a price"),
            effective_from: time.epoch_ms(),
        }
    }
}

#[derive(Default)]
struct Row {
    gross: u64,
    duplicates: u64,
    conflicts: u64,
    billable: u64,
    unpriced: u64,
    amount_micros: i64,
    invalid: HashMap<String, u64>,
}

/// Rulings by campaign and click.
pub type Verdicts = HashMap<(String, String), String>;

/// Returns the billing rows of `hour` over `copies` in log order.
pub fn bill(hour: &str, copies: &[Copy], rates: &[Rate], verdicts: &Verdicts) -> Vec<Value> {
    let number = hour.parse::<twice_log::Hour>().expect("an hour").since_epoch();
    let mut identities: HashMap<(&str, &str), Vec<&Copy>> = HashMap::new();
    for copy in copies {
        identities.entry((&copy.campaign_id, &copy.click_id)).or_default().push(copy);
    }
    let mut rows: BTreeMap<&str, Row> = BTreeMap::new();
    for ((campaign_id, click_id), copies) in &identities {
        let verdict = verdicts.get(&((*campaign_id).to_owned(), (*click_id).to_owned()));
        let related: Vec<&&Copy> = copies.iter().filter(|copy| (copy.hour() - number).abs() <= 1).collect();
        for (index, copy) in related.iter().enumerate() {
            if copy.hour() != number {
                continue;
            }
            let row = rows.entry(campaign_id).or_default();
            row.gross += 1;
            if index > 0 {
                row.duplicates += 1;
                row.conflicts += u64::from(copy.payload != related[0].payload);
                continue;
            }
            if let Some(verdict) = verdict {
                *row.invalid.entry(verdict.clone()).or_default() += 1;
                continue;
            }
            row.billable += 1;
            match price(rates, campaign_id, copy.event_time) {
                Some(price) => row.amount_micros += price,
                None => row.unpriced += 1,
            }
        }
    }
    let currency =
        |campaign: &str| rates.iter().find(|rate| rate.campaign_id == campaign).map(|rate| &rate.currency);
    rows.into_iter()
        .map(|(campaign_id, row)| {
            json!({"campaign_id": campaign_id, "hour_bucket": format!("{hour}:00:00Z"), "path": "lambda", "version": 1,
                "status": "reconciled", "gross": row.gross, "duplicates": row.duplicates, "conflicts": row.conflicts,
                "invalid_givt": row.invalid.get("givt").unwrap_or(&0),
                "invalid_sivt": row.invalid.get("sivt").unwrap_or(&0), "billable": row.billable, "unpriced": row.unpriced,
                "amount_micros": row.amount_micros, "currency": currency(campaign_id), "digest": "", "run_id": "r"})
        })
        .collect()
}

fn price(rates: &[Rate], campaign_id: &str, event_time: i64) -> Option<i64> {
    let in_force =
        rates.iter().filter(|rate| rate.campaign_id == campaign_id && rate.effective_from <= event_time);
    in_force.max_by_key(|rate| rate.effective_from).map(|rate| rate.cpc_micros)
}
