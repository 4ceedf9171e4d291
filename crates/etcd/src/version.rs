//! Which version of etcd answers, and which of its bugs that means.

use crate::{backend::NAME, members::Members};

/// The oldest of each line without known bugs of leases and watches: <https://github.com/etcd-io/etcd/tree/main/CHANGELOG>.
const SOUND: [(u64, u64, u64); 3] = [(3, 4, 38), (3, 5, 23), (3, 6, 5)];

/// The version of the member that is used, if it tells.
pub(crate) async fn ask(members: &Members) -> Option<String> {
    let status = members.call(|client| async move { client.maintenance_client().status().await });
    Some(status.await.ok()?.answer.version().to_owned())
}

/// What to say about a version that has known bugs.
pub(crate) fn warning(version: &str) -> Option<String> {
    let known = parse(version)?;
    let (major, minor, patch) =
        SOUND.into_iter().find(|(major, minor, _)| (*major, *minor) == (known.0, known.1))?;
    (known.2 < patch).then(|| {
        format!(
            "the {NAME} server is {version}: before {major}.{minor}.{patch} a lease can end early or be said to live when it does not, and a watch can lose an event"
        )
    })
}

fn parse(version: &str) -> Option<(u64, u64, u64)> {
    let mut numbers = version.split(['.', '-', '+']).map(str::parse);
    let mut number = || numbers.next()?.ok();
    Some((number()?, number()?, number()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_with_known_bugs_are_warned_of() {
        for version in ["3.4.23", "3.4.37", "3.5.0-rc.1", "3.5.22", "3.6.4"] {
            assert!(warning(version).is_some_and(|text| text.contains(version)), "{version}");
        }
        for version in ["3.4.38", "3.5.23", "3.5.30", "3.6.5", "3.7.0", "4.0.0", "", "x"] {
            assert_eq!(warning(version), None, "{version}");
        }
    }
}
