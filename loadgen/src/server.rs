//! The node as this program sees it: a base address, a client that keeps connections, and advice for its refusals.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use reqwest::{Client, Method, RequestBuilder, StatusCode};

use crate::cli::ServerArgs;

/// A node to talk to.
#[derive(Debug, Clone)]
pub struct Server {
    base: String,
    api_key: Option<String>,
    client: Client,
}

impl Server {
    /// Prepares a client that keeps up to `connections` idle; nothing is sent.
    ///
    /// # Errors
    /// If the address is no plain HTTP address.
    pub fn new(args: &ServerArgs, connections: usize) -> Result<Self> {
        let base = args.target.trim_end_matches('/').to_owned();
        if !base.starts_with("http://") {
            bail!("--target {base} is no address such as http://127.0.0.1:8080 (TLS: put a proxy in front)");
        }
        let client = Client::builder()
            .pool_max_idle_per_host(connections)
            .tcp_nodelay(true)
            .connect_timeout(args.timeout.min(Duration::from_secs(5)))
            .build()
            .context("prepare the HTTP client")?;
        Ok(Self { base, api_key: args.api_key.clone(), client })
    }

    /// Starts a request to `path`, with the API key where there is one.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.base));
        match &self.api_key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// Returns the address.
    pub fn base(&self) -> &str {
        &self.base
    }
}

/// Returns what to do about a refusal that sending again cannot mend; `None` for every other status.
pub fn advice(status: StatusCode) -> Option<&'static str> {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            Some("pass a key with the right to do this as --api-key or TWICE_API_KEY")
        }
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => {
            Some("is --target the address of a Count Twice node?")
        }
        StatusCode::PAYLOAD_TOO_LARGE => Some("lower --batch"),
        StatusCode::BAD_REQUEST | StatusCode::UNSUPPORTED_MEDIA_TYPE => {
            Some("node and load generator do not understand each other; are they of one version?")
        }
        _ => None,
    }
}

/// Returns the wait before attempt `attempt` (0 = the first repeat): 50 ms, doubling up to 2 s.
pub fn backoff(attempt: u32) -> Duration {
    Duration::from_millis((50_u64 << attempt.min(6)).min(2_000))
}

/// Returns the start of an answer's body for an error message.
pub fn excerpt(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let text = text.trim();
    match text.char_indices().nth(300) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Returns the error with its causes, such as a refused connection, without the address.
pub fn describe(error: reqwest::Error) -> String {
    let error = anyhow::Error::from(error.without_url());
    format!("{error:#}")
}

/// Returns whether the error says for certain that the request never reached the node.
pub fn never_sent(error: &reqwest::Error) -> bool {
    error.is_connect() || error.is_builder()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_two_seconds() {
        let waits: Vec<u128> = (0..8).map(|attempt| backoff(attempt).as_millis()).collect();
        assert_eq!(waits, [50, 100, 200, 400, 800, 1_600, 2_000, 2_000]);
    }

    #[test]
    fn long_answers_are_cut_between_characters() {
        let long = "é".repeat(400);
        assert_eq!(excerpt(long.as_bytes()).chars().count(), 301);
        assert_eq!(excerpt(b" short \n"), "short");
    }
}
