//! The definitions of the custom resources, as the chart has them.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::{Map, Value};

use super::{GROUP, VineyardNode, VineyardVolume};

/// Says that nobody edits them.
const HEAD: &str = "# Made from the types in csi-driver/src/resources by `vineyard-csi definitions`; do not edit.\n";

/// All definitions, as YAML.
///
/// # Errors
/// When a type cannot be described.
pub(crate) fn definitions() -> anyhow::Result<String> {
    let mut text = String::from(HEAD);
    for definition in [VineyardVolume::crd(), VineyardNode::crd()] {
        debug_assert_eq!(definition.spec.group, GROUP);
        text.push_str("---\n");
        text.push_str(&serde_saphyr::to_string(&plain(definition)?)?);
    }
    Ok(text)
}

fn plain(mut definition: CustomResourceDefinition) -> anyhow::Result<Value> {
    for version in &mut definition.spec.versions {
        // One object, one compare-and-swap.
        version.subresources = None;
    }
    let mut value = serde_json::to_value(&definition)?;
    if let Value::Object(fields) = &mut value {
        fields.remove("status");
    }
    forget_unknown_formats(&mut value);
    Ok(value)
}

/// Kubernetes knows int32 and int64, and warns of every other format.
fn forget_unknown_formats(value: &mut Value) {
    let is_unknown = |map: &Map<String, Value>| {
        let format = map.get("format").and_then(Value::as_str);
        format.is_some_and(|format| format.starts_with("uint"))
    };
    match value {
        Value::Object(map) => {
            if is_unknown(map) {
                map.remove("format");
            }
            map.values_mut().for_each(forget_unknown_formats);
        }
        Value::Array(list) => list.iter_mut().for_each(forget_unknown_formats),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chart_has_the_definitions_of_these_types() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../manifests/vineyard/files/definitions.yaml"
        );
        let fresh = definitions().unwrap();
        if std::env::var_os("VINEYARD_WRITE_GOLDEN").is_some() {
            std::fs::write(path, &fresh).unwrap();
        }
        let chart = std::fs::read_to_string(path).unwrap();
        assert!(
            chart == fresh,
            "{path} is out of date: run make definitions"
        );
    }

    #[test]
    fn a_definition_has_no_status_subresource_and_no_unknown_format() {
        let text = definitions().unwrap();
        assert!(!text.contains("subresources"), "{text}");
        assert!(!text.contains("uint"), "{text}");
    }
}
