//! Minutes, ads and users of billed hours, over real archives.

use std::time::Instant;

use serde_json::{Value, json};
use twice_log::archive::{AggregateFile, AggregateLevel, AggregateSet, BillingPath, BillingStatus, layout};
use twice_log::event::Sha256Hex;
use twice_log::{AdId, CampaignId, Hour, UserId};
use twice_store::aggregates::AggregateWriter;
use twice_store::{AggregateCounts, AggregateRow, BillingCounts, UserSketch, WindowStore};

use crate::query::{bill, codes, labels, row, window};
use crate::support::{Server, ask, campaign, hour};

type Rows = Vec<(CampaignId, AggregateRow)>;

/// A row of an ad and minute: `billable` clicks by the users named, and a duplicate.
fn minute(
    of: &str,
    ad: &str,
    at: Hour,
    minute: i64,
    billable: u64,
    users: &[&str],
) -> (CampaignId, AggregateRow) {
    let mut sketch = UserSketch::default();
    users.iter().for_each(|user| sketch.insert(&UserId::new(user).expect("valid id")));
    let counts = AggregateCounts {
        gross: billable + 1,
        duplicates: 1,
        billable,
        amount_micros: billable as i64 * 10,
        ..AggregateCounts::default()
    };
    let ad_id = Some(AdId::new(ad).expect("valid id"));
    let window_start = at.start().plus_ms(minute * 60_000);
    (campaign(of), AggregateRow { ad_id, window_start, counts, users: sketch })
}

/// Sums rows of the same key, which stand together.
fn summed(rows: &Rows, key: impl Fn(&AggregateRow) -> Option<AdId>, at: Hour) -> Rows {
    let mut sums: Rows = Vec::new();
    for (of, row) in rows {
        let ad_id = key(row);
        match sums.last_mut() {
            Some((last, sum)) if last == of && sum.ad_id == ad_id => sum.add(row),
            _ => sums.push((of.clone(), AggregateRow { ad_id, window_start: at.start(), ..row.clone() })),
        }
    }
    sums
}

/// Puts the aggregates of a run as the reconciler does, and returns the bill they sum to.
async fn put(server: &Server, at: Hour, seq: u32, rows: &Rows) -> Vec<BillingCounts> {
    let mut set = AggregateSet { path: BillingPath::Lambda, hour: at, seq, files: Vec::new() };
    let campaigns = summed(rows, |_| None, at);
    for (level, rows) in [
        (AggregateLevel::AdMinutes, rows.clone()),
        (AggregateLevel::AdHours, summed(rows, |row| row.ad_id.clone(), at)),
        (AggregateLevel::CampaignHours, campaigns.clone()),
    ] {
        let mut writer = AggregateWriter::new(Vec::new()).expect("begins");
        for (of, row) in rows {
            writer.push(of, row).expect("takes the row");
        }
        let written = writer.finish().expect("ends").expect("has rows");
        let sha256 = Sha256Hex::of(&written.output);
        let path = layout::aggregate_path(BillingPath::Lambda, at, level, &sha256);
        set.files.push(AggregateFile {
            level,
            path: path.clone(),
            rows: written.rows,
            bytes: written.output.len() as u64,
            sha256,
            campaign_first: written.campaign_first,
            campaign_last: written.campaign_last,
        });
        server.archive.put_aggregate_file(&path, written.output.into()).await.expect("puts");
    }
    server.archive.put_aggregate_set(&set).await.expect("puts the list");
    let bill = campaigns.into_iter().map(|(of, row)| BillingCounts {
        gross: row.counts.gross,
        duplicates: row.counts.duplicates,
        billable: row.counts.billable,
        amount_micros: row.counts.amount_micros,
        ..BillingCounts::zero(of, Some("USD".parse().expect("valid currency")))
    });
    bill.collect()
}

fn hour_of_c(at: Hour) -> Rows {
    vec![
        minute("c", "ad_1", at, 0, 5, &["a", "b"]),
        minute("c", "ad_1", at, 1, 2, &["b"]),
        minute("c", "ad_2", at, 1, 3, &["a", "d"]),
        minute("d", "ad_1", at, 1, 9, &["z"]),
    ]
}

fn users(body: &Value) -> Vec<Value> {
    body["rows"].as_array().expect("rows").iter().map(|row| row["unique_users"].clone()).collect()
}

