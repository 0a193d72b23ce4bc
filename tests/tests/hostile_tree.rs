//! A volume in which somebody has placed whatever a file system knows: every verb ends, with a result or an error, and
//! nothing outside of the volume is read, written or removed.
#![cfg(test)]

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::mkfifo;
use vineyard_charge::survey::Ledger;
use vineyard_store::{Error, Options, Volume};
use vineyard_tests::account::{get, put, remove};
use vineyard_tests::commands::{Answer, Command, Content};
use vineyard_tests::pod::{Pod, PodSettings, World};
use vineyard_tests::skip_unless_possible;
use vineyard_tests::watchdog::deadline;

const CLIENT: &str = env!("CARGO_BIN_EXE_vineyard-test-client");
const MIB: u64 = 1 << 20;
/// How long one verb may take on a busy machine before it hangs.
const LIMIT: Duration = Duration::from_secs(60);
/// A valid id; the last digit makes others.
const ID: &str = "0123456789abcdefghjkmnpqr";

fn id(digit: char) -> String {
    format!("{ID}{digit}")
}

/// A file outside of the volume that nobody may touch.
struct Canary {
    directory: tempfile::TempDir,
}

impl Canary {
    const SECRET: &str = "secret";

    fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        fs::set_permissions(directory.path(), Permissions::from_mode(0o777))?;
        fs::write(directory.path().join("canary"), Self::SECRET)?;
        let expired = format!("000000000001.{}.raw", id('z'));
        symlink("canary", directory.path().join(expired))?;
        Ok(Self { directory })
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("canary")
    }

    fn check(&self) -> Result<()> {
        ensure!(
            fs::read_to_string(self.path())? == Self::SECRET,
            "the canary was written to"
        );
        let entries = fs::read_dir(self.directory.path())?.count();
        ensure!(
            entries == 2,
            "{entries} entries instead of 2 next to the canary"
        );
        Ok(())
    }
}

/// One of everything that is neither a sealed file nor a directory.
fn plant(directory: &Path, name: &str, canary: &Path) -> Result<()> {
    let at = |kind: &str| directory.join(format!("{name}{kind}"));
    let all = Mode::from_bits_truncate(0o666);
    mkfifo(&at("a.raw"), all)?;
    drop(UnixListener::bind(at("b.raw"))?);
    mknod(&at("c.raw"), SFlag::S_IFCHR, all, makedev(1, 5))?;
    mknod(&at("d.raw"), SFlag::S_IFBLK, all, makedev(7, 0))?;
    symlink(canary, at("e.raw"))?;
    symlink(format!("{name}f.raw"), at("f.raw"))?;
    symlink("../".repeat(40) + "etc/passwd", at("g.raw"))?;
    fs::create_dir(at("h.raw"))?;
    File::create(at("j.raw"))?.write_all(b"#!/bin/sh\n")?;
    fs::set_permissions(at("j.raw"), Permissions::from_mode(0o6777))?;
    symlink("x".repeat(4095), at("k.raw"))?;
    Ok(())
}

fn hostile(root: &Path, canary: &Path) -> Result<()> {
    let own = root.join(".vineyard");
    for directory in [
        root.to_owned(),
        own.join("objects"),
        own.join("trash"),
        own.join("tmp"),
    ] {
        plant(&directory, ID, canary)?;
        fs::write(directory.join("not an object"), "x")?;
    }
    for directory in ["links", "ttl"] {
        plant(&own.join(directory), "", canary)?;
        plant(
            &own.join(directory),
            "000000000001.0123456789abcdefghjkmnpqr",
            canary,
        )?;
    }
    // Names that point to what is no object, to nothing, and out of the volume.
    for digit in "abcdefghjkz".chars() {
        symlink(
            format!(".vineyard/objects/{ID}{digit}.raw"),
            root.join(format!("name-{digit}")),
        )?;
    }
    for (name, target) in [
        ("up", ".vineyard/objects/../../../canary"),
        ("trash", &format!(".vineyard/trash/{ID}j.raw")),
        ("absolute", "/etc/passwd"),
        ("root", "/"),
        ("format", ".vineyard/format"),
    ] {
        symlink(target, root.join(name))?;
    }
    symlink(
        canary.parent().context("a directory")?,
        root.join("elsewhere"),
    )?;
    // Notes that want something outside removed.
    for (name, target) in [
        (
            format!("links/{}", id('m')),
            canary
                .parent()
                .context("a directory")?
                .display()
                .to_string(),
        ),
        (
            format!("ttl/000000000001.{}.raw", id('n')),
            "../../../canary".into(),
        ),
        (
            format!("ttl/000000000002.{}.raw", id('p')),
            canary.display().to_string(),
        ),
        (
            format!("ttl/000000000003.{}.raw", id('j')),
            "elsewhere/canary".into(),
        ),
        (format!("tmp/{}.raw", id('q')), "elsewhere/canary".into()),
    ] {
        symlink(target, own.join(name))?;
    }
    let links = own.join("links").join(id('r'));
    fs::create_dir(&links)?;
    plant(&links, "", canary)?;
    escapes(root)?;
    streams(root, canary)?;
    deep(root)
}

