//! Randomness, from the operating system's secure source.

/// Fills the bytes.
pub(crate) fn fill(bytes: &mut [u8]) -> Result<(), getrandom::Error> {
    #[cfg(feature = "_simulation")]
    if crate::simulation::fill(bytes) {
        return Ok(());
    }
    getrandom::fill(bytes)
}

/// Any number; none where the system gives none.
pub(crate) fn number() -> Option<u32> {
    let mut bytes = [0; 4];
    fill(&mut bytes).ok().map(|()| u32::from_le_bytes(bytes))
}
