//! Profiles, body forms and workers that share a ledger, against the small node.

#[allow(dead_code)] // lies and strangers are for the other tests
mod fake_node;

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use fake_node::{FakeNode, Trouble};

fn command(line: &str, ledger: &Path) -> Command {
    let line = line.replace("LEDGER", &ledger.display().to_string());
    let mut command = Command::new(env!("CARGO_BIN_EXE_twice-loadgen"));
    command.env_remove("TWICE_API_KEY").args(line.split_whitespace());
    command
}

fn loadgen(line: &str, ledger: &Path) -> Output {
    command(line, ledger).output().expect("the binary runs")
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn succeed(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", said(output));
    said(output)
}

fn run_line(node: &FakeNode, more: &str) -> String {
    format!(
        "run --target {} --rate 4000 --duration 1s --campaigns 40 --seed 7 --batch 50 --connections 8 --duplicates 3% \
         --conflicts 3% --late 2% --event-span 3h --timeout 5s --give-up-after 20s --ledger LEDGER {more}",
        node.url
    )
}

fn verify(node: &FakeNode, ledger: &Path) -> Output {
    loadgen(&format!("verify --target {} --ledger LEDGER --reconcile --exclusive", node.url), ledger)
}

/// The number the report has under `name`; 0 where it says nothing of it.
fn reported(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name).filter(|rest| rest.starts_with(' ')));
    line.map_or(0, |number| number.trim().parse().expect("a number"))
}

#[test]
fn every_profile_is_billed_as_its_ledger_says_in_every_text_form() {
    let cases = [
        ("hot-campaign", "json"),
        ("retry-storm", "cloudevents"),
        ("bots", "ndjson"),
        ("malformed", "ndjson"),
        ("malformed", "json"),
        ("malformed", "cloudevents"),
        ("spike", "json"),
    ];
    for (profile, body) in cases {
        let folder = tempfile::tempdir().expect("a folder");
        let ledger = folder.path().join("ledger.parquet");
        let node = FakeNode::start(Trouble::default());
        let report =
            succeed(&loadgen(&run_line(&node, &format!("--profile {profile} --body {body}")), &ledger));
        let sent = reported(&report, "sent");
        let refused = reported(&report, "refused as due");
        assert_eq!(reported(&report, "acknowledged") + refused, sent, "{profile} {body}: {report}");
        assert_eq!(refused > 0, profile == "malformed", "{report}");
        assert_eq!(reported(&report, "verdicts") > 0, profile == "bots", "{report}");
        let agreed = succeed(&verify(&node, &ledger));
        assert!(agreed.contains("agreed:"), "{profile} {body}: {agreed}");
    }
}

#[test]
fn a_bad_click_refused_for_another_reason_is_a_difference() {
    let folder = tempfile::tempdir().expect("a folder");
    let ledger = folder.path().join("ledger.parquet");
    let node = FakeNode::start(Trouble { wrong_codes: true, ..Trouble::default() });
    let output = loadgen(&run_line(&node, "--profile malformed"), &ledger);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(reported(&said(&output), "wrong refusals") > 0, "{}", said(&output));
    let different = verify(&node, &ledger);
    assert_eq!(different.status.code(), Some(1), "{}", said(&different));
    assert!(said(&different).contains("refusal"), "{}", said(&different));
}

#[test]
fn answers_429_are_counted_and_nothing_of_them_is_stored() {
    for profile in ["steady", "retry-storm"] {
        let folder = tempfile::tempdir().expect("a folder");
        let ledger = folder.path().join("ledger.parquet");
        let trouble = Trouble { limited_every: 5, stored_unanswered_every: 7, ..Trouble::default() };
        let node = FakeNode::start(trouble);
        let report = succeed(&loadgen(&run_line(&node, &format!("--profile {profile}")), &ledger));
        assert!(reported(&report, "429s") > 0 && reported(&report, "retries") > 0, "{report}");
        succeed(&verify(&node, &ledger));
    }
}

fn start_worker(node: &FakeNode, ledger: &Path, worker: &str) -> Child {
    let line = run_line(node, &format!("--worker {worker}")).replace("--duration 1s", "--duration 8s");
    command(&line, ledger).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts")
}

fn wait(mut worker: Child) {
    assert_eq!(worker.wait().expect("ends").code(), Some(0));
}

#[test]
fn workers_share_one_ledger_and_a_killed_one_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let ledger = folder.path().join("load");
    let node = FakeNode::start(Trouble { half_every: 9, ..Trouble::default() });
    let first = start_worker(&node, &ledger, "1/2");
    let begun = Instant::now();
    while node.copies() == 0 {
        assert!(begun.elapsed() < Duration::from_secs(20), "the first worker sends");
        std::thread::sleep(Duration::from_millis(20));
    }
    let alone = verify(&node, &ledger);
    assert_eq!(alone.status.code(), Some(2), "{}", said(&alone));
    assert!(said(&alone).contains("worker 2/2"), "{}", said(&alone));

    let mut second = start_worker(&node, &ledger, "2/2");
    // Past the first part of its file: then there is something to go on from.
    let first_part = ledger.join("worker-002.parquet.part-000000.parquet");
    let closed = || std::fs::metadata(&first_part).is_ok_and(|part| part.len() > 1_000);
    while !closed() {
        assert!(begun.elapsed() < Duration::from_secs(60), "the second worker writes");
        std::thread::sleep(Duration::from_millis(20));
    }
    second.kill().expect("killed");
    second.wait().expect("ends");
    wait(first);
    let died = verify(&node, &ledger);
    assert_eq!(died.status.code(), Some(0), "lower bounds hold: {}", said(&died));
    assert!(said(&died).contains("was not finished"), "{}", said(&died));

    wait(start_worker(&node, &ledger, "2/2"));
    let agreed = succeed(&verify(&node, &ledger));
    assert!(agreed.contains("agreed:") && !agreed.contains("was not finished"), "{agreed}");
    let again = loadgen(&run_line(&node, "--worker 2/2").replace("--duration 1s", "--duration 8s"), &ledger);
    assert_eq!(again.status.code(), Some(2), "{}", said(&again));
    assert!(said(&again).contains("--overwrite"), "{}", said(&again));
}
