//! The line of a store that has one: places, pushes, the order of arrival.

use distlock_core::{AnyBackend, Backend as _, Claim, LossReason, Mode, Renewal, Standing};

use crate::{
    Stage,
    stage::owner,
    tools::{LONG, ask, eventually, hold, is_refused, pushed, queue, release, renew, twin, within},
};

fn has_line(stage: &Stage) -> bool {
    stage.can(stage.capabilities().push, "line")
}

async fn waiting(stage: &Stage) -> Option<u64> {
    stage.inspect().await.waiting
}

/// A release serves the next in line by a push.
pub async fn a_place_becomes_a_lease_by_push(stage: &Stage) {
    if !has_line(stage) {
        return;
    }
    let (here, there) = (stage.backend(), stage.other().await);
    let (first, next) = (stage.long_claim(), stage.long_claim());
    let token = hold(&here, &first).await;
    let recheck = queue(&there, &next).await;
    assert!(!recheck.is_zero());
    assert_eq!(waiting(stage).await.unwrap_or(1), 1);
    assert!(release(&here, &first).await);
    let granted = pushed(&next).await;
    assert!(token < granted || !stage.capabilities().fencing);
    assert_eq!(stage.inspect().await.holders[0].owner, Some(next.owner()));
    assert!(release(&there, &next).await);
}

/// FAULTS D1: should the push be lost, renewing the place finds the lease, the same one.
pub async fn a_place_becomes_a_lease_by_renewal(stage: &Stage) {
    if !has_line(stage) {
        return;
    }
    let (here, there) = (stage.backend(), stage.other().await);
    let (first, next) = (stage.long_claim(), stage.long_claim());
    hold(&here, &first).await;
    queue(&there, &next).await;
    let standing = renew(&there, Renewal::new(next.clone())).await;
    assert!(matches!(standing, Standing::Queued { .. }), "{standing:?}");
    assert!(release(&here, &first).await);
    let Standing::Held(lease) = renew(&there, Renewal::new(next.clone())).await else {
        panic!("the place has become a lease");
    };
    assert_eq!(pushed(&next).await, lease.token());
    let Standing::Held(again) = ask(&there, &next).await else { panic!("it is held") };
    assert_eq!(again.token(), lease.token());
    assert!(release(&there, &next).await);
}

/// Over two connections, in turns.
pub async fn waiters_are_served_in_the_order_of_arrival(stage: &Stage) {
    if !has_line(stage) || !stage.can(stage.capabilities().fair, "order of arrival") {
        return;
    }
    let stores = [stage.backend(), stage.other().await];
    let claims: Vec<_> = (0..12).map(|_| stage.long_claim()).collect();
    let store = |n: usize| &stores[n % 2];
    let mut last = hold(store(0), &claims[0]).await;
    for (n, claim) in claims.iter().enumerate().skip(1) {
        queue(store(n), claim).await;
    }
    for n in 1..claims.len() {
        assert!(release(store(n - 1), &claims[n - 1]).await);
        let token = pushed(&claims[n]).await;
        assert!(last < token || !stage.capabilities().fencing, "{token} after {last}");
        last = token;
        assert_eq!(stage.inspect().await.holders[0].owner, Some(claims[n].owner()));
    }
    assert!(release(store(claims.len() - 1), &claims[claims.len() - 1]).await);
}

/// A waiter gives up: its place is gone, and those behind it move up.
pub async fn a_place_is_given_up_by_release(stage: &Stage) {
    if !has_line(stage) {
        return;
    }
    let store = stage.backend();
    let [first, gone, next] = [(); 3].map(|()| stage.long_claim());
    hold(&store, &first).await;
    queue(&store, &gone).await;
    queue(&store, &next).await;
    assert!(release(&store, &gone).await);
    assert!(!release(&store, &gone).await);
    assert_eq!(waiting(stage).await.unwrap_or(1), 1);
    let standing = renew(&store, Renewal::new(gone)).await;
    assert!(matches!(standing, Standing::Nothing { .. }), "{standing:?}");
    assert!(release(&store, &first).await);
    pushed(&next).await;
    assert!(release(&store, &next).await);
}

/// Asking again, as after a lost reply, keeps the one place and its turn.
pub async fn asking_again_keeps_the_place(stage: &Stage) {
    if !has_line(stage) || !stage.can(stage.capabilities().fair, "order of arrival") {
        return;
    }
    let store = stage.backend();
    let [first, second, third] = [(); 3].map(|()| stage.long_claim());
    hold(&store, &first).await;
    queue(&store, &second).await;
    queue(&store, &third).await;
    queue(&store, &second).await;
    assert_eq!(waiting(stage).await.unwrap_or(2), 2);
    assert!(release(&store, &first).await);
    pushed(&second).await;
    assert!(release(&store, &second).await);
    pushed(&third).await;
    assert!(release(&store, &third).await);
}

