//! `kubectl vineyard volumes`: all of them.

use serde::Serialize;

use super::connection::Cluster;
use super::records::{Bill, Claim, Volume};
use crate::bytes::human;
use crate::exit::Outcome;
use crate::output::{Format, columns};

/// Show the volumes: claim, phase, home, use, and who is billed
#[derive(Debug, clap::Args)]
pub(super) struct Volumes {
    /// Only those of claims in the namespace
    #[arg(long)]
    mine: bool,
}

#[derive(Serialize)]
pub(super) struct Row {
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    claim: Option<Claim>,
    phase: String,
    node: String,
    capacity_bytes: u64,
    used_bytes: u64,
    billed: Vec<Bill>,
    pending_bytes: u64,
    /// When the node looked last.
    observed_at: String,
    troubles: Vec<String>,
    #[serde(skip)]
    title: String,
}

impl Volumes {
    pub(super) async fn run(&self, cluster: &Cluster, format: Format) -> anyhow::Result<Outcome> {
        let mut volumes = cluster.volumes().await?;
        if self.mine {
            volumes.retain(|volume| {
                let claim = volume.spec.claim.as_ref();
                claim.is_some_and(|claim| claim.namespace == cluster.namespace)
            });
        }
        let rows: Vec<_> = volumes.iter().map(Row::from).collect();
        format.print_rows(&rows, table)?;
        Ok(Outcome::Done)
    }
}

impl From<&Volume> for Row {
    fn from(volume: &Volume) -> Self {
        let usage = volume.status.usage.clone().unwrap_or_default();
        Self {
            id: volume.id().to_owned(),
            claim: volume.spec.claim.clone(),
            phase: volume.status.phase.clone(),
            node: volume.node().to_owned(),
            capacity_bytes: volume.spec.capacity,
            used_bytes: usage.used,
            billed: usage.billed,
            pending_bytes: usage.pending,
            observed_at: usage.observed_at,
            troubles: volume.troubles().map(str::to_owned).collect(),
            title: volume.title(),
        }
    }
}

/// The volumes, for people.
pub(super) fn table(rows: &[Row]) -> String {
    let mut text = columns(
        &[
            "claim",
            "phase",
            "node",
            "used",
            "capacity",
            "billed to",
            "volume",
        ],
        &[3, 4],
        rows.iter().map(|row| {
            vec![
                row.title.clone(),
                row.phase.clone(),
                row.node.clone(),
                human(row.used_bytes),
                human(row.capacity_bytes),
                payers(&row.billed),
                row.id.clone(),
            ]
        }),
    );
    for row in rows {
        for trouble in &row.troubles {
            let (title, trouble) = (
                crate::output::printable(&row.title),
                crate::output::printable(trouble),
            );
            text += &format!("{title}: {trouble}\n");
        }
    }
    text
}

/// The first payer, and how many more there are.
fn payers(billed: &[Bill]) -> String {
    match billed {
        [] => "-".into(),
        [only] => only.label(),
        [first, rest @ ..] => format!("{} and {} more", first.label(), rest.len()),
    }
}
