//! What strangers do to an open port: the node answers, refuses, or closes, and goes on counting.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use twice_tests::{Client, LoadShape, Node, NodeOptions, free_port, one_at_a_time};

use crate::support::{hours_ago, wait_for};

/// How long a stranger's connection is watched. Far above every limit of the node that should end it.
const WATCHED: Duration = Duration::from_secs(60);
const IDLE: usize = 10_000;

fn address(node: &Node) -> Result<SocketAddr> {
    node.url().trim_start_matches("http://").parse().context("the node's address")
}

/// Sends `bytes` and returns everything that comes back until the node closes the connection.
fn answer_to(address: SocketAddr, bytes: &[u8], trickle: Option<&[u8]>) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_millis(200)))?;
    stream.write_all(bytes)?;
    let (begun, mut answer, mut chunk) = (Instant::now(), Vec::new(), [0; 4096]);
    while begun.elapsed() < WATCHED {
        match stream.read(&mut chunk) {
            Ok(0) => return Ok(String::from_utf8_lossy(&answer).into_owned()),
            Ok(count) => answer.extend_from_slice(&chunk[..count]),
            Err(error) if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()) => {
                // A write may find the connection closed, which the next read tells.
                if let Some(bytes) = trickle {
                    let _ = stream.write_all(bytes);
                }
            }
            Err(_) => return Ok(String::from_utf8_lossy(&answer).into_owned()),
        }
    }
    bail!("the node kept the connection for {WATCHED:?}")
}

#[test]
fn slow_senders_are_cut_off_and_bombs_do_not_unpack() -> Result<()> {
    let _turn = one_at_a_time();
    let settings = "header_timeout_ms = 1000\nbody_rate_bytes_min = 1000\nbody_bytes_max = 1048576\n";
    let node = Node::start(NodeOptions { settings: Some(settings.to_owned()), ..NodeOptions::default() })?;
    let to = address(&node)?;

    let slow_head = answer_to(to, b"POST /v1/clicks HTTP/1.1\r\nhost: a\r\n", Some(b"x-a: b\r\n"))?;
    ensure!(slow_head.is_empty() || slow_head.contains(" 408 "), "a slow head got {slow_head}");
    let head = b"POST /v1/clicks HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 1000000\r\n\r\n[";
    let slow_body = answer_to(to, head, Some(b" "))?;
    ensure!(slow_body.contains(" 408 "), "a slow body got {slow_body}");
    let put = b"PUT /v1/campaigns/c HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{";
    let slow_put = answer_to(to, put, Some(b" "))?;
    ensure!(slow_put.contains(" 408 "), "a slow body of an operation got {slow_put}");
    let many = format!(
        "GET /livez HTTP/1.1\r\nhost: a\r\nconnection: close\r\nx-long: {}\r\n\r\n",
        "a".repeat(20_000)
    );
    let long_head = answer_to(to, many.as_bytes(), None)?;
    ensure!(long_head.contains(" 431 "), "a long head got {long_head}");

    for (encoding, bomb) in bombs() {
        let headers = [("content-encoding", encoding)];
        let answer = node.client().post("/v1/clicks", "application/json", &headers, bomb)?;
        ensure!(answer.status == 413, "a bomb of {encoding} got {}: {}", answer.status, answer.body);
    }
    let click = json!({ "campaign_id": "c" });
    ensure!(node.client().post_json("/v1/clicks", &click)?.status == 202, "the node goes on");
    Ok(())
}

/// A gibibyte of zeros, packed small.
fn bombs() -> Vec<(&'static str, Vec<u8>)> {
    let pack = |program: &str| {
        let line = format!("head -c 1073741824 /dev/zero | {program} -c");
        let packed = Command::new("sh").arg("-c").arg(line).output().ok()?;
        (packed.status.success() && !packed.stdout.is_empty()).then_some(packed.stdout)
    };
    // Each unpacks to more than the limit whatever program made it; zstd may not be installed.
    [("gzip", pack("gzip -9")), ("zstd", pack("zstd -19"))]
        .into_iter()
        .filter_map(|(name, bomb)| Some((name, bomb?)))
        .collect()
}

