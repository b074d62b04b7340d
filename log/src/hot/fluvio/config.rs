//! Settings of the Fluvio log: which cluster, which topics, how much at once, how long to wait.

use std::path::PathBuf;

use clap::Args;
use fluvio::FluvioClusterConfig;
use fluvio::config::{ConfigFile, TlsPaths, TlsPolicy};

use crate::error::{Error, Result};

const KIB: u32 = 1024;
const MIB: u32 = 1024 * KIB;
const GIB: u64 = 1024 * 1024 * 1024;
/// What Fluvio allows for the name of a topic, less the longest of ours.
const PREFIX_BYTES_MAX: usize = 63 - "fraud-verdicts".len();

/// Settings of the Fluvio log; see each field for its default, bound and trade-off.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct FluvioConfig {
    /// Address of the cluster's controller (SC), HOST:PORT. Left out, a profile of Fluvio's own command line names the
    /// cluster.
    #[arg(long = "fluvio-endpoint", id = "fluvio_endpoint", value_name = "HOST:PORT")]
    pub endpoint: Option<String>,
    /// Profile of Fluvio's command line that names cluster and TLS. Left out, the current one; not used with an
    /// endpoint.
    #[arg(long = "fluvio-profile", id = "fluvio_profile", value_name = "NAME")]
    pub profile: Option<String>,
    /// Config file of Fluvio's command line. Left out, FLV_PROFILE_PATH or ~/.fluvio/config.
    #[arg(long = "fluvio-profile-file", id = "fluvio_profile_file", value_name = "FILE")]
    pub profile_file: Option<PathBuf>,
    /// Domain the cluster's certificates are for; with the three files below, connections to the endpoint use TLS.
    #[arg(long = "fluvio-tls-domain", id = "fluvio_tls_domain", value_name = "DOMAIN")]
    pub tls_domain: Option<String>,
    /// Certificate of the authority that signed the cluster's certificates, PEM.
    #[arg(long = "fluvio-tls-ca", id = "fluvio_tls_ca", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// Certificate this node shows, PEM.
    #[arg(long = "fluvio-tls-cert", id = "fluvio_tls_cert", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// Private key of the certificate this node shows, PEM.
    #[arg(long = "fluvio-tls-key", id = "fluvio_tls_key", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Put before the names of the topics, so that several installations share a cluster. Lower-case letters, digits
    /// and hyphens; at most 49 bytes.
    #[arg(
        long = "fluvio-topic-prefix",
        id = "fluvio_topic_prefix",
        default_value = "",
        hide_default_value = true,
        value_name = "TEXT"
    )]
    pub topic_prefix: String,
    /// Copies of each partition, each on a server (SPU) of its own, when the topics are created. With more than one a
    /// click is acknowledged when all in sync have it. Default 1; 1 to 16.
    #[arg(long = "fluvio-replication", id = "fluvio_replication", default_value_t = Self::default().replication, value_name = "COUNT")]
    pub replication: u32,
    /// Age at which Fluvio may drop records, when the topics are created. Records dropped before they are archived are
    /// lost, so keep it many times the longest outage of the archive. Default 604800, a week; at least 3600.
    #[arg(long = "fluvio-retention-s", id = "fluvio_retention_s", default_value_t = Self::default().retention_s, value_name = "SECONDS")]
    pub retention_s: u32,
    /// Size of a partition past which Fluvio may drop records, when the topics are created. Default 100 GiB; at least
    /// 1 GiB.
    #[arg(long = "fluvio-partition-bytes-max", id = "fluvio_partition_bytes_max", default_value_t = Self::default().partition_bytes_max, value_name = "BYTES")]
    pub partition_bytes_max: u64,
    /// Longest wait for further appends to fill a batch. 0 sends at once; what arrives meanwhile goes with the next
    /// batch. Default 0; at most 1000.
    #[arg(long = "fluvio-linger-ms", id = "fluvio_linger_ms", default_value_t = Self::default().linger_ms, value_name = "MS")]
    pub linger_ms: u64,
    /// Size of a batch, the unit Fluvio stores. Larger costs the servers less; a batch is read as a whole. Default
    /// 256 KiB; 4 KiB to 1 MiB.
    #[arg(long = "fluvio-batch-bytes-max", id = "fluvio_batch_bytes_max", default_value_t = Self::default().batch_bytes_max, value_name = "BYTES")]
    pub batch_bytes_max: u32,
    /// Bytes that may wait for the cluster before an append is refused with `Busy`. Default 64 MiB; at least 4 KiB.
    #[arg(long = "fluvio-waiting-bytes-max", id = "fluvio_waiting_bytes_max", default_value_t = Self::default().waiting_bytes_max, value_name = "BYTES")]
    pub waiting_bytes_max: u64,
    /// Bytes fetched at once from one partition; what a reader has not yet taken of them stays in memory. At least four
    /// batches. Default 4 MiB; 64 KiB to 64 MiB.
    #[arg(long = "fluvio-fetch-bytes-max", id = "fluvio_fetch_bytes_max", default_value_t = Self::default().fetch_bytes_max, value_name = "BYTES")]
    pub fetch_bytes_max: u32,
    /// Longest wait for a connection, and at start for the cluster. Default 10000; at least 100.
    #[arg(long = "fluvio-connect-timeout-ms", id = "fluvio_connect_timeout_ms", default_value_t = Self::default().connect_timeout_ms, value_name = "MS")]
    pub connect_timeout_ms: u64,
    /// Longest wait for one answer of the cluster. Default 5000; at least 100.
    #[arg(long = "fluvio-request-timeout-ms", id = "fluvio_request_timeout_ms", default_value_t = Self::default().request_timeout_ms, value_name = "MS")]
    pub request_timeout_ms: u64,
    /// How long an append is tried again before its sender is told to send again. Longer hides restarts of a server from
    /// senders and holds their requests open. Default 10000; at least 100.
    #[arg(long = "fluvio-append-timeout-ms", id = "fluvio_append_timeout_ms", default_value_t = Self::default().append_timeout_ms, value_name = "MS")]
    pub append_timeout_ms: u64,
    /// How often readers at the end look for records of other writers; those of this node they see at once. Default 20;
    /// 1 to 10000.
    #[arg(long = "fluvio-poll-ms", id = "fluvio_poll_ms", default_value_t = Self::default().poll_ms, value_name = "MS")]
    pub poll_ms: u64,
}

