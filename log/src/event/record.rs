//! The compact binary record of a click or verdict: what the hot log stores.
//!
//! Layout, little endian: `kind u8, schema_version u8, arrival_time i64, click_id [16], event_time i64`, then strings,
//! each with a length byte. A click of version 1 goes on with `campaign_id, ad_id, user_id`; version 2 adds
//! `publisher_id` and `ip_hash` (length 0 or 16). A verdict has `decided_at` in place of `event_time`, then
//! `verdict u8, campaign_id, model_version` and `click_event_time` (length 0 or 8). Nothing may follow.

use super::{
    AdId, CampaignId, Click, ClickId, IpHash, ModelVersion, PublisherId, UserId, UtcMillis, Verdict,
    VerdictClass,
};

const KIND_CLICK: u8 = 1;
const KIND_VERDICT: u8 = 2;

/// Why bytes are not a record. Such a record is put into quarantine; it is never skipped unseen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The bytes end inside a field.
    #[error("record ends inside {field}")]
    Truncated { field: &'static str },
    /// Bytes follow the last field.
    #[error("{bytes} bytes follow the record's last field")]
    Trailing { bytes: usize },
    /// The first byte names another kind of record.
    #[error("record kind {kind} is not the expected {expected}")]
    Kind { kind: u8, expected: u8 },
    /// The schema version is not one this build reads.
    #[error("schema version {version} is unknown to this build")]
    Version { version: u8 },
    /// A field's value breaks its rule.
    #[error("{field} is not valid")]
    Field { field: &'static str },
}

/// Appends the record of `click`, in its schema version, to `out`.
pub fn encode_click(click: &Click, out: &mut Vec<u8>) {
    out.extend_from_slice(&[KIND_CLICK, click.schema_version]);
    out.extend_from_slice(&click.arrival_time.epoch_ms().to_le_bytes());
    out.extend_from_slice(click.click_id.as_bytes());
    out.extend_from_slice(&click.event_time.epoch_ms().to_le_bytes());
    put_bytes(out, click.campaign_id.as_str().as_bytes());
    put_bytes(out, click.ad_id.as_str().as_bytes());
    put_bytes(out, click.user_id.as_str().as_bytes());
    if click.schema_version >= 2 {
        put_bytes(out, click.publisher_id.as_str().as_bytes());
        put_bytes(out, click.ip_hash.as_ref().map_or(&[], IpHash::as_slice));
    }
}

/// Reads the record of a click and upgrades it to the latest schema by defaults.
///
/// # Errors
/// [`RecordError`] naming the field; never panics, whatever the bytes.
pub fn decode_click(bytes: &[u8]) -> Result<Click, RecordError> {
    let mut input = Input { bytes };
    let schema_version = input.header(KIND_CLICK)?;
    if !(1..=super::SCHEMA_VERSION_LATEST).contains(&schema_version) {
        return Err(RecordError::Version { version: schema_version });
    }
    let arrival_time = input.time("arrival_time")?;
    let click_id = ClickId::from_bytes(input.array("click_id")?);
    let event_time = input.time("event_time")?;
    let campaign_id = CampaignId::new(input.text("campaign_id")?).map_err(|_| bad("campaign_id"))?;
    let ad_id = AdId::new(input.text("ad_id")?).map_err(|_| bad("ad_id"))?;
    let user_id = UserId::new(input.text("user_id")?).map_err(|_| bad("user_id"))?;
    let (publisher_id, ip_hash) = if schema_version >= 2 {
        let publisher_id = PublisherId::new(input.text("publisher_id")?).map_err(|_| bad("publisher_id"))?;
        (publisher_id, input.optional::<16>("ip_hash")?)
    } else {
        (PublisherId::default(), None)
    };
    input.finish()?;
    Ok(Click {
        campaign_id,
        click_id,
        ad_id,
        user_id,
        publisher_id,
        event_time,
        arrival_time,
        ip_hash,
        schema_version,
    })
}

/// Reads when the click or verdict of a record arrived; `None` if the bytes do not tell.
pub fn arrival_time(bytes: &[u8]) -> Option<UtcMillis> {
    let arrival = bytes.get(2..10)?.try_into().ok()?;
    UtcMillis::new(i64::from_le_bytes(arrival)).ok()
}

/// Appends the record of `verdict` to `out`.
pub fn encode_verdict(verdict: &Verdict, out: &mut Vec<u8>) {
    out.extend_from_slice(&[KIND_VERDICT, verdict.schema_version]);
    out.extend_from_slice(&verdict.arrival_time.epoch_ms().to_le_bytes());
    out.extend_from_slice(verdict.click_id.as_bytes());
    out.extend_from_slice(&verdict.decided_at.epoch_ms().to_le_bytes());
    out.push(match verdict.verdict {
        VerdictClass::Valid => 0,
        VerdictClass::Givt => 1,
        VerdictClass::Sivt => 2,
    });
    put_bytes(out, verdict.campaign_id.as_str().as_bytes());
    put_bytes(out, verdict.model_version.as_str().as_bytes());
    match verdict.click_event_time {
        Some(time) => put_bytes(out, &time.epoch_ms().to_le_bytes()),
        None => put_bytes(out, &[]),
    }
}

/// Reads the record of a verdict.
///
/// # Errors
/// [`RecordError`] naming the field; never panics, whatever the bytes.
pub fn decode_verdict(bytes: &[u8]) -> Result<Verdict, RecordError> {
    let mut input = Input { bytes };
    let schema_version = input.header(KIND_VERDICT)?;
    if schema_version != 1 {
        return Err(RecordError::Version { version: schema_version });
    }
    let arrival_time = input.time("arrival_time")?;
    let click_id = ClickId::from_bytes(input.array("click_id")?);
    let decided_at = input.time("decided_at")?;
    let verdict = match input.array::<1>("verdict")? {
        [0] => VerdictClass::Valid,
        [1] => VerdictClass::Givt,
        [2] => VerdictClass::Sivt,
        _ => return Err(bad("verdict")),
    };
    let campaign_id = CampaignId::new(input.text("campaign_id")?).map_err(|_| bad("campaign_id"))?;
    let model_version = ModelVersion::new(input.text("model_version")?).map_err(|_| bad("model_version"))?;
    let click_event_time = match input.optional::<8>("click_event_time")? {
        Some(bytes) => Some(UtcMillis::new(i64::from_le_bytes(bytes)).map_err(|_| bad("click_event_time"))?),
        None => None,
    };
    input.finish()?;
    Ok(Verdict {
        campaign_id,
        click_id,
        verdict,
        model_version,
        decided_at,
        click_event_time,
        arrival_time,
        schema_version,
    })
}

fn bad(field: &'static str) -> RecordError {
    RecordError::Field { field }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    debug_assert!(bytes.len() <= 255, "identifiers are at most 64 bytes");
    out.push(bytes.len() as u8);
    out.extend_from_slice(bytes);
}

struct Input<'a> {
    bytes: &'a [u8],
}