#[test]
fn ids_that_look_like_paths_and_formulas_are_ids() -> Result<()> {
    let _turn = one_at_a_time();
    let node = Node::start(NodeOptions::default())?;
    let hour = hours_ago(2);
    let ids =
        ["../../x", "..%2f..%2fx", "=cmd|'/C calc'!A0", "'a", "-1", "..", "a/b", "/etc/passwd", "c:\\x", "*"];
    let ids = ids.map(|id| id.replace(' ', "_"));
    let clicks: Vec<_> = ids
        .iter()
        .map(|id| json!({ "campaign_id": id, "ad_id": id, "event_time": format!("{hour}:10:00Z") }))
        .collect();
    let taken = node.client().post_json("/v1/clicks", &json!(clicks))?;
    ensure!(taken.status == 202 && taken.json()?["accepted"] == ids.len(), "{}", taken.body);
    let rows = node.reconcile(&hour.to_string())?;
    let mut billed: Vec<String> =
        rows.iter().filter_map(|row| row["campaign_id"].as_str().map(Into::into)).collect();
    let mut sent = ids.to_vec();
    billed.sort();
    sent.sort();
    ensure!(billed == sent, "billed {billed:?}");
    let csv = node.client().get_with(&format!("/v1/billing?hour={hour}"), &[("accept", "text/csv")])?;
    for line in csv.body.lines().skip(1) {
        ensure!(!line.starts_with(['=', '+', '-', '@']) && !line.starts_with("\"="), "a formula: {line}");
    }
    for path in [
        "/v1/campaigns/%2e%2e%2f%2e%2e%2fx/clicks",
        "/v1/campaigns/../../etc/passwd",
        "/v1/comparisons/..%2f..%2ftwice.sqlite",
        "/v1/comparisons/%2e%2e",
        "/..%2f..%2fetc/passwd",
        "/v1/campaigns/%00/clicks",
        "/v1/campaigns/%ff/clicks",
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        let answer = answer_to(address(&node)?, request.as_bytes(), None)?;
        let status: u16 = answer.split(' ').nth(1).context("a status")?.parse()?;
        ensure!(status < 500 && !answer.contains("root:") && !answer.contains("SQLite"), "{path}: {answer}");
    }
    let outside = node.root().join("x");
    ensure!(!outside.exists() && !node.data_dir().join("../x").exists(), "nothing is written outside");
    Ok(())
}

#[test]
fn ten_thousand_idle_connections_stop_no_click() -> Result<()> {
    let _turn = one_at_a_time();
    // Idle ones are kept for the whole test, so that it is their number that is tried and not their end.
    let settings = "header_timeout_ms = 600000\n".to_owned();
    let node = Node::start(NodeOptions { settings: Some(settings), ..NodeOptions::default() })?;
    let to = address(&node)?;
    twice_tests::raise_file_limit();
    let from = hours_ago(2);
    let mut shape = LoadShape::small("idle", 77, &from.to_string());
    shape.duration = Duration::from_secs(6);
    let load = shape.start(&node)?;
    let mut idle = Vec::with_capacity(IDLE);
    for count in 0..IDLE {
        idle.push(TcpStream::connect(to).with_context(|| format!("after {count} connections"))?);
    }
    let open = wait_for("the node to have taken them", || {
        let metrics = node.client().get("/metrics")?.body;
        let line = metrics.lines().find(|line| line.starts_with("twice_http_connections "));
        let open: f64 = line.and_then(|line| line.split(' ').nth(1)).unwrap_or("0").parse()?;
        Ok((open >= IDLE as f64).then_some(open))
    })?;
    eprintln!("{open} connections open, {} of them idle", idle.len());
    let ledger = load.finish(&node)?;
    node.prove(&[ledger])?;
    drop(idle);
    Ok(())
}

/// Starts a node that asks for keys and returns its first key, as it shows it.
fn first_key(node: &mut Node) -> Result<String> {
    node.restart()?;
    shown_key(node)?.with_context(|| format!("no key was shown\n{}", node.log_tail()))
}

fn shown_key(node: &Node) -> Result<Option<String>> {
    let out = std::fs::read_to_string(node.root().join("twice-up.out"))?;
    Ok(out.lines().map(str::trim).rfind(|line| line.starts_with("twice_")).map(str::to_owned))
}

#[test]
fn the_first_start_shows_a_key_once_and_a_revoked_one_is_refused_at_once_and_for_ever() -> Result<()> {
    let _turn = one_at_a_time();
    let mut node = Node::prepare(NodeOptions::default())?;
    node.ask_for_keys(true);
    let admin = first_key(&mut node)?;
    let errors = std::fs::read_to_string(node.root().join("twice-up.err"))?;
    ensure!(!errors.contains(&admin[24..]), "no log line has the key");
    let keyed = Client::new(&node.url())?.with_key(&admin);
    let (key, id) = {
        let body = json!({ "name": "ingest", "scopes": ["ingest"] });
        let created = keyed.post_json("/v1/keys", &body)?.json()?;
        let text = |field: &str| created[field].as_str().map(str::to_owned).context("a field");
        (text("key")?, text("key_id")?)
    };
    let sender = Client::new(&node.url())?.with_key(&key);
    let click = json!({ "campaign_id": "c" });
    ensure!(sender.post_json("/v1/clicks", &click)?.status == 202, "the new key sends");
    ensure!(
        sender.get("/v1/keys")?.status == 403 && node.client().get("/v1/keys")?.status == 401,
        "and no more"
    );
    ensure!(keyed.delete(&format!("/v1/keys/{id}"))?.status == 200, "revoked");
    ensure!(sender.post_json("/v1/clicks", &click)?.status == 401, "refused at once");
    node.kill()?;
    node.restart()?;
    // New clients: the connections of the old ones died with the process.
    let (sender, keyed) =
        (Client::new(&node.url())?.with_key(&key), Client::new(&node.url())?.with_key(&admin));
    ensure!(sender.post_json("/v1/clicks", &click)?.status == 401, "refused for ever");
    ensure!(keyed.get("/v1/keys")?.status == 200, "the first key goes on");
    let out = std::fs::read_to_string(node.root().join("twice-up.out"))?;
    ensure!(out.matches("twice_").count() == 1, "and is shown once: {out}");
    let log = keyed.get_json("/v1/admin-actions")?;
    let noted = |action: &str| {
        log["rows"]
            .as_array()
            .is_some_and(|rows| rows.iter().any(|row| row["action"] == action && row["status"] == 200))
    };
    ensure!(noted(&format!("DELETE /v1/keys/{id}")), "the log outlives the kill: {log}");
    Ok(())
}

