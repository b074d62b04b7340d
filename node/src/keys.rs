//! The node's API keys: read at start, and the first one made where there is none.
//!
//! Guarantee: a node that asks for keys has one that may do everything, shown to whoever started it, once. Died the
//! process between storing and showing it, `twice keys reset-admin` on the stopped node makes another.

use std::io::Write;
use std::sync::Arc;

use anyhow::{Context, Result};
use twice_api::{Access, KeyRing, KeyText, NewKey};
use twice_log::Clock;
use twice_log::fail::{FailPoint, FailPoints};
use twice_store::{AdminAction, SqliteStore};

/// Reads the keys, and makes and shows the first one where the node asks for keys and has none.
///
/// # Errors
/// If the store does not answer.
pub async fn open(
    store: Arc<SqliteStore>,
    clock: Arc<dyn Clock>,
    access: Access,
    fail_points: &FailPoints,
) -> Result<Arc<KeyRing>> {
    let ring = KeyRing::open(store, clock.clone(), access).await.context("reading the API keys")?;
    match (access, ring.is_empty()) {
        (Access::Keyed, true) => {
            let text = create_admin(&ring, clock.as_ref(), "first admin", "twice up").await?;
            fail_points.pass(FailPoint::FirstKeyStored);
            show(&text, "This node has no API keys yet. Its first one, with scope admin, is:")?;
        }
        (Access::Open, false) => {
            tracing::warn!("the data folder has API keys, and this node serves without asking for them");
        }
        _ => {}
    }
    Ok(Arc::new(ring))
}

/// Makes a key with scope admin, and notes in the log of actions that `command` did.
///
/// # Errors
/// If it could not be noted or stored.
pub async fn create_admin(ring: &KeyRing, clock: &dyn Clock, name: &str, command: &str) -> Result<KeyText> {
    let note = |action: String, status| AdminAction {
        at: clock.now(),
        key_id: String::new(),
        address: None,
        request_id: "-".to_owned(),
        action,
        status,
    };
    ring.log_action(note(command.to_owned(), None)).await.context("noting that a key is made")?;
    let (key, text) = ring.create(NewKey::admin(name)).await.context("making a key with scope admin")?;
    let done = note(format!("{command} ({})", key.key_id), Some(201));
    ring.log_action(done).await.context("noting that a key was made")?;
    Ok(text)
}

/// Shows a key on stdout, or where that is closed on stderr: in plain text and in no log line.
///
/// # Errors
/// If neither can be written to.
pub fn show(text: &KeyText, head: &str) -> Result<()> {
    let lines = format!(
        "\n{head}\n\n    {text}\n\nIt is stored nowhere and will not be shown again: keep it, for example as TWICE_API_KEY. If it is lost, \
         stop the node\nand make another: twice keys reset-admin --data-dir DIR\n\n"
    );
    let mut out = std::io::stdout().lock();
    let shown = out.write_all(lines.as_bytes()).and_then(|()| out.flush());
    shown.or_else(|_| std::io::stderr().write_all(lines.as_bytes())).context("showing the new API key")
}
