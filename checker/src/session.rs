//! From events to sessions: who asked, had the lock, and was at work, from when to when.

use std::collections::HashMap;

use crate::{Check, History, Kind, Mode, Verdict, history::Entry};

/// One client's hold of one lock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Session {
    pub(crate) k: u32,
    pub(crate) p: u32,
    pub(crate) c: u32,
    pub(crate) mode: Mode,
    pub(crate) fence: Option<u64>,
    pub(crate) invoke: u64,
    pub(crate) start: u64,
    /// When its guard said for the last time that it is held.
    pub(crate) end: u64,
    /// When the release was answered.
    pub(crate) back: u64,
    /// Until when the lock stays taken after its release.
    pub(crate) rest: u64,
    /// From when to when it was at work.
    pub(crate) work: Option<(u64, u64)>,
}

/// One call of `lock`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Acquire {
    pub(crate) k: u32,
    pub(crate) mode: Mode,
    pub(crate) invoke: u64,
    pub(crate) done: Option<u64>,
    /// Its process died first.
    pub(crate) dead: bool,
}

/// One write to the resource.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Write {
    pub(crate) t: u64,
    pub(crate) session: usize,
    pub(crate) accepted: bool,
    /// The resource does not look at tokens.
    pub(crate) open: bool,
}

/// A guard that was believed in at `t`, though its deadline was `d`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Belief {
    pub(crate) k: u32,
    pub(crate) p: u32,
    pub(crate) d: u64,
    pub(crate) t: u64,
    pub(crate) what: &'static str,
}

/// A guard that counted on the lock until `d`, which the store was to keep until `v`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Excess {
    pub(crate) k: u32,
    pub(crate) t: u64,
    pub(crate) d: u64,
    pub(crate) v: u64,
}

/// All that events say, put together.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    pub(crate) sessions: Vec<Session>,
    pub(crate) acquires: Vec<Acquire>,
    pub(crate) writes: Vec<Write>,
    pub(crate) beliefs: Vec<Belief>,
    /// Guards whose deadline rose when it was over: of use where every rise is written down in its moment.
    pub(crate) revivals: Vec<Belief>,
    pub(crate) excesses: Vec<Excess>,
    /// Time, key, name.
    pub(crate) breaches: Vec<(u64, u32, u32)>,
    /// Of each process, when it did not run, in the order of time.
    pub(crate) stalls: HashMap<u32, Vec<(u64, u64)>>,
    /// Time, key (0: all), name.
    pub(crate) faults: Vec<(u64, u32, u32)>,
    /// Time, name, how many.
    pub(crate) left: Vec<(u64, u32, u64)>,
    pub(crate) heal: Option<u64>,
    pub(crate) losses: u64,
    pub(crate) last: u64,
    actors: HashMap<(u32, u32), Actor>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Actor {
    asking: Option<usize>,
    session: Option<usize>,
    /// It has the session's lock no more, but may be at work.
    over: bool,
    /// Until when the lock is to stay taken.
    rest: u64,
}

impl Scan {
    pub(crate) fn of(history: &History, verdict: &mut Verdict) -> Self {
        let mut scan = Self::default();
        for entry in &history.entries {
            scan.last = entry.t;
            if let Err(problem) = scan.event(entry) {
                let text = format!("{:?} of {}/{}: {problem}", entry.e, entry.p, entry.c);
                verdict.violation(Check::Form, entry.t, history.name(entry.k), text);
            }
        }
        scan.finish();
        scan
    }

