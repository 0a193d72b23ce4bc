//! A node whose bytes are billed: driver, retainer and the pods' sidecars, each a process in a cgroup of its own.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use prost::Message;
use vineyard_charge::CgroupId;
use vineyard_charge::cgroup::Hierarchy;
use vineyard_charge::cgroup::control::ControlledCgroup;
use vineyard_charge::survey::{Ledger, Surveyor};
use vineyard_proto::admin::{self, GetBills, Request, VolumeBill, reply, request};

use crate::calls::{Billing, Calls, pod_uid, program};
use crate::process::Process;

/// How long anything may take until it is there.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Node {
    pub(crate) calls: Calls,
    pub(crate) retainer: Process,
    sidecar: PathBuf,
    folder: PathBuf,
    retained: CgroupId,
    cgroups: Cgroups,
}

/// Innermost last; removed in that order.
struct Cgroups(Vec<ControlledCgroup>);

impl Drop for Cgroups {
    fn drop(&mut self) {
        while let Some(cgroup) = self.0.pop() {
            if let Err(error) = cgroup.remove() {
                eprintln!("left behind: {error}");
            }
        }
    }
}

/// The sidecar of one pod.
pub(crate) struct Pod {
    pub(crate) sidecar: Process,
    pub(crate) socket: PathBuf,
    number: usize,
    owners: Vec<CgroupId>,
    _cgroups: Cgroups,
}

fn id(cgroup: &ControlledCgroup) -> CgroupId {
    cgroup.memory().unwrap().id()
}

fn wait_until_listening(socket: &Path) {
    let begin = Instant::now();
    while UnixStream::connect(socket).is_err() {
        assert!(begin.elapsed() < PATIENCE, "{} is silent", socket.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Node {
    /// Starts a node in a folder of its own, or says why that is not possible here.
    pub(crate) async fn start(folder: &Path) -> Result<Self, String> {
        Surveyor::open().map_err(|error| error.to_string())?;
        let beside = program().with_file_name("vineyard-sidecar");
        let sidecar = std::env::var_os("VINEYARD_SIDECAR").map_or(beside, PathBuf::from);
        if !sidecar.exists() {
            return Err(format!("{} is not built", sidecar.display()));
        }
        let mount = Hierarchy::detect()
            .map_err(|error| error.to_string())?
            .mount;
        let name = format!("vineyard-bench-{}", std::process::id());
        let top = ControlledCgroup::create(&mount, &name).map_err(|error| error.to_string())?;
        let top_directory = top.directory().to_owned();
        let mut cgroups = Cgroups(vec![top]);
        for name in ["retainer", "driver"] {
            let made = ControlledCgroup::create(&top_directory, name).unwrap();
            cgroups.0.push(made);
        }
        fs::create_dir(folder).unwrap();
        let socket = folder.join("retainer.sock");
        let arguments = [
            OsStr::new("retainer"),
            OsStr::new("--listen"),
            socket.as_os_str(),
        ];
        let log = folder.join("retainer.log");
        let retainer = Process::start(&program(), &arguments, &log, Some(&cgroups.0[1]));
        wait_until_listening(&socket);
        let billing = Billing {
            cgroup: &cgroups.0[2],
            pods: &top_directory,
            retainer: &socket,
        };
        Ok(Self {
            calls: Calls::start(folder, Some(&billing)).await,
            retainer,
            sidecar,
            folder: folder.to_owned(),
            retained: id(&cgroups.0[1]),
            cgroups,
        })
    }

    /// Publishes a volume of its own to a new pod, and the pod's sockets, and starts its sidecar.
    pub(crate) async fn pod(&self, number: usize, capacity: i64) -> Pod {
        let calls = &self.calls;
        calls.create_of(number, capacity).await;
        calls.stage(number).await;
        calls.publish(number).await;
        let sockets = calls.publish_sockets(number).await;
        let name = format!("pod{}", pod_uid(number));
        let pod = ControlledCgroup::create(self.cgroups.0[0].directory(), &name).unwrap();
        let container = ControlledCgroup::create(pod.directory(), "sidecar").unwrap();
        let driver = sockets.join("driver/driver.sock");
        let socket = sockets.join("pod/vineyard.sock");
        let arguments = [
            OsStr::new("--listen"),
            socket.as_os_str(),
            OsStr::new("--driver"),
            driver.as_os_str(),
        ];
        let log = self.folder.join(format!("sidecar-{number}.log"));
        let sidecar = Process::start(&self.sidecar, &arguments, &log, Some(&container));
        wait_until_listening(&socket);
        Pod {
            owners: vec![id(&pod), id(&container)],
            _cgroups: Cgroups(vec![pod, container]),
            sidecar,
            socket,
            number,
        }
    }

    /// Processor time of driver and retainer so far.
    pub(crate) fn processor(&self) -> Duration {
        self.calls.driver().processor() + self.retainer.processor()
    }

    pub(crate) fn survey(&self, pod: &Pod) -> Ledger {
        Ledger::of(&self.calls.layer(pod.number)).unwrap()
    }

    /// The pod is charged for what it has put.
    pub(crate) fn assert_pays(&self, pod: &Pod, ledger: &Ledger, bytes: u64) {
        let paid = ledger.billed(&pod.owners);
        assert!(paid >= bytes, "the pod pays {paid} of {bytes}: {ledger:?}");
    }

    /// The retainer is charged for everything, and everything has been seen.
    pub(crate) fn assert_retained(&self, ledger: &Ledger, bytes: u64) {
        let retained = ledger.billed(&[self.retained]);
        assert!(
            retained >= bytes && retained == ledger.used,
            "the retainer pays {retained} of {bytes}: {ledger:?}"
        );
    }

    /// What the driver knows of the pod's volume.
    pub(crate) fn view(&self, pod: &Pod) -> VolumeBill {
        let mut stream = UnixStream::connect(self.calls.admin_socket()).unwrap();
        let request = Request {
            body: Some(request::Body::GetBills(GetBills { survey: false })),
        };
        let message = request.encode_to_vec();
        let length = u32::try_from(message.len()).unwrap();
        stream.write_all(&length.to_le_bytes()).unwrap();
        stream.write_all(&message).unwrap();
        let mut length = [0; 4];
        stream.read_exact(&mut length).unwrap();
        let mut message = vec![0; u32::from_le_bytes(length) as usize];
        stream.read_exact(&mut message).unwrap();
        let reply = admin::Reply::decode(message.as_slice()).unwrap();
        let Some(reply::Body::Bills(bills)) = reply.body else {
            panic!("{reply:?}");
        };
        let id = format!("pvc-{}", pod.number);
        let mut volumes = bills.volumes.into_iter();
        volumes.find(|it| it.volume_id == id).unwrap()
    }

    /// Unpublishes the rest of a pod, and deletes its volume.
    pub(crate) async fn end(&self, mut pod: Pod) {
        // A socket that is bound keeps its file system from being unmounted.
        pod.sidecar.end();
        self.calls.unpublish_sockets(pod.number).await;
        self.calls.unstage(pod.number).await;
        self.calls.delete(pod.number).await;
    }
}
