//! Locks of other libraries and ours exclude each other, in both directions.
//!
//! They all take a lock by `SET key value NX PX ttl`, and give it back by a script that compares the value: redis-py's `Lock`, redislock,
//! redsync, rslock and many more.

mod common;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use common::{client, command, eventually, leftovers, ms, server, soon};
use distlock_core::Client;
use distlock_redis::{RedisBackend, RedisConfig};
use distlock_servers::{
    redis::{RedisCluster, RedisServer},
    resp::{Connection, Reply},
};
use tokio::time::{Instant, sleep, timeout};

/// What redis-py's `Lock` sends to give a lock back, word for word.
const RELEASE: &str = "
        local token = redis.call('get', KEYS[1])
        if not token or token ~= ARGV[1] then
            return 0
        end
        redis.call('del', KEYS[1])
        return 1
    ";

/// What redis-py's `Lock` sends to give a lock its ttl again.
const REACQUIRE: &str = "
        local token = redis.call('get', KEYS[1])
        if not token or token ~= ARGV[1] then
            return 0
        end
        redis.call('pexpire', KEYS[1], ARGV[2])
        return 1
    ";

/// Another library's lock.
struct Foreign {
    connection: Connection,
    token: String,
}

impl Foreign {
    fn new(server: &RedisServer, token: &str) -> Self {
        Self { connection: server.connection().unwrap(), token: token.to_owned() }
    }

    fn acquire(&mut self, key: &str, ttl: u64) -> bool {
        let reply =
            self.connection.command(&["SET", key, &self.token, "NX", "PX", &ttl.to_string()]);
        reply.unwrap().to_string() == "OK"
    }

    fn release(&mut self, key: &str) -> bool {
        let reply = self.connection.command(&["EVAL", RELEASE, "1", key, &self.token]);
        matches!(reply.unwrap(), Reply::Integer(1))
    }

    fn reacquire(&mut self, key: &str, ttl: u64) -> bool {
        let ttl = ttl.to_string();
        let reply = self.connection.command(&["EVAL", REACQUIRE, "1", key, &self.token, &ttl]);
        matches!(reply.unwrap(), Reply::Integer(1))
    }
}

/// Every two of: redis-py's lock, a plain `SET NX PX`, and two clients of ours.
async fn exclude_each_other(ours: [Client; 2], server: &RedisServer, key: &str) {
    let mut others =
        [Foreign::new(server, "8a1c0f9e6d5b4f0e9d3c2b1a00000001"), Foreign::new(server, "plain")];
    let guard = ours[0].mutex(key).lock().await.unwrap();
    assert!(ours[1].mutex(key).try_lock().await.unwrap().is_none());
    for other in &mut others {
        assert!(!other.acquire(key, 60_000));
        assert!(!other.release(key), "it is not theirs to release");
        assert!(!other.reacquire(key, 60_000));
    }
    assert!(guard.is_held());
    let token = guard.fencing_token();
    guard.release().await.unwrap();
    for index in 0..2 {
        let [one, other] = &mut others;
        let (holder, rival) = if index == 0 { (one, other) } else { (other, one) };
        assert!(holder.acquire(key, 60_000), "it is free");
        assert!(!rival.acquire(key, 60_000));
        for client in &ours {
            assert!(client.mutex(key).try_lock().await.unwrap().is_none());
            let seen = client.inspect(key).await.unwrap();
            assert_eq!(seen.holders[0].owner, None);
            assert!(seen.holders[0].expires_in.is_some_and(|left| ms(50_000) < left));
            assert!(client.force_release(key).await.is_err(), "it is not ours to release");
        }
        assert!(holder.reacquire(key, 60_000), "nobody touched it");
        let waiter = {
            let mutex = ours[index].mutex(key);
            tokio::spawn(async move { mutex.lock().await.unwrap() })
        };
        sleep(ms(60)).await;
        assert!(!waiter.is_finished());
        assert!(holder.release(key));
        // Nobody tells of that: the head of the line looks.
        let guard = soon(waiter).await.unwrap();
        assert!(token < guard.fencing_token());
        assert!(!holder.acquire(key, 60_000));
        guard.release().await.unwrap();
    }
}

