//! Who is in whose way: those who have a lock in modes that do not go together.

use crate::{Mode, session::Session};

/// Sessions of one lock, in the order in which something of theirs began, as long as it goes on.
#[derive(Debug, Default)]
pub(crate) struct Ongoing<'a> {
    /// With their ends.
    sessions: Vec<(u64, &'a Session)>,
}

/// Those who are in the way of one.
#[derive(Debug)]
pub(crate) enum Rivals<'a> {
    /// Each of them by itself.
    Each(Vec<&'a Session>),
    /// All of them together: they leave too few permits.
    Together(Vec<&'a Session>),
}

impl<'a> Ongoing<'a> {
    /// It goes on until then.
    pub(crate) fn add(&mut self, until: u64, session: &'a Session) {
        self.sessions.push((until, session));
    }

    /// Who is in its way at this time; none: nobody. What is over by then is forgotten.
    pub(crate) fn rivals(&mut self, session: &Session, at: u64) -> Option<Rivals<'a>> {
        self.sessions.retain(|(until, _)| at < *until);
        if session.mode.fits_beside(self.sessions.iter().map(|(_, other)| other.mode)) {
            return None;
        }
        let by_end = |mut sessions: Vec<(u64, &'a Session)>| {
            sessions.sort_by_key(|(until, _)| *until);
            sessions.into_iter().map(|(_, session)| session).collect()
        };
        let alone = |(_, other): &&(u64, &Session)| !session.mode.fits_beside([other.mode]);
        let each: Vec<_> = self.sessions.iter().filter(alone).copied().collect();
        Some(match each.is_empty() {
            true => Rivals::Together(by_end(self.sessions.clone())),
            false => Rivals::Each(by_end(each)),
        })
    }

    /// Whether anybody goes on.
    pub(crate) const fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }
}

impl<'a> Rivals<'a> {
    /// Whether that is so of as many of them as it takes for nobody to be in the way.
    pub(crate) fn are_excused(&self, is_excused: impl FnMut(&'a Session) -> bool) -> bool {
        match self {
            Self::Each(sessions) => sessions.iter().copied().all(is_excused),
            Self::Together(sessions) => sessions.iter().copied().any(is_excused),
        }
    }

    /// All of them, by their ends.
    pub(crate) fn sessions(&self) -> &[&'a Session] {
        let (Self::Each(sessions) | Self::Together(sessions)) = self;
        sessions
    }

    /// The one that ends last.
    pub(crate) fn last(&self) -> Option<&'a Session> {
        self.sessions().last().copied()
    }
}

impl Mode {
    /// A number for each kind.
    pub(crate) const fn kind(self) -> usize {
        match self {
            Self::Exclusive => 0,
            Self::Permits { .. } => 1,
            Self::Shared => 2,
        }
    }

    /// The kinds that are in the way of this one, whatever their numbers.
    pub(crate) fn rival_kinds(self) -> impl Iterator<Item = usize> {
        (0..3).filter(move |kind| *kind != self.kind() || self == Self::Exclusive)
    }
}
