//! Public types are `Send + Sync + 'static`, and the futures of public methods are `Send`: said once, checked by the compiler.

use std::time::Duration;

use distlock_core::{
    AnyBackend, BackendError, Capabilities, Claim, Client, ClientBuilder, Error, Event, FenceGate,
    FencingToken, Guard, Holder, Key, Lease, LossReason, Mode, Mutex, Occupancy, Owner, Released,
    Renewal, Report, Standing,
};

const fn is_shared<T: Send + Sync + 'static>() {}

const _: () = {
    is_shared::<AnyBackend>();
    is_shared::<BackendError>();
    is_shared::<Capabilities>();
    is_shared::<Claim>();
    is_shared::<Client>();
    is_shared::<ClientBuilder>();
    is_shared::<Error>();
    is_shared::<Event>();
    is_shared::<FenceGate>();
    is_shared::<FencingToken>();
    is_shared::<Guard>();
    is_shared::<Holder>();
    is_shared::<Key>();
    is_shared::<Lease>();
    is_shared::<LossReason>();
    is_shared::<Mode>();
    is_shared::<Mutex>();
    is_shared::<Occupancy>();
    is_shared::<Owner>();
    is_shared::<Released>();
    is_shared::<Renewal>();
    is_shared::<Report<String>>();
    is_shared::<Standing>();
};

fn is_send<T: Send>(_: T) {}

#[allow(dead_code, reason = "it is enough that it compiles")]
fn futures(client: &Client, mutex: &Mutex, guard: &Guard, other: Guard, claim: &Claim) {
    is_send(client.force_release("k"));
    is_send(client.inspect("k"));
    is_send(client.shutdown());
    is_send(mutex.lock());
    is_send(mutex.lock_timeout(Duration::ZERO));
    is_send(mutex.try_lock());
    is_send(mutex.wait_released(Duration::ZERO));
    is_send(guard.extend(Duration::ZERO));
    is_send(guard.lost());
    is_send(guard.ttl());
    is_send(other.release());
    is_send(claim.granted());
}

#[tokio::test]
async fn work_in_a_lock_can_be_spawned() {
    let client = Client::new(distlock_memory::MemoryBackend::new());
    let report = tokio::spawn(async move {
        client.mutex("k").run(async |guard| guard.key().as_str().len()).await
    });
    assert_eq!(report.await.unwrap().unwrap().value, 1);
}
