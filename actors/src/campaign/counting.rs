//! What counting for the stream and counting for the bill have in common, and what they may decide for themselves.
//!
//! Guarantee: both go through one [`CampaignState`](super::CampaignState), which judges each copy once and in order; a way
//! of counting says no more than what a copy is, what is remembered of it, and what it is counted into. Every type is
//! known when the code is compiled: the stream pays nothing for the bill's rules.

use std::fmt::Debug;

/// What became of one copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Counted.
    Counted,
    /// Not counted: another copy of the identity stands before it, within the horizon.
    Duplicate,
    /// A duplicate that contradicts the winner (CR-2). Only the bill tells it from other duplicates.
    Conflict,
    /// Not counted: its window had closed, or its hour is sealed. The batch path counts it.
    Late,
    /// Of no hour asked for, or above its cutoff: remembered, as a later copy may be a duplicate of it. The bill only.
    Remembered,
    /// Applied before; nothing changed.
    Replayed,
}

/// One way of counting.
pub trait Counting: Debug + Sized {
    /// A copy, with what this way of counting reads of it.
    type Copy;
    /// Where a copy stands among those of its campaign.
    type Place: Copy + Ord + Debug;
    /// Where the copies of an hour end that may be counted.
    type Ends: ?Sized;
    /// The identities remembered.
    type Seen: Debug;
    /// What copies are counted into.
    type Counts: Debug + Default;
    /// What a store holds of the state.
    type Saved: Debug + Default;

    /// Returns the identities of a campaign that was never seen.
    fn nothing_seen(&self) -> Self::Seen;

    /// Returns where a copy stands.
    fn place(copy: &Self::Copy) -> Self::Place;

    /// Judges a copy against those before it, and remembers it.
    fn judge(&self, seen: &mut Self::Seen, copy: &Self::Copy, ends: &Self::Ends) -> Outcome;

    /// Counts a copy as it was judged; never one that was applied before.
    fn count(&self, counts: &mut Self::Counts, copy: Self::Copy, outcome: Outcome);
}
