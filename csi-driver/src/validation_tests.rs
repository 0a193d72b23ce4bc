use super::*;
use vineyard_proto::csi::volume_capability::{AccessMode as WireMode, BlockVolume};

fn mounted(mode: Mode, flags: &[&str]) -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(WireMode { mode: mode.into() }),
        access_type: Some(AccessType::Mount(MountVolume {
            mount_flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            ..Default::default()
        })),
    }
}

#[test]
fn a_capability_is_taken_with_its_flags() {
    let context = "context=\"system_u:object_r:container_file_t:s0:c1,c2\"";
    let taken = capability(Some(&mounted(
        Mode::SingleNodeWriter,
        &["noexec", "rw", context],
    )))
    .unwrap();
    assert!(taken.flags.no_exec && !taken.flags.read_only);
    assert_eq!(
        taken.context.as_deref(),
        Some("system_u:object_r:container_file_t:s0:c1,c2")
    );
}

#[test]
fn capabilities_that_no_volume_has_are_refused() {
    let block = VolumeCapability {
        access_type: Some(AccessType::Block(BlockVolume {})),
        ..mounted(Mode::SingleNodeWriter, &[])
    };
    let mut no_mode = mounted(Mode::SingleNodeWriter, &[]);
    no_mode.access_mode = None;
    let mut no_type = mounted(Mode::SingleNodeWriter, &[]);
    no_type.access_type = None;
    for wrong in [
        block,
        no_mode,
        no_type,
        mounted(Mode::MultiNodeMultiWriter, &[]),
        mounted(Mode::Unknown, &[]),
        mounted(Mode::SingleNodeWriter, &["suid"]),
        mounted(Mode::SingleNodeWriter, &["size=1T"]),
        mounted(Mode::SingleNodeWriter, &["context=a\",size=1T,x=\"b"]),
        mounted(Mode::SingleNodeWriter, &["noexec"; 1000]),
    ] {
        assert!(capability(Some(&wrong)).is_err(), "{wrong:?}");
    }
    assert_eq!(capability(None), Err(Invalid::Missing("volume_capability")));
    assert_eq!(
        capabilities(&[]),
        Err(Invalid::Missing("volume_capabilities"))
    );
}

#[test]
fn names_and_ids_have_their_limits() {
    assert!(name(&"n".repeat(128)).is_ok());
    assert!(matches!(
        name(&"n".repeat(129)),
        Err(Invalid::TooLong { .. })
    ));
    assert_eq!(name("a\nb"), Err(Invalid::Control));
    assert_eq!(volume_id(""), Err(Invalid::Missing("volume_id")));
    assert_eq!(volume_id("../../etc"), Ok(None));
    let large = HashMap::from([("k".to_owned(), "v".repeat(4096))]);
    assert!(map("parameters", &large).is_err());
}

#[test]
fn a_target_outside_of_kubelets_directory_is_refused_also_through_a_symlink() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().canonicalize().unwrap();
    let kubelet = root.join("kubelet");
    fs::create_dir_all(kubelet.join("pods")).unwrap();
    fs::create_dir(root.join("elsewhere")).unwrap();
    std::os::unix::fs::symlink(root.join("elsewhere"), kubelet.join("link")).unwrap();
    std::os::unix::fs::symlink(&kubelet, root.join("alias")).unwrap();
    let targets = Targets::new(&[root.join("alias")]);
    let take = |path: &str| targets.take("target_path", &format!("{}/{path}", root.display()));
    assert_eq!(take("kubelet/pods/x"), Ok(kubelet.join("pods/x")));
    assert_eq!(take("alias/pods/x/"), Ok(kubelet.join("pods/x")));
    assert_eq!(take("kubelet/new/deep/x"), Ok(kubelet.join("new/deep/x")));
    for outside in ["elsewhere/x", "kubelet/link/x", "kubelet"] {
        assert!(
            matches!(take(outside), Err(Invalid::Outside { .. })),
            "{outside}"
        );
    }
    for wrong in ["kubelet/../elsewhere/x", "kubelet/./x", "kubelet/a\0b"] {
        assert!(matches!(take(wrong), Err(Invalid::Path { .. })), "{wrong}");
    }
    for wrong in ["relative/x", "/", "/.."] {
        assert!(targets.take("target_path", wrong).is_err(), "{wrong}");
    }
    assert!(take(&"x".repeat(5000)).is_err());
}
