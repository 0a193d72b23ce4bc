use super::*;

/// The bills of a node without a retainer, over a test's folder.
pub(crate) fn unbilled(folder: &Path, boot_id: &str, mounter: &Arc<dyn Mounter>) -> Bills {
    open(folder, boot_id, mounter, None)
}

fn open(
    folder: &Path,
    boot_id: &str,
    mounter: &Arc<dyn Mounter>,
    engine: Option<Arc<dyn Engine>>,
) -> Bills {
    let records = folder.join("bill");
    fs::create_dir_all(&records).unwrap();
    let request = FileRequest::open(records.join("request.json"), boot_id, Bytes(1 << 30));
    let pods = Pods::new(Some(folder.join("cgroups"))).unwrap();
    let settings = Settings {
        layers: folder.join("layers"),
        records,
        boot_id: boot_id.to_owned(),
        join: Duration::from_millis(200),
        look: Duration::from_millis(10),
        survey: Duration::from_millis(10),
        pause: Duration::from_millis(10),
        longest_pause: Duration::from_millis(20),
        chunk: Bytes(1 << 20),
        runs: 2,
    };
    Bills::open(
        settings,
        Arc::new(pods),
        engine,
        Arc::new(request.unwrap()),
        Arc::clone(mounter),
    )
    .unwrap()
}
