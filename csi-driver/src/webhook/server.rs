//! The HTTPS server: `/mutate` for the API server, `/healthz`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::DefaultBodyLimit;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::error::Error;
use super::replace::Replacement;
use super::review::Reviewer;
use super::tls::{Certificates, Listener, Rotation};
use crate::edge::chain;
use crate::metrics::Metrics;

/// A pod has at most 1.5 MiB, and a review may have two of them.
const MOST: usize = 4 << 20;

/// The API server has given up by then.
const PATIENCE: Duration = Duration::from_secs(10);

/// Everything that the webhook serves.
#[derive(Debug)]
pub(crate) struct Webhook {
    /// Where.
    pub(crate) listen: SocketAddr,
    /// Answers.
    pub(crate) reviewer: Reviewer,
    /// Keeps the certificate.
    pub(crate) rotation: Rotation,
}

impl Webhook {
    /// Serves until the process ends. Returns where.
    ///
    /// # Errors
    /// When the address is not to be had.
    pub(crate) async fn start(self, metrics: Metrics) -> std::io::Result<SocketAddr> {
        let Self {
            listen,
            reviewer,
            rotation,
        } = self;
        let listener = TcpListener::bind(listen).await?;
        let certificates: Arc<Certificates> = Arc::clone(&rotation.certificates);
        let listener = Listener::new(listener, certificates)?;
        let address = axum::serve::Listener::local_addr(&listener)?;
        let (lookup, trust) = (reviewer.lookup.clone(), rotation.trust.clone());
        let replacement = Replacement::new(lookup, trust, Arc::clone(&rotation.certificates));
        let reviewer = Arc::new(reviewer);
        let mutate = move |body: Bytes| mutate(Arc::clone(&reviewer), metrics.clone(), body);
        let routes = Router::new()
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/mutate", post(mutate))
            .layer(DefaultBodyLimit::max(MOST));
        tokio::spawn(rotation.run());
        tokio::spawn(replacement.run());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        tracing::info!(%address, "the webhook listens");
        Ok(address)
    }
}

async fn mutate(reviewer: Arc<Reviewer>, metrics: Metrics, body: Bytes) -> Response {
    let answered = timeout(PATIENCE, reviewer.answer(&body)).await;
    let failed = |status, error: String| {
        metrics.reviewed("failed");
        tracing::warn!(error, "a review has no answer");
        (status, error).into_response()
    };
    match answered {
        Ok(Ok((review, outcome))) => match serde_json::to_vec(&review) {
            Ok(json) => {
                metrics.reviewed(outcome.as_str());
                ([(header::CONTENT_TYPE, "application/json")], json).into_response()
            }
            Err(error) => failed(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        },
        Ok(Err(error @ Error::Malformed(_))) => failed(StatusCode::BAD_REQUEST, chain(&error)),
        Ok(Err(error)) => failed(StatusCode::INTERNAL_SERVER_ERROR, chain(&error)),
        Err(_) => failed(
            StatusCode::GATEWAY_TIMEOUT,
            "Kubernetes does not say in time what the pod's claims are".to_owned(),
        ),
    }
}
