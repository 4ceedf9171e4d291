//! Faults that etcd and the network make, one at a time, seen from a lock. FAULTS A1, A6, B4, C3, D12, G9, G11, G12, H2, I1.

mod common;

use std::{
    env,
    io::{self, BufRead as _, BufReader, Lines, Write as _},
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use common::{
    client, eventually, in_line, keys, lease_ids, leases, ms,
    proxied::{behind, proxy, url},
    server, soon, wait_in_line,
};
use distlock_core::{Error, ErrorKind, FencingToken, LossReason, Released};
use distlock_servers::{etcd::EtcdServer, proxy::Direction};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

const KEY: &str = "job/7";

/// Where its keys are.
const LINE: &str = "job/7/";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a01_frames_that_are_cut_in_their_middle_are_lost_and_asked_for_again() {
    let server = server();
    let proxy = proxy(&server);
    let client = behind(&proxy, "5s").await;
    for bytes in [1, 5, 9, 20] {
        for direction in [Direction::ToClient, Direction::ToServer] {
            let made = proxy.accepted();
            proxy.cut_after(direction, bytes);
            let guard = soon(client.mutex(KEY).lock()).await.unwrap();
            assert!(made < proxy.accepted(), "it was cut, and made anew");
            assert_eq!(keys(&server, LINE).len(), 1);
            let made = proxy.accepted();
            proxy.cut_after(direction, bytes);
            assert_eq!(soon(guard.release()).await.unwrap(), Released::Released);
            assert!(made < proxy.accepted(), "it was cut, and made anew");
            eventually("it is gone", || keys(&server, LINE).is_empty()).await;
        }
    }
}

/// Who takes a lock on a lease that was kept alive before counts from the request that did it, and not from its answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_counts_from_the_request_that_kept_it_alive() {
    let server = server();
    let proxy = proxy(&server);
    let client = behind(&proxy, "5s").await;
    let ttl = ms(6000);
    let first = client.mutex(KEY).ttl(ttl).lock().await.unwrap();
    proxy.delay(Direction::ToClient, ms(700));
    let known = first.expires_at();
    eventually("it is renewed", || known < first.expires_at()).await;
    proxy.delay(Direction::ToClient, Duration::ZERO);
    let second = client.mutex("another").ttl(ttl).lock().await.unwrap();
    let later = second.expires_at().saturating_duration_since(first.expires_at());
    assert!(
        later < ms(350),
        "they share the lease, and the second believes in it for {later:?} more"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_comes_in_slices_is_understood() {
    let server = server();
    let proxy = proxy(&server);
    proxy.slice(1);
    let (one, two) = (behind(&proxy, "5s").await, behind(&proxy, "5s").await);
    let guard = one.mutex(KEY).metadata("é\r\n").lock().await.unwrap();
    let waiter = wait_in_line(&server, &two, KEY, 2).await;
    guard.release().await.unwrap();
    let guard = soon(waiter).await.unwrap();
    guard.extend(ms(40_000)).await.unwrap();
    assert_eq!(guard.release().await.unwrap(), Released::Released);
    assert_eq!(keys(&server, ""), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a06_a_grant_that_arrives_after_its_deadline_is_given_back() {
    let server = server();
    let proxy = proxy(&server);
    let rival = client(&server.url()).await;
    let client = behind(&proxy, "9s").await;
    // It has a lease, so that one request is all it takes.
    soon(client.mutex("other").ttl(ms(2000)).lock()).await.unwrap().release().await.unwrap();
    proxy.delay(Direction::ToClient, ms(2600));
    let error = soon(client.mutex(KEY).ttl(ms(2000)).lock()).await.unwrap_err();
    let Error::Backend(error) = error else { panic!("{error}") };
    assert!(error.is_transient(), "{error}");
    proxy.delay(Direction::ToClient, Duration::ZERO);
    let rival = soon(rival.mutex(KEY).lock()).await.unwrap();
    eventually("it is given back", || keys(&server, LINE).len() == 1).await;
    drop(soon(client.mutex("warm").lock()).await.unwrap());
    assert!(rival.is_held());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b04_a_release_that_comes_once_more_after_the_next_grant_of_its_client_harms_nobody() {
    let server = server();
    let (one, two) = (proxy(&server), proxy(&server));
    let client = client(&url(&[one.port(), two.port()], "1s")).await;
    let guard = soon(client.mutex(KEY).lock()).await.unwrap();
    let key = keys(&server, LINE).remove(0);
    // The first way holds the release back, the other one carries it out.
    one.hold(Direction::ToServer, true);
    assert_eq!(soon(guard.release()).await.unwrap(), Released::Released);
    let next = soon(client.mutex(KEY).lock()).await.unwrap();
    one.hold(Direction::ToServer, false);
    // Whether what was held back is still carried out is the server's affair, so it is asked for once more by hand.
    assert_eq!(server.etcdctl(&["del", &key]).unwrap().trim(), "0", "a key is used once");
    let now = keys(&server, LINE);
    assert!(now.len() == 1 && now[0] != key, "{now:?}");
    assert!(next.is_held());
    assert_eq!(soon(next.release()).await.unwrap(), Released::Released);
    assert_eq!(keys(&server, LINE), Vec::<String>::new());
}

/// How many keep-alives the server has got.
fn keep_alives(server: &EtcdServer) -> u64 {
    let label = "grpc_method=\"LeaseKeepAlive\"";
    server.metric_where("grpc_server_msg_received_total", label).map_or(0, common::whole)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c03_a_renewal_that_is_confirmed_after_the_deadline_brings_nothing_back() {
    let server = server();
    let proxy = proxy(&server);
    let client = behind(&proxy, "9s").await;
    let guard = client.mutex(KEY).ttl(ms(3000)).lock().await.unwrap();
    let (known, before) = (guard.expires_at(), keep_alives(&server));
    proxy.delay(Direction::ToClient, ms(4500));
    eventually("the server has renewed it", || before < keep_alives(&server)).await;
    assert_eq!(guard.expires_at(), known, "nobody has heard of that");
    assert_eq!(soon(guard.lost()).await, LossReason::Expired);
    proxy.delay(Direction::ToClient, Duration::ZERO);
    eventually("it is given back", || keys(&server, LINE).is_empty()).await;
    assert!(!guard.is_held(), "lost is final");
    assert_eq!(soon(guard.release()).await.unwrap(), Released::NotHeld);
    drop(soon(client.mutex(KEY).lock()).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g12_leases_that_are_gone_while_nobody_has_a_lock_are_replaced() {
    let server = server();
    let client = client(&server.url()).await;
    for round in 0..3 {
        for renews in [true, false] {
            let mutex = client.mutex(KEY).ttl(ms(60_000));
            let mutex = if renews { mutex } else { mutex.no_renewal() };
            let guard = soon(mutex.lock()).await.unwrap();
            assert!(guard.is_held(), "round {round}");
            guard.release().await.unwrap();
        }
        assert!(0 < leases(&server), "they are kept for the next");
        for lease in lease_ids(&server) {
            server.etcdctl(&["lease", "revoke", &lease]).unwrap();
        }
    }
    let guard = soon(client.mutex(KEY).lock()).await.unwrap();
    assert_eq!(keys(&server, LINE).len(), 1);
    guard.release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g12_a_full_server_refuses_who_comes_and_keeps_and_hands_on_what_is_there() {
    let server = EtcdServer::start(&["--quota-backend-bytes", "4000000"]).unwrap();
    let (one, two) = (client(&server.url()).await, client(&server.url()).await);
    let mutex = |name| one.mutex(name).ttl(ms(6000)).renew_at(0.1);
    let (held, guard) = (mutex("held").lock().await.unwrap(), mutex(KEY).lock().await.unwrap());
    let waiter = wait_in_line(&server, &two, KEY, 2).await;
    let junk = "x".repeat(100_000);
    while server.etcdctl(&["put", "junk", &junk]).is_ok() {}
    assert!(server.etcdctl(&["alarm", "list"]).unwrap().contains("NOSPACE"));

    for client in [&one, &two] {
        let error = soon(client.mutex("newcomer").lock()).await.unwrap_err();
        let Error::Backend(error) = error else { panic!("{error}") };
        assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
        assert!(error.to_string().contains("space exceeded"), "{error}");
    }
    for _ in 0..2 {
        let known = held.expires_at();
        eventually("it is renewed", || known < held.expires_at() || !held.is_held()).await;
        assert!(held.is_held() && guard.is_held());
    }
    assert_eq!(soon(guard.release()).await.unwrap(), Released::Released);
    let guard = soon(waiter).await.unwrap();
    assert_eq!(soon(guard.release()).await.unwrap(), Released::Released);
    assert_eq!(soon(held.release()).await.unwrap(), Released::Released);
    assert_eq!(keys(&server, ""), ["junk"]);

    let revision = common::number(&server, "junk", "Revision").unwrap().to_string();
    for words in [&["compact", &revision][..], &["defrag"], &["alarm", "disarm"]] {
        server.etcdctl(words).unwrap();
    }
    drop(soon(one.mutex("newcomer").lock()).await.unwrap());
}

/// As many and as large as a client may ask for at once: no request is larger than a server takes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g11_the_largest_locks_at_once_are_no_request_too_large() {
    let server = server();
    let client = client(&server.url()).await;
    let mut tasks = JoinSet::new();
    for number in 0..400 {
        let name = format!("{number:x>1000}");
        let mutex = client.mutex(&name).metadata("m".repeat(4096));
        tasks.spawn(async move { mutex.lock().await.unwrap() });
    }
    let mut guards = Vec::new();
    while let Some(guard) = soon(tasks.join_next()).await {
        guards.push(guard.unwrap());
    }
    assert!(guards.iter().all(distlock_core::Guard::is_held));
    let mut tasks = JoinSet::new();
    for guard in guards {
        tasks.spawn(guard.release());
    }
    while let Some(released) = soon(tasks.join_next()).await {
        assert_eq!(released.unwrap().unwrap(), Released::Released);
    }
    assert_eq!(keys(&server, ""), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g09_a_waiter_with_a_long_backlog_of_events_gets_in() {
    let server = server();
    let proxy = proxy(&server);
    let holder = client(&server.url()).await;
    let waiter = behind(&proxy, "2s").await;
    let guard = holder.mutex(KEY).lock().await.unwrap();
    let task = wait_in_line(&server, &waiter, KEY, 2).await;
    eventually("both watch", || 2 <= common::watchers(&server)).await;
    proxy.hold(Direction::ToClient, true);
    // Behind it in the line, a crowd comes and goes.
    let etcd = etcd_client::Client::connect([server.endpoint()], None).await.unwrap();
    let mut tasks = JoinSet::new();
    for number in 0..1000 {
        let mut etcd = etcd.clone();
        tasks.spawn(async move {
            let key = format!("{LINE}{number}");
            etcd.put(key.as_str(), "", None).await.unwrap();
            etcd.delete(key.as_str(), None).await.unwrap();
        });
    }
    while let Some(done) = soon(tasks.join_next()).await {
        done.unwrap();
    }
    guard.release().await.unwrap();
    proxy.hold(Direction::ToClient, false);
    let guard = soon(task).await.unwrap();
    assert!(guard.is_held());
    assert_eq!(keys(&server, LINE).len(), 1);
}

/// Not a test of its own: the other process of the next ones, which waits, says its token, and holds until it is killed.
#[tokio::test]
async fn another_process() {
    let Ok(url) = env::var("DISTLOCK_CHILD_URL") else { return };
    let client = client(&url).await;
    let guard = client.mutex(KEY).ttl(ms(4000)).lock().await.unwrap();
    writeln!(io::stdout(), "\ntoken {}", guard.fencing_token()).unwrap();
    std::future::pending::<()>().await;
}

struct Other {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Other {
    fn start(server: &EtcdServer) -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["another_process", "--exact", "--test-threads=1", "--nocapture"]);
        command.env("DISTLOCK_CHILD_URL", server.url());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    fn token(&mut self) -> FencingToken {
        let told = self.lines.find_map(|line| line.unwrap().strip_prefix("token ")?.parse().ok());
        FencingToken::new(told.expect("it is granted before it ends"))
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn i01_locks_and_places_of_killed_processes_end_by_their_leases() {
    let server = server();
    let mut holder = Other::start(&server);
    in_line(&server, KEY, 1).await;
    let mut first = Other::start(&server);
    in_line(&server, KEY, 2).await;
    let client = client(&server.url()).await;
    let waiter = wait_in_line(&server, &client, KEY, 3).await;
    // Renewed by living processes, both outlast their ttl.
    sleep(ms(5000)).await;
    assert_eq!(keys(&server, LINE).len(), 3);
    first.kill();
    holder.kill();
    let killed = Instant::now();
    let guard = soon(waiter).await.unwrap();
    assert!(guard.is_held());
    assert!(ms(500) < killed.elapsed(), "not before its lease: {:?}", killed.elapsed());
    assert_eq!(keys(&server, LINE).len(), 1);
}

/// The news that the one before has gone waits in its socket while its own place ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h02_one_that_was_stopped_while_its_turn_came_waits_anew() {
    let server = server();
    let rival = client(&server.url()).await;
    let guard = rival.mutex(KEY).lock().await.unwrap();
    let mut other = Other::start(&server);
    in_line(&server, KEY, 2).await;
    eventually("both watch", || 2 <= common::watchers(&server)).await;
    other.signal("-STOP");
    guard.release().await.unwrap();
    assert_eq!(keys(&server, LINE).len(), 1, "it is the turn of the one that is stopped");
    let guard = soon(rival.mutex(KEY).lock()).await.unwrap();
    other.signal("-CONT");
    in_line(&server, KEY, 2).await;
    assert!(guard.is_held());
    let before = guard.fencing_token();
    guard.release().await.unwrap();
    let token = soon(tokio::task::spawn_blocking(move || other.token())).await.unwrap();
    assert!(before < token, "by a later key");
}
