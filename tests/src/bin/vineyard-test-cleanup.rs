//! Removes what killed test runs have left, and nothing else.

fn main() -> anyhow::Result<()> {
    for path in vineyard_tests::leftovers::remove()? {
        println!("removed {}", path.display());
    }
    for id in vineyard_tests::cluster::remove_ended()? {
        println!("removed cluster {id}");
    }
    Ok(())
}