impl Default for FluvioConfig {
    fn default() -> Self {
        Self {
            endpoint: None,
            profile: None,
            profile_file: None,
            tls_domain: None,
            tls_ca: None,
            tls_cert: None,
            tls_key: None,
            topic_prefix: String::new(),
            replication: 1,
            retention_s: 7 * 24 * 3_600,
            partition_bytes_max: 100 * GIB,
            linger_ms: 0,
            batch_bytes_max: 256 * KIB,
            waiting_bytes_max: u64::from(64 * MIB),
            fetch_bytes_max: 4 * MIB,
            connect_timeout_ms: 10_000,
            request_timeout_ms: 5_000,
            append_timeout_ms: 10_000,
            poll_ms: 20,
        }
    }
}

impl FluvioConfig {
    /// Checks every bound.
    ///
    /// # Errors
    /// `Config` naming the first setting out of its bounds.
    pub fn validate(&self) -> Result<()> {
        let fetch_min = u64::from(self.batch_bytes_max) * 4;
        let bounds = [
            ("fluvio_replication", u64::from(self.replication), 1, 16),
            ("fluvio_retention_s", u64::from(self.retention_s), 3_600, u64::MAX),
            ("fluvio_partition_bytes_max", self.partition_bytes_max, GIB, u64::MAX),
            ("fluvio_linger_ms", self.linger_ms, 0, 1_000),
            ("fluvio_batch_bytes_max", u64::from(self.batch_bytes_max), u64::from(4 * KIB), u64::from(MIB)),
            ("fluvio_waiting_bytes_max", self.waiting_bytes_max, 4096, u64::MAX),
            (
                "fluvio_fetch_bytes_max",
                u64::from(self.fetch_bytes_max),
                fetch_min.max(u64::from(64 * KIB)),
                u64::from(64 * MIB),
            ),
            ("fluvio_connect_timeout_ms", self.connect_timeout_ms, 100, 3_600_000),
            ("fluvio_request_timeout_ms", self.request_timeout_ms, 100, 3_600_000),
            ("fluvio_append_timeout_ms", self.append_timeout_ms, 100, 3_600_000),
            ("fluvio_poll_ms", self.poll_ms, 1, 10_000),
        ];
        if let Some((name, value, low, high)) =
            bounds.iter().find(|(_, value, low, high)| value < low || value > high)
        {
            let reason = format!("{name} is {value}; it must lie within {low} and {high}");
            return Err(Error::Config { reason });
        }
        let is_allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let prefix = &self.topic_prefix;
        if prefix.len() > PREFIX_BYTES_MAX || !prefix.bytes().all(is_allowed) || prefix.starts_with('-') {
            let reason = format!(
                "fluvio_topic_prefix is `{prefix}`; it must be at most {PREFIX_BYTES_MAX} lower-case letters, digits and \
                 hyphens, not beginning with a hyphen"
            );
            return Err(Error::Config { reason });
        }
        Ok(())
    }

    /// Returns where the cluster is and how to speak with it.
    ///
    /// # Errors
    /// `Config` if neither an endpoint nor a profile names a cluster, or TLS is set in part; it says what to do.
    pub(super) fn cluster(&self) -> Result<FluvioClusterConfig> {
        let tls = self.tls()?;
        let Some(endpoint) = &self.endpoint else {
            if tls != TlsPolicy::Disabled {
                let reason = "fluvio_tls_… goes with fluvio_endpoint; a profile has TLS settings of its own";
                return Err(Error::Config { reason: reason.to_owned() });
            }
            return self.cluster_of_profile();
        };
        Ok(FluvioClusterConfig::new(endpoint.as_str()).with_tls(tls))
    }

