//! The webhook: its flags, and how it is put together.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use clap::Args as Flags;

use crate::bytes::Bytes;
use crate::volume::Catalog;
use crate::webhook::{
    Certificates, Lifetimes, Lookup, Retained, Reviewer, Rotation, Settings, Trust, Webhook,
};

/// What the controller injects into pods.
#[derive(Debug, Flags)]
pub(super) struct WebhookFlags {
    /// Address of the mutating webhook (HTTPS, path /mutate), e.g. 0.0.0.0:9443. None: not served.
    #[arg(
        long,
        env = "VINEYARD_WEBHOOK",
        value_name = "ADDRESS:PORT",
        requires = "sidecar_image"
    )]
    webhook_listen: Option<SocketAddr>,

    /// Name of the Service that the API server calls: its certificate is for this name in the namespace.
    #[arg(
        long,
        env = "VINEYARD_WEBHOOK_SERVICE",
        value_name = "NAME",
        default_value = "vineyard-webhook"
    )]
    webhook_service: String,

    /// MutatingWebhookConfiguration whose webhooks get the certificate authority.
    #[arg(
        long,
        env = "VINEYARD_WEBHOOK_CONFIGURATION",
        value_name = "NAME",
        default_value = "vineyard"
    )]
    webhook_configuration: String,

    /// Secret in the namespace that keeps the certificate authority; all replicas share it.
    #[arg(
        long,
        env = "VINEYARD_WEBHOOK_SECRET",
        value_name = "NAME",
        default_value = "vineyard-webhook"
    )]
    webhook_secret: String,

    /// Image of the sidecar that is injected into pods.
    #[arg(long, env = "VINEYARD_SIDECAR_IMAGE", value_name = "IMAGE")]
    sidecar_image: Option<String>,

    /// Memory of a sidecar itself, beside what its pod may add.
    #[arg(
        long,
        env = "VINEYARD_SIDECAR_OVERHEAD",
        value_name = "BYTES",
        default_value = "32MiB"
    )]
    sidecar_overhead: Bytes,

    /// Processor time that a sidecar asks for, in thousandths of a processor.
    #[arg(
        long,
        env = "VINEYARD_SIDECAR_CPU",
        value_name = "MILLICORES",
        default_value_t = 10
    )]
    sidecar_cpu: u64,
}

impl WebhookFlags {
    /// The webhook of the namespace; none when it has no address.
    ///
    /// # Errors
    /// Without Kubernetes there are no pods.
    pub(super) fn build(
        self,
        kubernetes: Option<(kube::Client, &str)>,
        catalog: &Arc<dyn Catalog>,
    ) -> anyhow::Result<Option<Webhook>> {
        let Self {
            webhook_listen,
            webhook_service,
            webhook_configuration,
            webhook_secret,
            sidecar_image,
            sidecar_overhead,
            sidecar_cpu,
        } = self;
        let Some(listen) = webhook_listen else {
            return Ok(None);
        };
        let (client, namespace) =
            kubernetes.context("--webhook-listen is for records in Kubernetes")?;
        let settings = Settings {
            image: sidecar_image.context("--sidecar-image is missing")?,
            overhead: sidecar_overhead,
            cpu: sidecar_cpu,
        };
        let trust = Trust::new(
            client.clone(),
            namespace,
            &webhook_secret,
            &webhook_configuration,
        );
        Ok(Some(Webhook {
            listen,
            retained: Retained::new(client.clone(), namespace),
            reviewer: Reviewer {
                lookup: Lookup::new(client, Arc::clone(catalog)),
                settings,
            },
            rotation: Rotation {
                trust,
                certificates: Arc::new(Certificates::default()),
                names: vec![format!("{webhook_service}.{namespace}.svc")],
                lifetimes: Lifetimes::default(),
            },
        }))
    }
}
