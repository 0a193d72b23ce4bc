//! `/proc/thread-self/mountinfo`: octal escapes, paths that are no UTF-8, and a table that changes while it is read.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Error, Flags};

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Number of this mount.
    pub(crate) id: u64,
    /// Number of the mount that it is mounted on.
    pub(crate) parent: u64,
    /// Device numbers of its file system: `major:minor`.
    pub(crate) device: (u32, u32),
    /// The directory of the file system that is visible here.
    pub(crate) root: PathBuf,
    /// Where.
    pub(crate) point: PathBuf,
    /// Per-mount options: `rw,nosuid,…`.
    pub(crate) options: String,
    /// `tmpfs`, `ext4`, …
    pub(crate) fs_type: String,
    /// What was mounted: a device, or a word that the mounter chose.
    pub(crate) source: OsString,
    /// Options of the file system: `rw,size=…`.
    pub(crate) super_options: OsString,
}

impl Mount {
    /// The flags that we set on binds.
    pub(crate) fn flags(&self) -> Flags {
        let has = |word: &str| self.options.split(',').any(|option| option == word);
        Flags {
            read_only: has("ro"),
            no_exec: has("noexec"),
            no_atime: has("noatime"),
        }
    }

    /// Whether set-user-id bits and devices are without effect here.
    pub(crate) fn is_confined(&self) -> bool {
        let has = |word: &str| self.options.split(',').any(|option| option == word);
        has("nosuid") && has("nodev")
    }
}

/// Tries to read a table that did not change meanwhile.
const TRIES: usize = 16;

/// Reads the table of this thread's mount namespace.
///
/// # Errors
/// What the kernel says, or [`Error::Malformed`].
pub(super) fn read() -> Result<Vec<Mount>, Error> {
    let path = Path::new("/proc/thread-self/mountinfo");
    let failed = |source| Error::system("read", path, source);
    let mut table = Vec::new();
    for _ in 0..TRIES {
        let mut file = File::open(path).map_err(failed)?;
        table.clear();
        file.read_to_end(&mut table).map_err(failed)?;
        // The kernel raises an exception on the file when the table changed since it was opened.
        let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLPRI)];
        let changed = poll(&mut fds, PollTimeout::ZERO).map_err(|e| failed(e.into()))?;
        if changed == 0 {
            break;
        }
    }
    parse(&table)
}

/// Parses a whole table.
fn parse(table: &[u8]) -> Result<Vec<Mount>, Error> {
    let lines = table
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty());
    lines
        .map(|line| {
            parse_line(line).ok_or_else(|| Error::Malformed(String::from_utf8_lossy(line).into()))
        })
        .collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut words = line.split(|byte| *byte == b' ');
    let text = |word: &[u8]| String::from_utf8(word.to_vec()).ok();
    let number = |word: &[u8]| text(word)?.parse::<u64>().ok();
    let id = number(words.next()?)?;
    let parent = number(words.next()?)?;
    let device = text(words.next()?)?;
    let (major, minor) = device.split_once(':')?;
    let root = unescape(words.next()?)?;
    let point = unescape(words.next()?)?;
    let options = text(words.next()?)?;
    // Any number of optional fields, then a lone hyphen.
    words.by_ref().find(|word| *word == b"-")?;
    let fs_type = text(words.next()?)?;
    let source = unescape(words.next()?)?;
    let super_options = unescape(words.next().unwrap_or_default())?;
    Some(Mount {
        id,
        parent,
        device: (major.parse().ok()?, minor.parse().ok()?),
        root: root.into(),
        point: point.into(),
        options,
        fs_type,
        source,
        super_options,
    })
}

