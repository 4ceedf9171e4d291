//! Certificates, users, passwords and rights: what is enough, what is told when something is missing, and tokens that end.
#![cfg(feature = "tls")]

mod common;

use common::{LONG, eventually, ms, soon, watchers};
use distlock_core::{
    Backend as _, BackendError, Claim, Client, Error, ErrorKind, Guard, Key, Mode, Owner, Standing,
};
use distlock_etcd::{EtcdBackend, EtcdConfig};
use distlock_servers::{
    etcd::{EtcdServer, EtcdTls},
    proxy::RawProxy,
    redis::{Flaw, RedisTls},
};
use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions, Txn, TxnOp};
use tokio::{
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep, timeout},
};

/// What must not be shown anywhere.
const CANARY: &str = "hunter2";

fn tls() -> EtcdTls {
    EtcdTls::start(&[]).expect("an etcd server with TLS can be started")
}

/// All that a client needs but the login.
fn certified(tls: &EtcdTls) -> EtcdConfig {
    EtcdConfig::new([format!("localhost:{}", tls.server().port())])
        .ca_file(tls.ca())
        .certificate(tls.client_certificate(), tls.client_key())
        .prefix(tls.prefix())
        // A busy machine takes its time, with a token to be had beside all else.
        .request_timeout(ms(3000))
}

fn complete(tls: &EtcdTls) -> EtcdConfig {
    certified(tls).login(tls.user(), tls.password())
}

async fn connect(config: EtcdConfig) -> EtcdBackend {
    soon(EtcdBackend::connect_with(config)).await.unwrap()
}

/// Waits for `k`, and returns when so many are in line.
async fn wait_for(tls: &EtcdTls, client: &Client, name: &str, count: usize) -> JoinHandle<Guard> {
    let mutex = client.mutex(name);
    let waiter = tokio::spawn(async move { mutex.lock().await.unwrap() });
    let line = format!("{}{name}/", tls.prefix());
    eventually("it waits", || common::keys(tls.server(), &line).len() == count).await;
    waiter
}

/// Everything that a client does, with hand-overs in the middle.
async fn works(tls: &EtcdTls, one: &Client, two: &Client) {
    let guard = one.mutex("k").ttl(ms(3000)).lock().await.unwrap();
    assert!(two.mutex("k").try_lock().await.unwrap().is_none());
    let waiter = wait_for(tls, two, "k", 2).await;
    guard.extend(ms(30_000)).await.unwrap();
    assert_eq!(one.inspect("k").await.unwrap().waiting, Some(1));
    guard.release().await.unwrap();
    let guard = soon(waiter).await.unwrap();
    assert!(one.force_release("k").await.unwrap());
    soon(guard.lost()).await;
    let guard = one.mutex("k").min_hold(ms(50)).lock().await.unwrap();
    guard.release().await.unwrap();
    drop(soon(two.mutex("k").no_renewal().lock()).await.unwrap());
    eventually("nothing is left", || common::keys(tls.server(), "").is_empty()).await;
}

/// The modes that a mutex does not have.
async fn works_in_every_mode(store: &EtcdBackend) {
    let claim = |mode| {
        let key = Key::new("modes").unwrap();
        Claim::new(key, Owner::random().unwrap(), mode, ms(3000)).without_queue()
    };
    for mode in [Mode::Shared, Mode::Permits { want: 1, of: 2 }] {
        let both = [claim(mode), claim(mode)];
        for one in &both {
            assert!(matches!(store.acquire(one).await, Ok(Standing::Held(_))), "{mode:?}");
        }
        let alone = store.acquire(&claim(Mode::Exclusive)).await;
        assert!(matches!(alone, Ok(Standing::Nothing { .. })), "{mode:?}");
        for one in &both {
            assert!(store.release(one).await.unwrap(), "{mode:?}");
        }
    }
}

/// A transaction of the user's, with the same rights, bound to the lock.
async fn works_with_a_fence(tls: &EtcdTls, store: &EtcdBackend) {
    let read = |path| std::fs::read(path).unwrap();
    let options = TlsOptions::new()
        .ca_certificate(Certificate::from_pem(read(tls.ca())))
        .identity(Identity::from_pem(read(tls.client_certificate()), read(tls.client_key())));
    let options = ConnectOptions::new().with_user(tls.user(), tls.password()).with_tls(options);
    let mut user = etcd_client::Client::connect([tls.endpoint()], Some(options)).await.unwrap();
    let client = Client::new(store.clone());
    let guard = client.mutex("fenced").lock().await.unwrap();
    let fence = store.fence(&guard).compare();
    let put = || TxnOp::put(format!("{}data", tls.prefix()), "x", None);
    let mut write = async || {
        let txn = Txn::new().when([fence.clone()]).and_then([put()]);
        user.txn(txn).await.unwrap().succeeded()
    };
    assert!(write().await);
    guard.release().await.unwrap();
    assert!(!write().await);
    tls.etcdctl(&["del", &format!("{}data", tls.prefix())]).unwrap();
}

