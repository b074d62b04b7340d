//! Seals and run records in the archive: each put once, read by hour (G-4, CR-8).

use super::layout::{self, RunObject};
use super::{Archive, BillingPath, RunInputs, RunResult, Seal, StoredSeal};
use crate::error::{Error, Result};
use crate::event::{Generation, Hour, PartitionId, Sha256Hex};

/// A run's inputs with the hash of their stored bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRunInputs {
    pub inputs: RunInputs,
    pub sha256: Sha256Hex,
}

/// A run's result with the hash of its stored bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRunResult {
    pub result: RunResult,
    pub sha256: Sha256Hex,
}

/// A run as the archive knows it: begun, or ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRun {
    pub inputs: StoredRunInputs,
    /// `None` while the run has not ended: it is resumed with exactly these inputs.
    pub result: Option<StoredRunResult>,
}

impl Archive {
    /// Puts a seal if its partition has none for the hour; returns the one that stands, with its hash.
    ///
    /// # Errors
    /// `ObjectStore` if the store fails; `ArchiveDamage` if what stands is no seal of this hour and partition.
    pub async fn put_seal(&self, seal: &Seal) -> Result<StoredSeal> {
        let path = layout::seal_path(seal.hour, seal.generation, seal.partition);
        let (seal, sha256) = self.put_json(&path, seal).await?;
        checked_seal(&path, StoredSeal { seal, sha256 })
    }

    /// Returns the seals of an hour, in order of generation and partition.
    ///
    /// # Errors
    /// `ArchiveDamage` if an object among them is no seal of that hour.
    pub async fn seals(&self, hour: Hour) -> Result<Vec<StoredSeal>> {
        let mut seals = Vec::new();
        for object in self.list(&layout::seal_folder(hour), None).await? {
            seals.extend(self.seal_at(object.location.as_ref()).await?);
        }
        seals.sort_by_key(|stored: &StoredSeal| (stored.seal.generation, stored.seal.partition));
        Ok(seals)
    }

    /// Returns the seals of one partition, by hour. Lists every seal: for a partition that lost its own records.
    ///
    /// # Errors
    /// `ArchiveDamage` if an object among them is no seal.
    pub async fn seals_of_partition(
        &self,
        generation: Generation,
        partition: PartitionId,
    ) -> Result<Vec<StoredSeal>> {
        let mut seals = Vec::new();
        for object in self.list("seals", None).await? {
            let path = object.location.to_string();
            match layout::parse_seal_path(&path) {
                Some((_, generation_of, partition_of))
                    if (generation_of, partition_of) == (generation, partition) =>
                {
                    seals.extend(self.seal_at(&path).await?);
                }
                Some(_) => {}
                None => return Err(not_ours(path)),
            }
        }
        Ok(seals)
    }

    async fn seal_at(&self, path: &str) -> Result<Option<StoredSeal>> {
        let found = self.get_json(path).await?;
        found.map(|(seal, sha256)| checked_seal(path, StoredSeal { seal, sha256 })).transpose()
    }

    /// Puts a run's inputs if the number is free; returns those that stand. The run uses these and no others.
    ///
    /// # Errors
    /// `Config` if the run before has no result yet, or `seq` is 0: the caller resumes that run first.
    pub async fn put_run_inputs(&self, inputs: &RunInputs) -> Result<StoredRunInputs> {
        let RunInputs { path: billing_path, hour, seq, .. } = *inputs;
        let previous_ended = match seq {
            0 => false,
            1 => true,
            _ => self.run_result(billing_path, hour, seq - 1).await?.is_some(),
        };
        if !previous_ended {
            let reason =
                format!("run {seq} of {billing_path} {hour} may not begin: the one before has no result");
            return Err(Error::Config { reason });
        }
        let path = layout::run_inputs_path(billing_path, hour, seq);
        let (stored, sha256) = self.put_json(&path, inputs).await?;
        checked_inputs(&path, (billing_path, hour, seq), stored, sha256)
    }

    /// Returns the inputs of a run.
    ///
    /// # Errors
    /// `ArchiveDamage` if the object is not the inputs of this run.
    pub async fn run_inputs(
        &self,
        path: BillingPath,
        hour: Hour,
        seq: u32,
    ) -> Result<Option<StoredRunInputs>> {
        let key = layout::run_inputs_path(path, hour, seq);
        let found = self.get_json(&key).await?;
        found.map(|(inputs, sha256)| checked_inputs(&key, (path, hour, seq), inputs, sha256)).transpose()
    }

