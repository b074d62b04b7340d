//! The archive on S3, over a real server and HTTP: the whole line, outages, a bucket that refuses, a server that must be
//! refused.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use twice_tests::{LoadShape, Node, NodeOptions, S3Fault, S3Server, one_at_a_time};

use crate::support::{divergence, hours_ago, oracle_agrees, text, wait_for};

/// A bucket and a prefix in it.
const PLACE: &str = "clicks/prod";
const DEATH_LIMIT: Duration = Duration::from_secs(60);

/// Options of a node that archives at once and notices an outage at once, so that a short test meets both.
fn options(server: &S3Server, place: &str, further: &[&str]) -> NodeOptions {
    let brisk = [
        "--archive-flush-interval-ms",
        "300",
        "--archive-retry-pause-ms-max",
        "1000",
        "--s3-retries-max",
        "1",
        "--s3-start-wait-ms",
        "2000",
    ];
    let mut options = server.archive_into(NodeOptions::brisk(), place);
    options.arguments.extend(brisk.iter().chain(further).map(|word| (*word).to_owned()));
    options
}

fn objects_within(server: &S3Server, bucket: &str, prefix: &str) -> Result<usize> {
    Ok(server.keys(bucket, prefix)?.len())
}

#[test]
fn the_whole_line_runs_on_a_bucket_and_every_put_asks_for_encryption() -> Result<()> {
    let _turn = one_at_a_time();
    let server = S3Server::start(&["clicks"])?;
    let node = Node::start(options(&server, PLACE, &["--s3-encryption", "AES256"]))?;
    let from = hours_ago(3);
    let ledger = LoadShape::small("s3", 31, &from.to_string()).run(&node)?;
    let ledgers = [ledger];
    node.prove(&ledgers)?;
    oracle_agrees(&node, &ledgers, from, 2)?;

    ensure!(!node.data_dir().join("archive").exists(), "a local archive beside the bucket");
    for folder in ["clicks", "manifests", "seals", "runs"] {
        let found = objects_within(&server, "clicks", &format!("prod/{folder}/"))?;
        ensure!(found > 0, "nothing below {folder} in the bucket");
    }
    ensure!(
        objects_within(&server, "clicks", "")? == objects_within(&server, "clicks", "prod/")?,
        "outside its prefix"
    );
    let writes = server.writes()?;
    let puts: Vec<_> = writes.iter().filter(|write| write.method == "PUT" && write.status == 200).collect();
    ensure!(!puts.is_empty(), "no puts noted");
    ensure!(
        puts.iter().all(|put| put.encryption.as_deref() == Some("AES256")),
        "a put without encryption: {puts:?}"
    );

    // The counting child finds the bucket too, when it lists the copies behind a difference.
    let rows = divergence(&node, from, 2)?;
    let late = rows.iter().find(|row| row["late"].as_i64() > Some(0)).context("a row with late clicks")?;
    let hour = text(late, "hour_bucket").get(..13).unwrap_or_default().to_owned();
    let explained =
        node.command(&["explain", "--hour", &hour, "--campaign", &text(late, "campaign_id")])?.expect(0)?;
    ensure!(explained.lines().any(|line| line.starts_with("late ")), "{explained}");
    Ok(())
}

#[test]
fn while_the_server_is_dead_clicks_are_taken_and_afterwards_every_one_is_billed() -> Result<()> {
    let _turn = one_at_a_time();
    let mut server = S3Server::start(&["clicks"])?;
    let mut node = Node::start(options(&server, PLACE, &[]))?;
    let from = hours_ago(3);
    let mut ledgers = Vec::new();
    let before = LoadShape::small("before", 41, &from.to_string()).start(&node)?;
    wait_for("a manifest", || Ok((objects_within(&server, "clicks", "prod/manifests/")? > 0).then_some(())))?;
    server.kill()?; // in the middle of the load
    ledgers.push(before.finish(&node)?);

    // Everything was acknowledged without the archive; the node says that it lags, and takes more.
    wait_for("the outage in /readyz", || {
        let answer: Value = node.client().get_json("/readyz")?;
        Ok(answer["reasons"].to_string().contains("archive").then_some(()))
    })?;
    let metrics = node.client().get("/metrics")?.body;
    ensure!(
        metrics.lines().any(|line| line.starts_with("twice_archiver_failing{") && line.ends_with(" 1")),
        "{metrics}"
    );
    let hour = node.command(&["reconcile", "--hour", &from.to_string(), "--no-wait"])?;
    ensure!(
        node.client().get_rows(&format!("/v1/billing?hour={from}"))?.is_empty(),
        "billed without an archive: {hour:?}"
    );

    // A node started in the middle of the outage serves all the same.
    node.kill()?;
    node.restart()?;
    ledgers.push(LoadShape::small("during", 42, &from.to_string()).run(&node)?);
    server.restart()?;
    node.prove(&ledgers)?;
    oracle_agrees(&node, &ledgers, from, 2)?;
    every_difference_is_explained(&node)?;
    let warnings = node.log_tail();
    ensure!(warnings.matches("archiving fails").count() < 40, "a warning for every try: {warnings}");
    Ok(())
}

