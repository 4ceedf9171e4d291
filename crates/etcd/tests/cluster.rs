//! Three members, of which some are killed, frozen, restarted or without the others, under load.

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use common::{client, eventually, judge::Judge, judge::lost_in_time, keys, leases, ms, soon};
use distlock_core::{Client, Error};
use distlock_servers::etcd::EtcdCluster;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

const CLIENTS: usize = 8;
const NAMES: [&str; 2] = ["a", "b"];

/// Longer than a member is missing, so that one that was frozen does not find leases over that live on elsewhere: servers before 3.5.13 would end them.
const TTL: Duration = Duration::from_secs(6);

/// For so long a member is missing: another leader is chosen within.
const MISSING: Duration = Duration::from_millis(2500);

fn cluster() -> EtcdCluster {
    EtcdCluster::start(&[]).expect("a cluster can be started")
}

/// What each client has come to, by its number.
#[derive(Default)]
struct Progress([AtomicU64; CLIENTS]);

impl Progress {
    fn counts(&self) -> Vec<u64> {
        self.0.iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }

    /// Everybody gets in, twice: the first time may be of before.
    async fn all_get_in(&self, since: &str) {
        let before = self.counts();
        let all = || self.counts().iter().zip(&before).all(|(now, before)| before + 2 <= *now);
        eventually(&format!("all get in since {since}"), all).await;
    }
}

async fn work(client: Client, number: usize, judges: Arc<[Judge; 2]>, all: Arc<Everything>) {
    for round in number.. {
        if all.over.load(Ordering::Relaxed) {
            return;
        }
        let which = round % NAMES.len();
        let guard = match client.mutex(NAMES[which]).ttl(TTL).lock().await {
            Ok(guard) => guard,
            Err(Error::Backend(error)) if error.is_transient() => {
                sleep(ms(20)).await;
                continue;
            }
            Err(error) => panic!("only what passes may go wrong, not {error}"),
        };
        // Now and then somebody stays for longer than a renewal takes to come.
        let stay = if round % 97 == 0 { TTL / 2 } else { ms((round % 4) as u64) };
        let guard = judges[which].visit(guard, stay).await;
        all.progress.0[number].fetch_add(1, Ordering::Relaxed);
        if round % 2 == 0 {
            // The background goes on with what has no answer.
            let _ = guard.release().await;
        }
    }
}

#[derive(Default)]
struct Everything {
    progress: Progress,
    over: AtomicBool,
}

/// What is done to a member.
#[derive(Clone, Copy, Debug)]
enum Blow {
    Freeze,
    Kill,
    Restart,
}

/// Strikes a member, and heals it.
fn strike(cluster: &EtcdCluster, index: usize, blow: Blow) {
    let member = &cluster.members()[index];
    match blow {
        Blow::Freeze => {
            member.stop().unwrap();
            std::thread::sleep(MISSING);
            member.cont().unwrap();
        }
        Blow::Kill => {
            member.kill().unwrap();
            std::thread::sleep(MISSING);
            member.restart().unwrap();
        }
        Blow::Restart => {
            member.terminate().unwrap();
            member.restart().unwrap();
        }
    }
    cluster.wait_ready().unwrap();
}

async fn struck(cluster: &Arc<EtcdCluster>, index: usize, blow: Blow) {
    let cluster = Arc::clone(cluster);
    tokio::task::spawn_blocking(move || strike(&cluster, index, blow)).await.unwrap();
}

