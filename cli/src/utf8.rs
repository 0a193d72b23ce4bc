//! Checks a stream for UTF-8, chunk by chunk.

/// What has been seen of a stream so far.
#[derive(Debug, Default)]
pub(crate) struct Utf8 {
    /// The first bytes of a character that the last chunk cut.
    cut: Vec<u8>,
}

impl Utf8 {
    /// Takes the next chunk, an empty one at the end. False: this is not UTF-8.
    pub(crate) fn accepts(&mut self, mut chunk: &[u8]) -> bool {
        if chunk.is_empty() {
            return self.cut.is_empty();
        }
        while !self.cut.is_empty() {
            let Some((first, rest)) = chunk.split_first() else {
                return true;
            };
            self.cut.push(*first);
            chunk = rest;
            match std::str::from_utf8(&self.cut) {
                Ok(_) => self.cut.clear(),
                Err(error) if error.error_len().is_none() => {}
                Err(_) => return false,
            }
        }
        match std::str::from_utf8(chunk) {
            Ok(_) => true,
            Err(error) if error.error_len().is_none() => {
                self.cut = chunk[error.valid_up_to()..].to_vec();
                true
            }
            Err(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepts(chunks: &[&[u8]]) -> bool {
        let mut check = Utf8::default();
        chunks.iter().all(|chunk| check.accepts(chunk)) && check.accepts(b"")
    }

    #[test]
    fn text_is_accepted_wherever_it_is_cut() {
        let text = "a\u{e9}\u{20ac}\u{1f347}z".as_bytes();
        for i in 0..=text.len() {
            for j in i..=text.len() {
                let chunks: Vec<&[u8]> = [&text[..i], &text[i..j], &text[j..]]
                    .into_iter()
                    .filter(|c| !c.is_empty())
                    .collect();
                assert!(accepts(&chunks), "{i} {j}");
            }
        }
    }

    #[test]
    fn bytes_and_cut_characters_are_refused() {
        for chunks in [
            &[&b"ab\xff"[..]][..],
            &[b"\xe2", b"\x28\xa1"],
            &[b"\xf0\x9f", b"\x8d"],
            &[b"\xc0\x80"],
        ] {
            assert!(!accepts(chunks), "{chunks:?}");
        }
    }
}
