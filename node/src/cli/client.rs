//! The HTTP client of the commands that act on a node.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Which node to act on.
#[derive(Debug, Clone, Args)]
pub struct Server {
    /// Address of the node
    #[arg(long, env = "TWICE_SERVER", default_value = "http://127.0.0.1:8080", value_name = "URL")]
    server: String,
    /// API key, as the node's first start or `twice keys create` showed it; not needed with --insecure-no-auth
    #[arg(long, env = "TWICE_API_KEY", hide_env_values = true, value_name = "KEY")]
    api_key: Option<String>,
}

#[derive(Deserialize)]
struct Problem {
    title: Option<String>,
    detail: Option<String>,
}

impl Server {
    /// Opens a client for the node.
    pub fn client(&self) -> Result<Client> {
        if self.server.starts_with("https:") {
            bail!(
                "this command does not speak TLS: start the node with --listen-local 127.0.0.1:8080 and name that with \
                 --server, or ask {} with curl",
                self.server
            );
        }
        let http = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(5))
            .build()
            .context("cannot start the HTTP client")?;
        let base = self.server.trim_end_matches('/').to_owned();
        Ok(Client { http, base, api_key: self.api_key.clone() })
    }
}

/// A client of one node.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    api_key: Option<String>,
}

impl Client {
    /// Returns the node's address.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Begins a request to `path`, which starts with a slash.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        match &self.api_key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// Sends and returns the answer if the node says yes; otherwise an error with what it said.
    pub async fn send(&self, request: RequestBuilder) -> Result<Response> {
        let response = request.send().await.with_context(|| self.unreachable())?;
        if response.status().is_success() { Ok(response) } else { Err(problem(response).await) }
    }

    /// Sends a GET and reads its JSON; `None` where the node answers 404.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>> {
        let response = self.request(Method::GET, path).send().await.with_context(|| self.unreachable())?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => {
                Ok(Some(response.json().await.context("the node's answer is not the documented JSON")?))
            }
            _ => Err(problem(response).await),
        }
    }

    fn unreachable(&self) -> String {
        format!(
            "cannot reach {}; is the node up? Start one with `twice up`, or name another with --server",
            self.base
        )
    }
}

async fn problem(response: Response) -> anyhow::Error {
    let status = response.status();
    let text = response.text().await.unwrap_or_default();
    match serde_json::from_str::<Problem>(&text) {
        Ok(Problem { title, detail }) => {
            let title = title.unwrap_or_else(|| status.to_string());
            anyhow::anyhow!("{title}: {}", detail.unwrap_or_default())
        }
        Err(_) => {
            anyhow::anyhow!("the node answered {status}: {}", text.chars().take(200).collect::<String>())
        }
    }
}

/// Reads a body of JSON lines, one call a line.
pub async fn json_lines(mut response: Response, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut rest: Vec<u8> = Vec::new();
    while let Some(chunk) =
        response.chunk().await.context("the node's answer broke off; what it began goes on there")?
    {
        rest.extend_from_slice(&chunk);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            if !line.trim_ascii().is_empty() {
                each(line.trim_ascii())?;
            }
        }
    }
    if !rest.trim_ascii().is_empty() {
        bail!("the node's answer ends inside a line");
    }
    Ok(())
}
