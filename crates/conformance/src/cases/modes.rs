//! The one rule of admission, for stores that know more than exclusive claims.

use distlock_core::{AnyBackend, Claim, Mode};

use crate::{
    Stage,
    stage::owner,
    tools::{LONG, eventually, hold, is_refused, pushed, queue, release},
};

fn has(stage: &Stage, shared: bool, permits: bool) -> bool {
    let capabilities = stage.capabilities();
    stage.can(!shared || capabilities.shared, "shared claims")
        && stage.can(!permits || capabilities.permits, "permits")
}

/// For so long that nobody waits for its end.
fn claim_as(stage: &Stage, mode: Mode) -> Claim {
    Claim::new(stage.key(), owner(), mode, LONG)
}

fn permits(stage: &Stage, want: u32) -> Claim {
    claim_as(stage, Mode::Permits { want, of: 3 })
}

/// Waits behind others: in line, or by asking again.
async fn wait(stage: &Stage, store: &AnyBackend, claim: &Claim) {
    if stage.capabilities().push {
        queue(store, claim).await;
    } else {
        assert!(is_refused(store, claim).await);
    }
}

/// Is admitted: by a push, or by asking again.
async fn enter(stage: &Stage, store: &AnyBackend, claim: &Claim) {
    if stage.capabilities().push {
        pushed(claim).await;
    } else {
        eventually("it is admitted", async || !is_refused(store, claim).await).await;
    }
}

/// Readers together, the writer after all of them, a reader behind the writer after him.
pub async fn shared_claims_hold_together_and_a_writer_alone(stage: &Stage) {
    if !has(stage, true, false) {
        return;
    }
    let (here, there) = (stage.backend(), stage.other().await);
    let [one, two, late] = [(); 3].map(|()| claim_as(stage, Mode::Shared));
    let writer = stage.long_claim();
    hold(&here, &one).await;
    hold(&there, &two).await;
    assert_eq!(stage.inspect().await.holders.len(), 2);
    wait(stage, &here, &writer).await;
    let in_line = stage.capabilities().push;
    if in_line {
        queue(&there, &late).await;
    }
    assert!(release(&here, &one).await);
    assert!(release(&there, &two).await);
    enter(stage, &here, &writer).await;
    assert!(is_refused(&there, &claim_as(stage, Mode::Shared).without_queue()).await);
    assert!(release(&here, &writer).await);
    if in_line {
        pushed(&late).await;
        assert!(release(&there, &late).await);
    }
}

/// A writer that gives up lets the readers in who stood behind it.
pub async fn readers_pass_a_writer_that_gave_up(stage: &Stage) {
    if !has(stage, true, false) || !stage.can(stage.capabilities().push, "line") {
        return;
    }
    let store = stage.backend();
    let (reader, late, writer) =
        (claim_as(stage, Mode::Shared), claim_as(stage, Mode::Shared), stage.long_claim());
    hold(&store, &reader).await;
    queue(&store, &writer).await;
    queue(&store, &late).await;
    assert!(release(&store, &writer).await);
    pushed(&late).await;
    assert!(release(&store, &reader).await);
    assert!(release(&store, &late).await);
}

/// No more permits than there are, of whatever size.
pub async fn permits_are_not_overdrawn(stage: &Stage) {
    if !has(stage, false, true) {
        return;
    }
    let (here, there) = (stage.backend(), stage.other().await);
    let [one, two, three] = [1, 1, 1].map(|want| permits(stage, want));
    hold(&here, &one).await;
    hold(&there, &two).await;
    assert!(is_refused(&here, &permits(stage, 2).without_queue()).await);
    hold(&here, &three).await;
    assert!(is_refused(&there, &permits(stage, 1).without_queue()).await);
    assert_eq!(stage.inspect().await.holders.len(), 3);
    assert!(release(&there, &two).await);
    let four = permits(stage, 1).without_queue();
    hold(&there, &four).await;
    for claim in [&one, &three, &four] {
        assert!(release(&here, claim).await);
    }
}

/// One who wants many is not passed by those who want few.
pub async fn a_large_want_is_not_starved(stage: &Stage) {
    if !has(stage, false, true) || !stage.can(stage.capabilities().push, "line") {
        return;
    }
    let store = stage.backend();
    let (one, two, large, small) =
        (permits(stage, 1), permits(stage, 2), permits(stage, 3), permits(stage, 1));
    hold(&store, &one).await;
    hold(&store, &two).await;
    queue(&store, &large).await;
    queue(&store, &small).await;
    assert!(release(&store, &one).await);
    assert_eq!(stage.inspect().await.holders.len(), 1, "nobody passes the one in front");
    assert!(release(&store, &two).await);
    pushed(&large).await;
    assert!(release(&store, &large).await);
    pushed(&small).await;
    assert!(release(&store, &small).await);
}

/// A key is for one kind of claim at a time.
pub async fn modes_do_not_mix(stage: &Stage) {
    if !has(stage, true, true) {
        return;
    }
    let store = stage.backend();
    let modes = [Mode::Exclusive, Mode::Shared, Mode::Permits { want: 1, of: 3 }];
    for held in modes {
        let holder = claim_as(stage, held);
        hold(&store, &holder).await;
        for mode in modes.into_iter().filter(|mode| *mode != held) {
            assert!(
                is_refused(&store, &claim_as(stage, mode).without_queue()).await,
                "{mode:?} beside {held:?}"
            );
        }
        assert!(release(&store, &holder).await);
    }
}
