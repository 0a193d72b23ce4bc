//! `/metrics` and `/healthz` over HTTP/1.1: one request a connection, GET and HEAD only.
//!
//! Small on purpose: what a scraper and a probe need, with a bound on everything that a stranger can make it hold.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::metrics::Metrics;

const MAX_HEAD: usize = 8 << 10;
const MAX_CONNECTIONS: usize = 64;
const PATIENCE: Duration = Duration::from_secs(2);
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const TEXT: &str = "text/plain; charset=utf-8";
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Answers on `listener`. Never ends.
pub(crate) async fn serve(listener: TcpListener, metrics: Metrics) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let metrics = metrics.clone();
                tokio::spawn(async move {
                    // A peer that is slow or gone costs itself the answer.
                    let _ = timeout(PATIENCE, answer(stream, metrics)).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept on the metrics address");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn answer(mut stream: TcpStream, metrics: Metrics) -> io::Result<()> {
    let head = head(&mut stream).await?;
    let (status, kind, body) = route(&head, &metrics);
    let mut response = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    if !head.starts_with("HEAD ") {
        response.push_str(&body);
    }
    stream.write_all(response.as_bytes()).await?;
    stream.shutdown().await?;
    // Closing with unread bytes would reset the connection and lose the answer.
    let mut rest = [0; 512];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
}

/// Everything up to the empty line, or as much as is accepted.
async fn head(stream: &mut TcpStream) -> io::Result<String> {
    let mut bytes = Vec::with_capacity(512);
    let mut part = [0; 512];
    while bytes.len() < MAX_HEAD && !bytes.windows(4).any(|four| four == b"\r\n\r\n") {
        let read = stream.read(&mut part).await?;
        if read == 0 {
            break;
        }
        bytes.extend_from_slice(&part[..read]);
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn route(head: &str, metrics: &Metrics) -> (&'static str, &'static str, String) {
    let line = head.lines().next().unwrap_or_default();
    let mut words = line.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next());
    let complete = head.contains("\r\n\r\n");
    let (true, Some(target)) = (complete, target) else {
        return ("400 Bad Request", TEXT, "no HTTP request\n".into());
    };
    if method != "GET" && method != "HEAD" {
        return ("405 Method Not Allowed", TEXT, "GET or HEAD\n".into());
    }
    let path = target.split('?').next().unwrap_or_default();
    match path {
        "/healthz" => ("200 OK", TEXT, "ok\n".into()),
        "/metrics" => match metrics.text() {
            Ok(text) => ("200 OK", OPENMETRICS, text),
            Err(error) => ("500 Internal Server Error", TEXT, format!("{error}\n")),
        },
        _ => ("404 Not Found", TEXT, "/metrics or /healthz\n".into()),
    }
}
