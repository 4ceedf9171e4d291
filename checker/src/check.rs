//! The checks. Each sorts and looks once at each: O(n log n).

use std::{collections::HashMap, ptr, time::Duration};

use crate::{
    Check, History, Mode, Opinion, Rules, Verdict,
    rivals::{Ongoing, Rivals},
    session::{Belief, Excess, Scan, Session},
    wgl::linearizable_in,
};

/// So many holds before a violation go to the second judge, beside those that are in its way.
const WINDOW: usize = 8;

/// So many windows go to it.
const WINDOWS: u64 = 50;

/// Judges a history.
#[must_use]
pub fn judge(history: &mut History, rules: &Rules) -> Verdict {
    history.sort();
    let mut verdict = Verdict::default();
    let scan = Scan::of(history, &mut verdict);
    let mut judge = Judge {
        faults: Faults::new(history, &scan, &rules.excuses, nanos(rules.reach)),
        fence_faults: Faults::new(history, &scan, &rules.fence_excuses, nanos(rules.reach)),
        lease: rules.lease.map(nanos),
        tolerance: nanos(rules.tolerance),
        starvation: nanos(rules.starvation),
        history,
        scan: &scan,
        verdict,
    };
    judge.count();
    judge.holds();
    judge.writes();
    judge.beliefs(rules.exact);
    judge.inside(rules.rises);
    judge.leaks(rules);
    judge.liveness(rules);
    judge.vacuity(rules);
    judge.verdict
}

struct Judge<'a> {
    history: &'a History,
    scan: &'a Scan,
    faults: Faults,
    fence_faults: Faults,
    lease: Option<u64>,
    tolerance: u64,
    starvation: u64,
    verdict: Verdict,
}

/// When faults happened that explain something: by key, and for all keys.
struct Faults {
    times: HashMap<u32, Vec<u64>>,
    reach: u64,
}

impl Faults {
    fn new(history: &History, scan: &Scan, names: &[String], reach: u64) -> Self {
        let excuses: Vec<bool> = (0..history.names())
            .map(|name| names.iter().any(|excuse| excuse == history.name(name as u32)))
            .collect();
        let mut times: HashMap<u32, Vec<u64>> = HashMap::new();
        for &(t, key, _) in scan.faults.iter().filter(|(.., name)| excuses[*name as usize]) {
            times.entry(key).or_default().push(t);
        }
        Self { times, reach }
    }

    /// Whether one befell the key, or all keys, between the two, or so shortly before that some guard could not know yet.
    fn explain(&self, key: u32, from: u64, to: u64) -> bool {
        let from = from.saturating_sub(self.reach);
        [0, key].iter().filter_map(|key| self.times.get(key)).any(|times| {
            let first = times.partition_point(|t| *t < from);
            times.get(first).is_some_and(|t| *t <= to)
        })
    }
}

