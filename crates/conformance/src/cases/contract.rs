//! The contract, call by call: what a store answers to a claim.

use std::{collections::HashSet, time::Duration};

use distlock_core::{Backend as _, Claim, Key, Mode, Owner, Renewal, Standing};
use tokio::time::sleep;

use crate::{
    Stage,
    stage::owner,
    tools::{LONG, ask, eventually, expires_in, hold, is_refused, lease, release, renew, twin},
};

/// One has it, and nobody else gets it, by whatever connection.
pub async fn a_free_key_is_taken_and_excludes(stage: &Stage) {
    let (here, there) = (stage.backend(), stage.other().await);
    let claim = stage.long_claim();
    hold(&here, &claim).await;
    for store in [&here, &there] {
        assert!(is_refused(store, &stage.long_claim().without_queue()).await);
    }
    assert!(release(&here, &claim).await);
    let next = stage.long_claim();
    hold(&there, &next).await;
    assert!(release(&there, &next).await);
}

/// As after a lost reply: the same standing, the same token.
pub async fn asking_again_gives_the_same(stage: &Stage) {
    let store = stage.backend();
    let claim = stage.long_claim();
    let first = lease(&store, &claim).await;
    let again = lease(&store, &claim).await;
    let elsewhere = lease(&stage.other().await, &twin(&claim)).await;
    assert_eq!((first.token(), first.token()), (again.token(), elsewhere.token()));
    assert_eq!(stage.inspect().await.holders.len(), 1);
    assert!(release(&store, &claim).await);
    assert!(!release(&store, &claim).await, "asking again takes nothing twice");
}

/// A deadline may be counted from the last time of asking only if the ttl is.
pub async fn asking_again_gives_a_fresh_ttl(stage: &Stage) {
    let store = stage.backend();
    let ttl = stage.lasting_ttl() * 2;
    let claim = Claim::new(stage.key(), owner(), Mode::Exclusive, ttl);
    let token = hold(&store, &claim).await;
    for _ in 0..5 {
        sleep(ttl / 4).await;
        assert_eq!(hold(&store, &claim).await, token, "it did not end in the meantime");
    }
    assert!(ttl / 2 < expires_in(&store, claim.key()).await);
    assert!(release(&store, &claim).await);
}

/// PEERS RL04: whoever comes with the holder's id is the holder, with his own words.
pub async fn asking_again_shows_the_new_words(stage: &Stage) {
    let store = stage.backend();
    let claim = stage.long_claim().with_metadata("before");
    hold(&store, &claim).await;
    let again = twin(&claim).with_metadata("after");
    hold(&store, &again).await;
    assert_eq!(stage.inspect().await.holders[0].metadata, "after");
    assert!(release(&store, &again).await);
}

/// A request that the network doubled, both on their way at once.
pub async fn asking_twice_at_once_is_one_claim(stage: &Stage) {
    let (here, there) = (stage.backend(), stage.other().await);
    for _ in 0..20 {
        let claim = stage.long_claim();
        let again = twin(&claim);
        let (one, two) = tokio::join!(lease(&here, &claim), lease(&there, &again));
        assert_eq!(one.token(), two.token());
        assert!(release(&there, &claim).await);
        assert!(!release(&here, &claim).await);
    }
}

/// It is told nothing more, and nobody waits behind it.
pub async fn one_who_may_not_queue_leaves_no_place(stage: &Stage) {
    let store = stage.backend();
    let claim = stage.long_claim();
    hold(&store, &claim).await;
    let hasty = stage.long_claim().without_queue();
    let Standing::Nothing { retry_in } = ask(&store, &hasty).await else {
        panic!("the key is taken, and the claim may not queue");
    };
    assert!(retry_in.is_none_or(|retry_in| retry_in <= LONG), "{retry_in:?}");
    assert_eq!(stage.inspect().await.waiting.unwrap_or(0), 0);
    assert!(!release(&store, &hasty).await, "it has nothing");
    assert!(release(&store, &claim).await);
}