    fn event(&mut self, entry: &Entry) -> Result<(), &'static str> {
        let Entry { t, p, k, n, .. } = *entry;
        match entry.e {
            Kind::Stall => self.stalls.entry(p).or_default().push((t, u64::MAX)),
            Kind::Resume => match self.stalls.get_mut(&p).and_then(|stalls| stalls.last_mut()) {
                Some((_, to)) if *to == u64::MAX => *to = t,
                _ => return Err("it was not stalled"),
            },
            Kind::Fault => self.faults.push((t, k, n)),
            Kind::Heal => self.heal = Some(t),
            Kind::Left => self.left.push((t, n, entry.v.ok_or("no number")?)),
            Kind::Breach => self.breaches.push((t, k, n)),
            Kind::Death => self.die(p, t),
            _ => return self.act(entry),
        }
        Ok(())
    }

    fn act(&mut self, entry: &Entry) -> Result<(), &'static str> {
        let Entry { t, p, c, k, .. } = *entry;
        let actor = self.actors.entry((p, c)).or_default();
        match entry.e {
            Kind::Invoke => {
                if actor.asking.is_some() {
                    return Err("it asks already");
                }
                if actor.session.is_some() && !actor.over {
                    return Err("it has a lock already");
                }
                *actor = Actor { asking: Some(self.acquires.len()), ..Actor::default() };
                let mode = entry.m;
                self.acquires.push(Acquire { k, mode, invoke: t, done: None, dead: false });
                return Ok(());
            }
            Kind::Granted | Kind::Denied | Kind::Unknown => {
                let acquire = actor.asking.take().ok_or("it did not ask")?;
                let acquire = &mut self.acquires[acquire];
                if acquire.k != k {
                    return Err("it asked for another lock");
                }
                acquire.done = Some(t);
                if entry.e == Kind::Granted {
                    actor.session = Some(self.sessions.len());
                    let end = entry.d.unwrap_or(u64::MAX);
                    let (fence, invoke, mode) = (entry.f, acquire.invoke, acquire.mode);
                    let (back, rest, work, start) = (u64::MAX, 0, None, t);
                    let session =
                        Session { k, p, c, mode, fence, invoke, start, end, back, rest, work };
                    self.sessions.push(session);
                    self.believe(k, p, end, t, "was granted");
                    self.compare(entry);
                }
                return Ok(());
            }
            _ => {}
        }
        let index = actor.session.ok_or("it has no lock")?;
        let session = &mut self.sessions[index];
        if session.k != k {
            return Err("it has another lock");
        }
        let over = actor.over;
        match entry.e {
            Kind::Enter => session.work = Some((t, u64::MAX)),
            Kind::Exit => {
                let work = session.work.as_mut().filter(|(_, exit)| *exit == u64::MAX);
                work.ok_or("it is not at work")?.1 = t;
            }
            Kind::Write => {
                let (accepted, open) = (entry.v == Some(1), entry.n != 0);
                self.writes.push(Write { t, session: index, accepted, open });
            }
            Kind::Released => {
                (session.back, session.rest) = (t, actor.rest);
            }
            _ if over => return Err("it has the lock no more"),
            Kind::Step => {
                let (before, end) = (session.end, entry.d.unwrap_or(session.end));
                session.end = end;
                self.revive(k, p, before, end, t);
                self.believe(k, p, end, t, "was believed in");
                self.compare(entry);
            }
            Kind::ReleaseInvoke => {
                let (before, end) = (session.end, entry.d.unwrap_or(session.end));
                session.end = end.min(t);
                (actor.over, actor.rest) = (true, entry.v.unwrap_or(0));
                self.revive(k, p, before, end, t);
            }
            Kind::Lost => {
                let deadline = entry.d.unwrap_or(session.end);
                session.end = deadline.min(t);
                actor.over = true;
                self.losses += 1;
                self.believe(k, p, deadline, t, "was told of its loss");
            }
            _ => return Err("no such event of a client"),
        }
        Ok(())
    }

    /// A guard that was believed in at a time, with this deadline. Judged when all stalls are known.
    fn believe(&mut self, k: u32, p: u32, d: u64, t: u64, what: &'static str) {
        if d <= t {
            self.beliefs.push(Belief { k, p, d, t, what });
        }
    }

    /// A guard said `before` until when it counts on the lock, and now says `end`.
    fn revive(&mut self, k: u32, p: u32, before: u64, end: u64, t: u64) {
        if before <= t && t < end {
            self.revivals.push(Belief { k, p, d: before, t, what: "came back to life" });
        }
    }

    fn compare(&mut self, entry: &Entry) {
        if let (Some(d), Some(v)) = (entry.d, entry.v)
            && v < d
        {
            self.excesses.push(Excess { k: entry.k, t: entry.t, d, v });
        }
    }

    fn die(&mut self, p: u32, t: u64) {
        let (acquires, sessions) = (&mut self.acquires, &mut self.sessions);
        self.actors.retain(|(process, _), actor| {
            if *process != p {
                return true;
            }
            if let Some(asking) = actor.asking {
                acquires[asking].dead = true;
            }
            if let Some(index) = actor.session {
                let session = &mut sessions[index];
                if !actor.over {
                    session.end = session.end.min(t);
                }
                if let Some((_, exit)) = &mut session.work {
                    *exit = (*exit).min(t);
                }
            }
            false
        });
    }

    /// Who still has a lock at the end of the history should have been told, if its deadline is over.
    fn finish(&mut self) {
        let last = self.last;
        let open = self.actors.values().filter(|actor| !actor.over);
        let open: Vec<usize> = open.filter_map(|actor| actor.session).collect();
        for index in open {
            let Session { k, p, end, .. } = self.sessions[index];
            self.believe(k, p, end, last, "was never told of its loss");
        }
    }

    /// Whether a process that ran whenever it could had more than `tolerance` of time between the two.
    pub(crate) fn ran(&self, p: u32, from: u64, to: u64, tolerance: u64) -> bool {
        let mut ran_until = from;
        for &(stall, resume) in self.stalls.get(&p).map_or(&[][..], Vec::as_slice) {
            if resume < from || to < stall {
                continue;
            }
            if ran_until.saturating_add(tolerance) < stall {
                return true;
            }
            ran_until = ran_until.max(resume);
        }
        ran_until.saturating_add(tolerance) < to
    }

    /// Whether a process did not run at some time between the two.
    pub(crate) fn stalled(&self, p: u32, from: u64, to: u64) -> bool {
        let stalls = self.stalls.get(&p).map_or(&[][..], Vec::as_slice);
        stalls.iter().any(|(stall, resume)| *stall <= to && from <= *resume)
    }
}
