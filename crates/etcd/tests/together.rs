//! Many ask in one transaction, which expects nobody under their names, and somebody is there.

mod common;

use common::{client, delete, eventually, keys, server};
use distlock_servers::etcd::EtcdServer;

/// How another library's key ends.
const FOREIGN: &str = "694d7c1bd4e3a20f";

fn proposals(server: &EtcdServer) -> f64 {
    server.metric("etcd_server_proposals_committed_total").unwrap()
}

#[tokio::test]
async fn those_who_ask_together_find_who_is_there_already() {
    const TAKEN: usize = 3;
    let server = server();
    let client = client(&server.url()).await;
    client.mutex("warm").lock().await.unwrap().release().await.unwrap();
    let (foreign, longer) = (format!("k{TAKEN}/{FOREIGN}"), format!("k5/long/{FOREIGN}"));
    server.etcdctl(&["put", &longer, ""]).unwrap();
    // The second time it is known where somebody was.
    for _ in 0..2 {
        server.etcdctl(&["put", &foreign, ""]).unwrap();
        let before = proposals(&server);
        let mut waiters: Vec<_> = (0..12)
            .map(|number| {
                let mutex = client.mutex(format!("k{number}"));
                tokio::spawn(async move { mutex.lock().await.unwrap() })
            })
            .collect();
        let waits = waiters.remove(TAKEN);
        let mut guards = Vec::new();
        for waiter in waiters {
            guards.push(common::soon(waiter).await.unwrap());
        }
        // It was asked for with the others, and had its answer when they had theirs.
        assert!(!waits.is_finished(), "another library has it");
        let made = proposals(&server) - before;
        assert!(made <= 4.0, "{made} proposals for 12");
        for guard in &guards {
            let (key, owner) = (guard.key().as_str(), guard.owner());
            assert_eq!(client.inspect(key).await.unwrap().holders[0].owner, Some(owner));
        }
        delete(&server, &foreign);
        guards.push(common::soon(waits).await.unwrap());
        for guard in guards {
            assert!(guard.is_held());
            guard.release().await.unwrap();
        }
        eventually("nothing of ours is left", || keys(&server, "k") == [longer.clone()]).await;
    }
}

#[tokio::test]
async fn those_who_come_together_again_and_again_share_every_transaction() {
    const CYCLES: u32 = 20;
    let server = server();
    let client = client(&server.url()).await;
    client.mutex("warm").lock().await.unwrap().release().await.unwrap();
    let before = proposals(&server);
    let tasks: Vec<_> = (0..16)
        .map(|number| {
            let mutex = client.mutex(format!("k{number}"));
            tokio::spawn(async move {
                for _ in 0..CYCLES {
                    mutex.lock().await.unwrap().release().await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        common::soon(task).await.unwrap();
    }
    let each = (proposals(&server) - before) / f64::from(CYCLES);
    assert!(each < 2.5, "{each} proposals for each cycle of all");
}
