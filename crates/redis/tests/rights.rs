//! The rights that `docs/redis-acl.md` lists are enough, and what happens without each of them.

mod common;

use common::{backend, command, eventually, leftovers, ms, server, soon};
use distlock_core::{Client, Error, ErrorKind, Guard};
use distlock_redis::RedisBackend;
use distlock_servers::redis::{RedisCluster, RedisSentinel, RedisServer};

/// The words of a documented command, behind its beginning.
fn documented(beginning: &str) -> Vec<String> {
    let page = include_str!("../../../docs/redis-acl.md");
    let (_, rest) = page.split_once(&format!("{beginning} on >password ")).unwrap();
    let (rights, _) = rest.split_once("```").unwrap();
    rights.split_whitespace().map(str::to_owned).collect()
}

/// Makes a user with the documented rights but for some.
fn create(server: &RedisServer, name: &str, without: &[&str], besides: &[&str]) {
    let rights = documented("ACL SETUSER locks");
    assert!(without.iter().all(|one| rights.iter().any(|right| right == one)), "{without:?}");
    let secret = format!(">{name}");
    let mut words = vec!["ACL", "SETUSER", name, "on", &secret];
    words.extend(rights.iter().map(String::as_str).filter(|right| !without.contains(right)));
    words.extend(besides);
    assert_eq!(command(server, &words), "OK");
}

async fn connect(url: &str) -> Client {
    let backend = RedisBackend::connect(url).await.unwrap();
    Client::builder(backend).prefix("jobs/").build().unwrap()
}

/// A client as a user with the documented rights but for some.
async fn user(server: &RedisServer, name: &str, without: &[&str]) -> Client {
    create(server, name, without, &[]);
    connect(&format!("redis://{name}:{name}@127.0.0.1:{}", server.port())).await
}

async fn wait_for(client: &Client, server: &RedisServer) -> tokio::task::JoinHandle<Guard> {
    let mutex = client.mutex("k").ttl(ms(3000));
    let waiter = tokio::spawn(async move { mutex.lock().await.unwrap() });
    let line = "__distlock:q:{jobs/k}jobs/k";
    eventually("it waits", || command(server, &["ZCARD", line]) == "1").await;
    waiter
}

/// Everything that a client does, with a hand-over in the middle.
async fn works(one: &Client, two: &Client, server: &RedisServer) {
    let guard = one.mutex("k").ttl(ms(6000)).renew_at(0.05).lock().await.unwrap();
    assert!(two.mutex("k").try_lock().await.unwrap().is_none());
    let waiter = wait_for(two, server).await;
    let known = guard.expires_at();
    eventually("it is renewed", || known < guard.expires_at()).await;
    guard.extend(ms(30_000)).await.unwrap();
    assert_eq!(one.inspect("k").await.unwrap().waiting, Some(1));
    guard.release().await.unwrap();
    let guard = soon(waiter).await.unwrap();
    assert!(one.force_release("k").await.unwrap());
    soon(guard.lost()).await;
    let guard = one.mutex("k").min_hold(ms(50)).lock().await.unwrap();
    guard.release().await.unwrap();
    drop(soon(two.mutex("k").lock()).await.unwrap());
    // Handed on inside the process, to one who has other words; and resumed by another process.
    let guard = one.mutex("k").metadata("first").lock().await.unwrap();
    let heir = one.mutex("k").metadata("second").ttl(ms(20_000));
    // The heir is polled first, and so waits when it is released.
    let (heir, released) = tokio::join!(soon(heir.lock()), guard.release());
    released.unwrap();
    let heir = heir.unwrap();
    assert_eq!(one.inspect("k").await.unwrap().holders[0].metadata, "second");
    let resumed = two.mutex("k").owner(heir.owner()).metadata("third").lock().await.unwrap();
    assert_eq!(resumed.fencing_token(), heir.fencing_token());
    let ends = one.mutex("k");
    let (ended, released) = tokio::join!(soon(ends.wait_released(ms(10_000))), resumed.release());
    ended.unwrap();
    released.unwrap();
    drop(heir);
    eventually("nothing is left", || leftovers(server).is_empty()).await;
}

/// Every refusal is counted by the server.
fn refusals(server: &RedisServer) -> String {
    command(server, &["ACL", "LOG"])
}

#[tokio::test]
async fn what_is_documented_is_enough() {
    let server = server();
    let (one, two) = (user(&server, "one", &[]).await, user(&server, "two", &[]).await);
    works(&one, &two, &server).await;
    assert_eq!(refusals(&server), "", "nothing was even tried in vain");
}

