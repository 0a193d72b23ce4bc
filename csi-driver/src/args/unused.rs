//! Whether anything is lost when all of it is uninstalled now: asked by the chart before Helm takes the records away.

use anyhow::Context;

use super::CONTROLLER;
use crate::metrics::Metrics;
use crate::records::RecordFlags;
use crate::volume::Listing;

/// The most volumes that are named.
const NAMED: usize = 10;

/// Fails when there are volumes, and names them.
///
/// # Errors
/// Also when nobody can tell.
pub(super) fn run(records: &RecordFlags) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("runtime")?;
    let listing = runtime.block_on(async {
        let records = records.open(CONTROLLER, Metrics::new().events()).await?;
        anyhow::Ok(records.catalog.list().await?)
    })?;
    // A watch that is under way must not hold the process.
    runtime.shutdown_background();
    match said(&names(&listing)) {
        None => Ok(()),
        Some(said) => anyhow::bail!("{said}. Delete their claims first"),
    }
}

fn names(listing: &Listing) -> Vec<String> {
    let volumes = listing.volumes.iter().map(|stored| {
        let volume = &stored.volume;
        match &volume.claim {
            Some(claim) => format!("{} of claim {claim}", volume.id),
            None => volume.id.to_string(),
        }
    });
    let unread = listing.corrupt.iter().map(|it| it.path.clone());
    volumes.chain(unread).collect()
}

fn said(names: &[String]) -> Option<String> {
    let more = match names.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let named = names.get(..NAMED).unwrap_or(names).join(", ");
    (!names.is_empty()).then(|| format!("{} volumes are there: {named}{more}", names.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_be_lost_is_named_up_to_a_bound() {
        let names: Vec<String> = (0..12).map(|number| format!("volume-{number}")).collect();
        assert_eq!(said(&[]), None);
        let one = said(&names[..1]).unwrap();
        assert_eq!(one, "1 volumes are there: volume-0");
        let many = said(&names).unwrap();
        assert!(
            many.starts_with("12 volumes are there: volume-0, "),
            "{many}"
        );
        assert!(many.ends_with("volume-9 and 2 more"), "{many}");
    }
}
