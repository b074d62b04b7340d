//! The accounts against a naive model, under random clicks, bills, terms, lags and restarts.

mod keeping;

use std::collections::BTreeMap;

use proptest::prelude::*;
use twice_log::archive::Rate;
use twice_log::{CampaignId, Day, Generation, Hour, LogOffset, Position, UtcMillis};
use twice_store::{BudgetCause, BudgetDecision, BudgetState, Campaign};

use super::account::Account;
use super::feed::{SpendFeed, Touched, TouchedBy};
use crate::testing::NOON_MS;

fn at(ms: i64) -> UtcMillis {
    UtcMillis::clamped(NOON_MS + ms)
}

fn today() -> Day {
    Day::of(at(0).hour())
}

fn terms(budget: Option<i64>, strict: bool, cpc_micros: i64) -> Campaign {
    let campaign_id = CampaignId::new("a").expect("valid id");
    let currency = "USD".parse().expect("valid currency");
    let effective_from = UtcMillis::clamped(0);
    let rate = Rate {
        campaign_id: campaign_id.clone(),
        currency,
        cpc_micros,
        effective_from,
        recorded_at: effective_from,
    };
    let rates = vec![rate];
    Campaign { campaign_id, name: "A".to_owned(), currency, daily_budget_micros: budget, strict, rates }
}

fn by(ms: i64) -> Option<TouchedBy> {
    let position = Position { generation: Generation(0), offset: LogOffset(ms) };
    Some(TouchedBy { first_arrival: at(ms), position, event_time: at(ms) })
}

/// Stores what is due, as the keeper does.
fn settle(account: &mut Account, is_known: bool, stored: &mut Vec<BudgetDecision>) {
    for proposal in account.proposals(today(), is_known, at(0)) {
        stored.push(proposal.decision.clone());
        account.accept(proposal.decision);
    }
    account.settle();
}

fn brief(stored: &[BudgetDecision]) -> Vec<(u32, BudgetState, BudgetCause)> {
    stored.iter().map(|decision| (decision.number, decision.state, decision.cause)).collect()
}

fn opened(terms: Campaign) -> Account {
    let mut account = Account::new(terms);
    account.begin_day(today());
    account
}

#[test]
fn a_budget_is_used_up_by_the_click_that_reaches_it_and_a_bill_takes_it_back() {
    let (mut account, mut stored) = (opened(terms(Some(30), false, 10)), Vec::new());
    settle(&mut account, true, &mut stored);
    account.count(at(0), 2, by(5), today());
    settle(&mut account, true, &mut stored);
    account.count(at(0), 3, by(7), today());
    settle(&mut account, true, &mut stored);
    assert_eq!(stored[1].position, by(7).map(|by| by.position));
    account.bill(at(0).hour(), 20, today());
    settle(&mut account, true, &mut stored);
    assert_eq!(
        brief(&stored),
        [
            (1, BudgetState::Serving, BudgetCause::DayBegan),
            (2, BudgetState::Exhausted, BudgetCause::Stream),
            (3, BudgetState::Serving, BudgetCause::Reconciled),
        ]
    );
    assert!(!account.count(at(60_000), 9, by(8), today()), "the hour is billed");
    let report = account.report(today(), today(), true, at(60_000));
    assert_eq!((report.spend_micros, report.billed_micros, report.preliminary_micros), (20, 20, 0));
}

#[test]
fn budgets_set_in_mid_day_decide_at_once_and_one_that_is_lifted_lets_serve() {
    let (mut account, mut stored) = (opened(terms(Some(100), false, 10)), Vec::new());
    account.count(at(0), 5, by(0), today());
    settle(&mut account, true, &mut stored);
    for budget in [Some(50), Some(51), Some(10), None] {
        account.set_terms(terms(budget, false, 10));
        settle(&mut account, true, &mut stored);
    }
    let states: Vec<BudgetState> = stored.iter().map(|decision| decision.state).collect();
    use BudgetState::{Exhausted, Serving};
    assert_eq!(states, [Serving, Exhausted, Serving, Exhausted, Serving]);
    assert!(stored[1..].iter().all(|decision| decision.cause == BudgetCause::BudgetChanged));
    account.count(at(0), 500, by(1), today());
    settle(&mut account, true, &mut stored);
    assert_eq!(stored.len(), 5, "without a budget nothing is decided");
}

