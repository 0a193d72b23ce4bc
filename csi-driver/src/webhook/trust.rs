//! Where the authority is kept (a Secret that all replicas share) and who believes it (the webhook's configuration).
//!
//! Replicas race: whoever writes the Secret first wins by its resourceVersion, and the others take what they find.

use std::fmt;
use std::time::SystemTime;

use json_patch::jsonptr::{PointerBuf, Token};
use json_patch::{AddOperation, Patch as JsonPatch, PatchOperation, ReplaceOperation};
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::json;

use super::authority::{Authority, Lifetimes};
use super::error::TlsError;

/// Others may be faster this often.
const TRIES: usize = 8;

/// The Secret and the configuration.
#[derive(Clone)]
pub(crate) struct Trust {
    secrets: Api<Secret>,
    secret: String,
    configurations: Api<MutatingWebhookConfiguration>,
    configuration: String,
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust")
            .field("secret", &self.secret)
            .field("configuration", &self.configuration)
            .finish_non_exhaustive()
    }
}

impl Trust {
    /// `secret` in `namespace`, and the MutatingWebhookConfiguration `configuration`.
    pub(crate) fn new(client: Client, namespace: &str, secret: &str, configuration: &str) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), namespace),
            secret: secret.to_owned(),
            configurations: Api::all(client),
            configuration: configuration.to_owned(),
        }
    }

    /// The authority of all replicas: made when there is none, replaced when its end is near.
    ///
    /// # Errors
    /// [`TlsError`].
    pub(super) async fn authority(
        &self,
        now: SystemTime,
        lifetimes: &Lifetimes,
    ) -> Result<Authority, TlsError> {
        for _ in 0..TRIES {
            let found = self.secrets.get_opt(&self.secret).await;
            let found = found.map_err(|error| self.failed("read", error))?;
            let data = found.as_ref().and_then(|secret| secret.data.clone());
            let current = Authority::of_secret(&self.secret, &data.clone().unwrap_or_default())?;
            let current = match current {
                Some(authority) if !authority.is_due(now, lifetimes) => return Ok(authority),
                other => other,
            };
            let next = Authority::make(current.as_ref(), now, lifetimes.authority)?;
            if self.write(found, &next).await? {
                tracing::info!(secret = self.secret, "a new certificate authority");
                return Ok(next);
            }
        }
        Err(TlsError::Contended(self.secret.clone()))
    }

    /// Whether it was written: not when somebody else was faster.
    async fn write(&self, found: Option<Secret>, next: &Authority) -> Result<bool, TlsError> {
        let written = match found {
            // With the version that was read: one that is older is refused.
            Some(mut secret) => {
                secret.data.get_or_insert_default().extend(next.to_secret());
                self.secrets
                    .replace(&self.secret, &PostParams::default(), &secret)
                    .await
            }
            None => {
                let mut secret = Secret {
                    data: Some(next.to_secret()),
                    ..Secret::default()
                };
                secret.metadata.name = Some(self.secret.clone());
                self.secrets.create(&PostParams::default(), &secret).await
            }
        };
        match written {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(self.failed("write", error)),
        }
    }

    fn failed(&self, doing: &str, source: kube::Error) -> TlsError {
        TlsError::Kubernetes {
            doing: format!("{doing} secret {}", self.secret),
            source: Box::new(source),
        }
    }

    /// Makes the API server believe `bundle`. Returns whether something had to be changed.
    ///
    /// # Errors
    /// [`TlsError`]; when somebody else changed the configuration meanwhile, too.
    pub(super) async fn believe(&self, bundle: &str) -> Result<bool, TlsError> {
        let failed = |doing: &str, source| TlsError::Kubernetes {
            doing: format!(
                "{doing} mutatingwebhookconfiguration {}",
                self.configuration
            ),
            source: Box::new(source),
        };
        let configuration = self.configurations.get(&self.configuration).await;
        let configuration = configuration.map_err(|error| failed("read", error))?;
        let bundle = ByteString(bundle.as_bytes().to_vec());
        let webhooks = configuration.webhooks.iter().flatten().enumerate();
        let differing =
            webhooks.filter(|(_, it)| it.client_config.ca_bundle.as_ref() != Some(&bundle));
        let mut operations: Vec<PatchOperation> = differing
            .map(|(index, _)| {
                let index = index.to_string();
                let path = ["webhooks", index.as_str(), "clientConfig", "caBundle"];
                PatchOperation::Add(AddOperation {
                    path: PointerBuf::from_tokens(path.iter().map(|part| Token::new(*part))),
                    value: json!(bundle),
                })
            })
            .collect();
        if operations.is_empty() {
            return Ok(false);
        }
        // Replaced by itself: places in a list are only right in the version that was read.
        let version = ReplaceOperation {
            path: PointerBuf::from_tokens(["metadata", "resourceVersion"]),
            value: configuration.resource_version().into(),
        };
        operations.insert(0, PatchOperation::Replace(version));
        let patch: Patch<()> = Patch::Json(JsonPatch(operations));
        let plain = PatchParams::default();
        let patched = self
            .configurations
            .patch(&self.configuration, &plain, &patch)
            .await;
        patched.map_err(|error| failed("patch", error))?;
        Ok(true)
    }

    /// Whether the API server believes `bundle` now.
    ///
    /// # Errors
    /// [`TlsError::Kubernetes`].
    pub(super) async fn is_believed(&self, bundle: &str) -> Result<bool, TlsError> {
        let found = self.configurations.get_opt(&self.configuration).await;
        let found = found.map_err(|source| TlsError::Kubernetes {
            doing: format!("read mutatingwebhookconfiguration {}", self.configuration),
            source: Box::new(source),
        })?;
        let webhooks: Vec<_> = found
            .into_iter()
            .flat_map(|it| it.webhooks)
            .flatten()
            .collect();
        let believes = |bytes: &ByteString| bytes.0 == bundle.as_bytes();
        let mut bundles = webhooks
            .iter()
            .map(|it| it.client_config.ca_bundle.as_ref());
        Ok(!webhooks.is_empty() && bundles.all(|it| it.is_some_and(believes)))
    }
}
