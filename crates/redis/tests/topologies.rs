//! Every way to reach a Redis deployment, and the loss of a primary.

mod common;

use common::{Failures, command, eventually, leftovers, ms, server, soon};
use distlock_core::{Client, Error, Guard, Linear, RetryStrategy as _};
use distlock_redis::{RedisBackend, RedisConfig};
use distlock_servers::redis::{RedisCluster, RedisSentinel, RedisServer};
use fred::prelude::{Builder, ClientLike as _, Config};
use tokio::time::{Instant, sleep};

async fn connect(url: &str) -> Client {
    Client::new(RedisBackend::connect(url).await.unwrap())
}

/// A lock, a waiter from elsewhere, a hand-over by push.
async fn works(one: &Client, two: &Client, key: &str) {
    let guard = one.mutex(key).lock().await.unwrap();
    assert!(two.mutex(key).try_lock().await.unwrap().is_none());
    let token = guard.fencing_token();
    let waiter = {
        let mutex = two.mutex(key);
        tokio::spawn(async move { mutex.lock().await.unwrap() })
    };
    let waits = async {
        while one.inspect(key).await.unwrap().waiting != Some(1) {
            sleep(ms(5)).await;
        }
    };
    soon(waits).await;
    guard.release().await.unwrap();
    let guard = soon(waiter).await.unwrap();
    assert!(token < guard.fencing_token());
    guard.extend(ms(60_000)).await.unwrap();
    assert!(guard.is_held());
    guard.release().await.unwrap();
}

#[tokio::test]
async fn by_a_unix_socket() {
    let server = server();
    let path = server.socket();
    let by_url = connect(&format!("redis+unix://{}", path.display())).await;
    let config = RedisConfig::unix(path);
    let by_config = Client::new(RedisBackend::connect_with(config).await.unwrap());
    works(&by_url, &by_config, "k").await;
    assert_eq!(leftovers(&server), Vec::<String>::new());
}

#[tokio::test]
async fn in_another_database_and_with_a_user_of_its_own() {
    let server = server();
    command(&server, &["ACL", "SETUSER", "locks", "on", ">p@ss/w", "~*", "&*", "+@all"]);
    let url = format!("redis://locks:p%40ss%2Fw@127.0.0.1:{}/5?timeout=2s", server.port());
    let config =
        RedisConfig::new("127.0.0.1", server.port()).user("locks").password("p@ss/w").database(5);
    let by_config = Client::new(RedisBackend::connect_with(config).await.unwrap());
    works(&connect(&url).await, &by_config, "k").await;
    assert_eq!(command(&server, &["DBSIZE"]), "0", "nothing in the first one");
}

#[tokio::test]
async fn with_a_client_of_the_user_s() {
    let server = server();
    let config = Config::from_url(&server.url()).unwrap();
    let user = Builder::from_config(config).build().unwrap();
    user.init().await.unwrap();
    let backend = RedisBackend::from_client(user.clone()).await.unwrap();
    let own = Client::new(backend.clone());
    works(&own, &connect(&server.url()).await, "k").await;
    works(&connect(&server.url()).await, &own, "k").await;
    own.shutdown().await;
    soon(backend.close()).await;
    let pong: String = user.ping(None).await.unwrap();
    assert_eq!(pong, "PONG", "it is still connected");
    user.quit().await.unwrap();
}

#[cfg(feature = "tls")]
#[tokio::test]
async fn by_tls() {
    use distlock_servers::redis::RedisTls;

    let tls = RedisTls::start(&[]).unwrap();
    let url = format!("{}?ca={}", tls.url(), tls.ca().display());
    let by_url = connect(&url).await;
    let port = tls.url().rsplit(':').next().unwrap().trim_end_matches('/').parse().unwrap();
    let config = RedisConfig::new("localhost", port).ca_file(tls.ca());
    let by_config = Client::new(RedisBackend::connect_with(config).await.unwrap());
    works(&by_url, &by_config, "k").await;
    let wrong = format!("{}?ca={}", tls.url(), tls.other_ca().display());
    assert!(RedisBackend::connect(&wrong).await.is_err(), "signed by somebody else");
    let plain = tls.url().replace("rediss", "redis");
    assert!(RedisBackend::connect(&format!("{plain}?connect_timeout=2s")).await.is_err());
}

