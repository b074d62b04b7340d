//! Cuts a replay into slices that fit the memory, by what the files' row groups say of their campaigns.
//!
//! Guarantee: each identity lies in exactly one slice, so the slices' counts add up. Where row groups say too little, or a
//! campaign is too big, a range of campaigns is shared out by a hash of `click_id`. No estimate here can change a count.

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

/// Rows of one row group and the campaigns they lie between, both inclusive. `None`: unknown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Extent {
    pub campaigns: Option<(String, String)>,
    pub rows: u64,
}

/// What is counted at once: campaigns from `from` (inclusive) to `to` (exclusive), of these one part of the ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Slice {
    pub from: Option<String>,
    pub to: Option<String>,
    /// (index, parts).
    pub part: (u64, u64),
}

impl Slice {
    /// The slice that holds everything.
    pub fn all() -> Self {
        Self { from: None, to: None, part: (0, 1) }
    }

    /// Returns whether it may have rows of a row group.
    pub fn may_hold(&self, extent: &Extent) -> bool {
        extent.campaigns.as_ref().is_none_or(|(low, high)| {
            self.from.as_ref().is_none_or(|from| from <= high) && self.to.as_ref().is_none_or(|to| low < to)
        })
    }

    /// Returns whether it has rows of a campaign.
    pub fn holds_campaign(&self, campaign: &str) -> bool {
        self.from.as_deref().is_none_or(|from| from <= campaign)
            && self.to.as_deref().is_none_or(|to| campaign < to)
    }

    /// Returns whether it has the copies of an id, where it has the campaign.
    #[inline]
    pub fn holds_id(&self, click_id: &[u8]) -> bool {
        let (index, parts) = self.part;
        parts == 1 || xxh3_64(click_id) % parts == index
    }

    /// Returns two slices that have together what this one has.
    pub fn halves(&self) -> [Self; 2] {
        let (index, parts) = self.part;
        [index, index + parts].map(|half| Self { part: (half, 2 * parts), ..self.clone() })
    }
}

/// Cuts rows into slices of about `rows_max`, in order of campaigns.
pub(super) fn cut(extents: &[Extent], rows_max: u64) -> Vec<Slice> {
    let rows: u64 = extents.iter().map(|extent| extent.rows).sum();
    if rows <= rows_max {
        return vec![Slice::all()];
    }
    let mut bounds = bounds(extents);
    bounds.dedup();
    let weights = weights(extents, &bounds);
    // Bounds cut the campaigns into one range more than there are bounds; neighbours are joined while they fit.
    let mut slices = Vec::new();
    let mut from: Option<String> = None;
    let mut weight = 0.0;
    for (index, next) in weights.iter().enumerate() {
        if weight > 0.0 && weight + next > rows_max as f64 {
            let to = bounds.get(index - 1).cloned();
            slices.extend(shares(from.take(), to.clone(), weight, rows_max));
            (from, weight) = (to, 0.0);
        }
        weight += next;
    }
    slices.extend(shares(from, None, weight, rows_max));
    slices
}

/// Returns the places where row groups begin, and behind those that hold one campaign only; never the very first.
fn bounds(extents: &[Extent]) -> Vec<String> {
    let known = extents.iter().filter_map(|extent| extent.campaigns.as_ref());
    let mut bounds: Vec<String> = known
        .flat_map(|(low, high)| [Some(low.clone()), (low == high).then(|| format!("{low}\0"))])
        .flatten()
        .collect();
    bounds.sort_unstable();
    let first = bounds.first().cloned();
    bounds.retain(|bound| Some(bound) != first.as_ref());
    bounds
}

/// Estimates the rows between two bounds: a row group's rows are spread evenly over the ranges it touches.
fn weights(extents: &[Extent], bounds: &[String]) -> Vec<f64> {
    let mut steps = vec![0.0; bounds.len() + 2];
    for extent in extents {
        let (first, last) = match &extent.campaigns {
            Some((low, high)) => {
                (bounds.partition_point(|bound| bound <= low), bounds.partition_point(|bound| bound <= high))
            }
            None => (0, bounds.len()),
        };
        let share = extent.rows as f64 / (last - first + 1) as f64;
        steps[first] += share;
        steps[last + 1] -= share;
    }
    let mut sum = 0.0;
    let running = steps.iter().take(bounds.len() + 1).map(|step| {
        sum += step;
        f64::max(sum, 0.0)
    });
    running.collect()
}

/// Shares a range out over as many slices as its rows take.
fn shares(from: Option<String>, to: Option<String>, rows: f64, rows_max: u64) -> impl Iterator<Item = Slice> {
    let parts = (rows / rows_max.max(1) as f64).ceil().clamp(1.0, 65_536.0) as u64;
    (0..parts).map(move |index| Slice { from: from.clone(), to: to.clone(), part: (index, parts) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(low: &str, high: &str, rows: u64) -> Extent {
        Extent { campaigns: Some((low.to_owned(), high.to_owned())), rows }
    }

    fn holders(slices: &[Slice], campaign: &str, id: &[u8]) -> usize {
        slices.iter().filter(|slice| slice.holds_campaign(campaign) && slice.holds_id(id)).count()
    }

    #[test]
    fn every_identity_lies_in_exactly_one_slice() {
        let extents = [
            extent("a", "c", 10),
            extent("c", "f", 10),
            extent("m", "m", 100),
            extent("f", "z", 10),
            extent("a", "z", 3),
            Extent { campaigns: None, rows: 4 },
        ];
        for rows_max in [1, 7, 12, 50, 100, 1_000] {
            let slices = cut(&extents, rows_max);
            for campaign in ["0", "a", "b", "c", "ca", "f", "m", "m\0", "n", "zz"] {
                for id in 0..50_u8 {
                    assert_eq!(holders(&slices, campaign, &[id; 16]), 1, "{campaign} in {slices:?}");
                }
            }
        }
    }

    #[test]
    fn a_campaign_too_big_for_one_slice_is_shared_out_and_its_neighbours_are_not() {
        let extents =
            [extent("a", "b", 5), extent("m", "m", 100), extent("m", "m", 100), extent("n", "z", 5)];
        let slices = cut(&extents, 50);
        let parts: Vec<_> = slices.iter().map(|slice| (slice.from.as_deref(), slice.part)).collect();
        let big = (0..4).map(|index| (Some("m"), (index, 4)));
        let expected: Vec<_> =
            [(None, (0, 1))].into_iter().chain(big).chain([(Some("m\0"), (0, 1))]).collect();
        assert_eq!(parts, expected);
    }

    #[test]
    fn halves_have_what_the_whole_had() {
        let slice = Slice { from: None, to: None, part: (1, 3) };
        for id in 0..200_u8 {
            let held = slice.halves().iter().filter(|half| half.holds_id(&[id; 16])).count();
            assert_eq!(held, usize::from(slice.holds_id(&[id; 16])));
        }
    }
}
