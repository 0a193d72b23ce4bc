//! The operator's socket. Only root may connect; whoever does is answered, one request after the other.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use vineyard_proto::admin::{Reply, Request, reply, request};

use super::Bills;
use crate::edge::chain;
use crate::socket::{self, SocketFile};

/// Name of the socket in the run directory.
pub(crate) const SOCKET: &str = "admin.sock";

/// The largest request.
const LARGEST: usize = 64 << 10;

/// Operators at the same time; a survey is work.
const CONNECTIONS: usize = 4;

/// A frame that has begun is whole by then, and a reply taken.
const PATIENCE: Duration = Duration::from_secs(30);

/// Out of descriptors, or worse: trying again at once does not help.
const PAUSE: Duration = Duration::from_millis(100);

/// Listens in `run_directory` and answers until the process ends. Returns the socket's file, for it to be removed then.
///
/// # Errors
/// When the socket cannot be made.
pub(crate) async fn serve(run_directory: &Path, bills: Bills) -> io::Result<SocketFile> {
    let path = run_directory.join(SOCKET);
    let listener = socket::listen(&path).await?;
    tokio::spawn(accept(listener, bills));
    Ok(SocketFile::of(&path))
}

async fn accept(listener: UnixListener, bills: Bills) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let bills = bills.clone();
                tokio::spawn(async move {
                    if let Err(error) = answer(stream, &bills).await {
                        tracing::debug!(%error, "an operator's connection ended");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "operators cannot connect");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn answer(mut stream: UnixStream, bills: &Bills) -> io::Result<()> {
    loop {
        let mut length = [0; 4];
        // Between two requests an operator may take his time, but not for ever: places are few.
        match within(20 * PATIENCE, stream.read_exact(&mut length)).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        };
        let length = u32::from_le_bytes(length) as usize;
        if length > LARGEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut frame = vec![0; length];
        within(PATIENCE, stream.read_exact(&mut frame)).await?;
        let body = match Request::decode(frame.as_slice()) {
            Ok(Request {
                body: Some(request::Body::GetBills(get)),
            }) => match bills.views(get.survey).await {
                Ok(bills) => reply::Body::Bills(bills),
                Err(error) => reply::Body::Refused(chain(&error)),
            },
            Ok(Request { body: None }) => {
                reply::Body::Refused("this driver does not know that request".into())
            }
            Err(error) => return Err(io::Error::other(error)),
        };
        let message = Reply { body: Some(body) }.encode_to_vec();
        let length = u32::try_from(message.len()).map_err(io::Error::other)?;
        let mut frame = length.to_le_bytes().to_vec();
        frame.extend(message);
        within(PATIENCE, stream.write_all(&frame)).await?;
    }
}

async fn within<T>(patience: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match tokio::time::timeout(patience, work).await {
        Ok(done) => done,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

#[cfg(test)]
mod tests {
    use vineyard_proto::admin::GetBills;

    use super::*;

    fn frame(request: &Request) -> Vec<u8> {
        let message = request.encode_to_vec();
        let mut frame = u32::try_from(message.len()).unwrap().to_le_bytes().to_vec();
        frame.extend(message);
        frame
    }

    async fn receive(stream: &mut UnixStream) -> Option<reply::Body> {
        let length = stream.read_u32_le().await.ok()?;
        let mut message = vec![0; length as usize];
        stream.read_exact(&mut message).await.unwrap();
        Reply::decode(message.as_slice()).unwrap().body
    }

    #[tokio::test]
    async fn an_operator_is_answered_again_and_again_and_nonsense_ends_only_its_own_connection() {
        let folder = tempfile::tempdir().unwrap();
        let mounter: Arc<dyn crate::mount::Mounter> =
            Arc::new(crate::mount::fake::FakeMounter::default());
        let bills = crate::bill::tests::unbilled(folder.path(), "boot", &mounter);
        serve(folder.path(), bills).await.unwrap();
        let connect = || UnixStream::connect(folder.path().join(SOCKET));
        let mut stream = connect().await.unwrap();
        let get = Request {
            body: Some(request::Body::GetBills(GetBills { survey: true })),
        };
        for _ in 0..2 {
            stream.write_all(&frame(&get)).await.unwrap();
            let answer = receive(&mut stream).await;
            assert!(matches!(answer, Some(reply::Body::Bills(bills)) if !bills.has_retainer));
        }
        let unknown = frame(&Request { body: None });
        stream.write_all(&unknown).await.unwrap();
        let answer = receive(&mut stream).await;
        assert!(matches!(answer, Some(reply::Body::Refused(_))));
        for nonsense in [&[0xff; 4][..], &[2, 0, 0, 0, 0xff, 0xff]] {
            let mut stream = connect().await.unwrap();
            stream.write_all(nonsense).await.unwrap();
            assert_eq!(receive(&mut stream).await, None);
        }
        stream.write_all(&frame(&get)).await.unwrap();
        assert!(receive(&mut stream).await.is_some());
    }
}
