//! The web page: nodes, volumes and bills at a glance, live, and nothing that can be changed.
//!
//! It has no login. The chart lets it listen on the pod's own loopback address only, so that whoever may forward a port to the pod
//! may look (`kubectl port-forward`), and nobody else.

mod state;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::Mutex;

use super::Events;
use crate::controller::Offers;
use crate::edge::chain;
use crate::volume::{Catalog, catalog};

/// The page itself. Its placeholder is replaced, so that no other script can run in it.
const PAGE: &str = include_str!("page.html");
const PLACEHOLDER: &str = "{nonce}";

/// However many look: the records are read once in this time.
const FRESH: Duration = Duration::from_secs(1);

/// What the page shows.
#[derive(Debug)]
pub(crate) struct Page {
    /// The records.
    pub(crate) catalog: Arc<dyn Catalog>,
    /// What the nodes offer.
    pub(crate) nodes: Offers,
    /// How long a node may be silent before it is taken for dead.
    pub(crate) node_grace: Duration,
    /// What happened.
    pub(crate) events: Events,
}

struct Served {
    page: Page,
    /// Only names of this machine are answered: another site's name could be pointed here, and its scripts would read the answer.
    is_local: bool,
    last: Mutex<Option<(Instant, Arc<str>)>>,
}

impl Page {
    /// Answers on `listener` until the process ends.
    ///
    /// # Errors
    /// What the listener says.
    pub(crate) async fn serve(self, listener: TcpListener) -> std::io::Result<()> {
        let address = listener.local_addr()?;
        axum::serve(listener, self.routes(address)).await
    }

    fn routes(self, address: SocketAddr) -> Router {
        let served = Arc::new(Served {
            page: self,
            is_local: address.ip().is_loopback(),
            last: Mutex::default(),
        });
        Router::new()
            .route("/", get(page))
            .route("/api/state", get(json))
            .layer(middleware::from_fn_with_state(Arc::clone(&served), guard))
            .with_state(served)
    }
}

async fn guard(State(served): State<Arc<Served>>, request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST);
    let host = host.and_then(|host| host.to_str().ok()).unwrap_or_default();
    if served.is_local && !is_here(host) {
        let text = "this page answers to localhost and to addresses only\n";
        return (StatusCode::MISDIRECTED_REQUEST, text).into_response();
    }
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let nosniff = HeaderValue::from_static("nosniff");
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    let no_referrer = HeaderValue::from_static("no-referrer");
    headers.insert(header::REFERRER_POLICY, no_referrer);
    response
}

/// Whether a `Host` is an address, or this machine's own name.
fn is_here(host: &str) -> bool {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => return address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name == "localhost" || name.parse::<std::net::Ipv4Addr>().is_ok()
}

async fn page() -> Response {
    let nonce = match std::fs::read_to_string("/proc/sys/kernel/random/uuid") {
        Ok(uuid) => uuid.trim().to_owned(),
        Err(error) => {
            return (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response();
        }
    };
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8".to_owned()),
        (header::CONTENT_SECURITY_POLICY, policy),
    ];
    (headers, PAGE.replace(PLACEHOLDER, &nonce)).into_response()
}

async fn json(State(served): State<Arc<Served>>) -> Response {
    match served.state().await {
        Ok(text) => (
            [(header::CONTENT_TYPE, "application/json")],
            text.to_string(),
        )
            .into_response(),
        Err(error) => {
            let text = format!("the records cannot be read: {}", chain(&error));
            (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
    }
}

impl Served {
    async fn state(&self) -> Result<Arc<str>, catalog::Error> {
        let mut last = self.last.lock().await;
        if let Some((at, text)) = &*last
            && at.elapsed() < FRESH
        {
            return Ok(Arc::clone(text));
        }
        let text: Arc<str> = self.page.state().await?.to_string().into();
        *last = Some((Instant::now(), Arc::clone(&text)));
        Ok(text)
    }
}
