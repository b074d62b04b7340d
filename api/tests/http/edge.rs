//! What meets every request before its key: other origins, the size of its head.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use twice_api::{ApiConfig, EdgeConfig};

use crate::support::{Server, problem};

const PAGE: &str = "https://dash.example";

async fn server() -> Server {
    let edge = EdgeConfig {
        cors_origins: vec![PAGE.to_owned(), "http://localhost:3000".to_owned()],
        header_bytes_max: 2_000,
        ..EdgeConfig::default()
    };
    Server::start_keyed_with(ApiConfig { edge, ..ApiConfig::default() }).await
}

#[actix_web::test]
async fn pages_of_named_origins_may_read_and_ask_before_they_do() {
    let server = server().await;
    let preflight = |origin: &str| {
        let url = format!("{}/v1/campaigns", server.url);
        let request = server.client.request(reqwest::Method::OPTIONS, url).header("origin", origin);
        request.header("access-control-request-method", "GET")
    };
    let answer = preflight(PAGE).send().await.expect("an answer");
    assert_eq!(answer.status().as_u16(), 204);
    assert_eq!(answer.headers()["access-control-allow-origin"], PAGE);
    assert_eq!(answer.headers()["access-control-allow-methods"], "GET");
    let allowed = answer.headers()["access-control-allow-headers"].to_str().expect("text");
    assert!(allowed.contains("authorization"), "{allowed}");
    assert!(!answer.headers().contains_key("access-control-allow-credentials"));

    for stranger in ["https://evil.example", "null", "https://dash.example.evil", "http://dash.example"] {
        let answer = preflight(stranger).send().await.expect("an answer");
        assert_eq!(answer.status().as_u16(), 401, "{stranger}");
        assert!(!answer.headers().contains_key("access-control-allow-origin"), "{stranger}");
        let read = server.get("/livez").header("origin", stranger).send().await.expect("an answer");
        assert!(!read.headers().contains_key("access-control-allow-origin"), "{stranger}");
        assert_eq!(read.headers()["vary"], "origin", "a cache must not hand one origin's answer to another");
    }
    let read = server.get("/v1/campaigns").header("origin", PAGE).send().await.expect("an answer");
    assert_eq!(read.status().as_u16(), 401, "an origin is no key");
    assert_eq!(read.headers()["access-control-allow-origin"], PAGE, "and its page can read why");
    server.stop().await;
}

#[actix_web::test]
async fn without_named_origins_no_page_of_others_reads() {
    let server = Server::start().await;
    let answer = server.get("/livez").header("origin", PAGE).send().await.expect("an answer");
    assert!(!answer.headers().keys().any(|name| name.as_str().starts_with("access-control")));
    server.stop().await;
}

#[actix_web::test]
async fn a_head_over_the_limit_is_refused_and_one_below_is_not() {
    let server = server().await;
    assert_eq!(
        server.get("/livez").header("x-long", "a".repeat(1_500)).send().await.expect("an answer").status(),
        200
    );
    problem(server.get("/livez").header("x-long", "a".repeat(2_000)), 431, "2000").await;
    let many =
        (0..200).fold(server.get("/livez"), |request, index| request.header(format!("x-{index}"), "a"));
    let status = many.send().await.map(|answer| answer.status().as_u16()).unwrap_or(431);
    assert!([400, 431].contains(&status), "{status}");
    server.stop().await;
}

#[actix_web::test]
async fn a_second_head_that_only_begins_closes_its_connection_as_a_first_one_does() {
    let edge = EdgeConfig { header_timeout_ms: 200, keep_alive_s: 600, ..EdgeConfig::default() };
    let server = Server::start_keyed_with(ApiConfig { edge, ..ApiConfig::default() }).await;
    let to = server.url.trim_start_matches("http://");
    for first in ["", "GET /livez HTTP/1.1\r\nhost: a\r\n\r\n"] {
        let mut connection = TcpStream::connect(to).await.expect("connects");
        connection.write_all(first.as_bytes()).await.expect("open");
        let mut answer = [0; 4_096];
        if !first.is_empty() {
            assert!(connection.read(&mut answer).await.expect("an answer") > 0);
        }
        let (mut read, mut write) = connection.into_split();
        let trickle = actix_web::rt::spawn(async move {
            for letter in "GET /livez HTTP/1.1\r\nx-long: ".bytes().chain([b'a'; 4_000]) {
                if write.write_all(&[letter]).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        // Far below the time of the trickle and the pause between requests.
        let ended = tokio::time::timeout(Duration::from_secs(10), async {
            while read.read(&mut answer).await.is_ok_and(|bytes| bytes > 0) {}
        });
        assert!(ended.await.is_ok(), "the connection is kept: {first:?} was answered");
        trickle.abort();
    }
    server.stop().await;
}
