//! Sizes and times as people write and read them.

use std::time::{Duration, SystemTime};

/// `1536` as `1.5 KiB`.
pub(crate) fn human(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    #[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Bytes per second as `17.3 GB/s`: decimal, as memory is rated.
pub(crate) fn rate(bytes: u64, time: Duration) -> f64 {
    #[expect(
        clippy::cast_precision_loss,
        reason = "a measured rate has a few digits"
    )]
    let bytes = bytes as f64;
    bytes / time.as_secs_f64().max(1e-9) / 1e9
}

/// How long ago, in the largest unit that fits.
pub(crate) fn age(then: SystemTime) -> String {
    let seconds = SystemTime::now()
        .duration_since(then)
        .unwrap_or_default()
        .as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Reads `4096`, `64K`, `100MiB`, `2g`: powers of 1024.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let split = lower
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(lower.len());
    let (digits, unit) = lower.split_at(split);
    let shift = match unit.trim() {
        "" | "b" => 0,
        "k" | "kb" | "ki" | "kib" => 10,
        "m" | "mb" | "mi" | "mib" => 20,
        "g" | "gb" | "gi" | "gib" => 30,
        _ => {
            return Err(format!(
                "{text:?} is no size; write 4096, 64KiB, 100MiB or 2GiB"
            ));
        }
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(1 << shift))
        .ok_or_else(|| format!("{text:?} is no size; write 4096, 64KiB, 100MiB or 2GiB"))
}

/// Reads `90`, `1.5s`, `10m`, `2h`, `7d`; a bare number is seconds.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration; write 90, 1.5s, 10m, 2h or 7d");
    let (number, factor) = match text.trim().as_bytes().last() {
        Some(b's') => (&text[..text.len() - 1], 1.0),
        Some(b'm') => (&text[..text.len() - 1], 60.0),
        Some(b'h') => (&text[..text.len() - 1], 3600.0),
        Some(b'd') => (&text[..text.len() - 1], 86_400.0),
        _ => (text, 1.0),
    };
    let seconds = number.trim().parse::<f64>().map_err(|_| wrong())?;
    Duration::try_from_secs_f64(seconds * factor).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short_and_never_show_1024() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1024 * 1024 - 1, "1.0 MiB"),
            (5 << 30, "5.0 GiB"),
            (u64::MAX, "16384.0 PiB"),
        ] {
            assert_eq!(human(bytes), text);
        }
    }

    #[test]
    fn sizes_are_read_in_every_usual_spelling() {
        for (text, bytes) in [
            ("4096", 4096),
            ("64K", 65_536),
            ("100MiB", 100 << 20),
            ("2 gb", 2 << 30),
        ] {
            assert_eq!(parse(text), Ok(bytes));
        }
        for text in [
            "",
            "K",
            "12q",
            "-1",
            "99999999999999999999",
            "17179869184GiB",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_are_read_and_nonsense_is_refused() {
        for (text, seconds) in [
            ("90", 90.0),
            ("1.5s", 1.5),
            ("10m", 600.0),
            ("2h", 7200.0),
            ("7d", 604_800.0),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs_f64(seconds)));
        }
        for text in ["", "s", "-1", "1e400", "nan", "tomorrow"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
