//! Owner ids: who holds, or waits for, a lock.

use std::{cell::RefCell, fmt, process, str::FromStr};

use crate::{BackendError, Error};

/// Who holds, or waits for, a lock: 128 bits from the operating system's secure random source, new for each acquisition at the store.
///
/// Whoever knows the id of a holder can release its lock, so [`Debug`](fmt::Debug) shows its first six digits only;
/// [`Display`](fmt::Display) writes all 32, for those who store the id to resume a lock after a restart.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Owner(u128);

impl Owner {
    /// An id of one's own. Two acquisitions that use the same id count as one holder: it must be as good as random.
    #[must_use]
    pub const fn new(id: u128) -> Self {
        Self(id)
    }

    /// A new random id.
    ///
    /// Ids are drawn in blocks, per thread, and a block is thrown away in a forked process.
    ///
    /// # Errors
    /// [`Error::Backend`] when the operating system gives no random bytes.
    pub fn random() -> Result<Self, Error> {
        thread_local!(static POOL: RefCell<Pool> = const { RefCell::new(Pool::empty()) });
        POOL.with_borrow_mut(Pool::draw)
    }

    /// The id as a number.
    #[must_use]
    pub const fn as_u128(self) -> u128 {
        self.0
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Owner({:06x}…)", self.0 >> 104)
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for Owner {
    type Err = Error;

    fn from_str(digits: &str) -> Result<Self, Error> {
        let plain = digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        match u128::from_str_radix(digits, 16) {
            Ok(id) if plain => Ok(Self(id)),
            _ => Err(Error::invalid(
                "owner id",
                format!("has {} characters, 32 hex digits are wanted", digits.len()),
            )),
        }
    }
}

const BLOCK: usize = 64;

/// Random ids in stock: one call of the operating system for each id would cost more than all the rest of a lock in memory.
struct Pool {
    bytes: [u8; BLOCK * 16],
    left: usize,
    pid: u32,
}

impl Pool {
    const fn empty() -> Self {
        Self { bytes: [0; BLOCK * 16], left: 0, pid: 0 }
    }

    fn draw(&mut self) -> Result<Owner, Error> {
        let pid = process::id();
        if self.left == 0 || self.pid != pid {
            self.left = 0;
            getrandom::fill(&mut self.bytes)
                .map_err(|error| BackendError::permanent("random", error.to_string()))?;
            (self.left, self.pid) = (BLOCK, pid);
        }
        self.left -= 1;
        let mut id = [0; 16];
        id.copy_from_slice(&self.bytes[self.left * 16..][..16]);
        Ok(Owner(u128::from_le_bytes(id)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_do_not_repeat_across_blocks_and_threads() {
        let draw = || (0..500).map(|_| Owner::random().unwrap()).collect::<Vec<_>>();
        let mut all = draw();
        all.extend(std::thread::spawn(draw).join().unwrap());
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), 1000);
    }

    #[test]
    fn debug_hides_and_display_shows_what_parses_back() {
        let owner = Owner::new(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
        assert_eq!(format!("{owner:?}"), "Owner(012345…)");
        assert_eq!(owner.to_string().parse::<Owner>().unwrap(), owner);
        assert!("0123".parse::<Owner>().is_err());
        assert!("+123456789abcdef0123456789abcdef".parse::<Owner>().is_err());
    }
}
