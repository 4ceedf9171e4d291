//! Any store, with faults.

mod plan;

use std::{future::Future, sync::Arc, time::Duration};

use distlock_core::{
    Backend, BackendError, Capabilities, Claim, ErrorKind, Key, Occupancy, Renewal, Standing,
};
use tokio::{sync::watch, time};

pub use self::plan::{Fault, Op, Rates};
use self::plan::{Plan, Shared};
use crate::Dice;

/// Any store, whose calls are lost, delayed, doubled, refused or hung, as a script or a seed says. Clones share the script.
///
/// What is lost ends with a transient error after a [timeout](Self::timeout), as with every driver that keeps the contract. All times are
/// of tokio's clock, so it can be paused. What the store says unasked (pushes) is not touched.
///
/// # Examples
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), distlock_core::Error> {
/// use distlock_conformance::{Fault, Faulty, Op};
/// use distlock_core::Client;
/// use distlock_memory::MemoryBackend;
///
/// let faulty = Faulty::new(MemoryBackend::new());
/// let client = Client::new(faulty.clone());
/// faulty.next(Op::Acquire, Fault::LoseReply);
/// let error = client.mutex("invoice/42").lock().await.unwrap_err();
/// assert!(error.is_transient());
/// // What the lost reply granted is given back in the background, so nobody waits for its ttl.
/// let guard = client.mutex("invoice/42").lock().await?;
/// # drop(guard); Ok(()) }
/// ```
#[derive(Debug)]
pub struct Faulty<B> {
    inner: Arc<B>,
    shared: Arc<Shared>,
    timeout: Duration,
}

impl<B: Backend> Faulty<B> {
    /// The store without faults, until some are asked for.
    pub fn new(backend: B) -> Self {
        Self::with(backend, Plan::default())
    }

    /// The store with faults at random. The same seed, rates and calls give the same faults.
    pub fn seeded(backend: B, seed: u64, rates: Rates) -> Self {
        Self::with(backend, Plan::random(Dice::new(seed), rates))
    }

    fn with(backend: B, plan: Plan) -> Self {
        let shared = Arc::new(Shared::new(plan));
        Self { inner: Arc::new(backend), shared, timeout: Duration::from_millis(200) }
    }

    /// After how long a lost request or reply is an error. Default: 200 ms.
    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The next call of this kind that has no fault yet gets this one.
    pub fn next(&self, op: Op, fault: Fault) {
        self.shared.plan().next(op, fault);
    }

    /// The n-th call of this kind from now on gets this fault; 1 is the next.
    pub fn nth(&self, op: Op, n: u64, fault: Fault) {
        self.shared.plan().nth(op, n, fault);
    }

    /// Every call of this kind gets this fault, until [`heal`](Self::heal).
    pub fn always(&self, op: Op, fault: Fault) {
        self.shared.plan().always(op, fault);
    }

    /// Every call of any kind gets this fault, until [`heal`](Self::heal).
    pub fn always_all(&self, fault: Fault) {
        for op in Op::ALL {
            self.always(op, fault);
        }
    }

    /// No more faults, neither of the script nor at random; hung calls go on.
    pub fn heal(&self) {
        self.shared.heal();
    }

    /// How many calls of this kind were made.
    #[must_use]
    pub fn calls(&self, op: Op) -> u64 {
        self.shared.plan().calls(op)
    }

    /// How many calls got a fault.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.shared.plan().faults()
    }

    /// How many calls were dropped before their end, which never should happen while their runtime lives.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.shared.plan().dropped()
    }

    /// One call, with what the plan has for it.
    async fn call<T, F>(&self, op: Op, call: impl Fn() -> F + Send) -> Result<T, BackendError>
    where
        F: Future<Output = T> + Send,
        T: Send,
    {
        // Before the fault is drawn, so that no healing is missed.
        let mut healed = self.shared.healed();
        let (fault, flight) = self.shared.start(op);
        let answer = match fault {
            None => Ok(call().await),
            Some(Fault::Delay(delay)) => {
                time::sleep(delay).await;
                Ok(call().await)
            }
            Some(Fault::DelayReply(delay)) => {
                let answer = call().await;
                time::sleep(delay).await;
                Ok(answer)
            }
            Some(Fault::Double) => {
                drop(call().await);
                Ok(call().await)
            }
            Some(Fault::Hang) => {
                wait(&mut healed).await;
                Ok(call().await)
            }
            Some(Fault::HangReply) => {
                let answer = call().await;
                wait(&mut healed).await;
                Ok(answer)
            }
            Some(Fault::LoseReply) => {
                drop(call().await);
                Err(self.lost().await)
            }
            Some(Fault::LoseRequest) => Err(self.lost().await),
            Some(Fault::Refuse(kind)) => Err(self.refused(kind)),
        };
        flight.landed();
        answer
    }

    async fn lost(&self) -> BackendError {
        time::sleep(self.timeout).await;
        BackendError::transient(self.name(), format!("gave no answer within {:?}", self.timeout))
    }

    fn refused(&self, kind: ErrorKind) -> BackendError {
        BackendError::new(self.name(), kind, "refused the request, as the plan of faults says")
    }
}

