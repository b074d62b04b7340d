//! The certificate: what was examined, what was found, and a hash by which two audits are compared.
//!
//! Guarantee: two audits of the same thing by the same build have the same `certificate_sha256`. It is the SHA-256 of the
//! certificate as canonical JSON: keys in order, no spaces, UTF-8, and without `certificate_sha256`, `audited_at` and
//! `figures`. In Python:
//!
//! ```python
//! for name in ("certificate_sha256", "audited_at", "figures"): del certificate[name]
//! text = json.dumps(certificate, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
//! digest = hashlib.sha256(text.encode()).hexdigest()
//! ```

use serde::{Deserialize, Serialize};
use serde_json::Value;
use twice_log::archive::{
    BillingPath, BillingStatus, CountingSettings, Cutoff, FileEntry, Rate, RunOutcome, SealInput,
};
use twice_log::event::Sha256Hex;
use twice_log::{CampaignId, Hour, UtcMillis};
use twice_store::BillingCounts;

use super::deleted::DeletedFiles;
use crate::error::{Error, Result};

/// Name of this form of certificate.
pub const FORMAT: &str = "count-twice certificate 1";
/// What the hash leaves out: it differs between two audits of the same thing.
const NOT_HASHED: [&str; 3] = ["certificate_sha256", "audited_at", "figures"];

/// How an audit ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AuditVerdict {
    /// Every check passed: the bill follows from the archive.
    Proved,
    /// Every record agrees with every other, and the raw records were deleted under retention: nobody can count them again.
    Attested,
    /// At least one check found something.
    NotProved,
}

/// What an audit looked for; each is one line of the certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// Manifest chains, their heads and the cutoffs recorded.
    Chains,
    /// Inputs and result of every run of the hour, and their order.
    Records,
    /// File lists of the inputs against the manifests.
    FileLists,
    Seals,
    Rules,
    Rates,
    /// SHA-256, size and rows of each data file read.
    Files,
    /// The rows and runs of the billing store against the results in the archive.
    Store,
    /// The rows counted again against both.
    Recount,
    /// Tombstones and what was settled, where raw records were deleted; it takes the place of the recount.
    Deleted,
}

impl Check {
    /// Every check, in the order they are shown.
    pub const ALL: [Check; 10] = [
        Check::Chains,
        Check::Records,
        Check::FileLists,
        Check::Seals,
        Check::Rules,
        Check::Rates,
        Check::Files,
        Check::Store,
        Check::Recount,
        Check::Deleted,
    ];

    /// Returns what a pass of it says.
    pub fn statement(self) -> &'static str {
        match self {
            Check::Chains => {
                "manifests link without a gap and reach every cutoff recorded, heads as recorded"
            }
            Check::Records => "every run has its inputs and its result, in order, by the hashes recorded",
            Check::FileLists => {
                "the run's inputs list exactly the files the manifests commit below its cutoffs"
            }
            Check::Seals => "seals are those the inputs name",
            Check::Rules => "the texts the run was counted by are known, by their hash",
            Check::Rates => "rates are in order and recorded by the campaign store",
            Check::Files => "each data file has the SHA-256, size and rows its manifest says",
            Check::Store => "the billing store holds exactly the runs and row versions of the results",
            Check::Recount => "counted again from the inputs, each row is the one billed",
            Check::Deleted => "tombstones name the files that are gone as their manifests do",
        }
    }
}

/// One check's end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckLine {
    pub check: Check,
    pub statement: String,
    pub passed: bool,
    /// Findings in all; at most a thousand of them are listed.
    pub findings: u64,
}

/// Something wrong (or, as a notice, worth knowing), with the object it is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Finding {
    pub check: Check,
    /// A path in the archive, or a row or run of the billing store.
    pub object: String,
    pub reason: String,
}

/// The newest ended run of a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewestRun {
    pub path: BillingPath,
    pub run_id: String,
    pub outcome: RunOutcome,
}

