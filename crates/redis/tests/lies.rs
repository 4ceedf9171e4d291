//! A server that answers what no server answers: nothing panics, nothing hangs, nothing is believed for longer than it was asked for.

mod common;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use common::{ms, server, soon};
use distlock_conformance::{Told, survive_lies};
use distlock_core::{Client, Error, ErrorKind};
use distlock_redis::RedisBackend;
use distlock_servers::liar::{self, Liar, Panics, Tally};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};

async fn lied_to(port: u16, seed: u64) -> Tally {
    let liar = Liar::redis(port, seed).unwrap();
    let url = format!("redis://127.0.0.1:{}?timeout=150ms&connect_timeout=500ms", liar.port());
    let share = Liar::share(seed);
    // Connecting among lies ends, whichever way.
    liar.lie(share);
    for _ in 0..4 {
        if let Ok(backend) = soon(RedisBackend::connect(&url)).await {
            soon(backend.close()).await;
        }
    }
    liar.lie(0);
    let mut backends = Vec::new();
    while backends.len() < 2 {
        // A machine that is busy may take longer than the limit.
        backends.extend(soon(RedisBackend::connect(&url)).await);
    }
    liar.lie(share);
    let clients: Vec<_> = backends.iter().cloned().map(Client::new).collect();
    let told = survive_lies(&clients, seed, || liar.hush(), || liar.repent()).await;
    for (client, backend) in clients.iter().zip(&backends) {
        soon(client.shutdown()).await;
        soon(backend.close()).await;
    }
    let Told { grants, errors, .. } = told;
    Tally { runs: 1, grants, errors, lies: liar.lies() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_server_answers_nothing_panics_hangs_or_is_believed_for_long() {
    let panics = Panics::watch();
    let server = server();
    let port = server.port();
    let all = liar::tally(|seed| lied_to(port, seed)).await;
    assert_eq!(panics.seen(), Vec::<String>::new());
    eprintln!("{all:?}");
    assert!(all.is_enough(), "it proves nothing");
    // Whatever was made of a lie is gone soon.
    common::eventually("nothing is left", || common::leftovers(&server).is_empty()).await;
}

/// Says to every script that somebody else has the lock, even to who asked for a place in the line.
async fn say_busy(client: TcpStream, scripts: Arc<AtomicUsize>) -> Option<()> {
    let (read, mut write) = client.into_split();
    let mut lines = BufReader::new(read).lines();
    let mut next = async move || lines.next_line().await.ok().flatten();
    loop {
        let count: usize = next().await?.strip_prefix('*')?.parse().ok()?;
        let mut words = Vec::new();
        for _ in 0..count {
            next().await?;
            words.push(next().await?);
        }
        let answer = match words[0].as_str() {
            "EVALSHA" | "EVAL" => {
                scripts.fetch_add(1, Ordering::Relaxed);
                "*4\r\n$4\r\nbusy\r\n:1\r\n:1000\r\n:1\r\n".to_owned()
            }
            "SUBSCRIBE" => {
                let channel = &words[1];
                format!("*3\r\n$9\r\nsubscribe\r\n${}\r\n{channel}\r\n:1\r\n", channel.len())
            }
            "PING" => "+PONG\r\n".to_owned(),
            _ => "-ERR unknown\r\n".to_owned(),
        };
        write.write_all(answer.as_bytes()).await.ok()?;
    }
}

#[tokio::test]
async fn who_wants_a_place_and_hears_of_none_is_not_kept_asking_for_ever() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let scripts = Arc::new(AtomicUsize::new(0));
    let served = tokio::spawn({
        let scripts = Arc::clone(&scripts);
        async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(say_busy(client, Arc::clone(&scripts)));
            }
        }
    });
    let backend = soon(RedisBackend::connect(&format!("redis://127.0.0.1:{port}"))).await.unwrap();
    let client = Client::new(backend);
    let Error::Backend(error) = soon(client.mutex("k").lock_timeout(ms(15_000))).await.unwrap_err()
    else {
        panic!("an error of the store is expected");
    };
    assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
    let asked = scripts.load(Ordering::Relaxed);
    assert!((1..10).contains(&asked), "it was asked {asked} times");
    served.abort();
}