/// Tries until a new primary serves, as a program would.
async fn lock_again(client: &Client, key: &str) -> Guard {
    let mutex = client.mutex(key).retry(Linear::new(ms(50)).limit(1200));
    let lock = tokio::time::timeout(ms(60_000), mutex.lock());
    lock.await.expect("a new primary serves within a minute").unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_sentinels_that_make_another_server_the_primary() {
    let group = RedisSentinel::start(&[]).unwrap();
    let (one, two) = (connect(&group.url()).await, connect(&group.url()).await);
    works(&one, &two, "k").await;
    let guard = one.mutex("held").ttl(ms(2000)).lock().await.unwrap();
    let token = one.mutex("k").lock().await.unwrap().fencing_token();
    group.master().unwrap().kill().unwrap();
    // Whether it was copied in time is not for us to say; that it is not believed for longer than its ttl is.
    let deadline = guard.expires_at();
    let again = lock_again(&two, "k").await;
    assert!(token < again.fencing_token(), "the counter may be lost, the clock is not");
    drop(again);
    if guard.is_held() {
        assert!(deadline < guard.expires_at(), "renewed at the new primary");
    }
    drop(guard);
    drop(lock_again(&one, "k").await);
    works(&one, &two, "j").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_cluster_that_loses_a_primary() {
    let cluster = RedisCluster::start(&["--cluster-node-timeout", "1000"]).unwrap();
    let (one, two) = (connect(&cluster.url()).await, connect(&cluster.url()).await);
    for key in ["a", "b", "c", "{t}a", "{}odd", "o}dd"] {
        works(&one, &two, key).await;
    }
    let token = one.mutex("a").lock().await.unwrap().fencing_token();
    let nodes: Vec<&RedisServer> = cluster.nodes().iter().collect();
    let dying = cluster.master_of("a", nodes[0]).unwrap();
    dying.kill().unwrap();
    let again = lock_again(&two, "a").await;
    assert!(token < again.fencing_token());
    again.release().await.unwrap();
    drop(lock_again(&one, "a").await);
    for key in ["a", "b", "c"] {
        works(&one, &two, key).await;
    }
}

#[tokio::test]
async fn many_locks_of_a_cluster_are_renewed_each_in_its_slot() {
    let cluster = RedisCluster::start(&[]).unwrap();
    let client = connect(&cluster.url()).await;
    let mut guards = Vec::new();
    for number in 0..60 {
        let mutex = client.mutex(format!("k{number}")).ttl(ms(20_000)).renew_at(0.02);
        guards.push(mutex.lock().await.unwrap());
    }
    for _ in 0..3 {
        let known: Vec<_> = guards.iter().map(Guard::expires_at).collect();
        let all = || guards.iter().zip(&known).all(|(guard, known)| *known < guard.expires_at());
        eventually("each is renewed", all).await;
    }
    for guard in guards {
        let deadline = guard.expires_at();
        let node = cluster.master_of(guard.key().as_str(), &cluster.nodes()[0]).unwrap();
        let left = ms(command(node, &["PTTL", guard.key().as_str()]).parse().unwrap());
        assert!(guard.is_held() && deadline < Instant::now() + left, "{left:?} at the server");
        guard.release().await.unwrap();
    }
    for node in cluster.nodes() {
        eventually("nothing is left", || leftovers(node).is_empty()).await;
    }
}

/// FAULTS E16: the answers of a slot on its way are `ASK`, and then `MOVED`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_and_a_waiter_outlive_the_move_of_their_slot() {
    let cluster = RedisCluster::start(&[]).unwrap();
    let failures = Failures::default();
    let backend = RedisBackend::connect(&cluster.url()).await.unwrap();
    let builder = Client::builder(backend).observer(failures.clone());
    let one = builder.ttl(ms(20_000)).renew_at(0.02).build().unwrap();
    let two = connect(&cluster.url()).await;
    let guard = one.mutex("k").lock().await.unwrap();
    let mutex = two.mutex("k").retry(Linear::new(ms(50)).limit(400));
    let waiter = tokio::spawn(async move { mutex.lock().await.unwrap() });
    let source = cluster.master_of("k", &cluster.nodes()[0]).unwrap();
    eventually("it waits", || command(source, &["EXISTS", "__distlock:q:{k}k"]) == "1").await;

    let masters = &cluster.nodes()[..3];
    let target = masters.iter().find(|node| node.port() != source.port()).unwrap();
    let slot = command(source, &["CLUSTER", "KEYSLOT", "k"]);
    let id = |node| command(node, &["CLUSTER", "MYID"]);
    let set = |node, words: &[&str]| {
        command(node, &[&["CLUSTER", "SETSLOT", &slot], words].concat());
    };
    set(target, &["IMPORTING", &id(source)]);
    set(source, &["MIGRATING", &id(target)]);
    let keys = command(source, &["CLUSTER", "GETKEYSINSLOT", &slot, "10"]);
    let port = target.port().to_string();
    let mut migrate = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"];
    migrate.extend(keys.lines());
    assert_eq!(command(source, &migrate), "OK");
    let error = failures.saying("moving").await;
    assert!(error.is_transient(), "{error}");
    assert!(guard.is_held() && !waiter.is_finished());
    for node in [target, source].into_iter().chain(masters) {
        set(node, &["NODE", &id(target)]);
    }
    let known = guard.expires_at();
    eventually("it is renewed", || known < guard.expires_at() || !guard.is_held()).await;
    assert!(guard.is_held());
    soon(guard.release()).await.unwrap();
    let next = soon(waiter).await.unwrap();
    assert!(next.is_held());
    assert_eq!(command(target, &["EXISTS", "k"]), "1");
}

#[tokio::test]
async fn a_reserved_name_is_refused() {
    let server = server();
    let client = connect(&server.url()).await;
    for name in ["__distlock:", "__distlock:f:{k}k"] {
        let Error::Backend(error) = client.mutex(name).lock().await.unwrap_err() else { panic!() };
        assert!(!error.is_transient());
        assert!(error.to_string().contains("__distlock:"), "{error}");
    }
    assert!(client.inspect("__distlock:x").await.is_err());
    drop(client.mutex("__distloc").lock().await.unwrap());
}
