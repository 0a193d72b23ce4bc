//! What this test program does when another test starts it as a process of its own.

use std::fs::{self, File};
use std::io::BufRead;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, setresgid, setresuid};

use vineyard_charge::handover::{HandOver, Progress};
use vineyard_charge::recharge::Slack;
use vineyard_charge::{CgroupId, RemotePayer};

use super::ground::write_pattern;

/// Lends nothing.
pub struct Stingy;

impl Slack for Stingy {
    fn lend(&self, _bytes: u64) -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    fn take_back(&self, _bytes: u64) {}
}

#[test]
#[ignore = "a role: started by other tests in a cgroup of its own"]
fn play() {
    let Ok(role) = std::env::var("VINEYARD_TEST_ROLE") else {
        return;
    };
    let path = PathBuf::from(std::env::var_os("VINEYARD_TEST_PATH_OF").unwrap());
    // Whoever starts us says so when we are in our cgroup.
    std::io::stdin()
        .lock()
        .read_line(&mut String::new())
        .unwrap();
    match role.as_str() {
        "writer" => {
            let size = std::env::var("VINEYARD_TEST_SIZE")
                .unwrap()
                .parse()
                .unwrap();
            let file = File::create(&path).unwrap();
            write_pattern(&file, size);
            file.sync_all().unwrap();
        }
        "driver" => {
            let variable = |name| std::env::var(format!("VINEYARD_TEST_{name}")).unwrap();
            let payer = RemotePayer::connect(variable("SOCKET").as_ref(), "driver").unwrap();
            let order = HandOver {
                layer: &path,
                stays: &|_| false,
                payer: &payer,
                payer_owners: &[CgroupId(variable("OWNER").parse().unwrap())],
                exclusive: false,
                slack: &Stingy,
                progress: &Progress::default(),
                until: None,
            };
            order.run().unwrap();
        }
        role => {
            if role == "blind payer" {
                unshare(CloneFlags::CLONE_NEWCGROUP).unwrap();
            }
            let listener = UnixListener::bind(&path).unwrap();
            let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
            fs::set_permissions(&path, everybody).unwrap();
            let nobody = (Uid::from_raw(65534), Gid::from_raw(65534));
            setresgid(nobody.1, nobody.1, nobody.1).unwrap();
            setresuid(nobody.0, nobody.0, nobody.0).unwrap();
            super::serve(&listener);
        }
    }
}
