use proptest::prelude::*;
use serde_json::Value;
use twice_log::event::Sha256Hex;
use twice_log::{CampaignId, Hour, UtcMillis};
use twice_store::BillingCounts;

use super::conclusion::conclude;
use super::money::money;
use super::*;

fn hour() -> Hour {
    "2025-01-15T12".parse().expect("an hour")
}

fn cost(numbers: [f64; 3], rss_peak_bytes: u64) -> PathCost {
    let [wall_seconds, cpu_seconds, clicks] = numbers;
    PathCost {
        wall_seconds,
        cpu_seconds,
        rss_peak_bytes,
        memory_limit_bytes: Some(1 << 30),
        bytes_read: 12_345_678,
        bytes_written: 9_876,
        clicks_per_second: (wall_seconds > 0.0).then(|| clicks / wall_seconds),
        copies_read: clicks as u64 * 3,
        files_read: 12,
        processes: 2,
        slices: 4,
    }
}

fn authoritative(seconds: &[f64]) -> Authoritative {
    let commit = |(number, seconds): (usize, &f64)| AuthoritativeHour {
        hour: hour().plus(number as i64),
        committed_at: "2025-01-15T13:02:00.000000Z".to_owned(),
        seconds_after_end: *seconds,
    };
    let commits = seconds.iter().enumerate().map(commit).map(|hour| (hour, 100));
    timing::authoritative(commits.collect(), "this path")
}

/// A comparison of these costs over so many hours.
fn comparison(costs: Sides<PathCost>, copies: u64, hours: usize, differing: u64) -> Comparison {
    let mut differences = Differences { rows_compared: 40, ..Differences::default() };
    for number in 0..differing {
        let campaign = CampaignId::new(format!("camp<{number}>")).expect("valid");
        let row = BillingCounts { gross: 2, billable: 2, ..BillingCounts::zero(campaign.clone(), None) };
        let other = BillingCounts { billable: 1, duplicates: 1, ..row.clone() };
        let kappa = if number % 2 == 0 { vec![other] } else { Vec::new() };
        differences.add_hour(hour(), &[row], &kappa);
    }
    let inputs = (0..hours).map(|number| HourInputs {
        hour: hour().plus(number as i64),
        run_id: format!("lambda/{}/000001", hour().plus(number as i64)),
        inputs_sha256: Sha256Hex::of(b"inputs"),
        rules_sha256: Sha256Hex::of(b"rules"),
        horizon_hours: 1,
        click_files: 4,
        verdict_files: 0,
        copies: 100,
    });
    let quantiles = Quantiles { p50_seconds: 0.7, p99_seconds: 1.4 };
    let since: UtcMillis = "2025-01-15T12:00:00Z".parse().expect("a time");
    let mut comparison = Comparison {
        format: figures::FORMAT,
        id: "20250115T130000000Z-2025-01-15T12-2025-01-15T14".to_owned(),
        created_at: hour().end(),
        from: hour(),
        to: hour().plus(hours as i64),
        equal: differences.is_empty(),
        conclusion: String::new(),
        counted: Counted { hours: hours as u64, rows: 40, copies, billable: copies, ..Counted::default() },
        inputs: inputs.collect(),
        differences,
        stored: Vec::new(),
        money: money(Prices::from_toml(PRICES_TOML).expect("prices"), &costs, copies, Some(60.0)),
        costs,
        freshness: Figure::measured(
            Freshness { since, clicks: 10, event: quantiles, arrival: quantiles },
            "by the stream",
        ),
        authoritative: Sides { lambda: authoritative(&vec![130.0; hours]), kappa: authoritative(&[]) },
        storage: Storage {
            log: Figure::measured(Stored::new(1 << 20, Some(10_000), "click"), "segment files"),
            stream_state: Figure::unknown("offline"),
            archive: Figure::measured(Stored::new(600_000, Some(10_000), "click"), "manifests"),
            billing: Figure::measured(Stored::new(1 << 16, None, ""), "file"),
        },
        recovery: Recovery {
            stream: Figure::measured(
                StreamRecovery { seconds: 0.4, after_unclean_end: true, partitions: 4 },
                "the last start",
            ),
            lambda: Figure::measured(1.0, "measured"),
            kappa: Figure::unknown("not measured"),
        },
        lines_of_code: LinesOfCode {
            stream: 3_000,
            kappa: 900,
            lambda: 2_500,
            shared: 9_000,
            source: "counted".to_owned(),
        },
        versions: Versions { twice: "0.1.0".to_owned(), release_build: false, cores: 2 },
    };
    comparison.conclusion = conclude(&comparison);
    comparison.rounded().expect("rounds")
}

/// Every `<data>` of a page: pointer and value.
fn figures_of(page: &str) -> Vec<(String, String)> {
    let attribute = |tag: &str, name: &str| {
        let (_, rest) = tag.split_once(&format!("{name}=\""))?;
        Some(rest.split_once('"')?.0.to_owned())
    };
    let tags = page.split("<data ").skip(1).filter_map(|rest| rest.split_once('>')).map(|(tag, _)| tag);
    tags.map(|tag| (attribute(tag, "data-path").expect("a path"), attribute(tag, "value").expect("a value")))
        .collect()
}