impl Judge<'_> {
    fn count(&mut self) {
        let figures = &mut self.verdict.figures;
        figures.events = self.history.len() as u64;
        figures.operations = self.scan.acquires.len() as u64;
        figures.grants = self.scan.sessions.len() as u64;
        figures.losses = self.scan.losses;
        for (.., name) in &self.scan.faults {
            *figures.faults.entry(self.history.name(*name).to_owned()).or_default() += 1;
        }
        let stalls = self.scan.stalls.values().map(|stalls| stalls.len() as u64).sum::<u64>();
        if stalls > 0 {
            figures.faults.insert("stall".to_owned(), stalls);
        }
        let first = self.history.entries.first().map_or(0, |entry| entry.t);
        figures.span = Duration::from_nanos(self.scan.last - first);
    }

    fn report(&mut self, check: Check, explained: bool, t: u64, key: u32, text: String) {
        if explained {
            self.verdict.negative(check);
        } else {
            self.verdict.violation(check, t, self.history.name(key), text);
        }
    }

    /// When the store made this grant, at the earliest.
    fn earliest(&self, session: &Session) -> u64 {
        self.lease
            .map_or(session.invoke, |lease| session.invoke.max(session.start.saturating_sub(lease)))
    }

    /// Exclusion, work and fences, key by key.
    fn holds(&mut self) {
        let sessions = &self.scan.sessions;
        let mut order: Vec<u32> = (0..sessions.len() as u32).collect();
        order.sort_by_key(|&index| {
            let session = &sessions[index as usize];
            (session.k, session.start, index)
        });
        let mut from = 0;
        while from < order.len() {
            let key = sessions[order[from] as usize].k;
            let of_key = |index: &u32| sessions[*index as usize].k == key;
            let to = from + order[from..].iter().take_while(|index| of_key(index)).count();
            let of_key: Vec<Session> =
                order[from..to].iter().map(|index| sessions[*index as usize]).collect();
            self.exclusion(&of_key);
            self.rests(&of_key);
            self.work(&of_key);
            self.fences(&of_key);
            from = to;
        }
    }

    /// `sessions`: of one key, by their start.
    fn exclusion(&mut self, sessions: &[Session]) {
        let mut holders = Ongoing::default();
        // Of those who came before, by the kind of their mode.
        let mut ends = [0; 3];
        for (index, session) in sessions.iter().enumerate() {
            self.count_grant(session, &ends);
            ends[session.mode.kind()] = ends[session.mode.kind()].max(session.end);
            let rivals = holders.rivals(session, session.start);
            if session.end <= session.start {
                continue;
            }
            self.verdict.figures.together += u64::from(rivals.is_none() && !holders.is_empty());
            if let Some(rivals) = rivals {
                let explained = rivals.are_excused(|before| {
                    let from = self.earliest(before).min(self.earliest(session));
                    self.faults.explain(session.k, from, session.start)
                });
                if !explained {
                    self.ask_again(sessions, index, &rivals);
                }
                let before = rivals.last().unwrap_or(session);
                let text = format!(
                    "{} while {} holds it until {:.6} s",
                    who(session),
                    who(before),
                    seconds(before.end)
                );
                self.report(Check::Exclusion, explained, session.start, session.k, text);
            }
            holders.add(session.end, session);
        }
    }

    fn count_grant(&mut self, session: &Session, ends: &[u64; 3]) {
        let waited = session.mode.rival_kinds().any(|kind| session.invoke < ends[kind]);
        let figures = &mut self.verdict.figures;
        figures.contended += u64::from(waited);
        match session.mode {
            Mode::Exclusive => {}
            Mode::Permits { .. } => figures.permits += 1,
            Mode::Shared => figures.shared += 1,
        }
    }

    /// A lock that stays taken for a while after its release is nobody's until then.
    fn rests(&mut self, sessions: &[Session]) {
        let mut resting = Ongoing::default();
        for session in sessions {
            if let Some(rivals) = resting.rivals(session, session.start) {
                let explained = rivals.are_excused(|before| {
                    self.faults.explain(session.k, before.start, session.start)
                });
                let before = rivals.last().unwrap_or(session);
                let rest = seconds(before.rest);
                let text = format!(
                    "{} while {} leaves it taken until {rest:.6} s",
                    who(session),
                    who(before)
                );
                self.report(Check::Exclusion, explained, session.start, session.k, text);
            }
            resting.add(session.rest, session);
        }
    }

    /// Of the one at `index`, those who began shortly before it, and all who are in its way.
    fn ask_again(&mut self, sessions: &[Session], index: usize, rivals: &Rivals<'_>) {
        let (agrees, differs) = &mut self.verdict.second_opinion;
        if *agrees + *differs == WINDOWS {
            return;
        }
        let window = &sessions[index.saturating_sub(WINDOW)..=index];
        // Who is in its way need not be its neighbor.
        let is_far = |session: &&Session| !window.iter().any(|near| ptr::eq(near, *session));
        let far = rivals.sessions().iter().copied().filter(is_far);
        let hold = |session: &Session| (hold(session), session.mode);
        let holds: Vec<_> = far.chain(window).map(hold).collect();
        match linearizable_in(&holds) {
            Opinion::Impossible => *agrees += 1,
            Opinion::Possible | Opinion::TooLarge => *differs += 1,
        }
    }

    fn work(&mut self, sessions: &[Session]) {
        let mut works: Vec<(u64, u64, &Session)> = sessions
            .iter()
            .filter_map(|session| session.work.map(|(enter, exit)| (enter, exit, session)))
            .collect();
        works.sort_by_key(|(enter, ..)| *enter);
        let (mut at_work, starvation) = (Ongoing::default(), self.starvation);
        for (enter, exit, session) in works {
            if exit <= enter {
                continue;
            }
            if let Some(rivals) = at_work.rivals(session, enter) {
                let did_not_run = |before: &Session| {
                    let from = before.start.min(session.start);
                    let stalled = |of: &Session| self.scan.stalled(of.p, from, enter);
                    // What it knew was over, and it had no time to look.
                    let starved = |of: &Session| of.end <= enter && enter - of.end < starvation;
                    [before, session].into_iter().any(|of| stalled(of) || starved(of))
                };
                let explained = |before: &Session| {
                    let from = self.earliest(before).min(self.earliest(session));
                    self.faults.explain(session.k, from, enter)
                };
                if rivals.are_excused(did_not_run) {
                    self.verdict.figures.paused_overlaps += 1;
                } else {
                    let explained =
                        rivals.are_excused(|before| did_not_run(before) || explained(before));
                    let before = rivals.last().unwrap_or(session);
                    let text = format!("{} works while {} does", who(session), who(before));
                    self.report(Check::Work, explained, enter, session.k, text);
                }
            }
            at_work.add(exit, session);
        }
    }

    fn fences(&mut self, sessions: &[Session]) {
        // Of two at the same moment, the one that was written first was first.
        let mut by_end: Vec<usize> = (0..sessions.len()).collect();
        by_end.sort_by_key(|&index| (sessions[index].end, index));
        let mut ended = by_end.into_iter().peekable();
        // By the kind of their modes: of those who share a lock, one may hear late of an early grant.
        let mut highest: [Option<&Session>; 3] = [None; 3];
        for (index, session) in sessions.iter().enumerate() {
            let is_over =
                |before: &usize| (sessions[*before].end, *before) < (session.start, index);
            while let Some(before) = ended.next_if(is_over) {
                let before = &sessions[before];
                let high = &mut highest[before.mode.kind()];
                if high.is_none_or(|high| high.fence < before.fence) {
                    *high = Some(before);
                }
            }
            let rivals = session.mode.rival_kinds().filter_map(|kind| highest[kind]);
            let Some(before) = rivals.max_by_key(|before| before.fence) else { continue };
            if session.fence.is_some() && session.fence < before.fence {
                let explained = self.is_token_explained(before, session);
                let text = format!("{} after {}", who(session), who(before));
                self.report(Check::Fence, explained, session.start, session.k, text);
                if explained {
                    // The store counts from here now.
                    highest = [None; 3];
                    highest[session.mode.kind()] = Some(session);
                }
            }
        }
        let mut by_fence: Vec<&Session> =
            sessions.iter().filter(|session| session.fence.is_some()).collect();
        by_fence.sort_by_key(|session| (session.fence, session.start));
        for pair in by_fence.windows(2) {
            if pair[0].fence == pair[1].fence {
                let from = self.earliest(pair[0]).min(self.earliest(pair[1]));
                let explained = self.fence_faults.explain(pair[1].k, from, pair[1].start);
                let text = format!("{} has the token of {}", who(pair[1]), who(pair[0]));
                self.report(Check::Fence, explained, pair[1].start, pair[1].k, text);
            }
        }
    }

    /// Whether the later one may have the lower token: it was granted before, and heard of it after the lock had been taken from it; or the store
    /// lost its count.
    fn is_token_explained(&self, before: &Session, after: &Session) -> bool {
        self.faults.explain(after.k, self.earliest(after), after.start)
            || self.fence_faults.explain(after.k, self.earliest(before), after.start)
    }

    /// Writes of those whom a later holder had followed, and who had written.
    fn writes(&mut self) {
        let scan = self.scan;
        let mut latest: HashMap<(u32, bool), usize> = HashMap::new();
        for write in &scan.writes {
            let figures = &mut self.verdict.figures;
            let session = &scan.sessions[write.session];
            if !write.open {
                figures.writes.0 += u64::from(write.accepted);
                figures.writes.1 += u64::from(!write.accepted);
            }
            if !write.accepted {
                continue;
            }
            let newest = latest.entry((session.k, write.open)).or_insert(write.session);
            let other = &scan.sessions[*newest];
            if (session.end, write.session) < (other.start, *newest) {
                if write.open {
                    figures.open_stale += 1;
                } else {
                    let explained = self.is_token_explained(session, other);
                    let text = format!("{} wrote after {} had", who(session), who(other));
                    self.report(Check::Stale, explained, write.t, session.k, text);
                }
            } else if other.start <= session.start {
                *newest = write.session;
            }
        }
    }

    fn beliefs(&mut self, exact: bool) {
        for belief in &self.scan.beliefs {
            let tolerance = match belief.what {
                "was believed in" | "was granted" => 0,
                _ => self.tolerance,
            };
            if (exact && tolerance == 0)
                || self.scan.ran(belief.p, belief.d, belief.t, tolerance)
                || (tolerance == 0 && !self.scan.stalled(belief.p, belief.d, belief.t))
            {
                let late = since(belief.d, belief.t);
                let text = format!("a guard of process {} {} {late:?} late", belief.p, belief.what);
                self.report(Check::Late, false, belief.t, belief.k, text);
            }
        }
    }

    /// What only those see who see both sides, or all that a guard ever said.
    fn inside(&mut self, rises: bool) {
        let scan = self.scan;
        for revival in scan.revivals.iter().filter(|_| rises) {
            let Belief { k, p, d, t, what } = *revival;
            let text = format!("a guard of process {p} {what} {:?} after its end", since(d, t));
            self.report(Check::Late, false, t, k, text);
        }
        for &Excess { k, t, d, v } in &scan.excesses {
            let explained = self.faults.explain(k, t, t);
            let (d, v) = (seconds(d), seconds(v));
            let text = format!("a guard has it until {d:.6} s, by the store until {v:.6} s");
            self.report(Check::Truth, explained, t, k, text);
        }
        for &(t, k, name) in &scan.breaches {
            let text = self.history.name(name).to_owned();
            self.report(Check::Breach, false, t, k, text);
        }
    }

    fn leaks(&mut self, rules: &Rules) {
        for &(t, name, count) in &self.scan.left {
            if count > 0 {
                let text = format!("{count} {} are left", self.history.name(name));
                self.report(Check::Leak, false, t, 0, text);
            }
        }
        if rules.leaks_looked_for && self.scan.left.is_empty() {
            let text = "nobody looked for what is left".to_owned();
            self.report(Check::Vacuity, false, self.scan.last, 0, text);
        }
    }

    fn liveness(&mut self, rules: &Rules) {
        let Some(bound) = rules.bound else { return };
        let Some(heal) = self.scan.heal else {
            let text = "the faults never end".to_owned();
            return self.report(Check::Vacuity, false, self.scan.last, 0, text);
        };
        let mut waits = Vec::new();
        for acquire in &self.scan.acquires {
            if acquire.dead || acquire.done.is_some_and(|done| done < heal) {
                continue;
            }
            let since = acquire.invoke.max(heal);
            let wait = acquire.done.unwrap_or(self.scan.last) - since;
            waits.push(wait);
            let problem = match acquire.done {
                None => "still waits at the end of the history",
                Some(_) if nanos(bound) < wait => "waited for too long",
                Some(_) => continue,
            };
            let text = format!("who asked at {:.6} s {problem}", seconds(acquire.invoke));
            self.report(Check::Liveness, false, since + wait, acquire.k, text);
        }
        waits.sort_unstable();
        let wait = |index: usize| Duration::from_nanos(waits.get(index).copied().unwrap_or(0));
        let figures = &mut self.verdict.figures;
        figures.longest_wait = wait(waits.len().saturating_sub(1));
        figures.p99_wait = wait((waits.len() * 99).div_ceil(100).saturating_sub(1));
    }

    fn vacuity(&mut self, rules: &Rules) {
        let figures = &self.verdict.figures;
        let mut wanted = vec![
            ("grants".to_owned(), figures.grants, rules.grants),
            ("contended grants".to_owned(), figures.contended, rules.contended),
            ("losses".to_owned(), figures.losses, rules.losses),
        ];
        for (name, least) in &rules.faults {
            let count = figures.faults.get(name).copied().unwrap_or(0);
            wanted.push((format!("faults `{name}`"), count, *least));
        }
        for (what, count, least) in wanted {
            if count < least {
                let text = format!("{count} {what}, {least} are wanted");
                self.report(Check::Vacuity, false, self.scan.last, 0, text);
            }
        }
    }
}

fn hold(session: &Session) -> [u64; 4] {
    [session.invoke, session.start, session.end, session.back.max(session.end)]
}

fn who(session: &Session) -> String {
    let Session { p, c, start, fence, .. } = session;
    let token = fence.map_or_else(String::new, |fence| format!(" with token {fence}"));
    let mode = match session.mode {
        Mode::Exclusive => String::new(),
        Mode::Permits { want, of } => format!(", {want} of {of} permits"),
        Mode::Shared => ", shared".to_owned(),
    };
    format!("{p}/{c} (granted at {:.6} s{token}{mode})", seconds(*start))
}

fn seconds(t: u64) -> f64 {
    t as f64 / 1e9
}

const fn since(d: u64, t: u64) -> Duration {
    Duration::from_nanos(t - d)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
