//! One paragraph on what the numbers say, each sentence computed from them.
//!
//! Guarantee: a sentence that compares names the figure that is better, and is left out where one is not known. A
//! difference below a twentieth is called none: two runs of one path differ by as much.

use super::figures::Comparison;
use super::units;

/// Ratios nearer to 1 than this are no difference.
const SAME_WITHIN: f64 = 1.05;

/// Counts shorter than this cost more to start than to do.
const SHORT_SECONDS: f64 = 1.0;

/// How two figures, of which the lower is better, compare.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Better {
    /// Within a twentieth of each other.
    Same,
    Lambda {
        factor: f64,
    },
    Kappa {
        factor: f64,
    },
}

impl Better {
    /// Compares; `None` where a figure is not known or not positive.
    pub(super) fn of(lambda: f64, kappa: f64) -> Option<Self> {
        let known = |value: f64| value.is_finite() && value > 0.0;
        if !known(lambda) || !known(kappa) {
            return None;
        }
        let factor = lambda.max(kappa) / lambda.min(kappa);
        Some(match lambda < kappa {
            _ if factor < SAME_WITHIN => Better::Same,
            true => Better::Lambda { factor },
            false => Better::Kappa { factor },
        })
    }

    /// Returns the name of the better path and of the other, and the factor.
    fn names(self) -> Option<(&'static str, &'static str, f64)> {
        match self {
            Better::Same => None,
            Better::Lambda { factor } => Some(("lambda", "kappa", factor)),
            Better::Kappa { factor } => Some(("kappa", "lambda", factor)),
        }
    }
}