    /// Puts a run's result if it has none; returns the one that stands.
    ///
    /// # Errors
    /// `ObjectStore` if the store fails; `ArchiveDamage` if what stands is not the result of this run.
    pub async fn put_run_result(&self, result: &RunResult) -> Result<StoredRunResult> {
        let run = (result.path, result.hour, result.seq);
        let key = layout::run_result_path(run.0, run.1, run.2);
        let (stored, sha256) = self.put_json(&key, result).await?;
        checked_result(&key, run, stored, sha256)
    }

    /// Returns the result of a run, or `None` while it has not ended.
    ///
    /// # Errors
    /// `ArchiveDamage` if the object is not the result of this run.
    pub async fn run_result(
        &self,
        path: BillingPath,
        hour: Hour,
        seq: u32,
    ) -> Result<Option<StoredRunResult>> {
        let key = layout::run_result_path(path, hour, seq);
        let found = self.get_json(&key).await?;
        found.map(|(result, sha256)| checked_result(&key, (path, hour, seq), result, sha256)).transpose()
    }

    /// Returns the hour's run with the highest number, or `None` if it never had one.
    ///
    /// # Errors
    /// `ArchiveDamage` if a number is missing or an object is not what its path says.
    pub async fn latest_run(&self, path: BillingPath, hour: Hour) -> Result<Option<StoredRun>> {
        let count = self.run_count(path, hour).await?;
        if count == 0 {
            return Ok(None);
        }
        let inputs = self.run_inputs(path, hour, count).await?;
        let inputs = inputs.ok_or_else(|| missing(layout::run_inputs_path(path, hour, count)))?;
        let result = self.run_result(path, hour, count).await?;
        Ok(Some(StoredRun { inputs, result }))
    }

    /// Returns the results of an hour's ended runs, in order of their numbers.
    ///
    /// # Errors
    /// `ArchiveDamage` if a number is missing, or a run other than the last has no result.
    pub async fn run_results(&self, path: BillingPath, hour: Hour) -> Result<Vec<StoredRunResult>> {
        let count = self.run_count(path, hour).await?;
        let mut results = Vec::new();
        for seq in 1..=count {
            match self.run_result(path, hour, seq).await? {
                Some(result) => results.push(result),
                None if seq == count => {}
                None => return Err(missing(layout::run_result_path(path, hour, seq))),
            }
        }
        Ok(results)
    }

    /// Returns the hours that have runs of `path`, in order; one whose first put is under way may have none yet.
    ///
    /// # Errors
    /// `ArchiveDamage` if a folder among them is no hour.
    pub async fn run_hours(&self, path: BillingPath) -> Result<Vec<Hour>> {
        let folder = layout::runs_folder(path);
        let names = self.list_folders(&folder).await?;
        names.into_iter().map(|name| name.parse().map_err(|_| not_ours(format!("{folder}/{name}")))).collect()
    }

    /// Returns how many runs the hour has; their numbers are 1 to that.
    async fn run_count(&self, path: BillingPath, hour: Hour) -> Result<u32> {
        let mut count = 0;
        for object in self.list(&layout::run_folder(path, hour), None).await? {
            let key = object.location.to_string();
            match layout::parse_run_path(&key) {
                Some((_, _, seq, RunObject::Inputs)) if seq == count + 1 => count = seq,
                Some((_, _, seq, RunObject::Result)) if seq == count => {}
                Some(_) => return Err(missing(layout::run_inputs_path(path, hour, count + 1))),
                None => return Err(not_ours(key)),
            }
        }
        Ok(count)
    }
}

type RunName = (BillingPath, Hour, u32);

fn checked_seal(path: &str, stored: StoredSeal) -> Result<StoredSeal> {
    let seal = &stored.seal;
    if layout::parse_seal_path(path) == Some((seal.hour, seal.generation, seal.partition)) {
        Ok(stored)
    } else {
        Err(not_ours(path.to_owned()))
    }
}

fn checked_inputs(key: &str, run: RunName, inputs: RunInputs, sha256: Sha256Hex) -> Result<StoredRunInputs> {
    if (inputs.path, inputs.hour, inputs.seq) == run {
        Ok(StoredRunInputs { inputs, sha256 })
    } else {
        Err(not_ours(key.to_owned()))
    }
}

fn checked_result(key: &str, run: RunName, result: RunResult, sha256: Sha256Hex) -> Result<StoredRunResult> {
    if (result.path, result.hour, result.seq) == run {
        Ok(StoredRunResult { result, sha256 })
    } else {
        Err(not_ours(key.to_owned()))
    }
}

fn missing(path: String) -> Error {
    Error::ArchiveDamage { path, reason: "is missing".to_owned() }
}

fn not_ours(path: String) -> Error {
    Error::ArchiveDamage { path, reason: "is not the object its path says".to_owned() }
}
