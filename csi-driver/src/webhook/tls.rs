//! Connections of the API server: TLS with whatever certificate is current, exchanged without a restart.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::server::TlsStream;

use super::authority::{Lifetimes, Serving};
use super::error::TlsError;
use super::trust::Trust;

/// Handshakes at the same time, and how long one may take.
const HANDSHAKES: usize = 64;
const HANDSHAKE: Duration = Duration::from_secs(5);

/// How often Secret and configuration are compared with what is served: an upgrade of the chart may reset either.
const LOOK: Duration = Duration::from_secs(15);
const RETRY: Duration = Duration::from_secs(2);

/// After an error of accept(2), such as no free descriptor.
const PAUSE: Duration = Duration::from_millis(100);

/// The certificate that is served now.
#[derive(Debug, Default)]
pub(crate) struct Certificates {
    current: RwLock<Option<Arc<CertifiedKey>>>,
    /// What the API server was made to believe.
    bundle: RwLock<Option<String>>,
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Certificates {
    fn set(&self, key: CertifiedKey, bundle: String) {
        let current = Some(Arc::new(key));
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = current;
        *self.bundle.write().unwrap_or_else(PoisonError::into_inner) = Some(bundle);
    }

    /// The bundle that the certificate is believed by; none before the first.
    pub(super) fn bundle(&self) -> Option<String> {
        self.bundle
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Keeps the certificate valid and believed.
#[derive(Debug)]
pub(crate) struct Rotation {
    /// Secret and configuration.
    pub(crate) trust: Trust,
    /// Where the certificate is served from.
    pub(crate) certificates: Arc<Certificates>,
    /// The names of the server.
    pub(crate) names: Vec<String>,
    /// How long certificates are good.
    pub(crate) lifetimes: Lifetimes,
}

impl Rotation {
    /// The first certificate that is believed; none when it does not come within `patience`.
    pub(super) async fn first(&self, patience: Duration) -> Option<Current> {
        let mut serving = None;
        let begun = timeout(patience, async {
            loop {
                let pause = self.look(&mut serving).await;
                if serving.is_some() {
                    return;
                }
                tokio::time::sleep(pause).await;
            }
        });
        if begun.await.is_err() {
            tracing::warn!("the API server does not believe the webhook yet");
        }
        serving
    }

    /// Goes on with what is served. Never ends.
    pub(super) async fn run(self, mut serving: Option<Current>) {
        loop {
            let pause = self.look(&mut serving).await;
            // Short lifetimes are looked at more often.
            tokio::time::sleep(pause.min(self.lifetimes.serving_margin / 2)).await;
        }
    }

    /// Looks once. Returns when to look again.
    async fn look(&self, serving: &mut Option<Current>) -> Duration {
        match self.turn(serving, SystemTime::now()).await {
            Ok(()) => LOOK,
            Err(error) => {
                tracing::warn!(%error, "the webhook's certificates; it is tried again");
                RETRY
            }
        }
    }

    /// Looks once, at `now`: what is near its end is replaced. The API server believes a new authority before it is used.
    ///
    /// # Errors
    /// [`TlsError`]; what was served goes on to be served.
    pub(super) async fn turn(
        &self,
        serving: &mut Option<Current>,
        now: SystemTime,
    ) -> Result<(), TlsError> {
        let authority = self.trust.authority(now, &self.lifetimes).await?;
        let bundle = authority.bundle();
        if self.trust.believe(&bundle).await? {
            tracing::info!("the API server believes the webhook's certificates");
        }
        let is_good = |it: &Current| it.bundle == bundle && now < it.due;
        if serving.as_ref().is_some_and(is_good) {
            return Ok(());
        }
        let fresh = authority.serving(&self.names, now, self.lifetimes.serving)?;
        let Serving { key, expires } = fresh;
        self.certificates.set(key, bundle.clone());
        let due = expires - self.lifetimes.serving_margin;
        *serving = Some(Current { bundle, due });
        tracing::info!(names = ?self.names, "a new serving certificate");
        Ok(())
    }
}

/// What is known of the certificate that is served.
#[derive(Debug)]
pub(super) struct Current {
    bundle: String,
    due: SystemTime,
}

/// Accepts connections and shakes hands with several at a time: one that is slow holds nobody up.
#[derive(Debug)]
pub(super) struct Listener {
    ready: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    address: SocketAddr,
}

impl Listener {
    /// Takes over `listener`. Must be called within a runtime.
    ///
    /// # Errors
    /// When the listener has no address, or the protocol versions are not to be had.
    pub(super) fn new(listener: TcpListener, certificates: Arc<Certificates>) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_no_client_auth()
            .with_cert_resolver(certificates);
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let (done, ready) = mpsc::channel(HANDSHAKES);
        tokio::spawn(accept(listener, acceptor, done));
        Ok(Self { ready, address })
    }
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    done: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>,
) {
    let places = Arc::new(Semaphore::new(HANDSHAKES));
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "the webhook cannot accept");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let (acceptor, done) = (acceptor.clone(), done.clone());
        tokio::spawn(async move {
            match timeout(HANDSHAKE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => drop(done.send((stream, peer)).await),
                Ok(Err(error)) => tracing::debug!(%peer, %error, "no handshake"),
                Err(_) => tracing::debug!(%peer, "a handshake took too long"),
            }
            drop(place);
        });
    }
}

impl axum::serve::Listener for Listener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.ready.recv().await {
            Some(ready) => ready,
            // The runtime is being shut down.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}
