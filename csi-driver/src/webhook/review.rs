//! AdmissionReview in, AdmissionReview out.

use json_patch::Patch;
use k8s_openapi::api::core::v1::Pod;
use kube::core::DynamicObject;
use kube::core::admission::{AdmissionRequest, AdmissionResponse, AdmissionReview, Operation};

use super::error::Error;
use super::facts;
use super::inject::inject;
use super::lookup::Lookup;
use super::sidecar::Settings;

/// Answers reviews.
#[derive(Clone, Debug)]
pub(crate) struct Reviewer {
    /// Where claims are looked up.
    pub(crate) lookup: Lookup,
    /// What injected sidecars are like.
    pub(crate) settings: Settings,
}

/// What a review came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The pod is none of ours, or has everything.
    Unchanged,
    /// It gets something.
    Injected,
    /// It is a retainer, and requests more from its beginning.
    Raised,
    /// It is refused.
    Refused,
}

impl Outcome {
    /// As the metric has it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Unchanged => "unchanged",
            Self::Injected => "injected",
            Self::Raised => "raised",
            Self::Refused => "refused",
        }
    }
}

impl Reviewer {
    /// Answers one. Writes nothing anywhere, so a dry run is like any other.
    ///
    /// # Errors
    /// [`Error`] when there is no answer.
    pub(super) async fn answer(
        &self,
        body: &[u8],
    ) -> Result<(AdmissionReview<DynamicObject>, Outcome), Error> {
        let request = request(body)?;
        let response = AdmissionResponse::from(&request);
        let unchanged = |response: AdmissionResponse| (response.into_review(), Outcome::Unchanged);
        let Some(pod) = created(&request) else {
            return Ok(unchanged(response));
        };
        if facts::sources(pod).next().is_none() {
            return Ok(unchanged(response));
        }
        // A pod in a request may have no namespace of its own.
        let own = pod.metadata.namespace.as_deref();
        let namespace = request.namespace.as_deref().or(own).unwrap_or("default");
        let facts = self.lookup.facts(pod, namespace).await?;
        let injection = match inject(pod, &facts, &self.settings) {
            Ok(injection) => injection,
            Err(refusal) => {
                let name = name(pod);
                tracing::info!(pod.namespace = namespace, pod.name = name, %refusal, "refused");
                let mut response = response.deny(format!("vineyard.io: {refusal}"));
                response.result.code = 400;
                response.result.reason = "BadRequest".into();
                return Ok((response.into_review(), Outcome::Refused));
            }
        };
        let mut response = response;
        if !injection.warnings.is_empty() {
            response.warnings = Some(injection.warnings);
        }
        if injection.patch.is_empty() {
            return Ok(unchanged(response));
        }
        let name = name(pod);
        tracing::info!(pod.namespace = namespace, pod.name = name, "injected");
        let patched = response.with_patch(Patch(injection.patch));
        let patched = patched.map_err(|error| Error::Patch(error.to_string()))?;
        Ok((patched.into_review(), Outcome::Injected))
    }
}

/// The pod that is to be created, if the review is about one.
pub(super) fn created(request: &AdmissionRequest<Pod>) -> Option<&Pod> {
    match (&request.operation, &request.object, &request.sub_resource) {
        (Operation::Create, Some(pod), None) if request.kind.kind == "Pod" => Some(pod),
        _ => None,
    }
}

/// What is asked.
///
/// # Errors
/// [`Error::Malformed`].
pub(super) fn request(body: &[u8]) -> Result<AdmissionRequest<Pod>, Error> {
    let review: AdmissionReview<Pod> =
        serde_json::from_slice(body).map_err(|error| Error::Malformed(error.to_string()))?;
    if review.types.api_version != "admission.k8s.io/v1" {
        return Err(Error::Malformed(review.types.api_version));
    }
    let request: Result<AdmissionRequest<Pod>, _> = review.try_into();
    request.map_err(|error| Error::Malformed(error.to_string()))
}

fn name(pod: &Pod) -> &str {
    let metadata = &pod.metadata;
    let name = metadata
        .name
        .as_deref()
        .or(metadata.generate_name.as_deref());
    name.unwrap_or_default()
}
