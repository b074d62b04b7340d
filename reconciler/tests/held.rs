//! Hours wait for clicks that were acknowledged and have not reached the log (G-3).

mod support;

use std::sync::atomic::Ordering;

use support::node::{HangAt, Node};
use support::{at, click, hour};
use tokio::sync::mpsc;
use twice_reconciler::ProgressEvent;

#[actix::test]
async fn the_schedule_waits_for_held_clicks_says_so_and_uses_up_no_attempt() {
    let node = Node::start().await;
    node.append(&[click(1, 1, 10, 1, 0)]).await;
    node.archive_all().await;
    node.held.0.store(7, Ordering::SeqCst);
    node.set_clock(at(3_660)); // seen before it closes, so it is no backfill
    let reconciler = node.reconciler(true, HangAt::Nowhere);
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    node.set_clock(at(4_200));
    node.wait_until("the wait", async || {
        let status = reconciler.status().await.expect("status");
        status
            .held_up
            .is_some_and(|held_up| held_up.contains("7 clicks and verdicts in the spool of a gateway"))
    })
    .await;
    tokio::time::sleep(std::time::Duration::from_millis(500)).await; // several turns of the schedule
    assert!(node.rows().await.is_empty(), "nothing is billed");
    let status = reconciler.status().await.expect("status");
    assert!(status.failures.is_empty() && status.waiting.is_empty(), "{status:?}");

    node.append(&[click(1, 2, 20, 1, 0)]).await; // what was held reaches the log
    node.archive_all().await;
    node.held.0.store(0, Ordering::SeqCst);
    node.wait_until("the bill", async || !node.rows().await.is_empty()).await;
    assert_eq!(node.rows().await[0].counts.gross, 2);
    assert_eq!(reconciler.status().await.expect("status").held_up, None);
    reconciler.stop().await;
}

#[actix::test]
async fn who_asks_by_hand_gets_a_bill_and_is_told_what_is_not_in_it() {
    let node = Node::start().await;
    node.append(&[click(1, 1, 10, 1, 0)]).await;
    node.held.0.store(3, Ordering::SeqCst);
    let reconciler = node.reconciler(false, HangAt::Nowhere);
    let (progress, mut events) = mpsc::unbounded_channel();
    reconciler.reconcile(hour(), Some(progress)).await.expect("closed");
    let mut notes = Vec::new();
    while let Some(event) = events.recv().await {
        if let ProgressEvent::Note { detail } = event {
            notes.push(detail);
        }
    }
    assert_eq!(notes.len(), 1);
    assert!(notes[0].contains("not in it: 3 clicks and verdicts"), "{notes:?}");
    reconciler.stop().await;
}