/// How many requests the server has refused for want of a right, without the question for its version: 3.5.28 to 3.5.31 tell that to an administrator only.
fn refusals(tls: &EtcdTls) -> u64 {
    let refused = |method| {
        let label = format!("grpc_code=\"PermissionDenied\"{method}");
        let refused = tls.server().metric_where("grpc_server_handled_total", &label);
        refused.map_or(0, common::whole)
    };
    refused("") - refused(",grpc_method=\"Status\"")
}

#[tokio::test]
async fn a_certificate_a_login_and_a_role_for_the_prefix_are_enough() {
    let tls = tls();
    let one = connect(complete(&tls)).await;
    let url = format!(
        "{}?ca={}&cert={}&key={}&prefix={}",
        tls.url().replace("://", &format!("://{}:{}@", tls.user(), tls.password())),
        tls.ca().display(),
        tls.client_certificate().display(),
        tls.client_key().display(),
        tls.prefix(),
    );
    let two = soon(EtcdBackend::connect(&url)).await.unwrap();
    for shown in [format!("{one:?}"), format!("{two:?}"), format!("{:?}", complete(&tls))] {
        assert!(!shown.contains(tls.password()), "{shown}");
    }
    works(&tls, &Client::new(one.clone()), &Client::new(two.clone())).await;
    works_in_every_mode(&one).await;
    works_with_a_fence(&tls, &one).await;
    assert_eq!(refusals(&tls), 0, "nothing was even tried in vain");
    soon(one.close()).await;
    soon(two.close()).await;
    assert_eq!(common::leases(tls.server()), 0, "they may revoke their leases too");
}

#[tokio::test]
async fn another_name_in_the_certificate_can_be_expected() {
    let tls = tls();
    let port = tls.server().port();
    let config = |host: &str| {
        EtcdConfig::new([format!("{host}:{port}")])
            .ca_file(tls.ca())
            .certificate(tls.client_certificate(), tls.client_key())
            .login(tls.user(), tls.password())
            .prefix(tls.prefix())
    };
    connect(config("127.0.0.1")).await;
    connect(config("127.0.0.1").server_name("localhost")).await;
    let error = refused(config("127.0.0.1").server_name("example.org")).await;
    assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
    assert!(error.to_string().contains("certificate"), "{error}");
}

/// How connecting fails: in bounded time, and without the password.
async fn refused(config: EtcdConfig) -> BackendError {
    let failed = timeout(LONG, EtcdBackend::connect_with(config)).await.expect("it gives up");
    let error = failed.expect_err("it must not get in");
    let mut shown = format!("{error} {error:?}");
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        shown += &format!(" {cause} {cause:?}");
        source = cause.source();
    }
    assert!(!shown.contains("secret") && !shown.contains(CANARY), "{shown}");
    error
}

#[tokio::test]
async fn what_is_wrong_is_told_and_is_not_worth_another_try() {
    let tls = tls();
    let port = tls.server().port();
    let hosts = || EtcdConfig::new([format!("localhost:{port}")]).prefix(tls.prefix());
    let login = |config: EtcdConfig| config.login(tls.user(), tls.password());
    let certificate =
        |config: EtcdConfig| config.certificate(tls.client_certificate(), tls.client_key());
    for (what, config, words) in [
        (
            "signed by somebody else",
            login(certificate(hosts().ca_file(tls.other_ca()))),
            "certificate",
        ),
        ("not one of the system's", login(certificate(hosts().tls())), "certificate"),
        ("no login", certified(&tls), "permission denied"),
        ("a wrong password", certified(&tls).login(tls.user(), CANARY), "authentication failed"),
        ("no such user", certified(&tls).login("nobody", CANARY), "authentication failed"),
        ("a prefix of others", complete(&tls).prefix("other/"), "permission denied"),
        ("no prefix", complete(&tls).prefix(""), "permission denied"),
        ("no such file", login(hosts().ca_file("/nowhere/ca.pem")), "/nowhere/ca.pem"),
    ] {
        let error = refused(config).await;
        assert_eq!(error.kind(), ErrorKind::Permanent, "{what}: {error}");
        assert!(error.to_string().contains(words), "{what}: {error}");
    }
    assert_eq!(refusals(&tls), 3, "it is counted what has no right");
}

