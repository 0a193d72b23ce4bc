//! Points between two steps, where a test ends or holds the driver. Nothing of it is compiled without the feature
//! `failpoints`, and with it nothing optimised for release is.
//!
//! The file that `VINEYARD_FAILPOINTS` names holds one order: `kill` or `hold`, the name of a point or `*`, and at which
//! passage from now on. When its time has come, the file is renamed to `<file>.hit` and says which point it was, as in `kill stage.recorded`; a held thread
//! goes on when that is removed. No file: no order. All processes that share the file count together.

/// A point that the driver passes; a statement.
macro_rules! fail_point {
    ($name:expr) => {
        #[cfg(feature = "failpoints")]
        $crate::failpoint::pass($name);
        #[cfg(not(feature = "failpoints"))]
        let _ = $name;
    };
}
pub(crate) use fail_point;

#[cfg(all(feature = "failpoints", not(debug_assertions)))]
compile_error!("the feature `failpoints` is for tests: a release has no fail points");

#[cfg(feature = "failpoints")]
pub(crate) use armed::pass;

#[cfg(feature = "failpoints")]
mod armed {
    use std::fs::{self, File};
    use std::io::{Read, Seek, Write};
    use std::path::{Path, PathBuf};
    use std::sync::OnceLock;
    use std::time::Duration;

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    const LOOK: Duration = Duration::from_millis(1);

    /// Passes a point. Returns unless it is ordered otherwise.
    pub(crate) fn pass(point: &str) {
        static ORDERS: OnceLock<Option<PathBuf>> = OnceLock::new();
        let orders = ORDERS.get_or_init(|| std::env::var_os("VINEYARD_FAILPOINTS").map(Into::into));
        let Some(path) = orders else { return };
        let Some(order) = due(path, point) else {
            return;
        };
        let hit = path.with_extension("hit");
        if order == "kill" {
            // Nothing of this process runs on, not even a destructor.
            let _ = kill(Pid::this(), Signal::SIGKILL);
        }
        // Whatever else the executor has to do is done elsewhere.
        tokio::task::block_in_place(|| {
            while hit.exists() {
                std::thread::sleep(LOOK);
            }
        });
    }

    /// What is ordered at this passage. The last one of a countdown takes the order away.
    fn due(path: &Path, point: &str) -> Option<String> {
        let mut file = File::options().read(true).write(true).open(path).ok()?;
        file.lock().ok()?;
        let mut text = String::new();
        file.read_to_string(&mut text).ok()?;
        let mut words = text.split_whitespace();
        let (order, name) = (words.next()?, words.next()?);
        let passages: u64 = words.next()?.parse().ok()?;
        if name != "*" && name != point {
            return None;
        }
        file.rewind().ok()?;
        file.set_len(0).ok()?;
        if passages > 1 {
            write!(file, "{order} {name} {}", passages - 1).ok()?;
            return None;
        }
        write!(file, "{order} {point}").ok()?;
        fs::rename(path, path.with_extension("hit")).ok()?;
        Some(order.to_owned())
    }
}
