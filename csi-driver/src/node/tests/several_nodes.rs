//! Several drivers that share the records.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::controller::{Controller, NodeBudget};
use vineyard_proto::csi::CreateVolumeRequest;

const NODES: [&str; 2] = ["a", "b"];
const BUDGET: u64 = 6 * 4096;

/// A node with its own directories, as another process has it.
fn node(folder: &Path, name: &str) -> Arc<Node> {
    let own = folder.join(name);
    fs::create_dir_all(own.join("kubelet")).unwrap();
    fs::create_dir_all(own.join("layers")).unwrap();
    let catalog: Arc<dyn Catalog> = Arc::new(FileCatalog::open(&folder.join("catalog")).unwrap());
    let mut node = start(&own, &catalog, "boot-1", Arc::new(FakeMounter::default()));
    node.id = NodeId::parse(name).unwrap();
    node.budget = Bytes(BUDGET);
    Arc::new(node)
}

fn controller(folder: &Path) -> Controller {
    let budget = |name: &&str| NodeBudget {
        node: NodeId::parse(name).unwrap(),
        pool: "default".into(),
        budget: Bytes(BUDGET),
    };
    Controller {
        events: crate::report::Events::default(),
        catalog: Arc::new(FileCatalog::open(&folder.join("catalog")).unwrap()),
        nodes: NODES.iter().map(budget).collect(),
        default_capacity: Bytes(4096),
        drop_patience: std::time::Duration::ZERO,
        node_grace: std::time::Duration::from_secs(40),
        cloning: tokio::sync::Mutex::default(),
        forgotten: crate::controller::Forgotten::after(std::time::Duration::from_secs(30)),
        locks: KeyedLock::default(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn creates_and_first_stages_at_once_never_book_more_than_any_budget() {
    let folder = tempfile::tempdir().unwrap();
    let nodes = NODES.map(|name| node(folder.path(), name));
    let controller = Arc::new(controller(folder.path()));
    let watching = Arc::new(AtomicBool::new(true));
    let watcher = tokio::spawn({
        let (watching, catalog) = (Arc::clone(&watching), Arc::clone(&nodes[0].catalog));
        let ids = nodes.clone().map(|node| node.id.clone());
        async move {
            let mut looks = 0;
            while watching.load(Ordering::Relaxed) {
                let listing = catalog.list().await.unwrap();
                for id in &ids {
                    assert!(listing.booked(id).unwrap() <= Bytes(BUDGET));
                }
                looks += 1;
            }
            looks
        }
    });
    let pods: Vec<_> = (0..24_usize)
        .map(|number| {
            // Wherever it is booked, its pod comes to the node that the number says.
            let (controller, node) = (Arc::clone(&controller), Arc::clone(&nodes[number % 3 / 2]));
            tokio::spawn(async move {
                let name = format!("v{number}");
                let request = CreateVolumeRequest {
                    name: name.clone(),
                    volume_capabilities: vec![capability(&[])],
                    ..Default::default()
                };
                if let Err(error) = controller.create(request).await {
                    assert_eq!(Status::from(&error).code(), Code::ResourceExhausted);
                    return None;
                }
                let staging = node.layers.with_file_name("kubelet").join(&name);
                let request = NodeStageVolumeRequest {
                    volume_id: name.clone(),
                    staging_target_path: staging.to_str().unwrap().to_owned(),
                    volume_capability: Some(capability(&[])),
                    ..Default::default()
                };
                match node.stage(request).await {
                    Ok(_) => Some((name, node.id.clone())),
                    Err(error) => {
                        assert_eq!(code(&error), Code::ResourceExhausted, "{error}");
                        None
                    }
                }
            })
        })
        .collect();
    let mut staged = Vec::new();
    for pod in pods {
        staged.extend(pod.await.unwrap());
    }
    watching.store(false, Ordering::Relaxed);
    assert!(watcher.await.unwrap() > 0);
    let listing = nodes[0].catalog.list().await.unwrap();
    // Twelve fit on both, and two pods of three came to node a, on which six fit.
    assert!((6..=12).contains(&listing.volumes.len()), "{listing:?}");
    let on_a = staged.iter().filter(|(_, at)| *at == nodes[0].id).count();
    assert!((1..=6).contains(&on_a), "{staged:?}");
    for (name, at) in &staged {
        let mut volumes = listing.volumes.iter().map(|stored| &stored.volume);
        let volume = volumes.find(|volume| volume.name == *name).unwrap();
        assert_eq!((&volume.booked, volume.home.as_ref()), (at, Some(at)));
    }
    for node in &nodes {
        let mounts = node.mounter.mounts().unwrap();
        let here = staged.iter().filter(|(_, at)| *at == node.id).count();
        // Its memory; what was refused left nothing.
        assert_eq!(mounts.len(), here);
    }
}
