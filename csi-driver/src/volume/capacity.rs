//! Sizes that a volume may have.

use crate::bytes::Bytes;

/// The granule of a tmpfs' `size=`.
pub(crate) const PAGE: u64 = 4096;

/// What a request asks for, in bytes; 0 means unset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CapacityRange {
    /// At least this.
    pub(crate) required: u64,
    /// At most this.
    pub(crate) limit: u64,
}

/// Why a range cannot be met.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum RangeError {
    /// Not a number of bytes.
    #[error("capacity_range is negative")]
    Negative,
    /// Nothing lies between.
    #[error("limit_bytes {limit} is less than required_bytes {required}")]
    Empty {
        /// At least this.
        required: u64,
        /// At most this.
        limit: u64,
    },
    /// Only whole pages exist.
    #[error("no multiple of {PAGE} lies between required_bytes {required} and limit_bytes {limit}")]
    NoPage {
        /// At least this.
        required: u64,
        /// At most this.
        limit: u64,
    },
    /// More than a signed 64-bit number of bytes.
    #[error("required_bytes {0} is larger than any volume")]
    TooLarge(u64),
}

impl CapacityRange {
    /// Reads the wire's signed numbers.
    ///
    /// # Errors
    /// [`RangeError`] for what cannot be met by any volume.
    pub(crate) fn parse(required: i64, limit: i64) -> Result<Self, RangeError> {
        let number = |bytes: i64| u64::try_from(bytes).map_err(|_| RangeError::Negative);
        let (required, limit) = (number(required)?, number(limit)?);
        if limit > 0 && limit < required {
            return Err(RangeError::Empty { required, limit });
        }
        Ok(Self { required, limit })
    }

    /// What of it is at least `least`.
    ///
    /// # Errors
    /// [`RangeError::Empty`] when nothing is.
    pub(crate) fn at_least(self, least: Bytes) -> Result<Self, RangeError> {
        let (required, limit) = (self.required.max(least.0), self.limit);
        if limit > 0 && limit < required {
            return Err(RangeError::Empty { required, limit });
        }
        Ok(Self { required, limit })
    }

    /// The capacity for a new volume: what is required, rounded up to whole pages; `default` when nothing is.
    ///
    /// # Errors
    /// [`RangeError`] when rounding leaves the range.
    pub(crate) fn choose(self, default: Bytes) -> Result<Bytes, RangeError> {
        let Self { required, limit } = self;
        let most = limit / PAGE * PAGE;
        if required == 0 && limit == 0 {
            return Ok(default);
        }
        let wanted = if required == 0 {
            default.0.min(most)
        } else {
            required
        };
        let rounded = wanted
            .checked_next_multiple_of(PAGE)
            .filter(|bytes| i64::try_from(*bytes).is_ok())
            .ok_or(RangeError::TooLarge(required))?;
        if rounded == 0 || (limit > 0 && rounded > limit) {
            return Err(RangeError::NoPage { required, limit });
        }
        Ok(Bytes(rounded))
    }

    /// Whether a volume of this capacity is what the request asks for.
    pub(crate) fn contains(self, capacity: Bytes) -> bool {
        capacity.0 >= self.required && (self.limit == 0 || capacity.0 <= self.limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(required: i64, limit: i64) -> Result<u64, RangeError> {
        let range = CapacityRange::parse(required, limit)?;
        let chosen = range.choose(Bytes(1 << 20))?;
        assert!(range.contains(chosen));
        Ok(chosen.0)
    }

    #[test]
    fn a_capacity_is_exact_when_it_is_whole_pages_and_rounded_up_when_not() {
        assert_eq!(choose(0, 0), Ok(1 << 20));
        assert_eq!(choose(8192, 8192), Ok(8192));
        assert_eq!(choose(8193, 0), Ok(12288));
        assert_eq!(choose(1, 4096), Ok(4096));
        assert_eq!(choose(0, 10_000), Ok(8192));
        assert_eq!(choose(0, i64::MAX), Ok(1 << 20));
    }

    #[test]
    fn what_no_volume_can_have_is_refused() {
        assert_eq!(choose(-1, 0), Err(RangeError::Negative));
        assert_eq!(choose(0, -1), Err(RangeError::Negative));
        assert_eq!(
            choose(2, 1),
            Err(RangeError::Empty {
                required: 2,
                limit: 1
            })
        );
        assert_eq!(
            choose(1, 4095),
            Err(RangeError::NoPage {
                required: 1,
                limit: 4095
            })
        );
        assert_eq!(
            choose(0, 4095),
            Err(RangeError::NoPage {
                required: 0,
                limit: 4095
            })
        );
        let most = i64::MAX.unsigned_abs();
        assert_eq!(choose(i64::MAX, 0), Err(RangeError::TooLarge(most)));
    }
}