/// Writes the paragraph. Every other field of the comparison is final.
pub(super) fn conclude(comparison: &Comparison) -> String {
    let sentences = [
        Some(equality(comparison)),
        price(comparison),
        speed(comparison),
        memory(comparison),
        live(comparison),
        bill(comparison),
        lines(comparison),
        choice(comparison),
        caution(comparison),
    ];
    sentences.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

fn equality(comparison: &Comparison) -> String {
    let counted = &comparison.counted;
    let over = format!(
        "{} rows of {} hours, {} clicks",
        units::count(counted.rows as f64),
        counted.hours,
        units::count(counted.copies as f64)
    );
    if comparison.equal {
        return format!("Lambda and kappa agree: no row differs ({over}).");
    }
    let now = comparison.differences.rows_differing;
    let stored = stored_differing(comparison);
    let mut parts = Vec::new();
    if now > 0 {
        parts.push(format!("{} as counted now", units::count(now as f64)));
    }
    if stored > 0 {
        parts.push(format!("{} as billed on the same inputs", units::count(stored as f64)));
    }
    format!(
        "Lambda and kappa DIFFER: rows that differ: {} ({over}). One of the paths has a bug (G-7).",
        parts.join(", ")
    )
}

/// Returns how many stored rows differ where both paths billed the same inputs.
pub(super) fn stored_differing(comparison: &Comparison) -> u64 {
    let same = comparison.stored.iter().filter(|hour| hour.same_inputs);
    same.map(|hour| hour.differences.rows_differing).sum()
}

fn better_price(comparison: &Comparison) -> Option<Better> {
    let paths = &comparison.money.paths;
    Better::of(paths.lambda.total_per_million_clicks?, paths.kappa.total_per_million_clicks?)
}

fn better_memory(comparison: &Comparison) -> Option<Better> {
    let costs = &comparison.costs;
    Better::of(costs.lambda.rss_peak_bytes as f64, costs.kappa.rss_peak_bytes as f64)
}

fn price(comparison: &Comparison) -> Option<String> {
    let money = &comparison.money;
    let amounts = format!(
        "{} against {} {} a million clicks, lambda first",
        units::significant(money.paths.lambda.total_per_million_clicks?),
        units::significant(money.paths.kappa.total_per_million_clicks?),
        money.prices.currency
    );
    Some(match better_price(comparison)?.names() {
        None => format!("They cost the same at these prices ({amounts})."),
        Some((name, other, factor)) => {
            let name = capital(name);
            format!("{name} is cheaper: {other} costs {} as much ({amounts}).", units::times(factor))
        }
    })
}

fn speed(comparison: &Comparison) -> Option<String> {
    let costs = &comparison.costs;
    let better = Better::of(costs.lambda.cpu_seconds, costs.kappa.cpu_seconds)?;
    let figures = format!(
        "{} and {} of CPU, {} and {} by the clock",
        units::seconds(costs.lambda.cpu_seconds),
        units::seconds(costs.kappa.cpu_seconds),
        units::seconds(costs.lambda.wall_seconds),
        units::seconds(costs.kappa.wall_seconds)
    );
    Some(match better.names() {
        None => format!("Counting the same clicks took the same CPU (lambda and kappa: {figures})."),
        Some((name, other, factor)) => format!(
            "Counting the same clicks took {other} {} the CPU of {name} (lambda and kappa: {figures}).",
            units::times(factor)
        ),
    })
}

fn memory(comparison: &Comparison) -> Option<String> {
    let costs = &comparison.costs;
    let peaks = format!(
        "{} and {}",
        units::bytes(costs.lambda.rss_peak_bytes as f64),
        units::bytes(costs.kappa.rss_peak_bytes as f64)
    );
    Some(match better_memory(comparison)?.names() {
        None => format!("Their memory peaked alike (lambda and kappa: {peaks})."),
        Some((name, other, factor)) => format!(
            "{} needed less memory: {other} peaked at {} as much (lambda and kappa: {peaks}).",
            capital(name),
            units::times(factor)
        ),
    })
}

fn live(comparison: &Comparison) -> Option<String> {
    let arrival = comparison.freshness.value?.arrival;
    Some(format!(
        "Live numbers come from the stream whichever path bills: half of the clicks were visible within {} of their \
         arrival, 99 of 100 within {}.",
        units::seconds(arrival.p50_seconds),
        units::seconds(arrival.p99_seconds)
    ))
}

fn bill(comparison: &Comparison) -> Option<String> {
    let sides = &comparison.authoritative;
    let of = |name: &str, seconds: f64| format!("{name} {} (p50)", units::seconds(seconds));
    let times = (sides.lambda.seconds_after_end.value, sides.kappa.seconds_after_end.value);
    Some(match times {
        (Some(lambda), Some(kappa)) => format!(
            "From the end of an hour to its first bill it took {} and {}.",
            of("lambda", lambda.p50_seconds),
            of("kappa", kappa.p50_seconds)
        ),
        (Some(only), None) => {
            format!(
                "From the end of an hour to its first bill it took {}; kappa billed none.",
                of("lambda", only.p50_seconds)
            )
        }
        (None, Some(only)) => {
            format!(
                "From the end of an hour to its first bill it took {}; lambda billed none.",
                of("kappa", only.p50_seconds)
            )
        }
        (None, None) => return None,
    })
}

fn lines(comparison: &Comparison) -> Option<String> {
    let lines = &comparison.lines_of_code;
    let better = Better::of(lines.lambda as f64, lines.kappa as f64)?;
    let own =
        format!("lambda {}, kappa {}", units::count(lines.lambda as f64), units::count(lines.kappa as f64));
    Some(match better.names() {
        None => format!(
            "Beside the stream, which runs in any case, each takes as much code of its own ({own} lines)."
        ),
        Some((name, _, _)) => {
            format!(
                "Beside the stream, which runs in any case, {name} takes less code of its own ({own} lines)."
            )
        }
    })
}

/// What to choose when: nothing before every row agrees.
fn choice(comparison: &Comparison) -> Option<String> {
    if !comparison.equal {
        return Some("Choose neither on cost before the difference is explained: `twice audit` names the hour's inputs.".to_owned());
    }
    let name = |better: Option<Better>| better.and_then(Better::names).map(|(name, _, _)| name);
    let (cost, memory) = (better_price(comparison)?, better_memory(comparison)?);
    Some(match (name(Some(cost)), name(Some(memory))) {
        (Some(cost), Some(memory)) if cost == memory => {
            format!("On these clicks and this machine both money and memory speak for {cost}.")
        }
        (Some(cost), Some(memory)) => {
            format!(
                "On these clicks and this machine choose {cost} where money decides, {memory} where memory is scarce."
            )
        }
        (Some(cost), None) => {
            format!("On these clicks and this machine money speaks for {cost}, memory for neither.")
        }
        (None, Some(memory)) => {
            format!("On these clicks and this machine memory speaks for {memory}, money for neither.")
        }
        (None, None) => {
            "On these clicks and this machine neither money nor memory speaks for one of them.".to_owned()
        }
    })
}

/// What keeps these costs from being those of a day in service.
fn caution(comparison: &Comparison) -> Option<String> {
    let costs = &comparison.costs;
    let is_short = costs.lambda.wall_seconds.min(costs.kappa.wall_seconds) < SHORT_SECONDS;
    let is_slow = !comparison.versions.release_build;
    let reason = match (is_short, is_slow) {
        (true, true) => "a count took less than a second, and this is no release build",
        (true, false) => "a count took less than a second, much of it to start",
        (false, true) => "this is no release build",
        (false, false) => return None,
    };
    Some(format!("Take the costs with care: {reason}."))
}

fn capital(name: &str) -> String {
    units::sentence(name)
}
