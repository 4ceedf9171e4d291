//! Requests that come up together go in one script, and each has its own answer.

mod common;

use common::{client, command, eventually, leftovers, ms, server, soon};
use distlock_core::{Client, Error, ErrorKind, Guard, Mutex};
use distlock_redis::{RedisBackend, RedisConfig};
use distlock_servers::{
    proxy::{Direction, Matcher, Proxy},
    redis::RedisServer,
};
use futures_util::future::join_all;
use tokio::time::sleep;

/// How many scripts the server has run.
fn scripts(server: &RedisServer) -> u64 {
    let stats = command(server, &["INFO", "commandstats"]);
    let lines = stats.lines().filter_map(|line| {
        let line = line.strip_prefix("cmdstat_eval")?;
        line.split_once("calls=")?.1.split(',').next()?.parse::<u64>().ok()
    });
    lines.sum()
}

async fn lock_all(mutexes: &[Mutex]) -> Vec<Result<Guard, Error>> {
    soon(join_all(mutexes.iter().map(Mutex::lock))).await
}

fn mutexes(client: &Client, names: impl IntoIterator<Item = String>) -> Vec<Mutex> {
    names.into_iter().map(|name| client.mutex(name)).collect()
}

#[tokio::test]
async fn those_who_ask_together_share_a_script() {
    let server = server();
    let client = client(&server).await;
    client.mutex("warm").lock().await.unwrap().release().await.unwrap();
    let mutexes = mutexes(&client, (0..44).map(|number| format!("k{number}")));
    let before = scripts(&server);
    let guards: Vec<Guard> = lock_all(&mutexes).await.into_iter().map(Result::unwrap).collect();
    let taken = scripts(&server);
    // Eight find few under way; of the others 32 go together, and the rest.
    assert_eq!(taken - before, 10);
    for (guard, mutex) in guards.iter().zip(&mutexes) {
        let holder = &client.inspect(mutex.key()).await.unwrap().holders[0];
        assert_eq!(holder.owner, Some(guard.owner()));
        assert_eq!(holder.token, Some(guard.fencing_token()));
    }
    let before = scripts(&server);
    for released in soon(join_all(guards.into_iter().map(Guard::release))).await {
        released.unwrap();
    }
    assert_eq!(scripts(&server) - before, 10);
    assert_eq!(leftovers(&server), [""; 0]);
}

#[tokio::test]
async fn one_that_fails_takes_no_other_with_it() {
    let server = server();
    let client = client(&server).await;
    command(&server, &["LPUSH", "k12", "not a lock"]);
    let mutexes = mutexes(&client, (0..20).map(|number| format!("k{number}")));
    for (number, locked) in lock_all(&mutexes).await.into_iter().enumerate() {
        match locked {
            Ok(guard) => drop(guard.release().await.unwrap()),
            Err(Error::Backend(error)) => {
                assert_eq!((number, error.kind()), (12, ErrorKind::Conflict));
                assert!(error.to_string().contains("WRONGTYPE"), "{error}");
            }
            Err(error) => panic!("{number}: {error}"),
        }
    }
    assert_eq!(leftovers(&server), ["k12"]);
}

#[tokio::test]
async fn one_without_rights_takes_no_other_with_it() {
    let server = server();
    let user = ["ACL", "SETUSER", "some", "on", ">some", "+@all", "&*", "~a*", "~__distlock:*"];
    assert_eq!(command(&server, &user), "OK");
    let url = format!("redis://some:some@127.0.0.1:{}", server.port());
    let client = Client::new(RedisBackend::connect(&url).await.unwrap());
    let name = |number| format!("{}{number}", if number == 12 { 'b' } else { 'a' });
    let mutexes = mutexes(&client, (0..20).map(name));
    for (number, locked) in lock_all(&mutexes).await.into_iter().enumerate() {
        match locked {
            Ok(guard) => drop(guard.release().await.unwrap()),
            Err(Error::Backend(error)) => {
                assert_eq!((number, error.kind()), (12, ErrorKind::Permanent), "{error}");
            }
            Err(error) => panic!("{number}: {error}"),
        }
    }
    assert_eq!(leftovers(&server), [""; 0]);
}

