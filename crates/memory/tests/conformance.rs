//! What every store must do.

use distlock_conformance::Setup;
use distlock_memory::MemoryBackend;

async fn setup() -> Setup<MemoryBackend> {
    Setup::Ready(MemoryBackend::named("conformance"))
}

distlock_conformance::suite!(setup);
