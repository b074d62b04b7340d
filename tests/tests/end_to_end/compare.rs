//! `twice compare` on a real node: no row differs, what is kept is what is shown, and the page a browser builds of it
//! draws every chart and carries the numbers of the JSON.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use twice_tests::{Browser, LoadShape, Node, NodeOptions, one_at_a_time};

use crate::support::hours_ago;

const SETTLE: Duration = Duration::from_secs(2);

/// What the test adds to a copy of the page, ahead of everything and behind it: complaints are gathered, then shapes
/// and figures are measured and written into the document.
const GATHER: &str = "<script>
var complaints = [];
addEventListener('error', event => complaints.push(String(event.message || event.target)), true);
addEventListener('securitypolicyviolation', event => complaints.push('policy: ' + event.blockedURI));
console.error = console.warn = (...words) => complaints.push(words.join(' '));
</script>";
const MEASURE: &str = "<pre id=\"measured\"></pre><script>
const shapes = svg => [...svg.querySelectorAll('rect, line, polyline, polygon, path, circle')];
const drawn = shape => { const box = shape.getBoundingClientRect(); return box.width + box.height > 0; };
const charts = [...document.querySelectorAll('svg')].map(svg => {
  const box = svg.getBoundingClientRect();
  return { title: svg.querySelector('title').textContent, description: svg.querySelector('desc').textContent,
    width: box.width, height: box.height, shapes: shapes(svg).length, drawn: shapes(svg).filter(drawn).length };
});
const figures = [...document.querySelectorAll('data')].map(data =>
  ({ path: data.dataset.path, value: data.value, text: data.textContent }));
document.getElementById('measured').textContent = JSON.stringify({ charts, figures, complaints,
  loaded: performance.getEntriesByType('resource').map(entry => entry.name),
  wide: document.documentElement.scrollWidth > innerWidth,
  background: getComputedStyle(document.body).backgroundColor });
</script>";

#[test]
fn both_paths_count_alike_and_the_report_shows_the_numbers_of_its_json() -> Result<()> {
    let _turn = one_at_a_time();
    // Segments so small that some are complete: only those say what a click takes.
    let settings = "log_segment_bytes = 65536\ncheckpoint_interval_ms = 700\n".to_owned();
    let mut node = Node::start(NodeOptions { settings: Some(settings), ..NodeOptions::default() })?;
    let before = LoadShape {
        duration: Duration::from_secs(1),
        event_span: Duration::from_secs(3_600),
        ..LoadShape::small("before", 84, &hours_ago(6).to_string())
    };
    let before = before.run(&node)?;
    node.kill()?; // the start after it has something to catch up with, and knows why
    node.restart()?;
    let from = hours_ago(4);
    let mut shape = LoadShape::small("compare", 83, &from.to_string());
    shape.event_span = Duration::from_secs(3 * 3_600);
    let ledger = shape.run(&node)?;
    node.prove(&[before, ledger])?;

    let (start, end) = (from.to_string(), from.plus(3).to_string());
    node.command(&["replay", "--from", &start, "--to", &end])?.expect(0)?; // both have billed
    let page = node.root().join("report.html");
    let out = page.display().to_string();
    let printed = node
        .command(&["compare", "--from", &start, "--to", &end, "--out", &out])?
        .expect(0)
        .with_context(|| node.log_tail())?;
    ensure!(printed.contains("Lambda and kappa agree: no row differs"), "{printed}");

    let kept = node.client().get_rows("/v1/comparisons")?;
    let kept = kept.first().context("the comparison was kept")?;
    ensure!(kept["equal"] == true && kept["from"] == start.as_str(), "{kept}");
    let id = kept["id"].as_str().context("an id")?;
    let json = node.client().get_json(&format!("/v1/comparisons/{id}"))?;
    the_figures_make_sense(&json)?;
    the_browser_agrees(&node, &page, &json)?;
    offline_and_refusals(&mut node, (&start, &end), &json)
}

/// What must hold of any comparison that was measured, whatever the machine.
fn the_figures_make_sense(json: &Value) -> Result<()> {
    let number = |pointer: &str| {
        json.pointer(pointer).and_then(Value::as_f64).with_context(|| format!("{pointer} in {json}"))
    };
    ensure!(number("/counted/hours")? == 3.0 && number("/counted/copies")? > 10_000.0, "{}", json["counted"]);
    ensure!(json["differences"]["rows_compared"] == json["counted"]["rows"], "{}", json["differences"]);
    for path in ["lambda", "kappa"] {
        for field in ["wall_seconds", "cpu_seconds", "rss_peak_bytes", "bytes_read", "clicks_per_second"] {
            ensure!(number(&format!("/costs/{path}/{field}"))? > 0.0, "{path} {field}: {}", json["costs"]);
        }
        let (peak, limit) = (
            number(&format!("/costs/{path}/rss_peak_bytes"))?,
            number(&format!("/costs/{path}/memory_limit_bytes"))?,
        );
        ensure!(peak <= limit, "{path} took {peak} of {limit}");
        ensure!(number(&format!("/lines_of_code/{path}"))? > 500.0, "{}", json["lines_of_code"]);
        let items = json.pointer(&format!("/money/paths/{path}/items")).and_then(Value::as_array);
        let sum: f64 = items.into_iter().flatten().filter_map(|item| item["amount"].as_f64()).sum();
        let total = number(&format!("/money/paths/{path}/total_per_million_clicks"))?;
        ensure!((sum - total).abs() <= total * 1e-9, "{path}: items sum to {sum}, the total is {total}");
    }
    let stored = json["stored"].as_array().context("stored")?;
    ensure!(stored.len() == 3 && stored.iter().all(|hour| hour["same_inputs"] == true), "{stored:?}");
    ensure!(json["authoritative"]["kappa"]["hours"].as_array().map(Vec::len) == Some(3), "kappa's bills");
    let arrival = number("/freshness/value/arrival/p50_seconds")?;
    ensure!(arrival <= number("/freshness/value/arrival/p99_seconds")?, "{}", json["freshness"]);
    ensure!(arrival <= number("/freshness/value/event/p50_seconds")?, "an event is before its arrival");
    ensure!(number("/freshness/value/clicks")? > 1_000.0, "{}", json["freshness"]);
    ensure!(number("/storage/archive/value/bytes_each")? > 10.0, "{}", json["storage"]);
    ensure!(number("/storage/log/value/bytes_each")? > 10.0, "{}", json["storage"]);
    ensure!(json["recovery"]["stream"]["value"]["after_unclean_end"] == true, "{}", json["recovery"]);
    let hours = json["authoritative"]["lambda"]["hours"].as_array().context("hours")?;
    ensure!(hours.len() == 3, "{hours:?}");
    Ok(())
}

