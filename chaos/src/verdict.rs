//! What a run has to keep to, whether it did, and the report.

use std::{fmt, io, path::Path, time::Duration};

use distlock_checker::{Rules, Verdict, judge};

use crate::{
    journal,
    ledger::{Audit, audit},
    plan::Plan,
    store::{FENCE_RESET, UNSETTLED, Wound},
};

/// For so long a process may not get to run on a machine that is busy with many others, though nobody stopped it: `lost()` may come as late, and work
/// may overlap as long. What `is_held()` says knows no such grace.
const STARVATION: Duration = Duration::from_secs(3);

/// So long after the last fault everybody who waits has to be served: the places of the dead may be believed in for 15 s, each of them may be granted
/// a lease, and who comes before works as long as can be.
pub(crate) const BOUND: Duration = Duration::from_secs(90);

/// What was to befall the servers.
#[derive(Clone, Debug)]
pub(crate) struct Decks {
    pub(crate) harmless: Vec<Wound>,
    pub(crate) fatal: Vec<Wound>,
}

/// What came of a run.
#[derive(Debug)]
pub(crate) struct Outcome {
    plan: Plan,
    pub(crate) verdict: Verdict,
    pub(crate) audit: Audit,
    /// What was there at the end, as it is in the history too.
    left: Vec<(&'static str, u64)>,
    /// What is wrong beside the history.
    pub(crate) problems: Vec<String>,
}

/// Judges what is in the folder of a run.
pub(crate) fn look(
    plan: &Plan,
    decks: &Decks,
    dir: &Path,
    left: Vec<(&'static str, u64)>,
    mut problems: Vec<String>,
) -> io::Result<Outcome> {
    let mut history = journal::read(dir)?;
    let verdict = judge(&mut history, &rules(plan, decks));
    let audit = audit(dir, plan.locks)?;
    if 0 < audit.gated.stale {
        problems.push(format!("{} stale writes behind the gate", audit.gated.stale));
    }
    Ok(Outcome { plan: plan.clone(), verdict, audit, left, problems })
}

fn rules(plan: &Plan, decks: &Decks) -> Rules {
    let fatal = decks.fatal.iter().map(|wound| wound.name());
    let mut rules = Rules::default().excusing(fatal.chain([UNSETTLED]));
    rules.fence_excuses.push(FENCE_RESET.to_owned());
    rules.reach = plan.longest_ttl();
    rules.lease = Some(plan.longest_ttl());
    // Workers read the time before they ask the guard, so nothing excuses one that says "held" after its deadline.
    rules.exact = true;
    rules.starvation = STARVATION;
    // A renewal since the last look may have moved the deadline, of which a worker is told that it was lost.
    rules.tolerance = STARVATION + plan.longest_ttl();
    rules.bound = Some(BOUND);
    rules.leaks_looked_for = true;
    let seconds = plan.faulty.as_secs();
    (rules.grants, rules.contended, rules.losses) = (seconds, seconds / 2, seconds.div_ceil(60));
    let wounds = decks.harmless.iter().chain(&decks.fatal).map(|wound| wound.name());
    rules.faults =
        wounds.chain(["stall", "worker_killed"]).map(|name| (name.to_owned(), 1)).collect();
    rules
}

impl Outcome {
    pub(crate) fn is_clean(&self) -> bool {
        self.verdict.is_clean() && self.problems.is_empty()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { plan, verdict, audit, left, problems } = self;
        let figures = &verdict.figures;
        writeln!(
            f,
            "{}, seed {}: {} workers with {} tasks each{}, {} locks of {:?}, faults for {:?}, {:.0} s in all",
            plan.backend.name(),
            plan.seed,
            plan.workers,
            plan.tasks,
            if plan.hurry { " in a hurry" } else { "" },
            plan.locks,
            plan.ttl,
            plan.faulty,
            figures.span.as_secs_f64()
        )?;
        writeln!(
            f,
            "  {} events, {} acquisitions, {} grants, {} of them contended, {} losses",
            figures.events, figures.operations, figures.grants, figures.contended, figures.losses
        )?;
        let faults: Vec<String> = figures
            .faults
            .iter()
            .filter(|(name, _)| ![FENCE_RESET, UNSETTLED].contains(&name.as_str()))
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        writeln!(f, "  faults: {}", faults.join(", "))?;
        writeln!(
            f,
            "  behind the gate: {} writes accepted, {} refused, {} stale; without: {} of {} stale",
            figures.writes.0,
            figures.writes.1,
            audit.gated.stale,
            audit.open.stale,
            audit.open.accepted
        )?;
        writeln!(
            f,
            "  {} overlaps of work because a process did not run, which only the token makes harmless",
            figures.paused_overlaps
        )?;
        let negatives: Vec<String> =
            verdict.negatives.iter().map(|(check, count)| format!("{check:?} {count}")).collect();
        writeln!(
            f,
            "  documented negatives, of faults that no lock on such a store survives: {}",
            if negatives.is_empty() { "none".to_owned() } else { negatives.join(", ") }
        )?;
        let left: Vec<String> =
            left.iter().map(|(name, count)| format!("{name} {count}")).collect();
        writeln!(f, "  left at the end: {}", left.join(", "))?;
        writeln!(
            f,
            "  after the last fault everybody was served within {:.2?}, 99 of 100 within {:.2?}",
            figures.longest_wait, figures.p99_wait
        )?;
        for finding in &verdict.violations {
            writeln!(f, "  {finding}")?;
        }
        for (check, count) in &verdict.counts {
            writeln!(f, "  {check:?}: {count} VIOLATIONS")?;
        }
        if verdict.second_opinion != (0, 0) {
            let (agrees, differs) = verdict.second_opinion;
            writeln!(f, "  second opinion on them: {agrees} agree, {differs} do not")?;
        }
        for problem in problems {
            writeln!(f, "  PROBLEM: {problem}")?;
        }
        f.write_str(if self.is_clean() { "  clean" } else { "  VIOLATED" })
    }
}

#[cfg(test)]
mod tests;
