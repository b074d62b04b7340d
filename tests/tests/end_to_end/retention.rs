//! Retention on a real node: hours of more than a year ago come by an import, become final, and go; nothing else changes.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use twice_log::{Day, Hour};
use twice_tests::{Binaries, Node, NodeOptions, one_at_a_time, run};

use crate::support::{bill, hours_ago};

const LIMIT: Duration = Duration::from_secs(120);
const CAMPAIGN: &str = "camp_old";

/// Noon of a day more than the default retention ago.
fn old_hour() -> Hour {
    let day = Day::of(hours_ago(400 * 24));
    day.hours().nth(12).unwrap_or_else(|| hours_ago(400 * 24))
}

fn import(node: &Node, name: &str, hour: Hour, clicks: u32) -> Result<i32> {
    let file = node.root().join(format!("{name}.ndjson"));
    let line = |number: u32| {
        let event_time = hour.start().plus_ms(i64::from(number) * 1000);
        json!({ "campaign_id": CAMPAIGN, "ad_id": "ad_1", "user_id": format!("u_{number}"),
            "event_time": event_time.to_string() })
        .to_string()
    };
    std::fs::write(&file, (0..clicks).map(|number| line(number) + "\n").collect::<String>())?;
    let mut command = node.command_line(&["import"]);
    command.arg(&file).arg("--state-dir").arg(node.root().join("import-state"));
    Ok(run(&mut command, LIMIT)?.code())
}

/// A node with one final hour that is expired, and its bill.
fn with_old_hour(node: &Node, hour: Hour) -> Result<Value> {
    let campaign = json!({ "name": "old", "currency": "USD", "cpc_micros": 500_000,
        "effective_from": hour.start().to_string() });
    let put = node.client().put_json(&format!("/v1/campaigns/{CAMPAIGN}"), &campaign)?;
    ensure!(put.status == 200 || put.status == 201, "campaign: {}", put.status);
    ensure!(import(node, "first", hour, 100)? == 0, "imported: {}", node.log_tail());
    node.reconcile(&hour.to_string())?;
    node.command(&["reconcile", "--day", &Day::of(hour).to_string()])?.expect(0)?;
    let swept = node.command(&["reconcile", "--sweep"])?;
    ensure!(swept.code() < 2, "swept");
    Ok(json!(bill(node, hour, 1)?.into_values().collect::<Vec<_>>()))
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { found.extend(files_below(&path)) } else { found.push(path) }
    }
    found
}

fn bill_of(node: &Node, hour: Hour) -> Result<Value> {
    Ok(json!(bill(node, hour, 1)?.into_values().collect::<Vec<_>>()))
}

#[test]
fn an_expired_hour_goes_its_bill_stays_and_every_later_word_about_it_is_answered() -> Result<()> {
    let _turn = one_at_a_time();
    let mut node = Node::start(NodeOptions::brisk())?;
    let hour = old_hour();
    let before = with_old_hour(&node, hour)?;
    ensure!(before[0]["billable"] == 100 && before[0]["status"] == "final", "{before}");
    let clicks = node.data_dir().join("archive/clicks");
    ensure!(!files_below(&clicks).is_empty(), "clicks are archived");
    let dry = node.command(&["retain", "--due", "--dry-run"])?.expect(0)?;
    ensure!(dry.contains(&hour.to_string()) && dry.contains("would go") && dry.contains("100 rows"), "{dry}");
    let deleted = node.command(&["retain", "--due"])?.expect(0)?;
    ensure!(deleted.contains("100 rows"), "{deleted}");
    ensure!(files_below(&clicks).is_empty(), "{:?}", files_below(&clicks));
    ensure!(bill_of(&node, hour)? == before, "the bill stands");
    let text = node.command(&["audit", "--hour", &hour.to_string()])?.expect(0)?;
    ensure!(text.contains("ATTESTED") && text.contains("deleted under retention"), "{text}");

    // A verdict, a late click and a recount: each is told what can no longer be done.
    ensure!(import(&node, "late", hour, 3)? == 2, "an import of the hour is refused");
    let again = node.command(&["reconcile", "--hour", &hour.to_string()])?;
    ensure!(again.code() == 2, "a recount is refused");
    let row = &before[0];
    let verdict = json!({ "campaign_id": row["campaign_id"], "click_id": "0194f3a0-1111-7222-8333-444455556666",
        "verdict": "sivt", "model_version": "m", "decided_at": hours_ago(1).start().to_string(),
        "click_event_time": hour.start().to_string() });
    let stored = node.client().post_json("/v1/verdicts", &verdict)?;
    ensure!(stored.status == 202, "verdict: {}", stored.status);
    let swept = node.client().post_json("/v1/reconciliations", &json!({ "sweep": true }))?;
    let swept = swept.body;
    ensure!(swept.contains("can no longer be counted") && swept.contains(&hour.to_string()), "{swept}");
    ensure!(bill_of(&node, hour)? == before, "the bill stands");

    // The billing store again, from what was settled.
    node.stop()?;
    for name in ["twice.sqlite", "twice.sqlite-wal", "twice.sqlite-shm"] {
        let _ = std::fs::remove_file(node.data_dir().join(name));
    }
    let mut rebuild = Binaries::get().twice();
    rebuild.args(["rebuild", "billing", "--data-dir"]).arg(node.data_dir());
    run(&mut rebuild, LIMIT)?.expect(0)?;
    node.restart()?;
    ensure!(bill_of(&node, hour)? == before, "rebuilt to the same rows: {}", bill_of(&node, hour)?);
    Ok(())
}

#[test]
fn a_death_at_each_step_of_retention_is_gone_on_from() -> Result<()> {
    let _turn = one_at_a_time();
    for point in ["settled-put", "tombstone-put", "buried-file-removed"] {
        let mut node = Node::start(NodeOptions::brisk())?;
        let hour = old_hour();
        let before = with_old_hour(&node, hour)?;
        node.stop()?;
        // The schedule meets the point by itself.
        node.restart_armed(point)?;
        let died = node.death_within(LIMIT)?.with_context(|| format!("nobody met {point}"))?;
        ensure!(died.signal() == Some(9), "{point}: {died}");
        node.restart()?;
        node.command(&["retain", "--due"])?.expect(0)?;
        let left = files_below(&node.data_dir().join("archive/clicks"));
        ensure!(left.is_empty(), "{point}: {left:?}");
        ensure!(bill_of(&node, hour)? == before, "{point}: the bill stands");
        node.command(&["audit", "--hour", &hour.to_string()])?.expect(0).context(point)?;
    }
    Ok(())
}