#[actix_web::test]
async fn minutes_ads_and_users_of_billed_hours_are_the_runs_and_carry_the_bills_columns() {
    let server = Server::start().await;
    // The stream counted something else.
    let windows = vec![window("c", "2025-01-15T10:00:00Z", 50), window("c", "2025-01-15T11:00:00Z", 40)];
    server.windows.publish(windows).await.expect("publishes");
    let at = hour("2025-01-15T10");
    let counts = put(&server, at, 1, &hour_of_c(at)).await;
    bill(&server, "2025-01-15T10", 1, BillingStatus::Final, counts).await;

    let minutes = "granularity=minute&from=2025-01-15T10:00:00Z&to=2025-01-15T10:03:00Z";
    let (status, body) = ask(server.get(&format!("/v1/campaigns/c/clicks?{minutes}"))).await;
    assert_eq!((status.as_u16(), codes(&body)), (200, Vec::new()), "{body}");
    assert_eq!(labels(&body), [5, 5, 0].map(|clicks| row(clicks, "final")));
    assert_eq!(users(&body), [json!(2), json!(3), json!(0)]);
    let first = &body["rows"][0];
    assert_eq!((&first["gross"], &first["duplicates"], &first["version"]), (&json!(6), &json!(1), &json!(1)));
    assert_eq!((&first["amount_micros"], &first["currency"]), (&json!(50), &json!("USD")));

    let (_, body) = ask(server.get(&format!("/v1/campaigns/c/ads/ad_2/clicks?{minutes}"))).await;
    assert_eq!(labels(&body), [0, 3, 0].map(|clicks| row(clicks, "final")));
    let hours = "from=2025-01-15T10&to=2025-01-15T12";
    let (_, body) = ask(server.get(&format!("/v1/campaigns/c/ads/ad_1/clicks?{hours}"))).await;
    assert_eq!(labels(&body), [row(7, "final"), row(0, "preliminary")]);
    assert_eq!((&body["rows"][0]["gross"], users(&body)[0].clone()), (&json!(9), json!(2)));
    let (_, body) = ask(server.get(&format!("/v1/campaigns/c/clicks?{hours}"))).await;
    assert_eq!((labels(&body)[0].clone(), users(&body)), (row(10, "final"), vec![json!(3), json!(2)]));
    let (_, body) = ask(server.get(&format!("/v1/campaigns/c/clicks?{minutes}&path=lambda"))).await;
    assert_eq!(labels(&body)[0], row(5, "final"));
    let day = "granularity=day&from=2025-01-15T00:00:00Z&to=2025-01-16T00:00:00Z";
    let (_, body) = ask(server.get(&format!("/v1/campaigns/c/clicks?{day}"))).await;
    assert_eq!(
        (labels(&body), users(&body)),
        (vec![row(50, "preliminary")], vec![json!(5)]),
        "a, b, d, u_0, u_1"
    );
    let (_, body) = ask(server.get(&format!("/v1/campaigns/none/clicks?{minutes}"))).await;
    assert_eq!(labels(&body)[0], row(0, "reconciled"), "billed, and no row: zero");
    server.stop().await;
}

#[actix_web::test]
async fn as_of_shows_minutes_and_ads_of_the_version_that_stood_then() {
    let server = Server::start().await;
    let at = hour("2025-01-15T10");
    let counts = put(&server, at, 1, &hour_of_c(at)).await;
    bill(&server, "2025-01-15T10", 1, BillingStatus::Reconciled, counts).await;
    server.set_clock("2025-01-15T12:40:00Z");
    let mut later = hour_of_c(at);
    later.insert(2, minute("c", "ad_1", at, 59, 1, &["e"]));
    let counts = put(&server, at, 2, &later).await;
    bill(&server, "2025-01-15T10", 2, BillingStatus::Final, counts).await;
    server.set_clock("2025-01-15T12:50:00Z");
    for (as_of, expected, unique) in [
        ("2025-01-15T12:29:59Z", row(Value::Null, "unbilled"), Value::Null),
        ("2025-01-15T12:35:00Z", row(7, "reconciled"), json!(2)),
        ("2025-01-15T12:45:00Z", row(8, "final"), json!(3)),
    ] {
        let path = "/v1/campaigns/c/ads/ad_1/clicks?from=2025-01-15T10&to=2025-01-15T11";
        let (status, body) = ask(server.get(&format!("{path}&as_of={as_of}"))).await;
        assert_eq!((status.as_u16(), labels(&body)), (200, vec![expected]), "{as_of}: {body}");
        assert_eq!(users(&body), [unique], "{as_of}");
    }
    server.stop().await;
}

