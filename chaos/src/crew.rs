//! The worker processes, as the driver has them in hand.

use std::{
    env,
    fs::{self, File},
    io::{self, Write as _},
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use distlock_checker::{Event, Kind};
use distlock_servers::net::wait_until;
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    clock,
    scene::Scene,
    setup::{Setup, kept_file},
    worker::{KEEP, STOP},
};

/// All worker processes.
#[derive(Debug)]
pub(crate) struct Crew {
    /// The ways to the server, which the workers share among themselves.
    urls: Vec<String>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The number of the last one.
    last: u32,
    members: Vec<Member>,
    problems: Vec<String>,
}

#[derive(Debug)]
struct Member {
    number: u32,
    child: Child,
    /// Who stopped it lets it go on, before anything else becomes of it.
    stopped: bool,
}

impl Crew {
    pub(crate) fn new(urls: Vec<String>) -> Self {
        Self { urls, state: Mutex::default() }
    }

    /// Starts another worker. It has a number that nobody had before.
    pub(crate) fn start(&self, scene: &mut Scene) -> io::Result<()> {
        let mut state = self.state();
        state.last += 1;
        let number = state.last;
        let plan = &scene.plan;
        let setup = Setup {
            process: number,
            url: self.urls[number as usize % self.urls.len()].clone(),
            dir: scene.dir.clone(),
            seed: scene.dice.roll(),
            ttl: plan.ttl,
            locks: plan.locks,
            tasks: plan.tasks,
            cohort_limit: [0, 2, 8, 32][scene.dice.below(4) as usize],
            threads: [0, 0, 2][scene.dice.below(3) as usize],
            hurry: plan.hurry,
        };
        let words = File::create(scene.dir.join(format!("process-{number}.log")))?;
        let child = Command::new(env::current_exe()?)
            .arg("worker")
            .args(setup.to_words())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(words)
            // Should the driver die while it is stopped, the kernel ends it: a group of its own has lost whoever could let it go on.
            .process_group(0)
            .spawn()?;
        state.members.push(Member { number, child, stopped: false });
        Ok(())
    }

    /// Stops some workers in the middle of whatever they do, for some time: one, or as many as may be on one machine.
    pub(crate) fn stop_some(&self, scene: &mut Scene) -> io::Result<()> {
        let mut state = self.state();
        let mut chosen: Vec<&mut Member> = state.members.iter_mut().collect();
        let most = if scene.dice.chance(0.5) { 1 } else { chosen.len() as u64 / 2 };
        let count = 1 + scene.dice.below(most) as usize;
        while count < chosen.len() {
            chosen.swap_remove(scene.dice.below(chosen.len() as u64) as usize);
        }
        for member in chosen {
            member.stop(scene)?;
        }
        drop(state);
        // Long enough to lose what they had, or just long enough for something to come late.
        let ttl = scene.ttl();
        match scene.dice.chance(0.5) {
            true => scene.pause(ttl, 3 * ttl),
            false => scene.pause(1, ttl),
        }
        self.let_go_on(scene)
    }

    /// Stops a worker that has a lock, and for longer than a lease lasts, so that it loses it. Few others would be stopped in the middle of their
    /// work where that is quick. Says whether it did: it may take long to get a lock where everything fails, and nobody waits for that.
    pub(crate) fn stop_holder(&self, scene: &mut Scene) -> io::Result<bool> {
        let mut state = self.state();
        let chosen = scene.dice.below(state.members.len() as u64) as usize;
        let Some(member) = state.members.get_mut(chosen) else { return Ok(false) };
        let number = member.number;
        let kept = kept_file(&scene.dir, number);
        match fs::remove_file(&kept) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        member.tell(KEEP);
        drop(state);
        let patience = scene.plan.longest_ttl();
        match wait_until("a worker has a lock", patience, || Ok(kept.exists())) {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => return Ok(false),
            other => other?,
        }
        let mut state = self.state();
        // It may have been killed meanwhile.
        let member = state.members.iter_mut().find(|member| member.number == number);
        let Some(member) = member else { return Ok(false) };
        member.stop(scene)?;
        drop(state);
        let ttl = scene.ttl();
        scene.pause(2 * ttl, 3 * ttl);
        self.let_go_on(scene)?;
        Ok(true)
    }