#[test]
fn a_node_killed_before_it_showed_its_first_key_is_opened_with_another() -> Result<()> {
    let _turn = one_at_a_time();
    let mut node = Node::prepare(NodeOptions::default())?;
    node.ask_for_keys(true);
    node.restart_armed("first-key-stored")?;
    ensure!(node.is_dead()? && shown_key(&node)?.is_none(), "it died before it showed a key");
    node.restart()?;
    ensure!(shown_key(&node)?.is_none(), "the key that is lost is not shown again");
    let folder = node.data_dir().display().to_string();
    let busy = node.offline(&["keys", "reset-admin", "--data-dir", &folder])?;
    ensure!(busy.code() == 2, "a running node is left alone: {}", busy.stderr);
    node.stop()?;
    let reset = node.offline(&["keys", "reset-admin", "--data-dir", &folder])?.expect(0)?;
    let line = reset.lines().map(str::trim).find(|line| line.starts_with("twice_"));
    let admin = line.context("a key")?.to_owned();
    node.restart()?;
    let keyed = Client::new(&node.url())?.with_key(&admin);
    let log = keyed.get_json("/v1/admin-actions")?;
    ensure!(log["rows"].to_string().contains("twice keys reset-admin"), "{log}");
    Ok(())
}

#[test]
fn tls_shows_a_new_certificate_without_a_restart_and_keeps_the_old_one_over_a_bad_one() -> Result<()> {
    let _turn = one_at_a_time();
    let mut node = Node::prepare(NodeOptions::default())?;
    let (cert, key) = (node.root().join("cert.pem"), node.root().join("key.pem"));
    let make = |name: &str| -> Result<()> {
        let line = format!(
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={name} \
             -keyout {0}.new -out {1}.new 2>&1 && mv {0}.new {0} && mv {1}.new {1}",
            key.display(),
            cert.display()
        );
        let made = Command::new("sh").arg("-c").arg(line).output()?;
        ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stdout));
        Ok(())
    };
    make("first")?;
    let port = free_port()?;
    let (local, tls) = (node.url(), format!("127.0.0.1:{port}"));
    node.set_listen(&[
        "--listen",
        &tls,
        "--listen-local",
        local.trim_start_matches("http://"),
        "--tls-reload-ms",
        "100",
        "--tls-cert",
        &cert.display().to_string(),
        "--tls-key",
        &key.display().to_string(),
    ]);
    node.restart()?;
    let subject = || -> Result<String> {
        let line =
            format!("openssl s_client -connect {tls} </dev/null 2>/dev/null | openssl x509 -noout -subject");
        let shown = Command::new("sh").arg("-c").arg(line).output()?;
        Ok(String::from_utf8_lossy(&shown.stdout).trim().to_owned())
    };
    ensure!(subject()?.ends_with("first"), "{}", subject()?);
    let request = format!(
        "printf 'GET /livez HTTP/1.1\\r\\nhost: a\\r\\nconnection: close\\r\\n\\r\\n' | openssl s_client -quiet -connect {tls} 2>/dev/null"
    );
    let answer = Command::new("sh").arg("-c").arg(request).output()?;
    ensure!(String::from_utf8_lossy(&answer.stdout).contains("\"alive\":true"), "HTTP over TLS");
    let plain = answer_to(tls.parse()?, b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n", None)?;
    ensure!(!plain.contains("200"), "no plain HTTP on the TLS port: {plain}");
    make("second")?;
    wait_for("the new certificate", || Ok(subject()?.ends_with("second").then_some(())))?;
    std::fs::write(&cert, "no certificate")?;
    wait_for("the bad file to be refused", || {
        let metrics = node.client().get("/metrics")?.body;
        Ok(metrics.contains("twice_tls_reloads_total{outcome=\"refused\"}").then_some(()))
    })?;
    ensure!(subject()?.ends_with("second"), "the one before goes on");
    make("third")?;
    wait_for("the repaired certificate", || Ok(subject()?.ends_with("third").then_some(())))
}
