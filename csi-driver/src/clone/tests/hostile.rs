//! Whoever may write the source does what he can while it is copied.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use super::*;

#[test]
fn nothing_from_outside_comes_in_and_nothing_hangs_whatever_is_swapped() {
    let Some(bench) = Bench::new() else { return };
    let outside = tempfile::tempdir_in("/dev/shm").unwrap();
    fs::create_dir(outside.path().join("folder")).unwrap();
    fs::write(outside.path().join("folder/file"), "secret").unwrap();
    let at = |path: &str| bench.from.join(path);
    fs::create_dir_all(at("folder")).unwrap();
    fs::write(at("folder/file"), "open").unwrap();
    fs::write(at("file"), "open").unwrap();
    fs::create_dir_all(at("traps")).unwrap();
    symlink(outside.path().join("folder"), at("traps/folder")).unwrap();
    symlink(outside.path().join("folder/file"), at("traps/link")).unwrap();
    let fifo = CString::new(at("traps/fifo").as_os_str().as_bytes()).unwrap();
    nix::unistd::mkfifo(fifo.as_c_str(), Mode::S_IRWXU).unwrap();
    let swapping = Arc::new(AtomicBool::new(true));
    let swapper = std::thread::spawn({
        let (swapping, root) = (Arc::clone(&swapping), bench.from.clone());
        move || {
            let pairs = [
                ("folder", "traps/folder"),
                ("file", "traps/link"),
                ("file", "traps/fifo"),
            ];
            let mut swaps = 0_u64;
            while swapping.load(Ordering::Relaxed) {
                for (one, other) in pairs {
                    let (one, other) = (root.join(one), root.join(other));
                    let flags = RenameFlags::RENAME_EXCHANGE;
                    for _ in 0..2 {
                        renameat2(AT_FDCWD, &one, AT_FDCWD, &other, flags).unwrap();
                        swaps += 1;
                    }
                }
            }
            swaps
        }
    });
    for _ in 0..300 {
        bench.copy().unwrap();
        for (path, seen) in seen(&bench.to) {
            assert_ne!(seen.content, b"secret", "{}", path.display());
        }
        fs::remove_dir_all(&bench.to).unwrap();
        fs::create_dir(&bench.to).unwrap();
    }
    swapping.store(false, Ordering::Relaxed);
    assert!(swapper.join().unwrap() > 300);
}