#[tokio::test]
async fn in_a_cluster_two_more_are_enough() {
    let cluster = RedisCluster::start(&[]).unwrap();
    for node in cluster.nodes() {
        create(node, "locks", &[], &["+cluster|slots", "+cluster|info"]);
    }
    let url = cluster.url().replace("://", "://locks:locks@");
    let (one, two) = (connect(&url).await, connect(&url).await);
    let node = cluster.master_of("jobs/k", &cluster.nodes()[0]).unwrap();
    works(&one, &two, node).await;
    for node in cluster.nodes() {
        assert_eq!(refusals(node), "");
    }
}

#[tokio::test]
async fn in_another_database_one_more_is_enough() {
    let server = server();
    create(&server, "locks", &[], &["+select"]);
    let url = format!("redis://locks:locks@127.0.0.1:{}/5", server.port());
    let client = connect(&url).await;
    let guard = client.mutex("k").lock().await.unwrap();
    let other = connect(&url).await;
    let waiter = tokio::spawn(async move { other.mutex("k").lock().await.unwrap() });
    let line = "
        redis.call('SELECT', 5)
        return redis.call('ZCARD', '__distlock:q:{jobs/k}jobs/k')";
    eventually("it waits", || command(&server, &["EVAL", line, "0"]) == "1").await;
    guard.release().await.unwrap();
    drop(soon(waiter).await.unwrap());
    assert_eq!(refusals(&server), "");
}

#[tokio::test]
async fn with_sentinels_they_are_enough_on_the_primary() {
    let group = RedisSentinel::start(&[]).unwrap();
    let primary = group.master().unwrap();
    create(primary, "locks", &[], &["+role"]);
    for sentinel in group.sentinels() {
        let mut words = vec!["ACL", "SETUSER", "finder", "on", ">finder"];
        let rights = documented("ACL SETUSER finder");
        words.extend(rights.iter().map(String::as_str));
        assert_eq!(command(sentinel, &words), "OK");
    }
    let url = group.url().replace("://", "://locks:locks@");
    let url = format!("{url}&sentinel_user=finder&sentinel_password=finder");
    let (one, two) = (connect(&url).await, connect(&url).await);
    works(&one, &two, primary).await;
    for server in group.sentinels().iter().chain([primary]) {
        assert_eq!(refusals(server), "");
    }
}

#[tokio::test]
async fn without_channels_it_works_by_polling() {
    let server = server();
    for (number, without) in [
        &["&__distlock:c:*"][..],
        &["+publish"],
        &["+subscribe", "+unsubscribe"],
        &["+pubsub|numsub"],
        &[
            "&__distlock:c:*",
            "+publish",
            "+subscribe",
            "+unsubscribe",
            "+pubsub|numsub",
            "+ping",
            "+info",
            "+client|id",
        ],
    ]
    .into_iter()
    .enumerate()
    {
        let (one, two) = (format!("one{number}"), format!("two{number}"));
        let (one, two) = (user(&server, &one, without).await, user(&server, &two, without).await);
        works(&one, &two, &server).await;
        // Those who may and those who may not stand in one line.
        let all = user(&server, &format!("all{number}"), &[]).await;
        works(&one, &all, &server).await;
        works(&all, &one, &server).await;
    }
}

#[tokio::test]
async fn without_the_rest_it_is_a_permanent_error_that_says_so() {
    let server = server();
    for (number, (without, said)) in [
        (&["+evalsha"][..], "evalsha"),
        (&["~jobs/*"], "no right"),
        (&["~__distlock:*"], "no right"),
        (&["+get"], "no right to a command"),
        (&["+set"], "no right to a command"),
        (&["+time"], "no right to a command"),
        (&["+exists"], "no right to a command"),
    ]
    .into_iter()
    .enumerate()
    {
        let client = user(&server, &format!("user{number}"), without).await;
        let Error::Backend(error) = client.mutex("k").lock().await.unwrap_err() else {
            panic!("{without:?}: an error of the store is expected");
        };
        assert_eq!(error.kind(), ErrorKind::Permanent, "{without:?}: {error}");
        assert!(error.to_string().contains(said), "{without:?}: {error}");
    }
    assert_eq!(leftovers(&server), Vec::<String>::new());
}

#[tokio::test]
async fn a_right_to_join_that_is_missing_is_told_and_the_lock_is_left_alone() {
    let server = server();
    let holder = Client::builder(backend(&server).await).prefix("jobs/").build().unwrap();
    let guard = holder.mutex("k").lock().await.unwrap();
    for (number, right) in
        ["+zadd", "+hincrby", "+hset", "+zcard", "+pttl", "+pexpire"].into_iter().enumerate()
    {
        let client = user(&server, &format!("user{number}"), &[right]).await;
        let Error::Backend(error) = soon(client.mutex("k").lock()).await.unwrap_err() else {
            panic!("{right}")
        };
        assert_eq!(error.kind(), ErrorKind::Permanent, "{right}: {error}");
    }
    assert!(guard.is_held());
    guard.release().await.unwrap();
}
