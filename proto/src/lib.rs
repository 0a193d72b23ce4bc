//! The messages that Vineyard's processes exchange, generated from `proto/*.proto`. Code only: no behaviour.

/// Client ↔ payer: reserve and pull on passed descriptors.
pub mod payer {
    #![expect(
        missing_docs,
        reason = "generated; the .proto file is the documentation"
    )]
    include!(concat!(env!("OUT_DIR"), "/vineyard.payer.v1.rs"));
}
