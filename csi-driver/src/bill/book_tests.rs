use super::*;

pub(crate) fn pod(text: &str) -> PodUid {
    PodUid::parse(text).unwrap()
}

pub(crate) fn bill(uid: &str) -> PodBill {
    PodBill {
        pod_uid: pod(uid),
        boot_id: "boot-1".into(),
        sockets_volume: format!("csi-{uid}"),
        target: format!("/kubelet/pods/{uid}/volumes/sockets/mount").into(),
        writes: None,
        allowance: None,
        granted: Bytes(0),
        leaving: None,
    }
}

#[test]
fn a_record_outlives_the_process_but_not_the_boot() {
    let folder = tempfile::tempdir().unwrap();
    let book = Book::open(folder.path(), "boot-1").unwrap();
    book.add(bill("one")).unwrap();
    let error = book.add(bill("one")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    let edited = book
        .change(&pod("one"), |bill, _| bill.granted = Bytes(7))
        .unwrap();
    drop(book);
    let book = Book::open(folder.path(), "boot-1").unwrap();
    assert_eq!(book.all(), vec![edited]);
    drop(book);
    let book = Book::open(folder.path(), "boot-2").unwrap();
    assert_eq!(book.all(), Vec::new());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_removed_pod_is_unknown() {
    let folder = tempfile::tempdir().unwrap();
    let book = Book::open(folder.path(), "boot-1").unwrap();
    book.add(bill("one")).unwrap();
    book.remove(&pod("one")).unwrap();
    book.remove(&pod("one")).unwrap();
    assert_eq!(book.get(&pod("one")), None);
    let error = book.change(&pod("one"), |_, _| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[test]
fn what_cannot_be_read_stays_for_whoever_looks_and_half_a_write_goes() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("one.json"), "{").unwrap();
    fs::write(folder.path().join("two.new"), "{").unwrap();
    let book = Book::open(folder.path(), "boot-1").unwrap();
    assert_eq!(book.all(), Vec::new());
    assert!(folder.path().join("one.json").exists());
    assert!(!folder.path().join("two.new").exists());
}
