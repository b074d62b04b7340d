//! One generated day through everything that can happen to a bill, with a kill in each step.
//!
//! After each step every row of every hour equals what the independent oracle makes of the scenario's journal, nothing
//! is unexplained, every row is balanced, and no version published before has changed.

mod checks;
mod day;
mod journal;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use twice_log::Hour;
use twice_tests::{Finished, Node, NodeOptions, Random, one_at_a_time, run};

use crate::support::{hours_ago, text};
use checks::{Published, all_is_right, rows};
use day::{CAMPAIGNS, Day};
use journal::{Click, Journal};

const HOURLY: u32 = 1;
const NIGHTLY: u32 = 24;
const NODE_DEATH: Duration = Duration::from_secs(120);

/// The walk: the node, the day, and what was said so far.
struct Walk {
    node: Node,
    day: Day,
    journal: Journal,
    published: Published,
    random: Random,
}

#[test]
fn one_day_through_everything_that_can_happen_to_a_bill() -> Result<()> {
    let _turn = one_at_a_time();
    let (random, seed) = Random::from_environment();
    eprintln!("seed {seed}");
    walk(random).with_context(|| format!("play it again with TWICE_TEST_SEED={seed}"))
}

fn walk(mut random: Random) -> Result<()> {
    // Hours are counted when the scenario says so, and at no other time.
    let brisk = NodeOptions::brisk();
    let settings = format!("{}reconcile_schedule = false\n", brisk.settings.unwrap_or_default());
    let node = Node::start(NodeOptions { settings: Some(settings), ..NodeOptions::default() })?;
    // Two days ago: the day after it has begun to be past as well, whatever the time is now.
    let today: Hour = format!("{}T00", &hours_ago(0).to_string()[..10]).parse()?;
    let day = Day::generate(today.plus(-48), &mut random);
    let journal = Journal::create(node.root())?;
    let mut walk = Walk { node, day, journal, published: Published::default(), random };
    let named = |name: &'static str| move || format!("step: {name}");
    walk.clicks_of_the_day().with_context(named("clicks"))?;
    walk.hourly_closes().with_context(named("hourly closes"))?;
    walk.verdicts_and_late_clicks_before_the_night().with_context(named("first verdicts"))?;
    walk.nightly_close().with_context(named("nightly close"))?;
    walk.sweep_after_the_close().with_context(named("sweep"))?;
    walk.replay().with_context(named("replay"))?;
    walk.mode_changes_hands().with_context(named("mode"))?;
    walk.a_dispute_months_later().with_context(named("dispute"))?;
    walk.comparison_and_audit().with_context(named("comparison and audit"))?;
    walk.rebuild().with_context(named("rebuild"))
}

impl Walk {
    fn check(&mut self, paths: &[&str]) -> Result<()> {
        all_is_right(&self.node, &self.day, &self.journal, &mut self.published, paths)
            .with_context(|| self.node.log_tail())
    }

    /// Runs a command whose node dies at `point`, starts the node again, and runs it to its end.
    fn through_death(&mut self, point: &str, arguments: &[&str]) -> Result<Finished> {
        eprintln!("{} through {point}", arguments.join(" "));
        self.node.kill()?;
        self.node.restart_armed(point)?;
        let first = self.node.command(arguments)?;
        let death = self.node.death_within(NODE_DEATH)?;
        ensure!(
            death.is_some(),
            "{point} was never passed: {} {}\n{}",
            first.stdout,
            first.stderr,
            self.node.log_tail()
        );
        self.node.restart()?;
        self.node.command(arguments)
    }

    fn clicks_of_the_day(&mut self) -> Result<()> {
        let long_ago = self.day.first.plus(-72).start().to_string();
        for campaign in 0..CAMPAIGNS {
            let currency = ["USD", "EUR", "JPY"][campaign as usize % 3];
            let name = format!("camp_{campaign}");
            let price = 100_000 + campaign as i64 * 7;
            self.journal.price(self.node.client(), &name, currency, price, &long_ago)?;
        }
        // A ruling that comes before its click.
        let early = self.day.clicks[5].clone();
        let decided = self.day.first.start().to_string();
        self.journal.rule(self.node.client(), &[(&early, "givt", decided, true)])?;
        let clicks = self.day.clicks.clone();
        let half = clicks.len() / 2;
        self.journal.send(self.node.client(), &clicks[..half])?;
        // What was acknowledged is there after a kill, counted or not.
        self.node.kill()?;
        self.node.restart()?;
        self.journal.send(self.node.client(), &clicks[half..])
    }

