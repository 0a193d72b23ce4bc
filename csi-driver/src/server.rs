//! Serving: the CSI socket, kubelet's registration socket, and an orderly end.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::service::Routes;
use tonic::transport::Server;
use vineyard_proto::pluginregistration::registration_server::RegistrationServer;

use crate::registration::Registration;
use crate::socket::{self, SocketFile};

/// How long calls that are under way may take after the process was told to end.
const FAREWELL: Duration = Duration::from_secs(20);

/// Serves `services` at `endpoint` until SIGTERM or SIGINT.
///
/// With `registry`, kubelet's directory of plugins, the plugin also announces itself there.
///
/// # Errors
/// When a socket cannot be served, or kubelet refuses the plugin.
pub(crate) async fn run(
    services: Routes,
    endpoint: PathBuf,
    registry: Option<PathBuf>,
) -> anyhow::Result<()> {
    // Before anybody can know that it serves, and so tell it to end.
    let signalled = signalled().context("signals")?;
    let (stop, stopped) = watch::channel(false);
    let (refused, mut refusals) = mpsc::channel(1);
    let listener = listen(&endpoint)
        .await
        .with_context(|| format!("listen on {}", endpoint.display()))?;
    tracing::info!(endpoint = %endpoint.display(), "serving");
    let mut files = vec![SocketFile::of(&endpoint)];
    let mut serving = tokio::spawn(
        Server::builder()
            .add_routes(services)
            .serve_with_incoming_shutdown(UnixListenerStream::new(listener), told(stopped.clone())),
    );
    if let Some(registry) = registry {
        let path = registry.join(crate::registration::SOCKET);
        let listener = socket::listen(&path)
            .await
            .with_context(|| format!("listen on {}", path.display()))?;
        files.push(SocketFile::of(&path));
        let registration = RegistrationServer::new(Registration {
            endpoint,
            refused: refused.clone(),
        });
        tokio::spawn(
            Server::builder()
                .add_service(registration)
                .serve_with_incoming_shutdown(UnixListenerStream::new(listener), told(stopped)),
        );
    }
    tokio::select! {
        ended = &mut serving => return ended.context("serve")?.context("serve"),
        Some(reason) = refusals.recv() => anyhow::bail!("kubelet refused the registration: {reason}"),
        () = signalled => {}
    }
    tracing::info!("told to end");
    let _ = stop.send(true);
    // The registration first: kubelet forgets the plugin when its socket is gone, and knows the next one by its own.
    for file in files.into_iter().rev() {
        file.remove();
    }
    // Calls that outlive this are picked up by the next process: every step may be repeated.
    if tokio::time::timeout(FAREWELL, serving).await.is_err() {
        tracing::warn!("ended although calls were under way");
    }
    Ok(())
}

/// Listens there. The directory is made when it is missing: on a new node nobody else makes the plugin's.
async fn listen(endpoint: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = endpoint.parent() {
        let mut made = DirBuilder::new();
        made.recursive(true).mode(0o750).create(directory)?;
    }
    socket::listen(endpoint).await
}

async fn told(mut stopped: watch::Receiver<bool>) {
    // An error means that the sender is gone, and with it everything else.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// From now on these signals do not end the process; what is returned does when one comes.
fn signalled() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
