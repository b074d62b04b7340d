//! Fraud verdicts on click identities.

use serde::{Deserialize, Serialize};

use super::{CampaignId, ClickId, ModelVersion, PartitionId, Position, UtcMillis};

/// What a fraud ruling says of a click.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VerdictClass {
    /// The click counts.
    Valid,
    /// General invalid traffic.
    Givt,
    /// Sophisticated invalid traffic.
    Sivt,
}

impl VerdictClass {
    /// Returns the name as it stands in the archive and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            VerdictClass::Valid => "valid",
            VerdictClass::Givt => "givt",
            VerdictClass::Sivt => "sivt",
        }
    }
}

/// One fraud ruling on an identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    pub campaign_id: CampaignId,
    pub click_id: ClickId,
    pub verdict: VerdictClass,
    /// At most 64 bytes of visible ASCII; may be empty.
    pub model_version: ModelVersion,
    pub decided_at: UtcMillis,
    pub click_event_time: Option<UtcMillis>,
    pub arrival_time: UtcMillis,
    pub schema_version: u8,
}

/// One stored record of a verdict, with its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerdictCopy {
    pub partition: PartitionId,
    pub position: Position,
    pub verdict: Verdict,
}
