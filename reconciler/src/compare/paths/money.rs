//! What a million clicks cost by each path, from what was measured and a list of prices.
//!
//! It is a model and no bill: its numbers are floating point, and it says what it leaves out.

use serde::{Deserialize, Serialize};

use super::figures::{PathCost, Sides};
use super::units;
use crate::error::{Error, Result};

/// The prices that hold where none are given.
pub const PRICES_TOML: &str = include_str!("prices.toml");

const MILLION: f64 = 1e6;
const SECONDS_PER_HOUR: f64 = 3_600.0;
const GIB: f64 = 1_073_741_824.0;
const GB: f64 = 1e9;

/// Prices, each in `currency` for one of its unit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prices {
    pub currency: String,
    pub vcpu_hour: f64,
    pub memory_gib_hour: f64,
    pub storage_gb_month: f64,
    pub storage_months: f64,
    pub read_gb: f64,
    pub written_gb: f64,
    pub requests_million: f64,
}

impl Prices {
    /// Reads prices from TOML.
    ///
    /// # Errors
    /// `Config` for an unknown or missing key, or a price that is negative or no number.
    pub fn from_toml(text: &str) -> Result<Self> {
        let prices: Self = toml::from_str(text)
            .map_err(|error| Error::Config { reason: format!("prices do not read: {error}") })?;
        prices.check()?;
        Ok(prices)
    }

    /// Checks that every price can be multiplied with.
    ///
    /// # Errors
    /// `Config` naming the first that cannot.
    pub fn check(&self) -> Result<()> {
        let named = [
            ("vcpu_hour", self.vcpu_hour),
            ("memory_gib_hour", self.memory_gib_hour),
            ("storage_gb_month", self.storage_gb_month),
            ("storage_months", self.storage_months),
            ("read_gb", self.read_gb),
            ("written_gb", self.written_gb),
            ("requests_million", self.requests_million),
        ];
        match named.iter().find(|(_, price)| !price.is_finite() || *price < 0.0) {
            None => Ok(()),
            Some((name, price)) => {
                let reason = format!("price {name} is {price}; it must be a number from 0 on");
                Err(Error::Config { reason })
            }
        }
    }
}

/// The cost model's answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Money {
    pub prices: Prices,
    pub paths: Sides<Bill>,
    pub assumptions: Vec<String>,
}

/// What a million clicks cost by one path.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Bill {
    pub items: Vec<Item>,
    /// Sum of the items; null where no click was counted.
    pub total_per_million_clicks: Option<f64>,
}

/// One line of the sum.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Item {
    pub name: String,
    pub unit: String,
    /// Of the unit, for a million clicks.
    pub quantity: f64,
    pub price: f64,
    pub amount: f64,
    /// The same as a sum in words.
    pub arithmetic: String,
}

/// Computes what both paths cost. `archive_bytes_each` is what one click takes in the archive.
pub(super) fn money(
    prices: Prices,
    costs: &Sides<PathCost>,
    copies: u64,
    archive_bytes_each: Option<f64>,
) -> Money {
    let bill = |cost: &PathCost| bill(&prices, cost, copies, archive_bytes_each.unwrap_or(0.0));
    let paths = Sides { lambda: bill(&costs.lambda), kappa: bill(&costs.kappa) };
    Money { paths, assumptions: assumptions(), prices }
}

fn bill(prices: &Prices, cost: &PathCost, copies: u64, archive_bytes_each: f64) -> Bill {
    if copies == 0 {
        return Bill::default();
    }
    let per_million = MILLION / copies as f64;
    let gib_hours = cost.rss_peak_bytes as f64 / GIB * (cost.wall_seconds / SECONDS_PER_HOUR);
    let stored_gb_months = archive_bytes_each * copies as f64 / GB * prices.storage_months;
    let lines = [
        ("CPU", "vCPU-hours", cost.cpu_seconds / SECONDS_PER_HOUR, prices.vcpu_hour),
        ("memory", "GiB-hours", gib_hours, prices.memory_gib_hour),
        ("reads", "GB read", cost.bytes_read as f64 / GB, prices.read_gb),
        ("writes", "GB written", cost.bytes_written as f64 / GB, prices.written_gb),
        ("requests", "million requests", cost.files_read as f64 / MILLION, prices.requests_million),
        ("archive", "GB-months", stored_gb_months, prices.storage_gb_month),
    ];
    let items = lines.map(|(name, unit, used, price)| item(name, unit, used * per_million, price, prices));
    let total = items.iter().map(|item| item.amount).sum();
    Bill { items: items.to_vec(), total_per_million_clicks: Some(total) }
}