#[tokio::test]
async fn on_one_server() {
    let server = server();
    let ours = [client(&server).await, client(&server).await];
    exclude_each_other(ours, &server, "k").await;
    assert_eq!(leftovers(&server), Vec::<String>::new());
}

#[tokio::test]
async fn in_a_cluster() {
    let cluster = RedisCluster::start(&[]).unwrap();
    for key in ["k", "{tag}k", "odd}key", "j"] {
        let node = cluster.master_of(key, &cluster.nodes()[0]).unwrap();
        let url = cluster.url();
        let ours = [
            Client::new(RedisBackend::connect(&url).await.unwrap()),
            Client::new(RedisBackend::connect(&url).await.unwrap()),
        ];
        exclude_each_other(ours, node, key).await;
    }
}

#[tokio::test]
async fn its_expiry_is_noticed_too() {
    let server = server();
    let client = client(&server).await;
    assert!(Foreign::new(&server, "t").acquire("k", 300));
    let started = Instant::now();
    let guard = soon(client.mutex("k").lock()).await.unwrap();
    assert!(ms(250) < started.elapsed(), "{:?}", started.elapsed());
    guard.release().await.unwrap();
    eventually("nothing is left", || leftovers(&server).is_empty()).await;
}

#[tokio::test]
async fn who_moves_up_looks_as_often_as_the_one_before_did() {
    let server = server();
    let mut holder = Foreign::new(&server, "t");
    assert!(holder.acquire("k", 600_000));
    let waiting = |count: &str| command(&server, &["ZCARD", "__distlock:q:{k}k"]) == count;
    let mut waiters = Vec::new();
    for count in ["1", "2"] {
        let config = RedisConfig::from_url(&server.url()).unwrap().place_ttl(ms(60_000));
        let client = Client::new(RedisBackend::connect_with(config).await.unwrap());
        let mutex = client.mutex("k").ttl(ms(600_000));
        waiters.push(tokio::spawn(async move { mutex.lock().await.unwrap() }));
        eventually("it waits", || waiting(count)).await;
    }
    let second = waiters.pop().unwrap();
    waiters[0].abort();
    eventually("the first is gone", || waiting("1")).await;
    assert!(holder.release("k"));
    // By itself it would look a third of a minute after it came.
    drop(timeout(ms(10_000), second).await.expect("it looks").unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_at_a_time_in_the_crowd() {
    let server = Arc::new(server());
    let inside = Arc::new(AtomicUsize::new(0));
    // Who competes goes on until all have done their part.
    let busy = Arc::new(AtomicUsize::new(2 + 3));
    let others: Vec<_> = (0..2)
        .map(|number| {
            let (server, inside, busy) =
                (Arc::clone(&server), Arc::clone(&inside), Arc::clone(&busy));
            std::thread::spawn(move || {
                let mut other = Foreign::new(&server, &number.to_string());
                let mut holds = 0;
                while 0 < busy.load(Ordering::SeqCst) {
                    if other.acquire("k", 60_000) {
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        holds += 1;
                        inside.fetch_sub(1, Ordering::SeqCst);
                        assert!(other.release("k"));
                        busy.fetch_sub(usize::from(holds == 20), Ordering::SeqCst);
                    }
                }
            })
        })
        .collect();
    let mut tasks = Vec::new();
    for _ in 0..3 {
        let (client, inside) = (client(&server).await, Arc::clone(&inside));
        let busy = Arc::clone(&busy);
        tasks.push(tokio::spawn(async move {
            let mut holds = 0;
            while 0 < busy.load(Ordering::SeqCst) {
                let guard = client.mutex("k").lock().await.unwrap();
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                inside.fetch_sub(1, Ordering::SeqCst);
                guard.release().await.unwrap();
                holds += 1;
                busy.fetch_sub(usize::from(holds == 20), Ordering::SeqCst);
                sleep(ms(1)).await;
            }
        }));
    }
    for task in tasks {
        soon(task).await.unwrap();
    }
    for other in others {
        other.join().unwrap();
    }
    assert_eq!(command(&server, &["EXISTS", "k"]), "0");
}