#[actix_web::test]
async fn aggregates_that_are_gone_damaged_or_not_the_bills_are_said_to_be_so_and_never_shown() {
    let server = Server::start().await;
    let hours = ["2025-01-15T07", "2025-01-15T08", "2025-01-15T09", "2025-01-15T10"];
    for at in hours {
        let mut counts = put(&server, hour(at), 1, &hour_of_c(hour(at))).await;
        if at == "2025-01-15T10" {
            counts[0].gross += 1;
            counts[0].billable += 1;
        }
        bill(&server, at, 1, BillingStatus::Final, counts).await;
    }
    let files = |at: &str| {
        let folder = server.archive_folder().join("aggregates/lambda").join(at);
        let entries = std::fs::read_dir(folder).expect("folder").map(|entry| entry.expect("entry").path());
        entries.filter(|path| path.extension().is_some_and(|name| name == "parquet")).collect::<Vec<_>>()
    };
    for file in files("2025-01-15T08") {
        std::fs::remove_file(file).expect("removes");
    }
    for file in files("2025-01-15T09") {
        let mut bytes = std::fs::read(&file).expect("reads");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&file, bytes).expect("writes");
    }
    let range = "from=2025-01-15T07&to=2025-01-15T11";
    let (status, body) = ask(server.get(&format!("/v1/campaigns/c/clicks?{range}"))).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(labels(&body), [10, 10, 10, 11].map(|clicks| row(clicks, "final")), "the bill stands");
    assert_eq!(users(&body), [json!(3), Value::Null, Value::Null, Value::Null]);
    assert_eq!(codes(&body), ["aggregates_missing", "aggregates_unavailable"]);
    let (_, body) = ask(server.get(&format!("/v1/campaigns/c/ads/ad_2/clicks?{range}&path=lambda"))).await;
    let unknown = || row(Value::Null, "final");
    assert_eq!(labels(&body), [row(3, "final"), unknown(), unknown(), unknown()]);
    server.stop().await;
}

/// Prints how long one campaign's day takes; asserts what is answered, not how fast.
#[actix_web::test]
async fn a_campaigns_day_by_minute_hour_and_ad_is_answered_from_aggregates() {
    let server = Server::start().await;
    server.set_clock("2025-01-16T02:00:00Z");
    for at in 0..24 {
        let at = hour("2025-01-15T00").plus(at);
        let mut rows = Vec::new();
        for number in 0..100 {
            let of = format!("camp_{number:03}");
            for ad in ["ad_1", "ad_2", "ad_3"] {
                rows.extend((0..60).map(|at_minute| {
                    let user = format!("u_{}", (number * 7 + at_minute) % 500);
                    minute(&of, ad, at, at_minute, 4, &[user.as_str(), "u_all"])
                }));
            }
        }
        let counts = put(&server, at, 1, &rows).await;
        bill(&server, &at.to_string(), 1, BillingStatus::Reconciled, counts).await;
    }
    let day = "from=2025-01-15T00:00:00Z&to=2025-01-16T00:00:00Z";
    for (what, path, rows) in [
        ("day, by hour", "camp_050/clicks?granularity=hour", 24),
        ("day, by minute", "camp_050/clicks?granularity=minute", 1440),
        ("day, one row", "camp_050/clicks?granularity=day", 1),
        ("day of an ad, by hour", "camp_050/ads/ad_2/clicks?granularity=hour", 24),
    ] {
        let mut times = Vec::new();
        for _ in 0..2 {
            let begun = Instant::now();
            let (status, body) = ask(server.get(&format!("/v1/campaigns/{path}&{day}"))).await;
            times.push(begun.elapsed().as_secs_f64() * 1e3);
            assert_eq!((status.as_u16(), codes(&body)), (200, Vec::new()), "{what}: {body}");
            let clicks: u64 = labels(&body).iter().filter_map(|(clicks, _)| clicks.as_u64()).sum();
            let expected = if path.contains("/ads/") { 24 * 60 * 4 } else { 24 * 60 * 3 * 4 };
            assert_eq!((labels(&body).len(), clicks), (rows, expected), "{what}");
        }
        eprintln!("{what}: {:.1} ms cold, {:.1} ms cached", times[0], times[1]);
    }
    server.stop().await;
}