/// Without a renewal a lease ends, not before its ttl and soon after.
pub async fn a_lease_ends_at_its_ttl(stage: &Stage) {
    let store = stage.backend();
    let claim = stage.claim();
    let sent = tokio::time::Instant::now();
    hold(&store, &claim).await;
    let next = stage.long_claim().without_queue();
    eventually("the lease ends", async || !is_refused(&store, &next).await).await;
    assert!(stage.ttl() <= sent.elapsed(), "it ended after {:?}", sent.elapsed());
    assert!(release(&store, &next).await);
}

/// A holder that renews keeps the key for as long as it likes, under the same token.
pub async fn a_renewal_keeps_alive(stage: &Stage) {
    let store = stage.backend();
    let ttl = stage.lasting_ttl();
    let claim = Claim::new(stage.key(), owner(), Mode::Exclusive, ttl);
    let token = hold(&store, &claim).await;
    for _ in 0..8 {
        sleep(ttl / 6).await;
        let standing = renew(&store, Renewal::new(claim.clone())).await;
        assert!(
            matches!(standing, Standing::Held(lease) if lease.token() == token),
            "{standing:?}"
        );
        assert!(is_refused(&store, &stage.claim().without_queue()).await);
    }
    assert!(release(&store, &claim).await);
}

/// Not for one who never had it, nor for one who lost or released it.
pub async fn a_renewal_creates_nothing(stage: &Stage) {
    let store = stage.backend();
    let is_nothing = async |renewal| {
        let standing = renew(&store, renewal).await;
        assert!(matches!(standing, Standing::Nothing { .. }), "{standing:?}");
        assert!(stage.inspect().await.holders.is_empty());
    };
    let claim = stage.long_claim();
    is_nothing(Renewal::new(claim.clone())).await;
    is_nothing(Renewal::changed(claim.clone())).await;
    hold(&store, &claim).await;
    assert!(release(&store, &claim).await);
    is_nothing(Renewal::new(claim.clone())).await;
    is_nothing(Renewal::changed(claim)).await;
    let ended = stage.claim();
    hold(&store, &ended).await;
    eventually("the lease ends", async || stage.inspect().await.holders.is_empty()).await;
    is_nothing(Renewal::new(ended.clone())).await;
    is_nothing(Renewal::changed(ended)).await;
}

/// Only a change may take something away.
pub async fn a_renewal_shortens_nothing(stage: &Stage) {
    let store = stage.backend();
    let claim = stage.long_claim();
    hold(&store, &claim).await;
    let short = Claim::new(claim.key().clone(), claim.owner(), Mode::Exclusive, stage.ttl());
    let standing = renew(&store, Renewal::new(short)).await;
    assert!(matches!(standing, Standing::Held(_)), "{standing:?}");
    assert!(LONG / 2 < expires_in(&store, claim.key()).await);
    assert!(release(&store, &claim).await);
}

/// PEERS RL09, RL26, RL27: a change writes ttl and words, longer or shorter, and keeps the token.
pub async fn a_change_writes_ttl_and_words(stage: &Stage) {
    let store = stage.backend();
    let claim = stage.long_claim().with_metadata("before");
    let token = hold(&store, &claim).await;
    for (ttl, words) in [(LONG * 2, "longer"), (LONG / 2, "shorter")] {
        let changed = Claim::new(claim.key().clone(), claim.owner(), Mode::Exclusive, ttl);
        let changed = changed.with_metadata(words);
        let standing = renew(&store, Renewal::changed(changed)).await;
        assert!(
            matches!(standing, Standing::Held(lease) if lease.token() == token),
            "{standing:?}"
        );
        let left = expires_in(&store, claim.key()).await;
        assert!(left <= ttl && ttl / 4 * 3 < left, "{left:?} of {ttl:?}");
        assert_eq!(stage.inspect().await.holders[0].metadata, words);
    }
    assert!(release(&store, &claim).await);
}

