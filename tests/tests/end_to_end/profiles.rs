//! Profiles of the load generator and forms of body against the real node: each is billed as its ledger says.

use std::time::Duration;

use anyhow::{Context, Result};
use twice_tests::{LoadShape, Node, NodeOptions, one_at_a_time};

use crate::support::hours_ago;

#[test]
fn bad_clicks_bots_and_hot_campaigns_in_every_form_are_billed_as_their_ledgers_say() -> Result<()> {
    let _turn = one_at_a_time();
    let node = Node::start(NodeOptions::default())?;
    let from = hours_ago(6);
    let loads = [
        ("malformed", "arrow"),
        ("bots", "cloudevents"),
        ("hot-campaign", "json"),
        ("malformed", "cloudevents"),
    ];
    for (seed, (profile, body)) in (21..).zip(loads) {
        let mut shape = LoadShape {
            duration: Duration::from_secs(2),
            ..LoadShape::small(&format!("{profile}-{body}"), seed, &from.to_string())
        };
        shape.flags.extend(["--profile", profile, "--body", body].map(str::to_owned));
        let ledger = shape.run(&node)?;
        node.verify(&[ledger], &["--reconcile"])?.expect(0).with_context(|| format!("{profile} {body}"))?;
    }
    Ok(())
}
