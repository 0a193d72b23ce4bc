//! Why a pod is refused, and why the webhook cannot answer.

use crate::volume::catalog;

/// Why a pod is not admitted: its author has to change it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// A value that the annotation does not take.
    #[error("annotation {key} is {value:?}, not {expected}")]
    Annotation {
        /// Which.
        key: &'static str,
        /// What it says.
        value: String,
        /// What it takes.
        expected: &'static str,
    },
    /// Something else has the name of the sockets volume.
    #[error(
        "volume {0:?} is not a sockets volume (inline CSI, driver vineyard.io): the name is taken by the webhook of vineyard.io"
    )]
    Volume(&'static str),
    /// The annotation names a volume that is none of ours.
    #[error(
        "annotation vineyard.io/volume names {0:?}, which is no volume of a vineyard claim in this pod"
    )]
    NoVolume(String),
}

/// Why a review is not answered; the API server then does what the webhook's failure policy says.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Error {
    /// It asks for something else than a review of a pod.
    #[error("not an AdmissionReview (admission.k8s.io/v1) of a pod: {0}")]
    Malformed(String),
    /// Kubernetes does not say what a pod's claims are.
    #[error("{doing}: {source}")]
    Lookup {
        /// What was asked for.
        doing: String,
        /// What came of it.
        source: Box<kube::Error>,
    },
    /// The record of a volume.
    #[error(transparent)]
    Catalog(#[from] catalog::Error),
    /// A bug.
    #[error("the patch cannot be written: {0}")]
    Patch(String),
}

/// Why there is no certificate that the API server believes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum TlsError {
    /// A key or a certificate cannot be made.
    #[error("make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// It cannot be served.
    #[error("serve a certificate: {0}")]
    Serve(#[from] tokio_rustls::rustls::Error),
    /// Kubernetes does not keep it, or does not believe it.
    #[error("{doing}: {source}")]
    Kubernetes {
        /// What was tried.
        doing: String,
        /// What came of it.
        source: Box<kube::Error>,
    },
    /// The Secret was changed meanwhile, again and again.
    #[error("secret {0} is changed by others all the time")]
    Contended(String),
    /// The Secret has something else.
    #[error("secret {secret}: {key} {reason}")]
    Malformed {
        /// Which.
        secret: String,
        /// What in it.
        key: &'static str,
        /// What is wrong.
        reason: String,
    },
}
