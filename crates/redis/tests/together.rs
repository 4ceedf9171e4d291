//! Requests that come up together go in one script, and each has its own answer.

mod common;

use common::{client, command, eventually, leftovers, server, soon};
use distlock_core::{Client, Error, ErrorKind, Guard, Mutex};
use distlock_redis::RedisBackend;
use distlock_servers::redis::RedisServer;
use futures_util::future::join_all;

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
