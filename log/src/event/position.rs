//! Where a copy stands: topic, partition, log generation and offset.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A named stream of the hot log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Topic {
    /// One record a copy of a click, keyed by campaign.
    AdClicks,
    /// One record a fraud verdict, keyed by campaign.
    FraudVerdicts,
    /// One record a budget decision, keyed by campaign; for those who serve ads. Nothing here reads it.
    BudgetDecisions,
}

impl Topic {
    /// Every topic of the log.
    pub const ALL: [Topic; 3] = [Topic::AdClicks, Topic::FraudVerdicts, Topic::BudgetDecisions];

    /// The topics that are archived: what bills are made of.
    pub const ARCHIVED: [Topic; 2] = [Topic::AdClicks, Topic::FraudVerdicts];

    /// Returns the name as it stands in paths and in Fluvio.
    pub fn name(self) -> &'static str {
        match self {
            Topic::AdClicks => "ad-clicks",
            Topic::FraudVerdicts => "fraud-verdicts",
            Topic::BudgetDecisions => "budget-decisions",
        }
    }

    /// Returns the topic called `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|topic| topic.name() == name)
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(formatter)
            }
        }
    };
}

number_id!(
    /// Partition of a topic: xxh3_64(campaign_id) mod the generation's partition count.
    PartitionId(u32)
);
number_id!(
    /// Generation of the log; fixes the partition count and the hash. The first is 0.
    Generation(u32)
);
number_id!(
    /// Offset of one record in one partition, as assigned by the log. Zero is a real record; negative never occurs.
    LogOffset(i64)
);

impl LogOffset {
    /// Returns the offset after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// Position of a copy in its partition. Positions of a later generation are above all of an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    pub generation: Generation,
    pub offset: LogOffset,
}

impl fmt::Display for Position {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.generation, self.offset)
    }
}
