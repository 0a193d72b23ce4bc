//! The least that such work can take here: the same bytes by `memcpy`, as many files by plain system calls, in one thread.

use std::ffi::OsString;
use std::fs;
use std::hint::black_box;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open, openat, renameat};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;
use nix::unistd::{read, write};

/// Two pieces of memory, both touched.
pub(crate) struct Memory {
    from: Vec<u8>,
    to: Vec<u8>,
}

impl Memory {
    pub(crate) fn new(bytes: usize) -> Self {
        Self {
            from: vec![1; bytes],
            to: vec![2; bytes],
        }
    }

    /// Copies all of it so many times.
    pub(crate) fn copy(&mut self, times: usize) {
        for _ in 0..times {
            black_box(&mut self.to).copy_from_slice(black_box(&self.from));
        }
    }
}

/// Files on a tmpfs of our own.
pub(crate) struct Files {
    memory: PathBuf,
    objects: OwnedFd,
    beside: OwnedFd,
    names: Vec<OsString>,
    buffer: Vec<u8>,
}

impl Files {
    pub(crate) fn new(folder: &Path, count: usize, bytes: usize) -> Self {
        let memory = folder.join("plain");
        fs::create_dir_all(&memory).unwrap();
        let options = Some("huge=never");
        mount(
            Some("plain"),
            &memory,
            Some("tmpfs"),
            MsFlags::empty(),
            options,
        )
        .unwrap();
        let directory = |name: &str| {
            fs::create_dir(memory.join(name)).unwrap();
            let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
            open(&memory.join(name), flags, Mode::empty()).unwrap()
        };
        let (objects, beside) = (directory("objects"), directory("beside"));
        let names: Vec<OsString> = (0..count)
            .map(|it| format!("{it:026}.raw").into())
            .collect();
        for name in &names {
            fs::write(memory.join("objects").join(name), vec![7; bytes]).unwrap();
        }
        Self {
            objects,
            beside,
            names,
            buffer: vec![0; bytes + 1],
            memory,
        }
    }

    /// Opens, reads and closes each.
    pub(crate) fn read(&mut self) {
        for name in &self.names {
            black_box(read_one(&self.objects, name, &mut self.buffer));
        }
    }

    /// Opens, reads and closes each, and puts a copy in its place.
    pub(crate) fn replace(&mut self) {
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        for name in &self.names {
            let bytes = read_one(&self.objects, name, &mut self.buffer);
            let copy = openat(&self.beside, "copy", flags, Mode::S_IRUSR).unwrap();
            assert_eq!(write(&copy, &self.buffer[..bytes]).unwrap(), bytes);
            renameat(&self.beside, "copy", &self.objects, name.as_os_str()).unwrap();
        }
    }
}

fn read_one(directory: &OwnedFd, name: &OsString, buffer: &mut [u8]) -> usize {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let file = openat(directory, name.as_os_str(), flags, Mode::empty()).unwrap();
    read(&file, buffer).unwrap()
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = umount2(&self.memory, MntFlags::MNT_DETACH);
    }
}
