//! The control plane: etcd and three programs of Kubernetes, in the cluster's namespaces but in no pod.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Result, bail};

use super::Cluster;
use super::namespaces;
use super::network::{API_ADDRESS, SERVICES};
use super::recorded::Recorded;
use crate::process::poll;

/// How long the control plane may take on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(180);

impl Cluster {
    /// Starts the control plane and waits until it answers.
    ///
    /// # Errors
    /// When a program cannot be started, or does not answer.
    pub(super) fn start_control_plane(&self) -> Result<()> {
        self.start("etcd", &self.etcd())?;
        self.start("kube-apiserver", &self.api_server())?;
        let mut last = String::new();
        let ready = poll(PATIENCE, || {
            match self.kubectl(&["get", "--raw", "/readyz"]) {
                Ok(_) => true,
                Err(error) => {
                    last = format!("{error:#}");
                    false
                }
            }
        });
        if !ready {
            bail!("the API server is not ready: {last}");
        }
        self.start("kube-controller-manager", &self.controller_manager())?;
        self.start("kube-scheduler", &self.scheduler())?;
        Ok(())
    }

    /// Starts a program of the control plane.
    fn start(&self, name: &str, arguments: &[String]) -> Result<Recorded> {
        let mut command = Command::new(self.program(name));
        command.args(arguments);
        let log = self.place.log(name);
        let pid = namespaces::start(&mut command, Some(self.namespaces()), Stdio::null(), &log)?;
        Recorded::write(&self.place.processes(), name, pid)
    }

    fn credential(&self, name: &str) -> String {
        self.place.credentials().join(name).display().to_string()
    }

    fn etcd(&self) -> Vec<String> {
        let data: PathBuf = self.place.root().join("etcd");
        vec![
            format!("--data-dir={}", data.display()),
            // What is lost with the machine is not worth waiting for a disk.
            "--unsafe-no-fsync".into(),
            "--listen-client-urls=http://127.0.0.1:2379".into(),
            "--advertise-client-urls=http://127.0.0.1:2379".into(),
            "--listen-peer-urls=http://127.0.0.1:2380".into(),
            "--log-level=warn".into(),
        ]
    }

    fn api_server(&self) -> Vec<String> {
        let credential = |name| self.credential(name);
        vec![
            "--etcd-servers=http://127.0.0.1:2379".into(),
            format!("--bind-address={API_ADDRESS}"),
            format!("--advertise-address={API_ADDRESS}"),
            "--secure-port=6443".into(),
            format!("--service-cluster-ip-range={SERVICES}"),
            format!("--tls-cert-file={}", credential("apiserver.crt")),
            format!("--tls-private-key-file={}", credential("apiserver.key")),
            format!("--client-ca-file={}", credential("ca.crt")),
            format!("--token-auth-file={}", credential("tokens.csv")),
            "--authorization-mode=Node,RBAC".into(),
            "--enable-admission-plugins=NodeRestriction".into(),
            "--allow-privileged=true".into(),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            format!(
                "--service-account-key-file={}",
                credential("service-accounts.pub")
            ),
            format!(
                "--service-account-signing-key-file={}",
                credential("service-accounts.key")
            ),
            "--kubelet-preferred-address-types=InternalIP".into(),
            format!(
                "--kubelet-client-certificate={}",
                credential("kubelet-client.crt")
            ),
            format!("--kubelet-client-key={}", credential("kubelet-client.key")),
            // Webhooks are reached at their endpoints: nothing routes the addresses of services out here.
            "--enable-aggregator-routing=true".into(),
            format!("--cert-dir={}", credential("apiserver")),
        ]
    }

    fn controller_manager(&self) -> Vec<String> {
        let config = self.place.kubeconfig("kube-controller-manager");
        vec![
            format!("--kubeconfig={}", config.display()),
            "--use-service-account-credentials=true".into(),
            "--leader-elect=false".into(),
            format!("--root-ca-file={}", self.credential("ca.crt")),
            format!(
                "--service-account-private-key-file={}",
                self.credential("service-accounts.key")
            ),
            format!("--cert-dir={}", self.credential("kube-controller-manager")),
        ]
    }

    fn scheduler(&self) -> Vec<String> {
        let config = self.place.kubeconfig("kube-scheduler");
        vec![
            format!("--kubeconfig={}", config.display()),
            "--leader-elect=false".into(),
            format!("--cert-dir={}", self.credential("kube-scheduler")),
        ]
    }
}
