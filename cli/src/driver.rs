//! The bills of a whole node, as its driver tells them over the operator's socket.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use prost::Message;
use serde::Serialize;
use vineyard_proto::admin::{
    Bills, GetBills, Reply, Request, VolumeBill, reply, request, share::Payer, volume_bill::State,
};

use crate::bytes::human;
use crate::output::{columns, printable};

/// Where the driver listens when nothing else is said.
pub(crate) const SOCKET: &str = "/run/vineyard/admin.sock";

/// The largest reply.
const LARGEST: u32 = 64 << 20;

/// A survey of a full node takes its time.
const PATIENCE: Duration = Duration::from_secs(600);

/// Who is billed on a node.
#[derive(Serialize)]
pub(crate) struct NodeBills {
    has_retainer: bool,
    requested_bytes: u64,
    allocated_bytes: u64,
    request_trouble: String,
    leaving: Vec<Leaving>,
    volumes: Vec<Volume>,
}

#[derive(Serialize)]
struct Leaving {
    pod: String,
    at_most_bytes: u64,
}

#[derive(Serialize)]
struct Volume {
    volume: String,
    capacity_bytes: u64,
    used_bytes: u64,
    /// Largest first.
    shares: Vec<Share>,
    unseen_bytes: u64,
    retained_bytes: u64,
    pending_bytes: u64,
    expected_bytes: u64,
    /// `settled`, `due`, `running`, `waiting` or `unknown`.
    state: &'static str,
    /// Of a hand-over that is under way.
    moved_bytes: u64,
    seen_bytes: u64,
    total_bytes: u64,
    trouble: String,
    left: Vec<Left>,
    /// Age of the survey.
    age_milliseconds: Option<u64>,
    pods: Vec<Tenant>,
}

#[derive(Serialize)]
struct Share {
    /// `retainer`, `pod` or `other`.
    payer: &'static str,
    /// Uid of the pod, or path of the cgroup.
    name: String,
    cgroup: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct Left {
    path: String,
    bytes: u64,
    cgroup: u64,
    reason: String,
}

#[derive(Serialize)]
struct Tenant {
    pod: String,
    writable: bool,
    leaves: bool,
}

impl NodeBills {
    /// Asks the driver behind `socket`; with `survey` it looks at every page now.
    pub(crate) fn of(socket: &Path, survey: bool) -> anyhow::Result<Self> {
        let request = Request {
            body: Some(request::Body::GetBills(GetBills { survey })),
        };
        let reply = ask(socket, &request)
            .with_context(|| format!("no driver answers at {}", socket.display()))?;
        match reply.body {
            Some(reply::Body::Bills(bills)) => Ok(Self::from(bills)),
            Some(reply::Body::Refused(why)) => bail!("the driver refuses: {why}"),
            None => bail!("the driver's answer is of a newer version"),
        }
    }

    /// Every volume and who is charged, for people.
    pub(crate) fn table(&self) -> String {
        let rows = self.volumes.iter().flat_map(Volume::rows);
        let mut text = columns(&["volume", "charged to", "bytes", "state"], &[2], rows);
        text.push('\n');
        text += &match self.has_retainer {
            true => format!(
                "retainer: {} requested, {} allocated\n",
                human(self.requested_bytes),
                human(self.allocated_bytes)
            ),
            false => "no retainer: bytes stay on the bill of whoever put them\n".to_owned(),
        };
        if !self.request_trouble.is_empty() {
            text += &format!("its request is {}\n", printable(&self.request_trouble));
        }
        for leaving in &self.leaving {
            let (pod, bytes) = (printable(&leaving.pod), human(leaving.at_most_bytes));
            text += &format!("pod {pod} leaves, {bytes} were granted to it\n");
        }
        for volume in &self.volumes {
            text += &volume.remarks();
        }
        text
    }
}

impl Volume {
    fn rows(&self) -> Vec<Vec<String>> {
        let used = format!(
            "{} of {}",
            human(self.used_bytes),
            human(self.capacity_bytes)
        );
        let mut rows = vec![vec![
            self.volume.clone(),
            String::new(),
            used,
            self.state.to_owned(),
        ]];
        let row = |who: String, bytes: u64| vec![String::new(), who, human(bytes), String::new()];
        rows.extend(
            self.shares
                .iter()
                .map(|share| row(share.label(), share.bytes)),
        );
        for (what, bytes) in [
            ("(nobody can tell)", self.unseen_bytes),
            ("(to be handed over)", self.pending_bytes),
        ] {
            if bytes > 0 {
                rows.push(row(what.to_owned(), bytes));
            }
        }
        rows
    }

