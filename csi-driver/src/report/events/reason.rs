//! Why there is an event: a closed list, so that operators can look for each of them by name.

/// What has happened. `docs/guides/operator.md` says what to do about each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Reason {
    /// A volume's memory was made on a node.
    VolumeResident,
    /// A volume's memory is known to be gone.
    VolumeLost,
    /// A clone could not be filled.
    CloneNotFilled,
    /// A pod wanted to put more than its volume, its allowance and the retainer have room for.
    StoreFull,
    /// Bytes of a pod that has left are still on its bill, or on nobody's.
    HandOverUnfinished,
    /// The retainer cannot take over what pods have left: it does not answer.
    RetainerAway,
    /// All that a node retains is allocated to its retainer again.
    #[cfg(feature = "kubernetes")]
    RetainedBytesAllocated,
    /// Kubelet has no room for all that its node retains.
    #[cfg(feature = "kubernetes")]
    RetainedBytesDeferred,
    /// The retainer's request stays what its pod was created with, and bounds what the node offers.
    #[cfg(feature = "kubernetes")]
    RetainerNotResizable,
    /// The API server does not hear what a node retains.
    #[cfg(feature = "kubernetes")]
    RetainerNotResized,
    /// A node has no retainer.
    #[cfg(feature = "kubernetes")]
    RetainerMissing,
    /// A volume is to be deleted, and still used.
    BytesInUse,
    /// A pod that writes has no sidecar that would pay for it.
    SidecarMissing,
    /// A record cannot be read: whatever it is about is left alone.
    RecordUnreadable,
}

impl Reason {
    /// What `kubectl describe` shows, what the driver was doing, and whether somebody should have a look.
    fn parts(self) -> (&'static str, &'static str, bool) {
        match self {
            Self::VolumeResident => ("VolumeResident", "Stage", false),
            Self::VolumeLost => ("VolumeLost", "Reconcile", true),
            Self::CloneNotFilled => ("CloneNotFilled", "Stage", true),
            Self::StoreFull => ("StoreFull", "Reserve", true),
            Self::HandOverUnfinished => ("HandOverUnfinished", "HandOver", true),
            Self::RetainerAway => ("RetainerAway", "HandOver", true),
            #[cfg(feature = "kubernetes")]
            Self::RetainedBytesAllocated => ("RetainedBytesAllocated", "Resize", false),
            #[cfg(feature = "kubernetes")]
            Self::RetainedBytesDeferred => ("RetainedBytesDeferred", "Resize", true),
            #[cfg(feature = "kubernetes")]
            Self::RetainerNotResizable => ("RetainerNotResizable", "Resize", true),
            #[cfg(feature = "kubernetes")]
            Self::RetainerNotResized => ("RetainerNotResized", "Resize", true),
            #[cfg(feature = "kubernetes")]
            Self::RetainerMissing => ("RetainerMissing", "Resize", true),
            Self::BytesInUse => ("BytesInUse", "Delete", true),
            Self::SidecarMissing => ("SidecarMissing", "Publish", true),
            Self::RecordUnreadable => ("RecordUnreadable", "Reconcile", true),
        }
    }

    /// The name.
    pub(crate) fn as_str(self) -> &'static str {
        self.parts().0
    }

    /// What the driver was doing.
    #[cfg(feature = "kubernetes")]
    pub(crate) fn action(self) -> &'static str {
        self.parts().1
    }

    /// Somebody should have a look.
    pub(crate) fn is_warning(self) -> bool {
        self.parts().2
    }
}
