//! Who may do what: a certificate authority, a serving certificate, tokens, and a kubeconfig for each user.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::namespaces::output;
use super::network::{API_ADDRESS, API_SERVICE};
use super::place::Place;

/// Users of the cluster: name of the kubeconfig, name of the user, group.
fn users(nodes: u8) -> Vec<(String, String, &'static str)> {
    let mut users: Vec<_> = [
        ("admin", "admin", "system:masters"),
        (
            "kube-controller-manager",
            "system:kube-controller-manager",
            "",
        ),
        ("kube-scheduler", "system:kube-scheduler", ""),
    ]
    .map(|(file, user, group)| (file.to_owned(), user.to_owned(), group))
    .into();
    for n in 1..=nodes {
        users.push((format!("n{n}"), format!("system:node:n{n}"), "system:nodes"));
    }
    users
}

/// Makes them all.
///
/// # Errors
/// What openssl or the file system says.
pub(super) fn make(place: &Place, nodes: u8) -> Result<()> {
    let folder = place.credentials();
    fs::create_dir_all(&folder)?;
    certificates(&folder)?;
    let mut tokens = String::new();
    for (file, user, group) in users(nodes) {
        let token = token()?;
        tokens.push_str(&format!("{token},{user},{user},\"{group}\"\n"));
        let config = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
             clusters: [{{name: test, cluster: {{server: 'https://{API_ADDRESS}:6443', certificate-authority: {ca}}}}}]\n\
             users: [{{name: test, user: {{token: {token}}}}}]\n\
             contexts: [{{name: test, context: {{cluster: test, user: test}}}}]\n",
            ca = folder.join("ca.crt").display(),
        );
        fs::write(place.kubeconfig(&file), config)?;
    }
    fs::write(folder.join("tokens.csv"), tokens).context("tokens")
}

fn certificates(folder: &Path) -> Result<()> {
    let openssl = |arguments: &[&str]| {
        let mut command = Command::new("openssl");
        output(command.current_dir(folder).args(arguments), "openssl")
    };
    let request = [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-noenc",
        "-days",
        "30",
    ];
    let authority = [
        "-keyout",
        "ca.key",
        "-out",
        "ca.crt",
        "-subj",
        "/CN=vineyard-test",
    ];
    openssl(&[&request[..], &authority].concat())?;
    let signed = [&request[..], &["-CA", "ca.crt", "-CAkey", "ca.key"]].concat();
    let names = format!(
        "subjectAltName=IP:{API_ADDRESS},IP:{API_SERVICE},IP:127.0.0.1,DNS:kubernetes.default.svc"
    );
    let serving = [
        "-keyout",
        "apiserver.key",
        "-out",
        "apiserver.crt",
        "-subj",
        "/CN=kube-apiserver",
        "-addext",
        &names,
    ];
    openssl(
        &[
            &signed[..],
            &serving,
            &["-addext", "basicConstraints=critical,CA:false"],
        ]
        .concat(),
    )?;
    let client = [
        "-keyout",
        "kubelet-client.key",
        "-out",
        "kubelet-client.crt",
        "-subj",
        "/O=system:masters/CN=kube-apiserver",
    ];
    let usage = [
        "-addext",
        "extendedKeyUsage=clientAuth",
        "-addext",
        "basicConstraints=critical,CA:false",
    ];
    openssl(&[&signed[..], &client, &usage].concat())?;
    openssl(&[
        "ecparam",
        "-name",
        "prime256v1",
        "-genkey",
        "-noout",
        "-out",
        "service-accounts.key",
    ])?;
    openssl(&[
        "ec",
        "-in",
        "service-accounts.key",
        "-pubout",
        "-out",
        "service-accounts.pub",
    ])?;
    Ok(())
}

fn token() -> Result<String> {
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
