//! Removes what killed test runs have left, and nothing else.

fn main() -> anyhow::Result<()> {
    for path in vineyard_tests::leftovers::remove()? {
        println!("removed {}", path.display());
    }
    Ok(())
}
