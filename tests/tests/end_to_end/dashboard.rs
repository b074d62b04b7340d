//! The dashboard, as a person's browser builds it: the numbers on the page are the numbers of the API.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use twice_tests::{Browser, LoadShape, Node, NodeOptions, one_at_a_time};

use crate::support::{clicks, divergence, hourly, hours_ago};

/// The page's own time: enough for several of its polls.
const SETTLE: Duration = Duration::from_secs(8);

#[test]
fn the_page_shows_the_numbers_of_the_api_before_and_after_the_bill() -> Result<()> {
    let _turn = one_at_a_time();
    let Some(browser) = Browser::find()? else {
        eprintln!("no Chromium on this machine: the page was NOT tested; apt-get install chromium");
        return Ok(());
    };
    let node = Node::start(NodeOptions::default())?;
    let from = hours_ago(3);
    let shape =
        LoadShape { duration: Duration::from_secs(2), ..LoadShape::small("page", 71, &from.to_string()) };
    let ledger = shape.run(&node)?;
    let campaign = format!("load{}-0", shape.seed);
    let until = from.plus(2);
    let url = format!("{}/#campaign={campaign}&until={until}", node.url());

    let page = browser.document(&url, SETTLE)?;
    let shown = number_at(&page, "total")?;
    let preliminary = clicks(&hourly(&node, &campaign, from, 2, "merged")?);
    ensure!(shown == preliminary && shown > 0, "the page shows {shown} clicks, the API {preliminary}");
    ensure!(text_at(&page, "health")? == "ready", "health is {:?}", text_at(&page, "health")?);
    ensure!(text_at(&page, "unexplained-below")?.contains("no hour is reconciled"), "nothing is billed yet");

    node.prove(&[ledger])?;
    let page = browser.document(&url, SETTLE)?;
    let rows = hourly(&node, &campaign, from, 2, "merged")?;
    ensure!(number_at(&page, "total")? == clicks(&rows), "the page's total is not the API's: {rows:?}");
    let newest = rows.last().context("two hours")?;
    ensure!(newest["status"] == "reconciled", "{newest}");
    ensure!(number_at(&page, "billed")? == newest["billable"].as_u64().context("billable")?, "{newest}");
    ensure!(number_at(&page, "unexplained")? == 0, "unexplained on the page");
    the_table_sums_the_divergence(&node, &page)?;
    ensure!(table(&page, "corrections")?.is_empty(), "nothing is corrected yet");

    let late = serde_json::json!({
        "click_id": "0194f3a0-1111-7222-8333-444455556666", "campaign_id": campaign, "ad_id": "ad_9",
        "event_time": format!("{from}:30:00Z"),
    });
    node.client().post_json("/v1/clicks", &late)?;
    node.command(&["reconcile", "--hour", &from.to_string()])?.expect(1)?; // the bill changed
    let corrected = table(&browser.document(&url, SETTLE)?, "corrections")?;
    let [line] = corrected.as_slice() else { anyhow::bail!("one correction: {corrected:?}") };
    let expected = [from.to_string(), "late_clicks".to_owned(), "2".to_owned()];
    ensure!(line[..3] == expected && line[4] == "+1", "the late click is a correction: {line:?}");

    let picture = node.root().join("dashboard.png");
    browser.picture(&url, SETTLE, &picture)?;
    ensure!(std::fs::metadata(&picture)?.len() > 10_000, "the picture is empty");
    if let Some(folder) = std::env::var_os("TWICE_TEST_PICTURES") {
        std::fs::copy(&picture, std::path::Path::new(&folder).join("dashboard.png"))?;
    }
    Ok(())
}

/// Each line of the page's table is the sum of the API's rows of that hour, over all campaigns.
fn the_table_sums_the_divergence(node: &Node, page: &str) -> Result<()> {
    let lines = table(page, "divergence")?;
    ensure!(lines.len() == 2, "two hours are reconciled: {lines:?}");
    for cells in lines {
        let hour = cells.first().context("an hour")?.parse()?;
        let rows = divergence(node, hour, 1)?;
        let sum =
            |field: &str| rows.iter().filter_map(|row: &Value| row[field].as_u64()).sum::<u64>().to_string();
        let expected = ["preliminary", "billed", "late", "late_duplicate", "fraud", "unexplained"].map(sum);
        let shown: Vec<String> = cells.iter().skip(2).map(|cell| cell.replace(',', "")).collect();
        ensure!(shown == expected, "the page shows {shown:?} of {hour}, the API {expected:?}");
    }
    Ok(())
}

/// Returns the cells of a table's lines.
fn table(page: &str, id: &str) -> Result<Vec<Vec<String>>> {
    let body = between(page, &format!("<tbody id=\"{id}\">"), "</tbody>").context("the table of the page")?;
    Ok(body.split("</tr>").map(cells).filter(|cells| !cells.is_empty()).collect())
}

fn cells(line: &str) -> Vec<String> {
    line.split("<td").skip(1).map(|cell| plain(cell.split_once('>').map_or("", |(_, text)| text))).collect()
}

/// Drops the tags of a piece of HTML.
fn plain(html: &str) -> String {
    let mut text = String::new();
    let mut inside_tag = false;
    for character in html.chars() {
        match character {
            '<' => inside_tag = true,
            '>' => inside_tag = false,
            _ if !inside_tag => text.push(character),
            _ => {}
        }
    }
    text.trim().to_owned()
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(start)?;
    rest.split_once(end).map(|(inside, _)| inside)
}

fn text_at(page: &str, id: &str) -> Result<String> {
    let (_, rest) =
        page.split_once(&format!("id=\"{id}\"")).with_context(|| format!("no element {id} on the page"))?;
    Ok(between(rest, ">", "<").unwrap_or_default().trim().to_owned())
}

fn number_at(page: &str, id: &str) -> Result<u64> {
    let text = text_at(page, id)?;
    text.replace(',', "").parse().with_context(|| format!("{id} shows {text:?}"))
}
