//! Very many: waiters of many processes, and locks of one. FAULTS D8, J5.

mod common;

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use common::{backend, command, eventually, leftovers, ms, server, soon};
use distlock_core::{Client, Event, Guard, Key};
use distlock_redis::RedisBackend;
use distlock_servers::redis::RedisServer;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d08_a_thousand_waiters_of_fifty_processes_cost_the_server_two_scripts_each_at_most() {
    const PROCESSES: u64 = 50;
    const TASKS: u64 = 20;
    let server = server();
    let holder = Client::new(backend(&server).await);
    let guard = holder.mutex("k").lock().await.unwrap();
    let (inside, contended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicU64::new(0)));
    let mut tasks = JoinSet::new();
    for _ in 0..PROCESSES {
        let contended = Arc::clone(&contended);
        let builder = Client::builder(backend(&server).await);
        let client = builder.observer(move |_: &Key, event: &Event| {
            let waits = matches!(event, Event::Contended);
            contended.fetch_add(u64::from(waits), Ordering::SeqCst);
        });
        let client = client.build().unwrap();
        for _ in 0..TASKS {
            let (mutex, inside) = (client.mutex("k"), Arc::clone(&inside));
            tasks.spawn(async move {
                let guard = mutex.lock().await.unwrap();
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                let token = guard.fencing_token();
                inside.fetch_sub(1, Ordering::SeqCst);
                guard.release().await.unwrap();
                token
            });
        }
    }
    let all = || contended.load(Ordering::SeqCst) == PROCESSES * TASKS;
    eventually("all of them wait", all).await;
    let line = || command(&server, &["ZCARD", "__distlock:q:{k}k"]) == PROCESSES.to_string();
    eventually("one of each process stands in line", line).await;
    let before = scripts(&server);
    guard.release().await.unwrap();
    let mut tokens = Vec::new();
    while let Some(token) = soon(tasks.join_next()).await {
        tokens.push(token.unwrap());
    }
    let made = scripts(&server) - before;
    eprintln!("{made} scripts for {} hand-overs", tokens.len());
    // Each process takes its turn in the line with one script, and ends it with another.
    assert!(made <= 2 * PROCESSES * TASKS, "{made} scripts");
    tokens.sort();
    tokens.dedup();
    assert_eq!(tokens.len() as u64, PROCESSES * TASKS, "no token twice");
    eventually("nothing is left", || leftovers(&server).is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn j05_ten_thousand_locks_of_a_process_are_renewed_in_time_and_in_batches() {
    const COUNT: usize = 10_000;
    let server = server();
    let (renewed, late) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicU64::new(0)));
    let (renewals, latest) = (Arc::clone(&renewed), Arc::clone(&late));
    // More than are asked for at once by most: it is not the answers' speed that is tested.
    let url = format!("{}?timeout=9s", server.url());
    let client = Client::builder(RedisBackend::connect(&url).await.unwrap())
        .observer(move |_: &Key, event: &Event| match event {
            Event::Renewed { late } => {
                renewals.fetch_add(1, Ordering::SeqCst);
                latest.fetch_max(late.as_millis() as u64, Ordering::SeqCst);
            }
            Event::Lost { .. } => panic!("{event:?}"),
            _ => {}
        })
        .ttl(ms(12_000))
        .build()
        .unwrap();
    let mut tasks = JoinSet::new();
    for number in 0..COUNT {
        let mutex = client.mutex(format!("k{number}"));
        tasks.spawn(async move { mutex.lock().await.unwrap() });
    }
    let guards = soon(tasks.join_all()).await;
    let (before, started) = (scripts(&server), Instant::now());
    let known: Vec<Instant> = guards.iter().map(Guard::expires_at).collect();
    let all = || guards.iter().zip(&known).all(|(guard, known)| *known < guard.expires_at());
    while !all() {
        assert!(started.elapsed() < ms(12_000), "each is renewed before it would end");
        sleep(ms(20)).await;
    }
    assert!(guards.iter().all(Guard::is_held));
    let (made, done) = (scripts(&server) - before, renewed.load(Ordering::SeqCst));
    let late = late.load(Ordering::SeqCst);
    eprintln!("{done} renewals by {made} scripts, {late} ms late at most");
    assert!(made <= done as u64 / 16, "{done} renewals by {made} scripts");
    assert!(late < 3000, "{late} ms late");
    let mut tasks = JoinSet::new();
    for guard in guards {
        tasks.spawn(guard.release());
    }
    while let Some(released) = soon(tasks.join_next()).await {
        released.unwrap().unwrap();
    }
    assert_eq!(leftovers(&server), Vec::<String>::new());
}