#[test]
fn only_strict_campaigns_stop_while_the_spend_is_unknown() {
    let (mut lenient, mut strict) = (opened(terms(Some(20), false, 10)), opened(terms(Some(20), true, 10)));
    let (mut of_lenient, mut of_strict) = (Vec::new(), Vec::new());
    for (step, is_known) in [true, false, false, true].into_iter().enumerate() {
        if step == 2 {
            lenient.count(at(0), 2, by(0), today());
            strict.count(at(0), 2, by(0), today());
        }
        settle(&mut lenient, is_known, &mut of_lenient);
        settle(&mut strict, is_known, &mut of_strict);
    }
    let states = |stored: &[BudgetDecision]| stored.iter().map(|one| one.state).collect::<Vec<_>>();
    use BudgetState::{Exhausted, Serving, Unknown};
    assert_eq!(states(&of_lenient), [Serving, Exhausted]);
    assert_eq!(states(&of_strict), [Serving, Unknown, Exhausted]);
    assert_eq!(of_strict[2].cause, BudgetCause::Lag);
}

#[test]
fn a_minute_in_which_the_rate_changes_is_priced_at_the_highest_of_it() {
    let mut terms = terms(Some(1_000), false, 10);
    let dearer = Rate { cpc_micros: 30, effective_from: at(30_000), ..terms.rates[0].clone() };
    let cheaper = Rate { cpc_micros: 5, effective_from: at(90_000), ..terms.rates[0].clone() };
    terms.rates.extend([dearer, cheaper]);
    let mut account = opened(terms);
    let mut spent = Vec::new();
    for minute in [-1, 0, 1, 2] {
        account.count(at(minute * 60_000), 1, None, today());
        spent.push(account.report(today(), today(), true, at(0)).spend_micros);
    }
    assert_eq!(spent, [10, 40, 70, 75]);
}

#[test]
fn the_forecast_follows_the_last_minutes() {
    let mut account = opened(terms(Some(1_000), false, 10));
    assert_eq!(account.report(today(), today(), true, at(0)).forecast_exhausted_at, None);
    account.count(at(-60_000), 10, None, today());
    let report = account.report(today(), today(), true, at(0));
    assert_eq!(report.recent_micros_per_minute, 100);
    assert_eq!(report.forecast_exhausted_at, Some(at(9 * 60_000)));
}

#[test]
fn the_feed_keeps_the_newest_value_and_the_first_arrival() {
    let feed = SpendFeed::default();
    let id = CampaignId::new("a").expect("valid id");
    for (clicks, ms) in [(3, 10), (2, 20), (4, 30)] {
        let touched = Touched { minutes: BTreeMap::from([(at(0), clicks)]), clicks: by(ms) };
        feed.put([(id.clone(), touched)]);
    }
    let taken = feed.take().remove(&id).expect("there");
    assert_eq!(taken.minutes, BTreeMap::from([(at(0), 4)]));
    let clicks = taken.clicks.expect("by clicks");
    assert_eq!((clicks.first_arrival, clicks.position), (at(10), by(30).expect("one").position));
    assert!(feed.take().is_empty());
}

#[derive(Debug, Clone)]
enum Step {
    Count {
        minute: i64,
        clicks: u64,
    },
    Bill {
        hour: i64,
        amount: i64,
    },
    Terms {
        budget: Option<i64>,
        strict: bool,
        cpc: i64,
    },
    Sight {
        is_known: bool,
    },
    /// The store fails: what is due is proposed again later.
    NotStored,
    /// The process dies; what is stored, counted and billed comes back.
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..180_i64, 1..40_u64).prop_map(|(minute, clicks)| Step::Count { minute, clicks }),
        2 => (0..3_i64, 0..800_i64).prop_map(|(hour, amount)| Step::Bill { hour, amount }),
        2 => (proptest::option::weighted(0.8, 0..900_i64), any::<bool>(), 0..20_i64)
            .prop_map(|(budget, strict, cpc)| Step::Terms { budget, strict, cpc }),
        2 => any::<bool>().prop_map(|is_known| Step::Sight { is_known }),
        1 => Just(Step::NotStored),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 1..60)
}

