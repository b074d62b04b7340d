//! A batch and what an answer means for each of its copies. No I/O: bytes in, decisions out.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::ledger::{ATTEMPTS_ANY, Settled};

/// A copy that is not settled yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pending {
    pub sequence: u64,
    /// Sends so far that may or may not have stored it.
    pub attempts_unknown: u32,
}

impl Pending {
    /// A copy never sent.
    pub fn new(sequence: u64) -> Self {
        Self { sequence, attempts_unknown: 0 }
    }

    /// A copy that an earlier life of this process may have sent.
    pub fn perhaps_sent(sequence: u64) -> Self {
        Self { sequence, attempts_unknown: ATTEMPTS_ANY }
    }

    fn settled(self, acknowledged: bool, rejected: Option<String>) -> Settled {
        Settled { sequence: self.sequence, acknowledged, attempts_unknown: self.attempts_unknown, rejected }
    }

    /// Returns the row of a copy nobody will send again.
    pub fn given_up(self) -> Settled {
        self.settled(false, None)
    }

    /// Returns the row of a copy whose whole request was refused with `code`.
    pub fn refused(self, code: &str) -> Settled {
        self.settled(false, Some(code.to_owned()))
    }
}

/// Some copies in one request.
#[derive(Debug)]
pub struct Batch {
    /// When the schedule wants it out; latency counts from here.
    pub due: Instant,
    pub copies: Vec<Pending>,
    /// The copies in the form asked for, in order.
    pub body: bytes::Bytes,
}

/// The answer to `POST /v1/clicks`; other fields are of no interest here.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Answer {
    pub accepted: usize,
    #[serde(default)]
    pub rejected: Vec<Refusal>,
    #[serde(default)]
    pub retry: Vec<usize>,
}

/// One entry of `rejected`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Refusal {
    pub index: usize,
    pub code: String,
}

impl Answer {
    /// Reads an answer.
    ///
    /// # Errors
    /// If the body has another shape.
    pub fn read(body: &[u8]) -> Result<Self> {
        serde_json::from_slice(body).context("the answer is not that of POST /v1/clicks")
    }
}

/// Settles what the answer settles; what it asks to send again stays in `copies`, its outcome of this send unknown.
///
/// # Errors
/// If the answer does not account for every copy exactly once: then nothing is known of any, and `copies` is unchanged.
pub fn settle(copies: &mut Vec<Pending>, answer: &Answer) -> Result<Vec<Settled>> {
    let mut fates: Vec<Option<&str>> = vec![None; copies.len()];
    const RETRY: &str = "";
    for refusal in &answer.rejected {
        let fate = fates.get_mut(refusal.index).context("the answer rejects a click that was not sent")?;
        ensure!(fate.is_none(), "the answer names click {} twice", refusal.index);
        *fate = Some(if refusal.code.is_empty() { "unnamed" } else { &refusal.code });
    }
    for index in &answer.retry {
        let fate = fates.get_mut(*index).context("the answer wants a click again that was not sent")?;
        ensure!(fate.is_none(), "the answer names click {index} twice");
        *fate = Some(RETRY);
    }
    let accepted = fates.iter().filter(|fate| fate.is_none()).count();
    ensure!(
        accepted == answer.accepted,
        "the answer accepts {} clicks where {accepted} are neither rejected nor to be sent again",
        answer.accepted
    );
    let mut settled = Vec::with_capacity(copies.len());
    let mut again = Vec::with_capacity(answer.retry.len());
    for (copy, fate) in copies.iter().zip(fates) {
        match fate {
            None => settled.push(copy.settled(true, None)),
            Some(RETRY) => again.push(Pending { attempts_unknown: copy.attempts_unknown + 1, ..*copy }),
            Some(code) => settled.push(copy.refused(code)),
        }
    }
    *copies = again;
    Ok(settled)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copies(count: u64) -> Vec<Pending> {
        (100..100 + count).map(Pending::new).collect()
    }

    #[test]
    fn each_copy_is_accepted_rejected_or_sent_again() {
        let mut pending = copies(4);
        let body = br#"{"accepted":2,"rejected":[{"index":1,"code":"too_old","detail":"x"}],"retry":[3],"click_ids":{}}"#;
        let settled = settle(&mut pending, &Answer::read(body).expect("readable")).expect("consistent");
        let rows: Vec<_> =
            settled.iter().map(|row| (row.sequence, row.acknowledged, row.rejected.as_deref())).collect();
        assert_eq!(rows, [(100, true, None), (101, false, Some("too_old")), (102, true, None)]);
        assert_eq!(pending, [Pending { sequence: 103, attempts_unknown: 1 }]);
    }

    #[test]
    fn what_is_sent_again_keeps_its_unknown_sends_when_it_is_accepted() {
        let mut pending = copies(1);
        let again = Answer { accepted: 0, rejected: Vec::new(), retry: vec![0] };
        for _ in 0..2 {
            assert!(settle(&mut pending, &again).expect("consistent").is_empty());
        }
        let accepted = Answer { accepted: 1, rejected: Vec::new(), retry: Vec::new() };
        let settled = settle(&mut pending, &accepted).expect("consistent");
        assert_eq!((settled[0].acknowledged, settled[0].attempts_unknown), (true, 2));
        assert!(pending.is_empty());
    }

    #[test]
    fn an_answer_that_does_not_add_up_settles_nothing() {
        let refusal = |index| Refusal { index, code: "malformed".to_owned() };
        let wrong = [
            Answer { accepted: 3, rejected: Vec::new(), retry: Vec::new() },
            Answer { accepted: 1, rejected: vec![refusal(2)], retry: Vec::new() },
            Answer { accepted: 1, rejected: vec![refusal(1)], retry: vec![1] },
            Answer { accepted: 0, rejected: vec![refusal(0), refusal(0)], retry: Vec::new() },
        ];
        for answer in wrong {
            let mut pending = copies(2);
            assert!(settle(&mut pending, &answer).is_err(), "{answer:?}");
            assert_eq!(pending, copies(2));
        }
        assert!(Answer::read(b"<html>").is_err());
    }
}
