//! Who watches is told of everything, by whatever way he was named.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use distlock_core::{Client, Event, Key, Observer};
use distlock_memory::MemoryBackend;

#[tokio::test]
async fn an_observer_may_be_shared_with_others() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&told);
    let shared: Arc<dyn Observer> = Arc::new(move |key: &Key, event: &Event| {
        heard.lock().unwrap().push(format!("{key} {event:?}"));
    });
    let client = |shared| Client::builder(MemoryBackend::new()).observer(shared).build().unwrap();
    for client in [client(Arc::clone(&shared)), client(shared)] {
        drop(client.mutex("k").lock().await.unwrap());
    }
    let told = told.lock().unwrap();
    let acquired: Vec<_> = told.iter().filter(|event| event.contains("k Acquired")).collect();
    assert_eq!(acquired.len(), 2, "{told:?}");
}

#[cfg(feature = "tracing")]
mod traced {
    use std::{collections::BTreeMap, fmt};

    use distlock_core::{BackendError, FencingToken, LossReason, TracingObserver};
    use tracing::{
        Level, Metadata, Subscriber,
        field::{Field, Visit},
        span::{Attributes, Id, Record},
        subscriber,
    };

    use super::*;

    /// One event: its level, and its fields in the order of their names.
    type Line = (Level, String);

    #[derive(Clone, Default)]
    struct Capture(Arc<Mutex<Vec<Line>>>);

    impl Subscriber for Capture {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            metadata.target() == "distlock"
        }

        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }

        fn record(&self, _: &Id, _: &Record<'_>) {}

        fn record_follows_from(&self, _: &Id, _: &Id) {}

        fn event(&self, event: &tracing::Event<'_>) {
            let mut fields = Fields::default();
            event.record(&mut fields);
            let fields: Vec<_> =
                fields.0.iter().map(|(name, value)| format!("{name}={value}")).collect();
            self.0.lock().unwrap().push((*event.metadata().level(), fields.join(" ")));
        }

        fn enter(&self, _: &Id) {}

        fn exit(&self, _: &Id) {}
    }

    #[derive(Default)]
    struct Fields(BTreeMap<&'static str, String>);

    impl Visit for Fields {
        fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
            self.0.insert(field.name(), format!("{value:?}"));
        }
    }

    #[test]
    fn every_event_is_written_as_what_it_is() {
        let capture = Capture::default();
        let key = Key::new("k").unwrap();
        let (held, late) = (Duration::from_secs(7), Duration::from_millis(5));
        let error = BackendError::transient("store", "is away");
        let events = [
            Event::Acquired { token: FencingToken::new(9), waited: held },
            Event::Contended,
            Event::Lost { held, late, reason: LossReason::Gone },
            Event::MaxHoldReached { held },
            Event::Released { held },
            Event::RenewalFailed { error },
            Event::Renewed { late },
        ];
        subscriber::with_default(capture.clone(), || {
            events.iter().for_each(|event| TracingObserver::default().event(&key, event));
        });
        let lines: Vec<_> = capture.0.lock().unwrap().drain(..).collect();
        let lines: Vec<_> = lines.iter().map(|(level, line)| (*level, line.as_str())).collect();
        let reason = "the store no longer has it for us";
        assert_eq!(
            lines,
            [
                (Level::DEBUG, "key=k message=acquired token=9 waited=7s"),
                (Level::DEBUG, "key=k message=contended"),
                (Level::WARN, &*format!("held=7s key=k late=5ms message=lost reason={reason}")),
                (Level::WARN, "held=7s key=k message=max hold reached"),
                (Level::DEBUG, "held=7s key=k message=released"),
                (Level::WARN, "error=store: is away key=k message=renewal failed"),
                (Level::TRACE, "key=k late=5ms message=renewed"),
            ]
        );
    }

    #[tokio::test]
    async fn who_names_no_observer_finds_the_events_in_the_log() {
        let capture = Capture::default();
        let subscribed = subscriber::set_default(capture.clone());
        drop(Client::new(MemoryBackend::new()).mutex("k").lock().await.unwrap());
        drop(subscribed);
        let lines = capture.0.lock().unwrap();
        assert!(lines.iter().any(|(_, line)| line.contains("key=k message=acquired")), "{lines:?}");
    }
}
