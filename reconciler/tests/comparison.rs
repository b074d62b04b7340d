//! Lambda against kappa over real files: equal rows, a miscount that is named, and what is kept of it.

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use support::node::{HangAt, Node};
use support::{click, hour, limits};
use tokio::sync::mpsc;
use twice_log::archive::BillingPath;
use twice_reconciler::Error;
use twice_reconciler::compare::paths::{
    self, Column, Comparator, ComparatorParts, Figure, LinesOfCode, PRICES_TOML, Prices, Surroundings,
    SurroundingsSource,
};
use twice_reconciler::recompute::{ArchiveLocation, InProcessRecompute};

/// A place where nothing runs.
struct Nowhere;

#[async_trait]
impl SurroundingsSource for Nowhere {
    async fn look(&self) -> Surroundings {
        Surroundings {
            freshness: Figure::unknown("nothing runs"),
            recovery: Figure::unknown("nothing runs"),
            log: Figure::unknown("nothing runs"),
            stream_state: Figure::unknown("nothing runs"),
            billing: Figure::unknown("nothing runs"),
            lines_of_code: LinesOfCode {
                stream: 1,
                kappa: 1,
                lambda: 1,
                shared: 1,
                source: "the test".to_owned(),
            },
            version: "test".to_owned(),
        }
    }
}

fn comparator(node: &Node) -> Comparator {
    Comparator::new(ComparatorParts {
        clock: node.clock.clone(),
        archive: node.archive.clone(),
        archive_location: ArchiveLocation::Local { root: node.archive_root() },
        billing: node.store.clone(),
        recompute: Arc::new(InProcessRecompute::new(node.archive.clone())),
        replay: node.replay.clone(),
        limits: limits(&node.folder().join("spill"), 1, None),
        replay_memory_bytes_max: None,
        surroundings: Arc::new(Nowhere),
    })
}

fn prices() -> Prices {
    Prices::from_toml(PRICES_TOML).expect("prices")
}

/// A node whose hour both paths have billed.
async fn billed() -> Node {
    let node = Node::start().await;
    node.append(&[click(1, 1, 10, 1, 0), click(1, 1, 10, 30, 0), click(2, 7, 3599, 1, 0)]).await;
    let reconciler = node.reconciler(false, HangAt::Nowhere);
    reconciler.reconcile(hour(), None).await.expect("closed");
    reconciler.stop().await;
    node
}

#[actix::test]
async fn equal_rows_are_said_to_be_equal_and_the_comparison_is_kept() {
    let node = billed().await;
    let (progress, mut steps) = mpsc::unbounded_channel();
    let compared = comparator(&node).compare(hour(), hour().plus(2), prices(), Some(progress)).await;
    let compared = compared.expect("compares");
    assert!(compared.equal && compared.differences.is_empty(), "{:?}", compared.differences);
    assert_eq!((compared.counted.copies, compared.counted.rows, compared.counted.hours), (3, 2, 1));
    assert_eq!(compared.counted.hours_unbilled, [hour().plus(1)]);
    assert_eq!(compared.authoritative.lambda.hours.len(), 1);
    assert!(compared.conclusion.starts_with("Lambda and kappa agree"), "{}", compared.conclusion);
    let mut told = Vec::new();
    while let Some(step) = steps.recv().await {
        told.push((step.path, step.done, step.total));
    }
    assert_eq!(told[..2], [(BillingPath::Lambda, 0, 1), (BillingPath::Lambda, 1, 1)]);

    let text = paths::comparison(&node.archive, &compared.id).await.expect("reads").expect("is kept");
    let read: paths::Comparison = serde_json::from_slice(&text).expect("a comparison");
    assert!(read == compared, "what is kept is what was answered");
    assert_eq!(paths::comparison(&node.archive, "../secret").await.expect("reads"), None);
    assert!(node.rows().await.iter().all(|row| row.version == 1), "nothing was billed by it");
}

#[actix::test]
async fn a_miscount_of_one_click_is_named_by_hour_campaign_and_column() {
    let node = billed().await;
    node.replay.miscounted.store(1, Ordering::SeqCst);
    let compared = comparator(&node).compare(hour(), hour().plus(1), prices(), None).await.expect("compares");
    assert!(!compared.equal && compared.conclusion.contains("DIFFER"), "{}", compared.conclusion);
    let [row] = &compared.differences.rows[..] else { panic!("{:?}", compared.differences) };
    assert_eq!(row.hour, hour());
    assert_eq!(row.columns, [Column::Duplicates, Column::Billable, Column::Unpriced]);
    let page = paths::html(&compared).expect("a page");
    assert!(page.contains("different") && page.contains(row.campaign_id.as_str()));
    assert!(paths::summary(&compared).contains("DIFFERS"));
}

#[actix::test]
async fn comparisons_are_listed_newest_first_page_by_page() {
    let node = billed().await;
    for minute in 0..3 {
        node.set_clock(hour().end().plus_ms(1_000_000 + minute * 60_000));
        comparator(&node).compare(hour(), hour().plus(1), prices(), None).await.expect("compares");
    }
    let first = paths::comparisons(&node.archive, 2, None).await.expect("lists");
    let last = paths::comparisons(&node.archive, 2, first.next_cursor.as_deref()).await.expect("lists");
    let times: Vec<_> = first.rows.iter().chain(&last.rows).map(|kept| kept.created_at).collect();
    assert_eq!((times.len(), last.next_cursor), (3, None));
    assert!(times.is_sorted_by(|left, right| left > right), "{times:?}");
}

#[actix::test]
async fn hours_without_a_bill_and_ranges_without_hours_cannot_be_compared() {
    let node = billed().await;
    let unbilled = comparator(&node).compare(hour().plus(5), hour().plus(6), prices(), None).await;
    assert!(matches!(unbilled, Err(Error::NotReconciled { .. })), "{unbilled:?}");
    let empty = comparator(&node).compare(hour(), hour(), prices(), None).await;
    assert!(matches!(empty, Err(Error::Config { .. })), "{empty:?}");
    assert!(paths::comparisons(&node.archive, 10, None).await.expect("lists").rows.is_empty());
}