/// Before anything of etcd is said, so that it matters little who shows the certificate.
#[tokio::test]
async fn a_certificate_whose_time_is_over_or_that_names_somebody_else_is_refused() {
    for (flaw, words) in [(Flaw::Expired, "expired"), (Flaw::Name, "not valid for name")] {
        let tls = RedisTls::flawed(flaw).unwrap();
        let config = EtcdConfig::new([format!("localhost:{}", tls.server().port())])
            .ca_file(tls.ca())
            .login("me", CANARY);
        let error = refused(config).await;
        assert_eq!(error.kind(), ErrorKind::Permanent, "{flaw:?}: {error}");
        assert!(error.to_string().contains("certificate"), "{flaw:?}: {error}");
        assert!(error.to_string().contains(words), "{flaw:?}: {error}");
    }
}

/// The server says why, but the driver may see no more than a connection that is closed: that may have another reason too.
#[tokio::test]
async fn a_certificate_that_is_missing_or_a_stranger_s_is_named() {
    let tls = tls();
    let without = || {
        EtcdConfig::new([format!("localhost:{}", tls.server().port())])
            .ca_file(tls.ca())
            .login(tls.user(), CANARY)
            .prefix(tls.prefix())
    };
    let error = refused(without()).await;
    assert!(error.to_string().contains("ertificate"), "{error}");
    let error = refused(without().certificate(tls.other_certificate(), tls.other_key())).await;
    assert!(error.to_string().contains("ertificate"), "{error}");
}

#[tokio::test]
async fn speaking_in_the_clear_where_nobody_understands_it_is_an_error() {
    let tls = tls();
    let config = EtcdConfig::new([format!("localhost:{}", tls.server().port())])
        .login(tls.user(), CANARY)
        .prefix(tls.prefix());
    let error = refused(config).await;
    assert!(error.to_string().contains("`etcds`"), "{error}");
    let server = EtcdServer::start(&[]).unwrap();
    let config = EtcdConfig::new([format!("localhost:{}", server.port())]).ca_file(tls.ca());
    let error = refused(config).await;
    assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
    assert!(error.to_string().contains("tls"), "{error}");
    // Nobody has users there.
    let config = EtcdConfig::new([format!("localhost:{}", server.port())]).login("me", CANARY);
    let error = refused(config).await;
    assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
    assert!(error.to_string().contains("authentication is not enabled"), "{error}");
}