    fn hourly_closes(&mut self) -> Result<()> {
        let hours: Vec<Hour> = self.day.hours().collect();
        for (index, hour) in hours.iter().enumerate() {
            let hour = hour.to_string();
            let arguments = ["reconcile", "--hour", &hour];
            let ended = match index {
                2 => self.through_death("run-inputs-put", &arguments)?,
                5 => self.through_death("run-before-commit", &arguments)?,
                8 => self.through_death("run-after-commit", &arguments)?,
                _ => self.node.command(&arguments)?,
            };
            ended.expect(0).with_context(|| self.node.log_tail())?;
        }
        self.journal.counted("lambda", HOURLY, hours.into_iter())?;
        self.check(&["lambda"])
    }

    fn verdicts_and_late_clicks_before_the_night(&mut self) -> Result<()> {
        // First wave, with one for a click never seen.
        let clicks: Vec<Click> = self.day.clicks.iter().step_by(17).take(12).cloned().collect();
        let never_seen = self.day.click(&mut self.random, 3, 2);
        let decided = self.day.first.plus(20).start().to_string();
        let mut rulings: Vec<(&Click, &str, String, bool)> =
            clicks.iter().map(|click| (click, "sivt", decided.clone(), true)).collect();
        rulings.push((&never_seen, "givt", decided, false));
        self.journal.rule(self.node.client(), &rulings)?;
        let late: Vec<Click> = (0..4).map(|number| self.day.click(&mut self.random, 7, number)).collect();
        self.journal.send(self.node.client(), &late)?;
        let hour = self.day.first.plus(7);
        self.node.command(&["reconcile", "--hour", &hour.to_string()])?;
        self.journal.counted("lambda", HOURLY, [hour].into_iter())?;
        self.check(&["lambda"])?;
        let reasons = self.published.reasons(hour, "lambda");
        let restated = reasons.iter().any(|(_, version, reason)| *version == 2 && reason == "late_clicks");
        ensure!(restated, "late clicks restate their hour, and the reason says so: {reasons:?}");
        Ok(())
    }

    fn nightly_close(&mut self) -> Result<()> {
        let date = self.day.date();
        self.through_death("run-before-commit:6", &["reconcile", "--day", &date])?;
        let own: Vec<Hour> = self.day.own_hours().collect();
        self.journal.counted("lambda", NIGHTLY, own.into_iter())?;
        self.check(&["lambda"])?;
        for row in rows(&self.node, &self.day, None, "")? {
            let hour: Hour = text(&row, "hour_bucket").parse()?;
            let is_own = self.day.own_hours().any(|own| own == hour);
            let expected = if is_own { "final" } else { "reconciled" };
            ensure!(row["status"] == expected, "the close makes the day's rows final: {row}");
        }
        Ok(())
    }

    fn sweep_after_the_close(&mut self) -> Result<()> {
        // Second and third wave: rulings change, in any order of their moments; one comes without the click's time.
        let clicks: Vec<Click> = self.day.clicks.iter().step_by(13).take(9).cloned().collect();
        let day = self.day.first;
        let decided = |hour: i64| day.plus(hour).start().to_string();
        for (verdict, hour) in [("givt", 30), ("valid", 40), ("sivt", 35)] {
            let rulings: Vec<(&Click, &str, String, bool)> = clicks
                .iter()
                .enumerate()
                .map(|(index, click)| (click, verdict, decided(hour + index as i64 % 3), index % 2 == 0))
                .collect();
            self.journal.rule(self.node.client(), &rulings)?;
        }
        // Late clicks of final hours, and late duplicates of clicks billed.
        let mut late: Vec<Click> =
            (0..3).map(|number| self.day.click(&mut self.random, 15, number)).collect();
        late.extend(self.day.clicks.iter().step_by(101).cloned());
        self.journal.send(self.node.client(), &late)?;
        // A price recorded after the close, from the middle of an hour on.
        let mid_hour = day.plus(12).start().plus_ms(30 * 60_000).to_string();
        self.journal.price(self.node.client(), "camp_0", "USD", 250_000, &mid_hour)?;
        // The campaign without a price gets one, from the day's evening on.
        let evening = day.plus(18).start().to_string();
        let unpriced = format!("camp_{CAMPAIGNS}");
        self.journal.price(self.node.client(), &unpriced, "EUR", 90_000, &evening)?;
        self.through_death("run-after-commit:2", &["reconcile", "--sweep"])?;
        let own: Vec<Hour> = self.day.own_hours().collect();
        let edges = [day.plus(-1), day.plus(24)];
        self.journal.counted("lambda", NIGHTLY, own.into_iter())?;
        self.journal.counted("lambda", HOURLY, edges.into_iter())?;
        self.check(&["lambda"])?;
        self.corrections_add_up()
    }

