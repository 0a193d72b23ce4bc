//! How kubelet learns of the node plugin: it watches a directory for sockets and asks whoever serves there.

use std::path::PathBuf;

use tokio::sync::mpsc;
use tonic::{Request, Response, Status, async_trait};
use vineyard_proto::pluginregistration::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse, registration_server,
};

use crate::identity::DRIVER;

/// Name of our socket in kubelet's directory of plugins.
///
/// Kubelet's call has the socket's path, percent-encoded, as its `:authority`. A host name has no `%`, so our HTTP library would refuse the
/// call; what is in front of an `@` may have it (`docs/adr/0009-the-registration-socket-has-an-at-sign.md`).
pub(crate) const SOCKET: &str = "csi@vineyard.io-reg.sock";

/// Version of CSI as kubelet compares it.
const CSI_VERSION: &str = "1.0.0";

/// Answers kubelet's questions about the plugin.
#[derive(Debug)]
pub(crate) struct Registration {
    /// Our CSI socket, as kubelet reaches it.
    pub(crate) endpoint: PathBuf,
    /// Gets kubelet's refusal. A process that is refused ends, so that it is started, and asked, again.
    pub(crate) refused: mpsc::Sender<String>,
}

#[async_trait]
impl registration_server::Registration for Registration {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".into(),
            name: DRIVER.into(),
            endpoint: self.endpoint.display().to_string(),
            supported_versions: vec![CSI_VERSION.into()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        if status.plugin_registered {
            tracing::info!("registered with kubelet");
        } else {
            tracing::error!(error = status.error, "kubelet refused the registration");
            // One is enough; the process ends.
            let _ = self.refused.try_send(status.error);
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::time::Duration;

    use registration_server::{Registration as _, RegistrationServer};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;
    use tokio_stream::wrappers::UnixListenerStream;
    use tonic::transport::Server;

    #[tokio::test]
    async fn kubelet_is_told_who_we_are_and_its_refusal_is_passed_on() {
        let (refused, mut refusals) = mpsc::channel(1);
        let registration = Registration {
            endpoint: "/plugins/csi.sock".into(),
            refused,
        };
        let told = registration
            .get_info(Request::new(InfoRequest {}))
            .await
            .unwrap()
            .into_inner();
        assert_eq!(
            (told.r#type.as_str(), told.name.as_str()),
            ("CSIPlugin", "vineyard.io")
        );
        assert_eq!(told.endpoint, "/plugins/csi.sock");
        assert_eq!(told.supported_versions, ["1.0.0"]);
        let status = |plugin_registered, error: &str| {
            Request::new(RegistrationStatus {
                plugin_registered,
                error: error.into(),
            })
        };
        registration
            .notify_registration_status(status(true, ""))
            .await
            .unwrap();
        assert!(refusals.try_recv().is_err());
        registration
            .notify_registration_status(status(false, "no"))
            .await
            .unwrap();
        assert_eq!(refusals.recv().await.unwrap(), "no");
    }

    /// As gRPC for Go makes an authority of what it dials.
    fn authority(path: &Path) -> String {
        let allowed =
            |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.~!$&'()*+,;=:[]@".contains(byte);
        let text = path.to_str().unwrap();
        let encoded = text.bytes().map(|byte| match allowed(&byte) {
            true => char::from(byte).to_string(),
            false => format!("%{byte:02X}"),
        });
        encoded.collect()
    }

    /// A frame of HTTP/2 on stream `stream`.
    fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
        let head = [0, length[0], length[1], kind, flags, 0, 0, 0, stream];
        [&head, payload].concat()
    }

    /// What kubelet writes for GetInfo, but for Huffman codes, which do not matter.
    fn get_info(authority: &str) -> Vec<u8> {
        let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
        let headers = [
            // :method POST, :scheme http
            vec![0x83, 0x86],
            vec![0x44],
            text("/pluginregistration.Registration/GetInfo"),
            // :authority, content-type, user-agent: values for names of the static table
            vec![0x41],
            text(authority),
            vec![0x5f],
            text("application/grpc"),
            vec![0x7a],
            text("grpc-go/1.79.3"),
            vec![0x40],
            text("te"),
            text("trailers"),
        ];
        let (end_stream, end_headers) = (0x1, 0x4);
        [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            frame(0x4, 0, 0, &[]),
            frame(0x1, end_headers, 1, &headers.concat()),
            // An empty message.
            frame(0x0, end_stream, 1, &[0; 5]),
        ]
        .concat()
    }

    /// What is answered, until the stream ends.
    async fn answer(stream: &mut UnixStream) -> Vec<(u8, Vec<u8>)> {
        let mut frames: Vec<(u8, Vec<u8>)> = Vec::new();
        loop {
            let mut head = [0; 9];
            stream.read_exact(&mut head).await.unwrap();
            let mut payload = vec![0; usize::from(u16::from_be_bytes([head[1], head[2]]))];
            stream.read_exact(&mut payload).await.unwrap();
            frames.push((head[3], payload));
            let ends = matches!(head[3], 0x0 | 0x1) && head[4] & 0x1 != 0;
            if ends || head[3] == 0x3 {
                return frames;
            }
        }
    }

    #[tokio::test]
    async fn a_call_whose_authority_is_the_path_of_our_socket_is_answered() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(SOCKET);
        let listener = crate::socket::listen(&path).await.unwrap();
        let registration = RegistrationServer::new(Registration {
            endpoint: "/plugins/csi.sock".into(),
            refused: mpsc::channel(1).0,
        });
        let served = Server::builder()
            .add_service(registration)
            .serve_with_incoming(UnixListenerStream::new(listener));
        let serving = tokio::spawn(served);
        let ask = async |path: &Path| {
            let mut stream = UnixStream::connect(folder.path().join(SOCKET))
                .await
                .unwrap();
            stream.write_all(&get_info(&authority(path))).await.unwrap();
            let answered = tokio::time::timeout(Duration::from_secs(60), answer(&mut stream));
            answered.await.unwrap()
        };
        let is_reset = |frames: &[(u8, Vec<u8>)]| frames.iter().any(|(kind, _)| *kind == 0x3);
        for registry in ["/var/lib/kubelet/plugins_registry", "/a b/ä%@/k:1"] {
            let frames = ask(&Path::new(registry).join(SOCKET)).await;
            assert!(!is_reset(&frames), "{registry}: {frames:?}");
            let message = frames.iter().find(|(kind, _)| *kind == 0x0).unwrap();
            let message = String::from_utf8_lossy(&message.1);
            assert!(message.contains("/plugins/csi.sock"), "{message}");
        }
        // When this is answered, too, the name needs no @ any more.
        let frames = ask(Path::new("/var/lib/kubelet/plugins_registry/x-reg.sock")).await;
        assert!(is_reset(&frames), "{frames:?}");
        serving.abort();
    }
}
