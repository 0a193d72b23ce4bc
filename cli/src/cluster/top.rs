//! `kubectl vineyard top`: nodes and the largest volumes, again and again.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use serde::Serialize;

use super::connection::Cluster;
use super::records::Node;
use super::volumes;
use crate::bytes::{human, parse_duration};
use crate::exit::Outcome;
use crate::output::{Format, columns};

/// Clears a terminal and goes to its upper left corner.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// Show what nodes offer and hold, and the largest volumes; again and again
#[derive(Debug, clap::Args)]
pub(super) struct Top {
    /// Look once
    #[arg(long)]
    once: bool,
    /// Time between two looks
    #[arg(long, default_value = "2s", value_name = "TIME", value_parser = parse_duration)]
    interval: Duration,
    /// How many volumes
    #[arg(long, default_value_t = 20)]
    rows: usize,
}

#[derive(Serialize)]
struct Look {
    nodes: Vec<NodeRow>,
    /// Largest first.
    volumes: Vec<volumes::Row>,
}

#[derive(Serialize)]
struct NodeRow {
    node: String,
    pool: String,
    budget_bytes: u64,
    booked_bytes: u64,
    charged_bytes: u64,
    retained_bytes: u64,
    pending_bytes: u64,
    /// The retainer's memory request.
    requested_bytes: Option<u64>,
}

impl Top {
    pub(super) async fn run(&self, cluster: &Cluster, format: Format) -> anyhow::Result<Outcome> {
        loop {
            let look = self.look(cluster).await?;
            if format == Format::Table && !self.once && io::stdout().is_terminal() {
                io::stdout().write_all(CLEAR.as_bytes())?;
            }
            format.print(&look, table)?;
            io::stdout().flush()?;
            if self.once {
                return Ok(Outcome::Done);
            }
            tokio::time::sleep(self.interval).await;
        }
    }

    async fn look(&self, cluster: &Cluster) -> anyhow::Result<Look> {
        let mut volumes = cluster.volumes().await?;
        volumes.sort_by_key(|volume| std::cmp::Reverse(volume.used()));
        volumes.truncate(self.rows);
        Ok(Look {
            nodes: cluster.nodes().await?.iter().map(NodeRow::from).collect(),
            volumes: volumes.iter().map(volumes::Row::from).collect(),
        })
    }
}

impl From<&Node> for NodeRow {
    fn from(node: &Node) -> Self {
        let report = &node.status.report;
        Self {
            node: node.name().to_owned(),
            pool: node.spec.pool.clone(),
            budget_bytes: node.spec.budget,
            booked_bytes: node.status.booked_bytes,
            charged_bytes: report.charged,
            retained_bytes: report.retained,
            pending_bytes: report.pending,
            requested_bytes: report.retainer.as_ref().map(|it| it.requested),
        }
    }
}

fn table(look: &Look) -> String {
    let header = [
        "node",
        "pool",
        "budget",
        "booked",
        "charged",
        "retained",
        "wrong bill",
        "request",
    ];
    let rows = look.nodes.iter().map(|node| {
        vec![
            node.node.clone(),
            node.pool.clone(),
            human(node.budget_bytes),
            human(node.booked_bytes),
            human(node.charged_bytes),
            human(node.retained_bytes),
            human(node.pending_bytes),
            node.requested_bytes.map_or_else(|| "-".into(), human),
        ]
    });
    let mut text = columns(&header, &[2, 3, 4, 5, 6, 7], rows);
    text.push('\n');
    text += &volumes::table(&look.volumes);
    text
}
