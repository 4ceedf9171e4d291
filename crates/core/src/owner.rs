//! Owner ids: who holds, or waits for, a lock.

use std::{
    fmt,
    str::FromStr,
    sync::{Mutex, PoisonError},
};

use crate::{BackendError, Error, entropy};

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
    /// # Errors
    /// [`Error::Backend`] when the operating system gives no random bytes.
    pub fn random() -> Result<Self, Error> {
        let mut id = [0; 16];
        fill(&mut id)?;
        Ok(Self(u128::from_le_bytes(id)))
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

/// Random ids in stock: one call of the operating system for each would cost more than all the rest of a lock in memory.
///
/// Each client has its own, so a process that was forked and makes a client of its own uses none of its parent's.
#[derive(Default)]
pub(crate) struct OwnerPool(Mutex<Vec<u128>>);

impl OwnerPool {
    const BLOCK: usize = 64;

    pub(crate) fn draw(&self) -> Result<Owner, Error> {
        let mut pool = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(id) = pool.pop() {
            return Ok(Owner(id));
        }
        let mut bytes = [0; Self::BLOCK * 16];
        fill(&mut bytes)?;
        let (ids, _) = bytes.as_chunks::<16>();
        pool.extend(ids.iter().map(|id| u128::from_le_bytes(*id)));
        drop(pool);
        self.draw()
    }
}

fn fill(bytes: &mut [u8]) -> Result<(), Error> {
    entropy::fill(bytes)
        .map_err(|error| BackendError::permanent("random", error.to_string()).into())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_do_not_repeat_across_blocks_and_pools() {
        let pools = [OwnerPool::default(), OwnerPool::default()];
        let ids: HashSet<_> =
            pools.iter().flat_map(|pool| (0..500).map(|_| pool.draw().unwrap())).collect();
        assert_eq!(ids.len(), 1000);
    }

    #[test]
    fn debug_hides_and_display_shows_what_parses_back() {
        let owner = Owner::new(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
        assert_eq!(format!("{owner:?}"), "Owner(012345…)");
        assert_eq!(owner.as_u128(), 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
        assert_eq!(owner.to_string().parse::<Owner>().unwrap(), owner);
        assert!("0123".parse::<Owner>().is_err());
        assert!("+123456789abcdef0123456789abcdef".parse::<Owner>().is_err());
    }
}