    fn tls(&self) -> Result<TlsPolicy> {
        match (&self.tls_domain, &self.tls_ca, &self.tls_cert, &self.tls_key) {
            (None, None, None, None) => Ok(TlsPolicy::Disabled),
            (Some(domain), Some(ca_cert), Some(cert), Some(key)) => Ok(TlsPolicy::from(TlsPaths {
                domain: domain.clone(),
                ca_cert: ca_cert.clone(),
                cert: cert.clone(),
                key: key.clone(),
            })),
            _ => Err(Error::Config {
                reason:
                    "TLS to Fluvio needs all four: fluvio_tls_domain, fluvio_tls_ca, fluvio_tls_cert and \
                         fluvio_tls_key"
                        .to_owned(),
            }),
        }
    }

    fn cluster_of_profile(&self) -> Result<FluvioClusterConfig> {
        let advice =
            "name the cluster with --fluvio-endpoint HOST:PORT, or make a profile with Fluvio's command line";
        let path = self.profile_file.as_ref().map(|path| path.display().to_string());
        let file = ConfigFile::load(path).map_err(|error| Error::Config {
            reason: format!("no Fluvio cluster is named ({error}); {advice}"),
        })?;
        let found = match &self.profile {
            Some(name) => file.config().cluster_with_profile(name).cloned(),
            None => file.config().current_cluster().ok().cloned(),
        };
        found.ok_or_else(|| {
            let name = self.profile.as_deref().unwrap_or("current");
            Error::Config { reason: format!("Fluvio's config file has no {name} profile; {advice}") }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_lie_within_their_bounds_and_each_bound_is_named() {
        let valid = FluvioConfig::default();
        valid.validate().expect("defaults");
        let broken = [
            (FluvioConfig { replication: 0, ..valid.clone() }, "fluvio_replication"),
            (FluvioConfig { fetch_bytes_max: 512 * KIB, ..valid.clone() }, "fluvio_fetch_bytes_max"),
            (FluvioConfig { topic_prefix: "Upper".to_owned(), ..valid.clone() }, "fluvio_topic_prefix"),
        ];
        for (config, name) in broken {
            let error = config.validate().expect_err("out of bounds").to_string();
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn a_cluster_is_named_by_endpoint_or_profile_and_nothing_is_guessed() {
        let by_endpoint = FluvioConfig { endpoint: Some("log:9003".to_owned()), ..FluvioConfig::default() };
        assert_eq!(by_endpoint.cluster().expect("named").endpoint, "log:9003");

        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("config");
        let text = "version = \"2.0\"\ncurrent_profile = \"near\"\n[profile.near]\ncluster = \"one\"\n\
            [profile.far]\ncluster = \"two\"\n[cluster.one]\nendpoint = \"one:9003\"\n\
            [cluster.two]\nendpoint = \"two:9003\"\n[cluster.two.tls]\ntls_policy = \"anonymous\"\n";
        std::fs::write(&file, text).expect("written");
        let current = FluvioConfig { profile_file: Some(file.clone()), ..FluvioConfig::default() };
        assert_eq!(current.cluster().expect("the current profile").endpoint, "one:9003");
        let far = FluvioConfig { profile: Some("far".to_owned()), ..current.clone() };
        let cluster = far.cluster().expect("a named profile");
        assert_eq!((cluster.endpoint.as_str(), cluster.tls), ("two:9003", TlsPolicy::Anonymous));
        let absent = FluvioConfig { profile: Some("absent".to_owned()), ..current.clone() };
        let error = absent.cluster().expect_err("no such profile").to_string();
        assert!(error.contains("absent") && error.contains("--fluvio-endpoint"), "{error}");
        let missing = FluvioConfig { profile_file: Some(folder.path().join("no")), ..current };
        assert!(missing.cluster().expect_err("no file").to_string().contains("--fluvio-endpoint"));
    }

    #[test]
    fn tls_set_in_part_is_refused_by_name() {
        let endpoint = Some("log:9003".to_owned());
        let part = FluvioConfig { endpoint, tls_ca: Some("ca.pem".into()), ..FluvioConfig::default() };
        assert!(part.cluster().expect_err("in part").to_string().contains("fluvio_tls_key"));
        let whole = FluvioConfig {
            tls_domain: Some("log.example".to_owned()),
            tls_cert: Some("cert.pem".into()),
            tls_key: Some("key.pem".into()),
            ..part
        };
        assert!(matches!(whole.cluster().expect("whole").tls, TlsPolicy::Verified(_)));
    }
}