impl<'a> Input<'a> {
    fn take(&mut self, length: usize, field: &'static str) -> Result<&'a [u8], RecordError> {
        let (head, tail) = self.bytes.split_at_checked(length).ok_or(RecordError::Truncated { field })?;
        self.bytes = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], RecordError> {
        self.take(N, field)?.try_into().map_err(|_| RecordError::Truncated { field })
    }

    fn header(&mut self, expected: u8) -> Result<u8, RecordError> {
        let [kind, version] = self.array("header")?;
        if kind == expected { Ok(version) } else { Err(RecordError::Kind { kind, expected }) }
    }

    fn time(&mut self, field: &'static str) -> Result<UtcMillis, RecordError> {
        UtcMillis::new(i64::from_le_bytes(self.array(field)?)).map_err(|_| bad(field))
    }

    fn counted(&mut self, field: &'static str) -> Result<&'a [u8], RecordError> {
        let [length] = self.array(field)?;
        self.take(usize::from(length), field)
    }

    fn text(&mut self, field: &'static str) -> Result<&'a str, RecordError> {
        std::str::from_utf8(self.counted(field)?).map_err(|_| bad(field))
    }

    fn optional<const N: usize>(&mut self, field: &'static str) -> Result<Option<[u8; N]>, RecordError> {
        let bytes = self.counted(field)?;
        if bytes.is_empty() { Ok(None) } else { bytes.try_into().map(Some).map_err(|_| bad(field)) }
    }

    fn finish(self) -> Result<(), RecordError> {
        if self.bytes.is_empty() { Ok(()) } else { Err(RecordError::Trailing { bytes: self.bytes.len() }) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn click(version: u8) -> Click {
        Click {
            campaign_id: CampaignId::new("camp_123").expect("valid"),
            click_id: ClickId::derived("one"),
            ad_id: AdId::new("ad_9").expect("valid"),
            user_id: UserId::new("u_7").expect("valid"),
            publisher_id: PublisherId::new(if version >= 2 { "pub_4" } else { "" }).expect("valid"),
            event_time: UtcMillis::clamped(1_736_942_400_123),
            arrival_time: UtcMillis::clamped(1_736_942_400_456),
            ip_hash: (version >= 2).then_some([7; 16]),
            schema_version: version,
        }
    }

    #[test]
    fn a_click_of_each_version_reads_back_equal() {
        for version in [1, 2] {
            let mut bytes = Vec::new();
            encode_click(&click(version), &mut bytes);
            assert_eq!(decode_click(&bytes), Ok(click(version)));
        }
    }

    fn verdict(click_event_time: Option<UtcMillis>) -> Verdict {
        Verdict {
            campaign_id: CampaignId::new("c").expect("valid"),
            click_id: ClickId::derived("one"),
            verdict: VerdictClass::Sivt,
            model_version: ModelVersion::new("m1").expect("valid"),
            decided_at: UtcMillis::clamped(1),
            click_event_time,
            arrival_time: UtcMillis::clamped(2),
            schema_version: 1,
        }
    }

    // Stored logs hold these bytes: a failure here means that old records would be read wrongly, not a test to update.
    #[test]
    fn the_bytes_of_each_record_do_not_drift() {
        for (version, golden) in [(1, GOLDEN_CLICK_V1), (2, GOLDEN_CLICK_V2)] {
            let mut bytes = Vec::new();
            encode_click(&click(version), &mut bytes);
            assert_eq!(hex(&bytes), golden, "click of version {version}");
        }
        let mut bytes = Vec::new();
        encode_verdict(&verdict(Some(UtcMillis::clamped(5))), &mut bytes);
        assert_eq!(hex(&bytes), GOLDEN_VERDICT_V1);
    }
    const GOLDEN_CLICK_V1: &str = "0101c8b3d569940100009bf7facae0fc5e9c98d78f3494c92e7e7bb2d569940100000863616d705f3132330461645f3903755f37";
    const GOLDEN_CLICK_V2: &str = "0102c8b3d569940100009bf7facae0fc5e9c98d78f3494c92e7e7bb2d569940100000863616d705f3132330461645f3903755f37057075625f341007070707070707070707070707070707";
    const GOLDEN_VERDICT_V1: &str =
        "020102000000000000009bf7facae0fc5e9c98d78f3494c92e7e0100000000000000020163026d31080500000000000000";

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn a_verdict_reads_back_equal() {
        for click_event_time in [None, Some(UtcMillis::clamped(5))] {
            let verdict = verdict(click_event_time);
            let mut bytes = Vec::new();
            encode_verdict(&verdict, &mut bytes);
            assert_eq!(decode_verdict(&bytes), Ok(verdict));
        }
    }

    #[test]
    fn a_record_cut_anywhere_or_lengthened_is_refused() {
        let mut bytes = Vec::new();
        encode_click(&click(2), &mut bytes);
        for length in 0..bytes.len() {
            assert!(decode_click(&bytes[..length]).is_err(), "cut at {length}");
        }
        bytes.push(0);
        assert_eq!(decode_click(&bytes), Err(RecordError::Trailing { bytes: 1 }));

        let mut bytes = Vec::new();
        encode_verdict(&verdict(None), &mut bytes);
        for length in 0..bytes.len() {
            assert!(decode_verdict(&bytes[..length]).is_err(), "verdict cut at {length}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic_the_decoders(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_click(&bytes);
            let _ = decode_verdict(&bytes);
        }
    }
}
