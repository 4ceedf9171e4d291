//! A server that answers what no server answers: nothing panics in our code, nothing hangs, nothing is believed for longer than it was asked for.

mod common;

use common::{ms, server, soon};
use distlock_conformance::{Told, survive_lies};
use distlock_core::{Client, Error, ErrorKind};
use distlock_etcd::EtcdBackend;
use distlock_servers::liar::{self, Liar, Panics, Tally};

async fn lied_to(port: u16, seed: u64) -> Tally {
    let liar = Liar::etcd(port, seed).unwrap();
    let url = format!("etcd://127.0.0.1:{}?timeout=150ms&connect_timeout=500ms", liar.port());
    let share = Liar::share(seed);
    // Connecting among lies ends, whichever way.
    liar.lie(share);
    for _ in 0..4 {
        if let Ok(backend) = soon(EtcdBackend::connect(&url)).await {
            soon(backend.close()).await;
        }
    }
    liar.lie(0);
    let mut backends = Vec::new();
    while backends.len() < 2 {
        // A machine that is busy may take longer than the limit.
        backends.extend(soon(EtcdBackend::connect(&url)).await);
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
    // The driver panics at an event, and at a part of a transaction, of a kind that it does not know; what calls it there contains that.
    let drivers = |panic: &String| {
        let known = ["/src/rpc/kv.rs:", "/src/rpc/watch.rs:"];
        panic.contains("etcd-client-") && known.iter().any(|place| panic.contains(place))
    };
    let (contained, ours): (Vec<_>, Vec<_>) = panics.seen().into_iter().partition(drivers);
    assert_eq!(ours, Vec::<String>::new());
    eprintln!("{} panics of the driver were contained", contained.len());
    eprintln!("{all:?}");
    assert!(all.is_enough(), "it proves nothing");
    // Whatever was made of a lie is gone soon.
    common::eventually("nothing is left", || common::keys(&server, "").is_empty()).await;
}

/// The driver panics when it looks at such an answer, in the task that asked.
#[tokio::test]
async fn a_part_of_no_kind_in_an_answer_is_an_error_of_the_store() {
    let server = server();
    let liar = Liar::etcd(server.port(), 0).unwrap();
    let backend = EtcdBackend::connect(&format!("etcd://127.0.0.1:{}", liar.port())).await.unwrap();
    let client = Client::new(backend);
    let guard = client.mutex("held").ttl(ms(1500)).lock().await.unwrap();
    liar.hollow(true);
    for name in ["k", "l"] {
        let locked = soon(client.mutex(name).lock()).await;
        let Error::Backend(error) = locked.unwrap_err() else {
            panic!("an error of the store is expected");
        };
        assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
        assert!(error.to_string().contains("makes no sense"), "{error}");
    }
    liar.hollow(false);
    // Those who wait in this process were not harmed, nor was what writes for all.
    guard.release().await.unwrap();
    for name in ["held", "k"] {
        soon(client.mutex(name).lock()).await.unwrap().release().await.unwrap();
    }
}
