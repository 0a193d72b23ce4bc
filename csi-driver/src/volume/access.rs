//! Who may use a volume at the same time.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vineyard_proto::csi::volume_capability::access_mode::Mode;

/// The access modes that this driver keeps. The ones for several nodes are not among them yet.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[expect(
    clippy::enum_variant_names,
    reason = "the specification's names; those for several nodes are not kept yet"
)]
pub(crate) enum AccessMode {
    /// One node, any number of its pods. What ReadWriteOnce means, from a client that knows no finer modes.
    SingleNodeWriter,
    /// One node, any number of its pods, none of which writes.
    SingleNodeReaderOnly,
    /// One pod: ReadWriteOncePod.
    SingleNodeSingleWriter,
    /// One node, any number of its pods.
    SingleNodeMultiWriter,
}

impl AccessMode {
    /// The mode of the wire, or `None` when it is not supported.
    pub(crate) fn of(mode: Mode) -> Option<Self> {
        match mode {
            Mode::SingleNodeWriter => Some(Self::SingleNodeWriter),
            Mode::SingleNodeReaderOnly => Some(Self::SingleNodeReaderOnly),
            Mode::SingleNodeSingleWriter => Some(Self::SingleNodeSingleWriter),
            Mode::SingleNodeMultiWriter => Some(Self::SingleNodeMultiWriter),
            Mode::Unknown
            | Mode::MultiNodeReaderOnly
            | Mode::MultiNodeSingleWriter
            | Mode::MultiNodeMultiWriter => None,
        }
    }

    /// Only one target path at a time.
    pub(crate) fn is_exclusive(self) -> bool {
        self == Self::SingleNodeSingleWriter
    }

    /// Nobody writes, whatever the publish request says.
    pub(crate) fn is_read_only(self) -> bool {
        self == Self::SingleNodeReaderOnly
    }
}
