//! Nothing that we show or write has a password, a user or an owner id in it: no `Debug`, no error with its causes, no event of `tracing`.

use std::{
    collections::BTreeMap,
    fmt::{Debug, Write as _},
    future::Future,
    sync::{Mutex, Once, PoisonError},
    time::Duration,
};

use distlock::{Backend as _, Client, Owner, backend, etcd::EtcdBackend, redis::RedisBackend};
use distlock_servers::{
    etcd::EtcdTls,
    net::free_port,
    redis::{RedisServer, RedisTls},
};
use tokio::time::{sleep, timeout};

const PASSWORD: &str = "hunter2swordfish";
const WRONG: &str = "wrong7password";
const USER: &str = "quietcanary";
const PREFIX: &str = "locks/";
const OWNERS: [Owner; 2] = [
    Owner::new(0xfeed_be1f_0123_4567_89ab_cdef_cafe_f00d),
    Owner::new(0xfeed_be1f_7654_3210_fedc_ba98_f00d_cafe),
];

/// What must be nowhere. Six digits of an owner id may be shown.
const CANARIES: [&str; 5] = [PASSWORD, WRONG, USER, "0123456789ab", "76543210fedc"];

/// What was written by `tracing` and by `log`: the target, and the text.
static WRITTEN: Mutex<Vec<(String, String)>> = Mutex::new(Vec::new());

struct Capture;

struct Text(String);

impl tracing::field::Visit for Text {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn Debug) {
        let _ = write!(self.0, " {}={value:?}", field.name());
    }
}

fn write_down(target: &str, text: String) {
    let mut written = WRITTEN.lock().unwrap_or_else(PoisonError::into_inner);
    written.push((target.to_owned(), text));
}

impl tracing::Subscriber for Capture {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, span: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        let mut text = Text(span.metadata().name().to_owned());
        span.record(&mut text);
        write_down(span.metadata().target(), text.0);
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, values: &tracing::span::Record<'_>) {
        let mut text = Text(String::new());
        values.record(&mut text);
        write_down("a span", text.0);
    }

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        write_down(event.metadata().target(), text.0);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

impl log::Log for Capture {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        write_down(record.target(), record.args().to_string());
    }

    fn flush(&self) {}
}

fn capture() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        tracing::subscriber::set_global_default(Capture).unwrap();
        log::set_logger(&Capture).unwrap();
        log::set_max_level(log::LevelFilter::Trace);
    });
}

/// What the drivers wrote is theirs; how often a canary was in it is printed.
fn judge_written(expected: &[&str]) {
    let written = WRITTEN.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let mut leaks: BTreeMap<&str, usize> = BTreeMap::new();
    let mut ours = Vec::new();
    for (target, text) in &written {
        if target.starts_with("distlock") {
            clean(target, text);
            ours.push(&**text);
        } else if CANARIES.iter().any(|canary| text.contains(canary)) {
            let module = target.split("::").next().unwrap_or_default();
            *leaks.entry(module).or_default() += 1;
        }
    }
    for word in expected {
        assert!(ours.iter().any(|text| text.contains(word)), "nothing was written of `{word}`");
    }
    eprintln!(
        "{} lines, {} of them ours; lines of drivers with a canary: {leaks:?}",
        written.len(),
        ours.len()
    );
}

fn clean(what: &str, text: &str) {
    let told = CANARIES.iter().find(|canary| text.contains(**canary));
    assert_eq!(told, None, "{what}: {text}");
}

/// Looks at a value in all ways of `Debug`.
fn show(what: &str, value: &impl Debug) {
    clean(what, &format!("{value:?}"));
    clean(what, &format!("{value:#?}"));
}

/// Looks at an error and all its causes.
fn show_error(what: &str, error: &dyn std::error::Error) {
    let mut next = Some(error);
    while let Some(error) = next {
        clean(what, &format!("{error} {error:?} {error:#?} {error:#}"));
        next = error.source();
    }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(30), future).await.expect("it hangs")
}