/// Opens a copy of the page that also measures itself.
fn the_browser_agrees(node: &Node, page: &Path, json: &Value) -> Result<()> {
    let Some(browser) = Browser::find()? else {
        eprintln!("no Chromium on this machine: the report was NOT opened; apt-get install chromium");
        return Ok(());
    };
    let html = std::fs::read_to_string(page)?;
    ensure!(
        html.contains("content=\"default-src 'none'; style-src 'unsafe-inline'\""),
        "the page's own policy"
    );
    let measuring = html
        .replace(
            "default-src 'none'; style-src 'unsafe-inline'",
            "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'",
        )
        .replace("<head>", &format!("<head>{GATHER}"))
        .replace("</body>", &format!("{MEASURE}</body>"));
    let copy = node.root().join("measuring.html");
    std::fs::write(&copy, measuring)?;
    let document = browser.document(&format!("file://{}", copy.display()), SETTLE)?;
    let (_, rest) = document.split_once("<pre id=\"measured\">").context("what was measured")?;
    let (text, _) = rest.split_once("</pre>").context("its end")?;
    let text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
    let measured: Value = serde_json::from_str(&text).with_context(|| text.clone())?;

    ensure!(measured["complaints"] == serde_json::json!([]), "{}", measured["complaints"]);
    ensure!(measured["loaded"] == serde_json::json!([]), "loads {}", measured["loaded"]);
    ensure!(measured["wide"] == false, "the page is wider than its window");
    let charts = measured["charts"].as_array().context("charts")?;
    ensure!(charts.len() >= 11, "{} charts", charts.len());
    for chart in charts {
        let (shapes, drawn) = (chart["shapes"].as_u64(), chart["drawn"].as_u64());
        ensure!(shapes >= Some(2) && shapes == drawn, "not all shapes have a size: {chart}");
        ensure!(chart["width"].as_f64() > Some(100.0) && chart["height"].as_f64() > Some(40.0), "{chart}");
        ensure!(chart["title"] != "" && chart["description"] != "", "{chart}");
    }
    let figures = measured["figures"].as_array().context("figures")?;
    ensure!(figures.len() > 60, "{} figures", figures.len());
    for figure in figures {
        let pointer = figure["path"].as_str().context("a path")?;
        let expected = json.pointer(pointer).with_context(|| format!("{pointer} is not in the JSON"))?;
        ensure!(
            figure["value"] == expected.to_string().as_str() && figure["text"] != "",
            "{figure} is not {expected}"
        );
    }
    pictures(&browser, node, page)
}

fn pictures(browser: &Browser, node: &Node, page: &Path) -> Result<()> {
    let url = format!("file://{}", page.display());
    for (name, size) in [("report-wide.png", (1_200, 4_300)), ("report-phone.png", (400, 8_600))] {
        let picture = node.root().join(name);
        browser.picture_sized(&url, SETTLE, &picture, size)?;
        ensure!(std::fs::metadata(&picture)?.len() > 20_000, "{name} is empty");
        if let Some(folder) = std::env::var_os("TWICE_TEST_PICTURES") {
            std::fs::copy(&picture, Path::new(&folder).join(name))?;
        }
    }
    Ok(())
}

/// The same rows on the stopped node's folder; and what cannot be run says why, with exit status 2.
fn offline_and_refusals(node: &mut Node, (start, end): (&str, &str), json: &Value) -> Result<()> {
    let unbilled = hours_ago(400).to_string();
    let next = hours_ago(399).to_string();
    let refused = node.command(&["compare", "--from", &unbilled, "--to", &next])?;
    ensure!(refused.code() == 2 && refused.stderr.contains("not reconciled"), "{}", refused.stderr);
    node.stop()?;
    let (folder, out) = (node.data_dir().display().to_string(), node.root().join("offline.json"));
    let arguments =
        ["compare", "--data-dir", &folder, "--from", start, "--to", end, "--out", &out.display().to_string()];
    node.command(&arguments)?.expect(0)?;
    let offline: Value = serde_json::from_slice(&std::fs::read(&out)?)?;
    ensure!(offline["counted"] == json["counted"], "{} is not {}", offline["counted"], json["counted"]);
    ensure!(offline["freshness"]["value"].is_null(), "{}", offline["freshness"]);
    ensure!(
        offline["recovery"]["stream"]["source"].as_str().unwrap_or_default().contains("running node"),
        "a reason"
    );
    Ok(())
}
