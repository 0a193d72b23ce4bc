//! `npy`: NumPy's array file, versions 1.0 to 3.0. Only the header is read.

use super::{ALIGNMENT, Malformed, u16_at, u32_at};

/// What the header of an array file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header<'b> {
    /// Where the elements start.
    pub data: usize,
    /// The type of the elements as NumPy writes it, e.g. `'<f8'`, or a list for structures.
    pub descr: &'b str,
    /// Whether the first index changes fastest.
    pub fortran_order: bool,
    /// The dimensions, as NumPy writes them, e.g. `(3, 2)`.
    pub shape: &'b str,
}

fn malformed(what: &'static str) -> Malformed {
    Malformed {
        format: "npy",
        what,
    }
}

impl<'b> Header<'b> {
    /// Reads the header at the start of `bytes`.
    ///
    /// # Errors
    /// When it is no array file, or its header is not as NumPy writes it.
    pub fn parse(bytes: &'b [u8]) -> Result<Self, Malformed> {
        let short = || malformed("the header is cut off");
        if !bytes.starts_with(b"\x93NUMPY") {
            return Err(malformed("no magic at the start"));
        }
        let (start, len) = match bytes.get(6..8).ok_or_else(short)? {
            [1, 0] => (10, usize::from(u16_at(bytes, 8).ok_or_else(short)?)),
            [2 | 3, 0] => (12, u32_at(bytes, 8).ok_or_else(short)? as usize),
            _ => return Err(malformed("unknown version")),
        };
        let data = len.checked_add(start).ok_or_else(short)?;
        let text = bytes.get(start..data).ok_or_else(short)?;
        let text = std::str::from_utf8(text).map_err(|_| malformed("the header is not text"))?;
        let inner = text
            .trim_end()
            .strip_prefix('{')
            .and_then(|t| t.strip_suffix('}'))
            .ok_or_else(|| malformed("the header is not a dictionary"))?;
        let missing = || malformed("the header lacks descr, fortran_order or shape");
        let mut header = Self {
            data,
            descr: "",
            fortran_order: false,
            shape: "",
        };
        let mut order = None;
        for (key, value) in (Items { rest: inner }) {
            match key {
                "descr" => header.descr = value,
                "shape" => header.shape = value,
                "fortran_order" => order = Some(value == "True"),
                _ => return Err(malformed("the header has another key")),
            }
        }
        if header.descr.is_empty() || !header.shape.starts_with('(') {
            return Err(missing());
        }
        header.fortran_order = order.ok_or_else(missing)?;
        Ok(header)
    }

    /// The dimensions.
    ///
    /// # Errors
    /// When they are not numbers, or their product is beyond 64 bits.
    pub fn elements(&self) -> Result<u64, Malformed> {
        let inner = self.shape.trim_start_matches('(').trim_end_matches(')');
        let mut product = 1_u64;
        for dimension in inner.split(',').map(str::trim).filter(|d| !d.is_empty()) {
            let n: u64 = dimension
                .parse()
                .map_err(|_| malformed("a dimension is not a number"))?;
            product = product
                .checked_mul(n)
                .ok_or_else(|| malformed("the shape is too large"))?;
        }
        Ok(product)
    }

    /// Bytes of one element, for the types that are not structures.
    #[must_use]
    pub fn item_bytes(&self) -> Option<u64> {
        let text = self.descr.strip_prefix('\'')?.strip_suffix('\'')?;
        let text = text.trim_start_matches(['<', '>', '|', '=']);
        let kind = text.chars().next()?;
        let digits: String = text[kind.len_utf8()..]
            .chars()
            .take_while(char::is_ascii_digit)
            .collect();
        let size: u64 = digits.parse().ok()?;
        match kind {
            'U' => size.checked_mul(4),
            'b' | 'i' | 'u' | 'f' | 'c' | 'S' | 'V' | 'm' | 'M' | 'B' => Some(size),
            _ => None,
        }
    }

