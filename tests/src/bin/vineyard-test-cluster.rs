//! Starts, uses and removes the cluster under test.

fn main() -> anyhow::Result<std::process::ExitCode> {
    vineyard_tests::cluster::run()
}