/// What the stores hold: everything an account is derived from.
struct Model {
    terms: Campaign,
    minutes: BTreeMap<UtcMillis, u64>,
    bills: BTreeMap<Hour, i64>,
    is_known: bool,
}

impl Model {
    fn spend(&self) -> i64 {
        let rate = self.terms.rates[0].cpc_micros;
        let counted = self.minutes.iter().filter(|(start, _)| !self.bills.contains_key(&start.hour()));
        let preliminary: i64 = counted.map(|(_, clicks)| *clicks as i64 * rate).sum();
        self.bills.values().sum::<i64>() + preliminary
    }

    fn state(&self) -> Option<BudgetState> {
        let budget = self.terms.daily_budget_micros?;
        Some(if self.terms.strict && !self.is_known {
            BudgetState::Unknown
        } else if self.spend() >= budget {
            BudgetState::Exhausted
        } else {
            BudgetState::Serving
        })
    }

    /// Derives the account anew, in another order than the one in which things happened.
    fn derive(&self, stored: &[BudgetDecision]) -> Account {
        let mut account = opened(self.terms.clone());
        self.bills.iter().for_each(|(hour, amount)| {
            account.bill(*hour, *amount, today());
        });
        stored.last().into_iter().for_each(|last| account.restore(last.clone()));
        for (start, clicks) in self.minutes.iter().rev() {
            account.count(*start, *clicks, None, today());
        }
        account
    }
}

proptest! {
    #[test]
    fn numbers_follow_each_other_and_the_last_state_is_the_one_computed_directly(steps in steps()) {
        let first = terms(Some(300), false, 10);
        let mut model =
            Model { terms: first.clone(), minutes: BTreeMap::new(), bills: BTreeMap::new(), is_known: true };
        let (mut account, mut stored) = (opened(first), Vec::new());
        settle(&mut account, true, &mut stored);
        for step in steps {
            match step {
                Step::Count { minute, clicks } => {
                    let start = at(minute * 60_000);
                    let known = model.minutes.entry(start).or_insert(0);
                    *known = clicks.max(*known);
                    account.count(start, clicks, by(minute), today());
                }
                Step::Bill { hour, amount } => {
                    let hour = at(0).hour().plus(hour);
                    model.bills.insert(hour, amount);
                    account.bill(hour, amount, today());
                }
                Step::Terms { budget, strict, cpc } => {
                    model.terms = terms(budget, strict, cpc);
                    account.set_terms(model.terms.clone());
                }
                Step::Sight { is_known } => model.is_known = is_known,
                Step::NotStored => {
                    account.proposals(today(), model.is_known, at(0));
                    continue;
                }
                Step::Restart => account = model.derive(&stored),
            }
            settle(&mut account, model.is_known, &mut stored);
            let report = account.report(today(), today(), model.is_known, at(0));
            prop_assert_eq!(report.spend_micros, model.spend());
            prop_assert_eq!(report.state, model.state());
            let last = stored.last().expect("the day began").state;
            prop_assert_eq!(last, model.state().unwrap_or(BudgetState::Serving));
        }
        let numbers: Vec<u32> = stored.iter().map(|decision| decision.number).collect();
        prop_assert_eq!(numbers, (1..=stored.len() as u32).collect::<Vec<_>>());
        prop_assert!(stored.windows(2).all(|pair| pair[0].state != pair[1].state), "only changes are decided");
        let mut again = model.derive(&stored);
        settle(&mut again, model.is_known, &mut stored.clone());
        prop_assert!(model.derive(&stored).proposals(today(), model.is_known, at(0)).is_empty());
    }
}