#[tokio::test]
async fn locks_that_are_given_back_together_go_to_those_who_wait_for_them() {
    let server = server();
    let (one, two) = (client(&server).await, client(&server).await);
    let names = || (0..20).map(|number| format!("k{number}"));
    let guards = lock_all(&mutexes(&one, names())).await;
    let waiters: Vec<_> = mutexes(&two, names())
        .into_iter()
        .map(|mutex| tokio::spawn(async move { mutex.lock().await.unwrap() }))
        .collect();
    eventually("all stand in line", || {
        let line = |name| command(&server, &["ZCARD", &format!("__distlock:q:{{{name}}}{name}")]);
        names().all(|name| line(name) == "1")
    })
    .await;
    let tokens: Vec<_> =
        guards.iter().map(|guard| guard.as_ref().unwrap().fencing_token()).collect();
    for released in soon(join_all(guards.into_iter().map(|guard| guard.unwrap().release()))).await {
        released.unwrap();
    }
    for (waiter, token) in waiters.into_iter().zip(tokens) {
        let guard = soon(waiter).await.unwrap();
        assert!(token < guard.fencing_token());
        guard.release().await.unwrap();
    }
    assert_eq!(leftovers(&server), [""; 0]);
}

/// Scripts that acquire: with four keys and seven arguments for each lock.
fn acquisitions() -> Matcher {
    Matcher::new(|words| {
        let keys = words.get(2).and_then(|keys| str::from_utf8(keys).ok()?.parse().ok());
        words[0] == b"EVALSHA" && keys.is_some_and(|keys: usize| words.len() == 3 + keys / 4 * 11)
    })
}

/// Eight by themselves, and so many scripts of those who came up together.
const UNDER_WAY: usize = 8 + 48;

/// A client that reaches the server by a proxy, and many mutexes of it.
async fn crowd(server: &RedisServer, timeout: u64) -> (Proxy, Client, Vec<Mutex>) {
    let proxy = Proxy::start(server.port()).unwrap();
    let config = RedisConfig::new("127.0.0.1", proxy.port()).request_timeout(ms(timeout));
    let client = Client::new(RedisBackend::connect_with(config).await.unwrap());
    client.mutex("warm").lock().await.unwrap().release().await.unwrap();
    proxy.forget();
    let mutexes = mutexes(&client, (0..5_000).map(|number| format!("k{number}")));
    (proxy, client, mutexes)
}

#[tokio::test]
async fn of_a_crowd_only_so_many_scripts_are_under_way() {
    let server = server();
    let (proxy, _client, mutexes) = crowd(&server, 20_000).await;
    proxy.delay(Direction::ToClient, ms(1_000));
    let locking = tokio::spawn(async move { lock_all(&mutexes).await });
    proxy.wait_count(acquisitions(), UNDER_WAY).await.unwrap();
    sleep(ms(50)).await;
    assert_eq!(proxy.count(acquisitions()), UNDER_WAY, "no answer has come yet");
    let guards = soon(locking).await.unwrap();
    assert!(proxy.count(acquisitions()) < 500, "all others share scripts too");
    proxy.heal();
    for released in soon(join_all(guards.into_iter().map(|guard| guard.unwrap().release()))).await {
        released.unwrap();
    }
    assert_eq!(leftovers(&server), [""; 0]);
}

#[tokio::test]
async fn whoever_waits_for_a_silent_server_hears_of_it_with_those_who_asked_it() {
    let server = server();
    let (proxy, client, mutexes) = crowd(&server, 300).await;
    server.stop().unwrap();
    for locked in soon(lock_all(&mutexes)).await {
        match locked {
            Err(Error::Backend(error)) => assert!(error.is_transient(), "{error}"),
            other => panic!("{other:?}"),
        }
    }
    // Who asked a moment later than the first may be sent in their place.
    let sent = proxy.count(acquisitions());
    assert!(sent < 2 * UNDER_WAY, "nothing is sent when its time is over: {sent}");
    server.cont().unwrap();
    client.shutdown().await;
    eventually("nothing is left", || leftovers(&server).is_empty()).await;
}
