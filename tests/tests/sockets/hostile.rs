//! A pod that misuses its sockets hurts itself and nobody else.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vineyard_charge::wire::{self, Frames};
use vineyard_proto::node::reply::Body as Reply;
use vineyard_proto::node::request::Body as Ask;
use vineyard_proto::node::{self, GetDevices, Grant, Hello, Leaving, refused::Reason};
use vineyard_proto::payer::{Range, Reserve};
use vineyard_tests::commands::{Answer, Content};
use vineyard_tests::node::Node;
use vineyard_tests::process::poll;
use vineyard_tests::watchdog::deadline;

use crate::pod::{Pod, recorded};
use crate::{MIB, possible};

const LIMIT: Duration = Duration::from_secs(300);
const HANG: Duration = Duration::from_secs(60);

/// A talker without manners.
struct Talker {
    stream: UnixStream,
    frames: Frames,
}

impl Talker {
    fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(HANG))?;
        stream.set_write_timeout(Some(HANG))?;
        Ok(Self {
            stream,
            frames: Frames::new(),
        })
    }

    fn say(&mut self, ask: Ask, descriptors: &[BorrowedFd<'_>]) -> Result<()> {
        let body = Some(ask);
        let frame = wire::encode(&node::Request { id: 7, body })?;
        Ok(wire::send(self.stream.as_fd(), &frame, descriptors)?)
    }

    fn ask(&mut self, ask: Ask, descriptors: &[BorrowedFd<'_>]) -> Result<Reply> {
        self.say(ask, descriptors)?;
        loop {
            if let Some((reply, _)) = self.frames.next::<node::Reply>()? {
                return reply.body.context("a reply without content");
            }
            let filled = self.frames.fill(self.stream.as_fd())?;
            ensure!(filled > 0, "the driver hung up");
        }
    }

    fn hello(&mut self) -> Result<()> {
        let hello = Hello {
            version: 1,
            sidecar: "x".repeat(5000),
            granted_bytes: u64::MAX,
            leaving: false,
        };
        let answer = self.ask(Ask::Hello(hello), &[])?;
        ensure!(matches!(answer, Reply::Welcome(_)), "{answer:?}");
        Ok(())
    }

    /// Waits until the driver hangs up.
    fn ends(mut self) -> Result<()> {
        let mut rest = [0; 4096];
        loop {
            match self.stream.read(&mut rest) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Ok(()),
                Err(error) => return Err(error).context("still connected"),
            }
        }
    }
}

fn refusal(answer: Reply) -> Result<Reason> {
    match answer {
        Reply::Refused(refused) => Ok(refused.reason()),
        other => anyhow::bail!("{other:?}"),
    }
}

