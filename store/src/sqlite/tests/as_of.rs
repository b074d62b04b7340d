use super::*;
use crate::error::Error;

#[tokio::test]
async fn as_of_reads_show_what_was_committed_by_then() {
    let fixture = Fixture::new().await;
    let before = UtcMicros(NOON_MS * 1_000 - 1);
    let mut moments = Vec::new();
    for seq in 1..=3 {
        let committed = fixture.commit(run(seq, &[("a", u64::from(seq))])).await;
        moments.push(committed.committed_at.expect("wrote a version"));
        fixture.clock.advance(10);
    }
    for (seq, moment) in (1..).zip(&moments) {
        assert_eq!(brief(&fixture.rows(&as_of(*moment)).await), [("a", seq, u64::from(seq))]);
    }
    assert!(fixture.rows(&as_of(before)).await.is_empty());
    let range = (noon(), noon().plus(1));
    let billed = |moment| fixture.store.billed_hours_as_of(None, range.0, range.1, moment);
    assert!(billed(before).await.expect("lists").is_empty(), "unbilled by then");
    assert_eq!(billed(moments[0]).await.expect("lists"), [noon()]);
    // A version that came later does not exist at an earlier moment.
    let second = BillingQuery { version: Some(2), ..as_of(moments[0]) };
    assert!(fixture.rows(&second).await.is_empty());
}

#[tokio::test]
async fn as_of_in_the_future_is_refused_and_the_present_is_not() {
    let fixture = Fixture::new().await;
    let future = UtcMicros((NOON_MS + 1) * 1_000);
    let refused = fixture.store.billing(&as_of(future)).await.expect_err("lies in the future");
    assert!(matches!(refused, Error::AsOfInFuture));
    let refused =
        fixture.store.divergence(noon(), Some(future), None, 9, None).await.expect_err("lies in the future");
    assert!(matches!(refused, Error::AsOfInFuture));
    assert!(fixture.rows(&as_of(UtcMicros(NOON_MS * 1_000 + 999))).await.is_empty());
}

#[tokio::test]
async fn an_answer_stays_though_commits_follow_within_the_same_millisecond() {
    let fixture = Fixture::new().await;
    fixture.commit(run(1, &[("a", 1)])).await;
    let now = UtcMicros(NOON_MS * 1_000 + 500);
    let answer = fixture.rows(&as_of(now)).await;
    // The clock stands: without settling, this commit would carry a moment before `now`.
    let second = fixture.commit(run(2, &[("a", 2)])).await;
    assert!(second.committed_at.expect("wrote a version") > now);
    assert_eq!(fixture.rows(&as_of(now)).await, answer);
}

#[tokio::test]
async fn an_answer_stays_though_the_clock_is_set_back_and_the_node_restarts() {
    let fixture = Fixture::new().await;
    fixture.commit(run(1, &[("a", 1)])).await;
    fixture.clock.advance(60_000);
    let asked = UtcMicros((NOON_MS + 60_000) * 1_000);
    let answer = fixture.rows(&as_of(asked)).await;
    let fixture = fixture.reopen().await;
    fixture.clock.set(NOON_MS - 3_600_000);
    fixture.commit(run(2, &[("a", 2)])).await;
    fixture.commit(moved(run(1, &[("z", 1)]), BillingPath::Lambda, noon().plus(-1))).await;
    assert_eq!(fixture.rows(&as_of(asked)).await, answer);
    let hours = fixture.store.billed_hours_as_of(None, noon().plus(-5), noon().plus(5), asked).await;
    assert_eq!(hours.expect("lists"), [noon()]);
}

#[tokio::test]
async fn committed_at_rises_though_the_clock_stands_or_falls() {
    let fixture = Fixture::new().await;
    let mut last = UtcMicros(i64::MIN);
    for (seq, step) in (1..).zip([0, 0, -5_000, 0, 7, -1]) {
        fixture.clock.advance(step);
        let committed = fixture.commit(run(seq, &[("a", u64::from(seq))])).await;
        let moment = committed.committed_at.expect("wrote a version");
        assert!(moment > last, "run {seq}");
        last = moment;
    }
    // What has been committed can be asked for, though the clock is behind it.
    fixture.clock.set(NOON_MS - 100_000);
    assert_eq!(brief(&fixture.rows(&as_of(last)).await), [("a", 6, 6)]);
}

#[tokio::test]
async fn answers_given_while_commits_run_hold_for_ever() {
    let fixture = Fixture::new().await;
    let writer = {
        let (store, clock) = (fixture.store.clone(), fixture.clock.clone());
        tokio::spawn(async move {
            for seq in 1..=60 {
                store.commit_run(run(seq, &[("a", u64::from(seq)), ("b", 7)])).await.expect("commits");
                clock.advance(i64::from(seq % 3 == 0));
            }
        })
    };
    let mut answers = Vec::new();
    while !writer.is_finished() {
        let moment = UtcMicros(fixture.clock.now().epoch_ms() * 1_000 + 999);
        answers.push((moment, fixture.rows(&as_of(moment)).await));
        tokio::task::yield_now().await;
    }
    writer.await.expect("ends");
    assert!(!answers.is_empty());
    for (moment, answer) in answers {
        assert_eq!(fixture.rows(&as_of(moment)).await, answer, "as of {moment}");
    }
}
