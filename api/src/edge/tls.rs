//! TLS: a certificate and its key from two PEM files, read again when they change.
//!
//! Guarantee: a connection is served with the newest pair that read and fitted. A file that does not read, or a
//! certificate without its key while both are being replaced, leaves the pair before in force, and is said once.
//! Connections that are open keep what they began with.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use metrics::counter;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

use crate::error::{Error, Result};
use crate::metrics::TLS_RELOADS_TOTAL;

/// Where certificate and key are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    /// The certificate, then those that lead to its root, in PEM.
    pub cert: PathBuf,
    /// The certificate's private key, in PEM.
    pub key: PathBuf,
}

/// What tells a file from the one that was there before: a rename may keep time and size, and not the inode.
type Stamp = [(u64, u64, i64, i64); 2];

/// The pair in force.
#[derive(Debug)]
pub(crate) struct Certificates {
    files: TlsFiles,
    current: RwLock<Arc<CertifiedKey>>,
}

impl Certificates {
    /// Reads the pair.
    ///
    /// # Errors
    /// [`Error::Tls`] naming the file that does not read or fit.
    pub fn open(files: TlsFiles) -> Result<Arc<Self>> {
        let current = RwLock::new(Arc::new(read(&files)?));
        Ok(Arc::new(Self { files, current }))
    }

    /// Returns the settings of a server that shows the pair in force.
    ///
    /// # Errors
    /// [`Error::Internal`] if the cryptography takes none of its own versions of TLS.
    pub fn server_config(self: &Arc<Self>) -> Result<ServerConfig> {
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder
            .with_safe_default_protocol_versions()
            .map_err(|source| Error::Internal { what: "starting TLS", source: Some(Box::new(source)) })?;
        Ok(builder.with_no_client_auth().with_cert_resolver(self.clone()))
    }

    /// Looks at the files at intervals and reads them where they changed, for as long as the server holds this.
    pub fn watch(self: &Arc<Self>, interval: Duration) -> impl Future<Output = ()> + use<> {
        let (watched, files) = (Arc::downgrade(self), self.files.clone());
        let mut seen = stamp(&files).ok();
        async move {
            let mut ticks = tokio::time::interval(interval);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let Some(certificates) = watched.upgrade() else { return };
                let files = files.clone();
                let looked = actix_web::web::block(move || {
                    let now = stamp(&files).ok();
                    (now != seen).then(|| (now, read(&files)))
                });
                if let Ok(Some((now, pair))) = looked.await {
                    seen = now;
                    certificates.take(pair);
                }
            }
        }
    }

    fn take(&self, pair: Result<CertifiedKey>) {
        match pair {
            Ok(pair) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(pair);
                counter!(TLS_RELOADS_TOTAL, "outcome" => "taken").increment(1);
                info!(cert = %self.files.cert.display(), "the new certificate is in force");
            }
            Err(error) => {
                counter!(TLS_RELOADS_TOTAL, "outcome" => "refused").increment(1);
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                warn!(%error, cause, "the certificate changed and cannot be used; the one before stays in force");
            }
        }
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _client: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

fn read(files: &TlsFiles) -> Result<CertifiedKey> {
    let unread = |path: &Path, source: pem::Error| Error::Tls {
        action: "cannot read",
        path: path.to_owned(),
        source: Some(Box::new(source)),
    };
    let unfit = |path: &Path, source: rustls::Error| Error::Tls {
        action: "cannot use",
        path: path.to_owned(),
        source: Some(Box::new(source)),
    };
    let chain = CertificateDer::pem_file_iter(&files.cert).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = chain.map_err(|source| unread(&files.cert, source))?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|source| unread(&files.key, source))?;
    let key = ring::sign::any_supported_type(&key).map_err(|source| unfit(&files.key, source))?;
    let pair = CertifiedKey::new(chain, key);
    // An empty chain and another's key are refused here too.
    pair.keys_match().map_err(|source| unfit(&files.cert, source))?;
    Ok(pair)
}

fn stamp(files: &TlsFiles) -> io::Result<Stamp> {
    let of = |path: &Path| {
        let metadata = std::fs::metadata(path)?;
        Ok::<_, io::Error>((metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec()))
    };
    Ok([of(&files.cert)?, of(&files.key)?])
}
