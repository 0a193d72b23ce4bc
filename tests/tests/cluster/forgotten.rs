//! A volume that kubelet has forgotten to unstage.

use anyhow::{Result, ensure};
use serde_json::json;
use vineyard_tests::commands::Content;

use crate::client::Client;
use crate::namespace::Namespace;
use crate::pods::Pod;
use crate::{MIB, SYSTEM, cluster, left, reached};

/// A kubelet that is killed after unpublish never unstages (kubernetes/kubernetes#85476). To kill one just then succeeds now and
/// then, so the record is given back what such a kubelet leaves in it.
#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn a_volume_that_nobody_unstages_is_deleted_with_its_claim() -> Result<()> {
    let cluster = cluster()?;
    let namespace = Namespace::new(&cluster, "forgotten")?;
    namespace.claim("data", 32 * MIB)?;
    namespace.apply(Pod::waiting("writer", "data").object())?;
    namespace.wait_for("pod/writer", "{.status.phase}", "Running")?;
    let put = Content {
        seed: 71,
        len: 8 * MIB,
    };
    Client::start(&namespace, "writer")?.put("object", put)?;
    let volume = namespace.volume("data")?;
    let record = format!("vineyardvolume/{volume}");
    let stagings = || cluster.field(SYSTEM, &record, "{.status.stagings}");
    let left_behind: serde_json::Value = serde_json::from_str(&stagings()?)?;
    namespace.delete(&["pod/writer"])?;
    ensure!(reached(|| stagings().is_ok_and(|now| now == "[]")));
    let patch = json!({"status": {"stagings": left_behind}}).to_string();
    cluster.kubectl(&["-n", SYSTEM, "patch", &record, "--type=merge", "-p", &patch])?;
    ensure!(stagings()? != "[]", "the record was not changed");
    namespace.delete(&["pvc/data"])?;
    left::nothing(&cluster, &volume)
}
