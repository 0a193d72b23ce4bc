//! The pods' sockets: their flags, and how they are put together.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{Args as Flags, ValueEnum};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::pages;
use crate::bill::Book;
use crate::bill::grants::{Granter, StandaloneRule};
use crate::bytes::Bytes;
use crate::node::Sidecars;
use crate::records::Records;
use crate::sockets::{Billing, Claims, RunDirectory, Service, Sockets};

/// What pods may ask the driver.
#[derive(Debug, Flags)]
pub(super) struct SocketsFlags {
    /// Bytes that pods are granted at a time.
    #[arg(long, env = "VINEYARD_GRANT_CHUNK", value_name = "BYTES", default_value = "64MiB", value_parser = pages)]
    grant_chunk: Bytes,

    /// Seconds that a sidecar may take to say hello, to finish a frame that it began, and to read a reply.
    #[arg(
        long,
        env = "VINEYARD_PATIENCE",
        value_name = "SECONDS",
        default_value_t = 5,
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    patience: u64,

    /// What happens to a pod that would write and has no sidecar that pays for it.
    #[arg(
        long,
        env = "VINEYARD_SIDECAR_POLICY",
        value_name = "POLICY",
        default_value = "allow"
    )]
    sidecar: SidecarPolicy,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SidecarPolicy {
    /// It is billed itself for what it writes.
    Allow,
    /// It is refused, with an event on it. Needs records in Kubernetes.
    Require,
}

impl SocketsFlags {
    /// Which pods have a sidecar, where those that write must have one.
    ///
    /// # Errors
    /// When it cannot be known.
    pub(super) fn sidecars(&self, records: &Records) -> anyhow::Result<Option<Arc<dyn Sidecars>>> {
        match self.sidecar {
            SidecarPolicy::Allow => Ok(None),
            SidecarPolicy::Require => {
                let known = records.sidecars();
                let known = known.context("--sidecar=require is for records in Kubernetes")?;
                Ok(Some(known))
            }
        }
    }

    /// The sockets volumes below `run`, for pods that `claims` tells.
    pub(super) fn build(
        self,
        run: RunDirectory,
        claims: Claims,
        billing: Arc<dyn Billing>,
    ) -> anyhow::Result<Sockets> {
        let Self {
            grant_chunk,
            patience,
            sidecar: _,
        } = self;
        let book = Book::open(&run.book(), &claims.boot_id).context("records of grants")?;
        let granter = Granter {
            book: Arc::new(book),
            rule: Box::new(StandaloneRule),
            chunk: grant_chunk,
        };
        allow_descriptors().context("limit of open files")?;
        let patience = Duration::from_secs(patience);
        let service = Service::new(granter, claims, billing, patience);
        Ok(Sockets::new(run, service))
    }
}

/// As many as this process may have: each pod may pass a few hundred.
fn allow_descriptors() -> io::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(())
}
