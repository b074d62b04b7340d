//! Runs of earlier builds: counted by the texts of their time, which the archive keeps; refused where it does not.

mod support;

use std::path::Path;

use support::{
    Records, Run, archive_records, at, campaign, click, hour, limits, open_archive, rate, run_inputs,
};
use twice_log::archive::{Archive, CountingSettings, RunInputs, layout};
use twice_reconciler::recompute::{
    ArchiveLocation, InProcessRecompute, Recompute, RecomputeRequest, Rules, Task,
};
use twice_reconciler::{Error, ErrorKind};

/// Records a run under rules of another build: the bill by a statement that counts each billable click as two.
async fn old_run(archive: &Archive) -> (Rules, RunInputs) {
    let records = Records::of(&[click(1, 1, 10, 1, 0), click(1, 2, 20, 1, 0)], &[], 2);
    archive_records(archive, &records, 10, 10).await;
    let run = Run {
        click_ends: Default::default(),
        rates: vec![rate(1, 500, at(-60), at(-60))],
        settings: CountingSettings::default(),
        seals: Vec::new(),
    };
    let mut rules = Rules::of_build(&run.settings).expect("rules");
    rules.billing_sql = format!(
        "SELECT campaign_id, 2 * gross AS gross, duplicates, conflicts, invalid_givt, invalid_sivt,
            2 * billable AS billable, unpriced, amount_micros, currency FROM (\n{}\n) AS bill",
        rules.billing_sql
    );
    let inputs = run_inputs(archive, &records, &run).await;
    (rules.clone(), RunInputs { rules_sha256: rules.sha256(), ..inputs })
}

async fn request(archive: &Archive, inputs: &RunInputs, folder: &Path, task: Task) -> RecomputeRequest {
    let stored = archive.put_run_inputs(inputs).await.expect("inputs are put");
    RecomputeRequest {
        archive: ArchiveLocation::Local { root: folder.join("archive") },
        inputs_path: layout::run_inputs_path(inputs.path, inputs.hour, inputs.seq),
        inputs_sha256: stored.sha256,
        limits: limits(folder, 1, None),
        task,
        aggregates_dir: None,
    }
}

#[tokio::test]
async fn a_run_of_an_earlier_build_is_counted_by_the_texts_of_its_time() {
    let folder = tempfile::tempdir().expect("folder");
    let archive = open_archive(&folder.path().join("archive"));
    let (rules, inputs) = old_run(&archive).await;
    rules.put(&archive).await.expect("rules are put");
    rules.put(&archive).await.expect("a second time changes nothing");
    let recompute = InProcessRecompute::new(archive.clone());
    let bill = recompute.recompute(request(&archive, &inputs, folder.path(), Task::Bill).await).await;
    let rows = bill.expect("counted").rows;
    assert_eq!((rows.len(), rows[0].gross, rows[0].billable, rows[0].amount_micros), (1, 4, 4, 1_000));
    let explain = Task::Explain { campaign: campaign(1), limit: 10 };
    recompute.explain(request(&archive, &inputs, folder.path(), explain).await).await.expect("explained");
}

#[tokio::test]
async fn a_run_whose_rules_nobody_has_is_refused_by_their_name() {
    let folder = tempfile::tempdir().expect("folder");
    let archive = open_archive(&folder.path().join("archive"));
    let (rules, inputs) = old_run(&archive).await;
    let request = request(&archive, &inputs, folder.path(), Task::Bill).await;
    let error = InProcessRecompute::new(archive.clone()).recompute(request).await.expect_err("unknown rules");
    assert!(matches!(&error, Error::RulesMissing { .. }) && error.kind() == ErrorKind::Damage, "{error:?}");
    let text = error.to_string();
    assert!(
        text.contains(&layout::rules_path(&rules.sha256())) && text.contains(&hour().to_string()),
        "{text}"
    );
}

#[tokio::test]
async fn rules_that_were_changed_count_nothing() {
    let folder = tempfile::tempdir().expect("folder");
    let archive = open_archive(&folder.path().join("archive"));
    let (rules, inputs) = old_run(&archive).await;
    let path = layout::rules_path(&rules.sha256());
    let other = Rules::of_build(&inputs.settings).expect("rules");
    archive.put_if_absent(&path, serde_json::to_vec(&other).expect("JSON").into()).await.expect("put");
    assert!(rules.put(&archive).await.is_err(), "other rules stand under the name");
    let request = request(&archive, &inputs, folder.path(), Task::Bill).await;
    let error = InProcessRecompute::new(archive.clone()).recompute(request).await.expect_err("changed rules");
    assert!(error.to_string().contains(&path), "{error}");
}
