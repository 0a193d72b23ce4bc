//! Quantities as Kubernetes writes them: `1Gi`, `500m`, `1e3`, `1.5G`.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::bytes::Bytes;

const SUFFIXES: [(&str, i128); 12] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("Pi", 1 << 50),
    ("Ei", 1 << 60),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("P", 1_000_000_000_000_000),
    ("E", 1_000_000_000_000_000_000),
];

/// Digits after the point that are looked at; Kubernetes keeps nine.
const DIGITS: usize = 9;

/// Whole bytes, rounded up as Kubernetes does. `None`: not a quantity, negative, or more than 64 bits.
pub(crate) fn bytes(text: &str) -> Option<Bytes> {
    let nano = nanos(text)?;
    let bytes = nano.div_euclid(NANO) + i128::from(nano.rem_euclid(NANO) > 0);
    u64::try_from(bytes).ok().map(Bytes)
}

/// Thousandths of a processor, rounded up. `None` as for [`bytes`].
pub(super) fn millicores(text: &str) -> Option<u64> {
    let nano = nanos(text)?;
    let milli = NANO / 1000;
    u64::try_from(nano.div_euclid(milli) + i128::from(nano.rem_euclid(milli) > 0)).ok()
}

/// Bytes in the largest binary unit that is exact.
pub(super) fn of_bytes(bytes: Bytes) -> Quantity {
    let units = SUFFIXES[..6].iter().rev();
    let mut exact = units.filter_map(|(name, unit)| {
        let unit = u64::try_from(*unit).ok()?;
        (bytes.0 >= unit && bytes.0.is_multiple_of(unit))
            .then(|| format!("{}{name}", bytes.0 / unit))
    });
    Quantity(exact.next().unwrap_or_else(|| bytes.0.to_string()))
}

/// Thousandths of a processor.
pub(super) fn of_millicores(milli: u64) -> Quantity {
    Quantity(format!("{milli}m"))
}

const NANO: i128 = 1_000_000_000;

fn nanos(text: &str) -> Option<i128> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '+');
    let (number, suffix) = text.split_at(end.unwrap_or(text.len()));
    let number = decimal(number.strip_prefix('+').unwrap_or(number))?;
    let scaled = |unit: i128| number.checked_mul(unit);
    match suffix {
        "" => Some(number),
        "n" => Some(ceiling(number, 1_000_000_000)),
        "u" => Some(ceiling(number, 1_000_000)),
        "m" => Some(ceiling(number, 1_000)),
        _ => match SUFFIXES.iter().find(|(name, _)| *name == suffix) {
            Some((_, unit)) => scaled(*unit),
            None => {
                let exponent = suffix.strip_prefix(['e', 'E'])?;
                let exponent: i32 = exponent.parse().ok()?;
                let power = 10_i128.checked_pow(exponent.unsigned_abs())?;
                match exponent < 0 {
                    true => Some(ceiling(number, power)),
                    false => scaled(power),
                }
            }
        },
    }
}

fn ceiling(number: i128, by: i128) -> i128 {
    number.div_euclid(by) + i128::from(number.rem_euclid(by) > 0)
}

/// A decimal number in units of 1e-9, rounded up.
fn decimal(text: &str) -> Option<i128> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|digit| digit.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || whole.len() + fraction.len() == 0 {
        return None;
    }
    let whole: i128 = if whole.is_empty() {
        0
    } else {
        whole.parse().ok()?
    };
    let (kept, cut) = fraction.split_at(fraction.len().min(DIGITS));
    let kept: i128 = format!("{kept:0<DIGITS$}").parse().ok()?;
    let more = cut.bytes().any(|digit| digit != b'0');
    whole
        .checked_mul(NANO)?
        .checked_add(kept + i128::from(more))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        for (text, expected) in [
            ("0", 0),
            ("1Gi", 1 << 30),
            ("1.5Gi", 3 << 29),
            ("500M", 500_000_000),
            ("1e3", 1000),
            ("1E", 1_000_000_000_000_000_000),
            ("12E2", 1200),
            ("100m", 1),
            ("1500m", 2),
            ("0.1Ki", 103),
            (".5Ki", 512),
            ("+1k", 1000),
        ] {
            assert_eq!(bytes(text), Some(Bytes(expected)), "{text}");
        }
        for text in [
            "", "Gi", "-1", "1GiB", "1 Gi", "1.2.3", "many", "1e", "99999Ei", "++1",
        ] {
            assert_eq!(bytes(text), None, "{text}");
        }
        for (text, expected) in [("1", 1000), ("10m", 10), ("0.5", 500), ("1u", 1)] {
            assert_eq!(millicores(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn bytes_are_written_in_the_largest_exact_unit() {
        for (number, text) in [
            (0, "0"),
            (1 << 30, "1Gi"),
            (1056 << 20, "1056Mi"),
            (4095, "4095"),
        ] {
            assert_eq!(of_bytes(Bytes(number)).0, text);
        }
    }
}