    /// Checks an array file of `len` bytes as the volume format wants it: elements at a multiple of 64, and as many as
    /// the shape says.
    ///
    /// # Errors
    /// With the rule that is broken.
    pub fn check(&self, len: u64) -> Result<(), Malformed> {
        if !(self.data as u64).is_multiple_of(ALIGNMENT) {
            return Err(malformed("the elements do not start at a multiple of 64"));
        }
        let elements = self.elements()?;
        let Some(item) = self.item_bytes() else {
            return Ok(());
        };
        let expected = elements
            .checked_mul(item)
            .and_then(|n| n.checked_add(self.data as u64));
        if expected != Some(len) {
            return Err(malformed("the file is not as long as its shape says"));
        }
        Ok(())
    }
}

/// The items of a Python dictionary that is written in one line.
struct Items<'b> {
    rest: &'b str,
}

impl<'b> Iterator for Items<'b> {
    type Item = (&'b str, &'b str);

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.rest.trim_start_matches([' ', ',', '\n']);
        let rest = rest.strip_prefix('\'')?;
        let (key, rest) = rest.split_once('\'')?;
        let rest = rest.trim_start().strip_prefix(':')?.trim_start();
        let end = value_end(rest);
        self.rest = &rest[end..];
        Some((key, rest[..end].trim_end()))
    }
}

/// Where a value ends: at a comma outside of brackets and strings.
fn value_end(text: &str) -> usize {
    let (mut depth, mut quoted) = (0_i32, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'\'' => quoted = !quoted,
            b'(' | b'[' | b'{' if !quoted => depth += 1,
            b')' | b']' | b'}' if !quoted => depth -= 1,
            b',' if !quoted && depth <= 0 => return at,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(dictionary: &str, data: usize) -> Vec<u8> {
        let mut header = dictionary.to_owned().into_bytes();
        header.resize((header.len() + 11).next_multiple_of(64) - 11, b' ');
        header.push(b'\n');
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend_from_slice(&u16::try_from(header.len()).unwrap().to_le_bytes());
        bytes.extend_from_slice(&header);
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    #[test]
    fn headers_as_numpy_writes_them_are_read() {
        let bytes = file(
            "{'descr': '<f8', 'fortran_order': False, 'shape': (3, 2), }",
            48,
        );
        let header = Header::parse(&bytes).unwrap();
        assert_eq!(
            (header.descr, header.shape, header.fortran_order),
            ("'<f8'", "(3, 2)", false)
        );
        assert_eq!(
            (header.elements().unwrap(), header.item_bytes()),
            (6, Some(8))
        );
        header.check(bytes.len() as u64).unwrap();
        assert!(header.check(bytes.len() as u64 + 1).is_err());
        let scalar = file("{'descr': '<U3', 'fortran_order': True, 'shape': (), }", 12);
        let header = Header::parse(&scalar).unwrap();
        assert!(header.fortran_order);
        header.check(scalar.len() as u64).unwrap();
        let structure = file(
            "{'descr': [('a', '<i4'), ('b', '|S5')], 'fortran_order': False, 'shape': (7,), }",
            63,
        );
        let header = Header::parse(&structure).unwrap();
        assert_eq!(header.descr, "[('a', '<i4'), ('b', '|S5')]");
        header.check(structure.len() as u64).unwrap();
        let time = file(
            "{'descr': '<M8[ns]', 'fortran_order': False, 'shape': (2,), }",
            16,
        );
        Header::parse(&time)
            .unwrap()
            .check(time.len() as u64)
            .unwrap();
    }

    #[test]
    fn what_is_no_array_is_refused() {
        let good = file(
            "{'descr': '<f8', 'fortran_order': False, 'shape': (3, 2), }",
            0,
        );
        for len in 0..good.len() {
            assert!(Header::parse(&good[..len]).is_err(), "{len}");
        }
        for dictionary in [
            "",
            "{}",
            "{'descr': '<f8'}",
            "{'descr': '<f8', 'fortran_order': False, 'shape': 3}",
        ] {
            assert!(Header::parse(&file(dictionary, 0)).is_err(), "{dictionary}");
        }
        let huge = file(
            "{'descr': '<f8', 'fortran_order': False, 'shape': (4294967296, 4294967296), }",
            0,
        );
        assert!(Header::parse(&huge).unwrap().check(128).is_err());
    }
}