/// The run whose bill was counted again, with everything it read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditedRun {
    pub run_id: String,
    pub status: BillingStatus,
    pub inputs_path: String,
    pub inputs_sha256: Sha256Hex,
    /// `None` where the run's result is missing, which is a finding.
    pub result_sha256: Option<Sha256Hex>,
    pub rules_sha256: Sha256Hex,
    pub settings: CountingSettings,
    /// Up to where records of each partition existed for the run, with the manifest that reached there; those of
    /// `fraud-verdicts` are the verdict cutoff.
    pub cutoffs: Vec<Cutoff>,
    pub seals: Vec<SealInput>,
    pub files: Vec<FileEntry>,
    pub rates: Vec<Rate>,
}

/// One row as the archive gives it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertifiedRow {
    #[serde(flatten)]
    pub counts: BillingCounts,
    pub digest: Sha256Hex,
    /// Newest version of the row by the results in the archive; `None` where no result has one, which is a finding.
    pub version: Option<u32>,
}

/// How much was examined.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    pub manifests: u64,
    pub runs: u64,
    pub files: u64,
    pub file_bytes: u64,
    pub copies: u64,
    pub recount_seconds: f64,
    pub recount_rss_peak_bytes: u64,
}

/// What an audit says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Certificate {
    pub format: String,
    /// Program and version that audited.
    pub tool: String,
    pub hour: Hour,
    /// The campaign rows and findings are limited to, if any; chains, records and files are examined whole.
    pub campaign: Option<CampaignId>,
    pub verdict: AuditVerdict,
    /// Path whose rows are the bill of the hour.
    pub mode: BillingPath,
    pub newest_runs: Vec<NewestRun>,
    /// `None` where no run could be read.
    pub run: Option<AuditedRun>,
    pub rows: Vec<CertifiedRow>,
    /// What retention deleted of the files the run had read; empty where everything is there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deleted: Vec<DeletedFiles>,
    pub checks: Vec<CheckLine>,
    pub findings: Vec<Finding>,
    /// Not wrong, and worth knowing: files that no manifest names do not exist for billing.
    pub notices: Vec<Finding>,
    pub figures: Figures,
    pub audited_at: UtcMillis,
    pub certificate_sha256: Sha256Hex,
}

impl Certificate {
    /// Returns the hash of what the certificate says, as the module describes it.
    ///
    /// # Errors
    /// `Json` if it cannot be written as JSON.
    pub fn hash(&self) -> Result<Sha256Hex> {
        let failed = |source| Error::Json { what: "certificate", source };
        let mut value = serde_json::to_value(self).map_err(failed)?;
        if let Value::Object(fields) = &mut value {
            fields.retain(|name, _| !NOT_HASHED.contains(&name.as_str()));
        }
        let mut text = String::new();
        write_canonical(&value, &mut text).map_err(failed)?;
        Ok(Sha256Hex::of(text.as_bytes()))
    }
}

/// Writes JSON with the keys of every object in order.
fn write_canonical(value: &Value, text: &mut String) -> Result<(), serde_json::Error> {
    match value {
        Value::Array(items) => {
            text.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                write_canonical(item, text)?;
            }
            text.push(']');
        }
        Value::Object(fields) => {
            // Whatever order the map keeps: another crate's feature may change it.
            let mut names: Vec<&String> = fields.keys().collect();
            names.sort_unstable();
            text.push('{');
            for (index, name) in names.into_iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                text.push_str(&serde_json::to_string(name)?);
                text.push(':');
                write_canonical(&fields[name], text)?;
            }
            text.push('}');
        }
        plain => text.push_str(&serde_json::to_string(plain)?),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_json_has_its_keys_in_order_and_no_spaces() {
        let value = serde_json::json!({ "b": [1, { "z": null, "a": "é\n" }], "a": true });
        let mut text = String::new();
        write_canonical(&value, &mut text).expect("written");
        assert_eq!(text, r#"{"a":true,"b":[1,{"a":"é\n","z":null}]}"#);
    }
}