fn every_difference_is_explained(node: &Node) -> Result<()> {
    for row in divergence(node, hours_ago(3), 2)? {
        ensure!(
            row["stream"] == "complete" && row["unexplained"] == 0,
            "an outage left a hole in the seals: {row}"
        );
    }
    Ok(())
}

#[test]
fn kills_of_the_server_under_load_and_lost_answers_bill_nothing_twice() -> Result<()> {
    let _turn = one_at_a_time();
    let mut server = S3Server::start(&["clicks"])?;
    let node = Node::start(options(&server, PLACE, &[]))?;
    let from = hours_ago(3);
    let mut shape = LoadShape::small("kills", 51, &from.to_string());
    shape.duration = Duration::from_secs(12);
    let mut load = shape.start(&node)?;
    let mut kills = 0;
    while load.is_running()? && kills < 4 {
        std::thread::sleep(Duration::from_millis(1_200));
        server.kill()?;
        kills += 1;
        std::thread::sleep(Duration::from_millis(400));
        server.restart()?;
    }
    // Each of these is done, and answered as if it had not been.
    server.inject(S3Fault::Lose, "clicks", "prod/")?;
    let ledgers = [load.finish(&node)?];
    std::thread::sleep(Duration::from_secs(2));
    server.heal()?;
    node.prove(&ledgers)?;
    oracle_agrees(&node, &ledgers, from, 2)?;
    let refused = server.writes()?.iter().filter(|write| write.status == 412).count();
    ensure!(refused > 0, "no put was refused as existing: the lost answers were not tried again");
    Ok(())
}

#[test]
fn a_bucket_that_refuses_data_files_is_relieved_by_the_second_and_the_manifests_name_it() -> Result<()> {
    let _turn = one_at_a_time();
    let server = S3Server::start(&["clicks", "spare"])?;
    let second = ["--archive-secondary", "s3://spare", "--archive-secondary-after-ms", "1000"];
    let node = Node::start(options(&server, PLACE, &second))?;
    let from = hours_ago(3);
    let mut ledgers = vec![LoadShape::small("first", 61, &from.to_string()).run(&node)?];
    wait_for("a data file in the first bucket", || {
        Ok((objects_within(&server, "clicks", "prod/clicks/")? > 0).then_some(()))
    })?;
    server.inject(S3Fault::Deny, "clicks", "prod/clicks/")?;
    ledgers.push(LoadShape::small("second", 62, &from.to_string()).run(&node)?);
    wait_for("a data file in the second bucket", || {
        Ok((objects_within(&server, "spare", "clicks/")? > 0).then_some(()))
    })?;
    node.prove(&ledgers)?; // with files in both
    oracle_agrees(&node, &ledgers, from, 2)?;

    let elsewhere = server.keys("spare", "")?;
    let decides =
        |key: &&String| ["manifests/", "seals/", "runs/"].iter().any(|folder| key.starts_with(folder));
    ensure!(
        !elsewhere.iter().any(|key| decides(&key)),
        "what decides lies in the second bucket: {elsewhere:?}"
    );
    let mut named = 0;
    for key in server.keys("clicks", "prod/manifests/")? {
        let bytes = std::fs::read(server.bucket_dir("clicks").join(key))?;
        let manifest: Value = serde_json::from_slice(&bytes)?;
        let files = manifest["files"].as_array().context("files of a manifest")?;
        named += files.iter().filter(|file| file["bucket"] == "spare").count();
    }
    let data_files = elsewhere.iter().filter(|key| key.ends_with(".parquet")).count();
    ensure!(
        named > 0 && named <= data_files,
        "manifests name {named} of {data_files} files in the second bucket"
    );
    Ok(())
}

#[test]
fn a_start_that_cannot_work_says_what_to_do() -> Result<()> {
    let _turn = one_at_a_time();
    let server = S3Server::start(&["clicks", "careless", "closed"])?;
    server.inject(S3Fault::Overwrite, "careless", "")?;
    server.inject(S3Fault::Deny, "closed", "")?;
    let wrong_key = {
        let mut wrong = options(&server, "clicks", &[]);
        wrong.environment.push(("AWS_SECRET_ACCESS_KEY".to_owned(), "wrong".to_owned()));
        wrong
    };
    for (options, advised) in [
        (options(&server, "careless", &[]), "ignores If-None-Match"),
        (options(&server, "nowhere", &[]), "does not exist; create it"),
        (options(&server, "closed", &[]), "s3:PutObject"),
        (wrong_key, "AWS_SECRET_ACCESS_KEY"),
    ] {
        let mut node = Node::prepare(options)?;
        node.restart_unready()?;
        let status = node
            .death_within(DEATH_LIMIT)?
            .with_context(|| format!("not refused: {advised}\n{}", node.log_tail()))?;
        let said = node.log_tail();
        ensure!(status.code() == Some(2), "{status}: {said}");
        ensure!(said.contains(advised), "the message does not say {advised:?}: {said}");
        ensure!(!said.contains("not-a-secret-of-anyone"), "a secret in the log: {said}");
    }
    Ok(())
}
