//! A plain HTTP client for tests: one call, one answer, no retries and no opinions.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use reqwest::header::HeaderMap;
use serde_json::Value;
use tokio::runtime::Runtime;

const TIMEOUT: Duration = Duration::from_secs(60);

/// Calls one server. Blocking, so that tests read from top to bottom.
#[derive(Debug)]
pub struct Client {
    runtime: Runtime,
    http: reqwest::Client,
    base: String,
    key: Option<String>,
}

/// What the server answered.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: String,
}

impl Answer {
    /// Returns the body as JSON.
    ///
    /// # Errors
    /// If it is not JSON; the message has the body.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.body)
            .with_context(|| format!("status {} with a body that is no JSON: {}", self.status, self.body))
    }

    /// Returns a header, empty if absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
    }
}

impl Client {
    /// Calls the server at `base`, such as `http://127.0.0.1:8080`.
    ///
    /// # Errors
    /// If the client cannot be set up.
    pub fn new(base: &str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let http = reqwest::Client::builder().timeout(TIMEOUT).no_proxy().build()?;
        Ok(Self { runtime, http, base: base.to_owned(), key: None })
    }

    /// Sends this API key with every call.
    #[must_use]
    pub fn with_key(mut self, key: &str) -> Self {
        self.key = Some(key.to_owned());
        self
    }

    /// GETs `path` with further headers.
    ///
    /// # Errors
    /// If there is no answer.
    pub fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Result<Answer> {
        let request = self.http.get(self.url(path));
        self.send(headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)))
    }

    /// DELETEs `path`.
    ///
    /// # Errors
    /// If there is no answer.
    pub fn delete(&self, path: &str) -> Result<Answer> {
        self.send(self.http.delete(self.url(path)))
    }

    /// GETs `path`.
    ///
    /// # Errors
    /// If there is no answer.
    pub fn get(&self, path: &str) -> Result<Answer> {
        self.send(self.http.get(self.url(path)))
    }

    /// GETs `path`, expects 200 and returns the JSON.
    ///
    /// # Errors
    /// On any other answer; the message has it.
    pub fn get_json(&self, path: &str) -> Result<Value> {
        let answer = self.get(path)?;
        if answer.status != 200 {
            bail!("GET {path} answered {}: {}", answer.status, answer.body);
        }
        answer.json()
    }

    /// GETs every page of a list and returns all its rows.
    ///
    /// # Errors
    /// On any answer but 200.
    pub fn get_rows(&self, path: &str) -> Result<Vec<Value>> {
        let mut rows = Vec::new();
        let mut page_path = path.to_owned();
        loop {
            let page = self.get_json(&page_path)?;
            rows.extend(page["rows"].as_array().cloned().with_context(|| format!("rows of {page_path}"))?);
            let Some(cursor) = page["next_cursor"].as_str() else { return Ok(rows) };
            let separator = if path.contains('?') { '&' } else { '?' };
            page_path = format!("{path}{separator}cursor={cursor}");
        }
    }

    /// POSTs bytes with a content type and further headers.
    ///
    /// # Errors
    /// If there is no answer.
    pub fn post(
        &self,
        path: &str,
        content_type: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Result<Answer> {
        let mut request = self.http.post(self.url(path)).header("content-type", content_type).body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request)
    }

    /// POSTs JSON.
    ///
    /// # Errors
    /// If there is no answer.
    pub fn post_json(&self, path: &str, body: &Value) -> Result<Answer> {
        self.post(path, "application/json", &[], body.to_string().into_bytes())
    }

    /// PUTs JSON.
    ///
    /// # Errors
    /// If there is no answer.
    pub fn put_json(&self, path: &str, body: &Value) -> Result<Answer> {
        let request = self.http.put(self.url(path)).header("content-type", "application/json");
        self.send(request.body(body.to_string()))
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    fn send(&self, request: reqwest::RequestBuilder) -> Result<Answer> {
        let request = match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        };
        self.runtime.block_on(async {
            let response = request.send().await?;
            let (status, headers) = (response.status().as_u16(), response.headers().clone());
            Ok(Answer { status, headers, body: response.text().await? })
        })
    }
}