fn open_files(node: &mut Node) -> Result<usize> {
    let pid = node.driver()?.pid();
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

#[test]
fn a_hostile_talker_costs_only_itself() -> Result<()> {
    possible!();
    let _limit = deadline(LIMIT, "hostile talkers");
    let mut node = Node::new(&["--patience", "1"])?;
    node.create("data", 64 * MIB)?;
    let mut victim = Pod::start(&mut node, 1, Some("32MiB"))?;
    victim.start_client()?;
    let mut pod = Pod::start(&mut node, 2, Some("8MiB"))?;
    pod.kill_sidecar()?;
    let socket = pod.driver_socket();
    let before = open_files(&mut node)?;

    let crowd: Vec<_> = (0..100).map(|_| Talker::connect(&socket)).collect();
    ensure!(open_files(&mut node)? < before + 20, "a crowd is let in");
    let answer = victim.put(0, "meanwhile", Content { seed: 1, len: MIB })?;
    ensure!(matches!(answer, Answer::Object { .. }), "{answer:?}");
    for talker in crowd {
        talker?.ends()?;
    }
    for frame in [
        &[0, 0, 0, 0][..],
        &[0xff; 64],
        &[5, 0, 0, 0, 1],
        &[9],
        b"GET / HTTP/1.1\r\n\r\n",
    ] {
        let mut talker = Talker::connect(&socket)?;
        talker.stream.write_all(frame)?;
        talker.ends()?;
    }

    let pipes: Vec<_> = (0..100)
        .map(|_| std::io::pipe())
        .collect::<std::io::Result<_>>()?;
    let strangers: Vec<BorrowedFd<'_>> = pipes
        .iter()
        .flat_map(|(reader, writer)| [reader.as_fd(), writer.as_fd()])
        .collect();
    let mut talker = Talker::connect(&socket)?;
    talker.say(Ask::GetDevices(GetDevices {}), &strangers)?;
    talker.ends()?;
    let mut talker = Talker::connect(&socket)?;
    talker.hello()?;
    talker.say(Ask::GetDevices(GetDevices {}), &strangers)?;
    talker.ends()?;
    foreign_files(&mut Talker::connect(&socket)?, &strangers)?;

    let mut talker = Talker::connect(&socket)?;
    talker.hello()?;
    let grant = Grant {
        total_bytes: u64::MAX,
    };
    let answer = talker.ask(Ask::Grant(grant), &[])?;
    ensure!(matches!(answer, Reply::Full(_)), "{answer:?}");
    talker.ask(
        Ask::Leaving(Leaving {
            spent_bytes: u64::MAX,
        }),
        &[],
    )?;
    ensure!(recorded(&node, "p2", "granted")? <= Some(8 * MIB));
    // Whoever says hello last is the sidecar.
    let mut next = Talker::connect(&socket)?;
    next.hello()?;
    talker.ends()?;
    drop((next, pipes));

    let back = poll(HANG, || {
        open_files(&mut node).is_ok_and(|now| now <= before)
    });
    ensure!(
        back,
        "{} descriptors, {before} before",
        open_files(&mut node)?
    );
    pod.start_sidecar()?;
    pod.start_client()?;
    let answer = pod.put(0, "after", Content { seed: 2, len: MIB })?;
    ensure!(matches!(answer, Answer::Object { .. }), "{answer:?}");
    pod.unpublish(&mut node, false)?;
    victim.unpublish(&mut node, true)
}

fn foreign_files(talker: &mut Talker, strangers: &[BorrowedFd<'_>]) -> Result<()> {
    talker.hello()?;
    let reserve = |count: usize| {
        let range = Range {
            offset: 0,
            length: 4096,
        };
        Ask::Reserve(Reserve {
            ranges: vec![range; count],
        })
    };
    let elsewhere = tempfile::tempfile_in("/dev/shm")?;
    let directory = File::open("/dev/shm")?;
    for files in [
        vec![elsewhere.as_fd()],
        vec![directory.as_fd()],
        strangers.to_vec(),
    ] {
        let answer = talker.ask(reserve(files.len()), &files)?;
        ensure!(refusal(answer)? == Reason::Descriptor);
    }
    let answer = talker.ask(reserve(2), &[elsewhere.as_fd()])?;
    ensure!(refusal(answer)? == Reason::Descriptor);
    ensure!(elsewhere.metadata()?.len() == 0);
    Ok(())
}

#[test]
fn what_a_pod_does_to_its_sockets_volume_leads_nowhere() -> Result<()> {
    possible!();
    let _limit = deadline(LIMIT, "a hostile sockets volume");
    let mut node = Node::new(&[])?;
    node.create("data", 64 * MIB)?;
    let mut victim = Pod::start(&mut node, 1, Some("16MiB"))?;
    victim.start_client()?;
    let mut pod = Pod::start(&mut node, 2, Some("8MiB"))?;
    let root = pod
        .driver_socket()
        .ancestors()
        .nth(2)
        .context("a root")?
        .to_owned();
    // It holds a few sockets and nothing else.
    let filled = fs::write(root.join("pod/fill"), vec![1; 4 << 20]);
    ensure!(filled.is_err(), "a pod fills the node's memory");
    let elsewhere = node.folder().join("elsewhere");
    fs::create_dir(&elsewhere)?;
    fs::rename(root.join("driver"), root.join("pod/away"))?;
    symlink(&elsewhere, root.join("driver"))?;
    node.kill()?;
    node.start()?;
    ensure!(fs::read_dir(&elsewhere)?.count() == 0, "a socket outside");
    let answer = victim.put(
        0,
        "after",
        Content {
            seed: 1,
            len: 5 * MIB,
        },
    )?;
    ensure!(matches!(answer, Answer::Object { .. }), "{answer:?}");
    pod.unpublish(&mut node, true)?;
    victim.unpublish(&mut node, true)?;
    node.unstage("data")?;
    node.delete("data")?;
    ensure!(node.mounts()?.is_empty(), "{:?}", node.mounts()?);
    Ok(())
}
