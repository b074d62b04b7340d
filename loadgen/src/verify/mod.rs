//! `verify`: computes the bill from ledgers and rates, and compares it with what a node answers, to the click.
//!
//! Guarantee: agreement means that every billing row of every hour touched is what the counting rules say of the
//! acknowledged clicks, and that every difference to the stream's number has a cause (G-5). Where the outcome of a
//! send is unknown, `gross` and `duplicates` lie between bounds; `billable` is exact wherever a copy was acknowledged.
//! Flow: ledgers -> `expect` (pure: one row a campaign and hour) -> per hour `fetch` both answers -> `compare` (pure).

mod compare;
mod expect;
mod fetch;
mod prices;
mod report;

use anyhow::{Result, bail};
use twice_log::Hour;

pub use compare::{Difference, HourAnswer, HourTotals, Strictness, compare_hour};
pub use expect::{Bounds, Expected, ExpectedRow, ExpectedRows, Gathered, WrongRefusal};
pub use fetch::{BillingRow, DivergenceRow};
pub use prices::Prices;

use crate::cli::{Ended, VerifyArgs};
use crate::console::{print, tell};
use crate::ledger::{LedgerFile, read_rates, read_rows};
use crate::server::Server;
use fetch::Node;
use report::Summary;

/// Runs `verify`.
///
/// # Errors
/// If a ledger cannot be read or the node cannot be asked; a difference is no error.
pub fn run(args: &VerifyArgs) -> Result<Ended> {
    let expected = expect_from_ledgers(args)?;
    let server = Server::new(&args.server, 2)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let node = Node::new(server, args.server.clone());
    let summary = runtime.block_on(compare_all(args, &node, &expected))?;
    print(&summary.text());
    Ok(if summary.agreed() { Ended::Agreed } else { Ended::Difference })
}

/// Computes every expected row of the ledgers of `args`.
///
/// # Errors
/// If a ledger or its rates cannot be read.
pub fn expect_from_ledgers(args: &VerifyArgs) -> Result<Expected> {
    let mut gathered = Gathered::default();
    let mut rates = Vec::new();
    let mut whole = true;
    for path in &args.ledger {
        let file = LedgerFile::find(path)?;
        if !file.whole {
            whole = false;
            tell(&format!(
                "{} was not finished: its run died. Clicks of its last seconds are missing from it, so counts have \
                 lower bounds only",
                path.display()
            ));
        }
        gathered.begin_ledger(file.whole);
        read_rows(&file, &mut gathered)?;
        rates.extend(read_rates(path)?);
    }
    let prices = Prices::new(&rates, gathered.campaigns_mut());
    let mut expected = gathered.expect_bill(i64::from(args.horizon_hours), &prices);
    if !whole {
        expected.drop_upper_bounds();
    } else if args.extra_copies {
        expected.allow_extra_copies();
    }
    if expected.hours().next().is_none() {
        bail!("the ledger holds no click that was or may have been stored; nothing to verify");
    }
    Ok(expected)
}

async fn compare_all(args: &VerifyArgs, node: &Node, expected: &Expected) -> Result<Summary> {
    let strictness = Strictness { exclusive: args.exclusive, require_complete: args.require_complete };
    let mut summary = Summary::default();
    let hours: Vec<Hour> = expected.hours().collect();
    if args.reconcile {
        for hour in &hours {
            node.reconcile(*hour, args.reconcile_timeout).await?;
        }
    }
    for hour in &hours {
        let answer =
            HourAnswer { billing: node.billing(*hour).await?, divergence: node.divergence(*hour).await? };
        if answer.billing.is_empty() {
            tell(&format!("{hour} is not billed; add --reconcile, or wait until it is closed"));
        }
        summary.add(*hour, compare_hour(*hour, expected, &answer, strictness));
    }
    for (wrong, hour) in expected.wrong_refusals().iter().zip(hours.iter().cycle()) {
        summary.add_wrong_refusal(*hour, wrong);
    }
    if args.exclusive {
        for hour in node.billed_hours().await? {
            if !hours.contains(&hour) {
                let rows = node.billing(hour).await?.len();
                summary.add_unknown_hour(hour, rows);
            }
        }
    }
    Ok(summary)
}