    /// The sum of an hour's corrections is the difference between its newest and its first version.
    fn corrections_add_up(&self) -> Result<()> {
        let (from, to) = (self.day.first.plus(-1), self.day.first.plus(25));
        let path = format!("/v1/billing/corrections?from={from}&to={to}");
        let corrections = self.node.client().get_rows(&path)?;
        ensure!(!corrections.is_empty(), "there are corrections");
        let number =
            |row: &Value, field: &str| row[field].as_i64().with_context(|| format!("{field} of {row}"));
        let mut of_corrections = 0;
        for correction in &corrections {
            of_corrections += number(correction, "delta_billable")?;
        }
        let billable =
            |rows: Vec<Value>| -> Result<i64> { rows.iter().map(|row| number(row, "billable")).sum() };
        let newest = billable(rows(&self.node, &self.day, None, "")?)?;
        let first = billable(rows(&self.node, &self.day, None, "&version=1")?)?;
        ensure!(
            newest - first == of_corrections,
            "{first} and corrections of {of_corrections} are not {newest}"
        );
        for reason in ["late_clicks", "verdicts", "late_duplicate", "price_change"] {
            ensure!(corrections.iter().any(|row| row["reason"] == reason), "no correction for {reason}");
        }
        Ok(())
    }

    fn replay(&mut self) -> Result<()> {
        let (from, to) = (self.day.first.plus(-1).to_string(), self.day.first.plus(25).to_string());
        let arguments = ["replay", "--from", &from, "--to", &to];
        self.through_death("run-before-commit:3", &arguments)?.expect(0)?;
        let day = self.day.first;
        let own: Vec<Hour> = self.day.own_hours().collect();
        self.journal.counted("kappa", NIGHTLY, own.into_iter())?;
        self.journal.counted("kappa", HOURLY, [day.plus(-1), day.plus(24)].into_iter())?;
        self.check(&["lambda", "kappa"])?;
        self.paths_agree()?;
        // A second replay over the same inputs writes nothing.
        let before = rows(&self.node, &self.day, Some("kappa"), "")?;
        self.node.command(&arguments)?.expect(0)?;
        ensure!(rows(&self.node, &self.day, Some("kappa"), "")? == before, "a replay again wrote a version");
        Ok(())
    }

    /// G-7, row for row.
    fn paths_agree(&self) -> Result<()> {
        let digests = |path: &str| -> Result<Vec<(String, String, String)>> {
            let rows = rows(&self.node, &self.day, Some(path), "")?;
            Ok(rows
                .iter()
                .map(|row| (text(row, "hour_bucket"), text(row, "campaign_id"), text(row, "digest")))
                .collect())
        };
        let (lambda, kappa) = (digests("lambda")?, digests("kappa")?);
        ensure!(lambda == kappa, "kappa is not lambda (G-7)");
        Ok(())
    }

    fn mode_changes_hands(&mut self) -> Result<()> {
        let (from, to) = (self.day.first.plus(3).to_string(), self.day.first.plus(5).to_string());
        let arguments = ["mode", "kappa", "--restate", "--from", &from, "--to", &to];
        self.through_death("run-after-commit", &arguments)?.expect(0)?;
        let path = format!("/v1/billing?hour={from}");
        let in_force = self.node.client().get_rows(&path)?;
        ensure!(!in_force.is_empty(), "the hour is billed");
        for row in &in_force {
            ensure!(row["path"] == "kappa" && row["reason"] == "mode_change", "{row}");
        }
        self.check(&["lambda", "kappa"])
    }

    fn a_dispute_months_later(&mut self) -> Result<()> {
        let hour = self.day.first.plus(12).to_string();
        let printed = self.node.command(&["reconcile", "--hour", &hour])?.expect(0)?;
        ensure!(printed.contains("identical"), "same inputs, same rows: {printed}");
        self.check(&["lambda", "kappa"])
    }

    fn comparison_and_audit(&mut self) -> Result<()> {
        let (from, to) = (self.day.first.plus(10).to_string(), self.day.first.plus(13).to_string());
        let report = self.node.root().join("report.json");
        let out = report.display().to_string();
        self.node.command(&["compare", "--from", &from, "--to", &to, "--out", &out])?.expect(0)?;
        let hours = [3, 12, 15, 23].map(|hour| self.day.first.plus(hour).to_string());
        for hour in &hours {
            let printed = self.node.command(&["audit", "--hour", hour])?.expect(0)?;
            ensure!(printed.contains("\nPROVED:"), "{hour}: {printed}");
        }
        Ok(())
    }

    fn rebuild(&mut self) -> Result<()> {
        let paths = ["lambda", "kappa"];
        ensure!(self.node.stop()?.success(), "a graceful stop");
        let mut command = twice_tests::Binaries::get().twice();
        command.args(["rebuild", "billing", "--data-dir"]).arg(self.node.data_dir());
        run(&mut command, Duration::from_secs(900))?.expect(0)?;
        self.node.restart()?;
        self.published.have_not_changed(&self.node, &self.day, &paths)?;
        self.check(&paths)
    }
}
