use super::*;

const UID: &str = "0d1f2c7e-9b1a-4c55-8a3e-5f6d7e8f9a0b";
const OTHER: &str = "11111111-2222-3333-4444-555555555555";

fn uid(text: &str) -> PodUid {
    PodUid::parse(text).unwrap()
}

fn slice(prefix: &str, uid: &str) -> String {
    format!("{prefix}-pod{}.slice", uid.replace('-', "_"))
}

/// A made-up hierarchy with these directories.
fn tree(directories: &[&str]) -> (tempfile::TempDir, Pods) {
    let root = tempfile::tempdir().unwrap();
    for directory in directories {
        fs::create_dir_all(root.path().join(directory)).unwrap();
    }
    let pods = Pods::new(Some(root.path().to_owned())).unwrap();
    (root, pods)
}

#[test]
fn every_layout_of_kubelet_is_found_in_every_class() {
    let systemd = |class: &str| match class {
        "" => format!("kubepods.slice/{}", slice("kubepods", UID)),
        class => format!(
            "kubepods.slice/kubepods-{class}.slice/{}",
            slice(&format!("kubepods-{class}"), UID)
        ),
    };
    for place in [
        format!("kubepods/pod{UID}"),
        format!("kubepods/burstable/pod{UID}"),
        format!("kubepods/besteffort/pod{UID}"),
        systemd(""),
        systemd("burstable"),
        systemd("besteffort"),
        // `--cgroup-root`, kubelet in a container, and no kubelet at all.
        format!("elsewhere/kubepods/burstable/pod{UID}"),
        format!(
            "system.slice/docker-1a.scope/kubelet.slice/kubelet-kubepods.slice/{}",
            slice("kubelet-kubepods", UID)
        ),
        format!("pod{UID}"),
    ] {
        let beside = format!("kubepods/burstable/pod{OTHER}/container");
        let (root, pods) = tree(&[&format!("{place}/container"), &beside]);
        assert_eq!(
            pods.directory(&uid(UID)),
            Some(root.path().join(&place)),
            "{place}"
        );
        assert_eq!(pods.subtree(&uid(UID)).len(), 2, "{place}");
    }
}

#[test]
fn a_pod_without_a_cgroup_has_no_bill() {
    let (_root, pods) = tree(&[&format!("kubepods/burstable/pod{OTHER}")]);
    assert_eq!(pods.directory(&uid(UID)), None);
    assert_eq!(pods.subtree(&uid(UID)), []);
}

#[test]
fn a_directory_that_a_pod_made_inside_of_its_own_cgroup_is_not_another_pod() {
    let (_root, pods) = tree(&[&format!("kubepods/burstable/pod{OTHER}/pod{UID}")]);
    assert_eq!(pods.directory(&uid(UID)), None);
}

#[test]
fn a_restarted_container_changes_nothing_but_the_subtree() {
    let (root, pods) = tree(&[&format!("kubepods/pod{UID}/one")]);
    let before = pods.subtree(&uid(UID));
    let pod = pods.directory(&uid(UID)).unwrap();
    fs::create_dir(pod.join("two")).unwrap();
    let after = pods.subtree(&uid(UID));
    assert!(before.iter().all(|id| after.contains(id)));
    assert_eq!(after.len(), before.len() + 1);
    fs::remove_dir_all(root.path().join("kubepods")).unwrap();
    assert_eq!(pods.subtree(&uid(UID)), []);
}

#[test]
fn a_container_that_is_gone_counts_for_a_moment_and_not_without_its_pod() {
    let (root, pods) = tree(&[&format!("kubepods/pod{UID}/one")]);
    let pods = pods.lingering(Duration::MAX);
    let sorted = |mut ids: Vec<CgroupId>| {
        ids.sort();
        ids
    };
    let before = sorted(pods.subtree(&uid(UID)));
    let pod = pods.directory(&uid(UID)).unwrap();
    fs::remove_dir(pod.join("one")).unwrap();
    assert_eq!(sorted(pods.subtree(&uid(UID))), before);
    // The moment is over.
    let pods = pods.lingering(Duration::ZERO);
    assert_eq!(pods.subtree(&uid(UID)), ids(&pod));
    let pods = pods.lingering(Duration::MAX);
    assert_eq!(pods.subtree(&uid(UID)), ids(&pod), "once is enough");
    fs::create_dir(pod.join("two")).unwrap();
    assert_eq!(pods.subtree(&uid(UID)).len(), 2);
    fs::remove_dir_all(root.path().join("kubepods")).unwrap();
    assert_eq!(pods.subtree(&uid(UID)), []);
}

#[test]
fn what_is_above_pods_is_nobodys_own() {
    let slices = format!("kubepods.slice/{}", slice("kubepods", OTHER));
    let (root, pods) = tree(&[
        &format!("kubepods/burstable/pod{UID}/one"),
        &slices,
        "system.slice/a.service",
    ]);
    let id = |path: &str| CgroupId(fs::metadata(root.path().join(path)).unwrap().ino());
    let above = pods.above();
    for path in ["", "kubepods", "kubepods/burstable", "kubepods.slice"] {
        assert!(above.contains(&id(path)), "{path}");
    }
    let own = format!("kubepods/burstable/pod{UID}");
    for path in [&own, &format!("{own}/one"), &slices, "system.slice"] {
        assert!(!above.contains(&id(path)), "{path}");
    }
}

#[test]
fn names_of_other_slices_are_no_pods() {
    for name in [
        "pods",
        "podruntime.slice",
        "kubepods.slice",
        "pod",
        "init.scope",
    ] {
        assert!(!is_a_pod(name.as_ref()), "{name}");
    }
    for name in [format!("pod{UID}"), slice("kubepods-burstable", UID)] {
        assert!(is_a_pod(name.as_ref()), "{name}");
        assert!(is_of(&name, &uid(UID)));
        assert!(!is_of(&name, &uid(OTHER)));
    }
    // A uid that ends like another one.
    assert!(!is_of(&slice("kubepods", "a-b"), &uid("b")));
}

#[test]
fn a_pod_owes_nothing_only_when_the_kernel_says_so() {
    let (root, pods) = tree(&[&format!("kubepods/pod{UID}/container")]);
    assert!(!pods.owes_nothing(&uid(OTHER)), "it has no cgroup any more");
    assert!(!pods.owes_nothing(&uid(UID)), "nobody says so");
    let stat = root.path().join(format!("kubepods/pod{UID}/memory.stat"));
    for (text, nothing) in [
        ("anon 1\nshmem 0\nfile 4096\n", true),
        ("anon 1\nshmem 4096\n", false),
        // Version 1: its own, and the sum.
        ("cache 1\nshmem 0\ntotal_cache 1\ntotal_shmem 8192\n", false),
        ("cache 1\nshmem 0\ntotal_shmem 0\n", true),
        ("cache 1\n", false),
    ] {
        fs::write(&stat, text).unwrap();
        assert_eq!(pods.owes_nothing(&uid(UID)), nothing, "{text}");
    }
}

#[test]
fn a_process_outside_of_any_pod_is_in_none() {
    let Ok(pods) = Pods::new(None) else {
        eprintln!("skipped: no memory cgroups here");
        return;
    };
    match pods.directory_of(std::process::id()) {
        Ok(found) => assert!(found.is_none_or(|it| it.is_dir())),
        Err(error) => eprintln!("skipped: {error}"),
    }
}
