//! The door before the S3 service: faults, the note of each write, and one put of a key at a time.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::future::Future;
use std::io::Write;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::Service;
use hyper::{Method, Request, Response, StatusCode};
use s3s::service::S3Service;
use s3s::{Body, HttpError};

use crate::faults::{self, Fault};

const ENCRYPTION_HEADER: &str = "x-amz-server-side-encryption";

type KeyLocks = Arc<Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>>;

/// The service as connections see it.
#[derive(Clone)]
pub struct Door {
    folder: PathBuf,
    inner: S3Service,
    keys: KeyLocks,
}

impl Door {
    /// Puts the door before `inner`, whose buckets lie in `folder/buckets`.
    pub fn new(folder: PathBuf, inner: S3Service) -> Self {
        Self { folder, inner, keys: KeyLocks::default() }
    }

    async fn answer(self, request: Request<Incoming>) -> Result<Response<Body>, HttpError> {
        let path = request.uri().path().trim_start_matches('/').to_owned();
        let (bucket, key) = path.split_once('/').unwrap_or((&path, ""));
        // s3s-fs makes the folder of a bucket that does not exist; S3 does not.
        if !bucket.is_empty() && !self.folder.join("buckets").join(bucket).is_dir() {
            return Ok(refusal(StatusCode::NOT_FOUND, "NoSuchBucket"));
        }
        if ![Method::PUT, Method::POST].contains(request.method()) {
            return Service::call(&self.inner, request).await;
        }
        let fault = faults::of(&self.folder.join("faults"), bucket, key);
        let refused = match fault {
            Some(Fault::Refuse) => Some(refusal(StatusCode::SERVICE_UNAVAILABLE, "SlowDown")),
            Some(Fault::Deny) => Some(refusal(StatusCode::FORBIDDEN, "AccessDenied")),
            Some(Fault::Overwrite | Fault::Lose) | None => None,
        };
        if let Some(refused) = refused {
            // Read to its end, or the client sees a broken connection and not the answer.
            let _ = request.into_body().collect().await;
            return Ok(refused);
        }
        let encryption = request.headers().get(ENCRYPTION_HEADER).cloned();
        let line = note(request.method(), request.uri().query(), &path, encryption.as_ref());
        let lock = self.lock_of(&path);
        let turn = lock.lock().await;
        if fault == Some(Fault::Overwrite) {
            // The header is signed and cannot be taken away; where nothing is, it forbids nothing.
            let _ = std::fs::remove_file(self.folder.join("buckets").join(bucket).join(key));
        }
        let answer = Service::call(&self.inner, request).await?;
        drop(turn);
        self.write_down(&format!("{} {line}", answer.status().as_u16()));
        Ok(if fault == Some(Fault::Lose) && answer.status().is_success() {
            refusal(StatusCode::INTERNAL_SERVER_ERROR, "InternalError")
        } else {
            answer
        })
    }

    fn lock_of(&self, path: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        keys.entry(path.to_owned()).or_default().clone()
    }

    /// One `write` a line, so that lines of requests side by side stay whole.
    fn write_down(&self, line: &str) {
        let file = OpenOptions::new().create(true).append(true).open(self.folder.join("writes"));
        if let Err(error) = file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes())) {
            eprintln!("write not noted: {error}");
        }
    }
}

/// Returns `METHOD PATH QUERY ENCRYPTION`, with `-` for what is not there.
fn note(method: &Method, query: Option<&str>, path: &str, encryption: Option<&HeaderValue>) -> String {
    let encryption = encryption.and_then(|value| value.to_str().ok()).unwrap_or("-");
    format!("{method} {path} {} {encryption}", query.filter(|query| !query.is_empty()).unwrap_or("-"))
}

fn refusal(status: StatusCode, code: &str) -> Response<Body> {
    let text = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{code}</Message></Error>");
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    response
}

impl Service<Request<Incoming>> for Door {
    type Response = Response<Body>;
    type Error = HttpError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, HttpError>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        Box::pin(self.clone().answer(request))
    }
}