impl<B> Clone for Faulty<B> {
    fn clone(&self) -> Self {
        let (inner, shared) = (Arc::clone(&self.inner), Arc::clone(&self.shared));
        Self { inner, shared, timeout: self.timeout }
    }
}

impl<B: Backend> Backend for Faulty<B> {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn acquire(&self, claim: &Claim) -> Result<Standing, BackendError> {
        self.call(Op::Acquire, || self.inner.acquire(claim)).await?
    }

    async fn renew(&self, renewals: &[Renewal]) -> Vec<Result<Standing, BackendError>> {
        match self.call(Op::Renew, || self.inner.renew(renewals)).await {
            Ok(answers) => answers,
            Err(error) => renewals.iter().map(|_| Err(error.clone())).collect(),
        }
    }

    async fn release(&self, claim: &Claim) -> Result<bool, BackendError> {
        self.call(Op::Release, || self.inner.release(claim)).await?
    }

    async fn inspect(&self, key: &Key) -> Result<Occupancy, BackendError> {
        self.call(Op::Inspect, || self.inner.inspect(key)).await?
    }
}

/// Waits for the next [`Faulty::heal`].
async fn wait(healed: &mut watch::Receiver<u64>) {
    // The sender lives as long as the store: an error cannot happen while a call of it is under way.
    let _ = healed.changed().await;
}

#[cfg(test)]
mod tests {
    use distlock_core::{Mode, Owner};
    use distlock_memory::MemoryBackend;
    use tokio::time::Instant;

    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    fn claim() -> Claim {
        Claim::new(Key::new("key").unwrap(), Owner::random().unwrap(), Mode::Exclusive, TTL)
    }

    async fn is_taken(faulty: &Faulty<MemoryBackend>) -> bool {
        let key = Key::new("key").unwrap();
        !faulty.inner.inspect(&key).await.unwrap().holders.is_empty()
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_request_does_nothing_and_a_lost_reply_does_it_all() {
        for (fault, taken) in [(Fault::LoseRequest, false), (Fault::LoseReply, true)] {
            let faulty = Faulty::new(MemoryBackend::new()).timeout(Duration::from_secs(1));
            let sent = Instant::now();
            faulty.next(Op::Acquire, fault);
            assert!(faulty.acquire(&claim()).await.unwrap_err().is_transient());
            assert_eq!(sent.elapsed(), Duration::from_secs(1));
            assert_eq!(is_taken(&faulty).await, taken);
            assert_eq!((faulty.calls(Op::Acquire), faulty.faults()), (1, 1));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_script_hits_the_call_it_names() {
        let faulty = Faulty::new(MemoryBackend::new());
        faulty.nth(Op::Release, 2, Fault::Refuse(ErrorKind::Permanent));
        let claim = claim();
        let answers = [
            faulty.release(&claim).await,
            faulty.release(&claim).await,
            faulty.release(&claim).await,
        ];
        assert_eq!(answers.map(|answer| answer.is_err()), [false, true, false]);
        faulty.always(Op::Inspect, Fault::Refuse(ErrorKind::Transient));
        let key = Key::new("key").unwrap();
        for _ in 0..3 {
            assert!(faulty.inspect(&key).await.is_err());
        }
        faulty.heal();
        assert!(faulty.inspect(&key).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn delays_come_before_and_after() {
        let faulty = Faulty::new(MemoryBackend::new());
        for (fault, taken) in [(Fault::Delay(TTL / 2), false), (Fault::DelayReply(TTL / 2), true)] {
            let (store, claim) = (faulty.clone(), claim());
            faulty.next(Op::Acquire, fault);
            let task = tokio::spawn(async move {
                let _ = store.acquire(&claim).await.unwrap();
                store.release(&claim).await.unwrap()
            });
            time::sleep(TTL / 4).await;
            assert_eq!(is_taken(&faulty).await, taken);
            assert!(task.await.unwrap());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_hung_call_goes_on_when_healed_and_a_dropped_one_is_counted() {
        let faulty = Faulty::new(MemoryBackend::new());
        faulty.next(Op::Acquire, Fault::Hang);
        let hung = claim();
        assert!(time::timeout(TTL, faulty.acquire(&hung)).await.is_err());
        assert_eq!(faulty.dropped(), 1);
        faulty.next(Op::Acquire, Fault::Hang);
        let (store, healer) = (faulty.clone(), faulty.clone());
        let task = tokio::spawn(async move { store.acquire(&hung).await });
        time::sleep(TTL).await;
        assert!(!is_taken(&faulty).await);
        healer.heal();
        assert!(matches!(task.await.unwrap(), Ok(Standing::Held(_))));
        assert_eq!(faulty.dropped(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_seed_decides_all() {
        let run = async |seed| {
            let rates = Rates::each(0.1, TTL);
            let faulty = Faulty::seeded(MemoryBackend::new(), seed, rates);
            let started = Instant::now();
            let mut errors = 0;
            for _ in 0..200 {
                errors += u32::from(faulty.release(&claim()).await.is_err());
            }
            (errors, faulty.faults(), started.elapsed())
        };
        let (errors, faults, _) = run(1).await;
        assert!(20 < errors && u64::from(errors) < faults);
        assert_eq!(run(1).await, run(1).await);
        assert_ne!(run(1).await, run(2).await);
    }
}
