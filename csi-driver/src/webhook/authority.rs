//! The certificate authority that the API server believes, and the serving certificates that it signs. Pure: the clock and
//! where it is kept are the caller's.
//!
//! All replicas share one authority; each makes its own serving certificate, which never leaves its memory. While an authority
//! is replaced, the bundle has both, so whichever a replica still uses is believed.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use k8s_openapi::ByteString;
use pem::Pem;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;
use tokio_rustls::rustls::sign::CertifiedKey;

use super::error::TlsError;

/// Keys of the Secret: the bundle with the current authority first, its private key, its end in seconds since 1970.
const BUNDLE: &str = "ca.crt";
const KEY: &str = "ca.key";
const EXPIRES: &str = "expires";

const CERTIFICATE: &str = "CERTIFICATE";
const PRIVATE_KEY: &str = "PRIVATE KEY";

/// Clocks of nodes differ.
const SKEW: Duration = Duration::from_secs(3600);

/// How long certificates are good, and how long before their end they are replaced.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lifetimes {
    /// Of the authority.
    pub(crate) authority: Duration,
    /// Before its end.
    pub(crate) authority_margin: Duration,
    /// Of a serving certificate.
    pub(crate) serving: Duration,
    /// Before its end.
    pub(crate) serving_margin: Duration,
}

const DAY: Duration = Duration::from_secs(24 * 3600);

impl Default for Lifetimes {
    fn default() -> Self {
        Self {
            authority: DAY * 3650,
            authority_margin: DAY * 365,
            serving: DAY * 30,
            serving_margin: DAY * 10,
        }
    }
}

/// An authority, as the Secret has it.
#[derive(Debug)]
pub(super) struct Authority {
    key: KeyPair,
    /// Its own certificate, then that of its predecessor.
    certificates: Vec<Vec<u8>>,
    expires: SystemTime,
}

/// A certificate that may be served.
#[derive(Debug)]
pub(super) struct Serving {
    /// With its private key.
    pub(super) key: CertifiedKey,
    /// Its end.
    pub(super) expires: SystemTime,
}

impl Authority {
    /// Makes one, after `predecessor`.
    ///
    /// # Errors
    /// [`TlsError::Make`].
    pub(super) fn make(
        predecessor: Option<&Self>,
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<Self, TlsError> {
        let key = KeyPair::generate()?;
        let expires = whole_seconds(now + lifetime);
        let mut params = params(expires);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = (now - SKEW).into();
        params.not_after = expires.into();
        let certificate = params.self_signed(&key)?.der().to_vec();
        let before = predecessor.and_then(|it| it.certificates.first().cloned());
        Ok(Self {
            key,
            certificates: [certificate].into_iter().chain(before).collect(),
            expires,
        })
    }

    /// Reads it from a Secret's data. `None`: there is none in it.
    ///
    /// # Errors
    /// [`TlsError::Malformed`] when there is something else: nobody's data is overwritten.
    pub(super) fn of_secret(
        secret: &str,
        data: &BTreeMap<String, ByteString>,
    ) -> Result<Option<Self>, TlsError> {
        if [BUNDLE, KEY, EXPIRES]
            .iter()
            .all(|key| !data.contains_key(*key))
        {
            return Ok(None);
        }
        let malformed = |key, reason: &str| TlsError::Malformed {
            secret: secret.to_owned(),
            key,
            reason: reason.to_owned(),
        };
        let part = |key| match data.get(key) {
            Some(ByteString(bytes)) => Ok(bytes.as_slice()),
            None => Err(malformed(key, "is missing")),
        };
        let bundle = pem::parse_many(part(BUNDLE)?);
        let bundle = bundle.map_err(|error| malformed(BUNDLE, &error.to_string()))?;
        if bundle.is_empty() || bundle.iter().any(|pem| pem.tag() != CERTIFICATE) {
            return Err(malformed(BUNDLE, "has no certificate, or something else"));
        }
        let key = pem::parse(part(KEY)?).map_err(|error| malformed(KEY, &error.to_string()))?;
        let key = KeyPair::try_from(key.contents());
        let seconds = std::str::from_utf8(part(EXPIRES)?).ok();
        let seconds = seconds.and_then(|text| text.trim().parse().ok());
        let seconds = seconds.ok_or_else(|| malformed(EXPIRES, "is no number of seconds"))?;
        let expires = UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
        Ok(Some(Self {
            key: key.map_err(|error| malformed(KEY, &error.to_string()))?,
            certificates: bundle.into_iter().map(Pem::into_contents).collect(),
            expires: expires.ok_or_else(|| malformed(EXPIRES, "is too far away"))?,
        }))
    }

    /// The data of its Secret.
    pub(super) fn to_secret(&self) -> BTreeMap<String, ByteString> {
        let key = pem::encode(&Pem::new(PRIVATE_KEY, self.key.serialize_der()));
        let expires = self.expires.duration_since(UNIX_EPOCH).unwrap_or_default();
        let parts = [
            (BUNDLE, self.bundle()),
            (KEY, key),
            (EXPIRES, expires.as_secs().to_string()),
        ];
        let parts = parts.map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes())));
        parts.into()
    }

    /// What the API server must believe: PEM.
    pub(super) fn bundle(&self) -> String {
        let certificates = self.certificates.iter();
        let encoded = certificates.map(|der| pem::encode(&Pem::new(CERTIFICATE, der.clone())));
        encoded.collect()
    }

    /// Whether it has to be replaced.
    pub(super) fn is_due(&self, now: SystemTime, lifetimes: &Lifetimes) -> bool {
        is_due(self.expires, now, lifetimes.authority_margin)
    }

    /// Makes a certificate for a server of these names, DNS names or addresses. It ends before the authority does.
    ///
    /// # Errors
    /// [`TlsError`].
    pub(super) fn serving(
        &self,
        names: &[String],
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<Serving, TlsError> {
        let key = KeyPair::generate()?;
        let expires = whole_seconds(now + lifetime).min(self.expires);
        let mut leaf = CertificateParams::new(names)?;
        let first = names.first().map_or("vineyard-webhook", String::as_str);
        leaf.distinguished_name.push(DnType::CommonName, first);
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        leaf.not_before = (now - SKEW).into();
        leaf.not_after = expires.into();
        let params = params(self.expires);
        let issuer = Issuer::from_params(&params, &self.key);
        let certificate = leaf.signed_by(&key, &issuer)?;
        let private = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let chain = vec![certificate.der().clone()];
        let key = CertifiedKey::from_der(chain, private, &ring::default_provider())?;
        Ok(Serving { key, expires })
    }
}

fn is_due(expires: SystemTime, now: SystemTime, margin: Duration) -> bool {
    now + margin >= expires
}

/// The name of the authority that ends then: one that follows has another.
fn params(expires: SystemTime) -> CertificateParams {
    let seconds = expires.duration_since(UNIX_EPOCH).unwrap_or_default();
    let name = format!("vineyard-webhook-ca-{}", seconds.as_secs());
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

/// Certificates have no fractions of a second.
fn whole_seconds(time: SystemTime) -> SystemTime {
    let seconds = time
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    UNIX_EPOCH + Duration::from_secs(seconds)
}
