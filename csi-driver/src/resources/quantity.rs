//! Quantities of memory as Kubernetes writes them: `1Gi`, `500M`, `1e9`, `1073741824`.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::bytes::Bytes;

const BINARY: [(&str, u64); 6] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("Pi", 1 << 50),
    ("Ei", 1 << 60),
];

/// Powers of ten, by exponent.
const DECIMAL: [(&str, i32); 9] = [
    ("n", -9),
    ("u", -6),
    ("m", -3),
    ("k", 3),
    ("M", 6),
    ("G", 9),
    ("T", 12),
    ("P", 15),
    ("E", 18),
];

/// Bytes of a quantity, rounded up as Kubernetes does; `None` when it is none, or no number of bytes.
pub(crate) fn bytes(quantity: &Quantity) -> Option<Bytes> {
    let text = quantity.0.trim();
    for (suffix, unit) in BINARY {
        if let Some(number) = text.strip_suffix(suffix) {
            return scaled(number, u128::from(unit), 0);
        }
    }
    for (suffix, exponent) in DECIMAL {
        if let Some(number) = text.strip_suffix(suffix) {
            return scaled(number, 1, exponent);
        }
    }
    match text.split_once(['e', 'E']) {
        Some((number, exponent)) => scaled(number, 1, exponent.parse().ok()?),
        None => scaled(text, 1, 0),
    }
}

/// `number` × `unit` × 10^`exponent`.
fn scaled(number: &str, unit: u128, exponent: i32) -> Option<Bytes> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits: String = [whole.strip_prefix('+').unwrap_or(whole), fraction].concat();
    if digits.is_empty() || digits.len() > 30 || !digits.bytes().all(|it| it.is_ascii_digit()) {
        return None;
    }
    let exponent = exponent.checked_sub(i32::try_from(fraction.len()).ok()?)?;
    let digits: u128 = digits.parse().ok()?;
    let power = 10_u128.checked_pow(exponent.unsigned_abs());
    let product = digits.checked_mul(unit);
    let bytes = match (exponent, power) {
        (0.., Some(power)) => product?.checked_mul(power)?,
        (0.., None) if digits > 0 => return None,
        (..0, Some(power)) => product?.div_ceil(power),
        // Less than one byte, or nothing.
        (_, None) => u128::from(digits > 0),
    };
    u64::try_from(bytes).ok().map(Bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        for (text, expected) in [
            ("0", 0),
            ("1073741824", 1 << 30),
            ("1Gi", 1 << 30),
            ("16Mi", 16 << 20),
            ("1.5Ki", 1536),
            ("500M", 500_000_000),
            ("1e9", 1_000_000_000),
            ("1E3", 1000),
            ("2E", 2_000_000_000_000_000_000),
            ("128974848000m", 128_974_848),
            ("1m", 1),
            ("1e-30", 1),
            (".5Gi", 1 << 29),
        ] {
            let read = bytes(&Quantity(text.into()));
            assert_eq!(read, Some(Bytes(expected)), "{text}");
        }
        for text in ["", "Gi", "-1", "1 Gi", "1e99", "16Ei", "abc"] {
            assert_eq!(bytes(&Quantity(text.into())), None, "{text}");
        }
    }
}