/// One batch of very many, of which every third has nothing: each gets its own answer.
pub async fn renewals_are_answered_in_order(stage: &Stage) {
    const COUNT: usize = 600;
    let store = stage.backend();
    let claims: Vec<_> = (0..COUNT)
        .map(|n| {
            let key = Key::new(format!("{}{n}", stage.prefix())).expect("a short name");
            // So many take a busy machine longer than others are kept.
            Claim::new(key, owner(), Mode::Exclusive, LONG * 30)
        })
        .collect();
    let has = |n: usize| !n.is_multiple_of(3);
    let mut tokens = vec![None; COUNT];
    for (n, claim) in claims.iter().enumerate().filter(|(n, _)| has(*n)) {
        tokens[n] = Some(hold(&store, claim).await);
    }
    let renewals: Vec<_> = claims.iter().cloned().map(Renewal::new).collect();
    let answers = store.renew(&renewals).await;
    assert_eq!(answers.len(), COUNT);
    for (n, answer) in answers.into_iter().enumerate() {
        match answer.expect("the store answers") {
            Standing::Held(lease) => assert_eq!(tokens[n], Some(lease.token()), "answer {n}"),
            other => assert!(tokens[n].is_none(), "answer {n} is {other:?}"),
        }
    }
    for (n, claim) in claims.iter().enumerate() {
        assert_eq!(release(&store, claim).await, has(n));
    }
    assert!(store.renew(&[]).await.is_empty());
}

/// PEERS RL01, RL02, SD05: given back once, and free at once.
pub async fn a_release_frees_once(stage: &Stage) {
    let (here, there) = (stage.backend(), stage.other().await);
    for _ in 0..10 {
        let claim = stage.long_claim();
        hold(&here, &claim).await;
        assert!(release(&here, &claim).await);
        assert!(!release(&here, &claim).await);
        let next = stage.long_claim();
        hold(&there, &next).await;
        assert!(!release(&here, &claim).await);
        assert!(release(&there, &next).await);
    }
}

/// PEERS SD09, FAULTS B10: one who does not hold it cannot give it back.
pub async fn a_release_by_a_stranger_does_nothing(stage: &Stage) {
    let store = stage.backend();
    let claim = stage.long_claim();
    hold(&store, &claim).await;
    assert!(!release(&store, &stage.long_claim()).await);
    let loser = stage.long_claim().without_queue();
    assert!(is_refused(&store, &loser).await);
    assert!(!release(&store, &loser).await);
    assert_eq!(stage.inspect().await.holders[0].owner, Some(claim.owner()));
    assert!(release(&store, &claim).await);
}

/// PEERS RL15, RL16, FAULTS B2: nor can one who held it before.
pub async fn a_late_release_harms_no_successor(stage: &Stage) {
    let store = stage.backend();
    let late = stage.claim();
    hold(&store, &late).await;
    let next = stage.long_claim().without_queue();
    eventually("the lease ends", async || !is_refused(&store, &next).await).await;
    assert!(!release(&store, &late).await);
    let standing = renew(&store, Renewal::changed(late)).await;
    assert!(matches!(standing, Standing::Nothing { .. }), "{standing:?}");
    assert_eq!(stage.inspect().await.holders[0].owner, Some(next.owner()));
    assert!(release(&store, &next).await);
}

/// PEERS 3.2: an id that begins like another one is another one.
pub async fn owner_ids_are_compared_whole(stage: &Stage) {
    let store = stage.backend();
    let id = owner().as_u128();
    let claim = |id| Claim::new(stage.key(), Owner::new(id), Mode::Exclusive, LONG).without_queue();
    let holder = claim(id);
    hold(&store, &holder).await;
    for other in [id ^ 1, id ^ (1 << 64), id ^ (1 << 127), id >> 4, id << 4, 0, 1, u128::MAX] {
        assert!(is_refused(&store, &claim(other)).await, "{other:032x}");
        assert!(!release(&store, &claim(other)).await, "{other:032x}");
    }
    assert!(release(&store, &holder).await);
    for id in [1, u128::MAX] {
        hold(&store, &claim(id)).await;
        assert!(release(&store, &claim(id)).await, "{id:032x} goes there and back");
    }
}