fn item(name: &str, unit: &str, quantity: f64, price: f64, prices: &Prices) -> Item {
    let amount = quantity * price;
    let currency = &prices.currency;
    let arithmetic = format!(
        "{} {unit} x {} {currency} = {} {currency}",
        units::significant(quantity),
        units::significant(price),
        units::significant(amount)
    );
    Item { name: name.to_owned(), unit: unit.to_owned(), quantity, price, amount, arithmetic }
}

fn assumptions() -> Vec<String> {
    [
        "CPU is what the counting processes used, memory their peak held for their whole time.",
        "A request is one file given to read; a file read in parts, or again for another slice, makes more.",
        "The archive is the same for both paths: both read it, and both bills can be derived from it.",
        "The stream path, gateway and log run whichever path bills; they are in neither sum.",
        "The cost of one count of each hour. Every further reconcile, close or sweep of an hour costs it again.",
    ]
    .map(str::to_owned)
    .to_vec()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prices() -> Prices {
        Prices::from_toml(PRICES_TOML).expect("the prices built in")
    }

    #[test]
    fn the_sum_of_an_hour_of_one_core_is_its_price() {
        let cost = PathCost { wall_seconds: 3_600.0, cpu_seconds: 3_600.0, ..PathCost::default() };
        let costs = Sides { lambda: cost, kappa: PathCost::default() };
        let money = money(prices(), &costs, 2_000_000, Some(100.0));
        let archive = 1e6 * 100.0 / 1e9 * 12.0 * 0.023;
        let total = money.paths.lambda.total_per_million_clicks.expect("clicks");
        assert!((total - (0.034 / 2.0 + archive)).abs() < 1e-12, "{total}");
        let kappa = money.paths.kappa.total_per_million_clicks.expect("clicks");
        assert!((kappa - archive).abs() < 1e-12, "{kappa}");
        let cpu = &money.paths.lambda.items[0];
        assert_eq!(cpu.arithmetic, "0.5 vCPU-hours x 0.034 USD = 0.017 USD");
    }

    #[test]
    fn without_a_click_there_is_no_price_of_a_million() {
        let money = money(prices(), &Sides::default(), 0, None);
        assert_eq!(money.paths.lambda.total_per_million_clicks, None);
    }

    #[test]
    fn prices_with_a_wrong_key_or_a_negative_number_are_refused() {
        let misspelt = PRICES_TOML.replace("vcpu_hour", "vcpu_hours");
        assert!(Prices::from_toml(&misspelt).is_err());
        let negative = PRICES_TOML.replace("read_gb = 0.0", "read_gb = -1.0");
        let error = Prices::from_toml(&negative).expect_err("negative").to_string();
        assert!(error.contains("read_gb is -1"), "{error}");
        assert!(Prices::from_toml(&PRICES_TOML.replace("0.034", "nan")).is_err());
    }

    proptest! {
        #[test]
        fn totals_are_the_sums_of_their_items_and_twice_the_clicks_cost_half(
            cpu in 0.0..1e7_f64, wall in 0.0..1e7_f64, read in 0..1_u64 << 50, copies in 1..1_u64 << 40,
        ) {
            let cost = PathCost { cpu_seconds: cpu, wall_seconds: wall, bytes_read: read, rss_peak_bytes: 1 << 30, ..PathCost::default() };
            let with_read = Prices { read_gb: 0.01, ..prices() };
            let of = |copies| bill(&with_read, &cost, copies, 0.0);
            let bill = of(copies);
            let total = bill.total_per_million_clicks.expect("clicks");
            let sum: f64 = bill.items.iter().map(|item| item.quantity * item.price).sum();
            prop_assert!((total - sum).abs() <= sum.abs() * 1e-12);
            let half = of(copies * 2).total_per_million_clicks.expect("clicks");
            prop_assert!((half * 2.0 - total).abs() <= total.abs() * 1e-9);
        }
    }
}
