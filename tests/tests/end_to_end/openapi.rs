//! The OpenAPI document against a running node: whatever is sent, no 5xx, no answer it does not document, and none without
//! a key where it says that one is needed.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use twice_tests::{Node, NodeOptions, one_at_a_time, python, run};

use crate::support::hours_ago;

const LIMIT: Duration = Duration::from_secs(900);
/// Requests made up for an operation, beside the systematic ones; `TWICE_TEST_EXAMPLES` changes it.
const EXAMPLES: &str = "15";
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
    response_headers_conformance,response_schema_conformance,unsupported_method,allow_header_conformance,ignored_auth";

fn schemathesis() -> Result<PathBuf> {
    let python = python()?;
    let program = python.parent().context("a Python in a folder")?.join("schemathesis");
    ensure!(program.exists(), "{} is missing; tests/python-env installs it", program.display());
    Ok(program)
}

/// Makes a key that may do everything, and starts the node again so that it asks for one.
fn keyed(node: &mut Node) -> Result<String> {
    let made = node.command(&["keys", "create", "--name", "stranger", "--scope", "admin"])?.expect(0)?;
    let key = made.split_whitespace().find(|word| word.starts_with("twice_")).context("a key")?.to_owned();
    node.stop()?;
    node.ask_for_keys(true);
    node.restart()?;
    Ok(key)
}

#[test]
fn every_answer_of_a_node_is_documented_and_needs_a_key() -> Result<()> {
    let _turn = one_at_a_time();
    let mut node = Node::start(NodeOptions::brisk())?;
    // Something to find, so that more than empty lists are answered.
    let hour = hours_ago(3);
    let campaign =
        json!({"name": "n", "currency": "USD", "cpc_micros": 500_000, "daily_budget_micros": 1_000_000});
    node.client().put_json("/v1/campaigns/0", &campaign)?;
    let click = json!({"campaign_id": "0", "ad_id": "0", "event_time": hour.start().to_string()});
    let answer = node.client().post_json("/v1/clicks", &click)?;
    ensure!(answer.status == 202, "{}", answer.body);
    node.reconcile(&hour.to_string())?;
    let key = keyed(&mut node)?;
    let examples = std::env::var("TWICE_TEST_EXAMPLES").unwrap_or_else(|_| EXAMPLES.to_owned());
    let mut command = Command::new(schemathesis()?);
    command.current_dir(node.root()).arg("run").arg(format!("{}/openapi.json", node.url()));
    command.args(["--header", &format!("Authorization: Bearer {key}")]);
    command.args(["--checks", CHECKS, "--phases", "examples,coverage,fuzzing", "--max-examples", &examples]);
    command.args(["--continue-on-failure", "--no-shrink", "--no-color", "--request-timeout", "60"]);
    command.args(["--suppress-health-check", "all", "--warnings", "off"]);
    // A stream has no end to wait for; its answers are tested where it is.
    command.args(["--exclude-path-regex", "/live$|budget-decisions$"]);
    let told = run(&mut command, LIMIT)?;
    ensure!(told.code() == 0, "{}\n{}\n{}", told.stdout, told.stderr, node.log_tail());
    eprintln!("{}", told.stdout.lines().rev().take(12).collect::<Vec<_>>().join("\n"));
    Ok(())
}
