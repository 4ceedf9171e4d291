//! The line, its hand-over, and what becomes of those who leave it or fall silent.

mod common;

use std::{
    env,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use common::{client, command, eventually, leftovers, ms, server, soon};
use distlock_core::{Client, Guard, Owner, Released};
use distlock_redis::{RedisBackend, RedisConfig};
use distlock_servers::{proxy::Proxy, redis::RedisServer};
use tokio::{
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep, timeout},
};

fn waiting(server: &RedisServer, key: &str) -> String {
    command(server, &["ZCARD", &format!("__distlock:q:{{{key}}}{key}")])
}

/// How many scripts the server has run.
fn scripts(server: &RedisServer) -> u64 {
    let stats = command(server, &["INFO", "commandstats"]);
    let calls = stats.lines().filter_map(|line| {
        let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
        let calls = rest.split(',').next()?.parse::<u64>().ok()?;
        name.starts_with("eval").then_some(calls)
    });
    calls.sum()
}

/// A client that looks after its places every 17.5 s at the soonest, where its locks are to last for long, unless it knows of a reason.
async fn seldom(server: &RedisServer) -> Client {
    let config = RedisConfig::from_url(&server.url()).unwrap().place_ttl(ms(60_000));
    Client::new(RedisBackend::connect_with(config).await.unwrap())
}

const BEFORE_IT_LOOKS: Duration = ms(15_000);

async fn clients(server: &RedisServer, count: usize) -> Vec<Client> {
    let mut clients = Vec::new();
    for _ in 0..count {
        clients.push(client(server).await);
    }
    clients
}

/// Waiters, each as from another process, that arrive one after the other.
async fn line_up(server: &RedisServer, clients: &[Client]) -> Vec<JoinHandle<Guard>> {
    let mut waiters = Vec::new();
    for client in clients {
        let mutex = client.mutex("k");
        waiters.push(tokio::spawn(async move { mutex.lock().await.unwrap() }));
        let number = waiters.len().to_string();
        eventually("the next one waits", || waiting(server, "k") == number).await;
    }
    waiters
}