fn watches(cluster: &EtcdCluster) -> f64 {
    let watches = |member: &distlock_servers::etcd::EtcdServer| {
        member.metric("etcd_debugging_mvcc_watcher_total").unwrap()
    };
    cluster.members().iter().map(watches).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_holds_and_all_get_in_and_nothing_is_left_whichever_member_fails() {
    let cluster = Arc::new(cluster());
    let judges = Arc::new(NAMES.map(|_| Judge::default()));
    let all = Arc::new(Everything::default());
    let mut tasks = JoinSet::new();
    for number in 0..CLIENTS {
        let client = client(&cluster.url()).await;
        tasks.spawn(work(client, number, Arc::clone(&judges), Arc::clone(&all)));
    }
    let nemesis = async {
        all.progress.all_get_in("the start").await;
        for (index, blow) in [(0, Blow::Kill), (1, Blow::Freeze), (2, Blow::Restart)] {
            struck(&cluster, index, blow).await;
            all.progress.all_get_in(&format!("{blow:?} of member {index}")).await;
        }
        for blow in [Blow::Freeze, Blow::Kill, Blow::Restart] {
            struck(&cluster, cluster.leader().unwrap(), blow).await;
            all.progress.all_get_in(&format!("{blow:?} of the leader")).await;
        }
        for (index, blow) in [(1, Blow::Kill), (2, Blow::Freeze), (0, Blow::Restart)] {
            struck(&cluster, index, blow).await;
            all.progress.all_get_in(&format!("{blow:?} of member {index}")).await;
        }
    };
    tokio::select! {
        // Who objects is heard at once.
        done = tasks.join_next() => panic!("{:?}", done.unwrap().unwrap_err()),
        () = nemesis => {}
    }
    all.over.store(true, Ordering::Relaxed);
    while let Some(done) = soon(tasks.join_next()).await {
        done.unwrap();
    }
    eprintln!("grants and losses: {:?}", judges.each_ref().map(Judge::counts));
    // A grant of a lease of which nobody heard ends by itself; the others at once.
    let gone = Instant::now();
    eventually("no key is left", || keys(&cluster.members()[0], "").is_empty()).await;
    eventually("no watch is left", || watches(&cluster) == 0.0).await;
    eventually("no lease is left", || leases(&cluster.members()[0]) == 0).await;
    eprintln!("nothing is left after {:?}", gone.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_nothing_is_given_and_everybody_is_told() {
    let cluster = cluster();
    let [one, two] = [client(&cluster.url()).await, client(&cluster.url()).await];
    let ttl = Duration::from_secs(4);
    let guard = one.mutex("a").ttl(ttl).lock().await.unwrap();
    let waits = two.mutex("a").ttl(ttl);
    let waiter = tokio::spawn(async move { waits.lock().await });
    eventually("it waits", || keys(&cluster.members()[0], "a/").len() == 2).await;
    // The one that is left is the one that is in use.
    cluster.members()[1].stop().unwrap();
    cluster.members()[2].stop().unwrap();
    let stopped = Instant::now();
    let before = requests(&cluster);
    assert!(!soon(lost_in_time(&guard, Duration::from_secs(600))).await, "nobody renews it");
    for client in [&one, &two] {
        let error = soon(client.mutex("b").ttl(ttl).try_lock()).await.unwrap_err();
        let Error::Backend(error) = error else { panic!("{error}") };
        assert!(error.is_transient(), "{error}");
    }
    assert!(!waiter.is_finished(), "nobody knows that it is free");
    let rate = (requests(&cluster) - before) / stopped.elapsed().as_secs_f64();
    eprintln!("{rate} requests per second without a majority");
    assert!(rate < 100.0, "{rate} requests per second keep nobody but the machine busy");
    cluster.members()[1].cont().unwrap();
    cluster.members()[2].cont().unwrap();
    let successor = soon(waiter).await.unwrap().expect("it waits for as long as half a minute");
    assert!(guard.fencing_token() < successor.fencing_token());
    assert!(successor.is_held());
    for client in [&one, &two] {
        let all = async {
            loop {
                match client.mutex("b").ttl(ttl).lock().await {
                    Ok(guard) => return guard,
                    Err(error) => assert!(matches!(error, Error::Backend(e) if e.is_transient())),
                }
            }
        };
        soon(soon(all).await.release()).await.unwrap();
    }
}

/// How many requests the first member has heard.
fn requests(cluster: &EtcdCluster) -> f64 {
    cluster.members()[0].metric("grpc_server_started_total").unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_without_the_others_is_left_at_once() {
    // For a client, a member of a cluster whose others are dead is one that is cut off from them.
    let (alone, rest) = (cluster(), cluster());
    let lonely = &alone.members()[0];
    let url = format!("{},{}", lonely.url(), rest.url().trim_start_matches("etcd://"));
    let client = client(&url).await;
    let mutex = |name: &str| client.mutex(name).ttl(TTL);
    let first = soon(mutex("a").lock()).await.unwrap();
    eventually("it is there", || keys(lonely, "a/").len() == 1).await;
    soon(first.release()).await.unwrap();
    alone.members()[1].kill().unwrap();
    alone.members()[2].kill().unwrap();
    eventually("it knows of no leader", || lonely.metric("etcd_server_has_leader").unwrap() == 0.0)
        .await;
    let locks = async {
        loop {
            match mutex("b").lock().await {
                Ok(guard) => return guard,
                Err(error) => assert!(matches!(error, Error::Backend(e) if e.is_transient())),
            }
        }
    };
    let guard = soon(locks).await;
    assert_eq!(keys(&rest.members()[0], "b/").len(), 1);
    let heard = lonely.metric("grpc_server_started_total").unwrap();
    for _ in 0..20 {
        soon(mutex("c").lock()).await.unwrap().release().await.unwrap();
    }
    let known = guard.expires_at();
    eventually("it is renewed", || known < guard.expires_at() || !guard.is_held()).await;
    assert!(guard.is_held());
    let more = lonely.metric("grpc_server_started_total").unwrap() - heard;
    assert!(more < 5.0, "{more} more requests to whom cannot carry them out");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_and_a_waiter_do_not_notice_that_the_member_in_use_is_frozen() {
    let cluster = cluster();
    let [one, two] = [client(&cluster.url()).await, client(&cluster.url()).await];
    let guard = one.mutex("a").ttl(TTL).lock().await.unwrap();
    let waits = two.mutex("a").ttl(TTL);
    let waiter = tokio::spawn(async move { waits.lock().await });
    eventually("it waits", || keys(&cluster.members()[0], "a/").len() == 2).await;
    cluster.members()[0].stop().unwrap();
    for _ in 0..3 {
        let known = guard.expires_at();
        eventually("it is renewed", || known < guard.expires_at() || !guard.is_held()).await;
        assert!(guard.is_held());
    }
    soon(guard.release()).await.unwrap();
    let guard = soon(waiter).await.unwrap().unwrap();
    assert!(timeout(ms(1), guard.lost()).await.is_err());
    soon(guard.release()).await.unwrap();
    cluster.members()[0].cont().unwrap();
    eventually("no key is left", || keys(&cluster.members()[1], "").is_empty()).await;
}
