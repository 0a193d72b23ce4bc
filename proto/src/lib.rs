//! The messages that Vineyard's processes exchange, generated from `proto/*.proto`. Code only: no behaviour.
//!
//! `payer`, `node` and `admin` are always there and link only prost. The feature `csi` adds the gRPC services of the driver.

/// Client ↔ payer: reserve and pull on passed descriptors.
pub mod payer {
    #![expect(
        missing_docs,
        reason = "generated; the .proto file is the documentation"
    )]
    include!(concat!(env!("OUT_DIR"), "/vineyard.payer.v1.rs"));
}

/// Sidecar ↔ node driver: grants, measurements, leaving.
pub mod node {
    #![expect(
        missing_docs,
        reason = "generated; the .proto file is the documentation"
    )]
    include!(concat!(env!("OUT_DIR"), "/vineyard.node.v1.rs"));
}

/// Operator ↔ node driver: who is billed for what.
pub mod admin {
    #![expect(
        missing_docs,
        reason = "generated; the .proto file is the documentation"
    )]
    include!(concat!(env!("OUT_DIR"), "/vineyard.admin.v1.rs"));
}

/// Container Storage Interface 1.12. `{:?}` of a request never shows its secrets.
#[cfg(feature = "csi")]
pub mod csi {
    #![expect(
        missing_docs,
        clippy::allow_attributes,
        reason = "generated; the .proto file is the documentation"
    )]
    include!(concat!(env!("OUT_DIR"), "/csi.v1.rs"));
    include!(concat!(env!("OUT_DIR"), "/csi.redacted.rs"));
}

/// How a plugin tells kubelet that it is there.
#[cfg(feature = "csi")]
pub mod pluginregistration {
    #![expect(
        missing_docs,
        clippy::allow_attributes,
        reason = "generated; the .proto file is the documentation"
    )]
    include!(concat!(env!("OUT_DIR"), "/pluginregistration.rs"));
}

/// Stands for a map of secrets in `{:?}`: the number of them.
#[cfg(feature = "csi")]
struct Redacted(usize);

#[cfg(feature = "csi")]
impl std::fmt::Debug for Redacted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "<{} redacted>", self.0)
    }
}

#[cfg(all(test, feature = "csi"))]
mod tests {
    use super::csi::{CreateVolumeRequest, NodePublishVolumeRequest};

    #[test]
    fn secrets_are_not_shown_by_debug() {
        let secrets = [("password".to_owned(), "hunter2".to_owned())];
        let create = CreateVolumeRequest {
            name: "pvc-1".into(),
            secrets: secrets.clone().into(),
            ..Default::default()
        };
        let shown = format!("{create:?}");
        assert!(
            shown.contains("pvc-1") && shown.contains("<1 redacted>"),
            "{shown}"
        );
        assert!(
            !shown.contains("hunter2") && !shown.contains("password"),
            "{shown}"
        );
        let publish = NodePublishVolumeRequest {
            secrets: secrets.into(),
            ..Default::default()
        };
        assert!(!format!("{publish:?}").contains("hunter2"));
    }
}