fn escapes(root: &Path) -> Result<()> {
    let long = "n".repeat(255);
    for name in [
        b"\x1b[31mred\x1b[0m".as_slice(),
        b"line\nfeed",
        b"\xff\xfe not utf-8",
        b"back\\slash",
        b" ",
        b"-rf",
        b".vineyard2",
        b"..x",
        long.as_bytes(),
    ] {
        let name = OsStr::from_bytes(name);
        fs::write(root.join(name), "plain")?;
        let directory = root.join("names");
        fs::create_dir_all(&directory)?;
        symlink(
            format!("../.vineyard/objects/{}.raw", id('z')),
            directory.join(name),
        )?;
    }
    Ok(())
}

fn streams(root: &Path, canary: &Path) -> Result<()> {
    let ends: [(&str, &[u8]); 6] = [
        ("s-huge-count", br#"{"parts": 18446744073709551615}"#),
        ("s-negative", br#"{"parts": -1}"#),
        ("s-garbage", b"\xff\x00{{{"),
        ("s-empty", b""),
        ("s-nested", &[b'['; 200_000]),
        ("s-none", br#"{"error": null}"#),
    ];
    for (name, end) in ends {
        let stream = root.join(name);
        fs::create_dir(&stream)?;
        fs::write(stream.join(".stream"), "")?;
        fs::write(stream.join(".end"), end)?;
        symlink(canary, stream.join("00000000"))?;
    }
    for name in ["s-fifo", "s-link", "s-directory"] {
        let stream = root.join(name);
        fs::create_dir(&stream)?;
        for file in [".stream", ".end", "00000000"] {
            let path = stream.join(file);
            match name {
                "s-fifo" => mkfifo(&path, Mode::from_bits_truncate(0o666))?,
                "s-link" => symlink(canary, path)?,
                _ => fs::create_dir(path)?,
            }
        }
    }
    let stream = root.join("s-sparse");
    fs::create_dir(&stream)?;
    fs::write(stream.join(".stream"), "")?;
    File::create(stream.join(".end"))?.set_len(1 << 40)?;
    Ok(())
}

/// A thousand directories in each other, and a path that is longer than any path may be.
fn deep(root: &Path) -> Result<()> {
    for (name, depth) in [("d".to_owned(), 1000), ("w".repeat(250), 40)] {
        let mut at = File::open(root)?;
        for _ in 0..depth {
            nix::sys::stat::mkdirat(&at, name.as_str(), Mode::from_bits_truncate(0o777))?;
            at = File::from(nix::fcntl::openat(
                &at,
                name.as_str(),
                OFlag::O_DIRECTORY,
                Mode::empty(),
            )?);
        }
    }
    Ok(())
}

/// A pod whose client has little memory, in a hostile volume.
fn scene(canary: &Canary) -> Result<(World, Pod)> {
    let world = World::new(64 * MIB, CLIENT)?;
    let mut pod = world.started(PodSettings::new("pod", 1))?;
    pod.client_cgroup().limit(64 * MIB)?;
    put(&mut pod, "healthy", HEALTHY)?;
    hostile(world.volume(), &canary.path())?;
    Ok((world, pod))
}

const HEALTHY: Content = Content {
    seed: 1,
    len: 100_000,
};

#[test]
fn every_verb_of_a_client_ends_in_a_hostile_volume() -> Result<()> {
    skip_unless_possible!();
    let canary = Canary::new()?;
    let (world, mut pod) = {
        let _limit = deadline(LIMIT, "setting the scene");
        scene(&canary)?
    };
    for command in [
        Command::Walk,
        Command::Fsck,
        Command::Sweep,
        Command::Fsck,
        Command::Walk,
    ] {
        let _limit = deadline(LIMIT, format!("{command:?}"));
        match pod.call(&command)? {
            Answer::Count(listed) => ensure!(listed > 20, "only {listed} entries"),
            Answer::Faults(faults) => ensure!(faults.len() > 20, "only {} faults", faults.len()),
            Answer::Done | Answer::Failed(_) => {}
            other => bail!("{command:?}: {other:?}"),
        }
        pod.check_alive()?;
        canary.check()?;
    }
    for entry in fs::read_dir(world.volume())? {
        let Ok(name) = entry?.file_name().into_string() else {
            continue;
        };
        if name == "healthy" || name == ".vineyard" {
            continue;
        }
        for name in [name.clone(), format!("{name}/canary"), format!("{name}/d")] {
            touch(&mut pod, &name).with_context(|| name.clone())?;
            canary.check().with_context(|| name.clone())?;
        }
    }
    let _limit = deadline(LIMIT, "the healthy object");
    get(&mut pod, "healthy", HEALTHY, false, None)?;
    put(&mut pod, "another", HEALTHY)?;
    remove(&mut pod, "healthy")
}

/// Reads, waits for, overwrites and removes whatever has this name.
fn touch(pod: &mut Pod, name: &str) -> Result<()> {
    let _limit = deadline(LIMIT, name.to_owned());
    let name = name.to_owned();
    let secret: u64 = Canary::SECRET.bytes().map(u64::from).sum();
    for command in [
        Command::Read { name: name.clone() },
        Command::Stream { name: name.clone() },
        Command::Put {
            name: Some(name.clone()),
            content: HEALTHY,
            overwrite: false,
        },
        Command::Link {
            from: name.clone(),
            to: "linked".into(),
        },
        Command::Put {
            name: Some(name.clone()),
            content: HEALTHY,
            overwrite: true,
        },
        Command::Remove { name: name.clone() },
    ] {
        match pod.call(&command)? {
            Answer::Count(sum) if sum == secret => bail!("{command:?} reads the canary"),
            Answer::Wrong(why) => bail!("{command:?}: {why}"),
            _ => {}
        }
        pod.check_alive()?;
    }
    Ok(())
}

#[test]
fn the_driver_sweeps_checks_and_surveys_a_hostile_volume() -> Result<()> {
    skip_unless_possible!();
    let canary = Canary::new()?;
    let (world, mut pod) = {
        let _limit = deadline(LIMIT, "setting the scene");
        scene(&canary)?
    };
    let volume = Arc::new(Volume::open(world.volume(), Options::default())?);
    for round in 0..2 {
        let _limit = deadline(LIMIT, format!("round {round} of the driver"));
        let report = volume.fsck(round == 1)?;
        ensure!(
            report.problems.len() > 20,
            "only {} problems",
            report.problems.len()
        );
        volume.usage()?;
        // Whatever cannot be swept is an error or left, never followed.
        let _ = volume.sweep();
        let ledger = Ledger::of(world.volume())?;
        ensure!(
            ledger.tree.skipped_count > 10,
            "only {:?} skipped",
            ledger.tree.skipped
        );
        ensure!(
            ledger.billed(&[pod.sidecar_cgroup().id()]) >= HEALTHY.len,
            "{:?}",
            ledger.bills
        );
        canary.check()?;
    }
    let _limit = deadline(LIMIT, "the healthy object");
    get(&mut pod, "healthy", HEALTHY, false, None)
}

#[test]
fn a_sparse_object_is_not_charged_to_whoever_gets_it() -> Result<()> {
    skip_unless_possible!();
    let world = World::new(64 * MIB, CLIENT)?;
    let mut pod = world.started(PodSettings::new("pod", 1))?;
    pod.client_cgroup().limit(96 * MIB)?;
    let before = world.mount().used()?;
    for (digit, len) in [
        ('a', 100_000),
        ('b', 8 * MIB),
        ('c', 48 * MIB),
        ('d', 1 << 40),
    ] {
        let object = format!(".vineyard/objects/{}.raw", id(digit));
        let path = world.volume().join(&object);
        File::create(&path)?.set_len(len)?;
        fs::set_permissions(&path, Permissions::from_mode(0o444))?;
        let name = format!("sparse-{digit}");
        symlink(object, world.volume().join(&name))?;
        let plain = world.volume().join(format!("plain-{digit}"));
        File::create(plain)?.set_len(len)?;
        let _limit = deadline(LIMIT, format!("sparse object of {len} bytes"));
        for command in [Command::Read { name }, Command::Walk, Command::Fsck] {
            pod.call(&command).with_context(|| format!("{len} bytes"))?;
            pod.check_alive()?;
        }
        let used = world.mount().used()?;
        ensure!(
            used == before,
            "reading {len} bytes of nothing took {} bytes",
            used - before
        );
    }
    Ok(())
}

#[test]
fn a_tree_that_is_no_volume_is_an_error_at_once() -> Result<()> {
    skip_unless_possible!();
    let canary = Canary::new()?;
    let elsewhere = canary.directory.path();
    type Break<'a> = Box<dyn Fn(&Path) -> Result<()> + 'a>;
    let replaced = |name: &'static str| -> Break<'_> {
        Box::new(move |root: &Path| {
            fs::rename(root.join(name), root.join("moved"))?;
            Ok(symlink(elsewhere, root.join(name))?)
        })
    };
    let format = |content: &'static [u8]| -> Break<'_> {
        Box::new(move |root: &Path| {
            fs::remove_file(root.join(".vineyard/format"))?;
            Ok(fs::write(root.join(".vineyard/format"), content)?)
        })
    };
    let planted = |index: usize| -> Break<'_> {
        let path = canary.path();
        Box::new(move |root: &Path| {
            plant(root, "x", &path)?;
            fs::remove_file(root.join(".vineyard/format"))?;
            let kind = ["a", "b", "c", "e", "f", "h"][index];
            Ok(fs::rename(
                root.join(format!("x{kind}.raw")),
                root.join(".vineyard/format"),
            )?)
        })
    };
    let mut breaks: Vec<(String, Break<'_>)> = Vec::new();
    for name in [
        ".vineyard",
        ".vineyard/objects",
        ".vineyard/trash",
        ".vineyard/ttl",
        ".vineyard/links",
        ".vineyard/tmp",
    ] {
        breaks.push((format!("{name} is a symlink"), replaced(name)));
    }
    for content in [
        b"vineyard-volume 2\n".as_slice(),
        b"",
        b"\0\0\0",
        b"vineyard-volume 1",
        &[b'x'; 100_000],
    ] {
        breaks.push((
            format!("format of {} bytes", content.len()),
            format(content),
        ));
    }
    breaks.extend((0..6).map(|index| (format!("format is special, {index}"), planted(index))));
    for (what, wreck) in breaks {
        let _limit = deadline(LIMIT, what.clone());
        let world = World::new(MIB, CLIENT)?;
        wreck(world.volume()).with_context(|| what.clone())?;
        let opened = Volume::open(world.volume(), Options::default());
        if let Ok(volume) = &opened {
            let _ = volume.sweep();
        }
        canary.check().with_context(|| what.clone())?;
        match opened {
            Err(
                Error::Format { .. }
                | Error::NotAVolume { .. }
                | Error::Io { .. }
                | Error::Foreign { .. },
            ) => {}
            other => bail!("{what}: {other:?}"),
        }
    }
    ensure!(canary.path().metadata()?.size() == 6, "the canary");
    Ok(())
}
