//! The rules of a run: the exact texts by which it counted, kept in the archive as `rules/{sha256}.json`.
//!
//! Guarantee: whatever build reads a run's inputs later counts them by the texts they were recorded under, or says that
//! it cannot; the texts are in the archive before the first inputs that name them. Words: *rules* = the SQL of the bill,
//! the SQL of the causes, and the counting settings as JSON; `rules_sha256` is the hash over the three.
//!
//! `aggregates.sql` is no part of the rules: it splits a bill by ad and minute and cannot change it, as every run checks
//! that its aggregates sum to the bill before it commits. Under it in the hash, a better split would abandon open runs.

use serde::{Deserialize, Serialize};
use twice_log::archive::{Archive, CountingSettings, PutOutcome, RunInputs, layout};
use twice_log::event::Sha256Hex;

use super::BILLING_SQL;
use crate::compare::CAUSES_SQL;
use crate::error::{Error, Result};

/// The texts that decide how clicks are counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// The statement that makes the bill.
    pub billing_sql: String,
    /// The statement that lists differences by cause, settings not yet written in.
    pub causes_sql: String,
    /// Counting settings, as the JSON text the hash is over.
    pub settings: String,
}

impl Rules {
    /// Returns the rules of this build under `settings`.
    ///
    /// # Errors
    /// `Json` if the settings are none.
    pub fn of_build(settings: &CountingSettings) -> Result<Self> {
        let settings = serde_json::to_string(settings)
            .map_err(|source| Error::Json { what: "counting settings", source })?;
        Ok(Self { billing_sql: BILLING_SQL.to_owned(), causes_sql: CAUSES_SQL.to_owned(), settings })
    }

    /// Returns the rules a run was recorded under: this build's, or those the archive kept.
    ///
    /// # Errors
    /// `RulesMissing` if they are neither; `ArchiveDamage` if what the archive holds has another hash or other settings.
    pub async fn of_run(archive: &Archive, inputs: &RunInputs) -> Result<Self> {
        let present = Self::of_build(&inputs.settings)?;
        if present.sha256() == inputs.rules_sha256 {
            return Ok(present);
        }
        let path = layout::rules_path(&inputs.rules_sha256);
        let Some(bytes) = archive.get(&path).await? else {
            let run_id = format!("{}/{}/{:06}", inputs.path, inputs.hour, inputs.seq);
            return Err(Error::RulesMissing { run_id, path, present: present.sha256().0 });
        };
        let rules = Self::decode(&path, &inputs.rules_sha256, &bytes)?;
        let settings: CountingSettings = serde_json::from_str(&rules.settings)
            .map_err(|source| Error::Json { what: "counting settings", source })?;
        if settings != inputs.settings {
            let reason = "holds other settings than the inputs that name it".to_owned();
            return Err(Error::ArchiveDamage { path, reason });
        }
        Ok(rules)
    }

    /// Reads the rules kept at `path` and checks that they are those of `sha256`.
    ///
    /// # Errors
    /// `ArchiveDamage` if they are not.
    pub fn decode(path: &str, sha256: &Sha256Hex, bytes: &[u8]) -> Result<Self> {
        let damage = |reason: String| Error::ArchiveDamage { path: path.to_owned(), reason };
        let rules: Self = serde_json::from_slice(bytes)
            .map_err(|error| damage(format!("is not the JSON it must be: {error}")))?;
        match rules.sha256() {
            found if found == *sha256 => Ok(rules),
            found => Err(damage(format!("holds the rules {found}, its name says {sha256}"))),
        }
    }

    /// Returns the hash of the rules (CR-8).
    pub fn sha256(&self) -> Sha256Hex {
        // Lengths first, so that no text can pass for another's end.
        let texts = [&self.billing_sql, &self.causes_sql, &self.settings];
        let joined: String = texts.iter().map(|text| format!("{}\n{text}", text.len())).collect();
        Sha256Hex::of(joined.as_bytes())
    }

    /// Puts the rules into the archive if they are not there. MUST end before inputs that name them are put.
    ///
    /// # Errors
    /// `Log` if the archive fails; `ArchiveDamage` if other rules stand under their name.
    pub async fn put(&self, archive: &Archive) -> Result<()> {
        let sha256 = self.sha256();
        let path = layout::rules_path(&sha256);
        let bytes =
            serde_json::to_vec(self).map_err(|source| Error::Json { what: "counting rules", source })?;
        match archive.put_if_absent(&path, bytes.into()).await? {
            PutOutcome::Put => Ok(()),
            PutOutcome::Exists(stored) => Self::decode(&path, &sha256, &stored).map(|_| ()),
        }
    }

    /// Returns the statement that lists differences by cause, settings written in.
    pub(crate) fn causes(&self, settings: &CountingSettings) -> String {
        self.causes_sql
            .replace("{grace_ms}", &settings.grace_ms.to_string())
            .replace("{stream_dedup_ms}", &settings.stream_dedup_ms.to_string())
    }
}

/// Returns the hash of everything that decides how this build counts under `settings` (CR-8).
///
/// # Errors
/// `Json` if the settings are none.
pub fn rules_sha256(settings: &CountingSettings) -> Result<Sha256Hex> {
    Ok(Rules::of_build(settings)?.sha256())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_over_the_three_texts_with_their_lengths() {
        let rules = Rules {
            billing_sql: "SELECT 1".to_owned(),
            causes_sql: "SELECT 2".to_owned(),
            settings: "{}".to_owned(),
        };
        assert_eq!(rules.sha256(), Sha256Hex::of(b"8\nSELECT 18\nSELECT 22\n{}"));
    }

    #[test]
    fn rules_read_back_under_their_own_name_alone() {
        let rules = Rules::of_build(&CountingSettings::default()).expect("rules");
        let bytes = serde_json::to_vec(&rules).expect("json");
        assert_eq!(Rules::decode("rules/x.json", &rules.sha256(), &bytes).expect("reads"), rules);
        let other = Rules { billing_sql: "SELECT 0".to_owned(), ..rules }.sha256();
        assert!(Rules::decode("rules/x.json", &other, &bytes).is_err());
    }
}
