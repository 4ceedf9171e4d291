//! An etcd cluster.

use std::{io, thread, time::Duration};

use crate::{
    etcd::{EtcdServer, Ports, again, own_args, owned},
    net::wait_until,
    process::temp_dir,
};

const MEMBERS: usize = 3;

/// How long elections may take, on a machine that is busy compiling.
const READY: Duration = Duration::from_secs(60);

/// Three members, of which one may be missing.
#[derive(Debug)]
pub struct EtcdCluster {
    members: Vec<EtcdServer>,
}

impl EtcdCluster {
    /// Starts a cluster and waits until it is [ready](Self::wait_ready).
    ///
    /// The arguments go to every member. An election takes one to two seconds with etcd's own
    /// settings, which are ours too.
    ///
    /// # Errors
    /// As [`EtcdServer::start`].
    pub fn start(args: &[&str]) -> io::Result<Self> {
        again(|| {
            let ports = ports()?;
            let all: Vec<_> = ports
                .iter()
                .enumerate()
                .map(|(index, ports)| format!("member{index}={}", ports.peer_url()))
                .collect();
            let all = all.join(",");
            let members = ports.iter().enumerate().map(|(index, ports)| {
                let own = own_args(&format!("member{index}"), *ports, &all);
                EtcdServer::spawn(*ports, [own, owned(args)].concat(), temp_dir("etcd-cluster")?)
            });
            let cluster = Self { members: members.collect::<io::Result<_>>()? };
            cluster.wait_ready()?;
            Ok(cluster)
        })
    }

    /// The members, in the order of their names.
    #[must_use]
    pub fn members(&self) -> &[EtcdServer] {
        &self.members
    }

    /// `etcd://127.0.0.1:PORT,…` with every member.
    #[must_use]
    pub fn url(&self) -> String {
        let hosts: Vec<_> =
            self.members.iter().map(|member| format!("127.0.0.1:{}", member.port())).collect();
        format!("etcd://{}", hosts.join(","))
    }

    /// The index of the member that says of itself that it leads; members that are dead or stopped
    /// are not heard.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if none says so, or two: one was stopped, and has not yet found
    /// out that it was replaced.
    pub fn leader(&self) -> io::Result<usize> {
        // At once, as a stopped member is waited for.
        let leads: Vec<bool> = thread::scope(|scope| {
            let asked: Vec<_> = self
                .members
                .iter()
                .map(|member| {
                    let is_leader = || member.metric("etcd_server_is_leader");
                    scope.spawn(move || is_leader().is_ok_and(|value| 0.0 < value))
                })
                .collect();
            asked.into_iter().map(|one| one.join().expect("it does not panic")).collect()
        });
        let mut leaders = (0..leads.len()).filter(|&index| leads[index]);
        match (leaders.next(), leaders.next()) {
            (Some(leader), None) => Ok(leader),
            (first, _) => {
                let count = if first.is_none() { "no member leads" } else { "several lead" };
                Err(io::Error::new(io::ErrorKind::NotFound, count))
            }
        }
    }

    /// Waits until there is a leader other than the member `old`, and returns its index.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] if that does not happen within a minute.
    pub fn wait_other_leader(&self, old: usize) -> io::Result<usize> {
        let mut new = old;
        wait_until("another member leads", READY, || {
            new = self.leader().unwrap_or(old);
            Ok(new != old)
        })?;
        Ok(new)
    }

    /// Kills all members that live, starts them again with their data, and waits until the cluster
    /// is [ready](Self::wait_ready).
    ///
    /// # Errors
    /// As [`EtcdServer::restart`].
    pub fn restart(&self) -> io::Result<()> {
        again(|| {
            self.members.iter().try_for_each(EtcdServer::kill)?;
            self.members.iter().try_for_each(EtcdServer::start_again)?;
            self.wait_ready()
        })
    }

    /// Waits until every member is healthy and one of them leads.
    ///
    /// # Errors
    /// As [`EtcdServer::wait_ready`].
    pub fn wait_ready(&self) -> io::Result<()> {
        self.members.iter().try_for_each(EtcdServer::wait_ready)?;
        wait_until("a member leads", READY, || Ok(self.leader().is_ok()))
    }

    /// The servers, for who wants to keep them longer than the cluster.
    #[must_use]
    pub fn into_members(self) -> Vec<EtcdServer> {
        self.members
    }
}

/// Ports for all members, no two the same.
fn ports() -> io::Result<Vec<Ports>> {
    let mut all: Vec<Ports> = Vec::new();
    while all.len() < MEMBERS {
        let new = Ports::free()?;
        let taken = |port| all.iter().any(|ports| ports.client == port || ports.peer == port);
        if !taken(new.client) && !taken(new.peer) {
            all.push(new);
        }
    }
    Ok(all)
}
