//! What becomes of a version in its canary: a pure decision.
//!
//! Guarantee: a single request decides nothing, and neither does a clock put forward: a version is promoted only after it
//! was watched for a while by a running node.

use twice_store::{LimitCounts, LimitFigures};

/// Requests of canary keys below which figures decide nothing.
const REQUESTS_MIN: u64 = 100;
/// Share of canary requests over the limit above which a version is rolled back, in tenths of a percent.
const OVER_PER_MILLE_MAX: u64 = 50;
/// The same, as a multiple of the rest's share.
const REST_TIMES_MAX: u64 = 10;
/// Least share of the rest, in tenths of a percent, that is multiplied: the service level of refusals (DESIGN 8). Ten
/// times nothing would be nothing, and one refusal would take back every version.
const REST_PER_MILLE_MIN: u64 = 1;
/// Shortest time a running node watches a version before it is promoted, unless the canary itself is shorter. What a node
/// counted is lost with its process, and a canary that ended while it was down was watched by nobody.
const WATCHED_MS_MIN: u64 = 60_000;

/// What becomes of the version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The canary goes on.
    Wait,
    /// It holds for all from now on; why, in words.
    Promote(String),
    /// It holds for nobody from now on; why, in words.
    RollBack(String),
}

/// How long the canary has run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Watched {
    /// By the clock, since the version was put; negative where the clock was put back.
    pub elapsed_ms: i64,
    /// By this process, whatever the clock did.
    pub watched_ms: u64,
}

/// Decides.
pub(super) fn judge(canary_ms: u64, watched: Watched, figures: &LimitFigures) -> Verdict {
    if let Some(detail) = is_bad(figures) {
        return Verdict::RollBack(detail);
    }
    let is_over = u64::try_from(watched.elapsed_ms).is_ok_and(|elapsed_ms| elapsed_ms >= canary_ms);
    if !is_over || watched.watched_ms < canary_ms.min(WATCHED_MS_MIN) {
        return Verdict::Wait;
    }
    Verdict::Promote(match figures.canary {
        LimitCounts { requests: 0, .. } => {
            "its time is over; no key it was tried on has sent anything, so nothing is known against it"
                .to_owned()
        }
        LimitCounts { requests: 1..REQUESTS_MIN, .. } => {
            format!("its time is over; {}, too few to decide by", described(figures))
        }
        _ => format!("its time is over: {}", described(figures)),
    })
}

/// Says what speaks against the version.
fn is_bad(figures: &LimitFigures) -> Option<String> {
    let LimitFigures { canary, rest } = figures;
    if canary.requests < REQUESTS_MIN {
        return None;
    }
    if canary.over * 1_000 > OVER_PER_MILLE_MAX * canary.requests {
        return Some(format!("{}: more than 5 %", described(figures)));
    }
    // canary share > 10 * max(rest share, 0.1 %), without fractions; a rest too small to have a share has the least one.
    let (rest_over, rest_requests) = match rest.requests {
        REQUESTS_MIN.. if rest.over * 1_000 > REST_PER_MILLE_MIN * rest.requests => {
            (rest.over, rest.requests)
        }
        _ => (REST_PER_MILLE_MIN, 1_000),
    };
    let is_worse = u128::from(canary.over) * u128::from(rest_requests)
        > u128::from(REST_TIMES_MAX) * u128::from(rest_over) * u128::from(canary.requests);
    is_worse.then(|| format!("{}: more than ten times as many", described(figures)))
}

/// Writes the figures in words.
pub(super) fn described(figures: &LimitFigures) -> String {
    let LimitFigures { canary, rest } = figures;
    format!(
        "{} of {} requests of the keys it was tried on were over their limit, of the others {} of {}",
        canary.over, canary.requests, rest.over, rest.requests
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const CANARY_MS: u64 = 600_000;
    const UNDER_WAY: Watched = Watched { elapsed_ms: 300_000, watched_ms: 300_000 };
    const OVER: Watched = Watched { elapsed_ms: 600_000, watched_ms: 600_000 };

    fn figures(canary: (u64, u64), rest: (u64, u64)) -> LimitFigures {
        let counts = |(over, requests)| LimitCounts { requests, over };
        LimitFigures { canary: counts(canary), rest: counts(rest) }
    }

    fn rolls_back(canary: (u64, u64), rest: (u64, u64)) -> bool {
        matches!(judge(CANARY_MS, UNDER_WAY, &figures(canary, rest)), Verdict::RollBack(_))
    }

    #[test]
    fn more_than_five_percent_rolls_back_at_once() {
        assert!(rolls_back((51, 1_000), (51, 1_000)));
        assert!(!rolls_back((50, 1_000), (50, 1_000)));
    }

    #[test]
    fn more_than_ten_times_the_rest_rolls_back_at_once() {
        assert!(rolls_back((41, 1_000), (40, 10_000)));
        assert!(!rolls_back((40, 1_000), (40, 10_000)));
    }

    #[test]
    fn ten_times_nothing_is_one_percent() {
        for rest in [(0, 10_000), (0, 0), (1, 1)] {
            assert!(!rolls_back((10, 1_000), rest), "{rest:?}");
            assert!(rolls_back((11, 1_000), rest), "{rest:?}");
        }
    }

    #[test]
    fn a_few_requests_decide_nothing() {
        assert!(!rolls_back((99, 99), (0, 10_000)));
        assert!(rolls_back((100, 100), (0, 10_000)));
        let Verdict::Promote(detail) = judge(CANARY_MS, OVER, &figures((99, 99), (0, 0))) else {
            panic!("its time is over")
        };
        assert!(detail.contains("too few"), "{detail}");
    }

    #[test]
    fn a_version_is_promoted_when_its_time_is_over_and_not_before() {
        let good = figures((1, 1_000), (9, 9_000));
        assert_eq!(judge(CANARY_MS, UNDER_WAY, &good), Verdict::Wait);
        assert!(matches!(judge(CANARY_MS, OVER, &good), Verdict::Promote(_)));
        let bad = figures((60, 1_000), (9, 9_000));
        assert!(matches!(judge(CANARY_MS, OVER, &bad), Verdict::RollBack(_)), "bad figures go first");
    }

    #[test]
    fn a_share_without_keys_is_promoted_and_says_so() {
        let Verdict::Promote(detail) = judge(CANARY_MS, OVER, &figures((0, 0), (3, 9_000))) else {
            panic!("its time is over")
        };
        assert!(detail.contains("no key"), "{detail}");
    }

    #[test]
    fn neither_a_clock_put_forward_nor_a_node_that_was_down_promotes_unwatched() {
        let good = figures((1, 1_000), (9, 9_000));
        let jumped = Watched { elapsed_ms: 86_400_000, watched_ms: 59_999 };
        assert_eq!(judge(CANARY_MS, jumped, &good), Verdict::Wait);
        let watched = Watched { watched_ms: 60_000, ..jumped };
        assert!(matches!(judge(CANARY_MS, watched, &good), Verdict::Promote(_)));
        let put_back = Watched { elapsed_ms: -5, watched_ms: 900_000 };
        assert_eq!(judge(CANARY_MS, put_back, &good), Verdict::Wait);
        let brief = Watched { elapsed_ms: 500, watched_ms: 500 };
        assert!(
            matches!(judge(500, brief, &good), Verdict::Promote(_)),
            "a short canary is watched for its time"
        );
    }
}