/// Everything that a client does, and in the end the server goes.
async fn live(url: &str, go: impl FnOnce()) {
    let one = soon(backend(url)).await.unwrap();
    let two = soon(backend(url)).await.unwrap();
    show("a backend", &one);
    show("capabilities", &one.capabilities());
    show("a builder", &Client::builder(one.clone()));
    let [one, two] =
        [one, two].map(|backend| Client::builder(backend).prefix(PREFIX).build().unwrap());
    show("a client", &one);
    let ttl = Duration::from_millis(1500);
    let mutex = one.mutex("k").owner(OWNERS[0]).metadata("words").ttl(ttl);
    show("a mutex", &mutex);
    let guard = soon(mutex.lock()).await.unwrap();
    show("a guard", &guard);
    let again = two.mutex("k").owner(OWNERS[1]).ttl(ttl);
    let waiter = tokio::spawn(async move { again.lock().await });
    soon(async {
        loop {
            let occupancy = one.inspect("k").await.unwrap();
            show("an occupancy", &occupancy);
            if occupancy.waiting == Some(1) {
                break;
            }
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    sleep(ttl).await;
    guard.extend(ttl * 2).await.unwrap();
    show("a release", &guard.release().await.unwrap());
    let guard = soon(waiter).await.unwrap().unwrap();
    assert!(soon(one.force_release("k")).await.unwrap());
    let reason = soon(guard.lost()).await;
    show("a loss", &reason);
    show_error("an extension", &guard.extend(ttl).await.unwrap_err());
    drop(guard);
    let guard = soon(mutex.lock()).await.unwrap();
    go();
    let reason = soon(guard.lost()).await;
    show("a loss", &reason);
    show_error("a lock", &soon(one.mutex("k").lock()).await.unwrap_err());
    show_error("a look", &soon(two.inspect("k")).await.unwrap_err());
    show_error("a release", &soon(one.force_release("k")).await.unwrap_err());
}

/// A URL that must not work: the error says why, and nothing secret.
async fn fails(url: &str) -> String {
    let error = soon(backend(url)).await.expect_err(url);
    show_error(url, &error);
    error.to_string()
}

const EVENTS: [&str; 5] = ["acquired", "contended", "released", "lost", "renewal failed"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_shows_no_secret() {
    capture();
    let server = RedisServer::start(&["--requirepass", PASSWORD]).unwrap();
    let secret = format!(">{PASSWORD}");
    server.command(&["ACL", "SETUSER", USER, "on", &secret, "~*", "&*", "+@all"]).unwrap();
    let at = |login: &str| {
        format!("redis://{login}127.0.0.1:{}?timeout=300ms&connect_timeout=2s", server.port())
    };
    for login in [
        format!("{USER}:{WRONG}@"),
        format!("nobody:{WRONG}@"),
        format!(":{WRONG}@"),
        String::new(),
    ] {
        let error = fails(&at(&login)).await;
        assert!(error.contains("password"), "{error}");
    }
    // Given as a user by mistake.
    fails(&at(&format!("{WRONG}@"))).await;
    let login = format!("{USER}:{PASSWORD}@");
    fails(&at(&login).replace("redis:", "redis-cluster:")).await;
    fails(&format!("redis://{login}127.0.0.1:{}", free_port().unwrap())).await;
    fails(&format!(
        "redis-sentinel://{login}127.0.0.1:{}?master=m&sentinel_password={WRONG}",
        server.port()
    ))
    .await;
    fails(&format!("redis://{login}localhost:notaport")).await;
    fails(&format!("redis:/{login}")).await;
    fails(&format!("{USER}:{PASSWORD}://localhost")).await;
    let tls = RedisTls::start(&[]).unwrap();
    fails(&format!("rediss://{login}localhost:{}", tls.server().port())).await;
    let config = distlock::redis::RedisConfig::from_url(&at(&login)).unwrap();
    assert!(!format!("{config:?} {config:#?}").contains(PASSWORD));
    show("a backend", &RedisBackend::connect_with(config).await.unwrap());
    live(&at(&login), || server.kill().unwrap()).await;
    judge_written(&EVENTS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_shows_no_secret() {
    capture();
    let tls = EtcdTls::start(&[]).unwrap();
    tls.server().etcdctl(&["user", "add", &format!("{USER}:{PASSWORD}")]).unwrap();
    tls.server().etcdctl(&["user", "grant-role", USER, "locks"]).unwrap();
    let files = format!(
        "?prefix={PREFIX}&timeout=300ms&connect_timeout=2s&ca={}&cert={}&key={}",
        tls.ca().display(),
        tls.client_certificate().display(),
        tls.client_key().display()
    );
    let port = tls.server().port();
    let at = |login: &str| format!("etcds://{login}localhost:{port}/{files}");
    for login in [format!("{USER}:{WRONG}@"), format!("nobody:{WRONG}@"), format!("{WRONG}@")] {
        let error = fails(&at(&login)).await;
        assert!(error.contains("authentication failed"), "{error}");
    }
    fails(&at("")).await;
    let login = format!("{USER}:{PASSWORD}@");
    fails(&format!("etcd://{login}127.0.0.1:{}", free_port().unwrap())).await;
    fails(&format!("etcd://{login}localhost:{port}")).await;
    fails(&format!("etcds://{login}localhost:{port}/?prefix={PREFIX}")).await;
    fails(&format!("etcds://{login}localhost:notaport")).await;
    fails(&at(&login).replace(PREFIX, "other/")).await;
    let config = distlock::etcd::EtcdConfig::from_url(&at(&login)).unwrap();
    assert!(!format!("{config:?} {config:#?}").contains(PASSWORD));
    let backend = EtcdBackend::connect_with(config).await.unwrap();
    show("a backend", &backend);
    let client = Client::new(backend.clone());
    let guard = client.mutex("fenced").owner(OWNERS[0]).lock().await.unwrap();
    show("a fence", &backend.fence(&guard));
    guard.release().await.unwrap();
    live(&at(&login), || tls.server().kill().unwrap()).await;
    judge_written(&EVENTS);
}
