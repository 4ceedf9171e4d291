//! The example's own store does what every store must do.

use std::sync::LazyLock;

use distlock_conformance::Setup;
use store::TableBackend;

#[path = "../custom_store/store.rs"]
mod store;

static TABLE: LazyLock<TableBackend> = LazyLock::new(TableBackend::default);

async fn setup() -> Setup<TableBackend> {
    Setup::Ready(TABLE.clone())
}

distlock_conformance::suite!(setup);