/// FAULTS I1, D9: a holder that died says nothing; who waits is served all the same.
pub async fn the_end_of_a_holder_serves_the_next(stage: &Stage) {
    if !has_line(stage) {
        return;
    }
    let (here, there) = (stage.backend(), stage.other().await);
    let dead = Claim::new(stage.key(), owner(), Mode::Exclusive, stage.lasting_ttl());
    let next = stage.long_claim();
    hold(&here, &dead).await;
    let mut recheck = queue(&there, &next).await;
    let keep_place = async {
        loop {
            tokio::time::sleep(recheck).await;
            match renew(&there, Renewal::new(next.clone())).await {
                Standing::Held(lease) => return lease.token(),
                Standing::Queued { recheck: again } => recheck = again,
                Standing::Nothing { .. } => panic!("the place is gone"),
            }
        }
    };
    let token = tokio::select! {
        token = pushed(&next) => token,
        token = within("a renewal finds the lease", keep_place) => token,
    };
    assert_eq!(hold(&there, &next).await, token);
    assert!(release(&there, &next).await);
}

/// FAULTS D6: a push that finds nobody goes to the next.
pub async fn a_grant_that_nobody_takes_passes_on(stage: &Stage) {
    if !has_line(stage) {
        return;
    }
    let store = stage.backend();
    let [first, gone, next] = [(); 3].map(|()| stage.long_claim());
    hold(&store, &first).await;
    queue(&store, &gone).await;
    queue(&store, &next).await;
    gone.end(LossReason::Released);
    assert!(release(&store, &first).await);
    pushed(&next).await;
    assert!(release(&store, &next).await);
}

/// A minimal hold is waited for as everything else.
pub async fn a_rest_is_waited_for_in_line(stage: &Stage) {
    if !has_line(stage) {
        return;
    }
    let store = stage.backend();
    let first = stage.long_claim().with_rest(stage.lasting_ttl());
    let next = stage.long_claim();
    hold(&store, &first).await;
    queue(&store, &next).await;
    assert!(release(&store, &first).await);
    assert!(matches!(ask(&store, &next).await, Standing::Queued { .. }));
    eventually("the rest ends", async || {
        let standing = renew(&store, Renewal::new(next.clone())).await;
        matches!(standing, Standing::Held(_))
    })
    .await;
    assert!(release(&store, &next).await);
}

/// One who does not wait gets nothing between a release and the next in line.
pub async fn nobody_jumps_the_line(stage: &Stage) {
    if !has_line(stage) || !stage.can(stage.capabilities().fair, "order of arrival") {
        return;
    }
    let (here, there) = (stage.backend(), stage.other().await);
    let [first, next] = [(); 2].map(|()| stage.long_claim());
    hold(&here, &first).await;
    queue(&here, &next).await;
    assert!(release(&here, &first).await);
    assert!(is_refused(&there, &stage.long_claim().without_queue()).await);
    pushed(&next).await;
    assert!(release(&here, &next).await);
}

/// A claim by another object takes up the place: a grant finds it there, or its renewal does.
pub async fn a_place_belongs_to_its_owner_id(stage: &Stage) {
    if !has_line(stage) {
        return;
    }
    let (here, there) = (stage.backend(), stage.other().await);
    let (first, next) = (stage.long_claim(), stage.long_claim());
    hold(&here, &first).await;
    queue(&here, &next).await;
    let same = twin(&next);
    assert!(matches!(ask(&there, &same).await, Standing::Queued { .. }));
    assert_eq!(waiting(stage).await.unwrap_or(1), 1);
    assert!(release(&here, &first).await);
    assert!(matches!(renew(&there, Renewal::new(same.clone())).await, Standing::Held(_)));
    assert!(release(&there, &same).await);
}

/// Two hundred waiters, half of whom give up: the others come to their turn, and nobody is left.
pub async fn a_long_line_is_served_to_its_end(stage: &Stage) {
    if !has_line(stage) {
        return;
    }
    let stores = [stage.backend(), stage.other().await];
    // So many take a busy machine longer than others are kept.
    let claim = || Claim::new(stage.key(), owner(), Mode::Exclusive, LONG * 30);
    let claims: Vec<Claim> = (0..200).map(|_| claim()).collect();
    let first = claim();
    hold(&stores[0], &first).await;
    let mut line: Vec<(&AnyBackend, &Claim)> = Vec::new();
    for (n, claim) in claims.iter().enumerate() {
        queue(&stores[n % 2], claim).await;
        line.push((&stores[n % 2], claim));
    }
    let renewals: Vec<_> = claims.iter().cloned().map(Renewal::new).collect();
    let answers = stores[0].renew(&renewals).await;
    assert!(answers.iter().all(|answer| matches!(answer, Ok(Standing::Queued { .. }))));
    let (stay, go): (Vec<_>, Vec<_>) = line.into_iter().enumerate().partition(|(n, _)| n % 4 < 2);
    for (_, (store, claim)) in go {
        assert!(release(store, claim).await);
    }
    assert!(release(&stores[0], &first).await);
    for (_, (store, claim)) in stay {
        pushed(claim).await;
        assert!(release(store, claim).await);
    }
}
