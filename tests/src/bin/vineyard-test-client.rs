//! A client of the store as a process of its own, steered by a test over its standard input.

fn main() -> anyhow::Result<()> {
    vineyard_tests::performer::run()
}
