//! Identifiers and money as newtypes, each with the one check that makes it valid.

use std::fmt;
use std::str::FromStr;

use compact_str::CompactString;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Longest identifier accepted, in bytes.
pub const ID_BYTES_MAX: usize = 64;

/// Why a string is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The identifier is longer than [`ID_BYTES_MAX`]. The sender shortens or hashes it.
    #[error("is {bytes} bytes long; at most {ID_BYTES_MAX} are allowed")]
    TooLong { bytes: usize },
    /// The identifier holds a space, a control character or a byte outside ASCII.
    #[error("holds a character that is not visible ASCII at byte {at}")]
    NotVisibleAscii { at: usize },
    /// The identifier is required and empty.
    #[error("is empty")]
    Empty,
}

fn check(text: &str) -> Result<(), IdError> {
    if text.len() > ID_BYTES_MAX {
        return Err(IdError::TooLong { bytes: text.len() });
    }
    match text.bytes().position(|byte| !byte.is_ascii_graphic()) {
        Some(at) => Err(IdError::NotVisibleAscii { at }),
        None => Ok(()),
    }
}

macro_rules! string_id {
    ($(#[$doc:meta])* $name:ident, allow_empty = $allow_empty:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "CompactString", into = "CompactString")]
        pub struct $name(CompactString);

        impl $name {
            /// Checks and wraps `text`.
            ///
            /// # Errors
            /// [`IdError`] if the text is too long, empty where that is not allowed, or not visible ASCII.
            pub fn new(text: impl AsRef<str>) -> Result<Self, IdError> {
                let text = text.as_ref();
                check(text)?;
                if text.is_empty() && !$allow_empty {
                    return Err(IdError::Empty);
                }
                Ok(Self(CompactString::new(text)))
            }

            /// Returns the identifier as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// Returns whether the identifier is empty, which means absent.
            pub fn is_empty(&self) -> bool {
                self.0.is_empty()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl TryFrom<CompactString> for $name {
            type Error = IdError;
            fn try_from(text: CompactString) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl From<$name> for CompactString {
            fn from(id: $name) -> CompactString {
                id.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

string_id!(
    /// Campaign of a click. Decides the partition. Never empty.
    CampaignId, allow_empty = false
);
string_id!(
    /// Ad that was clicked; empty where the sender named none.
    #[derive(Default)]
    AdId, allow_empty = true
);
string_id!(
    /// Pseudonym of the user who clicked; empty where there is none or its month key is destroyed.
    #[derive(Default)]
    UserId, allow_empty = true
);
string_id!(
    /// Publisher that showed the ad; empty where the sender named none, and in records of schema version 1.
    #[derive(Default)]
    PublisherId, allow_empty = true
);

string_id!(
    /// Version of the fraud model that ruled; may be empty.
    #[derive(Default)]
    ModelVersion, allow_empty = true
);

/// Identity of a click within its campaign: a UUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClickId(pub Uuid);

impl ClickId {
    /// Derives the identity of a click that came without one, from a name that a retry repeats (CR-1).
    pub fn derived(name: &str) -> Self {
        Self(Uuid::new_v5(&namespace_click(), name.as_bytes()))
    }

    /// Returns the 16 bytes of the UUID, in network order.
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// Wraps 16 bytes in network order.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }
}

impl fmt::Display for ClickId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// Returns the namespace of derived click ids: UUIDv5(URL namespace, "https://count-twice/click").
pub fn namespace_click() -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_URL, b"https://count-twice/click")
}

/// Money in millionths of its currency's unit. Never a float.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Micros(pub i64);

/// ISO 4217 code of a currency: three upper-case letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "CompactString", into = "CompactString")]
pub struct Currency([u8; 3]);

impl Currency {
    /// Returns the code.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("???")
    }
}

impl FromStr for Currency {
    type Err = CurrencyError;
    fn from_str(text: &str) -> Result<Self, CurrencyError> {
        let code: [u8; 3] = text.as_bytes().try_into().map_err(|_| CurrencyError)?;
        if code.iter().all(u8::is_ascii_uppercase) { Ok(Self(code)) } else { Err(CurrencyError) }
    }
}

impl TryFrom<CompactString> for Currency {
    type Error = CurrencyError;
    fn try_from(text: CompactString) -> Result<Self, CurrencyError> {
        text.parse()
    }
}

impl From<Currency> for CompactString {
    fn from(currency: Currency) -> CompactString {
        CompactString::new(currency.as_str())
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// The text is no ISO 4217 code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not an ISO 4217 code of three upper-case letters, such as USD")]
pub struct CurrencyError;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_of_65_bytes_is_refused() {
        assert_eq!(CampaignId::new("c".repeat(65)), Err(IdError::TooLong { bytes: 65 }));
        assert!(CampaignId::new("c".repeat(64)).is_ok());
    }

    #[test]
    fn an_empty_campaign_is_refused_and_an_empty_ad_is_absent() {
        assert_eq!(CampaignId::new(""), Err(IdError::Empty));
        assert!(AdId::new("").is_ok_and(|ad| ad.is_empty()));
    }

    #[test]
    fn spaces_and_accents_are_refused_with_their_place() {
        assert_eq!(CampaignId::new("a b"), Err(IdError::NotVisibleAscii { at: 1 }));
        assert_eq!(CampaignId::new("é"), Err(IdError::NotVisibleAscii { at: 0 }));
    }

    #[test]
    fn derived_ids_repeat_for_the_same_name() {
        assert_eq!(ClickId::derived("key::abc:0"), ClickId::derived("key::abc:0"));
        assert_ne!(ClickId::derived("key::abc:0"), ClickId::derived("key::abc:1"));
    }
}
