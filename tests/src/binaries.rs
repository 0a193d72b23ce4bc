//! The programs under test, as built for this test run.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

/// The sidecar. Cargo builds no programs of other packages for a test, so this builds it, once, with the profile and
/// into the target directory of the running test.
///
/// # Errors
/// When it does not build.
pub fn sidecar() -> Result<&'static Path> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    once(&BUILT, "VINEYARD_SIDECAR", "vineyard-sidecar")
}

/// The command line, built likewise.
///
/// # Errors
/// When it does not build.
pub fn command_line() -> Result<&'static Path> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    once(&BUILT, "VINEYARD_COMMAND_LINE", "vineyard")
}

/// The CSI driver and the retainer, built likewise.
///
/// # Errors
/// When it does not build.
pub fn driver() -> Result<&'static Path> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    once(&BUILT, "VINEYARD_CSI", "vineyard-csi")
}

/// The program of a package that has its name, or the one that the environment names.
fn once(
    built: &'static OnceLock<Result<PathBuf, String>>,
    variable: &str,
    package: &str,
) -> Result<&'static Path> {
    let built = built.get_or_init(|| match std::env::var_os(variable) {
        Some(path) => Ok(path.into()),
        None => build(package).map_err(|error| format!("{error:#}")),
    });
    match built {
        Ok(path) => Ok(path),
        Err(error) => bail!("{package} does not build: {error}"),
    }
}

fn build(package: &str) -> Result<PathBuf> {
    // target/<profile>/deps/<test>-<hash>
    let test = std::env::current_exe()?;
    let output = test
        .ancestors()
        .nth(2)
        .context("the directory of the profile")?;
    let target = output.parent().context("the target directory")?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["build", "--quiet", "--locked", "-p", package])
        .arg("--target-dir")
        .arg(target);
    // The profile of `cargo test`, whose dependencies are built already.
    let profile = if output.ends_with("release") {
        "release"
    } else {
        "test"
    };
    cargo.args(["--profile", profile]);
    // The driver as its own tests have it: a release has no fail points.
    if package == "vineyard-csi" && profile == "test" {
        cargo.args(["--features", "failpoints"]);
    }
    let status = cargo.status().context("cargo")?;
    if !status.success() {
        bail!("cargo build: {status}");
    }
    Ok(output.join(package))
}
