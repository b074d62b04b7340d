//! The S3 server of the tests: s3s-fs over a directory, behind a door that can be told to misbehave.
//!
//! Guarantee: what a put answered survives kill -9, since s3s-fs writes beside and renames. A put with `If-None-Match`
//! is atomic, which s3s-fs alone does not promise: the door lets one put of a key in at a time.
//! Words: a *fault* is a line `KIND BUCKET PREFIX` in `DIR/faults`, read anew with each request: `refuse` answers 503,
//! `deny` 403, `lose` does the work and answers 500, `overwrite` puts over what is there. An empty prefix means the bucket.
//! Flow: `s3-server DIR PORT ACCESS_KEY SECRET_KEY`; objects lie as files in `DIR/buckets/BUCKET/KEY`, every write is noted
//! in `DIR/writes`.

#![allow(clippy::print_stderr)]

mod door;
mod faults;

use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use tokio::net::TcpListener;

use door::Door;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, port, access_key, secret_key] = arguments.as_slice() else {
        return Err("usage: s3-server DIR PORT ACCESS_KEY SECRET_KEY".into());
    };
    let folder = PathBuf::from(folder);
    let buckets = folder.join("buckets");
    std::fs::create_dir_all(&buckets)?;
    let files = s3s_fs::FileSystem::new(&buckets).map_err(|error| format!("{error:?}"))?;
    let mut service = S3ServiceBuilder::new(files);
    service.set_auth(SimpleAuth::from_single(access_key.as_str(), secret_key.as_str()));
    let door = Door::new(folder, service.build());
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port.parse()?))).await?;
    eprintln!("listening on {}", listener.local_addr()?);
    loop {
        let Ok((socket, _)) = listener.accept().await else { continue };
        let door = door.clone();
        tokio::spawn(async move {
            let server = Builder::new(TokioExecutor::new());
            // A client that goes away is no fault of the server's.
            let _ = server.serve_connection(TokioIo::new(socket), door).await;
        });
    }
}