#[tokio::test]
async fn a_hand_over_takes_two_scripts_however_many_wait_and_keeps_the_order() {
    let server = server();
    let clients = clients(&server, 13).await;
    // In the first round the server learns the scripts, and the clients that they are subscribed.
    for round in 0..2 {
        let before = scripts(&server);
        let mut guard = clients[0].mutex("k").lock().await.unwrap();
        for waiter in line_up(&server, &clients[1..]).await {
            let token = guard.fencing_token();
            guard.release().await.unwrap();
            guard = soon(waiter).await.unwrap();
            assert!(token < guard.fencing_token(), "tokens rise");
        }
        guard.release().await.unwrap();
        if round == 1 {
            assert_eq!(scripts(&server) - before, 2 * 13, "each of them asked and released once");
        }
    }
    assert_eq!(leftovers(&server), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_that_are_given_up_leave_nothing() {
    let server = server();
    let clients = Arc::new(clients(&server, 3).await);
    let mut tasks = JoinSet::new();
    for number in 0..300_u64 {
        let clients = Arc::clone(&clients);
        tasks.spawn(async move {
            let mutex = clients[number as usize % 3].mutex(format!("k{}", number % 7));
            // From before the request is sent until long after its answer.
            sleep(ms(number % 40)).await;
            drop(timeout(ms(number % 13), mutex.lock()).await);
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    eventually("nothing is left", || leftovers(&server).is_empty()).await;
    // Nobody granted anything to those who are gone, later on.
    sleep(ms(300)).await;
    assert_eq!(leftovers(&server), Vec::<String>::new());
}

#[tokio::test]
async fn a_waiter_that_gives_up_leaves_the_line_to_the_others() {
    let server = server();
    let guard = client(&server).await.mutex("k").lock().await.unwrap();
    let waiters = line_up(&server, &clients(&server, 3).await).await;
    waiters[0].abort();
    eventually("it has left", || waiting(&server, "k") == "2").await;
    guard.release().await.unwrap();
    let mut waiters = waiters.into_iter().skip(1);
    let guard = soon(waiters.next().unwrap()).await.unwrap();
    guard.release().await.unwrap();
    drop(soon(waiters.next().unwrap()).await.unwrap());
}

/// Not a test of its own: the other process of the next one, which holds or waits until it is killed.
#[tokio::test]
async fn another_process() {
    let (Ok(url), Ok(ttl)) = (env::var("DISTLOCK_CHILD_URL"), env::var("DISTLOCK_CHILD_TTL"))
    else {
        return;
    };
    let client = Client::new(RedisBackend::connect(&url).await.unwrap());
    let _guard = client.mutex("k").ttl(ms(ttl.parse().unwrap())).lock().await.unwrap();
    std::future::pending::<()>().await;
}

struct Child(std::process::Child);

impl Child {
    fn start(server: &RedisServer, ttl: u64) -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["another_process", "--exact", "--test-threads=1"]);
        command.env("DISTLOCK_CHILD_URL", server.url()).env("DISTLOCK_CHILD_TTL", ttl.to_string());
        Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn the_lock_of_a_killed_process_passes_on_when_its_ttl_is_over() {
    let server = server();
    let mut child = Child::start(&server, 3000);
    eventually("it holds", || command(&server, &["EXISTS", "k"]) == "1").await;
    let mutex = seldom(&server).await.mutex("k").ttl(ms(600_000));
    let waiter = tokio::spawn(async move { mutex.lock().await.unwrap() });
    eventually("one waits", || waiting(&server, "k") == "1").await;
    child.kill();
    let killed = Instant::now();
    let left: u64 = command(&server, &["PTTL", "k"]).parse().unwrap();
    let next = timeout(BEFORE_IT_LOOKS, waiter).await.expect("it looks when the ttl is over");
    drop(next.unwrap());
    let waited = killed.elapsed();
    assert!(ms(left) <= waited + ms(1), "not before: {left} ms were left, {waited:?}");
}

#[tokio::test]
async fn a_killed_waiter_is_passed_over_at_once() {
    let server = server();
    let guard = client(&server).await.mutex("k").lock().await.unwrap();
    let mut child = Child::start(&server, 60_000);
    eventually("it waits", || waiting(&server, "k") == "1").await;
    let next = client(&server).await;
    let waiter = tokio::spawn(async move { next.mutex("k").lock().await.unwrap() });
    eventually("two wait", || waiting(&server, "k") == "2").await;
    child.kill();
    let channels = || command(&server, &["PUBSUB", "CHANNELS", "__distlock:c:*"]).lines().count();
    eventually("its subscription is gone", || channels() == 2).await;
    guard.release().await.unwrap();
    drop(soon(waiter).await.unwrap());
}

#[tokio::test]
async fn a_minimal_hold_is_kept_and_then_the_next_comes() {
    let server = server();
    let (one, two) = (client(&server).await, seldom(&server).await);
    let started = Instant::now();
    let guard = one.mutex("k").min_hold(ms(2000)).lock().await.unwrap();
    let token = guard.fencing_token();
    let mutex = two.mutex("k").ttl(ms(600_000));
    let waiter = tokio::spawn(async move { mutex.lock().await.unwrap() });
    eventually("it waits", || waiting(&server, "k") == "1").await;
    guard.release().await.unwrap();
    let seen = one.inspect("k").await.unwrap();
    assert_eq!(seen.holders.len(), 1, "taken");
    assert_eq!(seen.holders[0].owner, None, "by nobody");
    assert!(one.mutex("k").try_lock().await.unwrap().is_none());
    // The head of the line was told of the rest.
    let guard = timeout(BEFORE_IT_LOOKS, waiter).await.expect("it looks when the rest is over");
    let guard = guard.unwrap();
    assert!(ms(1990) < started.elapsed(), "{:?}", started.elapsed());
    assert!(token < guard.fencing_token());
}

#[tokio::test]
async fn a_rest_may_outlast_the_ttl() {
    let server = server();
    let client = client(&server).await;
    let guard = client.mutex("k").ttl(ms(3000)).min_hold(ms(60_000)).lock().await.unwrap();
    guard.release().await.unwrap();
    assert!(command(&server, &["PTTL", "k"]).parse::<i64>().unwrap() > 50_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_at_a_time_however_many_processes_and_tasks() {
    let server = server();
    let (inside, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut tasks = JoinSet::new();
    for _ in 0..4 {
        let client = client(&server).await;
        for _ in 0..8 {
            let (mutex, inside, done) = (client.mutex("k"), Arc::clone(&inside), Arc::clone(&done));
            tasks.spawn(async move {
                let mut last = None;
                for _ in 0..25 {
                    let guard = mutex.lock().await.unwrap();
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                    assert!(last < Some(guard.fencing_token()));
                    last = Some(guard.fencing_token());
                    tokio::task::yield_now().await;
                    inside.fetch_sub(1, Ordering::SeqCst);
                    guard.release().await.unwrap();
                    done.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
    }
    while let Some(done) = soon(tasks.join_next()).await {
        done.unwrap();
    }
    assert_eq!(done.load(Ordering::SeqCst), 4 * 8 * 25);
    eventually("nothing is left", || leftovers(&server).is_empty()).await;
}

#[tokio::test]
async fn tokens_that_were_reserved_and_not_used_are_given_back() {
    let server = server();
    let client = client(&server).await;
    let first = client.mutex("k").lock().await.unwrap();
    let wait = || {
        let mutex = client.mutex("k");
        tokio::spawn(async move { mutex.lock().await.unwrap() })
    };
    let (second, third) = (wait(), wait());
    tokio::task::yield_now().await;
    first.release().await.unwrap();
    // It is granted many, for another one of this process waits.
    let second = soon(second).await.unwrap();
    let fence = || command(&server, &["GET", "__distlock:f:{k}k"]).parse::<u64>().unwrap();
    assert!(second.fencing_token().as_u64() + 100 < fence());
    second.release().await.unwrap();
    let third = soon(third).await.unwrap();
    let used = third.fencing_token().as_u64();
    assert!(used < fence(), "handed on inside the process");
    third.release().await.unwrap();
    assert_eq!(fence(), used, "or the counter would outrun the clock");
}

#[tokio::test]
async fn without_pushes_the_line_still_moves() {
    let server = server();
    let proxy = Proxy::start(server.port()).unwrap();
    let deaf = RedisBackend::connect(&format!("redis://127.0.0.1:{}", proxy.port())).await.unwrap();
    let guard = client(&server).await.mutex("k").lock().await.unwrap();
    let deaf = Client::new(deaf);
    let waiter = tokio::spawn(async move { deaf.mutex("k").ttl(ms(3000)).lock().await.unwrap() });
    eventually("it waits", || waiting(&server, "k") == "1").await;
    // The server still counts it among those who hear.
    proxy.drop_messages(true);
    guard.release().await.unwrap();
    let guard = soon(waiter).await.unwrap();
    assert!(guard.is_held());
}

#[tokio::test]
async fn an_owner_of_several_locks_gets_each_when_its_turn_comes() {
    let server = server();
    let holder = client(&server).await;
    let (j, k) = (holder.mutex("j").lock().await.unwrap(), holder.mutex("k").lock().await.unwrap());
    let client = client(&server).await;
    let wait = |name: &str| {
        let mutex = client.mutex(name).owner(Owner::new(7));
        tokio::spawn(async move { mutex.lock().await.unwrap() })
    };
    let for_j = wait("j");
    eventually("it waits", || waiting(&server, "j") == "1").await;
    let for_k = wait("k");
    eventually("it waits", || waiting(&server, "k") == "1").await;
    k.release().await.unwrap();
    let got = soon(for_k).await.unwrap();
    assert_eq!(got.key().as_str(), "k");
    assert!(!for_j.is_finished() && j.is_held());
    assert!(got.release().await.unwrap() == Released::Released);
    assert!(!for_j.is_finished() && j.is_held());
    j.release().await.unwrap();
    assert_eq!(soon(for_j).await.unwrap().key().as_str(), "j");
}
