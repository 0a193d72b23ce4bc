//! Content of test objects: a function of a seed and the position alone, so that any program can make and check it.

use crate::random::mix;

/// The content of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pattern {
    /// What tells it from others.
    pub seed: u64,
    /// Length in bytes.
    pub len: u64,
}

impl Pattern {
    /// Fills `bytes` with the content from `offset`, a multiple of 8, on.
    pub fn fill(&self, offset: u64, bytes: &mut [u8]) {
        let mut word = mix(self.seed).wrapping_add(offset / 8);
        for chunk in bytes.chunks_mut(8) {
            // Position and seed in every word: a page in the wrong place is seen, and so is a page of zeros.
            let value = mix(word).to_le_bytes();
            chunk.copy_from_slice(&value[..chunk.len()]);
            word = word.wrapping_add(1);
        }
    }

    /// The whole content.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(self.len).unwrap_or(0)];
        self.fill(0, &mut bytes);
        bytes
    }

    /// The first position at which `bytes`, read from `offset`, a multiple of 8, is wrong.
    #[must_use]
    pub fn first_wrong(&self, offset: u64, bytes: &[u8]) -> Option<u64> {
        let mut right = [0_u8; 4096];
        for (index, chunk) in bytes.chunks(right.len()).enumerate() {
            let start = (index * right.len()) as u64;
            let expected = &mut right[..chunk.len()];
            self.fill(offset + start, expected);
            if expected != chunk {
                let wrong = expected.iter().zip(chunk).position(|(a, b)| a != b);
                return Some(offset + start + wrong.unwrap_or(0) as u64);
            }
        }
        None
    }

    /// Says what is wrong with the whole content `bytes`.
    ///
    /// # Errors
    /// When the length or a byte is not what it should be.
    pub fn check(&self, bytes: &[u8]) -> anyhow::Result<()> {
        if bytes.len() as u64 != self.len {
            anyhow::bail!("{} bytes instead of {}", bytes.len(), self.len);
        }
        match self.first_wrong(0, bytes) {
            Some(at) => anyhow::bail!("byte {at} of {} is wrong (seed {})", self.len, self.seed),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_make_up_the_whole_and_one_flipped_bit_is_found() {
        let pattern = Pattern {
            seed: 7,
            len: 10_003,
        };
        let mut whole = pattern.bytes();
        let mut part = vec![0; 1003];
        pattern.fill(9000, &mut part);
        assert_eq!(whole[9000..], part);
        pattern.check(&whole).unwrap();
        whole[5001] ^= 1;
        assert_eq!(pattern.first_wrong(0, &whole), Some(5001));
        assert!(pattern.check(&whole[..10]).is_err());
        let other = Pattern { seed: 8, ..pattern };
        assert_eq!(other.first_wrong(0, &pattern.bytes()), Some(0));
    }
}