/// Undoes `\ooo`, which the kernel writes for space, tab, newline, backslash and hash.
fn unescape(word: &[u8]) -> Option<OsString> {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word;
    while let [first, tail @ ..] = rest {
        if *first != b'\\' {
            bytes.push(*first);
            rest = tail;
            continue;
        }
        let (digits, tail) = tail.split_at_checked(3)?;
        let octal = digits.iter().try_fold(0_u16, |value, digit| {
            matches!(digit, b'0'..=b'7').then(|| value * 8 + u16::from(digit - b'0'))
        })?;
        bytes.push(u8::try_from(octal).ok()?);
        rest = tail;
    }
    Some(OsString::from_vec(bytes))
}

/// The topmost of the mounts on `point`: the one that nothing else on `point` is mounted on.
pub(super) fn topmost<'a>(mounts: &'a [Mount], point: &OsStr) -> Option<&'a Mount> {
    let here: Vec<_> = mounts
        .iter()
        .filter(|mount| mount.point.as_os_str() == point)
        .collect();
    let covered = |mount: &Mount| here.iter().any(|other| other.parent == mount.id);
    here.iter().rev().find(|mount| !covered(mount)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &[u8] =
        b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue";

    #[test]
    fn a_line_with_any_number_of_optional_fields_parses() {
        let mount = parse_line(LINE).unwrap();
        assert_eq!((mount.id, mount.parent, mount.device), (36, 35, (98, 0)));
        assert_eq!((mount.root, mount.point), ("/mnt1".into(), "/mnt2".into()));
        assert_eq!(
            (mount.fs_type.as_str(), mount.source.to_str()),
            ("ext3", Some("/dev/root"))
        );
        let none = b"36 35 98:0 / /m ro - tmpfs none rw\n";
        assert!(parse(none).unwrap()[0].flags().read_only);
    }

    #[test]
    fn escapes_and_bytes_that_are_no_text_survive() {
        let line = b"1 2 0:5 / /a\\040b\\134c\\011\xff rw - tmpfs vineyard:\\043x rw";
        let mount = parse_line(line).unwrap();
        assert_eq!(mount.point.into_os_string().into_vec(), b"/a b\\c\t\xff");
        assert_eq!(mount.source, "vineyard:#x");
    }

    #[test]
    fn lines_that_no_kernel_writes_are_errors() {
        for line in [
            &b"1 2 0:5 / /a rw"[..],
            b"1 2 0:5 / /a\\04 rw - tmpfs x rw",
            b"1 2 0:5 / /a\\777 rw - tmpfs x rw",
            b"x 2 0:5 / /a rw - tmpfs x rw",
            b"1 2 05 / /a rw - tmpfs x rw",
        ] {
            assert!(parse(line).is_err(), "{}", String::from_utf8_lossy(line));
        }
    }

    #[test]
    fn the_topmost_mount_is_found_in_any_order_of_lines() {
        let on = |id, parent| Mount {
            id,
            parent,
            point: "/p".into(),
            ..parse_line(LINE).unwrap()
        };
        for order in [
            [on(5, 1), on(6, 5), on(7, 6)],
            [on(7, 6), on(6, 5), on(5, 1)],
        ] {
            assert_eq!(topmost(&order, OsStr::new("/p")).unwrap().id, 7);
        }
        assert_eq!(topmost(&[], OsStr::new("/p")), None);
    }

    #[test]
    fn the_table_of_this_process_parses() {
        let mounts = read().unwrap();
        assert!(mounts.iter().any(|mount| mount.point == Path::new("/proc")));
    }

    proptest::proptest! {
        #[test]
        fn no_table_panics(table in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = parse(&table);
        }

        #[test]
        fn what_the_kernel_escapes_comes_back(path in proptest::collection::vec(1_u8..=255, 1..50)) {
            let mut escaped = Vec::new();
            for byte in &path {
                match byte {
                    b' ' | b'\t' | b'\n' | b'\\' | b'#' => escaped.extend(format!("\\{byte:03o}").bytes()),
                    other => escaped.push(*other),
                }
            }
            proptest::prop_assert_eq!(unescape(&escaped).unwrap().into_vec(), path);
        }
    }
}
