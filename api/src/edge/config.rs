//! Settings of the edge.

use std::path::PathBuf;

use clap::Args;

use super::tls::TlsFiles;
use crate::config::within;
use crate::error::{Error, Result};

/// Settings of connections, heads and bodies, of TLS, and of pages of other origins.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct EdgeConfig {
    /// Certificate the server shows, followed by those that lead to its root, PEM; connections use TLS then. Read again
    /// when the file changes.
    #[arg(long, value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// Private key of `tls_cert`, PEM.
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// How often it is looked whether certificate or key changed, 100 to 3 600 000. Default 2 000.
    #[arg(long, default_value_t = EdgeConfig::default().tls_reload_ms)]
    pub tls_reload_ms: u32,
    /// Most connections open at once, 16 to 1 000 000; more wait for one to end. From four fifths of it on each answer
    /// closes its connection. Each takes a file descriptor and some KiB. Default 16 384.
    #[arg(long, default_value_t = EdgeConfig::default().connections_max)]
    pub connections_max: u32,
    /// Time a client has to send the head of a request, 100 to 600 000; slower is closed. Default 5 000.
    #[arg(long, default_value_t = EdgeConfig::default().header_timeout_ms)]
    pub header_timeout_ms: u32,
    /// Largest head of a request, 1 024 to 131 072 bytes; more is answered 431. There may be 96 headers. Default 16 KiB.
    #[arg(long, default_value_t = EdgeConfig::default().header_bytes_max)]
    pub header_bytes_max: u32,
    /// Time a connection may be idle between requests, 1 to 86 400. Longer saves clients new connections and keeps more
    /// open. Default 75.
    #[arg(long, default_value_t = EdgeConfig::default().keep_alive_s)]
    pub keep_alive_s: u32,
    /// Slowest pace of a body in bytes a second, after its first five seconds; slower is answered 408. 0 = none, up to
    /// 1 GiB. Default 512.
    #[arg(long, default_value_t = EdgeConfig::default().body_rate_bytes_min)]
    pub body_rate_bytes_min: u32,
    /// Origins, separated by commas, whose pages may read from this server in a browser, such as
    /// `https://dash.example`. Reads only, and with a key like everybody. Default none.
    #[arg(long, value_delimiter = ',', value_name = "ORIGIN,…")]
    pub cors_origins: Vec<String>,
}

impl Default for EdgeConfig {
    fn default() -> Self {
        Self {
            tls_cert: None,
            tls_key: None,
            tls_reload_ms: 2_000,
            connections_max: 16_384,
            header_timeout_ms: 5_000,
            header_bytes_max: 16 << 10,
            keep_alive_s: 75,
            body_rate_bytes_min: 512,
            cors_origins: Vec::new(),
        }
    }
}

impl EdgeConfig {
    /// Checks every bound; called once at start-up.
    ///
    /// # Errors
    /// [`Error::Config`] naming the setting and its bound, [`Error::Setting`] for one that does not read.
    pub fn validate(&self) -> Result<()> {
        within("tls_reload_ms", self.tls_reload_ms.into(), 100, 3_600_000)?;
        within("connections_max", self.connections_max.into(), 16, 1_000_000)?;
        within("header_timeout_ms", self.header_timeout_ms.into(), 100, 600_000)?;
        within("header_bytes_max", self.header_bytes_max.into(), 1_024, 128 << 10)?;
        within("keep_alive_s", self.keep_alive_s.into(), 1, 86_400)?;
        within("body_rate_bytes_min", self.body_rate_bytes_min.into(), 0, 1 << 30)?;
        for origin in &self.cors_origins {
            // What browsers send: scheme and host, no path. `*` would be everybody, and is not what anybody means.
            let rest = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
            if !rest.is_some_and(|rest| !rest.is_empty() && !rest.contains(['/', '*', ' '])) {
                let reason = format!("{origin:?} is no origin such as https://dash.example");
                return Err(Error::Setting { setting: "cors_origins", reason });
            }
        }
        self.tls_files().map(|_| ())
    }

    /// Returns where certificate and key are, where TLS is set.
    ///
    /// # Errors
    /// [`Error::Setting`] if one of the two is missing.
    pub(crate) fn tls_files(&self) -> Result<Option<TlsFiles>> {
        let missing = |setting, other: &str| {
            Err(Error::Setting { setting, reason: format!("is missing, as {other} is set; TLS needs both") })
        };
        match (&self.tls_cert, &self.tls_key) {
            (None, None) => Ok(None),
            (Some(cert), Some(key)) => Ok(Some(TlsFiles { cert: cert.clone(), key: key.clone() })),
            (Some(_), None) => missing("tls_key", "tls_cert"),
            (None, Some(_)) => missing("tls_cert", "tls_key"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_lie_within_their_bounds() {
        EdgeConfig::default().validate().expect("valid");
    }

    #[test]
    fn half_of_tls_and_what_is_no_origin_are_refused() {
        let half = EdgeConfig { tls_cert: Some("c.pem".into()), ..EdgeConfig::default() };
        assert!(half.validate().expect_err("refused").to_string().contains("tls_key"));
        for origin in ["*", "dash.example", "https://", "https://dash.example/", "https://*.example", "null"]
        {
            let config = EdgeConfig { cors_origins: vec![origin.to_owned()], ..EdgeConfig::default() };
            assert!(config.validate().is_err(), "{origin}");
        }
        let named =
            EdgeConfig { cors_origins: vec!["https://dash.example:8443".into()], ..EdgeConfig::default() };
        named.validate().expect("an origin");
    }
}
