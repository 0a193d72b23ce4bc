//! Progress of long work, on standard error and only for a person who watches.

use std::io::{self, IsTerminal};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar for `total` bytes.
pub(crate) fn bytes(what: &str, total: u64) -> ProgressBar {
    let bar = bar(
        Some(total),
        "{prefix} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}",
    );
    bar.set_prefix(what.to_owned());
    bar
}

/// A bar for `total` things.
pub(crate) fn count(what: &str, total: u64) -> ProgressBar {
    let bar = bar(
        Some(total),
        "{prefix} {wide_bar} {human_pos}/{human_len} {eta}",
    );
    bar.set_prefix(what.to_owned());
    bar
}

/// A spinner for work whose length is not known.
pub(crate) fn spinner(what: &str) -> ProgressBar {
    let bar = bar(None, "{spinner} {prefix} {elapsed}");
    bar.set_prefix(what.to_owned());
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

fn bar(total: Option<u64>, template: &str) -> ProgressBar {
    let target = if io::stderr().is_terminal() {
        ProgressDrawTarget::stderr_with_hz(8)
    } else {
        ProgressDrawTarget::hidden()
    };
    let style =
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(total, target).with_style(style)
}
