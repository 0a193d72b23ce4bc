//! The HTTPS server: `/mutate` (pods with claims) and `/retainer` (the retainer's pods) for the API server, `/healthz`.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::DefaultBodyLimit;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use kube::core::DynamicObject;
use kube::core::admission::AdmissionReview;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::error::Error;
use super::replace::Replacement;
use super::retained::Retained;
use super::review::{Outcome, Reviewer};
use super::tls::{Certificates, Listener, Rotation};
use crate::edge::chain;
use crate::metrics::Metrics;

/// A pod has at most 1.5 MiB, and a review may have two of them.
const MOST: usize = 4 << 20;

/// The API server has given up by then.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long the first certificate may take, before the controller counts as ready without.
const BEGINNING: Duration = Duration::from_secs(20);

/// How long reviews that are under way may take when the process ends.
const FAREWELL: Duration = Duration::from_secs(4);

/// Everything that the webhook serves.
#[derive(Debug)]
pub(crate) struct Webhook {
    /// Where.
    pub(crate) listen: SocketAddr,
    /// Answers about pods with claims.
    pub(crate) reviewer: Reviewer,
    /// Answers about the retainer's pods.
    pub(crate) retained: Retained,
    /// Keeps the certificate.
    pub(crate) rotation: Rotation,
}

/// A webhook that is served, until this is told to end or the process does.
#[derive(Debug)]
pub(crate) struct Serving {
    /// Where.
    #[cfg(test)]
    pub(crate) address: SocketAddr,
    end: oneshot::Sender<()>,
    served: JoinHandle<std::io::Result<()>>,
}

impl Serving {
    /// Serves for `linger` still, because the API server goes on to call whom it knows until it hears of the end; then ends in order.
    pub(crate) async fn end(self, linger: Duration) {
        sleep(linger).await;
        // Gone already: then it has ended.
        let _ = self.end.send(());
        if timeout(FAREWELL, self.served).await.is_err() {
            tracing::warn!("the webhook ended although reviews were under way");
        }
    }
}

impl Webhook {
    /// Serves. Returns when the API server believes the certificate, so that whoever is told to be ready then is; after a while without.
    ///
    /// # Errors
    /// When the address is not to be had.
    pub(crate) async fn start(self, metrics: Metrics) -> std::io::Result<Serving> {
        let Self {
            listen,
            reviewer,
            retained,
            rotation,
        } = self;
        let listener = TcpListener::bind(listen).await?;
        let certificates: Arc<Certificates> = Arc::clone(&rotation.certificates);
        let listener = Listener::new(listener, certificates)?;
        let address = axum::serve::Listener::local_addr(&listener)?;
        let (lookup, trust) = (reviewer.lookup.clone(), rotation.trust.clone());
        let replacement = Replacement::new(lookup, trust, Arc::clone(&rotation.certificates));
        let counts = metrics.clone();
        let mutate = move |body: Bytes| {
            let reviewer = reviewer.clone();
            reply(counts.clone(), async move { reviewer.answer(&body).await })
        };
        let retainer = move |body: Bytes| {
            let retained = retained.clone();
            reply(metrics.clone(), async move { retained.answer(&body).await })
        };
        let routes = Router::new()
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/mutate", post(mutate))
            .route("/retainer", post(retainer))
            .layer(DefaultBodyLimit::max(MOST));
        let (end, told) = oneshot::channel();
        let told = async {
            // Nobody can tell it any more: it goes on as long as the process.
            if told.await.is_err() {
                std::future::pending().await
            }
        };
        let serving = axum::serve(listener, routes).with_graceful_shutdown(told);
        let served = tokio::spawn(serving.into_future());
        tokio::spawn(replacement.run());
        tracing::info!(%address, "the webhook listens");
        let first = rotation.first(BEGINNING).await;
        tokio::spawn(rotation.run(first));
        Ok(Serving {
            #[cfg(test)]
            address,
            end,
            served,
        })
    }
}

async fn reply(
    metrics: Metrics,
    answer: impl Future<Output = Result<(AdmissionReview<DynamicObject>, Outcome), Error>>,
) -> Response {
    let answered = timeout(PATIENCE, answer).await;
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
            "Kubernetes does not say in time what it is asked about the pod".to_owned(),
        ),
    }
}
