//! Whether the server may throw locks away to make room.

use crate::link::{Bytes, Link, Reply};

/// What a server does when its memory is full.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Eviction {
    pub(crate) policy: String,
    /// Without a limit nothing is evicted.
    limited: bool,
}

/// Asks the servers. `None`: they do not tell, which is no error: not every user may ask.
pub(crate) async fn look(link: &Link) -> Option<Eviction> {
    let replies = link.command_everywhere("INFO", &[Bytes::from_static(b"memory")]).await.ok()?;
    let all = replies.iter().filter_map(|reply| match reply {
        Reply::Bulk(text) => Eviction::read(str::from_utf8(text).ok()?),
        _ => None,
    });
    all.max_by_key(Eviction::is_risky)
}

impl Eviction {
    fn read(info: &str) -> Option<Self> {
        let field = |name| {
            info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
        };
        let policy = field("maxmemory_policy")?.to_owned();
        Some(Self { policy, limited: field("maxmemory")? != "0" })
    }

    fn is_risky(&self) -> bool {
        self.limited && self.policy != "noeviction"
    }

    pub(crate) fn warning(&self) -> Option<String> {
        self.is_risky().then(|| {
            format!(
                "the Redis server evicts keys when its memory is full (maxmemory-policy {}), held locks too: use `noeviction`",
                self.policy
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_with_a_policy_that_evicts_is_a_risk() {
        for (limit, policy, risky) in [
            ("1048576", "allkeys-lru", true),
            ("1048576", "volatile-ttl", true),
            ("1048576", "noeviction", false),
            ("0", "allkeys-lru", false),
        ] {
            let info = format!(
                "# Memory\r\nused_memory:1\r\nmaxmemory:{limit}\r\nmaxmemory_human:0B\r\nmaxmemory_policy:{policy}\r\n"
            );
            let eviction = Eviction::read(&info).unwrap();
            assert_eq!(eviction.policy, policy);
            assert_eq!(eviction.warning().is_some(), risky, "{limit} {policy}");
        }
        assert_eq!(Eviction::read("# Memory\r\nused_memory:1\r\n"), None);
    }
}