fn check_page(comparison: &Comparison) -> String {
    let page = html(comparison).expect("a page");
    let (_, embedded) = page.split_once("id=\"comparison\">").expect("the JSON");
    let (embedded, _) = embedded.split_once("</script>").expect("its end");
    let json: Value = serde_json::from_str(embedded).expect("JSON");
    assert!(json == serde_json::to_value(comparison).expect("JSON"), "what is embedded is the comparison");
    let figures = figures_of(&page);
    assert!(figures.len() > 30, "{}", figures.len());
    for (pointer, value) in figures {
        assert_eq!(json.pointer(&pointer).expect("a number").to_string(), value, "{pointer}");
    }
    for outside in ["http://", "https://", "src=", "url(", "@import", "<link"] {
        let without_names = page.replace("http://www.w3.org/2000/svg", "");
        assert!(!without_names.contains(outside), "{outside} in the page");
    }
    page
}

fn costs() -> Sides<PathCost> {
    Sides { lambda: cost([2.0, 3.0, 10_000.0], 300 << 20), kappa: cost([1.0, 1.0, 10_000.0], 200 << 20) }
}

#[test]
fn a_page_carries_the_numbers_of_its_json_and_loads_nothing() {
    let page = check_page(&comparison(costs(), 10_000, 2, 0));
    assert!(page.contains("No row differs") && page.contains(">equal<"));
    assert_eq!(page.matches("<svg ").count(), 12, "a chart of each figure that is known");
    if let Some(folder) = std::env::var_os("TWICE_TEST_PICTURES") {
        std::fs::write(std::path::Path::new(&folder).join("report.html"), page).expect("written");
    }
}

#[test]
fn a_page_lists_what_differs_and_escapes_it() {
    let page = check_page(&comparison(costs(), 10_000, 2, 3));
    assert!(page.contains("camp&#60;0&#62;") || page.contains("camp&lt;0&gt;"), "names are escaped");
    assert!(!page.contains("camp<0>") && !page.contains("No row differs") && page.contains("no row"));
}

#[test]
fn a_page_of_a_month_and_one_of_nothing_are_whole() {
    check_page(&comparison(costs(), 1 << 50, 744, 0));
    let nothing = Sides { lambda: PathCost::default(), kappa: PathCost::default() };
    check_page(&comparison(nothing, 0, 1, 0));
}

#[test]
fn a_comparison_reads_back_as_it_was_written() {
    let comparison = comparison(costs(), 10_000, 2, 3);
    let text = serde_json::to_string(&comparison).expect("JSON");
    assert_eq!(serde_json::from_str::<Comparison>(&text).expect("reads"), comparison);
}

/// Figures from nothing to very much, many of them near each other.
fn figure() -> impl Strategy<Value = f64> {
    prop_oneof![Just(0.0), 0.9..1.1_f64, 1e-6..1e6_f64, 1e6..1e12_f64]
}

proptest! {
    /// Whatever the figures: what the paragraph calls better is better, and it says nothing of what is not known.
    #[test]
    fn the_conclusion_never_contradicts_the_numbers(
        lambda in (figure(), figure(), 0..1_u64 << 40),
        kappa in (figure(), figure(), 0..1_u64 << 40),
        copies in prop_oneof![Just(0_u64), 1..1_u64 << 40],
        differing in prop_oneof![3 => Just(0_u64), 1 => 1..5_u64],
    ) {
        let side = |(wall, cpu, peak): (f64, f64, u64)| cost([wall, cpu, copies as f64], peak);
        let costs = Sides { lambda: side(lambda), kappa: side(kappa) };
        let comparison = comparison(costs, copies, 2, differing);
        let text = &comparison.conclusion;
        prop_assert_eq!(text.contains("agree: no row differs"), comparison.equal);
        prop_assert_eq!(text.contains("DIFFER"), !comparison.equal);
        prop_assert_eq!(text.contains("Choose neither"), !comparison.equal);
        let price = |bill: &Bill| bill.total_per_million_clicks.unwrap_or(f64::NAN);
        let (paths, costs) = (&comparison.money.paths, &comparison.costs);
        let money = (price(&paths.lambda), price(&paths.kappa));
        let memory = (costs.lambda.rss_peak_bytes as f64, costs.kappa.rss_peak_bytes as f64);
        let claims = [
            ("Lambda is cheaper", money.0 < money.1), ("Kappa is cheaper", money.1 < money.0),
            ("cost the same", money.0.max(money.1) <= money.0.min(money.1) * 1.051),
            ("Lambda needed less memory", memory.0 < memory.1), ("Kappa needed less memory", memory.1 < memory.0),
            ("CPU of lambda", costs.lambda.cpu_seconds < costs.kappa.cpu_seconds),
            ("CPU of kappa", costs.kappa.cpu_seconds < costs.lambda.cpu_seconds),
            ("both money and memory speak for lambda", comparison.equal && money.0 < money.1 && memory.0 < memory.1),
            ("both money and memory speak for kappa", comparison.equal && money.1 < money.0 && memory.1 < memory.0),
            ("choose lambda where money decides", comparison.equal && money.0 < money.1 && memory.1 < memory.0),
            ("choose kappa where money decides", comparison.equal && money.1 < money.0 && memory.0 < memory.1),
            ("money speaks for lambda", comparison.equal && money.0 < money.1),
            ("money speaks for kappa", comparison.equal && money.1 < money.0),
        ];
        for (claim, holds) in claims {
            prop_assert!(!text.contains(claim) || holds, "{claim}: {text}");
        }
        prop_assert!(!text.contains("NaN") && !text.contains("inf") && !text.contains("unknown"), "{text}");
        prop_assert!(money.0.is_finite() || !text.contains("cheaper"));
    }
}
