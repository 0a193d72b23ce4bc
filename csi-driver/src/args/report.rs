//! What operators look at: its flags.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args as Flags;
use tokio::net::TcpListener;

use crate::node::Node;
use crate::report::{Page, Reporter};

/// What a node writes into the records.
#[derive(Debug, Flags)]
pub(super) struct ReportFlags {
    /// Between two looks at what is written into the records: who is billed for volumes, how the node stands; in milliseconds.
    #[arg(
        long,
        env = "VINEYARD_REPORT_PERIOD",
        value_name = "MILLISECONDS",
        default_value_t = 10_000,
        value_parser = clap::value_parser!(u64).range(10..)
    )]
    report_period: u64,

    /// Address of this node's pod, for who wants to scrape it. None: not said.
    #[arg(long, env = "VINEYARD_ADDRESS", value_name = "ADDRESS")]
    address: Option<IpAddr>,
}

impl ReportFlags {
    /// What writes for `node`, whose health is served at the port of `http`.
    pub(super) fn build(self, node: Arc<Node>, http: Option<SocketAddr>) -> Reporter {
        let Self {
            report_period,
            address,
        } = self;
        let address = address.zip(http);
        let endpoint = address.map(|(ip, http)| SocketAddr::new(ip, http.port()).to_string());
        Reporter::new(node, Duration::from_millis(report_period), endpoint)
    }
}

/// The web page.
#[derive(Debug, Flags)]
pub(super) struct WebFlags {
    /// Address that serves the read-only web page, e.g. 127.0.0.1:9811. It has no login. None: not served.
    #[arg(long, env = "VINEYARD_WEB_LISTEN", value_name = "ADDRESS:PORT")]
    web_listen: Option<SocketAddr>,
}

impl WebFlags {
    /// Where the page is to be served, if anywhere.
    pub(super) fn address(self) -> Option<SocketAddr> {
        self.web_listen
    }
}

/// Serves the page from now on.
///
/// # Errors
/// When nobody may listen there.
pub(super) async fn serve(address: SocketAddr, page: Page) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).await;
    let listener = listener.with_context(|| format!("listen on {address}"))?;
    tracing::info!(%address, "the web page is served");
    tokio::spawn(page.serve(listener));
    Ok(())
}