/// Every grant has a token greater than all before: after a release, after an end, by any connection.
pub async fn tokens_rise(stage: &Stage) {
    if !stage.can(stage.capabilities().fencing, "fencing tokens") {
        return;
    }
    let stores = [stage.backend(), stage.other().await];
    let mut last = None;
    for round in 0..30 {
        let store = &stores[round % 2];
        let ends = round == 10;
        let claim = if ends { stage.claim() } else { stage.long_claim() }.without_queue();
        let token = hold(store, &claim).await;
        assert!(last < Some(token), "{token} after {last:?}");
        last = Some(token);
        if ends {
            eventually("the lease ends", async || stage.inspect().await.holders.is_empty()).await;
        } else {
            assert!(release(store, &claim).await);
        }
    }
}

/// What is reserved for hand-overs is not given to others.
pub async fn tokens_rise_after_a_block(stage: &Stage) {
    if !stage.can(stage.capabilities().fencing, "fencing tokens") {
        return;
    }
    let store = stage.backend();
    let mut last = 0;
    for block in [1, 100, 1, 256, 256, 1] {
        let claim = stage.long_claim().with_block(block);
        let lease = lease(&store, &claim).await;
        let token = lease.token().as_u64();
        assert!(last < token, "{token} after {last}");
        last = token + u64::from(lease.spare());
        assert!(release(&store, &claim).await);
    }
}

/// A minimal hold: taken, by nobody, and free by itself.
pub async fn a_rest_keeps_the_key_without_an_owner(stage: &Stage) {
    let store = stage.backend();
    let claim = stage.long_claim().with_metadata("words").with_rest(stage.lasting_ttl());
    hold(&store, &claim).await;
    assert!(release(&store, &claim).await);
    assert!(!release(&store, &claim).await, "nothing of its owner id is left");
    let standing = renew(&store, Renewal::new(claim.clone())).await;
    assert!(matches!(standing, Standing::Nothing { .. }), "{standing:?}");
    let next = stage.long_claim().without_queue();
    assert!(is_refused(&store, &next).await);
    assert!(stage.inspect().await.holders.iter().all(|holder| holder.owner.is_none()));
    eventually("the rest ends", async || !is_refused(&store, &next).await).await;
    assert!(release(&store, &next).await);
}

/// PEERS RL03: who, with what words and token, and for how long.
pub async fn inspect_shows_the_holder(stage: &Stage) {
    let store = stage.backend();
    let claim = stage.long_claim().with_metadata("worker-7");
    let token = hold(&store, &claim).await;
    let occupancy = stage.other().await.inspect(&claim.key().clone()).await.expect("an answer");
    let [holder] = &occupancy.holders[..] else { panic!("one holder, not {occupancy:?}") };
    assert_eq!(holder.owner, Some(claim.owner()));
    assert_eq!(holder.mode, Mode::Exclusive);
    assert_eq!(holder.metadata, "worker-7");
    if stage.capabilities().fencing {
        assert_eq!(holder.token, Some(token));
    }
    let left = holder.expires_in.expect("a lock of ours ends by itself");
    assert!(LONG / 2 < left && left <= LONG, "{left:?}");
    assert_eq!(occupancy.waiting.unwrap_or(0), 0);
    assert!(release(&store, &claim).await);
    let occupancy = stage.inspect().await;
    assert!(occupancy.holders.is_empty() && occupancy.waiting.unwrap_or(0) == 0, "{occupancy:?}");
}