#[tokio::test]
async fn a_right_that_is_taken_away_is_missed_at_once() {
    let tls = tls();
    let client = Client::new(connect(complete(&tls)).await);
    let guard = client.mutex("k").lock().await.unwrap();
    tls.server()
        .etcdctl(&["role", "revoke-permission", "--prefix=true", "locks", tls.prefix()])
        .unwrap();
    for attempt in
        [client.mutex("j").try_lock().await.map(drop), client.mutex("j").lock().await.map(drop)]
    {
        let Error::Backend(error) = attempt.unwrap_err() else {
            panic!("an error of the store is expected");
        };
        assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
        assert!(error.to_string().contains("permission denied"), "{error}");
    }
    drop(guard);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_that_end_end_nothing_else() {
    let tls = EtcdTls::start(&["--auth-token-ttl", "2"]).unwrap();
    let (one, two) =
        (Client::new(connect(complete(&tls)).await), Client::new(connect(complete(&tls)).await));
    // Renewed more often than tokens end, and less often.
    let often = one.mutex("often").ttl(ms(3000)).lock().await.unwrap();
    let held = one.mutex("k").ttl(ms(120_000)).lock().await.unwrap();
    let waiter = wait_for(&tls, &two, "k", 2).await;
    eventually("both watch", || 3 <= watchers(tls.server())).await;
    for round in 0..2 {
        sleep(ms(4000)).await;
        assert!(often.is_held() && held.is_held() && !waiter.is_finished());
        // One more name on a stream whose token has ended.
        let before = watchers(tls.server());
        let name = format!("late{round}");
        let late = one.mutex(&name).ttl(ms(120_000)).lock().await.unwrap();
        let waits = wait_for(&tls, &two, &name, 2).await;
        eventually("it is watched by both", || before + 2 <= watchers(tls.server())).await;
        sleep(ms(2500)).await;
        late.release().await.unwrap();
        drop(timeout(ms(4000), waits).await.expect("it is told at once").unwrap());
    }
    held.release().await.unwrap();
    let guard = timeout(ms(4000), waiter).await.expect("it is told at once").unwrap();
    assert!(guard.is_held() && often.is_held());
    guard.release().await.unwrap();
    often.release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_that_a_restart_of_the_server_forgot_end_nothing_either() {
    let tls = tls();
    let (one, two) =
        (Client::new(connect(complete(&tls)).await), Client::new(connect(complete(&tls)).await));
    let held = one.mutex("k").ttl(ms(60_000)).lock().await.unwrap();
    let often = one.mutex("often").ttl(ms(9000)).lock().await.unwrap();
    let waiter = wait_for(&tls, &two, "k", 2).await;
    tls.server().restart().unwrap();
    sleep(ms(3500)).await;
    assert!(held.is_held() && often.is_held() && !waiter.is_finished());
    held.release().await.unwrap();
    drop(soon(waiter).await.unwrap());
    soon(often.lost_token().run_until_cancelled(sleep(ms(6000)))).await.expect("it is renewed");
}

/// Takes from the user the right to all keys but those of `a`.
fn leave_the_right_to_a_alone(tls: &EtcdTls) {
    let root = |args: &[&str]| tls.server().etcdctl(args).unwrap();
    root(&["role", "grant-permission", "--prefix=true", "locks", "readwrite", "locks/a"]);
    root(&["role", "revoke-permission", "--prefix=true", "locks", tls.prefix()]);
}

#[tokio::test]
async fn a_right_that_a_waiter_lost_is_no_harm_to_the_holder_of_another_lock() {
    let tls = tls();
    let client = Client::new(connect(complete(&tls)).await);
    let root = |args: &[&str]| tls.server().etcdctl(args).unwrap();
    root(&["put", "locks/b/by hand", ""]);
    let held = client.mutex("a").ttl(ms(9000)).lock().await.unwrap();
    let waiter = {
        let mutex = client.mutex("b").ttl(ms(9000));
        tokio::spawn(async move { mutex.lock().await })
    };
    eventually("it waits", || common::keys(tls.server(), "locks/b/").len() == 2).await;
    eventually("both are watched", || 2 <= watchers(tls.server())).await;
    leave_the_right_to_a_alone(&tls);
    assert!(timeout(ms(12_000), held.lost()).await.is_err(), "it is renewed");
    assert!(held.is_held());
    let Err(Error::Backend(error)) = soon(waiter).await.unwrap() else { panic!("it has no right") };
    assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
}

#[tokio::test]
async fn a_right_to_one_lock_that_was_lost_costs_no_other_that_nobody_watches() {
    let tls = tls();
    let client = Client::new(connect(complete(&tls)).await);
    let held = client.mutex("a").ttl(ms(8000)).lock().await.unwrap();
    let other = client.mutex("b").ttl(ms(8000)).lock().await.unwrap();
    eventually("both are watched", || 2 <= watchers(tls.server())).await;
    leave_the_right_to_a_alone(&tls);
    // Of a new stream, one of both watches is refused.
    tls.server().restart().unwrap();
    assert!(timeout(ms(16_000), held.lost()).await.is_err(), "it is renewed");
    assert!(held.is_held() && !other.is_held());
}

#[tokio::test]
async fn a_lock_that_may_not_be_given_back_any_more_ends_with_its_ttl() {
    let tls = tls();
    let client = Client::new(connect(complete(&tls)).await);
    // It keeps the lease of both alive.
    let held = client.mutex("a").ttl(ms(8000)).lock().await.unwrap();
    let other = client.mutex("b").ttl(ms(8000)).lock().await.unwrap();
    leave_the_right_to_a_alone(&tls);
    let Err(Error::Backend(error)) = soon(other.release()).await else { panic!("it has no right") };
    assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
    let revoked = || common::calls(tls.server(), "LeaseRevoke");
    let before = revoked();
    let end = Instant::now() + LONG;
    while !common::keys(tls.server(), "locks/b/").is_empty() {
        assert!(Instant::now() < end, "it ends");
        for _ in 0..20 {
            client.mutex("a busy one").ttl(ms(8000)).lock().await.unwrap().release().await.unwrap();
        }
    }
    assert!(revoked() - before < 10, "its lease cannot be given back either");
    assert!(held.is_held());
    held.release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_the_vain_logins_of_all_who_came_before() {
    let tls = tls();
    let proxy = RawProxy::start(tls.server().port()).unwrap();
    let config = EtcdConfig::new([format!("localhost:{}", proxy.port())])
        .ca_file(tls.ca())
        .certificate(tls.client_certificate(), tls.client_key())
        .prefix(tls.prefix())
        .login(tls.user(), tls.password());
    let client = Client::new(connect(config).await);
    proxy.blackhole(true);
    let before = proxy.accepted();
    let mut asking = JoinSet::new();
    for _ in 0..40 {
        let client = client.clone();
        asking.spawn(async move { client.inspect("k").await.map(drop) });
    }
    // Each of them by itself would take two seconds.
    while let Some(answer) = soon(asking.join_next()).await {
        let Error::Backend(error) = answer.unwrap().unwrap_err() else { panic!("of the store") };
        assert!(error.is_transient(), "{error}");
    }
    assert!(proxy.accepted() - before < 10, "they share their attempts");
}
