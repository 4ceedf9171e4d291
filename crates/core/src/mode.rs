//! How a claim wants a key, and the one rule of admission.

/// How a claim wants its key.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Mode {
    /// Alone.
    Exclusive,
    /// Some of a number of permits, as a semaphore gives them.
    Permits {
        /// How many this claim wants.
        want: u32,
        /// How many there are. Every claim of the key should say the same.
        of: u32,
    },
    /// Together with other shared claims, as a reader does.
    Shared,
}

impl Mode {
    /// The one rule of admission, the same in every store: claims of a key stand in a line, in the order of their arrival, and this one is admitted
    /// when those before it (holders too) leave room for it.
    ///
    /// An exclusive claim wants nobody before it; a shared one nobody but shared ones; one for permits nobody but others for permits,
    /// which together with it take no more than there are.
    ///
    /// # Examples
    /// ```
    /// use distlock_core::Mode;
    ///
    /// assert!(Mode::Shared.admitted_after([Mode::Shared, Mode::Shared]));
    /// assert!(!Mode::Shared.admitted_after([Mode::Shared, Mode::Exclusive]), "a writer that waits is not starved by readers");
    /// assert!(Mode::Permits { want: 1, of: 3 }.admitted_after([Mode::Permits { want: 2, of: 3 }]));
    /// ```
    #[must_use]
    pub fn admitted_after(self, before: impl IntoIterator<Item = Self>) -> bool {
        let mut before = before.into_iter();
        match self {
            Self::Exclusive => before.next().is_none(),
            Self::Permits { want, of } => before
                .try_fold(u64::from(want), |taken, other| match other {
                    Self::Permits { want, .. } => Some(taken + u64::from(want)),
                    Self::Exclusive | Self::Shared => None,
                })
                .is_some_and(|taken| taken <= u64::from(of)),
            Self::Shared => before.all(|other| other == Self::Shared),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Mode::{self, Exclusive, Shared};

    #[test]
    fn admission_follows_the_rule() {
        let permits = |want| Mode::Permits { want, of: 3 };
        for (mode, before, admitted) in [
            (Exclusive, vec![], true),
            (Exclusive, vec![Shared], false),
            (Shared, vec![], true),
            (Shared, vec![Exclusive], false),
            (Shared, vec![permits(1)], false),
            (permits(3), vec![], true),
            (permits(1), vec![permits(1), permits(1)], true),
            (permits(2), vec![permits(1), permits(1)], false),
            (permits(1), vec![Shared], false),
            (permits(4), vec![], false),
        ] {
            assert_eq!(mode.admitted_after(before.clone()), admitted, "{mode:?} after {before:?}");
        }
    }
}
