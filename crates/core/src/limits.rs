//! What values are accepted. Errors name the value and the limit.

use std::time::Duration;

use crate::{Capabilities, Error, lease, tenure::Policy};

/// The longest ttl: 24 days, what a signed 32-bit number of milliseconds holds.
const MAX_TTL: Duration = Duration::from_secs(24 * 86_400);

/// The longest metadata, in bytes.
const MAX_METADATA: usize = 4096;

pub(crate) fn check_ttl(ttl: Duration, capabilities: &Capabilities) -> Result<(), Error> {
    if ttl < capabilities.resolution || ttl.is_zero() {
        let problem = format!("is {ttl:?}, the store's shortest is {:?}", capabilities.resolution);
        return Err(Error::invalid("ttl", problem));
    }
    if lease::certain(ttl).is_zero() {
        let margin = lease::margin(ttl);
        let problem = format!("is {ttl:?}, it must be above the margin for clocks, {margin:?}");
        return Err(Error::invalid("ttl", problem));
    }
    if MAX_TTL < ttl {
        return Err(Error::invalid(
            "ttl",
            format!("is {ttl:?}, the longest is {MAX_TTL:?} (24 days)"),
        ));
    }
    Ok(())
}

pub(crate) fn check_renewal(renew_at: Option<f64>) -> Result<(), Error> {
    match renew_at {
        Some(fraction) if !(0.0 < fraction && fraction < 1.0) => Err(Error::invalid(
            "renew_at",
            format!("is {fraction:?}, it must be above 0 and below 1"),
        )),
        _ => Ok(()),
    }
}

pub(crate) fn check_metadata(metadata: &str) -> Result<(), Error> {
    if MAX_METADATA < metadata.len() {
        let problem = format!("has {} bytes, the limit is {MAX_METADATA}", metadata.len());
        return Err(Error::invalid("metadata", problem));
    }
    Ok(())
}

pub(crate) fn check_policy(policy: &Policy, ttl: Duration) -> Result<(), Error> {
    check_renewal(policy.renew_at)?;
    let limit = if policy.renew_at.is_none() { ttl } else { MAX_TTL };
    if !policy.min_hold.is_zero() && limit <= policy.min_hold {
        let why = if policy.renew_at.is_none() { ", its ttl, as it is not renewed" } else { "" };
        let problem = format!("is {:?}, it must be below {limit:?}{why}", policy.min_hold);
        return Err(Error::invalid("min_hold", problem));
    }
    match policy.max_hold {
        Some(max) if max.is_zero() => Err(Error::invalid("max_hold", "is 0, it must be longer")),
        Some(max) if max < policy.min_hold => {
            let problem =
                format!("is {max:?}, it must not be below min_hold, {:?}", policy.min_hold);
            Err(Error::invalid("max_hold", problem))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const MOMENT: Duration = Duration::from_nanos(1);
    /// That of short ttls, by which clocks may differ.
    const MARGIN: Duration = Duration::from_millis(5);
    const DAYS: Duration = Duration::from_secs(24 * 60 * 60 * 24);

    /// Which value is refused.
    fn refused(result: Result<(), Error>) -> Option<&'static str> {
        match result {
            Err(Error::Invalid { what, .. }) => Some(what),
            Err(error) => panic!("{error}"),
            Ok(()) => None,
        }
    }

    #[test]
    fn a_ttl_is_no_shorter_than_the_store_can_and_24_days_at_most() {
        let all = [
            (SECOND, [(SECOND - MOMENT, false), (SECOND, true), (SECOND + MOMENT, true)]),
            (SECOND, [(DAYS - MOMENT, true), (DAYS, true), (DAYS + MOMENT, false)]),
            (Duration::ZERO, [(Duration::ZERO, false), (MARGIN, false), (MARGIN + MOMENT, true)]),
            (Duration::ZERO, [(SECOND, true), (DAYS, true), (Duration::MAX, false)]),
        ];
        for (resolution, ttls) in all {
            for (ttl, right) in ttls {
                let checked = check_ttl(ttl, &Capabilities::exclusive(resolution));
                assert_eq!(refused(checked), (!right).then_some("ttl"), "{ttl:?} {resolution:?}");
            }
        }
    }

    #[test]
    fn a_fraction_is_between_0_and_1() {
        let wrong = [0.0, -0.0, -0.5, 1.0, 1.5, f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
        for fraction in wrong {
            assert_eq!(refused(check_renewal(Some(fraction))), Some("renew_at"), "{fraction}");
        }
        for fraction in [f64::MIN_POSITIVE, 0.5, 1.0 - f64::EPSILON] {
            assert_eq!(refused(check_renewal(Some(fraction))), None, "{fraction}");
        }
        assert_eq!(refused(check_renewal(None)), None);
    }

    #[test]
    fn words_have_4_kib_at_most() {
        for (length, right) in [(0, true), (4095, true), (4096, true), (4097, false)] {
            let refused = refused(check_metadata(&"x".repeat(length)));
            assert_eq!(refused, (!right).then_some("metadata"), "{length}");
        }
    }

    #[test]
    fn a_minimal_hold_fits_into_the_lease_and_a_maximal_one_is_no_shorter() {
        let renewed = Some(0.5);
        let all = [
            (renewed, None, Duration::ZERO, None),
            (renewed, None, 2 * SECOND, None),
            (renewed, None, DAYS - MOMENT, None),
            (renewed, None, DAYS, Some("min_hold")),
            (None, None, Duration::ZERO, None),
            (None, None, SECOND - MOMENT, None),
            (None, None, SECOND, Some("min_hold")),
            (None, None, 2 * SECOND, Some("min_hold")),
            (renewed, Some(Duration::ZERO), Duration::ZERO, Some("max_hold")),
            (renewed, Some(MOMENT), Duration::ZERO, None),
            (renewed, Some(Duration::MAX), Duration::ZERO, None),
            (renewed, Some(SECOND - MOMENT), SECOND, Some("max_hold")),
            (renewed, Some(SECOND), SECOND, None),
            (renewed, Some(SECOND + MOMENT), SECOND, None),
            (Some(2.0), None, Duration::ZERO, Some("renew_at")),
        ];
        for (renew_at, max_hold, min_hold, wrong) in all {
            let policy = Policy { renew_at, max_hold, min_hold };
            assert_eq!(refused(check_policy(&policy, SECOND)), wrong, "{policy:?}");
        }
    }
}