    fn remarks(&self) -> String {
        let mut text = String::new();
        let volume = &self.volume;
        if self.total_bytes > 0 {
            let (moved, seen) = (human(self.moved_bytes), human(self.seen_bytes));
            let total = human(self.total_bytes);
            text += &format!("{volume}: {moved} handed over, {seen} of {total} looked at\n");
        }
        if !self.trouble.is_empty() {
            text += &format!("{volume}: {}\n", printable(&self.trouble));
        }
        for left in &self.left {
            let what = match left.path.as_str() {
                "" => "what no path reaches".to_owned(),
                path => printable(path),
            };
            let (bytes, reason) = (human(left.bytes), printable(&left.reason));
            text += &format!("{volume}: {bytes} of {what} stay: {reason}\n");
        }
        text
    }
}

impl Share {
    fn label(&self) -> String {
        match (self.payer, self.name.as_str()) {
            ("retainer", _) => "retainer".to_owned(),
            ("pod", uid) => format!("pod {}", printable(uid)),
            (_, "") if self.cgroup == 0 => "(nobody)".to_owned(),
            (_, "") => format!("(a cgroup: {})", self.cgroup),
            (_, path) => printable(path),
        }
    }
}

impl From<Bills> for NodeBills {
    fn from(bills: Bills) -> Self {
        let leaving = bills.leaving.into_iter().map(|it| Leaving {
            pod: it.pod_uid,
            at_most_bytes: it.at_most_bytes,
        });
        Self {
            has_retainer: bills.has_retainer,
            requested_bytes: bills.requested_bytes,
            allocated_bytes: bills.allocated_bytes,
            request_trouble: bills.request_trouble,
            leaving: leaving.collect(),
            volumes: bills.volumes.into_iter().map(Volume::from).collect(),
        }
    }
}

impl From<VolumeBill> for Volume {
    fn from(bill: VolumeBill) -> Self {
        let state = match bill.state() {
            State::Unknown => "unknown",
            State::Settled => "settled",
            State::Due => "due",
            State::Running => "running",
            State::Waiting => "waiting",
        };
        let share = |it: vineyard_proto::admin::Share| Share {
            payer: match it.payer() {
                Payer::Retainer => "retainer",
                Payer::Pod => "pod",
                Payer::Other => "other",
            },
            name: it.name,
            cgroup: it.cgroup,
            bytes: it.bytes,
        };
        let left = |it: vineyard_proto::admin::Left| Left {
            path: it.path,
            bytes: it.bytes,
            cgroup: it.cgroup,
            reason: it.reason,
        };
        let tenant = |it: vineyard_proto::admin::Tenant| Tenant {
            pod: it.pod_uid,
            writable: it.writable,
            leaves: it.leaves,
        };
        Self {
            state,
            volume: bill.volume_id,
            capacity_bytes: bill.capacity_bytes,
            used_bytes: bill.used_bytes,
            shares: bill.shares.into_iter().map(share).collect(),
            unseen_bytes: bill.unseen_bytes,
            retained_bytes: bill.retained_bytes,
            pending_bytes: bill.pending_bytes,
            expected_bytes: bill.expected_bytes,
            moved_bytes: bill.moved_bytes,
            seen_bytes: bill.seen_bytes,
            total_bytes: bill.total_bytes,
            trouble: bill.trouble,
            left: bill.left.into_iter().map(left).collect(),
            age_milliseconds: bill.age_milliseconds,
            pods: bill.tenants.into_iter().map(tenant).collect(),
        }
    }
}

fn ask(socket: &Path, request: &Request) -> io::Result<Reply> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let message = request.encode_to_vec();
    let length = u32::try_from(message.len()).map_err(io::Error::other)?;
    let mut frame = length.to_le_bytes().to_vec();
    frame.extend(message);
    stream.write_all(&frame)?;
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length > LARGEST {
        return Err(io::Error::other("an answer that is too large"));
    }
    let mut message = Vec::new();
    stream.take(length.into()).read_to_end(&mut message)?;
    Reply::decode(message.as_slice()).map_err(io::Error::other)
}