/// FAULTS J2, J3: a name is what it is, to the byte.
pub async fn keys_do_not_meet(stage: &Stage) {
    let store = stage.backend();
    let longest = "x".repeat(Key::MAX_LEN - stage.prefix().len());
    let names = [
        "a",
        "a/",
        "a/b",
        "a:",
        "a:b",
        "a b",
        "A",
        "ä",
        "a\u{308}",
        "\u{1f512}",
        "{a}",
        "{a}b",
        "{}",
        "}{",
        "a{",
        "a}",
        "\0",
        "a\0",
        "\r\n",
        "a\r\nDEL a",
        "%41",
        "\"",
        "'",
        "\\",
        "*",
        "?",
        "[a]",
        "a\t",
        " ",
        longest.as_str(),
    ];
    let claim = |name: &str| {
        let key = Key::new(format!("{}{name}", stage.prefix())).expect("within the limit");
        Claim::new(key, owner(), Mode::Exclusive, LONG).with_metadata(name).without_queue()
    };
    let claims: Vec<_> = names.iter().map(|name| claim(name)).collect();
    assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len());
    for claim in &claims {
        hold(&store, claim).await;
    }
    for (name, held) in names.iter().zip(&claims) {
        assert!(is_refused(&store, &claim(name)).await, "{name:?}");
        let holders = store.inspect(held.key()).await.expect("an answer").holders;
        assert_eq!(holders[0].owner, Some(held.owner()), "{name:?}");
        assert_eq!(holders[0].metadata, *name, "words come back as they were");
    }
    for (name, claim) in names.iter().zip(&claims) {
        assert!(release(&store, claim).await, "{name:?}");
    }
}

/// Words of the longest kind, and of the oddest.
pub async fn words_come_back_as_they_were(stage: &Stage) {
    let store = stage.backend();
    let long = "\u{1f512}".repeat(1024);
    for words in ["", "0", "{}", "a\0b\r\nc", "\"quoted\" \\ 'words'", " ", "|:;,=", &long] {
        let claim = stage.long_claim().with_metadata(words);
        hold(&store, &claim).await;
        assert_eq!(stage.inspect().await.holders[0].metadata, words);
        assert!(release(&store, &claim).await);
    }
}

/// PEERS RL17, SD10: calls for what is not there, in any order and number.
pub async fn wrong_calls_are_harmless(stage: &Stage) {
    let store = stage.backend();
    let stranger = stage.claim();
    assert!(!release(&store, &stranger).await);
    assert!(!release(&store, &stranger).await);
    let claim = stage.long_claim();
    let token = hold(&store, &claim).await;
    let stranger = stage.claim();
    for _ in 0..2 {
        assert!(!release(&store, &stranger).await);
        let renewals =
            [stranger.clone(), claim.clone(), stranger.clone(), claim.clone()].map(Renewal::new);
        let answers = store.renew(&renewals).await;
        let held: Vec<_> =
            answers.into_iter().map(|answer| matches!(answer, Ok(Standing::Held(_)))).collect();
        assert_eq!(held, [false, true, false, true]);
    }
    let holders = stage.inspect().await.holders;
    assert_eq!((holders.len(), holders[0].owner), (1, Some(claim.owner())));
    assert_eq!(hold(&store, &claim).await, token);
    assert!(release(&store, &claim).await);
}

/// A ttl of the store's shortest, and one of 24 days.
pub async fn any_ttl_within_the_limits_will_do(stage: &Stage) {
    let store = stage.backend();
    let days = Duration::from_secs(24 * 86_400);
    for ttl in [days, LONG + Duration::from_micros(1), stage.capabilities().resolution] {
        let claim = Claim::new(stage.key(), owner(), Mode::Exclusive, ttl);
        hold(&store, &claim).await;
        let holders = stage.inspect().await.holders;
        if LONG < ttl {
            let left = holders[0].expires_in.expect("a lock of ours ends by itself");
            assert!(
                left <= ttl + stage.capabilities().resolution && ttl - LONG < left,
                "{left:?} of {ttl:?}"
            );
        }
        release(&store, &claim).await;
    }
}