    fn let_go_on(&self, scene: &Scene) -> io::Result<()> {
        for member in self.state().members.iter_mut().filter(|member| member.stopped) {
            kill_process(member.pid(), Signal::CONT)?;
            member.stopped = false;
            scene.write(&Event::new(clock::now(), Kind::Resume).of(member.number, 0));
        }
        Ok(())
    }

    /// Kills a worker, and starts another one some time later.
    pub(crate) fn kill_one(&self, scene: &mut Scene) -> io::Result<()> {
        let mut state = self.state();
        let running = |index: &usize| !state.members[*index].stopped;
        let running: Vec<usize> = (0..state.members.len()).filter(running).collect();
        let Some(index) = running.get(scene.dice.below(running.len() as u64) as usize) else {
            return Ok(());
        };
        let mut member = state.members.swap_remove(*index);
        drop(state);
        scene.fault("worker_killed", "");
        member.child.kill()?;
        member.child.wait()?;
        scene.write(&Event::new(clock::now(), Kind::Death).of(member.number, 0));
        scene.pause(0, 1000);
        self.start(scene)
    }

    /// Takes note of those that ended by themselves, which nobody may before the end.
    pub(crate) fn look_after(&self, scene: &Scene) -> io::Result<()> {
        let mut state = self.state();
        let State { members, problems, .. } = &mut *state;
        let mut ended = Vec::new();
        for (index, member) in members.iter_mut().enumerate() {
            if let Some(status) = member.child.try_wait()? {
                problems.push(problem(scene, member.number, &status.to_string()));
                ended.push(index);
            }
        }
        for index in ended.into_iter().rev() {
            members.swap_remove(index);
        }
        Ok(())
    }

    /// Tells all to end what they do, and waits for them. Who waits for a lock waits on, as long as it takes; who is there after `limit` is killed
    /// without a word in the history, which then says that it waits for ever.
    pub(crate) fn finish(&self, scene: &Scene, limit: Duration) -> io::Result<Vec<String>> {
        let mut state = self.state();
        let State { members, problems, .. } = &mut *state;
        for member in &mut *members {
            // Who is gone does not listen, and is told of below.
            member.tell(STOP);
        }
        let waited = wait_until("all workers have ended", limit, || {
            let mut all = true;
            for member in &mut *members {
                all &= member.child.try_wait()?.is_some();
            }
            Ok(all)
        });
        for member in &mut *members {
            match member.child.try_wait()? {
                Some(status) if status.success() => {}
                Some(status) => problems.push(problem(scene, member.number, &status.to_string())),
                None => {
                    member.child.kill()?;
                    member.child.wait()?;
                    let told = format!("it was still there after {limit:?}");
                    problems.push(problem(scene, member.number, &told));
                }
            }
        }
        members.clear();
        match waited {
            Err(error) if error.kind() != io::ErrorKind::TimedOut => Err(error),
            _ => Ok(std::mem::take(problems)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Member {
    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Tells it something, if it is there.
    fn tell(&mut self, word: &str) {
        if let Some(pipe) = &mut self.child.stdin {
            let _ = writeln!(pipe, "{word}");
        }
    }

    /// Written down before it stops, and after it goes on, so that nothing of it is outside.
    fn stop(&mut self, scene: &Scene) -> io::Result<()> {
        scene.write(&Event::new(clock::now(), Kind::Stall).of(self.number, 0));
        kill_process(self.pid(), Signal::STOP)?;
        self.stopped = true;
        Ok(())
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        for member in &mut self.state().members {
            let _ = (member.child.kill(), member.child.wait());
        }
    }
}

fn problem(scene: &Scene, number: u32, what: &str) -> String {
    let log = fs::read_to_string(scene.dir.join(format!("process-{number}.log")));
    let log = log.unwrap_or_default();
    format!("worker {number}: {what}: {}", log.trim())
}
