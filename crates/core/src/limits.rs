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
