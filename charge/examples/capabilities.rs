//! Prints what this kernel and these privileges can do. With an argument, in that directory.

use vineyard_charge::probe::Capabilities;

fn main() {
    let volume = std::env::args_os().nth(1);
    print!(
        "{}",
        Capabilities::probe(volume.as_deref().map(std::path::Path::new))
    );
}
