//! Every file of `cases/`: what is known, the pod, and the pod that becomes of it.
//!
//! `VINEYARD_BLESS=1` writes the third part anew; read it before you believe it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;
use serde::Deserialize;
use serde_json::Value;

use super::settings;
use crate::bytes::Bytes;
use crate::webhook::facts::{Bounds, Claim, Facts};
use crate::webhook::inject::{inject, is_injected};
use crate::webhook::quantity;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Known {
    claims: BTreeMap<String, KnownClaim>,
    #[serde(default)]
    homes: BTreeMap<String, String>,
    #[serde(default)]
    unplaced: BTreeSet<String>,
    #[serde(default)]
    bounds: KnownBounds,
    #[serde(default)]
    unchanged: bool,
    refused: Option<String>,
    #[serde(default)]
    warnings: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct KnownClaim {
    capacity: Option<String>,
    fresh: bool,
    read_only: bool,
    missing: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct KnownBounds {
    least_memory: Option<String>,
    most_memory: Option<String>,
    most_pod_memory: Option<String>,
    least_cpu: Option<String>,
    most_cpu: Option<String>,
}

impl Known {
    fn facts(&self) -> Facts {
        let bytes = |text: &String| -> Bytes { quantity::bytes(text).unwrap() };
        let cpu = |text: &String| -> u64 { quantity::millicores(text).unwrap() };
        let claims = self.claims.iter().map(|(volume, known)| {
            let claim = match &known.missing {
                Some(name) => Claim::Missing {
                    name: name.clone(),
                    is_read_only: known.read_only,
                },
                None => Claim::Ours {
                    capacity: bytes(known.capacity.as_ref().unwrap()),
                    is_fresh: known.fresh,
                    is_read_only: known.read_only,
                },
            };
            (volume.clone(), claim)
        });
        let homes = self.homes.iter();
        let homes = homes.map(|(node, held)| (node.clone(), bytes(held)));
        let bounds = &self.bounds;
        Facts {
            claims: claims.collect(),
            homes: homes.collect(),
            unplaced: self.unplaced.clone(),
            bounds: Bounds {
                least_memory: bounds.least_memory.as_ref().map(bytes),
                most_memory: bounds.most_memory.as_ref().map(bytes),
                most_pod_memory: bounds.most_pod_memory.as_ref().map(bytes),
                least_cpu: bounds.least_cpu.as_ref().map(cpu),
                most_cpu: bounds.most_cpu.as_ref().map(cpu),
            },
        }
    }
}

fn cases() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/webhook/cases");
    let entries = std::fs::read_dir(folder).unwrap();
    let mut all: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all
}

fn typed(pod: &Value) -> Pod {
    serde_json::from_value(pod.clone()).unwrap()
}

/// What becomes of a pod, as the API server does it: the patch on the pod as it was sent.
fn injected(pod: &Value, facts: &Facts) -> Result<(Value, Vec<String>), String> {
    let injection = inject(&typed(pod), facts, &settings());
    let injection = injection.map_err(|refusal| refusal.to_string())?;
    let mut patched = pod.clone();
    json_patch::patch(&mut patched, &injection.patch).unwrap();
    Ok((patched, injection.warnings))
}

#[test]
fn every_case_becomes_what_it_says() {
    let bless = std::env::var_os("VINEYARD_BLESS").is_some();
    let all = cases();
    assert!(all.len() > 20, "the cases are not there");
    for path in all {
        let case = path.file_stem().unwrap().to_str().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let parts: Vec<&str> = text.split("---\n").collect();
        let known: Known = serde_saphyr::from_str(parts[0]).unwrap();
        let pod: Value = serde_saphyr::from_str(parts[1]).unwrap();
        let facts = known.facts();
        let (patched, warnings) = match injected(&pod, &facts) {
            Err(refusal) => {
                let expected = known.refused.as_deref().unwrap_or("no refusal");
                assert!(refusal.contains(expected), "{case}: {refusal}");
                continue;
            }
            Ok(patched) => patched,
        };
        assert_eq!(known.refused, None, "{case}: not refused");
        assert_eq!(warnings.len(), known.warnings.len(), "{case}: {warnings:?}");
        for (warning, expected) in warnings.iter().zip(&known.warnings) {
            assert!(warning.contains(expected), "{case}: {warning}");
        }
        assert_eq!(patched == pod, known.unchanged, "{case}");
        if known.unchanged {
            continue;
        }
        let (again, _) = injected(&patched, &facts).unwrap();
        assert_eq!(again, patched, "{case}: the second time adds something");
        let writes = known.claims.values().any(|claim| !claim.read_only);
        assert_eq!(is_injected(&typed(&patched)), writes, "{case}");
        if bless {
            let fresh = serde_saphyr::to_string(&patched).unwrap();
            let text = format!("{}---\n{}---\n{fresh}", parts[0], parts[1]);
            std::fs::write(&path, text).unwrap();
            continue;
        }
        let expected: Value = serde_saphyr::from_str(parts[2]).unwrap();
        let shown = serde_saphyr::to_string(&patched).unwrap();
        assert_eq!(patched, expected, "{case}:\n{shown}");
    }
}

/// What Pod Security "restricted" demands of a container.
#[test]
fn the_sidecar_of_every_case_is_restricted() {
    for path in cases() {
        let text = std::fs::read_to_string(&path).unwrap();
        let Some(expected) = text.split("---\n").nth(2) else {
            continue;
        };
        let pod: Pod = serde_saphyr::from_str(expected).unwrap();
        let spec = pod.spec.unwrap();
        let sidecars = spec.init_containers.into_iter().flatten();
        for sidecar in sidecars.filter(|it| it.image.as_deref() == Some("vineyard/sidecar:test")) {
            let Some(context) = sidecar.security_context else {
                // One that was there before, in a case of its own.
                continue;
            };
            assert_eq!(context.run_as_non_root, Some(true));
            assert_ne!(context.run_as_user, Some(0));
            assert_eq!(context.allow_privilege_escalation, Some(false));
            assert_eq!(context.read_only_root_filesystem, Some(true));
            assert_eq!(context.capabilities.as_ref().unwrap().add, None);
            let dropped = context.capabilities.unwrap().drop.unwrap();
            assert_eq!(dropped, ["ALL"]);
            assert_eq!(context.seccomp_profile.unwrap().type_, "RuntimeDefault");
            let mounts = sidecar.volume_mounts.unwrap();
            assert!(mounts.iter().all(|mount| mount.name == "vineyard-sockets"));
        }
    }
}
